#include "protocol/shm_transport.hpp"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "base/log.hpp"
#include "protocol/shm_link.hpp"

namespace orrery::protocol {
namespace {

// How long the thread sleeps at most, and while helpers come and go: what it may then notice late.
constexpr Duration long_sleep = std::chrono::seconds(1);
constexpr Duration short_sleep = std::chrono::milliseconds(1);
// A frame that waits for one of the inner transport, which may have lost it.
constexpr Duration held_longest = std::chrono::milliseconds(200);
// Frames of one lane that are handled before others get their turn.
constexpr int turn_frames = 64;

class ShmTransport final : public Transport {
public:
  ShmTransport(std::unique_ptr<Transport> inner, std::shared_ptr<ShmHome> home)
      : inner_(std::move(inner)),
        home_(std::move(home)),
        boot_(boot_id()),
        lanes_(std::make_shared<ShmLanes>(home_)),
        pool_(std::make_shared<ShmPool>(home_)) {}
  ~ShmTransport() override { close(); }

  void start(TransportHandlers handlers) override {
    handlers_ = std::move(handlers);
    thread_ = std::thread([this] { listen(); });
    inner_->start({.on_frame = [this](PeerId from, std::span<const std::byte> header,
                                      Shard payload) { on_inner_frame(from, header, std::move(payload)); },
                   .on_hint = [this](PeerId peer, PeerHint hint) { on_inner_hint(peer, hint); }});
  }

  void close() override {
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(closed_, true)) return;
    }
    stop_ = true;
    home_->bell().ring(ShmBell::thread_bit | ShmBell::helper_bit);
    if (thread_.joinable()) thread_.join();
    inner_->close();
    const std::lock_guard delivery(delivery_);
    std::map<PeerId, Peer> peers;
    {
      const std::lock_guard lock(mutex_);
      peers.swap(peers_);
    }
    for (auto& [id, peer] : peers)
      if (peer.link) leaving_.push_back(std::move(peer.link));
    finish_leaving();
  }

  PeerId self() const override { return inner_->self(); }
  std::string address() const override { return inner_->address(); }

  Status add_peer(PeerId peer, const std::string& address) override {
    {
      const std::lock_guard lock(mutex_);
      if (!closed_) peers_.try_emplace(peer);
    }
    return inner_->add_peer(peer, address);
  }

