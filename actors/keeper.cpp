#include "actors/keeper.hpp"

#include "actors/edges.hpp"
#include "base/digest.hpp"
#include "base/fault_point.hpp"

namespace orrery::actors {

Keeper::Keeper(protocol::Exchange& exchange) : exchange_(exchange), endpoint_(first_keeper_endpoint + exchange.self()) {
  exchange_.subscribe(endpoint_, [this](const protocol::MessageKey& key, protocol::Message message) { keep(key, message); });
}

Keeper::~Keeper() { exchange_.subscribe(endpoint_, {}); }

void Keeper::keep(const protocol::MessageKey& key, const protocol::Message& message) {
  ORRERY_FAULT_POINT("keeper.before_keep");
  std::vector<std::byte> bytes(message.bytes());
  message.copy_to(bytes);
  Item item;
  item.step = key.step;
  item.dtype = message.dtype;
  item.shape = message.shape;
  item.digest = xxh3_of(bytes);
  item.bytes = Shard::of(std::move(bytes));
  {
    const std::lock_guard lock(mutex_);
    auto& slot = items_[{key.request, key.op}];
    std::swap(slot, item);  // The newest that arrives: after a resume from an earlier step that is the lower one.
  }
  ORRERY_FAULT_POINT("keeper.after_keep");
}

std::vector<KeptItem> Keeper::items() const {
  const std::lock_guard lock(mutex_);
  std::vector<KeptItem> all;
  for (const auto& [key, item] : items_) {
    const auto rows = item.shape.empty() ? 0 : static_cast<std::uint32_t>(item.shape.front());
    all.push_back({key.first, key.second, item.step, rows, item.digest});
  }
  return all;
}

Status Keeper::send(std::uint64_t request, std::uint32_t edge, std::uint32_t step, const std::vector<std::uint32_t>& targets) {
  Item item;
  {
    const std::lock_guard lock(mutex_);
    const auto found = items_.find({request, edge});
    if (found == items_.end() || found->second.step != step)
      return Error{ErrorCode::not_found, "nothing is kept of edge " + std::to_string(edge) + " after step " + std::to_string(step) +
                                             " of request " + std::to_string(request)};
    // Memory that lay idle for long may have changed: a wrong restart point would make a wrong video.
    if (xxh3_of(found->second.bytes.bytes()) != found->second.digest) {
      items_.erase(found);
      return Error{ErrorCode::bad_frame, "what was kept of request " + std::to_string(request) + " is damaged"};
    }
    item = found->second;
  }
  for (const auto target : targets) {
    const protocol::MessageKey key{request, step, edge_stream, 0, edge, endpoint_, target};
    ORRERY_TRY_DONE(exchange_.send(key, item.dtype, item.shape, item.bytes));
  }
  return Done{};
}

void Keeper::forget(std::uint64_t request) {
  std::vector<Item> dropped;  // Let go of outside the lock.
  const std::lock_guard lock(mutex_);
  for (auto each = items_.lower_bound({request, 0}); each != items_.end() && each->first.first == request;) {
    dropped.push_back(std::move(each->second));
    each = items_.erase(each);
  }
}

}  // namespace orrery::actors
