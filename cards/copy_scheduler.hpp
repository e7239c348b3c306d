// Which weights to copy from the host next, when to begin, and what to give up for them: the mind of predictive DMA.
//
// A card's weights lie in units of a few to many megabytes. Programs use units in an order that is known: a track is the
// list of visits of one program, a visit the units that some commands in a row need. Lanes run tracks, some of them many
// times in a row (denoising steps), and one track follows another (encoder, denoiser, decoder).
//
//   known order + measured times ─▶ when each unit is needed next ─▶ copy the first that is missing, as late as is safe,
//                                                                     in the place of the one that is needed last
//
// Giving up what is needed last (Belady 1966) is optimal when the future is known, and here it is: in a loop over more
// units than fit, all but a few stay and only the rest is copied in every round. Copying late keeps that "few" small;
// copying early enough hides it. The latest safe begin follows backwards from the times of need and the measured copy
// rate; the safety before it doubles when a command had to wait for a copy that could have begun earlier, and shrinks
// slowly while nobody waits. Times and rates follow the last few measurements, so a changed rate shows after a few units.
//
// What comes after a track is learned: whatever came last time.
//
// Pure: no threads, no memory, no clock; it is told what happened and when. Cost: `next` looks at each unit and visit
// once, tens of microseconds for a thousand visits, once per copy. See also weight_stream.hpp, which acts on it.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "base/clock.hpp"

namespace orrery::cards {

using UnitId = std::uint32_t;
using TrackId = std::uint32_t;
using RunnerId = std::uint32_t;  // Who runs tracks: a lane.

/// Threads: one at a time.
class CopyScheduler {
public:
  /// Copies are expected to run at `rate` bytes per second until measured.
  explicit CopyScheduler(double rate) : rate_(rate) {}

  UnitId add_unit(std::uint64_t bytes);
  /// The unit exists no more; tracks that name it must be gone. The numbers of the last units are given again.
  void remove_unit(UnitId unit);
  /// Visits in order, none empty. The same list again gives the same track, with what was measured on it.
  TrackId add_track(std::vector<std::vector<UnitId>> visits);
  void remove_tracks_of(UnitId first, UnitId end);

  // ---- what happens ----

  /// `runner` begins a run of the track, and will run it `runs_left` more times in a row.
  void begin_run(RunnerId runner, TrackId track, std::uint32_t runs_left, Time now);
  /// It is about to need this visit's units ...
  void arrive(RunnerId runner, std::uint32_t visit, Time now);
  /// ... and has them.
  void have(RunnerId runner, std::uint32_t visit, Time now);
  void end_run(RunnerId runner, Time now);
  void remove_runner(RunnerId runner);

  /// Needed by somebody right now, present or not: neither given up nor waited with.
  void pin(UnitId unit) { ++units_[unit].pins; }
  void unpin(UnitId unit) { --units_[unit].pins; }
  void copy_begins(UnitId unit) { units_[unit].state = State::copying; }
  void copy_ended(UnitId unit, double seconds);
  void give_up(UnitId unit) { units_[unit].state = State::absent; }

  bool present(UnitId unit) const { return units_[unit].state == State::present; }
  bool pinned(UnitId unit) const { return units_[unit].pins > 0; }

  // ---- what to do ----

  struct Decision {
    enum class Kind : std::uint8_t {
      nothing,  // Until something happens.
      wait,     // Until `until`, or until something happens.
      copy,     // `unit`, in the place of `victim` where there is one.
      stuck,    // Pinned units alone fill the memory: what is asked for at once does not fit.
    };
    Kind kind = Kind::nothing;
    UnitId unit = 0;
    std::optional<UnitId> victim;
    Time until{};
  };
  /// `room`: a unit can be copied without giving one up.
  Decision next(Time now, bool room) const;

  /// The unit that is needed last among those that may be given up.
  std::optional<UnitId> least_needed(Time now) const;
  /// Bytes that are present and will be needed before the first unit that is missing.
  std::uint64_t look_ahead_bytes(Time now) const;
  /// Bytes per second of the last copies.
  double rate() const { return rate_; }

private:
  enum class State : std::uint8_t { absent, copying, present };
  struct Unit {
    std::uint64_t bytes = 0;
    State state = State::absent;
    std::uint32_t pins = 0;
    bool exists = true;
  };
  struct Track {
    std::vector<std::vector<UnitId>> visits;
    std::vector<double> gaps;  // Seconds from having visit i to arriving at the next one; the last one: to the next run.
    std::vector<bool> measured;
    std::optional<TrackId> successor;
    bool exists = true;
  };
  struct Runner {
    TrackId track = 0;
    std::uint32_t visit = 0;
    std::uint32_t runs_left = 0;
    bool running = false;  // Else between two runs, or after the last.
    bool has = false;      // The visit at hand.
    Time since{};          // Having it, or arriving at it.
    bool waited = false;   // At the visit at hand.
  };
  struct Need {
    UnitId unit;
    double seconds;  // From now.
  };

  /// Each unit that will be needed, once, by time.
  std::vector<Need> needs(Time now) const;
  void add_needs(const Runner& runner, Time now, std::vector<double>& when) const;
  double copy_seconds(UnitId unit) const { return static_cast<double>(units_[unit].bytes) / rate_; }

  std::vector<Unit> units_;
  std::vector<Track> tracks_;
  std::map<RunnerId, Runner> runners_;
  std::optional<TrackId> ended_;  // The track whose last run ended most recently, until another begins.
  Time ended_at_{};
  double rate_;
  double safety_ = 1;  // In copies of a unit.
  bool waited_ = false;
  mutable std::vector<double> when_;  // By unit; kept to save allocations.
};

}  // namespace orrery::cards
