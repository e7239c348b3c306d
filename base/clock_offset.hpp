// How far another machine's clock is ahead of ours, from round trips.
//
//   ours      sent ──────────────────────── received
//                  \                       /
//   theirs          ──────── remote ───────
//
// The remote reading was made somewhere between sending and receiving, so their clock is ahead of ours by
// remote - (sent + received) / 2, wrong by at most half the round trip, whatever the two ways took. The
// quickest round trip is the best one (as in NTP); the others only say that it was no accident.
//
// Over long times two clocks drift apart. Round trips are put into windows of a second; where the best ones of the first
// and of the last third of all windows differ by more than their errors can explain, the offset is a line through both.
//
// Plain values; threads: one.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <vector>

#include "base/clock.hpp"

namespace orrery {

/// All in nanoseconds: `sent` and `received` by our clock, `remote` by theirs.
struct RoundTrip {
  std::int64_t sent = 0, remote = 0, received = 0;
};

struct ClockOffset {
  std::int64_t offset = 0;  // Theirs minus ours, at `at`.
  std::int64_t error = 0;   // At most.
  std::int64_t at = 0;      // By our clock.
  double drift = 0;         // Nanoseconds of offset per nanosecond of ours.
  std::uint64_t round_trips = 0;

  /// A reading of their clock as ours would have read.
  std::int64_t to_ours(std::int64_t theirs) const {
    const auto near = theirs - offset;
    return near - static_cast<std::int64_t>(drift * static_cast<double>(near - at));
  }
};

class ClockOffsetEstimator {
public:
  /// One that came back before it was sent is ignored.
  void add(const RoundTrip& trip) {
    if (trip.received < trip.sent) return;
    ++count_;
    const auto window = trip.sent / window_nanoseconds;
    if (best_.empty() || best_.back().sent / window_nanoseconds != window)
      best_.push_back(trip);
    else if (error_of(trip) < error_of(best_.back()))
      best_.back() = trip;
  }

  /// Nothing before the first round trip.
  std::optional<ClockOffset> estimate() const {
    if (best_.empty()) return std::nullopt;
    const auto best_of = [](auto begin, auto end) {
      return *std::min_element(begin, end, [](const RoundTrip& a, const RoundTrip& b) { return error_of(a) < error_of(b); });
    };
    const auto best = best_of(best_.begin(), best_.end());
    ClockOffset result{offset_of(best), error_of(best), middle_of(best), 0, count_};
    const auto third = static_cast<std::ptrdiff_t>(best_.size() / 3);
    if (third < 3) return result;
    const auto first = best_of(best_.begin(), best_.begin() + third), last = best_of(best_.end() - third, best_.end());
    const auto moved = offset_of(last) - offset_of(first);
    const auto error = error_of(first) + error_of(last);
    if (std::abs(moved) <= error) return result;
    result.at = middle_of(first);
    result.offset = offset_of(first);
    result.error = std::max(error_of(first), error_of(last));
    result.drift = static_cast<double>(moved) / static_cast<double>(middle_of(last) - middle_of(first));
    return result;
  }

private:
  static constexpr std::int64_t window_nanoseconds = 1'000'000'000;
  static std::int64_t middle_of(const RoundTrip& trip) { return trip.sent + (trip.received - trip.sent) / 2; }
  static std::int64_t offset_of(const RoundTrip& trip) { return trip.remote - middle_of(trip); }
  /// Rounded up, as the middle is rounded down.
  static std::int64_t error_of(const RoundTrip& trip) { return (trip.received - trip.sent + 1) / 2; }

  std::vector<RoundTrip> best_;  // Of each window.
  std::uint64_t count_ = 0;
};

}  // namespace orrery
