// What a placement costs: memory of a rank, time of a stage. The planner's arithmetic, without its search.
//
// The model is described in planner.hpp and topology/README.md; everything here is a pure function.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "topology/cluster_spec.hpp"
#include "topology/demand.hpp"
#include "topology/plan.hpp"

namespace orrery::topology {

/// A card as the cost model sees it.
struct CardView {
  std::uint32_t node = 0;
  double slowdown = 1;               // Is in the rates below.
  double linear = 1, attention = 1;  // Effective FLOP/s.
  double memory_bandwidth = 1;
  std::uint64_t memory = 0;
  std::string type;
  double host_bandwidth = 0;  // Bytes per second; 0: not limited.
};

/// All cards of a cluster, in the plan's numbering. `slowdown`: as in CardConditions.
std::vector<CardView> views_of(const ClusterSpec& cluster, const std::string& dtype,
                               const std::map<std::uint32_t, double>& slowdown = {});

/// One forward of all slices on one card, arithmetic only.
double stage_seconds_on(const StageDemand& stage, const CardView& card);

inline std::uint64_t owned(const PlannedRank& rank) { return rank.slices.size(); }

/// Memory of one rank, one stage only: weights and lane. The first form: as little as `slices` slices take wherever they are.
/// `two_groups`: guidance branches side by side.
MemoryBill rank_bill(const Demand& demand, const StageDemand& stage, Split split, std::uint64_t slices, bool two_groups);
MemoryBill rank_bill(const Demand& demand, const StageDemand& stage, const PlannedStage& placed, const PlannedRank& rank);

/// `predict` of planner.hpp with the views at hand.
PredictedStage predicted(const ClusterSpec& cluster, const std::vector<CardView>& views, const Demand& demand,
                         const StageDemand& stage, const PlannedStage& placed);

}  // namespace orrery::topology
