#include "cards/weight_stream.hpp"

#include <algorithm>

#include "base/units.hpp"

namespace orrery::cards {
namespace {

// Units are a part of the card's memory that is small enough to leave a choice, and large enough to copy at full rate.
constexpr std::uint64_t units_in_memory = 32;
constexpr double rate_assumed = 2e9;

std::string text_of(std::uint64_t bytes) { return text_of_bytes(static_cast<double>(bytes)); }

}  // namespace

WeightStream::WeightStream(std::string card, DeviceMemory& memory, double bandwidth)
    : card_(std::move(card)),
      copy_row_(trace::track(card_ + " copy in")),
      wait_row_(trace::track(card_ + " compute")),
      memory_(memory),
      bandwidth_(bandwidth),
      scheduler_(bandwidth > 0 ? bandwidth : rate_assumed),
      copier_([this] { run(); }) {}

WeightStream::~WeightStream() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  copier_.join();
}

Status WeightStream::add(std::shared_ptr<const WeightSet> set, std::shared_ptr<const WeightSource> source) {
  ORRERY_TRY_DONE(check(*set, *source));
  remove(set->component);
  std::unique_lock lock(mutex_);
  ORRERY_CHECK(lanes_.empty());
  std::uint64_t largest = 64;
  for (const auto& spec : set->weights) largest = std::max(largest, bytes_on_card(spec));
  const auto target = std::max(largest, memory_.budget() / units_in_memory);
  if (target * 3 > memory_.budget())
    return Error{ErrorCode::card_memory_exhausted,
                 "card " + card_ + " cannot stream the weights of " + set->component + ": three parts of " + text_of(target) +
                     " do not fit " + text_of(memory_.budget()),
                 "give the card more memory or spread the model over more cards"};

  auto component = std::make_unique<Component>();
  component->set = set;
  component->source = std::move(source);
  component->unit_of.resize(set->weights.size());
  component->placed.resize(set->weights.size());
  component->first_unit = static_cast<UnitId>(units_.size());
  for (WeightId id = 0; id < set->weights.size(); ++id) {
    const auto bytes = bytes_on_card(set->weights[id]);
    const bool fits = units_.size() > component->first_unit && units_.back().bytes + bytes <= target;
    if (!fits) units_.push_back({component.get(), id, id, 0});
    units_.back().end = id + 1;
    units_.back().bytes += bytes;
    component->unit_of[id] = static_cast<UnitId>(units_.size() - 1);
  }
  component->end_unit = static_cast<UnitId>(units_.size());
  for (auto unit = component->first_unit; unit < component->end_unit; ++unit) {
    ORRERY_CHECK(scheduler_.add_unit(units_[unit].bytes) == unit);
    // All slots are of one size: those of a new size begin empty.
    if (units_[unit].bytes <= slot_bytes_) continue;
    slot_bytes_ = units_[unit].bytes;
    arrived_.wait(lock, [&] {
      for (UnitId other = 0; other < unit; ++other)
        if (units_[other].slot != SIZE_MAX && !scheduler_.present(other)) return false;
      return true;
    });
    for (UnitId other = 0; other < units_.size(); ++other)
      if (units_[other].slot != SIZE_MAX) give_up(other);
    slots_.clear();
  }
  slots_min_ = std::max<std::size_t>(slots_min_, 3);
  components_[set->component] = std::move(component);
  return Done{};
}

bool WeightStream::remove(const std::string& component) {
  std::unique_lock lock(mutex_);
  const auto found = components_.find(component);
  if (found == components_.end()) return false;
  auto& gone = *found->second;
  scheduler_.remove_tracks_of(gone.first_unit, gone.end_unit);
  arrived_.wait(lock, [&] {
    for (auto unit = gone.first_unit; unit < gone.end_unit; ++unit)
      if (units_[unit].slot != SIZE_MAX && !scheduler_.present(unit)) return false;
    return true;
  });
  for (auto unit = gone.first_unit; unit < gone.end_unit; ++unit) {
    if (units_[unit].slot != SIZE_MAX) give_up(unit);
    scheduler_.remove_unit(unit);
    units_[unit].component = nullptr;
  }
  while (!units_.empty() && units_.back().component == nullptr) units_.pop_back();  // As the scheduler does.
  components_.erase(found);
  return true;
}

