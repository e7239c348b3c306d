// What a model asks of a cluster: the planner's input, in bytes and operations.
//
// Topology knows no model files; actors/ fills this from what compiler/ read. All figures are for one
// request at one size (frames, height, width, text length).

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orrery::topology {

/// Pipeline order. `denoiser` is the only stage that may run as two branches (guidance).
enum class StageKind : std::uint8_t { text_guardrail, text_encoder, denoiser, decoder, video_guardrail };
std::string_view name_of(StageKind kind);  // "text_encoder" ...

/// How a group shares one forward pass.
enum class Split : std::uint8_t {
  tensor,  // Each card owns slices of every matrix; residual rows are shared out too (reduce-scatter, all-gather).
  sequence,  // Each card owns token rows and all weights; heads change hands around attention (Ulysses).
};
std::string_view name_of(Split split);

/// Bytes of a rank's lane (what a request takes on its card besides weights) when it owns `slices` slices, `pieces` of the
/// slice tree.
struct LaneSize {
  Split split = Split::tensor;
  bool two_groups = false;  // Guidance branches side by side.
  std::uint32_t slices = 1;
  std::uint32_t pieces = 1;
  std::uint64_t bytes = 0;
};

/// One stage's demand.
struct StageDemand {
  StageKind kind = StageKind::denoiser;
  /// Slices V of the component (base/slice_tree.hpp). 1: cannot be split over cards.
  std::uint32_t slices = 1;
  std::uint32_t blocks = 0;  // Transformer blocks; 0 when not a transformer.
  std::uint64_t rows = 0;    // Tokens (denoiser: video tokens; text encoder: text tokens).
  std::uint64_t width = 0;   // Hidden size.
  std::uint64_t text_rows = 0;
  /// Whether tokens may be split with all-to-all around attention (Ulysses).
  bool sequence_split = false;
  /// Branches per step (2 with guidance, else 1) and steps.
  std::uint32_t branches = 1;
  std::uint32_t steps = 1;

  // Bytes on a card, in the compute dtype.
  std::uint64_t weight_bytes_replicated = 0;  // On every card of the group.
  std::uint64_t weight_bytes_sliced = 0;      // All slices together; a card holds its owned/V part.
  // What kernels' packing of weights adds to that, where it is known: takes room, and no time.
  std::uint64_t weight_padding_replicated = 0;
  std::uint64_t weight_padding_sliced = 0;
  /// From compiled programs: ascending by slices for each split and number of groups. Empty: estimated by what follows.
  std::vector<LaneSize> lanes;
  /// Activation high-water mark when one card does everything; a card's part is about
  /// activation_bytes_fixed + activation_bytes_split * (its share).
  std::uint64_t activation_bytes_fixed = 0;
  std::uint64_t activation_bytes_split = 0;

  // Work of one forward of one branch (text encoder, decoder: the whole stage), all slices.
  double flops_linear = 0;
  double flops_attention = 0;
  /// Exchanged tensor of one collective: rows * width * this many bytes per element.
  std::uint32_t reduce_element_bytes = 4;  // Partial sums travel as f32.
  std::uint32_t gather_element_bytes = 4;  // Compute dtype.
  /// All-reduces (reduce-scatter + all-gather) per block in tensor split; all-to-alls per block in sequence split.
  std::uint32_t reduces_per_block = 3;
  std::uint32_t all_to_alls_per_block = 4;
};

struct Demand {
  std::string model;                // Name, for messages.
  std::string dtype;                // "float32" or "bfloat16".
  std::uint64_t latent_bytes = 0;   // One f32 latent: exchanged between branches, kept at each step.
  std::vector<StageDemand> stages;  // In pipeline order.
  /// Weights stay with the hosts and are copied in ahead of their use: a card needs room for a few parts only.
  bool streamed_weights = false;
};

}  // namespace orrery::topology
