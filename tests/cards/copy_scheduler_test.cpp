// The copy scheduler in virtual time: one card that computes, one engine that copies, and the bounds they can reach.

#include "cards/copy_scheduler.hpp"

#include <algorithm>
#include <optional>

#include "catch2/catch.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

constexpr double megabyte = 1e6;

/// A loop of `units` visits on a card with room for `room` units.
struct Machine {
  std::uint32_t units = 32, room = 8;
  double compute = 0.010;  // Of one visit.
  double copy = 0.005;     // Of one unit.
  Time now{};
  CopyScheduler scheduler{1e9};
  TrackId track = 0;
  std::uint32_t slots_used = 0;
  std::uint32_t copies = 0;
  double stalled = 0;
  struct Copy {
    UnitId unit;
    Time until;
  };
  std::optional<Copy> copying;

  Machine(std::uint32_t unit_count, std::uint32_t room_for, double compute_seconds, double copy_seconds)
      : units(unit_count), room(room_for), compute(compute_seconds), copy(copy_seconds) {
    std::vector<std::vector<UnitId>> visits;
    for (std::uint32_t i = 0; i < units; ++i) visits.push_back({scheduler.add_unit(static_cast<std::uint64_t>(megabyte))});
    track = scheduler.add_track(visits);
  }
  static Duration of(double seconds) { return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)); }

  /// The engine: ends a copy that is due, begins what the scheduler wants. Says when to look again.
  std::optional<Time> engine() {
    if (copying && copying->until <= now) {
      scheduler.copy_ended(copying->unit, copy);
      copying.reset();
    }
    if (copying) return copying->until;
    const auto decision = scheduler.next(now, slots_used < room);
    using Kind = CopyScheduler::Decision::Kind;
    REQUIRE(decision.kind != Kind::stuck);
    if (decision.kind == Kind::wait) return decision.until;
    if (decision.kind == Kind::nothing) return std::nullopt;
    if (decision.victim) {
      REQUIRE(scheduler.present(*decision.victim));
      REQUIRE_FALSE(scheduler.pinned(*decision.victim));
      scheduler.give_up(*decision.victim);
    } else {
      ++slots_used;
    }
    REQUIRE(slots_used <= room);
    scheduler.copy_begins(decision.unit);
    copying = Copy{decision.unit, now + of(copy)};
    ++copies;
    return copying->until;
  }
  void pass(Time until) {
    while (now < until) {
      const auto next = engine();
      now = next && *next > now && *next < until ? *next : until;
    }
    engine();
  }
  /// One run of the loop; seconds.
  double step(std::uint32_t runs_left) {
    const auto begun = now;
    copies = 0;
    stalled = 0;
    scheduler.begin_run(1, track, runs_left, now);
    for (std::uint32_t visit = 0; visit < units; ++visit) {
      scheduler.arrive(1, visit, now);
      scheduler.pin(visit);
      const auto asked = now;
      while (!scheduler.present(visit)) {
        const auto next = engine();
        REQUIRE((next.has_value() || scheduler.present(visit)));
        if (next && *next > now) now = *next;
      }
      stalled += seconds_of(now - asked);
      scheduler.have(1, visit, now);
      pass(now + of(compute));
      scheduler.unpin(visit);
    }
    scheduler.end_run(1, now);
    return seconds_of(now - begun);
  }
};

}  // namespace

TEST_CASE("copy scheduler: what fits stays after the first round", "[cards][stream]") {
  Machine machine(8, 8, 0.010, 0.005);
  machine.step(3);
  for (int left = 2; left >= 0; --left) {
    CHECK(machine.step(static_cast<std::uint32_t>(left)) == Approx(8 * 0.010));
    CHECK(machine.copies == 0);
  }
}

TEST_CASE("copy scheduler: a step takes no longer than the larger of computing and copying what cannot stay", "[cards][stream]") {
  // Half, one and two times the balance point, and far on both sides.
  for (const double copy : {0.002, 0.005, 0.010, 0.020, 0.060}) {
    CAPTURE(copy);
    Machine machine(32, 8, 0.010, copy);
    double last = 0;
    for (int left = 11; left >= 0; --left) last = machine.step(static_cast<std::uint32_t>(left));
    // Of the 8 that fit, one is used and one is filled: 26 come again in each round, and no fewer can.
    const double bound = std::max(32 * 0.010, 25 * copy);
    CHECK(last <= 1.05 * std::max(32 * 0.010, 27 * copy));
    CHECK(last >= bound * 0.999);
    if (copy <= 0.005) CHECK(machine.stalled <= 0.02 * last);
  }
}

TEST_CASE("copy scheduler: copies are as few as they can be when there is time", "[cards][stream]") {
  Machine machine(32, 24, 0.010, 0.005);
  for (int left = 9; left >= 0; --left) machine.step(static_cast<std::uint32_t>(left));
  CHECK(machine.stalled == Approx(0).margin(1e-6));
  CHECK(machine.copies >= 8);
  CHECK(machine.copies <= 12);  // Least recently used would copy all 32.
}

