#include "base/fault_point.hpp"

#include <csignal>
#include <charconv>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>

#include "base/random.hpp"
#include "base/units.hpp"

namespace orrery {
namespace {

struct Armed {
  ArmedFaultPoint order;
  Random random;
  std::uint64_t hits = 0;   // Since armed.
  std::uint64_t fired = 0;  // Since armed.
  std::uint64_t number = 0;  // Of the arming: a waiting thread goes on when another stands here.

  bool fires() {
    ++hits;
    if (order.times != 0 && fired == order.times) return false;
    const bool now = order.hit > 0 ? hits >= order.hit : random.uniform() < order.probability;
    if (now) ++fired;
    return now;
  }
};

// The one place of state: points are named from anywhere, also from threads that outlive main.
struct Registry {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, Armed, std::less<>> armed;
  std::map<std::string, FaultPointCount, std::less<>> counts;
  bool recording = false;
  std::uint64_t armings = 0;

  void refresh() { detail::fault_points_active.store(recording || !armed.empty(), std::memory_order_relaxed); }
};

Registry& registry() {
  static auto* const only = new Registry;
  return *only;
}

Error usage(std::string_view text, const std::string& what) {
  return {ErrorCode::usage, "fault point '" + std::string(text.substr(0, 64)) + "' " + what,
          "write POINT=crash|fail|delay|hang[@HIT][xTIMES][:DURATION], e.g. 'journal.before_fsync=fail@3'"};
}

Result<ArmedFaultPoint> parse(std::string_view text) {
  ArmedFaultPoint order;
  const auto equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0) return usage(text, "names no action");
  order.point = std::string(text.substr(0, equals));
  auto rest = text.substr(equals + 1);
  const auto word = rest.substr(0, rest.find_first_of("@x:"));
  if (word == "crash") order.action = FaultPointAction::crash;
  else if (word == "fail") order.action = FaultPointAction::fail;
  else if (word == "delay") order.action = FaultPointAction::delay;
  else if (word == "hang") order.action = FaultPointAction::hang;
  else return usage(text, "has an unknown action");
  rest.remove_prefix(word.size());
  const auto number = [&](char mark, std::uint64_t& into) -> bool {
    if (rest.empty() || rest.front() != mark) return true;
    const auto read = std::from_chars(rest.data() + 1, rest.data() + rest.size(), into);
    if (read.ec != std::errc()) return false;
    rest.remove_prefix(static_cast<std::size_t>(read.ptr - rest.data()));
    return true;
  };
  if (!number('@', order.hit) || order.hit == 0) return usage(text, "has no count from 1 after '@'");
  if (!number('x', order.times)) return usage(text, "has no count after 'x'");
  const bool timed = !rest.empty() && rest.front() == ':';
  if (timed) {
    ORRERY_TRY(delay, parse_seconds(rest.substr(1)));
    if (delay > 3600) return usage(text, "waits for more than an hour");
    order.delay = Duration(static_cast<std::int64_t>(delay * 1e9));
    rest = {};
  }
  if (!rest.empty()) return usage(text, "has '" + std::string(rest.substr(0, 32)) + "' at its end");
  if (timed != (order.action == FaultPointAction::delay)) return usage(text, "needs a duration for 'delay', and only for that");
  return order;
}

}  // namespace

void arm_fault_point(ArmedFaultPoint order) {
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  auto name = order.point;
  Random random(order.seed);
  all.armed.insert_or_assign(std::move(name), Armed{std::move(order), random, 0, 0, ++all.armings});
  all.refresh();
  all.changed.notify_all();
}

Status arm_fault_points(std::string_view text) {
  std::vector<ArmedFaultPoint> orders;
  while (!text.empty()) {
    const auto comma = text.find(',');
    ORRERY_TRY(order, parse(text.substr(0, comma)));
    orders.push_back(std::move(order));
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
  }
  for (auto& order : orders) arm_fault_point(std::move(order));
  return Done{};
}

void disarm_fault_point(std::string_view point) {
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  if (const auto found = all.armed.find(point); found != all.armed.end()) all.armed.erase(found);
  all.refresh();
  all.changed.notify_all();
}

void disarm_fault_points() {
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  all.armed.clear();
  all.refresh();
  all.changed.notify_all();
}

void record_fault_points(bool on) {
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  all.recording = on;
  all.refresh();
}

std::vector<FaultPointCount> fault_point_counts() {
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  std::vector<FaultPointCount> counts;
  for (const auto& [name, count] : all.counts) counts.push_back(count);
  return counts;
}

namespace detail {

Status reach_fault_point(std::string_view point, bool can_fail) {
  auto& all = registry();
  std::unique_lock lock(all.mutex);
  auto count = all.counts.find(point);
  if (count == all.counts.end()) count = all.counts.emplace(point, FaultPointCount{std::string(point)}).first;
  ++count->second.reached;
  const auto found = all.armed.find(point);
  if (found == all.armed.end()) return Done{};
  auto& armed = found->second;
  if (armed.order.action == FaultPointAction::fail && !can_fail) return Done{};
  if (!armed.fires()) return Done{};
  ++count->second.fired;
  switch (armed.order.action) {
    case FaultPointAction::crash: ::raise(SIGKILL); break;
    case FaultPointAction::fail: {
      auto error = armed.order.error;
      error.message += " at " + std::string(point);
      return error;
    }
    case FaultPointAction::delay:
    case FaultPointAction::hang: {
      const auto number = armed.number;
      const auto over = [&] {
        const auto now = all.armed.find(point);
        return now == all.armed.end() || now->second.number != number;
      };
      if (armed.order.action == FaultPointAction::hang) all.changed.wait(lock, over);
      else all.changed.wait_for(lock, armed.order.delay, over);
      break;
    }
    case FaultPointAction::call: {
      const auto call = armed.order.call;
      lock.unlock();  // It may reach, arm and disarm points itself.
      return call ? call() : Status(Done{});
    }
  }
  return Done{};
}

}  // namespace detail
}  // namespace orrery