  void remove_peer(PeerId peer) override {
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = peers_.find(peer); found != peers_.end()) {
        unlink(found->second);
        peers_.erase(found);
      }
    }
    inner_->remove_peer(peer);
  }

  Status send(PeerId peer, const HeaderBytes& header, Shard payload) override {
    return send_hinted(peer, header, std::move(payload), {});
  }

  Status send_hinted(PeerId id, const HeaderBytes& header, Shard payload, SendHints hints) override {
    Shard kept;  // Let go of after the lock.
    std::unique_lock lock(mutex_);
    const auto found = peers_.find(id);
    auto* peer = found == peers_.end() ? nullptr : &found->second;
    if (peer && peer->usable()) {
      if (hints.memory_only && !peer->takes_unchecked) return not_shared(id);
      switch (write(*peer, header, payload, kept, hints.quiet)) {
        case Sent::yes:
          lock.unlock();
          return Done{};
        case Sent::full: return full(id, *peer, payload.size());
        case Sent::not_this_way: break;
      }
    }
    if (hints.memory_only) return not_shared(id);
    // Under the lock, so that frames of both ways are counted in their order.
    const auto size = payload.size();
    auto status = inner_->send(id, header, std::move(payload));
    if (!status.ok()) return status;
    if (peer) ++peer->inner_sent;
    ++frames_sent_;
    bytes_sent_ += size;
    return status;
  }

  std::optional<Shard> stage(PeerId id, const Shard& payload) override {
    if (payload.size() <= shm_inline_bytes || payload.size() > pool_bytes() / 4) return std::nullopt;
    {
      const std::lock_guard lock(mutex_);
      const auto found = peers_.find(id);
      if (found == peers_.end() || !found->second.usable()) return std::nullopt;
    }
    // Half of the pool is for frames that are sent at once: who stages a lot must not keep them from going.
    if (pool_->used_bytes() + payload.size() > pool_bytes() / 2) pool_->reclaim();
    if (pool_->used_bytes() + payload.size() > pool_bytes() / 2) return std::nullopt;
    // One more borrower for a moment, unless there is only one peer that it can go to.
    return pool_->copy_of(payload, links_ > 1);
  }

  bool unchecked(PeerId id) const override {
    const std::lock_guard lock(mutex_);
    const auto found = peers_.find(id);
    return found != peers_.end() && found->second.usable() && found->second.takes_unchecked;
  }

  bool helps(PeerId id) const override {
    const std::lock_guard lock(mutex_);
    const auto found = peers_.find(id);
    if (closed_ || found == peers_.end()) return false;
    return found->second.usable() || (links_ == 0 && inner_->helps(id));
  }

  void help(Duration longest) override {
    if (links_ == 0) {
      inner_->help(longest);
      return;
    }
    helped_ = true;
    pool_->forget();  // Who waits has sent what was to be sent.
    // Shortly first: then nobody has to ring for what is not waited for.
    for (const auto patient : {false, true}) {
      const auto seen = home_->bell().value();
      if (look() || helper_woken_.exchange(false) || stop_ || longest <= Duration::zero()) break;
      const auto nap = std::min(longest, patient ? long_sleep : short_sleep);
      set_helper(patient ? ShmListening::patient_helper : ShmListening::helper);
      // What came before others could know that somebody sleeps here, is seen now; what comes later rings.
      if (!anything() && !helper_woken_ && !stop_) home_->bell().sleep(seen, ShmBell::helper_bit, nap);
      set_helper(ShmListening::awake);
      longest -= nap;
    }
    helper_woken_ = false;
    look();
    // What came while nobody was to be rung, when only the thread is left that could see it.
    if (anything() && home_->head().listening.load() == static_cast<std::uint32_t>(ShmListening::thread))
      home_->bell().ring(ShmBell::thread_bit);
  }

  void wake_helper() override {
    inner_->wake_helper();
    helper_woken_ = true;
    const auto listening = static_cast<ShmListening>(home_->head().listening.load(std::memory_order_seq_cst));
    if (listening == ShmListening::helper || listening == ShmListening::patient_helper) home_->bell().ring(ShmBell::helper_bit);
  }

  TransportStatistics statistics() const override {
    auto sum = inner_->statistics();
    // Introductions are no frames of our user.
    sum.frames_sent = frames_sent_;
    sum.frames_received = frames_received_;
    sum.payload_bytes_sent = bytes_sent_;
    sum.payload_bytes_received = bytes_received_;
    sum.memory_frames_sent = memory_frames_sent_;
    sum.memory_frames_received = memory_frames_received_;
    sum.memory_bytes_sent = memory_bytes_sent_;
    sum.memory_bytes_received = memory_bytes_received_;
    sum.frames_malformed += records_bad_;
    return sum;
  }

