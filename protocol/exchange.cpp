#include "protocol/exchange.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "base/digest.hpp"
#include "base/log.hpp"
#include "base/trace.hpp"
#include "base/units.hpp"
#include "protocol/shm_segment.hpp"

namespace orrery::protocol {
namespace {

// The longest uninterrupted sleep: deadlines far away must not overflow the system's clock arithmetic.
constexpr Duration long_sleep = std::chrono::minutes(10);
// A transport that forgot to say `writable` is asked again after this.
constexpr Duration ask_again_after = std::chrono::milliseconds(100);

struct KeyHash {
  std::size_t operator()(const MessageKey& key) const {
    const auto mix = [](std::uint64_t hash, std::uint64_t value) {
      hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
      return hash ^ (hash >> 32);
    };
    auto hash = mix(key.request, (std::uint64_t{key.step} << 32) | key.op);
    hash = mix(hash, (std::uint64_t{key.stream} << 16) | key.part);
    return mix(hash, (std::uint64_t{key.source} << 32) | key.target);
  }
};

// A message that is coming in, or that nobody has asked for yet.
struct Stored {
  Message message;
  std::uint64_t message_bytes = 0;
  std::uint64_t arrived_bytes = 0;
  bool complete = false;
};

struct Waiter {
  Time since;
  std::condition_variable condition;
  std::optional<Result<Message>> outcome;
  bool helping = false;  // Sleeps in the transport, not on the condition.
};

using SharedCallback = std::shared_ptr<Exchange::Callback>;

// Everything that must happen after the lock is released: foreign code and the release of Shards.
/// The arrow of a message in a trace; sent again in another epoch, it is another one.
std::uint64_t flow_of(const MessageKey& key, std::uint64_t epoch) {
  return trace::flow_id({epoch, key.request, (std::uint64_t{key.step} << 32) | key.op, (std::uint64_t{key.stream} << 16) | key.part,
                         (std::uint64_t{key.source} << 32) | key.target});
}

struct Afterwards {
  struct Call {
    SharedCallback callback;
    MessageKey key;
    Message message;
    std::uint64_t epoch;
  };
  std::vector<Shard> shards;
  std::vector<Stored> stored;
  std::vector<std::unique_ptr<Channel>> channels;
  std::vector<Call> calls;
  std::vector<PeerId> removed;  // From the transport.

  void run() {
    for (auto& call : calls) {
      const trace::Span span(trace::data_plane, trace::Category::exchange, "hand over", {call.key.request, call.key.step, 0, {}});
      if (trace::enabled()) trace::flow_in(flow_of(call.key, call.epoch), call.message.bytes());
      (*call.callback)(call.key, std::move(call.message));
    }
  }
};

std::uint64_t chunk_bytes_for(std::uint64_t limit, const Shape& shape, DType dtype) {
  const auto row_bytes = (shape.empty() ? 1 : shape.back()) * size_of(dtype);
  if (row_bytes > 0 && row_bytes <= limit) return limit / row_bytes * row_bytes;
  return limit / 64 * 64;
}

void add_to(PeerStatistics& sum, const PeerStatistics& each) {
  sum.frames_sent += each.frames_sent;
  sum.bytes_sent += each.bytes_sent;
  sum.frames_resent += each.frames_resent;
  sum.frames_received += each.frames_received;
  sum.bytes_received += each.bytes_received;
  sum.frames_duplicate += each.frames_duplicate;
  sum.frames_bad += each.frames_bad;
  sum.frames_stale += each.frames_stale;
}

std::string card_text(EndpointId endpoint) { return "card " + std::to_string(endpoint); }

std::string milliseconds_text(Duration duration) {
  return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(duration).count()) + " ms";
}

}  // namespace

struct Exchange::State {
  struct Peer {
    PeerStatistics statistics;
    std::unique_ptr<Channel> channel;  // Only in an epoch that has endpoints there.
    std::optional<Time> heard_at;
    std::uint32_t waiters = 0;
    bool writable = true;
    std::set<ErrorCode> problems;  // Logged already.
    std::string problem;           // Why its frames cannot be used; for the text of a timeout.
  };

  State(ExchangeOptions o, std::unique_ptr<Transport> t, const Clock& c)
      : options(o), transport(std::move(t)), clock(c), bell(std::make_shared<Bell>()) {}

  const ExchangeOptions options;
  const std::unique_ptr<Transport> transport;
  const Clock& clock;
  const std::shared_ptr<Bell> bell;
  std::thread timer;

