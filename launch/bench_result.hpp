// What a benchmark found: one row per configuration, with its samples, and what follows from them.
//
// `derive` computes everything that is no sample (medians, speed-up, efficiency); the printed forms only show. Measured and
// predicted rows never meet in one speed-up. `json` and `from_json` are each other's inverse for samples and settings.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.hpp"
#include "base/result.hpp"
#include "launch/bench_statistics.hpp"
#include "topology/experiment_spec.hpp"

namespace orrery::launch {

struct BenchRow {
  std::string name;                                           // "cards=2"
  std::vector<std::pair<std::string, std::string>> settings;  // By axis.
  std::string clock = "wall";                                 // Or "model".
  std::uint32_t host_cores = 0;
  bool oversubscribed = false;  // More threads than cores compute at once.
  std::uint32_t nodes = 0, cards = 0, threads = 0;
  std::uint32_t tensor = 1, sequence = 1, cfg = 1;
  std::uint32_t requests = 1, frames = 0, steps = 0;
  double size = 0;  // On the axis of the scaling.
  double work = 0;  // Floating-point operations of a run, as the planner counts them.
  std::string transport;

  /// Counted runs in order, by metric: "step_seconds" (each run's median step), "latents_seconds", "frames_seconds",
  /// "video_seconds", "text_encoder_seconds" ...
  std::map<std::string, std::vector<double>> samples;
  std::vector<double> step_seconds;                     // Of all steps of all counted runs.
  std::uint32_t warmup_runs = 0;                        // Not counted.
  std::optional<double> predicted_step_seconds;         // The planner's.
  std::optional<double> comm_fraction, hidden_fraction, stall_fraction;  // Medians over runs.
  std::optional<double> imbalance;
  std::optional<std::uint64_t> peak_card_bytes;
  std::optional<double> bytes_per_step;
  std::vector<std::string> digests;  // SHA-256 of the frames, by request; the same in every run.
  bool digests_differ = false;       // They were not.
  std::string note;                  // Why there are no samples.

  // From `derive`.
  std::map<std::string, SampleSummary> summaries;
  std::optional<MedianRatio> speedup;
  std::optional<double> efficiency;
  Interval efficiency_ci95;
  std::optional<double> serial_fraction;  // Karp-Flatt.
  bool is_baseline = false;
};

struct BenchAssertion {
  std::string text, shown;
  bool held = false;
};

struct BenchResult {
  std::string name;
  std::string state = "interrupted";  // "complete" once all is done; so a killed run is what it says.
  std::string metric = "frames_seconds";
  std::optional<topology::ExperimentScaling> scaling;
  std::vector<BenchRow> rows;
  std::vector<BenchAssertion> assertions;
  std::vector<std::string> warnings;
  OrderedJson environment = OrderedJson::object();

  /// Fills in what follows from the samples.
  void derive();
  /// Whether the same request gave the same bytes in all runs of all rows that did the same work.
  bool digests_constant() const;
  /// Evaluates; unmeasured metrics do not hold.
  void check(const std::vector<topology::ExperimentAssertion>& wanted);
  bool assertions_held() const;

  OrderedJson json() const;
  /// The table that people paste, with its formulas; `colors` are never used.
  std::string table() const;
  std::string csv() const;
  std::string markdown(const std::vector<std::string>& plots) const;
  /// File name and SVG text: speedup, efficiency, time.
  std::vector<std::pair<std::string, std::string>> plots() const;
};

/// Reads what `json` wrote: names, clocks, settings and samples; `derive` has been called. Fails with invalid_config naming
/// the place.
Result<BenchResult> bench_result_from_json(const Json& json, const std::string& place);

/// A fixed-width table: the first row is the head; columns of numbers to the right.
std::string aligned(const std::vector<std::vector<std::string>>& rows);

}  // namespace orrery::launch
