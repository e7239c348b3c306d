// Statistics of benchmarks against values worked out elsewhere (by enumeration), and their behaviour on known shapes.

#include <catch2/catch.hpp>

#include "launch/bench_statistics.hpp"

using namespace orrery::launch;

using Samples = std::vector<double>;

TEST_CASE("quantile: linear between neighbours, in any order", "[launch][bench]") {
  CHECK(quantile_of(Samples{3, 1, 2}, 0.5) == 2);
  CHECK(quantile_of(Samples{4, 1, 3, 2}, 0.5) == 2.5);
  CHECK(quantile_of(Samples{7}, 0.9) == 7);
  CHECK(quantile_of(Samples{0, 10}, 0.9) == Approx(9));
  CHECK(quantile_of(Samples{5, 1}, 0) == 1);
  CHECK(quantile_of(Samples{5, 1}, 1) == 5);
}

TEST_CASE("summary: one sample is its own interval, and the interval of many holds the median and narrows", "[launch][bench]") {
  const auto one = summary_of(Samples{2.5});
  CHECK(one.median == 2.5);
  CHECK(one.ci95.low == 2.5);
  CHECK(one.ci95.high == 2.5);
  CHECK(one.count == 1);
  Samples few, many;
  for (int i = 0; i < 9; ++i) few.push_back(100 + i);
  for (int i = 0; i < 900; ++i) many.push_back(100 + i / 100.0);
  const auto small = summary_of(few), large = summary_of(many);
  CHECK(small.median == 104);
  CHECK(small.p90 == Approx(107.2));
  CHECK(small.min == 100);
  CHECK(small.ci95.low >= 100);
  CHECK(small.ci95.low <= small.median);
  CHECK(small.ci95.high >= small.median);
  CHECK(large.relative_ci() < small.relative_ci() / 3);
  // A fixed seed: the same samples, the same text.
  const auto again = summary_of(few);
  CHECK(again.ci95.low == small.ci95.low);
  CHECK(again.ci95.high == small.ci95.high);
}

TEST_CASE("ratio of medians: its interval holds 1 for two halves of one set, and not for what differs", "[launch][bench]") {
  const Samples a = {10, 11, 12, 10.5, 11.5}, b = {11.2, 10.2, 11.8, 10.8, 11.1}, c = {20, 22, 24, 21, 23};
  const auto same = ratio_of_medians(b, a), twice = ratio_of_medians(c, a);
  CHECK(same.ratio == Approx(11.1 / 11));
  CHECK(same.ci95.low < 1);
  CHECK(same.ci95.high > 1);
  CHECK(twice.ratio == 2);
  CHECK(twice.ci95.low > 1.5);
}

TEST_CASE("mann-whitney: exact without ties, as enumeration gives it", "[launch][bench]") {
  CHECK(mann_whitney_p(Samples{1, 2, 3}, Samples{4, 5, 6}) == Approx(0.1));
  CHECK(mann_whitney_p(Samples{4, 5, 6}, Samples{1, 2, 3}) == Approx(0.1));
  CHECK(mann_whitney_p(Samples{1, 2, 3, 4, 5}, Samples{6, 7, 8, 9, 10}) == Approx(2.0 / 252));
  CHECK(mann_whitney_p(Samples{1.1, 2.2, 3.3, 4.4}, Samples{2.5, 3.5, 5.5, 6.5, 7.5}) == Approx(0.111111).epsilon(1e-4));
  CHECK(mann_whitney_p(Samples{1, 4}, Samples{2, 3}) == 1);
}

TEST_CASE("mann-whitney: the normal approximation with ties and continuity", "[launch][bench]") {
  CHECK(mann_whitney_p(Samples{1, 2, 2, 3, 4}, Samples{2, 4, 5, 6, 6}) == Approx(0.0704846).epsilon(1e-5));
  CHECK(mann_whitney_p(Samples{1, 1, 1}, Samples{1, 1, 1}) == 1);
  Samples low, high;
  for (int i = 0; i < 60; ++i) {
    low.push_back(i);
    high.push_back(i + 60);
  }
  CHECK(mann_whitney_p(low, high) < 1e-15);
}

TEST_CASE("mann-whitney: three runs each can never be significant, four can", "[launch][bench]") {
  CHECK(mann_whitney_least_p(3, 3) == Approx(0.1));
  CHECK(mann_whitney_least_p(4, 4) == Approx(2.0 / 70));
  CHECK(mann_whitney_least_p(5, 5) == Approx(2.0 / 252));
  CHECK(mann_whitney_least_p(1, 1) == 1);
}
