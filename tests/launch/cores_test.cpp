#include "launch/cores.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <memory>

#include <sched.h>

namespace orrery::launch {

namespace {
const std::vector<CpuSet> six = {{0, 6}, {1, 7}, {2, 8}, {3, 9}, {4, 10}, {5, 11}};  // Two logical processors a core.
}

TEST_CASE("cores: shared out whole, in runs of neighbours, what is left over in proportion", "[launch]") {
  CHECK(share_cores(six, {1, 1}) == std::vector<CpuSet>{{0, 6, 1, 7, 2, 8}, {3, 9, 4, 10, 5, 11}});
  CHECK(share_cores(six, {1, 2}) == std::vector<CpuSet>{{0, 6, 1, 7}, {2, 8, 3, 9, 4, 10, 5, 11}});
  CHECK(share_cores(six, {2, 0, 4}) == std::vector<CpuSet>{{0, 6, 1, 7}, {}, {2, 8, 3, 9, 4, 10, 5, 11}});
  CHECK(share_cores(six, {3, 4}) == std::vector<CpuSet>{{}, {}});
  CHECK(share_cores({}, {1}) == std::vector<CpuSet>{{}});
  CHECK(share_cores(six, {0, 0}) == std::vector<CpuSet>{{}, {}});
}

TEST_CASE("cores: whatever the wishes, each gets what it wished for, no core twice", "[launch]") {
  for (std::uint32_t a = 0; a < 5; ++a)
    for (std::uint32_t b = 0; b < 5; ++b)
      for (std::uint32_t c = 0; c < 5; ++c)
        for (std::uint32_t count = 0; count < 16; ++count) {
          std::vector<CpuSet> free;
          for (std::uint32_t i = 0; i < count; ++i) free.push_back({i});
          const auto sets = share_cores(free, {a, b, c});
          const bool enough = a + b + c > 0 && a + b + c <= count;
          const std::vector<std::uint32_t> wanted = {a, b, c};
          std::vector<bool> taken(count, false);
          for (std::size_t i = 0; i < 3; ++i) {
            CHECK((enough ? sets[i].size() >= wanted[i] : sets[i].empty()));
            for (const auto cpu : sets[i]) {
              CHECK_FALSE(taken[cpu]);
              taken[cpu] = true;
            }
          }
          if (enough) CHECK(std::count(taken.begin(), taken.end(), true) == count);
        }
}

TEST_CASE("cores: a claim holds until it ends; whoever comes meanwhile is not bound", "[launch]") {
  cpu_set_t allowed;
  REQUIRE(::sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  const auto first = std::make_unique<CoreClaim>(CoreClaim::take({1, 1}));
  if (first->of(0).empty()) return;  // One core, or another program of ours holds them.
  for (const std::size_t i : {0, 1})
    for (const auto cpu : first->of(i)) CHECK(CPU_ISSET(cpu, &allowed));
  CHECK(first->of(0) != first->of(1));
  CHECK(first->of(2).empty());
  CHECK(CoreClaim::take({1, 1}).of(0).empty());
}

}  // namespace orrery::launch
