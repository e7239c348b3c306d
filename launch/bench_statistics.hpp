// What repeated measurements say: median, spread, how sure the median is, and whether two sets differ.
//
// Medians, because a machine that is sometimes busy makes some runs slow and none fast. Intervals are percentile bootstraps
// with a fixed seed, so the same samples give the same text. Mann-Whitney: exact without ties up to 50 samples a side,
// else the normal approximation with corrections for ties and continuity. Sources: Efron 1979; Mann and Whitney 1947.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace orrery::launch {

struct Interval {
  double low = 0, high = 0;
};

struct SampleSummary {
  double median = 0, p90 = 0, min = 0;
  Interval ci95;  // Of the median; with one sample that sample.
  std::size_t count = 0;
  /// Half the interval's width by the median; 0 for a median of 0.
  double relative_ci() const;
};

/// Linear between neighbours: quantile 0.5 of two values is their mean. Precondition: not empty, 0 <= quantile <= 1.
double quantile_of(std::span<const double> samples, double quantile);
/// Precondition: not empty.
SampleSummary summary_of(std::span<const double> samples);

struct MedianRatio {
  double ratio = 0;
  Interval ci95;
};
/// Median of `above` by that of `below`; both are drawn anew for each bootstrap. Precondition: neither is empty, medians above 0.
MedianRatio ratio_of_medians(std::span<const double> above, std::span<const double> below);

/// Two-sided probability that two sets of the same origin differ as much as these. Precondition: neither is empty.
double mann_whitney_p(std::span<const double> left, std::span<const double> right);
/// The least that `mann_whitney_p` can give for so many samples.
double mann_whitney_least_p(std::size_t left, std::size_t right);

}  // namespace orrery::launch
