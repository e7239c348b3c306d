// Runs an Experiment: every configuration in turn, again and again, until the medians are sure enough.
//
//   for each round:  A  B  C   A  B  C ...      one run each: submit, wait for the last frame
//
// Each configuration is a cluster of its own (coordinator and node processes), up all the time when all of them fit in
// memory together, else brought up for each of its runs; weights are loaded before the clock starts, and warm-up runs are
// not counted. With clock `model` nothing is run: rows are the planner's predictions.
//
// The folder (bench_folder.hpp) is complete after every run, so a Ctrl-C costs only the run under way.

#pragma once

#include <optional>
#include <string>

#include "base/result.hpp"
#include "launch/bench_config.hpp"
#include "launch/bench_folder.hpp"
#include "launch/bench_result.hpp"
#include "launch/signals.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {

struct ExperimentOptions {
  topology::ExperimentSpec spec;
  std::string video_ending;  // ".y4m", ".mp4": videos are encoded too, and their time measured; empty: frames are digested only.
  /// At the end each configuration runs once more, not counted, for a trace (trace_option.hpp): FILE, or of several
  /// configurations FILE-NUMBER with FILE's ending. Empty: no traces.
  std::string trace;
};

struct ExperimentEnd {
  BenchResult result;
  std::optional<int> signal;  // That ended it early.
};

/// Fails when nothing could be measured: files, plans, clusters. What was measured until then is in the folder.
Result<ExperimentEnd> run_experiment(const ExperimentOptions& options, const BenchConfig& config, const BenchFolder& folder, const VerbContext& context,
                                     SignalWatch& signals);

}  // namespace orrery::launch