  mutable std::mutex mutex;
  bool closing = false;
  std::condition_variable no_waiters;
  std::uint64_t epoch = 0;
  std::uint64_t plan_digest = 0;
  std::map<EndpointId, PeerId> routes;
  std::map<PeerId, Peer> peers;  // Nodes stay where they are: channels refer to their statistics.
  std::unordered_map<MessageKey, Stored, KeyHash> stored;
  std::unordered_map<MessageKey, Waiter*, KeyHash> waiters;
  // Asked for by try_receive and not there yet: as good as a waiter for the peer's credit.
  std::unordered_map<MessageKey, Time, KeyHash> polled;  // And since when.
  std::map<EndpointId, Error> failures;
  std::unordered_set<std::uint64_t> forgotten;
  std::map<EndpointId, SharedCallback> subscribers;
  std::uint64_t messages_local = 0;
  std::uint64_t frames_unknown = 0;
  PeerStatistics gone;  // Of peers that were let go of.
  Time timer_due = Time::max();
  bool sent_since_tick = false;
  bool helper_inside = false;  // One waiter sleeps in the transport and handles frames itself.
  FrameHeader header;  // Reused for every frame sent.

  // Runs `work(afterwards)` under the lock, then what it left to do outside.
  template <class Work>
  auto locked(Work work) {
    Afterwards afterwards;
    if constexpr (std::is_void_v<decltype(work(afterwards))>) {
      {
        const std::lock_guard lock(mutex);
        work(afterwards);
      }
      finish_outside(afterwards);
    } else {
      auto result = [&] {
        const std::lock_guard lock(mutex);
        return work(afterwards);
      }();
      finish_outside(afterwards);
      return result;
    }
  }

  void finish_outside(Afterwards& afterwards) {
    for (const auto id : afterwards.removed) transport->remove_peer(id);
    afterwards.run();
  }

  // --- All below run under the lock.

  ChannelOptions channel_options() const {
    return {.window_bytes = options.window_bytes,
            .unclaimed_bytes_max = options.unclaimed_bytes_max,
            .resend_after = options.resend_after,
            .resend_after_max = options.resend_after_max,
            .probe_after = options.probe_after};
  }

  void flush(PeerId id, Peer& peer, Afterwards& afterwards) {
    if (!peer.channel) return;
    Shard payload;
    auto& channel = *peer.channel;
    channel.set_demand(peer.waiters > 0 || !subscribers.empty(), peer.waiters > 0);
    const auto now = clock.now();
    peer.writable = true;
    while (channel.next(now, header, payload)) {
      // Without a checksum a payload must pass no wire. If memory is shared no more, it is made up for.
      const bool bare = header.kind == FrameKind::data && header.checksum == 0 && payload.size() > 0;
      auto status = transport->send_hinted(id, encode_header(header), payload,
                                           {.quiet = header.kind == FrameKind::ack, .memory_only = bare});
      if (bare && !status.ok() && status.error().code == ErrorCode::unreachable) {
        header.checksum = xxh3_of(payload.bytes());
        status = transport->send(id, encode_header(header), payload);
      }
      if (!status.ok()) {
        peer.writable = false;
        break;
      }
      channel.sent(now);
      sent_since_tick = true;
    }
    afterwards.shards.push_back(std::move(payload));
    std::ranges::move(channel.take_released(), std::back_inserter(afterwards.shards));
    schedule(peer, now);
  }

  Time due_of(const Peer& peer, Time now) const {
    if (!peer.channel) return Time::max();
    const auto due = peer.channel->next_due(now);
    return peer.writable ? due : std::max(due, now + ask_again_after);
  }

  void schedule(const Peer& peer, Time now) {
    const auto due = due_of(peer, now);
    if (due < timer_due) {
      timer_due = due;
      bell->ring();
    }
  }

  Time tick(Afterwards& afterwards) {
    timer_due = Time::min();  // No need to ring for ourselves.
    Time next = Time::max();
    const auto now = clock.now();
    for (auto& [id, peer] : peers) {
      // The bell also rings for grants, which no timer knows of: flush all.
      flush(id, peer, afterwards);
      next = std::min(next, due_of(peer, now));
    }
    // The next frame will want a timer of that length: to be awake by then costs less than to be rung for each.
    if (std::exchange(sent_since_tick, false)) next = std::min(next, now + options.resend_after);
    timer_due = next;
    // Under a clock that a test turns, sleeping waiters learn of the time here.
    for (auto& [key, waiter] : waiters) wake(*waiter);
    return next;
  }

