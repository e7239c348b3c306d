#include "cards/copy_scheduler.hpp"

#include <algorithm>
#include <limits>

#include "base/result.hpp"

namespace orrery::cards {
namespace {

constexpr double never = std::numeric_limits<double>::infinity();
// A measurement counts half: a changed rate or time is seen after two or three.
constexpr double weight_of_new = 0.5;
constexpr double safety_min = 1, safety_max = 64;
// A wait shorter than this is a thread being woken.
constexpr double wait_seconds_min = 200e-6;

void follow(double& estimate, double measured) { estimate += weight_of_new * (measured - estimate); }

}  // namespace

UnitId CopyScheduler::add_unit(std::uint64_t bytes) {
  units_.push_back({bytes});
  return static_cast<UnitId>(units_.size() - 1);
}

void CopyScheduler::remove_unit(UnitId unit) {
  ORRERY_CHECK(units_[unit].pins == 0 && units_[unit].state != State::copying);
  units_[unit].state = State::absent;
  units_[unit].exists = false;
  // Plans come and go; what nobody uses is not kept for ever.
  while (!units_.empty() && !units_.back().exists) units_.pop_back();
}

TrackId CopyScheduler::add_track(std::vector<std::vector<UnitId>> visits) {
  for (TrackId id = 0; id < tracks_.size(); ++id)
    if (tracks_[id].exists && tracks_[id].visits == visits) return id;
  Track track;
  track.gaps.resize(visits.size());
  track.measured.resize(visits.size());
  track.visits = std::move(visits);
  const auto unused = std::find_if(tracks_.begin(), tracks_.end(), [](const Track& each) { return !each.exists; });
  if (unused == tracks_.end()) {
    tracks_.push_back(std::move(track));
    return static_cast<TrackId>(tracks_.size() - 1);
  }
  *unused = std::move(track);
  return static_cast<TrackId>(unused - tracks_.begin());
}

void CopyScheduler::remove_tracks_of(UnitId first, UnitId end) {
  const auto gone = [&](TrackId id) { return !tracks_[id].exists; };
  for (auto& track : tracks_)
    if (track.exists && !track.visits.empty() && track.visits[0][0] >= first && track.visits[0][0] < end) {
      track.exists = false;
      track.visits.clear();
    }
  for (auto& track : tracks_)
    if (track.successor && gone(*track.successor)) track.successor.reset();
  if (ended_ && gone(*ended_)) ended_.reset();
  std::erase_if(runners_, [&](const auto& each) { return gone(each.second.track); });
}

void CopyScheduler::begin_run(RunnerId id, TrackId track, std::uint32_t runs_left, Time now) {
  if (tracks_[track].visits.empty()) return;
  auto& runner = runners_[id];
  // The same track again: its last gap is the time between two runs.
  auto& last = tracks_[track];
  if (!runner.running && runner.has && runner.track == track && runner.visit + 1 == last.visits.size()) {
    const auto gap = seconds_of(now - runner.since);
    if (last.measured.back())
      follow(last.gaps.back(), gap);
    else
      last.gaps.back() = gap;
    last.measured.back() = true;
  }
  if (ended_ && *ended_ != track) tracks_[*ended_].successor = track;
  ended_.reset();
  runner = {track, 0, runs_left, true, false, now, false};
}

void CopyScheduler::arrive(RunnerId id, std::uint32_t visit, Time now) {
  auto& runner = runners_.at(id);
  auto& track = tracks_[runner.track];
  // From visit to the next one; who skips some (a program run in parts) measures nothing.
  if (runner.has && visit == runner.visit + 1) {
    const auto gap = seconds_of(now - runner.since);
    if (track.measured[runner.visit])
      follow(track.gaps[runner.visit], gap);
    else
      track.gaps[runner.visit] = gap;
    track.measured[runner.visit] = true;
  }
  runner.visit = visit;
  runner.has = false;
  runner.since = now;
}

void CopyScheduler::have(RunnerId id, std::uint32_t visit, Time now) {
  auto& runner = runners_.at(id);
  ORRERY_CHECK(runner.visit == visit);
  if (!runner.has && seconds_of(now - runner.since) > wait_seconds_min) {
    safety_ = std::min(safety_max, safety_ * 2);
    waited_ = true;
  }
  runner.has = true;
  runner.since = now;
}

void CopyScheduler::end_run(RunnerId id, Time now) {
  auto& runner = runners_.at(id);
  runner.running = false;
  if (!waited_) safety_ = std::max(safety_min, safety_ * 0.9);
  waited_ = false;
  if (runner.runs_left > 0) return;
  ended_ = runner.track;
  ended_at_ = now;
}

void CopyScheduler::remove_runner(RunnerId runner) { runners_.erase(runner); }

void CopyScheduler::copy_ended(UnitId unit, double seconds) {
  units_[unit].state = State::present;
  if (seconds > 0 && units_[unit].bytes > 0) follow(rate_, static_cast<double>(units_[unit].bytes) / seconds);
}

void CopyScheduler::add_needs(const Runner& runner, Time now, std::vector<double>& when) const {
  const auto need = [&](UnitId unit, double seconds) { when[unit] = std::min(when[unit], seconds); };
  double at = 0;
  auto track = runner.track;
  const auto all_visits = [&](const Track& one) {
    for (std::size_t i = 0; i < one.visits.size(); ++i) {
      for (const auto unit : one.visits[i]) need(unit, at);
      at += one.gaps[i];
    }
  };
  const auto& first = tracks_[track];
  auto runs_left = runner.runs_left;
  if (runner.running) {
    // What is asked for at once is pinned; then the rest of this run.
    at = runner.has ? std::max(0.0, first.gaps[runner.visit] - seconds_of(now - runner.since)) : first.gaps[runner.visit];
    if (!runner.has)
      for (const auto unit : first.visits[runner.visit]) need(unit, 0);
    for (std::size_t i = runner.visit + std::size_t{1}; i < first.visits.size(); ++i) {
      for (const auto unit : first.visits[i]) need(unit, at);
      at += first.gaps[i];
    }
  } else if (runs_left > 0) {
    at = std::max(0.0, first.gaps.back() - seconds_of(now - runner.since));
    --runs_left;
    all_visits(first);
  } else {
    return;  // See `ended_`.
  }
  if (runs_left > 0) {
    const auto begin = at;
    all_visits(first);
    at = begin + (at - begin) * runs_left;
  }
  // What follows, once round.
  std::vector<TrackId> seen = {track};
  while (tracks_[track].successor) {
    track = *tracks_[track].successor;
    const bool known = std::find(seen.begin(), seen.end(), track) != seen.end();
    all_visits(tracks_[track]);
    if (known) break;
    seen.push_back(track);
  }
}

std::vector<CopyScheduler::Need> CopyScheduler::needs(Time now) const {
  when_.assign(units_.size(), never);
  for (const auto& [id, runner] : runners_) add_needs(runner, now, when_);
  if (ended_ && tracks_[*ended_].successor) {
    Runner expected;
    expected.track = *tracks_[*ended_].successor;
    expected.runs_left = 1;
    expected.since = ended_at_;
    add_needs(expected, now, when_);
  }
  std::vector<Need> all;
  for (UnitId unit = 0; unit < units_.size(); ++unit)
    if (when_[unit] < never && units_[unit].exists) all.push_back({unit, when_[unit]});
  std::stable_sort(all.begin(), all.end(), [](const Need& a, const Need& b) { return a.seconds < b.seconds; });
  return all;
}

std::optional<UnitId> CopyScheduler::least_needed(Time now) const {
  static_cast<void>(needs(now));
  std::optional<UnitId> least;
  for (UnitId unit = 0; unit < units_.size(); ++unit)
    if (units_[unit].exists && units_[unit].state == State::present && units_[unit].pins == 0 && (!least || when_[unit] > when_[*least]))
      least = unit;
  return least;
}

CopyScheduler::Decision CopyScheduler::next(Time now, bool room) const {
  Decision decision;
  // Somebody waits: the sooner the better.
  for (UnitId unit = 0; unit < units_.size(); ++unit) {
    if (!units_[unit].exists || units_[unit].state != State::absent || units_[unit].pins == 0) continue;
    decision.unit = unit;
    if (!room) decision.victim = least_needed(now);
    const bool copying = std::any_of(units_.begin(), units_.end(), [](const Unit& each) { return each.state == State::copying; });
    decision.kind = room || decision.victim ? Decision::Kind::copy : copying ? Decision::Kind::nothing : Decision::Kind::stuck;
    return decision;
  }
  const auto all = needs(now);
  const auto first = std::find_if(all.begin(), all.end(), [&](const Need& need) { return units_[need.unit].state == State::absent; });
  if (first == all.end()) return decision;
  decision.unit = first->unit;
  if (room) {
    decision.kind = Decision::Kind::copy;
    return decision;
  }
  const auto victim = least_needed(now);
  if (!victim || when_[*victim] <= first->seconds) return decision;
  // The latest begin at which this copy, and each one after it, is in time.
  double latest = never;
  for (auto need = all.rbegin(); need != std::make_reverse_iterator(first); ++need)
    if (units_[need->unit].state == State::absent) latest = std::min(latest, need->seconds) - copy_seconds(need->unit);
  latest -= safety_ * copy_seconds(first->unit);
  if (latest > 0) {
    decision.kind = Decision::Kind::wait;
    decision.until = now + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(std::min(latest, 3600.0)));
    return decision;
  }
  decision.kind = Decision::Kind::copy;
  decision.victim = victim;
  return decision;
}

std::uint64_t CopyScheduler::look_ahead_bytes(Time now) const {
  std::uint64_t bytes = 0;
  for (const auto& need : needs(now)) {
    if (units_[need.unit].state != State::present) break;
    bytes += units_[need.unit].bytes;
  }
  return bytes;
}

}  // namespace orrery::cards
