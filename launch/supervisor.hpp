// Keeps child processes alive: starts them, sees their deaths at once, starts them again.
//
//   running ── ended with 0 ──▶ finished                     (it was told to end)
//      ▲ └──── died ──▶ pause (restart_policy.hpp) ──┐
//      └─────────────────────────────────────────────┤
//                                                    └─▶ quarantined   (too many deaths)
//
// One thread of its own starts and watches all children in one poll over their process descriptors: nothing runs while
// nothing happens, and because children die with the thread that started them (processes.hpp), it lives as long as they.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "launch/processes.hpp"
#include "launch/restart_policy.hpp"

namespace orrery::launch {

struct SupervisedChild {
  std::string name;  // For messages: "node n1".
  /// What to run in this life (0, 1, ...). Called on the supervisor's thread.
  std::function<ProcessSpec(std::uint32_t life)> command;
  RestartLimits limits;
};

/// A child's process is gone, or could not be started again.
struct ChildEnd {
  std::size_t child = 0;  // As `add` numbered it.
  pid_t pid = 0;          // 0: it could not be started.
  ProcessEnd end;
  std::string how;                      // "was ended by signal 9 (Killed)"
  std::optional<Duration> restarts_in;  // Nothing: it is not started again.
  bool finished = false;                // It ended by itself with 0.
  bool quarantined = false;             // It dies too often.
  std::string log_file;                 // Of this life; empty: none.
  std::uint64_t log_begin = 0;          // Where this life's words begin in it.
};

/// Threads: any; `add` and the rest wait for the supervisor's thread.
class Supervisor {
public:
  /// `on_end` is called on the supervisor's thread within milliseconds of a death; while it runs no other death is seen.
  static Result<std::unique_ptr<Supervisor>> create(std::function<void(const ChildEnd&)> on_end);
  /// Kills what is left.
  ~Supervisor();

  /// Starts a child and keeps it alive; returns its number: 0, 1, ... Fails as Process::start; it is not kept then.
  Result<std::size_t> add(SupervisedChild child);
  /// From now on nobody is started again.
  void let_end();
  /// Sends SIGTERM to these children and waits; what is there after `grace` is killed.
  void stop(const std::vector<std::size_t>& children, Duration grace);
  /// Waits until these have ended by themselves, at most `limit`.
  void wait(const std::vector<std::size_t>& children, Duration limit);

private:
  struct State;
  explicit Supervisor(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::launch
