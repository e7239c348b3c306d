// Decides which cards do what, and predicts what that costs.
//
// Objective: seconds for one video. Every stage gets a group of cards; the denoiser may get two (guidance
// branches side by side). Small clusters: every placement that differs is compared. Larger ones: candidates that
// fill nodes, spread evenly over nodes, or take the fastest cards, for each group size.
//
// Cost of a stage: the slowest rank's compute (operations by the card's effective rate, at least the time to read
// its weights once) plus the exchange. A collective costs (p-1) latencies and the busiest port's bytes by its
// bandwidth; the cards of a node share the node's port, groups that run side by side share it too. Formulas:
// Hockney's alpha-beta, pairwise all-to-all, ring-equivalent reduce-scatter and all-gather.
//
// Deterministic: the same input gives the same plan. Pure; any thread.

#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "topology/cluster_spec.hpp"
#include "topology/demand.hpp"
#include "topology/deployment_spec.hpp"
#include "topology/plan.hpp"

namespace orrery::topology {

/// What is known of cards right now, by number (their index in `Plan::cards`). They keep their numbers.
struct CardConditions {
  std::set<std::uint32_t> lost;  // May not be used.
  /// Measured: 2.0 takes twice the time of its profile, in computing and in reading its memory. From 1 (also for
  /// anything below) to slowdown_max.
  std::map<std::uint32_t, double> slowdown;
};
constexpr double slowdown_max = 1000;

/// A slow card gets fewer slices, or no place in a stage when that is faster; predictions count its slowness, the
/// plan's digest does not: the same placement stays the same plan.
/// Fails with no_feasible_plan: what cannot be met and which values can, or which card lacks how much memory.
Result<Plan> make_plan(const ClusterSpec& cluster, const DeploymentSpec& deployment, const Demand& demand,
                       const CardConditions& conditions = {});

/// `count` cards to keep free until others are lost (at most all but one), to be given to `make_plan` as lost. One
/// after the other is taken from the node that has most cards left, of such nodes from the one that has given
/// least, then from the last; there the slowest card, of equals the last. So nodes stay as even as they were.
std::set<std::uint32_t> spare_cards(const ClusterSpec& cluster, std::uint32_t count);

/// All cards in the plan's numbering: node order, then index.
std::vector<PlannedCard> cards_of(const ClusterSpec& cluster, const std::string& dtype);

/// Slices of one group: contiguous in rank order, every rank at least one, so that the slowest rank is as fast
/// as it can be. `seconds_per_slice[r]` > 0; `most[r]`: what rank r can hold. Empty when it does not fit.
std::vector<std::uint32_t> share_out(std::uint32_t slices, std::span<const double> seconds_per_slice,
                                     std::span<const std::uint32_t> most);

/// Time of a placed stage: one step of a denoiser, the whole of any other.
PredictedStage predict(const ClusterSpec& cluster, const Demand& demand, const StageDemand& stage,
                       const PlannedStage& placed, const CardConditions& conditions = {});

/// Bytes and time on every link in one step of a placed denoiser.
std::vector<LinkLoad> link_loads(const ClusterSpec& cluster, const Demand& demand, const StageDemand& stage,
                                 const PlannedStage& placed);

/// What a rank of a placed stage holds on its card.
MemoryBill bill_of(const Demand& demand, const StageDemand& stage, const PlannedStage& placed, std::size_t group,
                   std::size_t rank);

}  // namespace orrery::topology
