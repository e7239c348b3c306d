// With the clock in hand.

#include "launch/restart_policy.hpp"

#include <catch2/catch.hpp>

namespace orrery::launch {

using namespace std::chrono_literals;

TEST_CASE("restart policy: pauses double up to the longest", "[launch]") {
  RestartPolicy policy({.max = 100, .within = 600s});
  const Time start{};
  CHECK(policy.on_death(start) == Duration(50ms));
  CHECK(policy.on_death(start + 1s) == Duration(100ms));
  CHECK(policy.on_death(start + 2s) == Duration(200ms));
  for (int i = 3; i < 6; ++i) policy.on_death(start + 1s * i);
  CHECK(policy.on_death(start + 7s) == Duration(2s));
  CHECK(policy.on_death(start + 8s) == Duration(2s));
}

TEST_CASE("restart policy: the death after the last allowed one means quarantine, and that stays", "[launch]") {
  RestartPolicy policy({.max = 2, .within = 60s});
  const Time start{};
  CHECK(policy.on_death(start));
  CHECK(policy.on_death(start + 30s));
  CHECK_FALSE(policy.quarantined());
  CHECK_FALSE(policy.on_death(start + 60s));
  CHECK(policy.quarantined());
  CHECK_FALSE(policy.on_death(start + 10h));
}

TEST_CASE("restart policy: deaths that lie longer back are forgotten, and so is the pause", "[launch]") {
  RestartPolicy policy({.max = 2, .within = 60s});
  const Time start{};
  for (int i = 0; i < 20; ++i) {
    CHECK(policy.on_death(start + 61s * i) == Duration(50ms));
    CHECK(policy.deaths() == 1);
  }
}

TEST_CASE("restart policy: with none allowed the first death is the last", "[launch]") {
  RestartPolicy policy({.max = 0});
  CHECK_FALSE(policy.on_death(Time{}));
}

}  // namespace orrery::launch
