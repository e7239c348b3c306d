// Real children: sh and sleep. No case waits for a time to pass; limits only bound a failure.

#include "launch/processes.hpp"

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include <catch2/catch.hpp>

#include "base/file.hpp"
#include "tests/launch/scratch.hpp"

namespace orrery::launch {
namespace {

using namespace std::chrono_literals;

ProcessSpec shell(const std::string& script) { return {"child", {"sh", "-c", script}}; }

}  // namespace

TEST_CASE("process: its exit code is reported", "[launch]") {
  auto child = Process::start(shell("exit 3"));
  REQUIRE(child.ok());
  const auto end = child.value().wait(20s);
  REQUIRE(end);
  CHECK(end->exit_code == 3);
  CHECK_FALSE(end->ok());
  CHECK(end->text() == "ended with exit code 3");
}

TEST_CASE("process: a program that is not there is an error that names it", "[launch]") {
  const auto child = Process::start({"node n1", {"/nowhere/orrery", "node"}});
  REQUIRE_FALSE(child.ok());
  CHECK(child.error().code == ErrorCode::io_failed);
  CHECK(child.error().message == "node n1 could not be started: /nowhere/orrery: No such file or directory");
}

TEST_CASE("process: output, environment and own process group", "[launch]") {
  const Scratch scratch;
  auto spec = shell("echo \"$ORRERY_TEST_WORD\"; ps -o pgid= -p $$ >&2 || echo $$ >&2");
  spec.environment = {{"ORRERY_TEST_WORD", "planet"}};
  spec.log_file = scratch.path("log");
  auto child = Process::start(spec);
  REQUIRE(child.ok());
  const auto id = child.value().id();
  REQUIRE(child.value().wait(20s));
  const auto log = read_text_file(scratch.path("log"), 4096);
  REQUIRE(log.ok());
  CHECK(log.value().starts_with("planet\n"));
  CHECK(log.value().find(std::to_string(id)) != std::string::npos);
}

TEST_CASE("process: stop ends one that listens to SIGTERM", "[launch]") {
  auto child = Process::start({"child", {"sleep", "1000"}});
  REQUIRE(child.ok());
  const auto end = child.value().stop(20s);
  CHECK(end.signal == SIGTERM);
  CHECK(end.exit_code == 143);
}

TEST_CASE("process: stop kills one that ignores SIGTERM, and one that is stopped", "[launch]") {
  const Scratch scratch;
  auto deaf = Process::start(shell("trap '' TERM; echo ready > '" + scratch.path("ready") + "'; while :; do sleep 1000; done"));
  REQUIRE(deaf.ok());
  while (!std::filesystem::exists(scratch.path("ready"))) usleep(1000);
  CHECK(deaf.value().stop(50ms).signal == SIGKILL);

  auto frozen = Process::start({"child", {"sleep", "1000"}});
  REQUIRE(frozen.ok());
  frozen.value().send_signal(SIGSTOP);
  CHECK(frozen.value().stop(20s).signal == SIGTERM);
}

TEST_CASE("process: the destructor leaves nothing of the group behind", "[launch]") {
  const Scratch scratch;
  pid_t grandchild = 0;
  {
    auto child = Process::start(shell("sleep 1000 & echo $! > '" + scratch.path("pid.tmp") + "'; mv '" + scratch.path("pid.tmp") + "' '" +
                                      scratch.path("pid") + "'; wait"));
    REQUIRE(child.ok());
    while (!std::filesystem::exists(scratch.path("pid"))) usleep(1000);
    std::ifstream(scratch.path("pid")) >> grandchild;
    REQUIRE(kill(grandchild, 0) == 0);
  }
  // Gone, or a zombie that init has not collected yet.
  for (int i = 0; i < 10'000 && kill(grandchild, 0) == 0; ++i) {
    std::ifstream status("/proc/" + std::to_string(grandchild) + "/stat");
    std::string text((std::istreambuf_iterator<char>(status)), {});
    if (text.find(") Z") != std::string::npos) break;
    usleep(1000);
  }
  std::ifstream status("/proc/" + std::to_string(grandchild) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(status)), {});
  CHECK((text.empty() || text.find(") Z") != std::string::npos));
}