private:
  struct Peer {
    bool up = false;                       // Over the inner transport.
    bool introduce = false;                // It is to be told who we are.
    std::optional<std::uint64_t> refused;  // A send of so many bytes was: say `writable`.
    bool reads_us = false;                 // It said that it reads our lane.
    bool takes_unchecked = false;
    std::uint64_t inner_sent = 0;          // Frames; both sides count from the same introduction.
    std::optional<ShmPlace> own;           // Our lane for it, until a link owns it.
    std::shared_ptr<ShmLink> link;
    bool usable() const { return up && reads_us && link; }
  };
  // What is read, and by whom. Under `delivery_`.
  struct Reading {
    PeerId peer = 0;
    std::shared_ptr<ShmLink> link;
    std::uint64_t inner_frames = 0;        // Frames that came over the inner transport, as the peer counts.
    std::optional<Time> held_since = {};
    bool broken = false;
  };
  enum class Sent { yes, full, not_this_way };

  static Error not_shared(PeerId peer) {
    return Error{ErrorCode::unreachable, "no memory is shared with process " + std::to_string(peer)};
  }
  std::uint64_t pool_bytes() const { return home_->pool().size(); }

  /// Under the lock. `kept` is let go of after it.
  Sent write(Peer& peer, const HeaderBytes& header, Shard& payload, Shard& kept, bool quiet) {
    const auto size = payload.size();
    const auto link = peer.link;
    auto place = pool_->find(payload.bytes());
    bool crowded = false;
    if (place || size > shm_inline_bytes) {
      const auto used_for_it = [&] { return link->held_bytes() + size; };
      if (used_for_it() > pool_bytes() / 4 || pool_->used_bytes() > pool_bytes() / 2) pool_->reclaim();
      // What a peer does not let go of may fill a quarter, and all peers a half; more is copied there, at once.
      crowded = used_for_it() > pool_bytes() / 4 || pool_->used_bytes() > pool_bytes() / 2;
      if (used_for_it() > pool_bytes() / 2) return Sent::full;
    }
    if (!place && size > shm_inline_bytes) {
      auto copy = pool_->copy_of(payload, false);
      if (!copy) return link->held_bytes() > pool_bytes() / 4 ? Sent::full : Sent::not_this_way;
      std::swap(kept, payload);
      payload = std::move(*copy);
      place = pool_->find(payload.bytes());
    }
    switch (link->write(header, payload.bytes(), place, peer.inner_sent, crowded, *pool_)) {
      case ShmLink::Written::full: return Sent::full;
      case ShmLink::Written::gone: peer.reads_us = false; return Sent::not_this_way;
      case ShmLink::Written::yes: break;
    }
    link->ring(quiet);
    ++frames_sent_;
    ++memory_frames_sent_;
    bytes_sent_ += size;
    memory_bytes_sent_ += size;
    return Sent::yes;
  }

  /// Under the lock.
  Status full(PeerId id, Peer& peer, std::uint64_t bytes) {
    peer.link->want_room(true);
    peer.refused = bytes;
    any_refused_ = true;
    home_->bell().ring(ShmBell::thread_bit);  // There may be room by now.
    return Error{ErrorCode::pool_exhausted, "the queue to process " + std::to_string(id) + " is full"};
  }

  /// Under the lock.
  void unlink(Peer& peer) {
    peer.reads_us = false;
    if (peer.own) lanes_->give_back(*std::exchange(peer.own, std::nullopt));
    if (!peer.link) return;
    peer.link->close();
    leaving_.push_back(std::move(peer.link));
    peer.link = nullptr;
    changed_ = true;
    if (!stop_) home_->bell().ring(ShmBell::thread_bit);
  }

  /// Under the lock: tells the peer where our lane for it is, and which of its lanes we read.
  void introduce(PeerId id, Peer& peer) {
    if (!peer.link && !peer.own) {
      peer.own = lanes_->take();
      peer.inner_sent = 0;
    }
    if (!peer.link && !peer.own) return;  // More peers than lanes: the inner transport will do.
    ShmIntroduction introduction;
    introduction.boot = boot_;
    introduction.pid = static_cast<std::uint32_t>(::getpid());
    introduction.segment_fd = home_->segment_fd();
    introduction.bell_fd = home_->bell_fd();
    introduction.own = peer.link ? peer.link->own() : *peer.own;
    if (peer.link) introduction.known = peer.link->theirs();
    introduction.takes_unchecked = static_cast<bool>(handlers_.on_memory_frame);
    introduction.inner_frames = peer.inner_sent;
    introduction.wants_answer = !peer.reads_us;
    const HeaderBytes bytes(std::as_bytes(std::span(&introduction, 1)));
    peer.introduce = !inner_->send(id, bytes, {}).ok();
  }

  /// Under `delivery_`.
  void on_introduction(PeerId id, const ShmIntroduction& introduction) {
    const std::lock_guard lock(mutex_);
    const auto found = peers_.find(id);
    if (found == peers_.end() || closed_) return;  // It hears of us when we know it.
    auto& peer = found->second;
    if (!peer.link || peer.link->theirs() != introduction.own) {
      // Another life, or another lane: from here on a new beginning.
      auto neighbour = ShmNeighbour::open(introduction);
      if (peer.link) {
        // A lane that was never used stays: if both sides answered a new lane with a new lane, they would never meet.
        const auto former = peer.link;
        const auto own = former->give_up_lane();
        unlink(peer);
        if (own) std::erase_if(reading_, [&](const auto& each) { return each.link == former; });
        peer.own = own;
      }
      if (!neighbour.ok()) {
        if (neighbour.error().code != ErrorCode::unreachable)
          log_event(Level::warn, "shm.refused", {{"peer", id}, {"why", neighbour.error().message}});
        return;
      }
      if (!peer.own) {
        peer.own = lanes_->take();
        if (!peer.own) return;
        // Counted from the introduction that follows.
        peer.inner_sent = 0;
      }
      peer.link = std::make_shared<ShmLink>(home_, lanes_, *std::exchange(peer.own, std::nullopt), std::move(neighbour).value(),
                                            introduction.own);
      reading_.push_back({.peer = id, .link = peer.link});
      watch();
      peer.introduce = true;
    }
    peer.takes_unchecked = introduction.takes_unchecked != 0;
    peer.reads_us = introduction.known == peer.link->own();
    if (const auto reading = find_reading(peer.link.get())) reading->inner_frames = introduction.inner_frames;
    if (peer.introduce || introduction.wants_answer) introduce(id, peer);
  }

  Reading* find_reading(const ShmLink* link) {
    const auto found = std::find_if(reading_.begin(), reading_.end(), [&](const auto& each) { return each.link.get() == link; });
    return found == reading_.end() ? nullptr : &*found;
  }

  std::shared_ptr<ShmLink> link_of(PeerId peer) const {
    for (const auto& each : reading_)
      if (each.peer == peer && !each.broken) return each.link;
    return nullptr;
  }

  void on_inner_frame(PeerId from, std::span<const std::byte> header, Shard payload) {
    const std::lock_guard delivery(delivery_);
    if (const auto introduction = parse_introduction(header)) {
      on_introduction(from, *introduction);
      return;
    }
    // In the order in which the peer sent them over its two ways.
    const auto link = link_of(from);
    if (link) {
      drain(from, link);
      if (auto* reading = find_reading(link.get())) ++reading->inner_frames;
    }
    ++frames_received_;
    bytes_received_ += payload.size();
    if (handlers_.on_frame) handlers_.on_frame(from, header, std::move(payload));
    if (link) drain(from, link);
  }

  void on_inner_hint(PeerId id, PeerHint hint) {
    const std::lock_guard delivery(delivery_);
    {
      const std::lock_guard lock(mutex_);
      const auto found = peers_.find(id);
      if (found != peers_.end()) {
        auto& peer = found->second;
        if (hint == PeerHint::up) peer.up = true;
        if (hint == PeerHint::down) peer.up = peer.reads_us = false;  // Until it says again that it is there.
        if (hint == PeerHint::up || (hint == PeerHint::writable && peer.introduce)) introduce(id, peer);
      }
    }
    if (handlers_.on_hint) handlers_.on_hint(id, hint);
  }

  // --- Reading.

  /// Whether something waits to be read; only a hint without `delivery_`.
  bool anything() {
    const std::lock_guard lock(watch_mutex_);
    return std::any_of(watched_.begin(), watched_.end(), [](const auto& link) { return link->waiting(); });
  }

  /// Handles what has come; true if there was something.
  bool look() {
    pool_->forget();
    const std::lock_guard delivery(delivery_);
    bool found = false;
    if (changed_.exchange(false)) finish_leaving();
    for (std::size_t i = 0; i < reading_.size(); ++i)
      if (!reading_[i].broken) found = drain(reading_[i].peer, reading_[i].link) || found;
    if (any_refused_) found = say_writable() || found;
    return found;
  }

  /// Under `delivery_`. Handlers may change `reading_`.
  bool drain(PeerId peer, std::shared_ptr<ShmLink> link) {
    bool found = false;
    for (int count = 0; count < turn_frames; ++count) {
      if (!link->waiting()) break;
      auto* reading = find_reading(link.get());
      if (!reading || reading->broken) break;
      ShmArrival arrival;
      auto result = link->read(reading->inner_frames, arrival);
      if (result == ShmLink::Read::held) {
        const auto now = clock_.now();
        if (!reading->held_since) reading->held_since = now;
        if (now - *reading->held_since < held_longest) break;
        result = link->read(~std::uint64_t{0}, arrival);
      }
      if (result == ShmLink::Read::broken) {
        reading->broken = true;
        ++records_bad_;
        link->detach();
        log_event(Level::warn, "shm.given_up", {{"peer", peer}, {"why", "its shared memory has records that make no sense"}});
        break;
      }
      if (result != ShmLink::Read::frame) break;
      reading->held_since.reset();
      found = true;
      ++frames_received_;
      ++memory_frames_received_;
      bytes_received_ += arrival.payload.size();
      memory_bytes_received_ += arrival.payload.size();
      const auto& handler = handlers_.on_memory_frame ? handlers_.on_memory_frame : handlers_.on_frame;
      if (handler) handler(peer, arrival.header.bytes(), std::move(arrival.payload));
    }
    return found;
  }

  /// Under `delivery_`: links that were let go of are read no more.
  void finish_leaving() {
    std::vector<std::shared_ptr<ShmLink>> leaving;
    {
      const std::lock_guard lock(mutex_);
      leaving.swap(leaving_);
    }
    for (const auto& link : leaving) {
      link->close();
      link->detach();
      std::erase_if(reading_, [&](const auto& each) { return each.link == link; });
    }
    watch();
  }

  /// Under `delivery_`.
  void watch() {
    std::vector<std::shared_ptr<ShmLink>> links;  // The former ones are let go of after the lock.
    for (const auto& each : reading_)
      if (!each.broken) links.push_back(each.link);
    links_ = links.size();
    const std::lock_guard lock(watch_mutex_);
    links.swap(watched_);
  }

  /// Under `delivery_`.
  bool say_writable() {
    std::vector<PeerId> writable;
    pool_->reclaim();
    {
      const std::lock_guard lock(mutex_);
      any_refused_ = false;
      for (auto& [id, peer] : peers_) {
        if (!peer.refused) continue;
        const auto bytes = *peer.refused;
        if (peer.link && peer.reads_us &&
            (!peer.link->writable() || peer.link->held_bytes() + bytes > pool_bytes() / 2 || !pool_->fits(bytes))) {
          any_refused_ = true;
          continue;
        }
        if (peer.link) peer.link->want_room(false);
        peer.refused.reset();
        writable.push_back(id);
      }
    }
    for (const auto id : writable)
      if (handlers_.on_hint) handlers_.on_hint(id, PeerHint::writable);
    return !writable.empty();
  }

  // --- Waiting.

  /// Who sleeps now, for others to see. Under listen_mutex_.
  void publish() {
    const auto listening = helper_ != ShmListening::awake ? helper_ : thread_sleeps_ ? ShmListening::thread : ShmListening::awake;
    home_->head().listening.store(static_cast<std::uint32_t>(listening), std::memory_order_seq_cst);
  }
  void set_helper(ShmListening helper) {
    const std::lock_guard lock(listen_mutex_);
    helper_ = helper;
    publish();
  }
  void set_thread(bool sleeps) {
    const std::lock_guard lock(listen_mutex_);
    thread_sleeps_ = sleeps;
    publish();
  }

  void listen() {
    const auto bell = home_->bell();
    while (!stop_) {
      const auto seen = bell.value();
      if (look()) continue;
      if (helped_.exchange(false)) {
        // Helpers come and go: they see frames first, and none of them has to ring for us.
        bell.sleep(bell.value(), ShmBell::thread_bit, short_sleep);
        continue;
      }
      set_thread(true);
      if (!anything() && !stop_) bell.sleep(seen, ShmBell::thread_bit, unsettled() ? held_longest : long_sleep);
      set_thread(false);
    }
  }

  /// Something waits that may come without a ring.
  bool unsettled() {
    const std::lock_guard delivery(delivery_);
    return any_refused_ || std::any_of(reading_.begin(), reading_.end(), [](const auto& each) { return each.held_since.has_value(); });
  }

  const std::unique_ptr<Transport> inner_;
  const std::shared_ptr<ShmHome> home_;
  const std::array<std::uint64_t, 2> boot_;
  const std::shared_ptr<ShmLanes> lanes_;
  const std::shared_ptr<ShmPool> pool_;
  const SteadyClock clock_;
  TransportHandlers handlers_;
  std::thread thread_;
  std::atomic<bool> stop_{false};

  // Locks are taken in this order: delivery_, mutex_ or watch_mutex_. Handlers run under delivery_ and may send.
  std::mutex delivery_;
  std::vector<Reading> reading_;

  mutable std::mutex mutex_;
  bool closed_ = false;
  std::map<PeerId, Peer> peers_;
  std::vector<std::shared_ptr<ShmLink>> leaving_;
  std::atomic<bool> changed_{false};
  std::atomic<bool> any_refused_{false};
  std::atomic<std::size_t> links_{0};  // When there are any, helpers wait for the bell, else in the inner transport.

  std::mutex watch_mutex_;
  std::vector<std::shared_ptr<ShmLink>> watched_;

  std::mutex listen_mutex_;
  ShmListening helper_ = ShmListening::awake;
  bool thread_sleeps_ = false;
  std::atomic<bool> helped_{false}, helper_woken_{false};

  std::atomic<std::uint64_t> frames_sent_{0}, bytes_sent_{0}, frames_received_{0}, bytes_received_{0};
  std::atomic<std::uint64_t> memory_frames_sent_{0}, memory_bytes_sent_{0}, memory_frames_received_{0}, memory_bytes_received_{0};
  std::atomic<std::uint64_t> records_bad_{0};
};

}  // namespace

Result<std::unique_ptr<Transport>> make_shm_transport(std::unique_ptr<Transport>& inner, const ShmOptions& options) {
  ORRERY_TRY(home, ShmHome::create(options.pool_bytes));
  return std::unique_ptr<Transport>(std::make_unique<ShmTransport>(std::move(inner), std::move(home)));
}

}  // namespace orrery::protocol
