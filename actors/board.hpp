// Where actors leave what a plain thread waits for: a value under a lock, and a bell.

#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "base/clock.hpp"

namespace orrery::actors {

/// Threads: any.
template <class T>
class Board {
public:
  template <class Change>
  void update(Change change) {
    {
      const std::lock_guard lock(mutex_);
      change(value_);
    }
    changed_.notify_all();
  }
  /// Waits until `ready(value)` or the time is up; returns whether it was ready.
  template <class Ready>
  bool wait_for(Duration timeout, Ready ready) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return ready(value_); });
  }
  T get() const {
    const std::lock_guard lock(mutex_);
    return value_;
  }

private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  T value_{};  // Guarded by mutex_.
};

}  // namespace orrery::actors
