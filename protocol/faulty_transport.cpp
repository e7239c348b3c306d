#include "protocol/faulty_transport.hpp"

#include <algorithm>
#include <iterator>
#include <mutex>
#include <set>
#include <vector>

#include "base/random.hpp"

namespace orrery::protocol {
namespace {

struct Held {
  PeerId peer;
  HeaderBytes header;
  Shard payload;
  std::uint64_t release_at;  // Number of the send that lets it go.
};

}  // namespace

struct FaultyTransport::State {
  std::unique_ptr<Transport> inner;
  mutable std::mutex mutex;
  FaultOptions options;
  Random random;
  FaultCounts counts;
  std::set<PeerId> cut;
  std::vector<Held> held;
  std::uint64_t sends = 0;

  State(std::unique_ptr<Transport> t, FaultOptions o) : inner(std::move(t)), options(o), random(o.seed) {}

  bool happens(double probability) { return probability > 0 && random.uniform() < probability; }

  void corrupt(HeaderBytes& header, Shard& payload) {
    const bool hit_payload = payload.size() > 0 && random.below(2) == 0;
    if (hit_payload) {
      std::vector<std::byte> copy(payload.bytes().begin(), payload.bytes().end());
      copy[random.below(copy.size())] ^= static_cast<std::byte>(1U << random.below(8));
      payload = Shard::of(std::move(copy));
    } else if (!header.bytes().empty()) {
      header.bytes()[random.below(header.bytes().size())] ^= static_cast<std::byte>(1U << random.below(8));
    }
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

FaultCounts FaultyTransport::counts() const {
  const std::lock_guard lock(state_->mutex);
  return state_->counts;
}

void FaultyTransport::start(TransportHandlers handlers) { state_->inner->start(std::move(handlers)); }

void FaultyTransport::close() {
  std::vector<Held> dropped;
  {
    const std::lock_guard lock(state_->mutex);
    dropped.swap(state_->held);
  }
  state_->inner->close();
}

PeerId FaultyTransport::self() const { return state_->inner->self(); }
std::string FaultyTransport::address() const { return state_->inner->address(); }
Status FaultyTransport::add_peer(PeerId peer, const std::string& address) {
  return state_->inner->add_peer(peer, address);
}
void FaultyTransport::remove_peer(PeerId peer) { state_->inner->remove_peer(peer); }
TransportStatistics FaultyTransport::statistics() const { return state_->inner->statistics(); }

Status FaultyTransport::send(PeerId peer, const HeaderBytes& header, Shard payload) {
  auto sent_header = header;
  std::vector<Held> released;
  int copies = 1;
  {
    const std::lock_guard lock(state_->mutex);
    auto& state = *state_;
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
        state.corrupt(sent_header, payload);
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
  }
  Status status = Done{};
  for (; copies > 0 && status.ok(); --copies) status = state_->inner->send(peer, sent_header, payload);
  // A held frame that the inner transport has no room for is lost, which is a fault too.
  for (auto& held : released) (void)state_->inner->send(held.peer, held.header, std::move(held.payload));
  return status;
}

}  // namespace orrery::protocol
