// A plan for people (table), scripts (JSON, YAML) and other processes (JSON there and back).

#pragma once

#include <string>

#include "base/json.hpp"
#include "base/result.hpp"
#include "topology/plan.hpp"

namespace orrery::topology {

/// Placement, memory bill per card, bytes per step and link, predicted times; with `explain` also the
/// alternatives and why they were rejected.
std::string text_of(const Plan& plan, bool explain);

/// The whole plan; `plan_from_json` gives it back.
OrderedJson json_of(const Plan& plan);

/// `kind: Plan` with the same content.
std::string yaml_of(const Plan& plan);

/// Reads what `json_of` wrote. The text comes from another process: everything is checked (indices, slices, sizes).
/// Fails with invalid_config naming the field.
Result<Plan> plan_from_json(const Json& json);

}  // namespace orrery::topology
