// orrery_sim: runs the cluster in one thread from seeds, and says what was violated and how to see it again.
//
//   orrery_sim --seed 7 [--trace FILE]
//   orrery_sim --seeds 1..1000 [--scenario FILE] [--coverage]

#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>

#include "base/fault_point.hpp"
#include "base/log.hpp"
#include "simulation.hpp"
#include "topology/config_set.hpp"

using namespace orrery;
using namespace orrery::simulation;

namespace {

int usage() {
  std::fprintf(stderr, "usage: orrery_sim --seed N | --seeds A..B [--scenario FILE] [--trace FILE] [--coverage]\n");
  return 2;
}

Result<topology::ScenarioSpec> read_scenario_file(const std::string& path) {
  topology::ConfigOptions options;
  options.inputs = {path};
  options.configs_folder = std::string(ORRERY_SOURCE_DIR) + "/configs";
  const auto set = topology::ConfigSet::read(options);
  if (set.scenarios().empty()) return Error{ErrorCode::invalid_config, path + " has no Scenario that can be read", "see `orrery check -f FILE`"};
  return set.scenarios().begin()->second;
}

}  // namespace

int main(int count, char** words) {
  set_log(static_cast<Level>(-1), "simulation");
  std::uint64_t first = 0, last = 0;
  bool single = false, coverage = false;
  std::string scenario_file, trace_file;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto value = [&]() -> std::string { return i + 1 < count ? words[++i] : ""; };
    if (word == "--seed") {
      first = last = std::strtoull(value().c_str(), nullptr, 10);
      single = true;
    } else if (word == "--seeds") {
      const auto range = value();
      const auto dots = range.find("..");
      if (dots == std::string::npos) return usage();
      first = std::strtoull(range.c_str(), nullptr, 10);
      last = std::strtoull(range.c_str() + dots + 2, nullptr, 10);
    } else if (word == "--scenario") {
      scenario_file = value();
    } else if (word == "--trace") {
      trace_file = value();
    } else if (word == "--coverage") {
      coverage = true;
    } else {
      return usage();
    }
  }
  if (last < first || (first == 0 && last == 0 && !single)) return usage();
  std::optional<topology::ScenarioSpec> scenario;
  if (!scenario_file.empty()) {
    auto read = read_scenario_file(scenario_file);
    if (!read.ok()) {
      std::fprintf(stderr, "orrery_sim: error: %s\n", read.error().text().c_str());
      return 3;
    }
    scenario = std::move(read).value();
  }
  record_fault_points(true);
  const Ground ground(ORRERY_SOURCE_DIR);
  std::ofstream trace;
  if (!trace_file.empty()) trace.open(trace_file);
  std::map<std::string, std::uint64_t> faults, ends, points;
  std::uint64_t steps = 0, runs = 0;
  double virtual_seconds = 0;
  const auto started = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count(); };
  for (auto seed = first; seed <= last; ++seed) {
    RunOptions options;
    options.seed = seed;
    options.scenario = scenario;
    if (trace.is_open()) options.trace = [&](const std::string& line) { trace << line << '\n'; };
    const auto result = run_simulation(ground, options);
    ++runs;
    steps += result.steps;
    virtual_seconds += result.virtual_seconds;
    for (const auto& [kind, times] : result.faults) faults[kind] += times;
    for (const auto& [how, times] : result.ends) ends[how] += times;
    for (const auto& [point, times] : result.fault_points) points[point] += times;
    if (!result.violation.empty()) {
      trace.flush();
      std::printf("seed %llu: violated '%s': %s\n", static_cast<unsigned long long>(seed), result.invariant.c_str(), result.violation.c_str());
      std::printf("replay: orrery_sim --seed %llu%s --trace trace.txt\n", static_cast<unsigned long long>(seed),
                  scenario_file.empty() ? "" : (" --scenario " + scenario_file).c_str());
      return 1;
    }
    if (single)
      std::printf("seed %llu: trace hash %016llx, %llu steps, %.1f virtual seconds, %llu epochs\n", static_cast<unsigned long long>(seed),
                  static_cast<unsigned long long>(result.hash), static_cast<unsigned long long>(result.steps), result.virtual_seconds,
                  static_cast<unsigned long long>(result.epochs));
    if (runs % 500 == 0) std::fprintf(stderr, "%llu seeds, %.1f seeds/s\n", static_cast<unsigned long long>(runs), static_cast<double>(runs) / elapsed());
  }
  std::printf("%llu seeds passed in %.1f s (%.1f seeds/s, %.0f virtual seconds, %llu steps)\n", static_cast<unsigned long long>(runs), elapsed(),
              static_cast<double>(runs) / elapsed(), virtual_seconds, static_cast<unsigned long long>(steps));
  const auto print = [](const char* title, const std::map<std::string, std::uint64_t>& table) {
    std::printf("%s:", title);
    for (const auto& [name, times] : table) std::printf(" %s %llu", name.c_str(), static_cast<unsigned long long>(times));
    std::printf("\n");
  };
  print("faults", faults);
  print("requests", ends);
  if (coverage) {
    std::size_t reached = 0, fired = 0, all = 0;
    for (const auto& each : fault_point_counts()) {
      const auto ended = points[each.point];
      std::printf("fault point %-28s reached %8llu, ended a process %6llu times\n", each.point.c_str(), static_cast<unsigned long long>(each.reached),
                  static_cast<unsigned long long>(ended));
      ++all;
      reached += each.reached > 0 ? 1 : 0;
      fired += ended > 0 ? 1 : 0;
    }
    std::printf("fault points: %zu reached, %zu fired, of %zu\n", reached, fired, all);
  }
  return 0;
}
