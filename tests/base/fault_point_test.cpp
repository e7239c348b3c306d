// Fault points: nothing armed costs and does nothing; by count and by seed; waits end; crashes are crashes.

#include "base/fault_point.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include <catch2/catch.hpp>

using namespace orrery;

namespace {

struct Clean {
  ~Clean() {
    disarm_fault_points();
    record_fault_points(false);
  }
};

Status write_once() {
  ORRERY_FAULT_STATUS("test.before_write");
  return Done{};
}
void step_once() { ORRERY_FAULT_POINT("test.before_step"); }

FaultPointCount count_of(const std::string& point) {
  for (const auto& count : fault_point_counts())
    if (count.point == point) return count;
  return {point};
}

std::string fired_by_chance(std::uint64_t seed) {
  arm_fault_point({.point = "test.before_write", .action = FaultPointAction::fail, .hit = 0, .times = 0, .probability = 0.3, .seed = seed});
  std::string fired;
  for (int i = 0; i < 64; ++i) fired += write_once().ok() ? '.' : 'X';
  return fired;
}

}  // namespace

TEST_CASE("fault point: what is not armed does nothing and is not counted", "[base][fault]") {
  const Clean clean;
  const auto before = count_of("test.before_write").reached;
  CHECK(write_once().ok());
  CHECK(count_of("test.before_write").reached == before);
  record_fault_points(true);
  CHECK(write_once().ok());
  CHECK(count_of("test.before_write").reached == before + 1);
}

TEST_CASE("fault point: the n-th hit after arming fails, once or as often as asked", "[base][fault]") {
  const Clean clean;
  arm_fault_point({.point = "test.before_write", .action = FaultPointAction::fail, .hit = 3, .error = {ErrorCode::io_failed, "disk full"}});
  CHECK(write_once().ok());
  CHECK(write_once().ok());
  const auto third = write_once();
  REQUIRE_FALSE(third.ok());
  CHECK(third.error().code == ErrorCode::io_failed);
  CHECK(third.error().message == "disk full at test.before_write");
  CHECK(write_once().ok());

  REQUIRE(arm_fault_points("test.before_write=fail@2x2").ok());
  std::string seen;
  for (int i = 0; i < 5; ++i) seen += write_once().ok() ? '.' : 'X';
  CHECK(seen == ".XX..");
  REQUIRE(arm_fault_points("test.before_write=failx0").ok());
  for (int i = 0; i < 5; ++i) CHECK_FALSE(write_once().ok());
  disarm_fault_point("test.before_write");
  CHECK(write_once().ok());
}

TEST_CASE("fault point: chance is drawn from the seed", "[base][fault]") {
  const Clean clean;
  const auto first = fired_by_chance(7);
  CHECK(first == fired_by_chance(7));
  CHECK(first != fired_by_chance(8));
  CHECK(first.find('X') != std::string::npos);
  CHECK(first.find('.') != std::string::npos);
}

TEST_CASE("fault point: a point that cannot fail does not count as fired", "[base][fault]") {
  const Clean clean;
  const auto before = count_of("test.before_step");
  arm_fault_point({.point = "test.before_step", .action = FaultPointAction::fail, .times = 0});
  step_once();
  CHECK(count_of("test.before_step").reached == before.reached + 1);
  CHECK(count_of("test.before_step").fired == before.fired);
}

TEST_CASE("fault point: a hang lasts until it is disarmed", "[base][fault]") {
  const Clean clean;
  const auto before = count_of("test.before_step").fired;
  arm_fault_point({.point = "test.before_step", .action = FaultPointAction::hang});
  std::atomic<bool> passed{false};
  std::thread thread([&] {
    step_once();
    passed = true;
  });
  while (count_of("test.before_step").fired == before) std::this_thread::yield();
  CHECK_FALSE(passed);
  disarm_fault_points();
  thread.join();
  CHECK(passed);
}

TEST_CASE("fault point: a call may arm, reach and fail", "[base][fault]") {
  const Clean clean;
  int calls = 0;
  arm_fault_point({.point = "test.before_write", .action = FaultPointAction::call, .times = 0, .call = [&]() -> Status {
                     ++calls;
                     step_once();
                     disarm_fault_point("test.before_write");
                     return Error{ErrorCode::peer_lost, "node n1 crashed"};
                   }});
  const auto status = write_once();
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::peer_lost);
  CHECK(write_once().ok());
  CHECK(calls == 1);
}

TEST_CASE("fault point: a crash kills the process at once", "[base][fault]") {
  const auto child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    arm_fault_point({.point = "test.before_step", .action = FaultPointAction::crash, .hit = 2});
    step_once();
    step_once();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGKILL);
}

TEST_CASE("fault point: text that is no order is refused, and arms nothing", "[base][fault]") {
  const Clean clean;
  for (const auto* bad : {"x", "=crash", "p=", "p=boom", "p=crash@", "p=crash@0", "p=crash@1y", "p=delay", "p=delay:5", "p=crash:5ms",
                          "p=failx", "p=hang@99999999999999999999999", "test.before_write=fail,p=boom", "p=delay:9h"}) {
    CAPTURE(bad);
    const auto status = arm_fault_points(bad);
    CHECK_FALSE(status.ok());
  }
  CHECK(write_once().ok());
  CHECK(arm_fault_points("").ok());
  CHECK(arm_fault_points("test.before_step=delay@2x3:1us,test.before_write=fail").ok());
  CHECK_FALSE(write_once().ok());
}
