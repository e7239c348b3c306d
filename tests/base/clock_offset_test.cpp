// Clock offsets from made-up round trips: never wronger than stated, and drift is seen where it shows.

#include "base/clock_offset.hpp"

#include <random>

#include <catch2/catch.hpp>

using namespace orrery;

namespace {
constexpr std::int64_t ms = 1'000'000, s = 1'000'000'000;
}

TEST_CASE("clock offset: nothing is known before the first round trip", "[base]") {
  ClockOffsetEstimator clock;
  CHECK_FALSE(clock.estimate().has_value());
  clock.add({10, 5, 9});  // Came back before it was sent.
  CHECK_FALSE(clock.estimate().has_value());
}

TEST_CASE("clock offset: the quickest round trip counts", "[base]") {
  ClockOffsetEstimator clock;
  clock.add({100 * ms, 7000 * ms + 190 * ms, 200 * ms});  // 100 ms, nearly all of it on the way there.
  clock.add({300 * ms, 7000 * ms + 301 * ms, 302 * ms});  // 2 ms, evenly.
  clock.add({400 * ms, 7000 * ms + 401 * ms, 450 * ms});
  const auto offset = clock.estimate().value();
  CHECK(offset.offset == 7000 * ms);
  CHECK(offset.error == 1 * ms);
  CHECK(offset.drift == 0);
  CHECK(offset.round_trips == 3);
  CHECK(offset.to_ours(7000 * ms + 5) == 5);
}

TEST_CASE("clock offset: it is never wronger than it says", "[base]") {
  std::mt19937_64 random(7);
  for (int run = 0; run < 300; ++run) {
    const auto truth = static_cast<std::int64_t>(random() % 2000) * s - 1000 * s;
    ClockOffsetEstimator clock;
    std::int64_t now = static_cast<std::int64_t>(random() % 1000) * s;
    for (int i = 0; i < 200; ++i) {
      const auto there = static_cast<std::int64_t>(random() % (10 * ms)), back = static_cast<std::int64_t>(random() % (10 * ms));
      clock.add({now, now + there + truth, now + there + back});
      now += 50 * ms;
    }
    const auto offset = clock.estimate().value();
    INFO("run " << run);
    CHECK(std::abs(offset.to_ours(now + truth) - now) <= offset.error + 1);
    CHECK(std::abs(offset.offset - truth) <= offset.error);
    CHECK(offset.error < 3 * ms);
  }
}

TEST_CASE("clock offset: two clocks that drift apart are followed", "[base]") {
  constexpr double parts = 50e-6;  // 50 microseconds a second.
  ClockOffsetEstimator clock;
  const auto theirs = [&](std::int64_t ours) { return ours + 3 * s + static_cast<std::int64_t>(parts * static_cast<double>(ours)); };
  for (std::int64_t now = 0; now < 60 * s; now += 100 * ms) {
    const auto jitter = now / (100 * ms) % 7 * ms;
    clock.add({now, theirs(now + 100'000 + jitter), now + 200'000 + jitter * 3});
  }
  const auto offset = clock.estimate().value();
  CHECK(offset.drift == Approx(parts).margin(5e-6));
  for (const auto now : {0L, 30L, 60L}) CHECK(std::abs(offset.to_ours(theirs(now * s)) - now * s) <= 2 * offset.error);
}
