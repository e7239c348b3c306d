// Keeps copies of what running requests need to go on after a failure: text embeddings and the newest latents.
//
//   denoiser's first card ── latents after step k ──▶ keeper of its own node
//                                                └──▶ keeper of another node: another failure domain
//   after a failure:  a keeper that lives ── latents ──▶ every card of the new group
//
// A keeper is an endpoint of the data plane in each node process. What it gets it copies at once, so no network
// buffer and no credit is held; a newer step replaces an older one. What it holds outlives epochs. Plain code, no CAF.
//
// See also: messages.hpp (StageRun::keepers, SendKept), README.md, "What happens when something dies".

#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "actors/messages.hpp"
#include "base/buffer.hpp"
#include "base/tensor.hpp"
#include "protocol/exchange.hpp"

namespace orrery::actors {

/// Threads:   any.
/// Ownership: the exchange outlives it.
/// Cost:      one copy of the bytes per kept tensor; memory for one tensor per request and edge.
class Keeper {
public:
  explicit Keeper(protocol::Exchange& exchange);
  ~Keeper();
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;

  protocol::EndpointId endpoint() const { return endpoint_; }
  /// What is here now, by request and edge.
  std::vector<KeptItem> items() const;
  /// Sends one item to each target, with its edge and step. Fails with not_found when another step or nothing is kept,
  /// with bad_frame when the bytes are not those that came (the item is dropped), and as Exchange::send.
  Status send(std::uint64_t request, std::uint32_t edge, std::uint32_t step, const std::vector<std::uint32_t>& targets);
  void forget(std::uint64_t request);

private:
  struct Item {
    std::uint32_t step = 0;
    DType dtype = DType::f32;
    Shape shape;
    Shard bytes;
    std::uint64_t digest = 0;
  };
  void keep(const protocol::MessageKey& key, const protocol::Message& message);

  protocol::Exchange& exchange_;
  const protocol::EndpointId endpoint_;
  mutable std::mutex mutex_;
  std::map<std::pair<std::uint64_t, std::uint32_t>, Item> items_;  // By request and edge. Guarded by mutex_.
};

}  // namespace orrery::actors
