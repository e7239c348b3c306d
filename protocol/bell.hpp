// Wakes one sleeping thread. Ringing is safe anywhere, also where a Shard is let go of.

#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "base/clock.hpp"

namespace orrery::protocol {

/// Threads: any may ring; one sleeps. A ring while nobody sleeps ends the next sleep at once.
class Bell {
public:
  void ring() {
    {
      const std::lock_guard lock(mutex_);
      rung_ = true;
    }
    condition_.notify_one();
  }
  /// Until rung, but no longer than `longest`.
  void sleep(Duration longest) {
    std::unique_lock lock(mutex_);
    condition_.wait_for(lock, longest, [&] { return rung_; });
    rung_ = false;
  }

private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool rung_ = false;
};

}  // namespace orrery::protocol
