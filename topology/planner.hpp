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

/// `lost`: cards (index in the plan's numbering) that may not be used; they stay in the numbering.
/// Fails with no_feasible_plan: what cannot be met and which values can, or which card lacks how much memory.
Result<Plan> make_plan(const ClusterSpec& cluster, const DeploymentSpec& deployment, const Demand& demand,
                       const std::set<std::uint32_t>& lost = {});

/// All cards in the plan's numbering: node order, then index.
std::vector<PlannedCard> cards_of(const ClusterSpec& cluster, const std::string& dtype);

/// Slices of one group: contiguous in rank order, every rank at least one, so that the slowest rank is as fast
/// as it can be. `seconds_per_slice[r]` > 0; `most[r]`: what rank r can hold. Empty when it does not fit.
std::vector<std::uint32_t> share_out(std::uint32_t slices, std::span<const double> seconds_per_slice,
                                     std::span<const std::uint32_t> most);

/// Time of a placed stage: one step of a denoiser, the whole of any other.
PredictedStage predict(const ClusterSpec& cluster, const Demand& demand, const StageDemand& stage,
                       const PlannedStage& placed);

/// Bytes and time on every link in one step of a placed denoiser.
std::vector<LinkLoad> link_loads(const ClusterSpec& cluster, const Demand& demand, const StageDemand& stage,
                                 const PlannedStage& placed);

/// What a rank of a placed stage holds on its card.
MemoryBill bill_of(const Demand& demand, const StageDemand& stage, const PlannedStage& placed, std::size_t group,
                   std::size_t rank);

}  // namespace orrery::topology
