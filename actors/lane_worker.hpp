// A thread that does one stage's work on one card, one item after the other.
//
// Kernels and waits for neighbours must not block CAF's workers, so each (card, stage) has its own thread; it
// sleeps while there is nothing to do. Stages on one card thus never wait for each other's neighbours.

#pragma once

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "base/clock.hpp"

namespace orrery::actors {

/// Threads: `post` from any.
class LaneWorker {
public:
  LaneWorker() : thread_([this] { work(); }) {}
  /// Finishes the item at hand, drops the others.
  ~LaneWorker() {
    ask_to_end();
    thread_.join();
  }
  LaneWorker(const LaneWorker&) = delete;
  LaneWorker& operator=(const LaneWorker&) = delete;

  /// As the destructor does, without waiting.
  void ask_to_end() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
  }
  /// Waits until the thread has nothing more to do, at most `limit`; whether it came to that.
  bool ended(Duration limit) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::max(limit, Duration{}), [&] { return ended_; });
  }

  /// Bounded by its callers: a stage has at most two items under way per card.
  void post(std::function<void()> item) {
    {
      const std::lock_guard lock(mutex_);
      items_.push_back(std::move(item));
    }
    changed_.notify_one();
  }

private:
  void work() {
    for (;;) {
      std::function<void()> item;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopping_ || !items_.empty(); });
        if (stopping_) {
          ended_ = true;
          changed_.notify_all();
          return;
        }
        item = std::move(items_.front());
        items_.pop_front();
      }
      item();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> items_;  // Guarded by mutex_.
  bool stopping_ = false;                    // Guarded by mutex_.
  bool ended_ = false;                       // Guarded by mutex_.
  std::thread thread_;
};

}  // namespace orrery::actors