std::shared_ptr<const WeightSet> WeightStream::weights_of(const std::string& component) const {
  const std::lock_guard lock(mutex_);
  const auto found = components_.find(component);
  return found == components_.end() ? nullptr : found->second->set;
}

void WeightStream::open_lane(LaneId id, std::shared_ptr<const ProgramSet> programs) {
  const std::lock_guard lock(mutex_);
  auto& lane = lanes_[id];
  lane.component = components_.at(programs->component).get();
  for (const auto& program : programs->programs) {
    LaneProgram made;
    std::vector<std::vector<UnitId>> visits;
    for (std::uint32_t i = 0; i < program.commands.size(); ++i) {
      std::vector<UnitId> units;
      for (const auto weight : program.commands[i].weights) units.push_back(lane.component->unit_of[weight]);
      std::sort(units.begin(), units.end());
      units.erase(std::unique(units.begin(), units.end()), units.end());
      if (!units.empty()) {
        if (visits.empty() || visits.back() != units) visits.push_back(units);
        made.last_visited = i;
        slots_min_ = std::max(slots_min_, units.size() + 1);
      }
      made.units.push_back(std::move(units));
      made.visit.push_back(visits.empty() ? 0 : static_cast<std::uint32_t>(visits.size() - 1));
    }
    made.track = scheduler_.add_track(std::move(visits));
    lane.by_program.push_back(std::move(made));
  }
  lane.programs = std::move(programs);
}

void WeightStream::close_lane(LaneId id) {
  const std::lock_guard lock(mutex_);
  if (lanes_.erase(id) > 0) scheduler_.remove_runner(id);
  changed_.notify_all();
}

void WeightStream::expect(LaneId id, std::uint32_t program, std::uint32_t runs_left) {
  const std::lock_guard lock(mutex_);
  const auto found = lanes_.find(id);
  if (found == lanes_.end() || program >= found->second.by_program.size()) return;
  auto& lane = found->second;
  lane.program = UINT32_MAX;
  lane.visit = UINT32_MAX;
  // A program without weights leaves the card's copies to others.
  const auto& made = lane.by_program[program];
  if (std::all_of(made.units.begin(), made.units.end(), [](const auto& units) { return units.empty(); })) return;
  lane.program = program;
  scheduler_.begin_run(id, made.track, runs_left, clock_.now());
  changed_.notify_all();
}

