// Named places in product code where a test or a simulation may make something go wrong.
//
//   ORRERY_FAULT_POINT("coordinator.before_epoch");   // may crash, wait or hang here
//   ORRERY_FAULT_STATUS("journal.before_fsync");      // may also leave the function with an error
//
// Cost: one relaxed load while nothing is armed and nobody records. A point exists from the moment it is first
// reached while that is so; there is no list of points at compile time. Names are `noun.before_verb`.
//
// A point is armed by count (the n-th time it is reached from now on) or by chance (a seeded draw each time), so
// the same seed and the same order of events give the same faults. Waits use the system's clock: a simulation
// under a virtual clock arms `call` and does there what it wants.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"

namespace orrery {

enum class FaultPointAction : std::uint8_t {
  crash,  // SIGKILL to this process: nothing is flushed, no destructor runs.
  fail,   // The function ends with `error`; nothing happens at a point that cannot fail.
  delay,  // Waits for `delay`.
  hang,   // Waits until the point is disarmed.
  call,   // Calls `call` and, where the point can fail, hands on what it returns.
};

struct ArmedFaultPoint {
  std::string point;
  FaultPointAction action = FaultPointAction::crash;
  std::uint64_t hit = 1;    // Fires at this hit, counted from 1 when armed; 0: by `probability` at each hit.
  std::uint64_t times = 1;  // From then on, this many hits in a row fire (or by chance this many); 0: no end.
  double probability = 0;
  std::uint64_t seed = 1;
  Duration delay{};
  Error error = {ErrorCode::io_failed, "an injected fault"};
  std::function<Status()> call = {};
};

struct FaultPointCount {
  std::string point;
  std::uint64_t reached = 0;  // While armed or recording.
  std::uint64_t fired = 0;
};

/// Arms a point; one that is armed already is armed anew. Threads: any, as for all calls here.
void arm_fault_point(ArmedFaultPoint order);
/// "POINT=ACTION", then any of "@HIT", "xTIMES" ("x0": no end), ":DURATION", in this order:
/// "journal.before_fsync=fail@3x0", "journal.before_fsync=delay:20ms". Several are separated by ','.
/// Fails with usage and what is wrong; then nothing was armed.
Status arm_fault_points(std::string_view text);
/// Waiting threads go on. Unknown points are ignored.
void disarm_fault_point(std::string_view point);
void disarm_fault_points();
/// Counts from now on even where nothing is armed, or not any more.
void record_fault_points(bool on);
/// In order of name, since the process began.
std::vector<FaultPointCount> fault_point_counts();

namespace detail {
inline std::atomic<bool> fault_points_active{false};
Status reach_fault_point(std::string_view point, bool can_fail);
}  // namespace detail

}  // namespace orrery

#define ORRERY_FAULT_POINT(point)                                                \
  do {                                                                           \
    if (::orrery::detail::fault_points_active.load(std::memory_order_relaxed))   \
      (void)::orrery::detail::reach_fault_point(point, false);                   \
  } while (false)

/// In functions that return Status or Result<T>.
#define ORRERY_FAULT_STATUS(point)                                                             \
  do {                                                                                         \
    if (::orrery::detail::fault_points_active.load(std::memory_order_relaxed))                 \
      if (auto fault_ = ::orrery::detail::reach_fault_point(point, true); !fault_.ok())        \
        return fault_.error();                                                                 \
  } while (false)
