// Real children: sh and sleep. What is waited for are events; limits only bound a failure.

#include "launch/supervisor.hpp"

#include <condition_variable>
#include <csignal>
#include <deque>
#include <filesystem>
#include <fstream>
#include <mutex>

#include <unistd.h>

#include <catch2/catch.hpp>

#include "tests/launch/scratch.hpp"

namespace orrery::launch {
namespace {

using namespace std::chrono_literals;

/// Collects what a supervisor tells.
class Ends {
public:
  std::function<void(const ChildEnd&)> taker() {
    return [this](const ChildEnd& end) {
      const std::lock_guard lock(mutex_);
      ends_.push_back(end);
      came_.notify_all();
    };
  }
  ChildEnd next() {
    std::unique_lock lock(mutex_);
    REQUIRE(came_.wait_for(lock, 60s, [this] { return !ends_.empty(); }));
    auto end = ends_.front();
    ends_.pop_front();
    return end;
  }
  bool empty() {
    const std::lock_guard lock(mutex_);
    return ends_.empty();
  }

private:
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<ChildEnd> ends_;
};

const RestartLimits quick{.max = 3, .within = 600s, .first_pause = 1ms, .longest_pause = 2ms};

SupervisedChild child_of(const std::string& script, const RestartLimits& limits = quick) {
  return {"child", [script](std::uint32_t life) {
            ProcessSpec spec{"child", {"sh", "-c", script}};
            spec.environment = {{"LIFE", std::to_string(life)}};
            return spec;
          },
          limits};
}

bool alive(pid_t pid) { return ::kill(pid, 0) == 0; }

/// The number in a file that a child writes under its final name at once.
pid_t pid_in(const std::string& path) {
  pid_t pid = 0;
  for (int i = 0; i < 60'000 && pid == 0; ++i) {
    std::ifstream(path) >> pid;
    if (pid == 0) usleep(1000);
  }
  REQUIRE(pid > 0);
  return pid;
}
std::string tells_pid(const std::string& path) { return "echo $$ > '" + path + ".part'; mv '" + path + ".part' '" + path + "'"; }

}  // namespace

TEST_CASE("supervisor: a child that dies is told and started again, with the number of its life", "[launch]") {
  const Scratch scratch;
  Ends ends;
  auto supervisor = Supervisor::create(ends.taker());
  REQUIRE(supervisor.ok());
  const auto file = scratch.path("pid");
  REQUIRE(supervisor.value()->add(child_of("echo $$ > '" + file + "'part; mv '" + file + "'part '" + file + "'$LIFE; exec sleep 1000")).value() == 0);
  const auto first = pid_in(file + "0");
  ::kill(first, SIGKILL);
  const auto end = ends.next();
  CHECK(end.pid == first);
  CHECK(end.child == 0);
  CHECK(end.how == "was ended by signal 9 (Killed)");
  CHECK(end.restarts_in == Duration(1ms));
  CHECK_FALSE(end.finished);
  CHECK_FALSE(end.quarantined);
  const auto second = pid_in(file + "1");
  CHECK(second != first);
  CHECK(alive(second));
}

TEST_CASE("supervisor: a child that ends with 0 was told to, and is not started again", "[launch]") {
  Ends ends;
  auto supervisor = Supervisor::create(ends.taker());
  REQUIRE(supervisor.ok());
  REQUIRE(supervisor.value()->add(child_of("exit 0")).ok());
  const auto end = ends.next();
  CHECK(end.finished);
  CHECK_FALSE(end.restarts_in);
  CHECK_FALSE(end.quarantined);
}

TEST_CASE("supervisor: a child that dies again and again is quarantined, the others live on", "[launch]") {
  const Scratch scratch;
  Ends ends;
  auto supervisor = Supervisor::create(ends.taker());
  REQUIRE(supervisor.ok());
  const auto file = scratch.path("pid");
  REQUIRE(supervisor.value()->add(child_of(tells_pid(file) + "; exec sleep 1000")).ok());
  const auto healthy = pid_in(file);
  REQUIRE(supervisor.value()->add(child_of("exit 7")).value() == 1);
  for (int i = 0; i < 3; ++i) {
    const auto end = ends.next();
    CHECK(end.child == 1);
    CHECK(end.end.exit_code == 7);
    CHECK(end.restarts_in);
  }
  const auto last = ends.next();
  CHECK(last.quarantined);
  CHECK_FALSE(last.restarts_in);
  CHECK(alive(healthy));
  CHECK(ends.empty());
}

TEST_CASE("supervisor: a program that is not there is an error at first", "[launch]") {
  Ends ends;
  auto supervisor = Supervisor::create(ends.taker());
  REQUIRE(supervisor.ok());
  const auto added = supervisor.value()->add({"ghost", [](std::uint32_t) { return ProcessSpec{"ghost", {"/nowhere/orrery"}}; }, quick});
  REQUIRE_FALSE(added.ok());
  CHECK(added.error().message == "ghost could not be started: /nowhere/orrery: No such file or directory");
  CHECK(ends.empty());
  // And later a death like any other.
  REQUIRE(supervisor.value()
              ->add({"ghost", [](std::uint32_t life) { return ProcessSpec{"ghost", life == 0 ? std::vector<std::string>{"false"} : std::vector<std::string>{"/nowhere/orrery"}}; }, quick})
              .ok());
  CHECK(ends.next().pid > 0);
  const auto end = ends.next();
  CHECK(end.pid == 0);
  CHECK(end.how.find("/nowhere/orrery") != std::string::npos);
}

TEST_CASE("supervisor: stop ends what it names, let_end starts nobody again, and the destructor leaves nothing", "[launch]") {
  const Scratch scratch;
  Ends ends;
  pid_t first = 0, second = 0;
  {
    auto supervisor = Supervisor::create(ends.taker());
    REQUIRE(supervisor.ok());
    REQUIRE(supervisor.value()->add(child_of(tells_pid(scratch.path("a")) + "; exec sleep 1000")).ok());
    REQUIRE(supervisor.value()->add(child_of(tells_pid(scratch.path("b")) + "; exec sleep 1000")).ok());
    first = pid_in(scratch.path("a"));
    second = pid_in(scratch.path("b"));
    supervisor.value()->stop({0}, 20s);
    CHECK_FALSE(alive(first));
    CHECK(alive(second));
    supervisor.value()->let_end();
    REQUIRE(supervisor.value()->add(child_of("exit 7")).value() == 2);
    const auto end = ends.next();
    CHECK(end.end.exit_code == 7);
    CHECK_FALSE(end.restarts_in);
    CHECK_FALSE(end.quarantined);
  }
  CHECK_FALSE(alive(second));
}

TEST_CASE("supervisor: a life's words begin where the former life's ended", "[launch]") {
  const Scratch scratch;
  Ends ends;
  auto supervisor = Supervisor::create(ends.taker());
  REQUIRE(supervisor.ok());
  const auto log = scratch.path("log");
  REQUIRE(supervisor.value()
              ->add({"child",
                     [log](std::uint32_t life) {
                       ProcessSpec spec{"child", {"sh", "-c", "echo life " + std::to_string(life) + "; exit 1"}};
                       spec.log_file = log;
                       return spec;
                     },
                     {.max = 1, .within = 600s, .first_pause = 1ms}})
              .ok());
  CHECK(ends.next().log_begin == 0);
  const auto second = ends.next();
  CHECK(second.log_begin == 7);
  CHECK(last_lines(second.log_file, 5, second.log_begin) == "life 1");
}

}  // namespace orrery::launch