  void wake(Waiter& waiter) {
    if (waiter.helping)
      transport->wake_helper();
    else
      waiter.condition.notify_one();
  }

  void finish(const MessageKey& key, Result<Message> outcome) {
    const auto found = waiters.find(key);
    if (found == waiters.end() || found->second->outcome) return;
    found->second->outcome.emplace(std::move(outcome));
    wake(*found->second);
  }

  Peer* peer_of(EndpointId endpoint) {
    const auto route = routes.find(endpoint);
    return route == routes.end() || route->second == transport->self() ? nullptr : &peers[route->second];
  }

  template <class Choose>
  void drop_polled(Choose choose) {
    for (auto key = polled.begin(); key != polled.end();) {
      if (!choose(key->first)) {
        ++key;
        continue;
      }
      if (auto* peer = peer_of(key->first.source)) --peer->waiters;
      key = polled.erase(key);
    }
  }

  template <class Choose>
  void fail_waiters(Choose choose, const Error& error) {
    for (auto& [key, waiter] : waiters)
      if (choose(key)) finish(key, error);
  }

  void fail_endpoint(EndpointId endpoint, const Error& error) {
    if (!failures.emplace(endpoint, error).second) return;
    fail_waiters([&](const MessageKey& key) { return key.source == endpoint; }, error);
  }

  void fail_peer(PeerId id, const Error& error) {
    for (const auto& [endpoint, where] : routes)
      if (where == id) fail_endpoint(endpoint, error);
  }

  // The message is whole: to whoever waits, to a subscriber, or kept.
  void complete(const MessageKey& key, Stored& entry, Afterwards& afterwards) {
    entry.complete = true;
    entry.message.arrived = clock.now();
    if (const auto asked = polled.find(key); asked != polled.end()) {
      if (auto* peer = peer_of(key.source)) --peer->waiters;
      polled.erase(asked);
    }
    if (waiters.contains(key)) {
      finish(key, std::move(entry.message));
      stored.erase(key);
    } else if (const auto found = subscribers.find(key.target); found != subscribers.end()) {
      afterwards.calls.push_back({found->second, key, std::move(entry.message), epoch});
      stored.erase(key);
    }
  }

  // False when the chunk contradicts what is known of its message.
  bool store(const FrameHeader& frame, Shard payload, Afterwards& afterwards) {
    if (forgotten.contains(frame.key.request)) {
      afterwards.shards.push_back(std::move(payload));
      return true;
    }
    auto [found, is_new] = stored.try_emplace(frame.key);
    auto& entry = found->second;
    if (is_new) {
      entry.message.dtype = frame.dtype;
      entry.message.shape = frame.shape;
      entry.message_bytes = frame.message_bytes;
    }
    const bool fits = !entry.complete && entry.message.dtype == frame.dtype && entry.message.shape == frame.shape;
    auto& chunks = entry.message.chunks;
    // Chunks come in order nearly always: look from the back.
    auto place = chunks.end();
    while (place != chunks.begin() && std::prev(place)->offset > frame.chunk_offset) --place;
    const auto end = frame.chunk_offset + payload.size();
    const bool overlaps =
        (place != chunks.begin() && std::prev(place)->offset + std::prev(place)->bytes.size() > frame.chunk_offset) ||
        (place != chunks.end() && end > place->offset);
    if (!fits || overlaps) {
      afterwards.shards.push_back(std::move(payload));
      return false;
    }
    entry.arrived_bytes += payload.size();
    if (payload.size() > 0)
      chunks.insert(place, {frame.chunk_offset, std::move(payload)});
    else
      afterwards.shards.push_back(std::move(payload));
    if (entry.arrived_bytes == entry.message_bytes) complete(frame.key, entry, afterwards);
    return true;
  }

  // Counts and, once per peer and kind of problem, says what was dropped.
  void note_problem(PeerId from, Peer* peer, const Error& error) {
    bool first = false;
    if (!peer) {
      first = frames_unknown++ == 0;
    } else {
      first = peer->problems.insert(error.code).second;
      if (error.code == ErrorCode::version_mismatch) peer->problem = error.message;
    }
    if (first) log_event(Level::warn, "frame.refused", {{"from", from}, {"why", error.message}});
  }

