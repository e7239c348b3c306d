// SIGINT and SIGTERM as something to wait for, so that a long verb can stop its processes and tidy its files.
//
// From `create` on the two signals no longer end the process: they make `descriptor` readable. After the first
// one the default action is restored, so a second Ctrl-C ends a process that does not come to an end.

#pragma once

#include <optional>
#include <span>

#include "base/clock.hpp"
#include "base/result.hpp"

namespace orrery::launch {

/// Threads: create one per process, before other threads are started (they inherit the blocked signals); then
/// one thread waits. Child processes must unblock the signals (processes.cpp does).
class SignalWatch {
public:
  /// Fails with io_failed.
  static Result<SignalWatch> create();
  SignalWatch(SignalWatch&& other) noexcept;
  SignalWatch& operator=(SignalWatch&&) = delete;
  ~SignalWatch();

  /// Readable once a signal came; for poll loops of others, who then call `received`.
  int descriptor() const { return descriptor_; }
  /// The first signal that came, if any. Never waits.
  std::optional<int> received();

  enum class Woken { signal, readable, timed_out };
  /// Waits until a signal came (also earlier), one of `descriptors` is readable or hung up, or `limit` is over.
  Woken wait_for_signal_or(std::span<const int> descriptors, Duration limit);

private:
  explicit SignalWatch(int descriptor) : descriptor_(descriptor) {}
  int descriptor_ = -1;
  std::optional<int> received_;
};

/// 130 for SIGINT, 143 for SIGTERM.
constexpr int exit_code_of_signal(int signal) { return 128 + signal; }

}  // namespace orrery::launch
