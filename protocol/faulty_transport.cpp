#include "protocol/faulty_transport.hpp"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <iterator>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "base/random.hpp"

namespace orrery::protocol {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

struct Held {
  PeerId peer;
  HeaderBytes header;
  Shard payload;
  std::uint64_t release_at;  // Number of the send that lets it go.
};

struct Waiting {
  HeaderBytes header;
  Shard payload;
  SteadyTime due;  // Not looked at while the lane stalls.
};

/// One direction of a link.
struct Lane {
  LinkFaults faults;
  Random random{1};
  std::deque<Waiting> waiting;    // In the order of going on.
  std::deque<Waiting> reordered;  // Held aside, by time.
  SteadyTime free_at{};           // When the wire, at its rate, has passed all before.
  std::uint64_t bytes = 0;        // Of payloads that wait.
  bool refused = false;           // A sender heard pool_exhausted.
  bool handing_on = false;        // The thread holds a frame of this lane that is not with its receiver yet.

  bool happens(double probability) { return probability > 0 && random.uniform() < probability; }
  std::size_t size() const { return waiting.size() + reordered.size(); }
  bool idle() const { return size() == 0 && !handing_on; }
  bool full() const { return size() >= FaultyTransport::waiting_frames_max || bytes >= FaultyTransport::waiting_bytes_max; }
};

void flip_one_bit(Random& random, HeaderBytes& header, Shard& payload) {
  const bool hit_payload = payload.size() > 0 && random.below(2) == 0;
  if (hit_payload) {
    std::vector<std::byte> copy(payload.bytes().begin(), payload.bytes().end());
    copy[random.below(copy.size())] ^= static_cast<std::byte>(1U << random.below(8));
    payload = Shard::of(std::move(copy));
  } else if (!header.bytes().empty()) {
    header.bytes()[random.below(header.bytes().size())] ^= static_cast<std::byte>(1U << random.below(8));
  }
}

void cut_short(Random& random, HeaderBytes& header, Shard& payload) {
  if (payload.size() > 0) {
    payload = payload.part(0, random.below(payload.size()));
  } else if (!header.bytes().empty()) {
    header = HeaderBytes(header.bytes().first(random.below(header.bytes().size())));
  }
}

}  // namespace

struct FaultyTransport::State {
  std::unique_ptr<Transport> inner;
  TransportHandlers handlers;
  std::mutex handler_mutex;  // One call at a time, from the inner thread or ours. Taken before nothing else.

  mutable std::mutex mutex;  // Guards all below. Not held while the inner transport or a handler is called.
  std::condition_variable changed;
  FaultOptions options;
  Random random;
  FaultCounts counts;
  std::set<PeerId> cut;
  std::vector<Held> held;
  std::uint64_t sends = 0;
  std::map<std::pair<PeerId, bool>, Lane> lanes;  // bool: incoming.
  std::thread timer;
  bool timer_runs = false, closed = false;

  State(std::unique_ptr<Transport> t, FaultOptions o) : inner(std::move(t)), options(o), random(o.seed) {}

  bool happens(double probability) { return probability > 0 && random.uniform() < probability; }

  void deliver(PeerId from, std::span<const std::byte> header, Shard payload) {
    const std::lock_guard lock(handler_mutex);
    if (handlers.on_frame) handlers.on_frame(from, header, std::move(payload));
  }
  void hint(PeerId peer, PeerHint what) {
    const std::lock_guard lock(handler_mutex);
    if (handlers.on_hint) handlers.on_hint(peer, what);
  }