  Error timeout_error(const MessageKey& key) const {
    auto text = card_text(key.source) + " did not deliver op " + std::to_string(key.op);
    if (key.part != 0) text += " part " + std::to_string(key.part);
    text += " of step " + std::to_string(key.step) + ", request " + std::to_string(key.request);
    if (const auto entry = stored.find(key); entry != stored.end() && entry->second.arrived_bytes > 0)
      text += " (" + text_of_bytes(static_cast<double>(entry->second.arrived_bytes)) + " of " +
              text_of_bytes(static_cast<double>(entry->second.message_bytes)) + " came)";
    const auto route = routes.find(key.source);
    if (route == routes.end() || route->second == transport->self())
      return Error{ErrorCode::timed_out, text + "; it lives in this process"};
    const auto found = peers.find(route->second);
    if (found == peers.end() || !found->second.heard_at) {
      text += "; nothing was ever heard of its process";
    } else {
      text += "; last heard " + milliseconds_text(clock.now() - *found->second.heard_at) + " ago";
      if (const auto& channel = found->second.channel; channel && channel->exhausted())
        return Error{ErrorCode::pool_exhausted,
                     text + ", and " + text_of_bytes(static_cast<double>(channel->unclaimed_bytes())) +
                         " of its messages are held here unclaimed",
                     "raise unclaimed_bytes_max, or receive messages in the order in which they are sent"};
    }
    if (found != peers.end() && !found->second.problem.empty()) text += "; " + found->second.problem;
    return Error{ErrorCode::timed_out, text};
  }

  // --- Handlers of the transport; they take the lock.

  void on_frame(PeerId from, std::span<const std::byte> bytes, Shard payload, bool through_memory) {
    auto decoded = decode_header(bytes, payload.size());
    Status checked = Done{};
    // Told by a peer that shares memory to one that does not: no frame.
    if (!decoded.ok() && parse_introduction(bytes)) return;
    const bool bare = through_memory && decoded.ok() && decoded.value().checksum == 0;
    if (decoded.ok() && payload.size() > 0 && !bare) checked = check_payload(decoded.value(), payload.bytes());
    locked([&](Afterwards& afterwards) {
      const auto found = peers.find(from);
      auto* peer = found == peers.end() ? nullptr : &found->second;
      if (closing) {
      } else if (!decoded.ok() || !checked.ok()) {
        if (peer) ++peer->statistics.frames_bad;
        note_problem(from, peer, decoded.ok() ? checked.error() : decoded.error());
      } else if (!peer) {
        note_problem(from, nullptr, Error{ErrorCode::not_found, "process " + std::to_string(from) + " is not known"});
      } else {
        take(from, *peer, decoded.value(), payload, afterwards);
      }
      afterwards.shards.push_back(std::move(payload));
    });
  }

  void take(PeerId from, Peer& peer, const FrameHeader& frame, Shard& payload, Afterwards& afterwards) {
    const auto now = clock.now();
    peer.heard_at = now;
    if (!peer.channel) {
      if (frame.epoch < epoch) ++peer.statistics.frames_stale;
      return;
    }
    const auto bad_before = peer.statistics.frames_bad;
    switch (peer.channel->on_frame(frame, payload, now)) {
      case Channel::Event::nothing: break;
      case Channel::Event::chunk: {
        const auto source = routes.find(frame.key.source), target = routes.find(frame.key.target);
        const bool routed = source != routes.end() && source->second == from && target != routes.end() &&
                            target->second == transport->self();
        if (!routed || !store(frame, std::move(payload), afterwards)) ++peer.statistics.frames_bad;
        break;
      }
      case Channel::Event::peer_restarted: {
        log_event(Level::warn, "peer.restarted", {{"peer", from}, {"epoch", epoch}});
        fail_peer(from, Error{ErrorCode::peer_lost,
                              "process " + std::to_string(from) + " was started again; what it owed in epoch " +
                                  std::to_string(epoch) + " is lost"});
        break;
      }
      case Channel::Event::refused:
        log_event(Level::error, "peer.refused", {{"peer", from}, {"why", peer.channel->refusal()->message}});
        fail_peer(from, *peer.channel->refusal());
        break;
    }
    if (peer.statistics.frames_bad != bad_before)
      note_problem(from, &peer, Error{ErrorCode::bad_frame, "some of its frames do not fit this cluster, plan or message"});
    flush(from, peer, afterwards);
  }

