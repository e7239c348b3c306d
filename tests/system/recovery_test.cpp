// Processes of a cluster are killed while it makes a video: it goes on, and the bytes are those of the undisturbed run.

#include <catch2/catch.hpp>

#include "tests/support/program.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

constexpr auto soon = std::chrono::seconds(60);

struct Phase {
  std::string name;
  std::vector<std::string> more;  // Makes the phase long enough to be met.
};
const std::vector<Phase> phases = {{"start", {}},
                                   {"load", {}},
                                   {"encode", {"--steps", "200"}},
                                   {"denoise", {"--steps", "200"}},
                                   {"decode", {"--steps", "1", "--frames", "121", "--size", "128x128"}}};

/// Ends a process of the scratch folder whose command line holds `words`.
bool strike(const ScratchFolder& scratch, const std::string& words, int signal = SIGKILL) {
  const int pid = process_with(scratch, words);
  return pid != 0 && ::kill(pid, signal) == 0;
}

bool is_in(const Phase& phase, const ScratchFolder& scratch, const std::string& words, const std::string& err) {
  if (phase.name == "start") return process_with(scratch, words) != 0;
  return err.find(phase.name + " ") != std::string::npos;
}

std::string calm_digest(const Phase& phase) {
  static std::map<std::string, std::string> known;
  auto& digest = known[phase.more.empty() ? "" : phase.name];
  if (digest.empty()) {
    ScratchFolder scratch;
    const auto calm = run_command(scratch, generate("a red circle", scratch.file("calm.y4m"), tiny_on_two_nodes + phase.more));
    INFO(calm.err);
    REQUIRE(calm.exit_code == 0);
    digest = frames_digest(scratch.file("calm.y4m"));
  }
  return digest;
}

/// The video, while the process with these words is killed once, in this phase.
void check_survives(const Phase& phase, const std::string& words) {
  ScratchFolder scratch;
  bool struck = false;
  const auto result = run_command(scratch, generate("a red circle", scratch.file("v.y4m"), tiny_on_two_nodes + phase.more), std::chrono::minutes(2),
                                  [&](int, const std::string&, const std::string& err) {
                                    if (!struck && is_in(phase, scratch, words, err)) struck = strike(scratch, words);
                                  });
  INFO("killed '" << words << "' in phase " << phase.name << ": " << result.err);
  REQUIRE(struck);
  REQUIRE(result.exit_code == 0);
  CHECK(frames_digest(scratch.file("v.y4m")) == calm_digest(phase));
  check_clean(scratch);
}

Json status_of(const ScratchFolder& scratch) {
  const auto result = run_command(scratch, verb({"status", "-o", "json"}), soon);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const auto json = parse_json(result.out, "status");
  REQUIRE(json.ok());
  return json.value();
}

