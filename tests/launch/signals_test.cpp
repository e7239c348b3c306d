#include "launch/signals.hpp"

#include <csignal>

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>

namespace orrery::launch {

using namespace std::chrono_literals;

TEST_CASE("signals: SIGTERM is heard, kept, and does not end the process", "[launch]") {
  auto watch = SignalWatch::create();
  REQUIRE(watch.ok());
  CHECK_FALSE(watch.value().received());
  CHECK(watch.value().wait_for_signal_or({}, 1ms) == SignalWatch::Woken::timed_out);
  kill(getpid(), SIGTERM);
  CHECK(watch.value().wait_for_signal_or({}, 20s) == SignalWatch::Woken::signal);
  CHECK(watch.value().received() == SIGTERM);
  CHECK(watch.value().received() == SIGTERM);
  CHECK(exit_code_of_signal(SIGTERM) == 143);
  CHECK(exit_code_of_signal(SIGINT) == 130);
}

TEST_CASE("signals: a readable descriptor ends the wait", "[launch]") {
  auto watch = SignalWatch::create();
  REQUIRE(watch.ok());
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  REQUIRE(write(ends[1], "x", 1) == 1);
  CHECK(watch.value().wait_for_signal_or(std::span(ends, 1), 20s) == SignalWatch::Woken::readable);
  close(ends[0]);
  close(ends[1]);
}

TEST_CASE("signals: the second one ends the process", "[launch]") {
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGINT, SIG_DFL);  // The test program has a handler of its own.
    auto watch = SignalWatch::create();
    raise(SIGINT);
    if (!watch.ok() || watch.value().received() != SIGINT) _exit(1);
    raise(SIGINT);
    _exit(2);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGINT));
}

}  // namespace orrery::launch
