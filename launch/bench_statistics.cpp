#include "launch/bench_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.hpp"
#include "base/result.hpp"

namespace orrery::launch {
namespace {

constexpr int resample_count = 2000;
constexpr std::uint64_t resample_seed = 20'240'229;
constexpr std::size_t exact_count_max = 50;

/// Median of as many samples, drawn with replacement.
double resampled_median(std::span<const double> samples, Random& random, std::vector<double>& scratch) {
  scratch.clear();
  for (std::size_t i = 0; i < samples.size(); ++i) scratch.push_back(samples[random.below(samples.size())]);
  return quantile_of(scratch, 0.5);
}

Interval middle_95(std::span<const double> values) { return {quantile_of(values, 0.025), quantile_of(values, 0.975)}; }

/// P(U <= u) without ties: counts the ways to interleave n and m values that give each U.
double exact_cumulative(std::size_t n, std::size_t m, std::size_t u) {
  // ways[i][v]: of i left values among the first j right ones; built one right value at a time.
  std::vector<std::vector<double>> ways(n + 1, std::vector<double>(n * m + 1, 0));
  for (std::size_t i = 0; i <= n; ++i) ways[i][0] = 1;  // No right value: U is 0.
  for (std::size_t j = 1; j <= m; ++j)
    for (std::size_t i = 1; i <= n; ++i)
      // The largest value is a left one, above all j right ones, or a right one.
      for (std::size_t v = i * j + 1; v-- > 0;) ways[i][v] += v >= j ? ways[i - 1][v - j] : 0;
  double all = 0, below = 0;
  for (std::size_t v = 0; v <= n * m; ++v) {
    all += ways[n][v];
    if (v <= u) below += ways[n][v];
  }
  return below / all;
}

}  // namespace

double SampleSummary::relative_ci() const { return median == 0 ? 0 : (ci95.high - ci95.low) / 2 / std::abs(median); }

double quantile_of(std::span<const double> samples, double quantile) {
  ORRERY_CHECK(!samples.empty() && quantile >= 0 && quantile <= 1);
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  const auto place = quantile * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const auto above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - static_cast<double>(below));
}

SampleSummary summary_of(std::span<const double> samples) {
  SampleSummary summary;
  summary.count = samples.size();
  summary.median = quantile_of(samples, 0.5);
  summary.p90 = quantile_of(samples, 0.9);
  summary.min = *std::min_element(samples.begin(), samples.end());
  Random random(resample_seed, RandomStream::sampling);
  std::vector<double> medians, scratch;
  for (int i = 0; i < resample_count; ++i) medians.push_back(resampled_median(samples, random, scratch));
  summary.ci95 = middle_95(medians);
  return summary;
}

MedianRatio ratio_of_medians(std::span<const double> above, std::span<const double> below) {
  MedianRatio made;
  made.ratio = quantile_of(above, 0.5) / quantile_of(below, 0.5);
  Random random(resample_seed, RandomStream::sampling);
  std::vector<double> ratios, scratch;
  for (int i = 0; i < resample_count; ++i) {
    const auto top = resampled_median(above, random, scratch);
    ratios.push_back(top / resampled_median(below, random, scratch));
  }
  made.ci95 = middle_95(ratios);
  return made;
}

double mann_whitney_p(std::span<const double> left, std::span<const double> right) {
  ORRERY_CHECK(!left.empty() && !right.empty());
  const auto n = static_cast<double>(left.size()), m = static_cast<double>(right.size());
  double u = 0;  // Pairs in which the left one is larger; half for equal ones.
  bool ties = false;
  for (const auto a : left)
    for (const auto b : right) {
      u += a > b ? 1 : a == b ? 0.5 : 0;
      ties = ties || a == b;
    }
  u = std::min(u, n * m - u);
  if (!ties && left.size() <= exact_count_max && right.size() <= exact_count_max)
    return std::min(1.0, 2 * exact_cumulative(left.size(), right.size(), static_cast<std::size_t>(std::lround(u))));
  std::vector<double> all(left.begin(), left.end());
  all.insert(all.end(), right.begin(), right.end());
  std::sort(all.begin(), all.end());
  double tied = 0;
  for (std::size_t begin = 0; begin < all.size();) {
    auto end = begin;
    while (end < all.size() && all[end] == all[begin]) ++end;
    const auto run = static_cast<double>(end - begin);
    tied += run * run * run - run;
    begin = end;
  }
  const auto total = n + m;
  const auto variance = n * m / 12 * ((total + 1) - tied / (total * (total - 1)));
  if (!(variance > 0)) return 1;
  const auto z = std::max(0.0, n * m / 2 - u - 0.5) / std::sqrt(variance);
  return std::min(1.0, std::erfc(z / std::sqrt(2.0)));
}

double mann_whitney_least_p(std::size_t left, std::size_t right) {
  // 2 / (left + right over left)
  double ways = 1;
  for (std::size_t i = 1; i <= left; ++i) ways *= static_cast<double>(right + i) / static_cast<double>(i);
  return std::min(1.0, 2 / ways);
}

}  // namespace orrery::launch
