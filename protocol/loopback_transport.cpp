#include "protocol/loopback_transport.hpp"

#include <deque>
#include <map>
#include <set>
#include <utility>

namespace orrery::protocol {

struct LoopbackNetwork::State {
  class Station;
  struct Item {
    PeerId from = 0, to = 0;
    bool is_hint = false;
    PeerHint hint = PeerHint::up;
    HeaderBytes header = {};
    Shard payload = {};
  };
  std::map<PeerId, Station*> stations;
  std::deque<Item> items;
  std::map<std::pair<PeerId, PeerId>, std::uint32_t> waiting;
  std::set<std::pair<PeerId, PeerId>> refused;  // Sender, receiver: a send found the queue full.

  bool deliver_one();
};

class LoopbackNetwork::State::Station final : public Transport {
public:
  Station(std::shared_ptr<State> network, PeerId self, std::uint32_t queue_frames)
      : network_(std::move(network)), self_(self), queue_frames_(queue_frames) {}
  ~Station() override { close(); }

  void start(TransportHandlers handlers) override {
    handlers_ = std::move(handlers);
    network_->stations[self_] = this;
    // Whoever knows us learns that we are here, and we learn of those whom we know.
    for (const auto& [id, other] : network_->stations)
      if (id != self_ && other->peers_.contains(self_)) hint(self_, id, PeerHint::up);
  }

  void close() override {
    if (closed_) return;
    closed_ = true;
    const auto found = network_->stations.find(self_);
    if (found == network_->stations.end() || found->second != this) return;
    network_->stations.erase(found);
    std::deque<Item> kept, dropped;
    for (auto& item : network_->items) (item.from == self_ || item.to == self_ ? dropped : kept).push_back(std::move(item));
    network_->items = std::move(kept);
    std::erase_if(network_->waiting,
                  [&](const auto& entry) { return entry.first.first == self_ || entry.first.second == self_; });
    for (const auto& [id, other] : network_->stations)
      if (other->peers_.contains(self_)) hint(self_, id, PeerHint::down);
  }

  PeerId self() const override { return self_; }
  std::string address() const override { return "loopback://" + std::to_string(self_); }

  Status add_peer(PeerId peer, const std::string&) override {
    if (peers_.insert(peer).second && network_->stations.contains(peer)) hint(peer, self_, PeerHint::up);
    return Done{};
  }
  void remove_peer(PeerId peer) override { peers_.erase(peer); }

  Status send(PeerId peer, const HeaderBytes& header, Shard payload) override {
    if (closed_ || !peers_.contains(peer))
      return Error{ErrorCode::unreachable, "process " + std::to_string(peer) + " is not known"};
    ++statistics_.frames_sent;
    statistics_.payload_bytes_sent += payload.size();
    if (!network_->stations.contains(peer)) return Done{};  // Lost, as on any network.
    auto& queued = network_->waiting[{self_, peer}];
    if (queued >= queue_frames_) {
      --statistics_.frames_sent;
      statistics_.payload_bytes_sent -= payload.size();
      network_->refused.insert({self_, peer});
      return Error{ErrorCode::pool_exhausted, "the queue to process " + std::to_string(peer) + " is full"};
    }
    ++queued;
    network_->items.push_back({.from = self_, .to = peer, .header = header, .payload = std::move(payload)});
    return Done{};
  }

  TransportStatistics statistics() const override { return statistics_; }

  void take(Item& item) {
    if (item.is_hint) {
      if (handlers_.on_hint) handlers_.on_hint(item.from, item.hint);
      return;
    }
    ++statistics_.frames_received;
    statistics_.payload_bytes_received += item.payload.size();
    if (handlers_.on_frame) handlers_.on_frame(item.from, item.header.bytes(), std::move(item.payload));
  }

  // Tells `to` something about `about`.
  void hint(PeerId about, PeerId to, PeerHint what) {
    network_->items.push_back({.from = about, .to = to, .is_hint = true, .hint = what});
  }

private:
  const std::shared_ptr<State> network_;
  const PeerId self_;
  const std::uint32_t queue_frames_;
  TransportHandlers handlers_;
  std::set<PeerId> peers_;
  TransportStatistics statistics_;
  bool closed_ = false;
};

bool LoopbackNetwork::State::deliver_one() {
  if (items.empty()) return false;
  auto item = std::move(items.front());
  items.pop_front();
  if (!item.is_hint) {
    --waiting[{item.from, item.to}];
    if (refused.erase({item.from, item.to}))
      items.push_back({.from = item.to, .to = item.from, .is_hint = true, .hint = PeerHint::writable});
  }
  if (const auto found = stations.find(item.to); found != stations.end()) found->second->take(item);
  return true;
}

LoopbackNetwork::LoopbackNetwork() : state_(std::make_shared<State>()) {}
LoopbackNetwork::~LoopbackNetwork() = default;

std::unique_ptr<Transport> LoopbackNetwork::make_transport(PeerId self, std::uint32_t queue_frames) {
  return std::make_unique<State::Station>(state_, self, queue_frames);
}

bool LoopbackNetwork::deliver_one() { return state_->deliver_one(); }

std::size_t LoopbackNetwork::deliver_all() {
  std::size_t count = 0;
  while (deliver_one()) ++count;
  return count;
}

}  // namespace orrery::protocol
