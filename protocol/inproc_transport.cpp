#include "protocol/inproc_transport.hpp"

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace orrery::protocol {

// Who is there. Its lock is taken before a mailbox's lock, and no handler runs under either.
class InprocHub {
public:
  struct Item {
    PeerId from = 0;
    bool is_hint = false;
    PeerHint hint = PeerHint::up;
    HeaderBytes header = {};
    Shard payload = {};
  };

  // What a transport's delivery thread empties; senders fill it.
  struct Mailbox {
    std::mutex mutex;
    std::condition_variable ready;
    std::deque<Item> items;
    std::map<PeerId, std::uint32_t> waiting;  // Frames per sender.
    std::set<PeerId> refused;                 // Senders that found their part full.
    std::set<PeerId> peers;                   // Whom the owner knows.
    bool closed = false;

    void post_hint(PeerId about, PeerHint hint) {
      const std::lock_guard lock(mutex);
      if (closed) return;
      items.push_back({.from = about, .is_hint = true, .hint = hint});
      ready.notify_one();
    }
    bool knows(PeerId peer) {
      const std::lock_guard lock(mutex);
      return peers.contains(peer);
    }
  };

  void join(PeerId self, std::shared_ptr<Mailbox> mailbox) {
    const std::lock_guard lock(mutex_);
    mailboxes_[self] = std::move(mailbox);
    for (const auto& [id, other] : mailboxes_)
      if (id != self && other->knows(self)) other->post_hint(self, PeerHint::up);
  }
  void leave(PeerId self, const std::shared_ptr<Mailbox>& mailbox) {
    const std::lock_guard lock(mutex_);
    const auto found = mailboxes_.find(self);
    if (found == mailboxes_.end() || found->second != mailbox) return;
    mailboxes_.erase(found);
    for (const auto& [id, other] : mailboxes_)
      if (other->knows(self)) other->post_hint(self, PeerHint::down);
  }
  std::shared_ptr<Mailbox> find(PeerId peer) {
    const std::lock_guard lock(mutex_);
    const auto found = mailboxes_.find(peer);
    return found == mailboxes_.end() ? nullptr : found->second;
  }

private:
  std::mutex mutex_;
  std::map<PeerId, std::shared_ptr<Mailbox>> mailboxes_;
};

namespace {

class InprocTransport final : public Transport {
public:
  InprocTransport(std::shared_ptr<InprocHub> hub, PeerId self, std::uint32_t queue_frames)
      : hub_(std::move(hub)), self_(self), queue_frames_(queue_frames), mailbox_(std::make_shared<InprocHub::Mailbox>()) {}
  ~InprocTransport() override { close(); }

  void start(TransportHandlers handlers) override {
    handlers_ = std::move(handlers);
    thread_ = std::thread([this] { deliver(); });
    hub_->join(self_, mailbox_);
  }

  void close() override {
    hub_->leave(self_, mailbox_);
    {
      const std::lock_guard lock(mailbox_->mutex);
      mailbox_->closed = true;
    }
    mailbox_->ready.notify_one();
    if (thread_.joinable()) thread_.join();
    std::deque<InprocHub::Item> dropped;
    const std::lock_guard lock(mailbox_->mutex);
    dropped.swap(mailbox_->items);
  }

  PeerId self() const override { return self_; }
  std::string address() const override { return "inproc://" + std::to_string(self_); }

  Status add_peer(PeerId peer, const std::string&) override {
    {
      const std::lock_guard lock(mailbox_->mutex);
      if (!mailbox_->peers.insert(peer).second) return Done{};
    }
    if (hub_->find(peer)) mailbox_->post_hint(peer, PeerHint::up);
    return Done{};
  }
  void remove_peer(PeerId peer) override {
    const std::lock_guard lock(mailbox_->mutex);
    mailbox_->peers.erase(peer);
  }

  Status send(PeerId peer, const HeaderBytes& header, Shard payload) override {
    {
      const std::lock_guard lock(mailbox_->mutex);
      if (mailbox_->closed || !mailbox_->peers.contains(peer))
        return Error{ErrorCode::unreachable, "process " + std::to_string(peer) + " is not known"};
    }
    const auto bytes = payload.size();
    if (const auto target = hub_->find(peer)) {
      const std::lock_guard lock(target->mutex);
      if (!target->closed) {
        auto& waiting = target->waiting[self_];
        if (waiting >= queue_frames_) {
          target->refused.insert(self_);
          return Error{ErrorCode::pool_exhausted, "the queue to process " + std::to_string(peer) + " is full"};
        }
        ++waiting;
        target->items.push_back({.from = self_, .header = header, .payload = std::move(payload)});
        target->ready.notify_one();
      }
    }
    const std::lock_guard lock(statistics_mutex_);
    ++statistics_.frames_sent;
    statistics_.payload_bytes_sent += bytes;
    return Done{};
  }

  TransportStatistics statistics() const override {
    const std::lock_guard lock(statistics_mutex_);
    return statistics_;
  }

private:
  void deliver() {
    std::unique_lock lock(mailbox_->mutex);
    for (;;) {
      mailbox_->ready.wait(lock, [&] { return mailbox_->closed || !mailbox_->items.empty(); });
      if (mailbox_->closed) return;
      auto item = std::move(mailbox_->items.front());
      mailbox_->items.pop_front();
      bool was_refused = false;
      if (!item.is_hint) {
        --mailbox_->waiting[item.from];
        was_refused = mailbox_->refused.erase(item.from) > 0;
      }
      lock.unlock();
      if (was_refused)
        if (const auto sender = hub_->find(item.from)) sender->post_hint(self_, PeerHint::writable);
      if (item.is_hint) {
        if (handlers_.on_hint) handlers_.on_hint(item.from, item.hint);
      } else {
        {
          const std::lock_guard count(statistics_mutex_);
          ++statistics_.frames_received;
          statistics_.payload_bytes_received += item.payload.size();
        }
        if (handlers_.on_frame) handlers_.on_frame(item.from, item.header.bytes(), std::move(item.payload));
      }
      item = {};
      lock.lock();
    }
  }

  const std::shared_ptr<InprocHub> hub_;
  const PeerId self_;
  const std::uint32_t queue_frames_;
  const std::shared_ptr<InprocHub::Mailbox> mailbox_;
  TransportHandlers handlers_;
  std::thread thread_;
  mutable std::mutex statistics_mutex_;
  TransportStatistics statistics_;
};

}  // namespace

std::shared_ptr<InprocHub> make_inproc_hub() { return std::make_shared<InprocHub>(); }

std::unique_ptr<Transport> make_inproc_transport(std::shared_ptr<InprocHub> hub, PeerId self,
                                                 std::uint32_t queue_frames) {
  return std::make_unique<InprocTransport>(std::move(hub), self, queue_frames);
}

}  // namespace orrery::protocol