  void on_hint(PeerId id, PeerHint hint) {
    locked([&](Afterwards& afterwards) {
      const auto found = peers.find(id);
      if (closing || found == peers.end() || !found->second.channel) return;
      if (hint == PeerHint::up) found->second.channel->on_connected();
      if (hint != PeerHint::down) flush(id, found->second, afterwards);
    });
  }
};

Exchange::Exchange(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<Exchange>> Exchange::create(ExchangeOptions options, std::unique_ptr<Transport> transport,
                                                   const Clock& clock) {
  if (options.chunk_bytes < 64 || options.chunk_bytes > payload_bytes_limit)
    return Error{ErrorCode::usage, "chunk_bytes is " + std::to_string(options.chunk_bytes) +
                                       ", should be 64 bytes to 16 MiB"};
  if (options.window_bytes < 1024 || options.unclaimed_bytes_max < options.window_bytes)
    return Error{ErrorCode::usage, "window_bytes should be at least 1 KiB and at most unclaimed_bytes_max"};
  if (options.resend_after <= Duration::zero() || options.resend_after_max < options.resend_after ||
      options.probe_after <= Duration::zero())
    return Error{ErrorCode::usage, "resend_after and probe_after should be positive, resend_after_max no shorter"};
  while (options.session == 0) {
    std::random_device device;
    options.session = (std::uint64_t{device()} << 32) | device();
  }
  std::unique_ptr<Exchange> exchange(new Exchange(std::make_unique<State>(options, std::move(transport), clock)));
  auto* state = exchange->state_.get();
  state->transport->start(
      {.on_frame = [state](PeerId from, std::span<const std::byte> header,
                           Shard payload) { state->on_frame(from, header, std::move(payload), false); },
       .on_hint = [state](PeerId peer, PeerHint hint) { state->on_hint(peer, hint); },
       .on_memory_frame = [state](PeerId from, std::span<const std::byte> header,
                                  Shard payload) { state->on_frame(from, header, std::move(payload), true); }});
  if (options.own_timer)
    state->timer = std::thread([state] {
      for (;;) {
        Duration pause = long_sleep;
        const bool stop = state->locked([&](Afterwards& afterwards) {
          if (state->closing) return true;
          const auto next = state->tick(afterwards);
          if (next != Time::max()) pause = std::clamp(next - state->clock.now(), Duration::zero(), long_sleep);
          return false;
        });
        if (stop) return;
        state->bell->sleep(pause);
      }
    });
  return exchange;
}

Exchange::~Exchange() {
  {
    std::unique_lock lock(state_->mutex);
    state_->closing = true;
    state_->fail_waiters([](const MessageKey&) { return true; },
                         Error{ErrorCode::cancelled, "this process is shutting down"});
    state_->no_waiters.wait(lock, [&] { return state_->waiters.empty(); });
  }
  state_->bell->ring();
  if (state_->timer.joinable()) state_->timer.join();
  state_->transport->close();
}

PeerId Exchange::self() const { return state_->transport->self(); }
std::string Exchange::address() const { return state_->transport->address(); }

Status Exchange::add_peer(PeerId peer, const std::string& address) {
  if (peer == self()) return Done{};
  {
    const std::lock_guard lock(state_->mutex);
    state_->peers.try_emplace(peer);
  }
  return state_->transport->add_peer(peer, address);
}

Status Exchange::set_routes(std::uint64_t epoch, std::uint64_t plan_digest, std::map<EndpointId, PeerId> routes) {
  return state_->locked([&](Afterwards& afterwards) -> Status {
    auto& state = *state_;
    if (epoch < state.epoch || epoch == 0)
      return Error{ErrorCode::stale_epoch, "epoch " + std::to_string(epoch) + " is over; this process is in epoch " +
                                               std::to_string(state.epoch)};
    const bool begins = epoch > state.epoch;
    if (!begins && plan_digest != state.plan_digest)
      return Error{ErrorCode::version_mismatch, "epoch " + std::to_string(epoch) + " has two different plans"};
    if (begins) {
      state.fail_waiters([](const MessageKey&) { return true; },
                         Error{ErrorCode::stale_epoch, "epoch " + std::to_string(state.epoch) +
                                                           " ended while a message was waited for"});
      for (auto& [key, entry] : state.stored) afterwards.stored.push_back(std::move(entry));
      state.stored.clear();
      state.failures.clear();
      state.forgotten.clear();
      for (auto& [id, peer] : state.peers)
        if (peer.channel) afterwards.channels.push_back(std::move(peer.channel));
    }
    state.drop_polled([](const MessageKey&) { return true; });  // Counted at the peer of their route.
    state.epoch = epoch;
    state.plan_digest = plan_digest;
    state.routes = std::move(routes);
    for (const auto& [endpoint, id] : state.routes) {
      if (id == state.transport->self()) continue;
      auto& peer = state.peers[id];
      if (peer.channel) continue;
      peer.channel = std::make_unique<Channel>(
          state.channel_options(),
          ChannelIdentity{.cluster_id = state.options.cluster_id, .epoch = epoch, .plan_digest = plan_digest,
                          .self = state.transport->self(), .peer = id, .session = state.options.session},
          peer.statistics, state.bell);
    }
    // Who has no endpoint any more (a client that left, a node that was lost) is let go of, with what waits for it.
    std::set<PeerId> routed;
    for (const auto& [endpoint, id] : state.routes) routed.insert(id);
    for (auto each = state.peers.begin(); each != state.peers.end();) {
      auto& peer = each->second;
      if (routed.contains(each->first) || peer.waiters > 0) {
        ++each;
        continue;
      }
      if (peer.channel) afterwards.channels.push_back(std::move(peer.channel));
      add_to(state.gone, peer.statistics);
      afterwards.removed.push_back(each->first);
      each = state.peers.erase(each);
    }
    for (auto& [id, peer] : state.peers) state.flush(id, peer, afterwards);
    return Done{};
  });
}

std::uint64_t Exchange::epoch() const {
  const std::lock_guard lock(state_->mutex);
  return state_->epoch;
}

Status Exchange::send(const MessageKey& key, DType dtype, Shape shape, Shard bytes) {
  const auto expected = checked_bytes(shape, dtype);
  if (shape.size() > shape_extents_limit || !expected || *expected != bytes.size() || *expected > message_bytes_limit)
    return Error{ErrorCode::usage, "a message of shape " + orrery::text_of(shape) + " cannot have " +
                                       std::to_string(bytes.size()) + " bytes (" + text_of(key) + ")"};
  auto& state = *state_;
  PeerId where = 0;
  std::uint64_t epoch = 0;
  {
    const std::lock_guard lock(state.mutex);
    epoch = state.epoch;
    const auto route = state.routes.find(key.target);
    if (route == state.routes.end())
      return Error{ErrorCode::not_found, card_text(key.target) + " has no place in epoch " +
                                             std::to_string(state.epoch) + " (" + text_of(key) + ")"};
    where = route->second;
  }
  if (trace::enabled()) trace::flow_out(flow_of(key, epoch), bytes.size());

  if (where == state.transport->self()) {
    return state.locked([&](Afterwards& afterwards) -> Status {
      if (const auto failed = state.failures.find(key.target); failed != state.failures.end()) return failed->second;
      if (state.forgotten.contains(key.request)) {
        afterwards.shards.push_back(std::move(bytes));
        return Done{};
      }
      auto [found, is_new] = state.stored.try_emplace(key);
      if (!is_new) return Error{ErrorCode::out_of_step, text_of(key) + " was sent twice"};
      auto& entry = found->second;
      entry.message.dtype = dtype;
      entry.message.shape = std::move(shape);
      entry.message_bytes = entry.arrived_bytes = bytes.size();
      if (bytes.size() > 0)
        entry.message.chunks.push_back({0, std::move(bytes)});
      else
        afterwards.shards.push_back(std::move(bytes));
      ++state.messages_local;
      state.complete(key, entry, afterwards);
      return Done{};
    });
  }

  // Copies and checksums read every byte: before the lock, on the sender's thread.
  if (bytes.size() <= small_message_bytes) bytes = Shard::copy_of(bytes.bytes());
  OutgoingMessage message{.key = key, .dtype = dtype, .shape = std::move(shape), .bytes = std::move(bytes)};
  message.chunk_bytes = chunk_bytes_for(state.options.chunk_bytes, message.shape, dtype);
  bool bare = false;
  if (auto staged = state.transport->stage(where, message.bytes)) {
    message.bytes = std::move(*staged);
    bare = state.transport->unchecked(where);
  }
  const auto all = message.bytes.bytes();
  for (std::uint64_t offset = 0; offset < all.size() || offset == 0; offset += message.chunk_bytes)
    message.checksums.push_back(
        bare ? 0 : xxh3_of(all.subspan(offset, std::min<std::uint64_t>(message.chunk_bytes, all.size() - offset))));

  return state.locked([&](Afterwards& afterwards) -> Status {
    const auto refuse = [&](Error error) {
      afterwards.shards.push_back(std::move(message.bytes));
      return error;
    };
    if (const auto failed = state.failures.find(key.target); failed != state.failures.end())
      return refuse(failed->second);
    const auto found = state.peers.find(where);
    if (found == state.peers.end() || !found->second.channel)
      return refuse(Error{ErrorCode::stale_epoch, "the epoch changed while " + text_of(key) + " was sent"});
    auto& channel = *found->second.channel;
    if (const auto held = channel.unacked_bytes(); held > 0 && held + all.size() > state.options.send_bytes_max)
      return refuse(Error{ErrorCode::pool_exhausted,
                          text_of_bytes(static_cast<double>(held)) + " wait for process " + std::to_string(where) +
                              " already",
                          "it does not receive; see its log"});
    channel.queue(std::move(message));
    state.flush(where, found->second, afterwards);
    return Done{};
  });
}

Result<Message> Exchange::receive(const MessageKey& key, Time deadline) {
  auto& state = *state_;
  Afterwards afterwards;  // Let go of after the lock.
  std::unique_lock lock(state.mutex);
  if (const auto found = state.stored.find(key); found != state.stored.end() && found->second.complete) {
    auto message = std::move(found->second.message);
    state.stored.erase(found);
    const auto epoch = state.epoch;
    lock.unlock();
    if (trace::enabled()) trace::flow_in(flow_of(key, epoch), message.bytes());
    return message;
  }
  if (state.closing) return Error{ErrorCode::cancelled, "this process is shutting down"};
  if (const auto failed = state.failures.find(key.source); failed != state.failures.end()) return failed->second;
  if (state.forgotten.contains(key.request))
    return Error{ErrorCode::cancelled, "request " + std::to_string(key.request) + " was cancelled"};
  const auto route = state.routes.find(key.source);
  if (route == state.routes.end())
    return Error{ErrorCode::not_found, card_text(key.source) + " has no place in epoch " +
                                           std::to_string(state.epoch) + " (" + text_of(key) + ")"};
  Waiter waiter{.since = state.clock.now(), .condition = {}, .outcome = {}};
  if (!state.waiters.emplace(key, &waiter).second)
    return Error{ErrorCode::out_of_step, "two threads wait for " + text_of(key)};

  // While someone waits, the peer's window may grow: say so at once.
  const auto where = route->second;
  const bool remote = where != state.transport->self();
  if (remote) {
    auto& peer = state.peers[where];
    if (peer.waiters++ == 0) state.flush(where, peer, afterwards);
  }
  const auto epoch = state.epoch;
  {
    std::optional<trace::Span> wait;
    if (trace::enabled()) {
      const auto name = "wait for " + card_text(key.source) + ", op " + std::to_string(key.op);
      wait.emplace(trace::here, trace::Category::wait, name, trace::Details{key.request, key.step, 0, {}});
    }
    while (!waiter.outcome) {
      const auto now = state.clock.now();
      if (now >= deadline) {
        waiter.outcome.emplace(state.timeout_error(key));
        break;
      }
      const auto pause = std::min<Duration>(deadline - now, long_sleep);
      if (remote && !state.helper_inside && state.transport->helps(where)) {
        state.helper_inside = waiter.helping = true;
        lock.unlock();
        state.transport->help(pause);
        lock.lock();
        state.helper_inside = waiter.helping = false;
      } else {
        waiter.condition.wait_for(lock, pause);
      }
    }
    // Who sleeps on a condition takes this thread's place in the transport.
    if (remote && !state.helper_inside)
      for (auto& [other_key, other] : state.waiters)
        if (other != &waiter && !other->outcome) {
          other->condition.notify_one();
          break;
        }
  }
  if (trace::enabled() && waiter.outcome->ok()) trace::flow_in(flow_of(key, epoch), waiter.outcome->value().bytes());
  // Peers that are waited for are not let go of.
  if (remote) --state.peers.at(where).waiters;
  state.waiters.erase(key);
  if (state.closing && state.waiters.empty()) state.no_waiters.notify_all();
  return std::move(*waiter.outcome);
}

std::optional<Message> Exchange::try_receive(const MessageKey& key) {
  return state_->locked([&](Afterwards& afterwards) -> std::optional<Message> {
    auto& state = *state_;
    const auto found = state.stored.find(key);
    if (found != state.stored.end() && found->second.complete) {
      auto message = std::move(found->second.message);
      state.stored.erase(found);
      return message;
    }
    auto* peer = state.peer_of(key.source);
    if (peer && !state.forgotten.contains(key.request) && state.polled.emplace(key, state.clock.now()).second && peer->waiters++ == 0)
      state.flush(state.routes.at(key.source), *peer, afterwards);
    return std::nullopt;
  });
}

void Exchange::subscribe(EndpointId target, Callback callback) {
  state_->locked([&](Afterwards& afterwards) {
    auto& state = *state_;
    if (!callback) {
      state.subscribers.erase(target);
      return;
    }
    const auto shared = std::make_shared<Callback>(std::move(callback));
    state.subscribers[target] = shared;
    for (auto entry = state.stored.begin(); entry != state.stored.end();) {
      if (entry->first.target == target && entry->second.complete) {
        afterwards.calls.push_back({shared, entry->first, std::move(entry->second.message), state.epoch});
        entry = state.stored.erase(entry);
      } else {
        ++entry;
      }
    }
    for (auto& [id, peer] : state.peers) state.flush(id, peer, afterwards);
  });
}

void Exchange::forget(std::uint64_t request) {
  state_->locked([&](Afterwards& afterwards) {
    auto& state = *state_;
    state.forgotten.insert(request);
    for (auto entry = state.stored.begin(); entry != state.stored.end();) {
      if (entry->first.request == request) {
        afterwards.stored.push_back(std::move(entry->second));
        entry = state.stored.erase(entry);
      } else {
        ++entry;
      }
    }
    state.drop_polled([&](const MessageKey& key) { return key.request == request; });
    state.fail_waiters([&](const MessageKey& key) { return key.request == request; },
                       Error{ErrorCode::cancelled, "request " + std::to_string(request) + " was cancelled"});
  });
}

void Exchange::fail(EndpointId endpoint, Error error) {
  const std::lock_guard lock(state_->mutex);
  state_->fail_endpoint(endpoint, error);
}

ExchangeStatistics Exchange::statistics() const {
  const std::lock_guard lock(state_->mutex);
  ExchangeStatistics result;
  for (const auto& [id, peer] : state_->peers) {
    auto statistics = peer.statistics;
    if (peer.channel) {
      statistics.unclaimed_bytes = peer.channel->unclaimed_bytes();
      statistics.unacked_bytes = peer.channel->unacked_bytes();
    }
    result.peers.emplace(id, statistics);
  }
  result.gone = state_->gone;
  result.receives_waiting = state_->waiters.size();
  result.messages_local = state_->messages_local;
  result.frames_unknown = state_->frames_unknown;
  return result;
}

std::optional<Time> Exchange::last_heard(PeerId peer) const {
  const std::lock_guard lock(state_->mutex);
  const auto found = state_->peers.find(peer);
  return found == state_->peers.end() ? std::nullopt : found->second.heard_at;
}

std::vector<SilentPeer> Exchange::silent_peers(Duration limit) const {
  const std::lock_guard lock(state_->mutex);
  std::map<PeerId, SilentPeer> silent;
  const auto now = state_->clock.now();
  const auto look = [&](const MessageKey& key, Time since) {
    const auto route = state_->routes.find(key.source);
    if (route == state_->routes.end() || route->second == state_->transport->self()) return;
    const auto found = state_->peers.find(route->second);
    if (found != state_->peers.end() && found->second.heard_at) since = std::max(since, *found->second.heard_at);
    if (now - since < limit) return;
    auto& entry = silent[route->second];
    if (now - since <= entry.silence) return;
    entry = {route->second, now - since, text_of(key)};
  };
  for (const auto& [key, waiter] : state_->waiters)
    if (!waiter->outcome) look(key, waiter->since);
  for (const auto& [key, since] : state_->polled) look(key, since);
  std::vector<SilentPeer> result;
  for (auto& [id, entry] : silent) result.push_back(std::move(entry));
  return result;
}

Time Exchange::tick() {
  Time next = Time::max();
  state_->locked([&](Afterwards& afterwards) { next = state_->tick(afterwards); });
  return next;
}

}  // namespace orrery::protocol