  /// What one frame of a lane becomes: how many copies go on at once. The rest waits in the lane. Under the mutex.
  Result<int> pass(Lane& lane, bool incoming, HeaderBytes& header, Shard& payload) {
    const auto& faults = lane.faults;
    if (!faults.any() && lane.idle()) return 1;
    if (faults.cut) {
      ++counts.cut;
      return 0;
    }
    const bool waits = faults.stall || faults.bytes_per_second > 0 || faults.delay > Duration::zero() ||
                       faults.jitter > Duration::zero() || !lane.idle();
    if (waits && lane.full()) {
      if (incoming) {
        ++counts.dropped;
        return 0;
      }
      lane.refused = true;
      return Error{ErrorCode::pool_exhausted, "the faulty link's queue is full"};
    }
    if (lane.happens(faults.drop)) {
      ++counts.dropped;
      return 0;
    }
    if (lane.happens(faults.corrupt)) {
      ++counts.corrupted;
      flip_one_bit(lane.random, header, payload);
    }
    if (lane.happens(faults.truncate)) {
      ++counts.truncated;
      cut_short(lane.random, header, payload);
    }
    int copies = 1;
    if (lane.happens(faults.duplicate)) {
      ++counts.duplicated;
      copies = 2;
    }
    const auto now = std::chrono::steady_clock::now();
    auto due = now;
    if (faults.bytes_per_second > 0) {
      const auto bytes = static_cast<double>(header.bytes().size() + payload.size()) * copies;
      const std::chrono::duration<double> taken(std::min(bytes / faults.bytes_per_second, 3600.0));
      lane.free_at = std::max(lane.free_at, now) + std::chrono::duration_cast<Duration>(taken);
      due = lane.free_at;
    }
    if ((faults.delay > Duration::zero() || faults.jitter > Duration::zero()) &&
        (faults.delay_share >= 1 || lane.happens(faults.delay_share))) {
      due += faults.delay;
      if (faults.jitter > Duration::zero())
        due += Duration(static_cast<std::int64_t>(lane.random.uniform() * static_cast<double>(faults.jitter.count())));
    }
    if (lane.happens(faults.reorder)) {
      ++counts.reordered;
      lane.bytes += payload.size();
      due = std::max(due, now + faults.reorder_hold);
      const auto later = [](SteadyTime a, const Waiting& b) { return a < b.due; };
      lane.reordered.insert(std::upper_bound(lane.reordered.begin(), lane.reordered.end(), due, later), {header, payload, due});
      wake();
      return copies - 1;
    }
    if (faults.stall) ++counts.stalled;
    else if (due > now) ++counts.delayed;
    if (!faults.stall && due <= now && lane.waiting.empty() && !lane.handing_on) return copies;
    // A wire keeps its order.
    if (!lane.waiting.empty()) due = std::max(due, lane.waiting.back().due);
    for (; copies > 0; --copies) {
      lane.bytes += payload.size();
      lane.waiting.push_back({header, payload, due});
    }
    wake();
    return 0;
  }

  /// Starts the thread, or lets it look again. Under the mutex.
  void wake() {
    if (closed) return;
    if (!timer_runs) {
      if (timer.joinable()) timer.join();  // It is past its last look at anything of ours.
      timer_runs = true;
      timer = std::thread([this] { run_timer(); });
    }
    changed.notify_all();
  }

  struct Due {
    PeerId peer = 0;
    bool incoming = false;
    Waiting frame;
  };

  /// The frame that is due longest, taken out of its lane; else when the next one is. Under the mutex.
  std::optional<Due> take_due(SteadyTime now, std::optional<SteadyTime>& next, bool& any_waits) {
    std::deque<Waiting>* best = nullptr;
    std::pair<PeerId, bool> whose;
    for (auto& [key, lane] : lanes) {
      for (auto* queue : {&lane.waiting, &lane.reordered}) {
        if (queue->empty()) continue;
        any_waits = true;
        if (lane.faults.stall && queue == &lane.waiting) continue;
        const auto due = queue->front().due;
        if (due > now) {
          next = next ? std::min(*next, due) : due;
        } else if (best == nullptr || due < best->front().due) {
          best = queue;
          whose = key;
        }
      }
    }
    if (best == nullptr) return std::nullopt;
    Due due{whose.first, whose.second, std::move(best->front())};
    best->pop_front();
    auto& lane = lanes[whose];
    lane.bytes -= due.frame.payload.size();
    lane.handing_on = true;
    return due;
  }