Status WeightStream::acquire(LaneId id, std::uint32_t program, std::uint32_t command, std::vector<Weight>& weights) {
  const auto& ids = [&]() -> const std::vector<WeightId>& {
    const std::lock_guard lock(mutex_);
    return lane_of(id).programs->programs[program].commands[command].weights;
  }();
  weights.clear();
  if (ids.empty()) return Done{};
  std::unique_lock turn(turn_, std::defer_lock);
  std::unique_lock lock(mutex_);
  auto& lane = lane_of(id);
  auto& made = lane.by_program[program];
  if (lane.program != program) {  // Nobody said so before.
    scheduler_.begin_run(id, made.track, 0, clock_.now());
    lane.program = program;
    lane.visit = UINT32_MAX;
  }
  const auto& units = made.units[command];
  const auto visit = made.visit[command];
  const auto before = clock_.now();
  const bool arrives = lane.visit != visit;
  if (arrives) {
    scheduler_.arrive(id, visit, before);
    use_.look_ahead_bytes = scheduler_.look_ahead_bytes(before);
    use_.look_ahead_bytes_max = std::max(use_.look_ahead_bytes_max, use_.look_ahead_bytes);
    ++use_.visits;
    if (trace::enabled()) trace::counter(card_ + " weights ahead", use_.look_ahead_bytes);
  }
  const auto present = [&] {
    return std::all_of(units.begin(), units.end(), [&](UnitId unit) { return scheduler_.present(unit); });
  };
  if (!present()) {
    lock.unlock();
    turn.lock();
    lock.lock();
  }
  for (const auto unit : units) scheduler_.pin(unit);
  auto& failure = lane.component->failure;
  if (!present()) {
    ++use_.late;
    failure.reset();  // A read that failed is tried again by the next who needs it.
    changed_.notify_all();
    arrived_.wait(lock, [&] { return present() || failure.has_value(); });
    const auto until = clock_.now();
    const auto waited = until - before;
    trace::complete(wait_row_, trace::Category::wait, "weights", before, until);
    lane.stalled += waited;
    use_.stall_seconds += seconds_of(waited);
    if (!present()) {
      for (const auto unit : units) scheduler_.unpin(unit);
      return *failure;
    }
  }
  lane.visit = visit;
  scheduler_.have(id, visit, clock_.now());
  ++commands_running_;
  for (const auto weight : ids) weights.push_back(lane.component->placed[weight].weight);
  changed_.notify_all();
  return Done{};
}

void WeightStream::release(LaneId id, std::uint32_t program, std::uint32_t command) {
  const std::lock_guard lock(mutex_);
  auto& lane = lane_of(id);
  const auto& made = lane.by_program[program];
  if (made.units[command].empty()) return;
  for (const auto unit : made.units[command]) scheduler_.unpin(unit);
  --commands_running_;
  if (command == made.last_visited) {
    scheduler_.end_run(id, clock_.now());
    lane.program = UINT32_MAX;
    lane.visit = UINT32_MAX;
  }
  changed_.notify_all();
  arrived_.notify_all();
}

Result<DeviceMemory::Block> WeightStream::make_room(std::uint64_t bytes, const std::string& what) {
  std::unique_lock lock(mutex_);
  while (true) {
    auto block = memory_.reserve(bytes, what);
    if (block.ok() || slots_.size() <= slots_min_ || memory_.budget() < bytes) {
      making_room_ = false;
      changed_.notify_all();
      return block;
    }
    making_room_ = true;
    // The slot at the lowest address borders on what is free; who uses it soon lets go.
    const auto lowest = std::min_element(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) {
      return a.block.bytes().data() < b.block.bytes().data();
    });
    if (lowest->unit && (scheduler_.pinned(*lowest->unit) || !scheduler_.present(*lowest->unit))) {
      arrived_.wait(lock);
      continue;
    }
    if (lowest->unit) give_up(*lowest->unit);
    const auto index = static_cast<std::size_t>(lowest - slots_.begin());
    std::swap(slots_[index], slots_.back());
    if (slots_[index].unit) units_[*slots_[index].unit].slot = index;
    slots_.pop_back();
  }
}

StreamUse WeightStream::use() const {
  const std::lock_guard lock(mutex_);
  auto use = use_;
  use.rate = scheduler_.rate();
  return use;
}

Duration WeightStream::stalled(LaneId lane) const {
  const std::lock_guard lock(mutex_);
  const auto found = lanes_.find(lane);
  return found == lanes_.end() ? Duration{} : found->second.stalled;
}

// ---- the copying thread ------------------------------------------------------------------------------------------

std::optional<std::size_t> WeightStream::empty_slot() {
  const auto address = [&](std::size_t i) { return slots_[i].block.bytes().data(); };
  std::optional<std::size_t> empty;
  std::size_t lowest = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].unit && (!empty || address(i) > address(*empty))) empty = i;
    if (address(i) < address(lowest)) lowest = i;
  }
  if (making_room_ && empty && *empty == lowest) empty.reset();
  if (empty || making_room_ || slot_bytes_ == 0) return empty;
  auto block = memory_.reserve_high(slot_bytes_);
  if (!block) return std::nullopt;
  slots_.push_back({std::move(*block), std::nullopt});
  return slots_.size() - 1;
}

