// Verdicts from what was seen, and orders from the words of a command line. No processes.

#include <catch2/catch.hpp>

#include "launch/fault_order.hpp"
#include "launch/fault_run.hpp"

using namespace orrery;
using namespace orrery::launch;

namespace {

topology::ScenarioSpec scenario_of(const std::string& expect) {
  Findings findings;
  const auto documents = read_yaml("s.yaml",
                                   "faults:\n"
                                   "  - {name: a, at: 1s, action: kill, target: {kind: node}}\n"
                                   "  - {name: b, at: 2s, action: kill, target: {kind: node}}\n" +
                                       expect,
                                   findings);
  REQUIRE(documents.size() == 1);
  YamlReader reader(findings, process_environment());
  auto scenario = topology::read_scenario(documents.front(), "s", reader);
  INFO(text_of(findings));
  REQUIRE(findings.empty());
  return scenario;
}

FaultReport report_with(std::optional<double> a, std::optional<double> b) {
  FaultReport report;
  report.scenario = "s";
  report.faults.resize(2);
  report.faults[0].name = "a";
  report.faults[0].fired = a;
  report.faults[1].name = "b";
  report.faults[1].fired = b;
  report.requests.resize(2);
  for (auto& request : report.requests) request.accepted = request.ended = request.completed = true;
  return report;
}

Json incidents(const std::string& text) {
  auto json = parse_json(text, "incidents");
  REQUIRE(json.ok());
  return json.value();
}

}  // namespace

TEST_CASE("fault report: an incident belongs to the fault that fired last before it", "[launch][fault]") {
  auto report = report_with(1.0, 3.0);
  match_incidents(incidents(R"([{"at": 99.0, "what": "before all"},
                                {"at": 101.02, "fenced_ms": 1, "replanned_ms": 5, "loaded_ms": 40, "resumed_ms": 50, "steps_repeated": 1},
                                {"at": 101.5, "resumed_ms": 90, "steps_repeated": 2},
                                {"at": 103.9, "fenced_ms": 2}])"),
                  100.0, report);
  CHECK(report.incidents.size() == 3);
  CHECK(report.faults[0].detected == Approx(0.02));
  CHECK(report.faults[0].resumed == Approx(0.05));
  CHECK(report.faults[0].steps_repeated == 2);
  CHECK(report.faults[1].detected == Approx(0.9));
  CHECK_FALSE(report.faults[1].resumed);
  evaluate(scenario_of("expect: ['recovery_seconds <= 100 ms', 'detection_seconds <= 1 s', 'steps_repeated == 2']\n"), report);
  CHECK(report.verdict == Verdict::pass);
}

TEST_CASE("fault report: each expectation counts, and says what it saw", "[launch][fault]") {
  auto report = report_with(1.0, std::nullopt);
  match_incidents(incidents(R"([{"at": 11.2, "fenced_ms": 1, "resumed_ms": 300}])"), 10.0, report);
  evaluate(scenario_of("expect:\n"
                       "  - 'completed == requests'\n"
                       "  - 'fired == faults'\n"
                       "  - {event: detected, within: 500 ms, after: a}\n"
                       "  - {event: resumed, within: 400 ms, after: a}\n"
                       "  - {event: fired, within: 1 s, after: b}\n"
                       "  - 'frames_sha256 == reference'\n"),
           report);
  CHECK(report.verdict == Verdict::fail);
  std::string held;
  for (const auto& each : report.expectations) held += each.held ? '1' : '0';
  CHECK(held == "101000");
  CHECK(report.expectations[1].shown == "fired = 1, faults = 2");
  CHECK(report.expectations[3].shown == "after 500 ms");
  CHECK(report.expectations[4].shown == "the fault did not fire");
  CHECK(report.expectations[5].shown == "frames_sha256 = not measured, reference = not measured");
  CHECK(report.text().find("FAILS fired == faults") != std::string::npos);
  CHECK(report.json()["verdict"] == "fail");
  CHECK(report.json()["faults"][1]["fired_seconds"].is_null());
}

