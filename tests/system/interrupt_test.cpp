// Ctrl-C, SIGTERM and kill -9 of whoever makes a video, in each of its phases: the right exit code, quickly, and nothing is
// left behind. What happens when something else dies: recovery_test.cpp.

#include <catch2/catch.hpp>

#include "tests/support/program.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

struct Phase {
  std::string name;
  std::vector<std::string> more;  // Makes the phase long enough to be met.
};

// Decoding is long for many large frames, denoising for many steps.
const std::vector<Phase> phases = {{"start", {}},
                                   {"load", {}},
                                   {"encode", {"--steps", "2000"}},
                                   {"denoise", {"--steps", "2000"}},
                                   {"decode", {"--steps", "1", "--frames", "121", "--size", "256x256"}}};

bool is_in(const Phase& phase, const ScratchFolder& scratch, const std::string& err) {
  if (phase.name == "start") return process_with(scratch, "--name n2") != 0;
  return err.find(phase.name + " ") != std::string::npos;
}

/// Makes a video and acts once when the phase begins. The result comes with the time from the act to the end.
std::pair<CommandResult, double> run_until(const ScratchFolder& scratch, const Phase& phase, const std::function<bool(int)>& act) {
  bool acted = false;
  std::chrono::steady_clock::time_point at;
  auto result = run_command(scratch, generate("x", scratch.file("v.y4m"), tiny_on_two_nodes + phase.more), std::chrono::minutes(2),
                            [&](int pid, const std::string&, const std::string& err) {
                              if (acted || !is_in(phase, scratch, err)) return;
                              acted = act(pid);
                              at = std::chrono::steady_clock::now();
                            });
  REQUIRE(acted);
  return {result, std::chrono::duration<double>(std::chrono::steady_clock::now() - at).count()};
}

}  // namespace

TEST_CASE("interrupt: SIGINT and SIGTERM end a video in every phase, with nothing left", "[system][faults]") {
  for (const int signal : {SIGINT, SIGTERM})
    for (const auto& phase : phases) {
      ScratchFolder scratch;
      const auto [result, seconds] = run_until(scratch, phase, [&](int pid) { return ::kill(pid, signal) == 0; });
      INFO("signal " << signal << " in phase " << phase.name << ": " << result.err);
      CHECK(!result.timed_out);
      CHECK(result.exit_code == 128 + signal);
      CHECK(result.out.empty());
      CHECK(files_like(scratch, "v.y4m").empty());
      check_clean(scratch);
      CHECK(seconds < 20);  // Far below any deadline of the work itself.
    }
}

TEST_CASE("interrupt: a launcher that is killed takes its nodes along", "[system][faults]") {
  for (const auto& phase : phases) {
    ScratchFolder scratch;
    const auto [result, seconds] = run_until(scratch, phase, [](int pid) { return ::kill(pid, SIGKILL) == 0; });
    INFO(phase.name);
    CHECK(result.exit_code == 128 + SIGKILL);
    CHECK(all_gone(scratch));
    CHECK(!std::filesystem::exists(scratch.file("v.y4m")));
  }
}

TEST_CASE("interrupt: a client that is killed or interrupted frees the running cluster", "[system][faults]") {
  ScratchFolder scratch;
  REQUIRE(run_command(scratch, verb({"up", "-d"}) + tiny_on_two_nodes).exit_code == 0);
  const std::vector<std::string> here = {"--connect", "two_nodes"};
  const auto reference = run_command(scratch, generate("x", scratch.file("a.y4m"), here));
  INFO(reference.err);
  REQUIRE(reference.exit_code == 0);
  for (const int signal : {SIGKILL, SIGINT}) {
    bool acted = false;
    const auto result = run_command(scratch, generate("x", scratch.file("b.y4m"), here + std::vector<std::string>{"--steps", "5000"}), std::chrono::minutes(1),
                                    [&](int pid, const std::string&, const std::string& err) {
                                      if (!acted && err.find("denoise ") != std::string::npos) acted = ::kill(pid, signal) == 0;
                                    });
    CHECK(result.exit_code == 128 + signal);
    // A client that was killed may come back, so its request goes on; Ctrl-C means that nobody wants it any more.
    if (signal == SIGKILL) {
      const auto cancelled = run_command(scratch, verb({"cancel", "all"}));
      INFO(cancelled.err);
      CHECK(cancelled.exit_code == 0);
      CHECK(cancelled.out == "1 request cancelled\n");
    }
    // 5000 steps would take longer than this one may.
    const auto next = run_command(scratch, generate("x", scratch.file("c.y4m"), here), std::chrono::seconds(20));
    INFO("signal " << signal << ": " << next.err);
    REQUIRE(next.exit_code == 0);
    CHECK(frames_digest(scratch.file("c.y4m")) == frames_digest(scratch.file("a.y4m")));
  }
  CHECK(run_command(scratch, verb({"down"})).exit_code == 0);
  CHECK(all_gone(scratch));
}
