// From a component's configuration to the programs of one card: the passes, declared and run in one place.
//
//   config + Compute ─────────▶ *_weights(layout) ──▶ WeightSet    once per layout, loaded once
//   config + shape + WeightSet ─▶ compile_*(layout) ─▶ ProgramSet   per request shape, a few milliseconds
//
// Nothing here reads weight files: the sets name tensors, cards copy them. Everything is a pure function of its
// arguments, so each rank compiles for itself and all agree (exchange ids, row ranges, sums).
//
// The video autoencoder's front end is models/cosmos_codec.hpp.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "cards/program.hpp"
#include "compiler/graph.hpp"
#include "compiler/layout.hpp"
#include "compiler/model_folder.hpp"

namespace orrery::compiler {

/// Element type of matrix products and of what stands between them; sums, norms and residuals are f32. With int8, the
/// matrices that are cut into slices (attention and feed-forward of denoiser and text encoder: nearly all weights) are kept and
/// multiplied as int8, and everything else is as without; the codec has none of them.
enum class Compute : std::uint8_t { f32, bf16, f32_int8, bf16_int8 };
constexpr DType dtype_of(Compute compute) {
  return compute == Compute::bf16 || compute == Compute::bf16_int8 ? DType::bf16 : DType::f32;
}
/// Of matrices that are cut into slices.
constexpr DType sliced_dtype_of(Compute compute) {
  return compute == Compute::f32_int8 || compute == Compute::bf16_int8 ? DType::i8 : dtype_of(compute);
}
/// "float32", "bfloat16", "float32+int8", "bfloat16+int8"; nothing for another name.
constexpr std::string_view name_of(Compute compute) {
  switch (compute) {
    case Compute::f32: return "float32";
    case Compute::bf16: return "bfloat16";
    case Compute::f32_int8: return "float32+int8";
    case Compute::bf16_int8: return "bfloat16+int8";
  }
  return "unknown";
}
constexpr std::optional<Compute> compute_named(std::string_view name) {
  for (const auto compute : {Compute::f32, Compute::bf16, Compute::f32_int8, Compute::bf16_int8})
    if (name == name_of(compute)) return compute;
  return std::nullopt;
}

/// The text of the graph after each pass, for `--print-passes`, READMEs and tests.
struct PassTrace {
  struct Entry {
    std::string pass;  // "front end", "fuse", "split", "interleave", "plan"
    std::string text;
  };
  std::vector<Entry> entries;
};

// --- slices -----------------------------------------------------------------------------------------------

/// Slices V of a component: the largest divisor of gcd(heads, feed-forward width) that is at most `requested`.
std::uint32_t slice_count_of(const TransformerConfig& config, std::uint32_t requested = 8);
std::uint32_t slice_count_of(const TextEncoderConfig& config, std::uint32_t requested = 8);

/// Every slice owned exactly once per group, every rank owns one, lists ascend, one or two groups, group and rank exist.
/// Fails with internal (plans are ours).
Status check_layout(const Layout& layout);

// --- denoiser ---------------------------------------------------------------------------------------------

/// What one video asks of the denoiser.
struct DenoiserShape {
  std::uint64_t frames = 0, height = 0, width = 0;  // Of the latents.
  std::uint64_t prompt_rows = 0;                    // Real text rows of the prompt (with </s>) ...
  std::uint64_t negative_rows = 0;                  // ... and of the negative prompt.
  std::uint64_t padded_rows = 512;                  // Length the model was given: the rest counts as zero keys.
  std::optional<double> fps;                        // Not given: rotary positions are not scaled by it.
  bool guidance = true;                             // Two branches.
};

/// For the denoiser and for `compile_transformer`. Layout.slice_count must be that of the config.
Result<std::shared_ptr<const cards::WeightSet>> denoiser_weights(const TransformerConfig& config, const Layout& layout,
                                                                 Compute compute);

/// Programs `prepare` and `step`.
///   inputs   noise f32[C,T,H,W] (the slot of `latents`), text_prompt f32[prompt_rows,E], text_negative (in the
///            group that computes that branch), padding_mask f32[H,W] (stays zero unless written)
///   outputs  latents f32[C,T,H,W] (state: may also be written, to resume)
///   scalars  prepare: sigma_max; step: timestep, c_in, c_skip, c_out, sigma, sigma_next, guidance
/// Fails with invalid_request when the size does not suit the config, unsupported for Video2World configs.
Result<std::shared_ptr<const cards::ProgramSet>> compile_denoiser(const TransformerConfig& config,
                                                                  std::shared_ptr<const cards::WeightSet> weights,
                                                                  const Layout& layout, Compute compute,
                                                                  const DenoiserShape& shape, PassTrace* trace = nullptr);

/// One forward of the transformer alone.
struct TransformerShape {
  std::uint64_t frames = 0, height = 0, width = 0;
  std::uint64_t text_rows = 0;
  std::optional<double> fps;
  bool condition_mask = false;
  bool attention_mask = false;
};

/// Program `forward`.
///   inputs   hidden_states f32[C,T,H,W], encoder_hidden_states f32[S,E], condition_mask f32[1,T,H,W],
///            padding_mask f32[H,W] (latent size; stays zero unless written), attention_mask f32[S]
///   outputs  sample f32[C,T,H,W]
///   scalars  timestep, c_in (1)
Result<std::shared_ptr<const cards::ProgramSet>> compile_transformer(const TransformerConfig& config,
                                                                     std::shared_ptr<const cards::WeightSet> weights,
                                                                     const Layout& layout, Compute compute,
                                                                     const TransformerShape& shape,
                                                                     PassTrace* trace = nullptr);

// --- text encoder -----------------------------------------------------------------------------------------

Result<std::shared_ptr<const cards::WeightSet>> text_encoder_weights(const TextEncoderConfig& config, const Layout& layout,
                                                                     Compute compute);

/// Program `forward`: inputs input_ids i32[rows], attention_mask f32[rows] when asked for; output
/// last_hidden_state f32[rows,D], complete on every rank.
Result<std::shared_ptr<const cards::ProgramSet>> compile_text_encoder(const TextEncoderConfig& config,
                                                                      std::shared_ptr<const cards::WeightSet> weights,
                                                                      const Layout& layout, Compute compute,
                                                                      std::uint64_t rows, bool attention_mask,
                                                                      PassTrace* trace = nullptr);

// --- what the planner asks ----------------------------------------------------------------------------------

/// Lane memory of a rank that owns some slices in a row, `pieces` of the slice tree, in a group (of `groups`) where others own
/// the rest.
struct LaneSize {
  Split split = Split::tensor;
  std::uint32_t groups = 1;
  std::uint32_t slices = 1;
  std::uint32_t pieces = 1;
  std::uint64_t bytes = 0;
};

/// Figures of one component at one request size; bytes on a card in the compute dtype, work of one forward of one
/// branch, all slices together. From the config alone, so also for models whose files are elsewhere.
struct ComponentFigures {
  std::uint32_t slices = 1;
  std::uint32_t blocks = 0;
  std::uint64_t rows = 0;
  std::uint64_t width = 0;
  std::uint64_t text_rows = 0;
  std::uint64_t weight_bytes_replicated = 0;
  std::uint64_t weight_bytes_sliced = 0;
  /// What they take beyond that in the form that cards keep (cards/weight_loader.hpp).
  std::uint64_t weight_padding_replicated = 0;
  std::uint64_t weight_padding_sliced = 0;
  /// By split and groups, slices ascending from 1 to all: up to 8 each number, then some.
  std::vector<LaneSize> lanes;
  double flops_linear = 0;
  double flops_attention = 0;
  std::uint32_t reduces_per_block = 0;     // Tensor split: reduce-scatter + all-gather.
  std::uint32_t all_to_alls_per_block = 0;  // Sequence split.
  std::uint32_t reduce_element_bytes = 4;
  std::uint32_t gather_element_bytes = 4;
};
Result<ComponentFigures> denoiser_figures(const TransformerConfig& config, Compute compute, const DenoiserShape& shape,
                                          std::uint32_t slice_count);
Result<ComponentFigures> text_encoder_figures(const TextEncoderConfig& config, Compute compute, std::uint64_t rows,
                                              std::uint32_t slice_count);

// --- for front ends -----------------------------------------------------------------------------------------

/// All weights that a graph names once it is cut to `layout`, each once, in order of first use.
std::shared_ptr<const cards::WeightSet> weights_of(const Graph& graph, const Layout& layout);

/// Runs the passes on a logical graph. A weight that `weights` does not have is an internal error, as is a set that
/// does not pass its own check.
Result<std::shared_ptr<const cards::ProgramSet>> compile_graph(Graph graph, std::shared_ptr<const cards::WeightSet> weights,
                                                               const Layout& layout, PassTrace* trace = nullptr);

}  // namespace orrery::compiler
