// A measurement as a YAML file says it: which configurations, which work, how often, and what has to be true.
//
//   matrix: {cards: [1, 2], parallelism.tensor: [auto, 2]}      four configurations
//   exclude: [{cards: 1, parallelism.tensor: 2}]                 three
//
// launch/bench_experiment.hpp runs it. Each configuration is the deployment with some of its values replaced: the first
// `nodes` nodes, `cards` cards of them, degrees, transport.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/yaml_schema.hpp"
#include "topology/cluster_spec.hpp"
#include "topology/expectation.hpp"
#include "topology/scenario_spec.hpp"

namespace orrery::topology {

/// strong: the same work on more; weak: work that grows with it.
enum class ScalingKind : std::uint8_t { strong, weak };
std::string_view name_of(ScalingKind kind);

/// wall: measured here. model: the planner's prediction for the cards of the cluster file, nothing is run.
enum class ExperimentClock : std::uint8_t { wall, model };
std::string_view name_of(ExperimentClock clock);

/// What grows in weak scaling.
enum class ScalingGrowth : std::uint8_t { requests, num_frames };
std::string_view name_of(ScalingGrowth growth);

/// One step's, up to the latents, up to the last frame: "step_seconds" ...
enum class ExperimentTime : std::uint8_t { step, latents, frames };
std::string_view name_of(ExperimentTime time);

/// Axes by their names in the file: "nodes", "cards", "parallelism.tensor", "parallelism.sequence", "parallelism.cfg",
/// "transport".
const std::vector<std::string>& experiment_axes();

struct ExperimentScaling {
  ScalingKind kind = ScalingKind::strong;
  std::string over = "cards";  // An axis of the matrix.
  std::uint32_t baseline = 1;  // Its value that everything is compared with.
  std::optional<ScalingGrowth> grow;
  ExperimentTime metric = ExperimentTime::frames;  // What speed-up is computed of.
};

/// One configuration: values by axis, as written ("2", "auto", "tcp"), in the order of `experiment_axes`.
struct ExperimentPoint {
  std::vector<std::pair<std::string, std::string>> settings;
  /// "cards=2 parallelism.tensor=auto"; "as given" without any.
  std::string name() const;
  /// Null when the matrix has no such axis.
  const std::string* value(std::string_view axis) const;
};

struct ExperimentWorkload {
  std::uint32_t requests = 1;  // Submitted at once.
  ScenarioRequest request;
};

struct ExperimentUntil {
  ExperimentTime metric = ExperimentTime::frames;
  double rel_ci95 = 0.02;  // Half the interval's width, by the median.
};

struct ExperimentRepeat {
  std::uint32_t warmup = 1;
  std::uint32_t min_runs = 5;
  std::uint32_t max_runs = 0;  // As read from a file at least min_runs.
  std::optional<ExperimentUntil> until;
};

/// "efficiency(cards=8) >= 0.70", "step_seconds < 2 s" (of every row), "output_sha256 is constant".
class ExperimentAssertion {
public:
  /// A metric of the one row that has these settings.
  struct Call {
    std::string name;    // As it stands in the expectation.
    std::string text;    // As it was written: "efficiency(cards=8)".
    std::string metric;  // "efficiency"
    std::vector<std::pair<std::string, std::string>> where;
  };
  /// Fails with invalid_config and a sentence that names the place: "is wrong at character 9: ...".
  static Result<ExperimentAssertion> parse(std::string_view text);

  const std::string& text() const { return text_; }
  /// Nothing: it says that `constant()` is the same in all rows.
  const std::optional<Expectation>& expectation() const { return expectation_; }
  const std::string& constant() const { return constant_; }
  const std::vector<Call>& calls() const { return calls_; }
  /// Names that are no calls: metrics of every row.
  std::vector<std::string> plain_names() const;

private:
  std::string text_, constant_;
  std::optional<Expectation> expectation_;
  std::vector<Call> calls_;
};

struct ExperimentReport {
  std::string dir = "runs/{name}/{timestamp}";
};

struct ExperimentSpec {
  std::string name;
  std::string deployment;  // Empty: the only one.
  ExperimentClock clock = ExperimentClock::wall;
  std::optional<ExperimentScaling> scaling;
  std::vector<ExperimentPoint> points;  // The matrix without what is excluded; at least one.
  ExperimentWorkload workload;
  ExperimentRepeat repeat;
  std::vector<ExperimentAssertion> assertions;
  ExperimentReport report;
};

/// Metrics of a row that assertions may name.
struct ExperimentMetric {
  std::string name, help;
};
const std::vector<ExperimentMetric>& experiment_metrics();

ExperimentSpec read_experiment(const YamlNode& spec, const std::string& name, YamlReader& reader);

OrderedJson experiment_json_schema();
std::vector<SchemaPage> experiment_pages();
std::vector<std::string> experiment_keys();

}  // namespace orrery::topology
