// Two results of the same experiment: which configurations became slower, and how sure that is.
//
// Worse: the ratio of medians is above 1 + threshold, and Mann-Whitney's p is below 0.05. Where there are too few runs for p
// ever to be so small, the ratio alone decides, and the row says so. Predicted rows have no spread: the ratio decides.

#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"
#include "launch/bench_result.hpp"

namespace orrery::launch {

struct ComparedRow {
  std::string name, metric, clock;
  MedianRatio ratio;  // B by A: above 1 is slower.
  double median_a = 0, median_b = 0;
  std::optional<double> p;  // Nothing: too few runs, or predicted.
  bool worse = false, better = false;
};

struct Comparison {
  std::vector<ComparedRow> rows;
  std::vector<std::string> only_in_a, only_in_b;
  std::vector<std::string> doubts;
  bool worse() const;
  OrderedJson json() const;
  std::string text(double threshold) const;
};

/// Rows are matched by name. `metric` empty: what A's experiment compares. Fails with usage when nothing matches, and when rows
/// of one name have different clocks.
Result<Comparison> compare(const BenchResult& a, const BenchResult& b, const std::string& metric, double threshold);

/// A result.json, or the folder that has it.
Result<BenchResult> read_bench_result(const std::string& path);

/// "5%" or "0.05". Fails with usage.
Result<double> threshold_of(const std::string& text);

}  // namespace orrery::launch