/// Asks until it is so; a minute bounds a failure.
bool comes_true(const std::function<bool()>& so) {
  for (const auto until = std::chrono::steady_clock::now() + soon; std::chrono::steady_clock::now() < until;) {
    if (so()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

}  // namespace

TEST_CASE("recovery: a node that is killed changes nothing about the video, whatever the phase", "[system][faults]") {
  for (const auto& phase : phases)
    for (const std::string node : {"--name n1", "--name n2"}) check_survives(phase, node);
}

TEST_CASE("recovery: a coordinator that is killed changes nothing about the video, whatever the phase", "[system][faults]") {
  for (const auto& phase : phases) check_survives(phase, "orrery coordinator");
}

TEST_CASE("recovery: a node that is stopped counts as lost, and its cards' work moves", "[system][faults]") {
  ScratchFolder scratch;
  const auto& phase = phases[3];
  bool struck = false;
  const auto result = run_command(scratch, generate("a red circle", scratch.file("v.y4m"), tiny_on_two_nodes + phase.more), std::chrono::minutes(2),
                                  [&](int, const std::string&, const std::string& err) {
                                    if (!struck && is_in(phase, scratch, "", err)) struck = strike(scratch, "--name n2", SIGSTOP);
                                  });
  INFO(result.err);
  REQUIRE(struck);
  REQUIRE(result.exit_code == 0);
  CHECK(result.err.find("n2") != std::string::npos);  // The notice names it.
  CHECK(frames_digest(scratch.file("v.y4m")) == calm_digest(phase));
  check_clean(scratch);
}

TEST_CASE("recovery: a node that dies again and again is left alone, with a message, and the video is made without it", "[system][faults]") {
  ScratchFolder scratch;
  const auto deployment = scratch.write("deployment.yaml",
                                        "apiVersion: orrery/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {resilience: {restarts: {max: 1, within: 1 h}}}\n");
  int last = 0, strikes = 0;
  auto command = std::vector<std::string>{ORRERY_BINARY, "-v"} +
                 generate("a red circle", scratch.file("v.y4m"), tiny_on_two_nodes + std::vector<std::string>{"-f", deployment, "--steps", "200"});
  command.erase(command.begin() + 2);  // The program's name stands there a second time.
  const auto result = run_command(scratch, command, std::chrono::minutes(2), [&](int, const std::string&, const std::string& err) {
    if (err.find("denoise ") == std::string::npos) return;
    const int pid = process_with(scratch, "--name n2");
    if (pid == 0 || pid == last) return;
    last = pid;
    strikes += ::kill(pid, SIGKILL) == 0 ? 1 : 0;
  });
  INFO(result.err);
  CHECK(strikes == 2);
  REQUIRE(result.exit_code == 0);
  CHECK(result.err.find("node n2 is not started again: it died more than 1 times within") != std::string::npos);
  CHECK(frames_digest(scratch.file("v.y4m")) == calm_digest(phases[3]));
  check_clean(scratch);
}

TEST_CASE("recovery: status names the incident, and the node comes back", "[system][faults]") {
  ScratchFolder scratch;
  REQUIRE(run_command(scratch, verb({"up", "-d"}) + tiny_on_two_nodes, soon).exit_code == 0);
  CHECK(status_of(scratch)["incidents"].empty());
  const auto before = process_with(scratch, "--name n2");
  REQUIRE(strike(scratch, "--name n2"));
  CHECK(comes_true([&] {
    const auto status = status_of(scratch);
    return status["phase"] == "ready" && status["nodes"][1]["state"] == "up" && status["nodes"][1].value("pid", 0) != before;
  }));
  const auto status = status_of(scratch);
  REQUIRE(!status["incidents"].empty());
  CHECK(status["incidents"][0].value("node", "") == "n2");
  // By its end or by its connection's, whichever was told first.
  CHECK(status["incidents"][0].value("what", "").find("node n2") != std::string::npos);
  const auto table = run_command(scratch, verb({"status"}), soon);
  CHECK(table.out.find("INCIDENT") != std::string::npos);
  CHECK(table.out.find("node n2") != std::string::npos);
  CHECK(run_command(scratch, verb({"down"}), soon).exit_code == 0);
  CHECK(all_gone(scratch));
  CHECK(scratch.leftovers().size() == 1);  // The log of `up -d`.
}

TEST_CASE("recovery: a request goes on after its client and the whole cluster were killed", "[system][faults]") {
  ScratchFolder scratch;
  const std::string id = "00112233445566778899aabbccddeeff";
  const std::vector<std::string> asked = {"--connect", "two_nodes", "--id", id, "--steps", "200"};
  REQUIRE(run_command(scratch, verb({"up", "-d"}) + tiny_on_two_nodes, soon).exit_code == 0);
  bool struck = false;
  const auto first = run_command(scratch, generate("a red circle", scratch.file("v.y4m"), asked), soon,
                                 [&](int pid, const std::string&, const std::string& err) {
                                   if (struck || err.find("denoise ") == std::string::npos) return;
                                   struck = strike(scratch, "orrery --progress none up") && ::kill(pid, SIGKILL) == 0;
                                 });
  REQUIRE(struck);
  CHECK(first.exit_code == 128 + SIGKILL);
  CHECK(all_gone(scratch));
  CHECK(files_like(scratch, "v.y4m.partial").size() == 1);

  REQUIRE(run_command(scratch, verb({"up", "-d"}) + tiny_on_two_nodes, soon).exit_code == 0);
  const auto again = run_command(scratch, generate("a red circle", scratch.file("v.y4m"), asked), soon);
  INFO(again.err);
  REQUIRE(again.exit_code == 0);
  CHECK(frames_digest(scratch.file("v.y4m")) == calm_digest(phases[3]));
  const auto sidecar = read_json_file(scratch.file("v.y4m.json"));
  REQUIRE(sidecar.ok());
  CHECK(sidecar.value()["request"] == id);
  CHECK(files_like(scratch, "v.y4m.partial").empty());
  // The same id for something else is refused.
  check_refused(run_command(scratch, generate("a blue square", scratch.file("w.y4m"), asked), soon), 2, {id.substr(0, 8)});
  CHECK(run_command(scratch, verb({"down"}), soon).exit_code == 0);
  CHECK(all_gone(scratch));
}

TEST_CASE("cancel: by the beginning of an id, and only what is there", "[system][faults]") {
  ScratchFolder scratch;
  REQUIRE(run_command(scratch, verb({"up", "-d"}) + tiny_on_two_nodes, soon).exit_code == 0);
  check_refused(run_command(scratch, verb({"cancel", "beef"}), soon), 1, {"beef"});
  bool asked = false;
  CommandResult cancelled;
  const auto video = run_command(scratch,
                                 generate("x", scratch.file("v.y4m"), {"--connect", "two_nodes", "--id", "BEEF0000000000000000000000000000", "--steps", "5000"}),
                                 soon, [&](int, const std::string&, const std::string& err) {
                                   if (asked || err.find("denoise ") == std::string::npos) return;
                                   asked = true;
                                   cancelled = run_command(scratch, verb({"cancel", "beef"}), soon);
                                 });
  CHECK(cancelled.exit_code == 0);
  CHECK(cancelled.out == "1 request cancelled\n");
  check_refused(video, 1, {"cancelled"});
  CHECK(run_command(scratch, verb({"down"}), soon).exit_code == 0);
}

TEST_CASE("deadline: a video that takes longer ends with 6", "[system][faults]") {
  ScratchFolder scratch;
  check_refused(run_command(scratch, generate("x", scratch.file("v.y4m"), tiny_on_two_nodes + std::vector<std::string>{"--steps", "5000", "--deadline", "1s"}), soon), 6,
                {"deadline"});
  check_refused(run_command(scratch, generate("x", scratch.file("v.y4m"), tiny_on_two_nodes + std::vector<std::string>{"--deadline", "soon"}), soon), 2,
                {"--deadline", "soon"});
  check_refused(run_command(scratch, generate("x", scratch.file("v.y4m"), tiny_on_two_nodes + std::vector<std::string>{"--id", "xyz"}), soon), 2, {"--id", "xyz"});
  check_clean(scratch);
}
