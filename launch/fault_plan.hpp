// A scenario's faults with every open choice made: which card, which node, what it is told and when.
//
// Drawn from the scenario's seed and the plan alone, so the same file, seed and cluster give the same faults: that is
// what `orrery fault replay` rests on.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "actors/fault_switch.hpp"
#include "base/json.hpp"
#include "base/result.hpp"
#include "topology/plan.hpp"
#include "topology/scenario_spec.hpp"

namespace orrery::launch {

/// Who has to do it.
enum class FaultPlace : std::uint8_t {
  node,         // A node, told over the control plane.
  coordinator,  // The coordinator, told over the control plane.
  launcher,     // Whoever runs the scenario: signals to the coordinator, a second one, clients.
};

struct DrawnFault {
  std::string name;         // Of the scenario's fault; "name.2" for the second target of one.
  std::string target;       // For people: "card n1:0", "link n1 > n2".
  topology::ScenarioFault fault;
  FaultPlace place = FaultPlace::node;
  std::string node;         // With place `node`.
  actors::FaultOrder order; // With place `node` or `coordinator`.
  /// The node waits for the moment itself; otherwise the launcher does, and then tells it.
  bool armed = false;
};

/// Fails with invalid_config when a target does not exist in this cluster.
Result<std::vector<DrawnFault>> draw_faults(const topology::ScenarioSpec& scenario, const topology::Plan& plan);

/// [{name, target, node, order}], for reports and histories.
OrderedJson json_of(const std::vector<DrawnFault>& faults);

}  // namespace orrery::launch