  void run_timer() {
    std::unique_lock lock(mutex);
    while (!closed) {
      std::optional<SteadyTime> next;
      bool any_waits = false;
      auto due = take_due(std::chrono::steady_clock::now(), next, any_waits);
      if (!due) {
        if (!any_waits) break;
        if (next) changed.wait_until(lock, *next);
        else changed.wait(lock);
        continue;
      }
      const auto key = std::pair(due->peer, due->incoming);
      bool room = false;
      if (auto& lane = lanes[key]; lane.refused && lane.size() < waiting_frames_max / 2 && lane.bytes < waiting_bytes_max / 2) {
        lane.refused = false;
        room = true;
      }
      lock.unlock();
      if (due->incoming) {
        deliver(due->peer, due->frame.header.bytes(), due->frame.payload);
      } else {
        const auto sent = inner->send(due->peer, due->frame.header, due->frame.payload);
        if (!sent.ok() && sent.error().code == ErrorCode::pool_exhausted) {
          // It was accepted, so it is not lost now: to the front again, and a moment later.
          lock.lock();
          auto& lane = lanes[key];
          lane.handing_on = false;
          if (lane.faults.cut || closed) continue;
          due->frame.due = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
          lane.bytes += due->frame.payload.size();
          lane.waiting.push_front(std::move(due->frame));
          continue;
        }
      }
      if (room) hint(due->peer, PeerHint::writable);
      due.reset();  // Shards are let go of outside the mutex.
      lock.lock();
      lanes[key].handing_on = false;
    }
    timer_runs = false;
  }
};

FaultyTransport::FaultyTransport(std::unique_ptr<Transport> inner, FaultOptions options)
    : state_(std::make_unique<State>(std::move(inner), options)) {}
FaultyTransport::~FaultyTransport() { close(); }

void FaultyTransport::set_faults(FaultOptions options) {
  const std::lock_guard lock(state_->mutex);
  state_->options = options;
  state_->random = Random(options.seed);
}

void FaultyTransport::cut(PeerId peer) {
  const std::lock_guard lock(state_->mutex);
  state_->cut.insert(peer);
}

void FaultyTransport::heal(PeerId peer) {
  const std::lock_guard lock(state_->mutex);
  state_->cut.erase(peer);
}

void FaultyTransport::set_link(PeerId peer, LinkDirection direction, const LinkFaults& faults) {
  std::deque<Waiting> lost;
  {
    const std::lock_guard lock(state_->mutex);
    for (const bool incoming : {false, true}) {
      if (direction == (incoming ? LinkDirection::out : LinkDirection::in)) continue;
      auto& lane = state_->lanes[{peer, incoming}];
      const auto& before = lane.faults;
      const bool slower = before.stall || before.delay > Duration::zero() || before.jitter > Duration::zero() || before.bytes_per_second > 0;
      const bool still = faults.stall || faults.delay > Duration::zero() || faults.jitter > Duration::zero() || faults.bytes_per_second > 0;
      if (slower && !still)
        for (auto& frame : lane.waiting) frame.due = SteadyTime::min();
      if (faults.cut) {
        state_->counts.cut += lane.size();
        std::move(lane.waiting.begin(), lane.waiting.end(), std::back_inserter(lost));
        std::move(lane.reordered.begin(), lane.reordered.end(), std::back_inserter(lost));
        lane.waiting.clear();
        lane.reordered.clear();
        lane.bytes = 0;
      }
      lane.faults = faults;
      // The two directions draw differently from one seed.
      lane.random = Random(faults.seed * 2 + (incoming ? 1 : 0));
      lane.free_at = {};
      if (lane.size() > 0) state_->wake();
    }
  }
}

void FaultyTransport::heal_all() {
  std::vector<PeerId> peers;
  {
    const std::lock_guard lock(state_->mutex);
    const auto seed = state_->options.seed;
    state_->options = FaultOptions{};
    state_->options.seed = seed;
    state_->cut.clear();
    for (const auto& [key, lane] : state_->lanes) peers.push_back(key.first);
  }
  for (const auto peer : peers) heal_link(peer, LinkDirection::both);
}

LinkFaults FaultyTransport::link(PeerId peer, LinkDirection out_or_in) const {
  const std::lock_guard lock(state_->mutex);
  const auto found = state_->lanes.find({peer, out_or_in == LinkDirection::in});
  return found == state_->lanes.end() ? LinkFaults{} : found->second.faults;
}

FaultCounts FaultyTransport::counts() const {
  const std::lock_guard lock(state_->mutex);
  return state_->counts;
}

std::size_t FaultyTransport::waiting() const {
  const std::lock_guard lock(state_->mutex);
  std::size_t count = state_->held.size();
  for (const auto& [key, lane] : state_->lanes) count += lane.size();
  return count;
}

