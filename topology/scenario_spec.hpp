// Faults as a YAML file says them: what runs, what goes wrong when, and what has to be true at the end.
//
// launch/fault_run.hpp runs it on real processes; tests/simulation runs the same file in one thread. Every choice
// that the file leaves open (which card, which node) is drawn from `seed`.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/yaml_schema.hpp"
#include "topology/expectation.hpp"

namespace orrery::topology {

/// What a scenario's requests ask for; nothing: what the model has as default.
struct ScenarioRequest {
  std::string prompt = "a red ball rolls over green grass";
  std::optional<std::string> negative_prompt;
  std::optional<std::uint32_t> num_inference_steps, num_frames;
  std::optional<std::string> size;  // "64x64"
  std::uint64_t seed = 42;
  std::optional<double> guidance_scale;
};

struct ScenarioWorkload {
  std::uint32_t requests = 1;
  std::uint32_t concurrency = 1;  // Submitted at once.
  ScenarioRequest request;
};

enum class ScenarioEvent : std::uint8_t {
  start,  // As the workload begins.
  // Inside a node, exactly there.
  command, step_begin, step_end, encode, decode, load,
  // As the coordinator sees it.
  recovery,  // While it re-plans or loads after a loss.
  idle,      // All requests are done.
};
std::string_view name_of(ScenarioEvent event);

struct ScenarioWhen {
  ScenarioEvent event = ScenarioEvent::start;
  std::uint32_t request = 0;  // From 1; 0: any.
  std::uint32_t step = 0;     // From 1; 0: any.
  std::optional<std::uint32_t> block;
  std::string stage;  // Empty: any.
};

enum class ScenarioAction : std::uint8_t {
  kill, term, segv, abort, pause, hang_node,
  slow, hang, fail, refuse_memory, flip_weights, flip_activations, crash_loading,
  cut, stall, delay, rate, drop, duplicate, reorder, corrupt, truncate,
  disk_full, fail_sync, short_write, torn_write,
  point,
  second_coordinator,
};
std::string_view name_of(ScenarioAction action);

enum class TargetKind : std::uint8_t { card, process, node, link, coordinator, storage, client };
std::string_view name_of(TargetKind kind);

/// Which of them, when the name is not given.
struct ScenarioWhere {
  std::string role;  // "denoiser": cards of that stage, nodes that have one.
  std::string node;
  std::optional<std::uint32_t> card;  // Within the node.
};

enum class ScenarioDirection : std::uint8_t { both, forward };

struct ScenarioTarget {
  TargetKind kind = TargetKind::node;
  bool all = false;                   // mode: all
  std::uint32_t count = 1;            // mode: one, or {count: n}
  std::string name;                   // "n1", "n1:0".
  ScenarioWhere where;
  std::string from, to;  // Links: node names, "coordinator"; empty: drawn.
  ScenarioDirection direction = ScenarioDirection::both;
};

struct ScenarioParameters {
  double factor = 4;
  double latency = 0.05, jitter = 0;  // Seconds.
  double rate = 1e6;                  // Bytes per second.
  double probability = 1;
  std::uint64_t bits = 1;
  std::uint64_t bytes = 0;
  std::uint64_t times = 1;
  std::uint64_t hit = 1;
  std::string point, effect = "fail";
};

struct ScenarioEvery {
  double p = 1;
};

struct ScenarioFault {
  std::string name;
  std::optional<ScenarioWhen> when;
  std::optional<double> at;         // Seconds after the workload began.
  std::string after;                // Name of a fault: when that one has fired.
  std::optional<double> duration;   // `for`; nothing: until the end.
  ScenarioAction action = ScenarioAction::kill;
  ScenarioTarget target;
  ScenarioParameters parameters;
  ScenarioEvery every;
};

/// An expression, or an event that has to come.
struct ScenarioExpectation {
  std::optional<Expectation> expression;
  std::string event, after;  // "replanned", name of a fault.
  double within = 0;         // Seconds.
  std::uint32_t line = 0;    // In the file, for the report.
};

struct ScenarioBudget {
  std::optional<double> recovery_time_max;  // Seconds.
  std::optional<std::uint32_t> lost_steps_max;
};

struct ScenarioSpec {
  std::string name;
  std::string deployment;  // Empty: the only one.
  std::uint64_t seed = 1;
  ScenarioWorkload workload;
  std::vector<Expectation> steady_state;
  double steady_within = 60;  // Seconds until the steady state has to be reached.
  double timeout = 120;       // Seconds for the workload, from its begin to the last result.
  std::vector<ScenarioFault> faults;
  bool heal = true;  // At the end of the faults' times, before results are waited for.
  std::vector<ScenarioExpectation> expect;
  ScenarioBudget budget;
};

/// Names that `expect` and `steady_state` may use, with what they stand for.
struct ScenarioCounter {
  std::string name, help;
  bool steady = false;  // Also known before any fault.
};
const std::vector<ScenarioCounter>& scenario_counters();
/// Events that an expectation may wait for.
const std::vector<std::string>& scenario_events();

/// Whether the action can be done to such a target.
bool fits(ScenarioAction action, TargetKind target);

ScenarioSpec read_scenario(const YamlNode& spec, const std::string& name, YamlReader& reader);

OrderedJson scenario_json_schema();
std::vector<SchemaPage> scenario_pages();
std::vector<std::string> scenario_keys();

}  // namespace orrery::topology