TEST_CASE("copy scheduler: a slower link is noticed within a few units, and a faster one gives its memory back", "[cards][stream]") {
  Machine machine(32, 16, 0.010, 0.002);
  for (int i = 0; i < 6; ++i) machine.step(100);
  CHECK(machine.stalled == Approx(0).margin(1e-6));
  machine.copy = 0.014;  // 17 copies of 14 ms in 320 ms of computing: it can still be hidden.
  machine.step(100);
  CHECK(machine.stalled < 0.1);  // While it learns.
  for (int i = 0; i < 4; ++i) machine.step(100);
  CHECK(machine.stalled == Approx(0).margin(1e-3));
  machine.copy = 0.002;
  for (int i = 0; i < 30; ++i) machine.step(100);
  CHECK(machine.stalled == Approx(0).margin(1e-6));
  CHECK(machine.copies <= 19);
}

TEST_CASE("copy scheduler: the next stage's first units come while the last step computes", "[cards][stream]") {
  CopyScheduler scheduler(1e9);
  std::vector<std::vector<UnitId>> first, second;
  for (int i = 0; i < 4; ++i) first.push_back({scheduler.add_unit(1000000)});
  for (int i = 0; i < 4; ++i) second.push_back({scheduler.add_unit(1000000)});
  const auto denoiser = scheduler.add_track(first), decoder = scheduler.add_track(second);
  Time now{};
  const auto run = [&](TrackId track, UnitId base, std::uint32_t left) {
    scheduler.begin_run(1, track, left, now);
    for (std::uint32_t i = 0; i < 4; ++i) {
      scheduler.arrive(1, i, now);
      if (!scheduler.present(base + i)) scheduler.copy_ended(base + i, 0.001);
      scheduler.have(1, i, now);
      now += std::chrono::milliseconds(10);
    }
    scheduler.end_run(1, now);
  };
  run(denoiser, 0, 0);
  run(decoder, 4, 0);
  for (UnitId unit = 4; unit < 8; ++unit) scheduler.give_up(unit);
  // Once more: the decoder came after the denoiser before.
  scheduler.begin_run(1, denoiser, 0, now);
  scheduler.arrive(1, 0, now);
  scheduler.have(1, 0, now);
  const auto decision = scheduler.next(now, true);
  CHECK(decision.kind == CopyScheduler::Decision::Kind::copy);
  CHECK(decision.unit == 4);
  // Without room something of the denoiser goes: only what is not needed any more.
  now += std::chrono::milliseconds(10);
  scheduler.arrive(1, 1, now);
  scheduler.have(1, 1, now);
  now += std::chrono::milliseconds(10);
  scheduler.arrive(1, 2, now);
  scheduler.pin(2);
  scheduler.have(1, 2, now);
  const auto full = scheduler.next(now + std::chrono::milliseconds(19), false);
  REQUIRE(full.kind == CopyScheduler::Decision::Kind::copy);
  CHECK(full.unit == 4);
  CHECK(*full.victim < 2);
}

TEST_CASE("copy scheduler: numbers of units and tracks that are gone are given again", "[cards][stream]") {
  CopyScheduler scheduler(1e9);
  const auto stays = scheduler.add_unit(1000000);
  const auto kept = scheduler.add_track({{stays}});
  std::vector<TrackId> tracks;
  for (int i = 0; i < 100; ++i) {
    const auto a = scheduler.add_unit(1000000), b = scheduler.add_unit(1000000);
    CHECK(a == stays + 1);
    CHECK(b == stays + 2);
    tracks.push_back(scheduler.add_track({{a}, {b}}));
    CHECK(tracks.back() == kept + 1);
    scheduler.remove_tracks_of(a, b + 1);
    scheduler.remove_unit(a);
    scheduler.remove_unit(b);
  }
}

TEST_CASE("copy scheduler: what somebody waits for comes first, and what is in use is never given up", "[cards][stream]") {
  CopyScheduler scheduler(1e9);
  std::vector<std::vector<UnitId>> visits;
  for (int i = 0; i < 4; ++i) visits.push_back({scheduler.add_unit(1000000)});
  const auto track = scheduler.add_track(visits);
  Time now{};
  scheduler.begin_run(1, track, 0, now);
  scheduler.copy_begins(0);
  scheduler.copy_ended(0, 0.001);
  scheduler.pin(0);
  scheduler.pin(3);
  auto decision = scheduler.next(now, true);
  CHECK(decision.kind == CopyScheduler::Decision::Kind::copy);
  CHECK(decision.unit == 3);
  decision = scheduler.next(now, false);
  CHECK(decision.kind == CopyScheduler::Decision::Kind::stuck);
  scheduler.unpin(0);
  decision = scheduler.next(now, false);
  CHECK(decision.kind == CopyScheduler::Decision::Kind::copy);
  CHECK(decision.victim == UnitId{0});
}