TEST_CASE("fault report: a request that never ended is lost, and a budget is an expectation", "[launch][fault]") {
  auto report = report_with(1.0, 2.0);
  report.requests[1].ended = report.requests[1].completed = false;
  report.requests[0].surplus_frames = 3;
  match_incidents(incidents(R"([{"at": 1.5, "resumed_ms": 2500, "steps_repeated": 1}])"), 0.0, report);
  evaluate(scenario_of("expect: ['lost == 1 and duplicated == 3 and failed == 0']\nbudget: {recovery_time_max: 2s, lost_steps_max: 1}\n"), report);
  REQUIRE(report.expectations.size() == 3);
  CHECK(report.expectations[0].held);
  CHECK_FALSE(report.expectations[1].held);
  CHECK(report.expectations[2].held);
  CHECK(report.verdict == Verdict::fail);
  CHECK(exit_code_of(Verdict::pass) == 0);
  CHECK(exit_code_of(Verdict::fail) == 7);
  CHECK(exit_code_of(Verdict::inconclusive) == 8);
}

TEST_CASE("fault report: incidents of a stranger do not end the program", "[launch][fault]") {
  auto report = report_with(1.0, 2.0);
  match_incidents(incidents(R"([1, "x", {}, {"at": "soon"}, {"at": 5, "resumed_ms": "late"}])"), 0.0, report);
  match_incidents(incidents("{}"), 0.0, report);
  CHECK(report.incidents.size() == 1);
}

TEST_CASE("fault words: a command line becomes an order", "[launch][fault]") {
  const auto told = [](FaultWords words) {
    const auto order = order_from_words(words);
    if (!order.ok()) return "error: " + order.error().message;
    return order.value().node + " " + actors::json_of(order.value().order).dump();
  };
  CHECK(told({.action = "slow", .target = "n1:0", .parameters = {"factor=8"}, .duration = "10s"}) ==
        R"(n1 {"name":"slow-n1:0","action":"slow","card":0,"for_seconds":10.0,"parameters":{"factor":8.0}})");
  CHECK(told({.action = "cut", .target = "n1/n2", .one_way = true}) == R"(n1 {"name":"cut-n1/n2","action":"cut","peer":"n2","direction":"out"})");
  CHECK(told({.action = "delay", .target = "n1/n2", .parameters = {"latency=20 ms", "jitter=1ms", "probability=0.5"}, .name = "d"}) ==
        R"(n1 {"name":"d","action":"delay","peer":"n2","parameters":{"latency":0.02,"jitter":0.001,"probability":0.5}})");
  CHECK(told({.action = "kill", .target = "n2", .event = "command", .request = 1, .step = 5, .block = 2}) ==
        R"(n2 {"name":"kill-n2","action":"kill","when":{"event":"command","request":1,"step":5,"block":2}})");
  CHECK(told({.action = "kil", .target = "n2"}) == "error: 'kil' is not an action");
  CHECK(told({.action = "kill", .target = ""}) == "error: '' is no target");
  CHECK(told({.action = "kill", .target = "n1:x"}) == "error: 'n1:x' has no card number after ':'");
  CHECK(told({.action = "cut", .target = "n1/"}) == "error: 'n1/' names one end of a link only");
  CHECK(told({.action = "kill", .target = "n1", .one_way = true}) == "error: --one-way is for links");
  CHECK(told({.action = "slow", .target = "n1", .parameters = {"factor"}}) == "error: 'factor' is not KEY=VALUE");
  CHECK(told({.action = "slow", .target = "n1", .parameters = {"factor=x"}}) == "error: factor: 'x' is no number");
  CHECK(told({.action = "slow", .target = "n1", .parameters = {"factor=0.5"}}) == "error: fault.parameters.factor is out of range");
  CHECK(told({.action = "slow", .target = "n1", .parameters = {"speed=2"}}) == "error: fault.parameters.speed is not known");
  CHECK(told({.action = "delay", .target = "n1", .parameters = {"latency=5"}}).starts_with("error: latency: "));
  CHECK(told({.action = "kill", .target = "n1", .duration = "soon"}).starts_with("error: --for "));
  CHECK(told({.action = "kill", .target = "n1", .event = "lunch"}) == "error: fault.when.event is not an event");
}
