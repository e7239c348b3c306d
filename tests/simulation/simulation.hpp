// One run of the whole cluster from one seed: a workload, faults, healing, and what must be true at all times and in
// the end.
//
//   faults   a random subset of the kinds (swarm), at random times while requests run; or a Scenario file's
//   heal     everything works again: each open request must end within `liveness` seconds of virtual time
//   rest     nothing is left of any request anywhere
//
// Invariants, each by name: see README.md of tests/.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/coordinator_actor.hpp"
#include "simulated_client.hpp"
#include "simulated_node.hpp"
#include "topology/planner.hpp"
#include "topology/scenario_spec.hpp"
#include "world.hpp"

namespace orrery::simulation {

enum class Kind : std::uint8_t {
  node_crash, node_pause, coordinator_crash, coordinator_pause, control_cut, control_cut_one_way, data_cut, data_cut_one_way,
  frame_drop, frame_duplicate, frame_reorder, frame_corrupt, card_hang, card_failure, card_slow, disk_full, failed_sync,
  client_crash, cancel, deadline, fault_point, stale_plan, count
};
const char* name_of(Kind kind);

/// What all runs share: the model's folder, demands, plans, and what the undisturbed run on one card gives.
class Ground {
public:
  explicit Ground(const std::string& source_folder);
  static constexpr std::uint32_t request_kinds = 4;

  std::shared_ptr<const compiler::ModelFolder> model;
  std::string model_folder;
  std::vector<std::string> guardrail_folders;

  actors::RequestSpec spec(std::uint32_t kind) const;
  const std::string& expected(std::uint32_t kind) const { return expected_.at(kind); }
  /// Plans of a cluster with these numbers of cards per node.
  Result<topology::Plan> plan(const std::vector<std::uint32_t>& cards, bool split_branches, const std::set<std::uint32_t>& lost,
                              const std::map<std::uint32_t, double>& slowdown) const;

private:
  topology::Demand demand_;
  double card_rate_ = 1;  // Operations per second.
  std::vector<std::string> expected_;
  using PlanKey = std::tuple<std::vector<std::uint32_t>, bool, std::set<std::uint32_t>, std::map<std::uint32_t, double>>;
  mutable std::map<PlanKey, Result<topology::Plan>> plans_;
};

struct RunOptions {
  std::uint64_t seed = 1;
  bool faults = true;
  std::optional<topology::ScenarioSpec> scenario;
  std::optional<std::vector<std::uint32_t>> cards;  // Per node; nothing: drawn.
  std::uint32_t requests = 0;                       // 0: drawn.
  std::function<void(const std::string&)> trace;
};

struct RunResult {
  std::string invariant, violation;  // Empty: all went well.
  std::uint64_t hash = 0, steps = 0;
  double virtual_seconds = 0;
  std::map<std::string, std::uint64_t> faults;       // Injected, by kind.
  std::map<std::string, std::uint64_t> fault_points;  // Fired.
  std::map<std::string, std::uint64_t> ends;          // Requests, by how they ended.
  std::vector<std::string> digests;                   // Of delivered requests, by kind of request.
  std::uint64_t epochs = 0;
};

RunResult run_simulation(const Ground& ground, const RunOptions& options);

}  // namespace orrery::simulation
