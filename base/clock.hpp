// Time as product code sees it: handed in, never read from the system directly.
//
// Hard logic takes `Time now`; what must ask for itself holds a Clock&. Tests turn a ManualClock by hand.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace orrery {

using Duration = std::chrono::nanoseconds;
/// Nanoseconds since an arbitrary start; never goes back.
using Time = std::chrono::time_point<std::chrono::steady_clock, Duration>;

inline double seconds_of(Duration duration) { return std::chrono::duration<double>(duration).count(); }

/// Threads: any.
class Clock {
public:
  virtual ~Clock() = default;
  virtual Time now() const = 0;
};

class SteadyClock final : public Clock {
public:
  Time now() const override { return std::chrono::time_point_cast<Duration>(std::chrono::steady_clock::now()); }
};

class ManualClock final : public Clock {
public:
  Time now() const override { return Time(Duration(nanoseconds_.load())); }
  void advance(Duration by) { nanoseconds_ += by.count(); }

private:
  std::atomic<std::int64_t> nanoseconds_{1'000'000'000};
};

}  // namespace orrery