TEST_CASE("process: a child dies with a parent that is killed", "[launch]") {
  const Scratch scratch;
  int tell[2];
  REQUIRE(pipe(tell) == 0);
  const pid_t parent = fork();
  if (parent == 0) {
    auto child = Process::start({"child", {"sleep", "1000"}});
    const pid_t id = child.ok() ? child.value().id() : -1;
    [[maybe_unused]] const auto written = write(tell[1], &id, sizeof id);
    raise(SIGKILL);
  }
  pid_t child = -1;
  REQUIRE(read(tell[0], &child, sizeof child) == static_cast<ssize_t>(sizeof child));
  REQUIRE(child > 0);
  close(tell[0]);
  close(tell[1]);
  bool gone = false;
  for (int i = 0; i < 20'000 && !gone; ++i) {
    std::ifstream status("/proc/" + std::to_string(child) + "/stat");
    const std::string text((std::istreambuf_iterator<char>(status)), {});
    gone = text.empty() || text.find(") Z") != std::string::npos;
    if (!gone) usleep(1000);
  }
  CHECK(gone);
}

TEST_CASE("process: what is written to its input arrives, and a dead reader is an error", "[launch]") {
  const Scratch scratch;
  auto spec = shell("cat > '" + scratch.path("copy") + "'");
  spec.with_input = true;
  auto child = Process::start(spec);
  REQUIRE(child.ok());
  const std::string text(300'000, 'x');
  REQUIRE(child.value().write_input(std::as_bytes(std::span(text)), 20s).ok());
  child.value().close_input();
  REQUIRE(child.value().wait(20s)->ok());
  CHECK(std::filesystem::file_size(scratch.path("copy")) == text.size());

  auto brief = shell("exit 5");
  brief.with_input = true;
  auto dead = Process::start(brief);
  REQUIRE(dead.ok());
  REQUIRE(dead.value().wait(20s));
  const auto written = dead.value().write_input(std::as_bytes(std::span(text)), 20s);
  REQUIRE_FALSE(written.ok());
  CHECK(written.error().message == "child ended with exit code 5");
}

TEST_CASE("process: one that takes no input runs into the limit", "[launch]") {
  ProcessSpec spec{"child", {"sleep", "1000"}};
  spec.with_input = true;
  auto child = Process::start(spec);
  REQUIRE(child.ok());
  const std::string text(std::size_t{16} << 20, 'x');
  const auto written = child.value().write_input(std::as_bytes(std::span(text)), 30ms);
  REQUIRE_FALSE(written.ok());
  CHECK(written.error().code == ErrorCode::timed_out);
}

TEST_CASE("ssh command: asks nothing, quotes everything, and refuses odd hosts", "[launch]") {
  const std::vector<std::string> arguments{"orrery", "node", "--name", "it's n1; rm -rf /"};
  const auto command = ssh_command("me", "npu01", arguments);
  REQUIRE(command.ok());
  CHECK(command.value().front() == "ssh");
  CHECK(std::find(command.value().begin(), command.value().end(), "BatchMode=yes") != command.value().end());
  CHECK(command.value()[command.value().size() - 2] == "me@npu01");
  CHECK(command.value().back() == "'orrery' 'node' '--name' 'it'\\''s n1; rm -rf /'");
  CHECK_FALSE(ssh_command("", "-oProxyCommand=x", arguments).ok());
  CHECK_FALSE(ssh_command("", "a b", arguments).ok());
  CHECK_FALSE(ssh_command("-l", "host", arguments).ok());
  CHECK(ssh_command("", "host", arguments).value()[ssh_command("", "host", arguments).value().size() - 2] == "host");
}

TEST_CASE("last lines: the end of a log, however short", "[launch]") {
  const Scratch scratch;
  const auto lines_of = [&](const std::string& text, std::size_t count) {
    std::ofstream(scratch.path("log")) << text;
    return last_lines(scratch.path("log"), count);
  };
  CHECK(lines_of("one\ntwo\nthree\n", 2) == "two\nthree");
  CHECK(lines_of("one\ntwo", 5) == "one\ntwo");
  CHECK(lines_of("one", 1) == "one");
  CHECK(lines_of("", 3) == "");
  CHECK(last_lines(scratch.path("none"), 3) == "");
}

}  // namespace orrery::launch
