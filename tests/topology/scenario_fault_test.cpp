// Scenarios and their expectations: what is read, what holds, and that actions fit what the file says.

#include <catch2/catch.hpp>

#include "topology/config_set.hpp"
#include "topology/scenario_spec.hpp"

using namespace orrery;
using namespace orrery::topology;

namespace {

std::string verdict(const std::string& text, const std::map<std::string, Measured>& values) {
  const auto parsed = Expectation::parse(text);
  if (!parsed.ok()) return parsed.error().message;
  const auto held = parsed.value().evaluate(values);
  if (!held.ok()) return held.error().message;
  return held.value() ? "holds" : "fails";
}

const std::map<std::string, Measured> values = {{"completed", 3.0},          {"requests", 3.0},     {"recovery_seconds", 0.8},
                                                {"steps_repeated", 1.0},     {"a", std::string("x")}, {"b", std::string("y")},
                                                {"frames_refused", 2048.0}};

}  // namespace

TEST_CASE("expectation: comparisons of counters, quantities and texts", "[topology][fault]") {
  for (const auto* text : {"completed == requests", "completed==3", "recovery_seconds <= 2 s", "recovery_seconds<=800ms",
                           "recovery_seconds < 1 s and steps_repeated <= 1", "frames_refused == 2KiB", "a == 'x'", "a != b",
                           "2 < completed", "completed >= 3", "completed > 2.5", "a != 'x y'"})
    CHECK(verdict(text, values) == "holds");
  for (const auto* text : {"completed != requests", "recovery_seconds <= 0.5 s", "recovery_seconds < 1 s and steps_repeated < 1", "a == b",
                           "completed < 3", "0 == 1 and 1 == 1", "1 == 1 and 0 == 1"})
    CHECK(verdict(text, values) == "fails");
  CHECK(Expectation::parse("completed == requests and a != 'x'").value().shown_values(values) == "completed = 3, requests = 3, a = x");
}

TEST_CASE("expectation: what is wrong is told with its place", "[topology][fault]") {
  CHECK(verdict("", values) == "is wrong at character 1: a name or a number is missing");
  CHECK(verdict("completed = 1", values) == "is wrong at character 11: should be ==, !=, <, <=, > or >=");
  CHECK(verdict("completed ==", values) == "is wrong at character 13: a name or a number is missing");
  CHECK(verdict("completed == 1 2", values) == "is wrong at character 16: should end, or go on with 'and'");
  CHECK(verdict("completed == 1 and", values) == "is wrong at character 19: a name or a number is missing");
  CHECK(verdict("completed == 1 android", values) == "is wrong at character 14: '1android' is no time and no number of bytes");
  CHECK(verdict("completed == 1.2.3", values) == "is wrong at character 14: '1.2.3' is no number");
  CHECK(verdict("completed == $(reboot)", values) == "is wrong at character 14: should be a name, a number or 'text', not '$'");
  CHECK(verdict("1 == 'x", values) == "is wrong at character 6: the text has no closing '");
  CHECK(verdict("1 == 5 minutes", values) == "is wrong at character 6: '5minutes' is no time and no number of bytes");
  CHECK(verdict(std::string(401, 'x'), values) == "is longer than 400 characters");
}

TEST_CASE("expectation: a number is never compared with text, and what was not measured never holds", "[topology][fault]") {
  CHECK(verdict("a == 1", values) == "'a == 1' compares a number with text");
  CHECK(verdict("a < b", values) == "'a < b' compares texts by size");
  CHECK(verdict("seconds < 5 s", values) == "'seconds' was not measured");
}

TEST_CASE("scenario: a whole file is read", "[topology][fault]") {
  Findings findings;
  const auto documents = read_yaml("s.yaml", R"(
deployment: tensor
seed: 7
workload: {requests: 2, concurrency: 2, request: {num_inference_steps: 8, size: 64x64, seed: 9}}
steady_state: ["cards == 4 and ready == 1"]
faults:
  - name: kill-card
    when: {event: command, request: 1, step: 5, block: 2, stage: denoiser}
    action: kill
    target: {kind: card, where: {role: denoiser, node: n1, card: 0}}
  - {name: spoilt, at: 500 ms, for: 2s, action: corrupt, target: {kind: link, from: n1, to: n2, direction: forward}, every: {p: 0.1}}
  - {name: again, after: kill-card, action: kill, target: {kind: coordinator}}
heal: never
expect:
  - "completed == requests"
  - {event: detected, within: 50 ms, after: kill-card}
budget: {recovery_time_max: 2s, lost_steps_max: 1}
)",
                                   findings);
  REQUIRE(documents.size() == 1);
  YamlReader reader(findings, process_environment());
  const auto scenario = read_scenario(documents.front(), "s", reader);
  INFO(text_of(findings));
  REQUIRE(findings.empty());
  CHECK(scenario.seed == 7);
  CHECK(scenario.workload.request.size == "64x64");
  REQUIRE(scenario.faults.size() == 3);
  CHECK(scenario.faults[0].when->event == ScenarioEvent::command);
  CHECK(scenario.faults[0].when->block == 2U);
  CHECK(scenario.faults[0].target.where.card == 0U);
  CHECK(scenario.faults[1].at == 0.5);
  CHECK(scenario.faults[1].duration == 2.0);
  CHECK(scenario.faults[1].target.direction == ScenarioDirection::forward);
  CHECK(scenario.faults[1].every.p == 0.1);
  CHECK(scenario.faults[2].after == "kill-card");
  CHECK_FALSE(scenario.heal);
  REQUIRE(scenario.expect.size() == 2);
  CHECK(scenario.expect[0].expression->text() == "completed == requests");
  CHECK(scenario.expect[1].event == "detected");
  CHECK(scenario.expect[1].within == 0.05);
  CHECK(scenario.budget.lost_steps_max == 1U);
}

TEST_CASE("scenario: each action fits some target, and each target some action", "[topology][fault]") {
  const auto last = static_cast<int>(ScenarioAction::second_coordinator);
  std::vector<bool> used(7);
  for (int action = 0; action <= last; ++action) {
    CHECK(name_of(static_cast<ScenarioAction>(action)) != "unknown");
    bool any = false;
    for (int kind = 0; kind < 7; ++kind)
      if (fits(static_cast<ScenarioAction>(action), static_cast<TargetKind>(kind))) any = used[static_cast<std::size_t>(kind)] = true;
    CHECK(any);
  }
  CHECK(std::count(used.begin(), used.end(), true) == 7);
}

TEST_CASE("scenario: a shipped deployment is found by its name", "[topology][fault]") {
  Findings findings;
  const auto set = ConfigSet::read({{std::string(ORRERY_SOURCE_DIR) + "/configs/scenarios"}, {}, std::string(ORRERY_SOURCE_DIR) + "/configs",
                                    [](const std::string&) { return std::nullopt; }});
  INFO(text_of(set.findings()));
  CHECK(set.ok());
  CHECK(set.scenarios().size() >= 12);
  for (const auto& [name, scenario] : set.scenarios()) {
    CAPTURE(name);
    const auto resolved = set.resolve(scenario.deployment);
    REQUIRE(resolved.ok());
    CHECK(resolved.value().cluster.card_count() == 4);
    CHECK(resolved.value().model.name == "cosmos-tiny");
  }
}