void WeightStream::give_up(UnitId unit) {
  auto& what = units_[unit];
  scheduler_.give_up(unit);
  slots_[what.slot].unit.reset();
  what.slot = SIZE_MAX;
  for (auto id = what.first; id < what.end; ++id) what.component->placed[id] = {};
}

void WeightStream::pace(std::uint64_t bytes) {
  if (bandwidth_ <= 0) return;
  // Since the copy began: what packing takes goes by while the link would be busy.
  paced_until_ += std::chrono::duration_cast<Duration>(std::chrono::duration<double>(static_cast<double>(bytes) / bandwidth_));
  std::this_thread::sleep_until(paced_until_);
}

void WeightStream::copy(UnitId unit, std::size_t slot, std::unique_lock<std::mutex>& lock) {
  auto& what = units_[unit];
  auto& component = *what.component;
  what.slot = slot;
  slots_[slot].unit = unit;
  scheduler_.copy_begins(unit);
  const auto memory = slots_[slot].block.bytes();
  lock.unlock();
  const trace::Span span(copy_row_, trace::Category::copy, component.set->weights[what.first].tensor, {.bytes = what.bytes});
  const auto begun = clock_.now();
  paced_until_ = std::max(paced_until_, begun);
  std::vector<PlacedWeight> placed;
  std::optional<Error> failure;
  std::uint64_t offset = 0;
  for (auto id = what.first; id < what.end && !failure; ++id) {
    const auto& spec = component.set->weights[id];
    const auto bytes = bytes_on_card(spec);
    auto one = place(spec, *component.source, memory.subspan(offset, bytes), [&](std::uint64_t more) {
      pace(more);
      return true;
    });
    if (one.ok())
      placed.push_back(std::move(one).value());
    else
      failure = one.error();
    offset += bytes;
  }
  const auto seconds = seconds_of(clock_.now() - begun);
  lock.lock();
  if (failure) {
    component.failure = std::move(failure);
    give_up(unit);
  } else {
    std::move(placed.begin(), placed.end(), component.placed.begin() + what.first);
    scheduler_.copy_ended(unit, seconds);
    use_.copied_bytes += what.bytes;
    use_.copy_seconds += seconds;
    ++use_.copies;
  }
  arrived_.notify_all();
}

void WeightStream::run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    const auto slot = empty_slot();
    auto decision = scheduler_.next(clock_.now(), slot.has_value());
    using Kind = CopyScheduler::Decision::Kind;
    if (decision.kind == Kind::stuck && commands_running_ > 0) decision.kind = Kind::nothing;
    switch (decision.kind) {
      case Kind::nothing: changed_.wait(lock); break;
      case Kind::wait: changed_.wait_for(lock, decision.until - clock_.now()); break;
      case Kind::stuck: {
        auto& component = *units_[decision.unit].component;
        component.failure = Error{ErrorCode::card_memory_exhausted,
                                  "card " + card_ + " cannot hold what one command of " + component.set->component +
                                      " needs at once: there is room for " + std::to_string(slots_.size()) + " parts of " +
                                      text_of(slot_bytes_),
                                  "give the card more memory or spread the model over more cards"};
        arrived_.notify_all();
        changed_.wait(lock);
        break;
      }
      case Kind::copy: {
        // A component whose files cannot be read is not tried again until somebody needs it.
        if (units_[decision.unit].component->failure) {
          changed_.wait(lock);
          break;
        }
        auto place = slot;
        if (!place) {
          place = units_[*decision.victim].slot;
          give_up(*decision.victim);
        }
        copy(decision.unit, *place, lock);
        break;
      }
    }
  }
}

}  // namespace orrery::cards
