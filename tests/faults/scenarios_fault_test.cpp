// `orrery fault` as a person uses it: verdicts and their exit codes, histories, single faults in a running cluster.
//
// Each scenario brings up two node processes with two cards each; those here need no recovery, so that what fails is
// the tool. All shipped scenarios: `for f in configs/scenarios/*.yaml; do orrery fault run -f $f; done`.

#include <csignal>
#include <thread>

#include <catch2/catch.hpp>

#include "base/json.hpp"
#include "tests/support/command.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

const std::string orrery_program = ORRERY_BINARY;

std::string scenario(const std::string& body) {
  return "apiVersion: orrery/v1\nkind: Scenario\nmetadata: {name: t}\nspec:\n  deployment: resilient\n"
         "  workload: {request: {seed: 7}}\n" +
         body;
}

CommandResult run_file(const ScratchFolder& scratch, const std::string& body, std::vector<std::string> more = {}) {
  std::vector<std::string> words = {orrery_program, "-q", "fault", "run", "-f", scratch.write("scenario.yaml", scenario(body)), "-o", "json"};
  words.insert(words.end(), more.begin(), more.end());
  return run_command(scratch, words);
}

Json json_of(const CommandResult& result) {
  INFO(result.out << result.err);
  auto json = parse_json(result.out, "report");
  REQUIRE(json.ok());
  return json.value();
}

}  // namespace

TEST_CASE("fault run: bad frames between nodes are noticed and change nothing; the history runs again", "[system][fault]") {
  const ScratchFolder scratch;
  const auto result = run_file(scratch,
                               "  faults:\n"
                               "    - {name: c, when: {event: start}, action: corrupt, target: {kind: link, from: n1, to: n2}, every: {p: 0.05}}\n"
                               "    - {name: d, when: {event: step_end, step: 1}, action: duplicate, target: {kind: link, from: n2, to: n1}, every: {p: 0.05}}\n"
                               "  expect: ['completed == requests', 'frames_sha256 == reference', 'fired == faults', 'frames_refused >= 1']\n",
                               {"--history", scratch.file("history.json")});
  INFO(result.out << result.err);
  CHECK(result.exit_code == 0);
  const auto report = json_of(result);
  CHECK(report["verdict"] == "pass");
  CHECK(report["faults"].size() == 2);
  CHECK(processes_of(scratch).empty());

  const auto again = run_command(scratch, {orrery_program, "-q", "fault", "replay", scratch.file("history.json")});
  INFO(again.out << again.err);
  CHECK(again.exit_code == 0);
  CHECK(again.out.find("scenario t, seed 1: pass") != std::string::npos);
  // Another file than the one that was drawn from.
  scratch.write("scenario.yaml", scenario("  faults: [{name: c, at: 1 s, action: cut, target: {kind: link, from: n1, to: n2}}]\n  expect: ['1 == 1']\n"));
  const auto other = run_command(scratch, {orrery_program, "-q", "fault", "replay", scratch.file("history.json")});
  CHECK(other.exit_code == 3);
  CHECK(other.err.find("no longer those of the history") != std::string::npos);
}

TEST_CASE("fault run: an expectation that does not hold is 7, a steady state that is not reached is 8", "[system][fault]") {
  const ScratchFolder scratch;
  const auto failed = run_file(scratch, "  expect: ['completed == 0', 'completed == requests']\n");
  CHECK(failed.exit_code == 7);
  const auto report = json_of(failed);
  CHECK(report["verdict"] == "fail");
  CHECK(report["expectations"][0]["held"] == false);
  CHECK(report["expectations"][1]["held"] == true);
  const auto unready = run_file(scratch, "  steady_state: ['cards == 5']\n  steady_within: 10 s\n  expect: ['1 == 1']\n");
  CHECK(unready.exit_code == 8);
  CHECK(json_of(unready)["reason"].get<std::string>().find("'cards == 5' does not hold (cards = 4)") != std::string::npos);
  CHECK(processes_of(scratch).empty());
}

TEST_CASE("fault run: what is wrong in the file is told before anything starts", "[system][fault]") {
  const ScratchFolder scratch;
  CHECK(run_file(scratch, "  expect: ['complete == requests']\n").exit_code == 3);
  const auto target = run_file(scratch, "  faults: [{name: a, at: 1s, action: kill, target: {kind: node, name: n9}}]\n  expect: ['1 == 1']\n");
  CHECK(target.exit_code == 3);
  CHECK(target.err.find("fault 'a' of scenario t: no node of this cluster fits") != std::string::npos);
  CHECK(run_command(scratch, {orrery_program, "fault", "inject", "explode", "n1"}).exit_code == 2);
  CHECK(run_command(scratch, {orrery_program, "fault", "replay", scratch.write("h.json", "{}")}).exit_code == 3);
  CHECK(processes_of(scratch).empty());
}