void FaultyTransport::start(TransportHandlers handlers) {
  auto& state = *state_;
  state.handlers = std::move(handlers);
  state.inner->start({.on_frame =
                          [&state](PeerId from, std::span<const std::byte> header, Shard payload) {
                            HeaderBytes changed;
                            int copies = 1;
                            {
                              const std::lock_guard lock(state.mutex);
                              const auto lane = state.lanes.find({from, true});
                              // A header that is too long for us is the inner transport's to refuse.
                              if (lane != state.lanes.end() && header.size() <= HeaderBytes::capacity) {
                                changed = HeaderBytes(header);
                                copies = state.pass(lane->second, true, changed, payload).value();
                                header = changed.bytes();
                              }
                            }
                            for (; copies > 0; --copies) state.deliver(from, header, payload);
                          },
                      .on_hint = [&state](PeerId peer, PeerHint what) { state.hint(peer, what); }});
}

void FaultyTransport::close() {
  std::vector<Held> held;
  std::map<std::pair<PeerId, bool>, Lane> lanes;
  std::thread timer;
  {
    const std::lock_guard lock(state_->mutex);
    state_->closed = true;
    held.swap(state_->held);
    lanes.swap(state_->lanes);
    timer.swap(state_->timer);
    state_->changed.notify_all();
  }
  if (timer.joinable()) timer.join();
  state_->inner->close();
}

PeerId FaultyTransport::self() const { return state_->inner->self(); }
std::string FaultyTransport::address() const { return state_->inner->address(); }
Status FaultyTransport::add_peer(PeerId peer, const std::string& address) {
  return state_->inner->add_peer(peer, address);
}

void FaultyTransport::remove_peer(PeerId peer) {
  std::deque<Waiting> waiting, reordered;
  {
    const std::lock_guard lock(state_->mutex);
    if (const auto lane = state_->lanes.find({peer, false}); lane != state_->lanes.end()) {
      waiting.swap(lane->second.waiting);
      reordered.swap(lane->second.reordered);
      lane->second.bytes = 0;
    }
  }
  state_->inner->remove_peer(peer);
}

TransportStatistics FaultyTransport::statistics() const { return state_->inner->statistics(); }
std::optional<Shard> FaultyTransport::stage(PeerId peer, const Shard& payload) { return state_->inner->stage(peer, payload); }
bool FaultyTransport::helps(PeerId peer) const { return state_->inner->helps(peer); }
void FaultyTransport::help(Duration longest) { state_->inner->help(longest); }
void FaultyTransport::wake_helper() { state_->inner->wake_helper(); }

Status FaultyTransport::send(PeerId peer, const HeaderBytes& header, Shard payload) {
  auto sent_header = header;
  std::vector<Held> released;
  int copies = 1;
  {
    const std::lock_guard lock(state_->mutex);
    auto& state = *state_;
    if (state.closed) return Error{ErrorCode::unreachable, "the transport is closed"};
    ++state.sends;
    const auto due = std::stable_partition(state.held.begin(), state.held.end(),
                                           [&](const Held& held) { return held.release_at > state.sends; });
    std::move(due, state.held.end(), std::back_inserter(released));
    state.held.erase(due, state.held.end());
    if (state.cut.contains(peer)) {
      ++state.counts.cut;
      copies = 0;
    } else if (state.happens(state.options.drop)) {
      ++state.counts.dropped;
      copies = 0;
    } else {
      if (state.happens(state.options.corrupt)) {
        ++state.counts.corrupted;
        flip_one_bit(state.random, sent_header, payload);
      }
      if (state.happens(state.options.duplicate)) {
        ++state.counts.duplicated;
        copies = 2;
      }
      if (state.options.delay_frames_max > 0 && state.happens(state.options.delay)) {
        ++state.counts.delayed;
        --copies;
        const auto release_at = state.sends + 1 + state.random.below(state.options.delay_frames_max);
        state.held.push_back({peer, sent_header, payload, release_at});
      }
    }
    std::erase_if(released, [&](const Held& held) { return state.cut.contains(held.peer); });
    if (const auto lane = state.lanes.find({peer, false}); lane != state.lanes.end() && copies > 0) {
      ORRERY_TRY(passed, state.pass(lane->second, false, sent_header, payload));
      copies = passed == 0 ? 0 : std::max(copies, passed);
    }
  }
  Status status = Done{};
  for (; copies > 0 && status.ok(); --copies) status = state_->inner->send(peer, sent_header, payload);
  // A held frame that the inner transport has no room for is lost, which is a fault too.
  for (auto& held : released) (void)state_->inner->send(held.peer, held.header, std::move(held.payload));
  return status;
}

}  // namespace orrery::protocol
