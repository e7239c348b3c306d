#include "launch/restart_policy.hpp"

#include <algorithm>

namespace orrery::launch {

std::optional<Duration> RestartPolicy::on_death(Time now) {
  while (!deaths_.empty() && now - deaths_.front() > limits_.within) deaths_.pop_front();
  deaths_.push_back(now);
  quarantined_ = quarantined_ || deaths_.size() > limits_.max;
  if (quarantined_) return {};
  auto pause = limits_.first_pause;
  for (std::size_t i = 1; i < deaths_.size() && pause < limits_.longest_pause; ++i) pause *= 2;
  return std::min(pause, limits_.longest_pause);
}

}  // namespace orrery::launch
