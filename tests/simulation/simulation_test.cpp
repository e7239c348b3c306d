// A slice of the seeds, and what the program promises about them: `orrery_sim` runs the rest.

#include <catch2/catch.hpp>

#include "base/log.hpp"
#include "simulation.hpp"

using namespace orrery;
using namespace orrery::simulation;

namespace {

const Ground& ground() {
  static const Ground one = [] {
    set_log(static_cast<Level>(-1), "simulation");
    return Ground(ORRERY_SOURCE_DIR);
  }();
  return one;
}

RunResult run(std::uint64_t seed) {
  RunOptions options;
  options.seed = seed;
  return run_simulation(ground(), options);
}

}  // namespace

TEST_CASE("simulation: undisturbed clusters of every shape give the same bytes") {
  for (const auto& cards : std::vector<std::vector<std::uint32_t>>{{2}, {1, 1}, {2, 1}, {2, 2}, {3, 2}}) {
    RunOptions options;
    options.faults = false;
    options.cards = cards;
    options.requests = Ground::request_kinds;
    const auto result = run_simulation(ground(), options);
    INFO(result.invariant << ": " << result.violation);
    CHECK(result.violation.empty());
    CHECK(result.digests.size() == Ground::request_kinds);
    for (std::uint32_t kind = 0; kind < Ground::request_kinds; ++kind) CHECK(result.digests[kind] == ground().expected(kind));
  }
  CHECK(ground().expected(0) != ground().expected(1));
}

TEST_CASE("simulation: the same seed gives the same trace, another seed another one") {
  const auto once = run(5), again = run(5), other = run(6);
  CHECK(once.hash == again.hash);
  CHECK(once.steps == again.steps);
  CHECK(once.hash != other.hash);
}

TEST_CASE("simulation: nothing is lost, whatever fails") {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const auto result = run(seed);
    INFO("seed " << seed << " violated '" << result.invariant << "': " << result.violation);
    REQUIRE(result.violation.empty());
  }
}
