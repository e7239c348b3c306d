#include "protocol/shm_link.hpp"

#include <algorithm>
#include <cstring>

namespace orrery::protocol {
namespace {

constexpr std::uint64_t record_unit = 64;
// Slots begin at pages: a copy never shares a line with another.
constexpr std::uint64_t slot_unit = 4096;
// Of bytes that were copied lately and may be asked for again, for another peer.
constexpr std::size_t recent_max = 8;
// Lent slots that are looked at whenever one is wanted.
constexpr std::size_t look_at = 32;

std::uint64_t rounded(std::uint64_t bytes, std::uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

// --- Lanes.

std::optional<ShmPlace> ShmLanes::take() {
  const std::lock_guard lock(mutex_);
  std::uint32_t free = 0;
  while (used_.contains(free)) ++free;
  if (free >= shm_lanes) return std::nullopt;
  used_.insert(free);
  auto& lane = home_->head().lanes[free];
  lane.written = 0;
  lane.wants_room = 0;
  lane.read = 0;
  lane.detached = 0;
  for (auto& each : lane.released) each.store(0, std::memory_order_relaxed);
  lane.life = ++lives_;
  return ShmPlace{.token = home_->head().token, .life = lives_, .lane = free};
}

void ShmLanes::give_back(const ShmPlace& place) {
  const std::lock_guard lock(mutex_);
  home_->head().lanes[place.lane].life = 0;
  used_.erase(place.lane);
}

// --- The pool.

// Keeps a slot for as long as Shards of this process show it.
class ShmPool::Shown {
public:
  Shown(std::shared_ptr<ShmPool> pool, std::uint32_t slot) : pool_(std::move(pool)), slot_(slot) {}
  Shown(const Shown&) = delete;
  Shown& operator=(const Shown&) = delete;
  ~Shown() { pool_->hide(slot_); }

private:
  const std::shared_ptr<ShmPool> pool_;
  const std::uint32_t slot_;
};

ShmPool::ShmPool(std::shared_ptr<ShmHome> home) : home_(std::move(home)) {
  free_[0] = home_->pool().size();
  for (std::uint32_t i = shm_slots; i-- > 0;) numbers_.push_back(i);
}

std::optional<std::uint32_t> ShmPool::allocate(std::uint64_t bytes) {
  const auto wanted = rounded(bytes, slot_unit);
  if (numbers_.empty()) return std::nullopt;
  // The lowest that fits: memory that was used lately is used again, and stays in the cache.
  const auto found = std::find_if(free_.begin(), free_.end(), [&](const auto& run) { return run.second >= wanted; });
  if (found == free_.end()) return std::nullopt;
  const auto [offset, available] = *found;
  free_.erase(found);
  if (available > wanted) free_[offset + wanted] = available - wanted;
  const auto number = numbers_.back();
  numbers_.pop_back();
  slots_.emplace(number, Slot{.offset = offset, .bytes = wanted, .shown = true, .readers = {}});
  by_offset_[offset] = number;
  used_ += wanted;
  return number;
}

void ShmPool::free_slot(std::map<std::uint32_t, Slot>::iterator slot) {
  auto offset = slot->second.offset;
  auto bytes = slot->second.bytes;
  used_ -= bytes;
  by_offset_.erase(offset);
  numbers_.push_back(slot->first);
  slots_.erase(slot);
  if (const auto next = free_.find(offset + bytes); next != free_.end()) {
    bytes += next->second;
    free_.erase(next);
  }
  if (auto before = free_.lower_bound(offset); before != free_.begin()) {
    --before;
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  free_[offset] = bytes;
}

std::optional<Shard> ShmPool::copy_of(const Shard& payload, bool remember) {
  const auto bytes = payload.bytes();
  std::uint32_t slot = 0;
  std::span<std::byte> target;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& each : recent_) {
      const auto original = each.original.bytes();
      if (original.data() != bytes.data() || original.size() != bytes.size()) continue;
      if (auto copy = each.copy.lock()) return Shard(std::move(copy), each.bytes);
    }
    reclaim_some(look_at);
    auto found = allocate(bytes.size());
    if (!found) {
      reclaim_some(lent_.size());
      found = allocate(bytes.size());
    }
    if (!found) return std::nullopt;
    slot = *found;
    target = home_->pool().subspan(slots_.at(slot).offset, bytes.size());
  }
  std::memcpy(target.data(), bytes.data(), bytes.size());
  std::shared_ptr<const void> owner = std::make_shared<const Shown>(shared_from_this(), slot);
  if (!remember) return Shard(std::move(owner), target);
  Recent forgotten;  // Let go of after the lock.
  const std::lock_guard lock(mutex_);
  remembers_ = true;
  if (recent_.size() == recent_max) {
    std::swap(forgotten, recent_.front());
    recent_.pop_front();
  }
  recent_.push_back({slot, payload, owner, target});
  return Shard(std::move(owner), target);
}

void ShmPool::forget() {
  if (!remembers_.exchange(false)) return;
  std::deque<Recent> forgotten;  // Let go of after the lock.
  const std::lock_guard lock(mutex_);
  forgotten.swap(recent_);
}

std::optional<ShmPool::Place> ShmPool::find(std::span<const std::byte> bytes) const {
  const auto pool = home_->pool();
  // Addresses of different objects have no order but this one.
  const auto begin = reinterpret_cast<std::uintptr_t>(pool.data()), at = reinterpret_cast<std::uintptr_t>(bytes.data());
  if (bytes.empty() || at < begin || at - begin > pool.size() || bytes.size() > pool.size() - (at - begin)) return std::nullopt;
  const auto offset = static_cast<std::uint64_t>(at - begin);
  const std::lock_guard lock(mutex_);
  auto slot = by_offset_.upper_bound(offset);
  if (slot == by_offset_.begin()) return std::nullopt;
  --slot;
  return Place{slot->second, offset};
}

void ShmPool::lend(std::uint32_t slot, const std::shared_ptr<ShmLink>& to, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto found = slots_.find(slot);
  ORRERY_CHECK(found != slots_.end());
  auto& readers = found->second.readers;
  if (readers.empty()) lent_.push_back(slot);
  const auto reader = std::find_if(readers.begin(), readers.end(), [&](const auto& each) { return each.link == to; });
  if (reader == readers.end())
    readers.push_back({to, bytes});
  else
    reader->bytes += bytes;
  if (to->lent_.size() <= slot) to->lent_.resize(slot + 1);
  ++to->lent_[slot];
  to->held_bytes_ += bytes;
  to->in_ring_.push_back({to->written_, slot});
}

// True when no peer shows it any more.
bool ShmPool::settle(Slot& slot) {
  const auto number = by_offset_.at(slot.offset);
  std::erase_if(slot.readers, [&](const Reader& reader) {
    if (!reader.link->let_go(number)) return false;
    reader.link->held_bytes_ -= reader.bytes;
    return true;
  });
  return slot.readers.empty();
}

void ShmPool::reclaim_some(std::size_t count) {
  // Oldest first; those that are still held go to the end, so that one that is held for long hides no others.
  count = std::min(count, lent_.size());
  for (std::size_t i = 0; i < count; ++i) {
    const auto number = lent_.front();
    lent_.pop_front();
    const auto slot = slots_.find(number);
    if (!settle(slot->second))
      lent_.push_back(number);
    else if (!slot->second.shown)
      free_slot(slot);
  }
}

void ShmPool::reclaim() {
  const std::lock_guard lock(mutex_);
  reclaim_some(lent_.size());
}

void ShmPool::hide(std::uint32_t slot) {
  Recent forgotten;  // Let go of after the lock.
  const std::lock_guard lock(mutex_);
  const auto found = slots_.find(slot);
  found->second.shown = false;
  if (const auto recent = std::find_if(recent_.begin(), recent_.end(), [&](const auto& each) { return each.slot == slot; });
      recent != recent_.end()) {
    std::swap(forgotten, *recent);
    recent_.erase(recent);
  }
  if (found->second.readers.empty()) free_slot(found);
}

std::uint64_t ShmPool::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

bool ShmPool::fits(std::uint64_t bytes) const {
  const std::lock_guard lock(mutex_);
  return !numbers_.empty() &&
         std::any_of(free_.begin(), free_.end(), [&](const auto& run) { return run.second >= rounded(bytes, slot_unit); });
}

// --- The link.

// Bytes of a peer that a Shard shows here.
class ShmView {
public:
  ShmView(std::shared_ptr<const ShmLink> link, std::uint32_t slot) : link_(std::move(link)), slot_(slot) {}
  ShmView(const ShmView&) = delete;
  ShmView& operator=(const ShmView&) = delete;
  ~ShmView() { link_->release(slot_); }

private:
  const std::shared_ptr<const ShmLink> link_;
  const std::uint32_t slot_;
};

ShmLink::ShmLink(std::shared_ptr<ShmHome> home, std::shared_ptr<ShmLanes> lanes, ShmPlace own,
                 std::shared_ptr<ShmNeighbour> neighbour, ShmPlace theirs)
    : home_(std::move(home)), lanes_(std::move(lanes)), own_(own), theirs_(theirs), neighbour_(std::move(neighbour)) {}

ShmLink::~ShmLink() {
  if (has_lane_) lanes_->give_back(own_);
}

std::optional<ShmPlace> ShmLink::give_up_lane() {
  if (written_ != 0 || read_ != 0 || detached_ || !has_lane_) return std::nullopt;
  has_lane_ = false;
  detached_ = true;
  return own_;
}

std::optional<std::uint64_t> ShmLink::room() {
  const auto read = their_lane().read.load(std::memory_order_seq_cst);
  if (read > written_ || written_ - read > shm_ring_bytes) return std::nullopt;
  return shm_ring_bytes - (written_ - read);
}

bool ShmLink::writable() {
  const auto free = room();
  // The longest record, and the filler that it may need before the ring's end.
  return free && *free >= 2 * (record_unit + HeaderBytes::capacity + shm_inline_bytes);
}

void ShmLink::want_room(bool want) { lane().wants_room.store(want, std::memory_order_seq_cst); }

ShmLink::Written ShmLink::write(const HeaderBytes& header, std::span<const std::byte> payload,
                                std::optional<ShmPool::Place> place, std::uint64_t after, bool crowded, ShmPool& pool) {
  if (their_lane().life.load(std::memory_order_relaxed) != theirs_.life || their_lane().detached.load(std::memory_order_acquire))
    return Written::gone;
  const auto free = room();
  if (!free) return Written::gone;
  const bool in_ring = !place;
  ShmRecord record;
  record.header_bytes = static_cast<std::uint16_t>(header.bytes().size());
  const auto content = sizeof record + record.header_bytes + (in_ring ? payload.size() : 0);
  record.record_bytes = static_cast<std::uint32_t>(rounded(content, record_unit));
  auto begin = written_ % shm_ring_bytes;
  const auto tail = shm_ring_bytes - begin;
  const auto filler = tail < record.record_bytes ? tail : 0;
  if (*free < record.record_bytes + filler) return Written::full;
  auto* ring = lane().ring.data();
  if (filler > 0) {
    ShmRecord skip;
    skip.record_bytes = static_cast<std::uint32_t>(filler);
    skip.kind = static_cast<std::uint16_t>(ShmRecordKind::filler);
    skip.position = written_;
    skip.check = check_of(skip, own_.token, own_.life);
    std::memcpy(ring + begin, &skip, sizeof skip);
    written_ += filler;
    begin = 0;
  }
  record.kind = static_cast<std::uint16_t>(in_ring ? ShmRecordKind::in_ring : ShmRecordKind::in_pool);
  record.slot = place ? place->slot : 0;
  record.offset = place ? place->offset : 0;
  record.crowded = crowded;
  record.payload_bytes = payload.size();
  record.after = after;
  record.position = written_;
  record.check = check_of(record, own_.token, own_.life);
  std::memcpy(ring + begin, &record, sizeof record);
  std::memcpy(ring + begin + sizeof record, header.bytes().data(), record.header_bytes);
  if (in_ring && !payload.empty()) std::memcpy(ring + begin + sizeof record + record.header_bytes, payload.data(), payload.size());
  if (place) pool.lend(place->slot, shared_from_this(), payload.size());
  written_ += record.record_bytes;
  lane().written.store(written_, std::memory_order_seq_cst);
  return Written::yes;
}

void ShmLink::ring(bool quiet) const {
  const auto listening = static_cast<ShmListening>(neighbour_->head().listening.load(std::memory_order_seq_cst));
  if (listening == ShmListening::patient_helper || (listening == ShmListening::helper && !quiet))
    neighbour_->bell().ring(ShmBell::helper_bit);
  else if (listening == ShmListening::thread)
    neighbour_->bell().ring(ShmBell::thread_bit);
}

bool ShmLink::let_go(std::uint32_t slot) {
  const auto& theirs = their_lane();
  if (!recalled_ && (closed_ || theirs.detached.load(std::memory_order_acquire))) {
    if (neighbour_->dead()) return true;
    // A lane of another life has counts of another life: then this one was let go of as a whole.
    if (theirs.life.load(std::memory_order_acquire) != theirs_.life) return true;
    if (theirs.detached.load(std::memory_order_acquire)) {
      recalled_ = true;
      const auto read = theirs.read.load(std::memory_order_acquire);
      for (const auto& each : in_ring_)
        if (each.position >= read) --lent_[each.slot];
      in_ring_.clear();
    }
  } else if (recalled_ && neighbour_->dead()) {
    return true;
  }
  if (!in_ring_.empty()) {
    const auto read = theirs.read.load(std::memory_order_acquire);
    while (!in_ring_.empty() && in_ring_.front().position < read) in_ring_.pop_front();
  }
  return theirs.released[slot].load(std::memory_order_acquire) == lent_[slot];
}

bool ShmLink::waiting() const {
  return !detached_ && their_lane().written.load(std::memory_order_seq_cst) != read_ &&
         their_lane().life.load(std::memory_order_relaxed) == theirs_.life;
}

ShmLink::Read ShmLink::read(std::uint64_t inner_frames, ShmArrival& arrival) {
  if (detached_) return Read::nothing;
  for (;;) {
    const auto& theirs = their_lane();
    const auto written = theirs.written.load(std::memory_order_acquire);
    if (theirs.life.load(std::memory_order_acquire) != theirs_.life || written == read_) return Read::nothing;
    if (written < read_ || written - read_ > shm_ring_bytes || written % record_unit != 0) return Read::broken;
    const auto begin = read_ % shm_ring_bytes;
    ShmRecord record;
    std::memcpy(&record, theirs.ring.data() + begin, sizeof record);
    const bool fits = record.check == check_of(record, theirs_.token, theirs_.life) && record.position == read_ &&
                      record.record_bytes >= record_unit && record.record_bytes % record_unit == 0 &&
                      record.record_bytes <= written - read_ && record.record_bytes <= shm_ring_bytes - begin;
    if (!fits) return Read::broken;
    if (record.kind == static_cast<std::uint16_t>(ShmRecordKind::filler)) {
      read_ += record.record_bytes;
      lane().read.store(read_, std::memory_order_release);
      continue;
    }
    const bool in_ring = record.kind == static_cast<std::uint16_t>(ShmRecordKind::in_ring);
    if (!in_ring && record.kind != static_cast<std::uint16_t>(ShmRecordKind::in_pool)) return Read::broken;
    const auto room_here = record.record_bytes - sizeof record;
    if (record.header_bytes > HeaderBytes::capacity || record.header_bytes > room_here) return Read::broken;
    const auto* at = theirs.ring.data() + begin + sizeof record;
    if (record.after > inner_frames) return Read::held;
    arrival.header = HeaderBytes({at, record.header_bytes});
    if (in_ring) {
      if (record.payload_bytes > shm_inline_bytes || record.payload_bytes > room_here - record.header_bytes) return Read::broken;
      arrival.payload = record.payload_bytes == 0 ? Shard() : Shard::copy_of({at + record.header_bytes, record.payload_bytes});
    } else {
      const auto bytes = neighbour_->pool(record.offset, record.payload_bytes);
      if (record.slot >= shm_slots || record.payload_bytes == 0 || bytes.empty()) return Read::broken;
      auto view = std::make_shared<const ShmView>(shared_from_this(), record.slot);
      arrival.payload = record.crowded ? Shard::copy_of(bytes) : Shard(std::move(view), bytes);
    }
    read_ += record.record_bytes;
    lane().read.store(read_, std::memory_order_seq_cst);
    ring_if_wanted();
    return Read::frame;
  }
}

void ShmLink::detach() {
  if (detached_) return;
  detached_ = true;
  lane().detached.store(1, std::memory_order_release);
  ring_if_wanted();
}

void ShmLink::release(std::uint32_t slot) const {
  lane().released[slot].fetch_add(1, std::memory_order_seq_cst);
  ring_if_wanted();
}

void ShmLink::ring_if_wanted() const {
  if (their_lane().wants_room.load(std::memory_order_seq_cst)) neighbour_->bell().ring(ShmBell::helper_bit | ShmBell::thread_bit);
}

}  // namespace orrery::protocol
