// Whether a child that died is started again, and when.
//
// After the first death at once (50 ms), then twice as late each time, up to 2 s. More than `max` deaths within `within`
// are a storm: whatever kills it will do so again, so it is left alone. Deaths that lie longer back are forgotten.
//
// Plain code that is handed the time. Threads: one.

#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "base/clock.hpp"

namespace orrery::launch {

struct RestartLimits {
  std::uint32_t max = 5;
  Duration within = std::chrono::seconds(60);
  Duration first_pause = std::chrono::milliseconds(50);
  Duration longest_pause = std::chrono::seconds(2);
};

class RestartPolicy {
public:
  explicit RestartPolicy(const RestartLimits& limits) : limits_(limits) {}

  /// How long to wait before the next start. Nothing: it is quarantined, from now on.
  std::optional<Duration> on_death(Time now);
  bool quarantined() const { return quarantined_; }
  /// Deaths within the last `within`.
  std::size_t deaths() const { return deaths_.size(); }

private:
  RestartLimits limits_;
  std::deque<Time> deaths_;  // Oldest first.
  bool quarantined_ = false;
};

}  // namespace orrery::launch
