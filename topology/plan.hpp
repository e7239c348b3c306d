// The planner's answer: which card does what, and what that should cost.
//
// A value type. The same input gives the same bytes of every printed form. Its digest stands in every frame
// header, so two processes with different plans refuse each other.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "topology/demand.hpp"

namespace orrery::topology {

/// One card of the cluster, in the plan's numbering (the index in `Plan::cards`).
struct PlannedCard {
  std::string node;         // Host name as in the cluster file.
  std::uint32_t index = 0;  // Within the node.
  std::string type;         // Card profile.
  std::uint64_t memory_bytes = 0;
  double relative_compute = 1;  // To the slowest card's effective compute rate.
  std::uint32_t threads = 1;    // For backend cpu.
  double host_bandwidth = 0;    // Bytes per second from host memory; 0: not limited.
};

/// One rank of a group: a card and what it owns.
struct PlannedRank {
  std::uint32_t card = 0;  // Index in Plan::cards.
  /// Owned slices, ascending, never empty. Token rows are shared out in the same proportion, at whatever size
  /// a request has (base/row_split.hpp), in both splits.
  std::vector<std::uint32_t> slices;
};

/// Cards that together do one forward pass.
struct PlannedGroup {
  std::vector<PlannedRank> ranks;
};

struct PlannedStage {
  StageKind kind = StageKind::denoiser;
  Split split = Split::tensor;
  std::uint32_t slices = 1;
  /// One group, or two for a denoiser whose guidance branches run on different cards (CFG split):
  /// groups[0] does the prompt, groups[1] the negative prompt.
  std::vector<PlannedGroup> groups;
};

/// What a card's memory is spent on at the worst moment, bytes. Weights of all its stages stay; of lanes, a card has one for
/// each video that is in one of its stages.
struct MemoryBill {
  std::uint32_t card = 0;
  std::uint64_t weights = 0;
  std::uint64_t activations = 0;  // The largest lane of its stages: all that one video at a time takes.
  std::uint64_t overlap = 0;      // Lanes that are open beside it when other videos are in other stages.
  std::uint64_t total() const { return weights + activations + overlap; }
  std::uint64_t one_video() const { return weights + activations; }
  std::uint64_t budget = 0;
};

struct LinkLoad {
  std::string from, to;  // Node names; equal for within a node.
  std::string link_type;
  std::uint64_t bytes_per_step = 0;
  double seconds_per_step = 0;
};

struct PredictedStage {
  StageKind kind = StageKind::denoiser;
  double compute_seconds = 0;  // One step (denoiser) or the whole stage.
  double exchange_seconds = 0;
  double total_seconds() const { return compute_seconds + exchange_seconds; }
};

struct RejectedPlan {
  std::string what;  // "denoiser tensor=8 cfg=1"
  std::string why;   // "12% slower: 41.2 ms a step against 36.7 ms" or "n1:0 needs 18.2 GiB of 16.0 GiB"
};

struct Plan {
  std::string cluster, model;
  std::vector<PlannedCard> cards;    // All cards of the cluster, node order then index.
  std::vector<PlannedStage> stages;  // Pipeline order; guardrails have a group of one rank with slice 0.
  std::vector<MemoryBill> bills;     // One per card.
  bool streamed = false;             // Weights stay with the hosts and are copied in ahead of their use.
  std::vector<LinkLoad> links;
  std::vector<PredictedStage> predicted;
  std::uint32_t steps = 1;  // Denoising steps that the prediction counts.
  double predicted_video_seconds = 0;
  /// No plan for these cards and this work can be faster: perfect sharing, free exchange.
  double lower_bound_seconds = 0;
  /// Whether every placement was compared (small clusters), not only the candidates of planner.cpp.
  bool exhaustive = false;
  std::vector<RejectedPlan> rejected;

  /// Everything that decides the placement (not the predictions), as canonical text; hashed by `digest`.
  std::string canonical() const;
  /// First 16 hex digits of SHA-256 of `canonical()`, as a number.
  std::uint64_t digest() const;

  /// The stage of a kind, or null.
  const PlannedStage* stage(StageKind kind) const;
  const PredictedStage* prediction(StageKind kind) const;
  /// "n1:0".
  std::string card_name(std::uint32_t card) const;
};

}  // namespace orrery::topology
