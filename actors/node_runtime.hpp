// What a node process holds: its cards, their weights and lanes, and its place on the data plane.
//
// Plain code under the node and card actors (no CAF here), so that it can be driven by a test.

#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "actors/card_runtime.hpp"
#include "actors/fault_switch.hpp"
#include "actors/keeper.hpp"
#include "actors/messages.hpp"
#include "base/clock.hpp"
#include "base/keys.hpp"
#include "cards/card.hpp"
#include "compiler/model_folder.hpp"
#include "protocol/exchange.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

/// What a node needs to know before it has a plan.
struct NodeRuntimeOptions {
  std::string name;
  std::uint64_t cluster_id = 0;
  std::string data_bind = "tcp://127.0.0.1:0";  // protocol::ZmqOptions::bind
  std::string data_advertise;
  bool share_memory = true;  // With processes of this host (protocol/host_transport.hpp).
  protocol::PeerId peer = 0;
  Security security = {};
  bool allow_faults = false;  // Cards and transport can be made to misbehave (fault_switch.hpp).
};

/// Threads: `load` from one thread at a time; `plan`, `model` and `cards` while it does not run; the rest from any.
class NodeRuntime {
public:
  static Result<std::unique_ptr<NodeRuntime>> create(const NodeRuntimeOptions& options);
  ~NodeRuntime();

  std::string data_address() const;

  /// Begins an epoch: ends all work of the one before, makes the cards of this node as the plan says, reads the weights
  /// that they own and do not hold yet, and joins the data plane. `progress(done, total)` in bytes; false cancels.
  /// Fails with stale_epoch when the epoch is not a later one, and with peer_lost when a card hangs in a command:
  /// nothing but the end of the process frees it then.
  Result<PlanLoaded> load(const LoadPlan& order, const std::function<bool(std::uint64_t, std::uint64_t)>& progress);

  const topology::Plan& plan() const { return plan_; }
  const std::shared_ptr<const compiler::ModelFolder>& model() const { return model_; }
  /// Card number of the plan -> its runtime; only this node's cards.
  const std::map<std::uint32_t, std::unique_ptr<CardRuntime>>& cards() const { return cards_; }
  protocol::Exchange& exchange() { return *exchange_; }
  Keeper& keeper() { return *keeper_; }
  const Clock& clock() const { return clock_; }
  std::uint64_t epoch() const { return epoch_; }

  /// Ends a request on all cards of this node, and forgets what is kept of it.
  void drop(std::uint64_t request);
  /// The request goes on without a client.
  void drop_client(std::uint64_t request);
  /// A request's client becomes reachable on the data plane, until the request is dropped.
  Status add_client(std::uint64_t request, std::uint32_t endpoint, const std::string& address);

  NodeHealth health() const;
  /// Null without allow_faults.
  FaultSwitch* faults() { return faults_.get(); }

private:
  explicit NodeRuntime(const NodeRuntimeOptions& options) : options_(options) {}
  Status route();
  Status make_routes(const LoadPlan& order, bool with_cards);
  Result<std::unique_ptr<cards::Card>> make_card(const cards::CardOptions& options, std::uint32_t index);

  NodeRuntimeOptions options_;
  SteadyClock clock_;
  std::unique_ptr<FaultSwitch> faults_;  // First: cards and transport are bound to it.
  std::unique_ptr<protocol::Exchange> exchange_;
  std::unique_ptr<Keeper> keeper_;
  std::shared_ptr<const compiler::ModelFolder> model_;
  topology::Plan plan_;
  std::atomic<std::uint64_t> epoch_{0};
  std::string model_folder_;
  bool streamed_ = false;  // How the cards hold their weights.
  std::map<protocol::EndpointId, protocol::PeerId> routes_;
  std::map<std::uint64_t, protocol::EndpointId> clients_;  // By request.
  std::mutex routes_mutex_;                                // Guards routes_ and clients_.
  mutable std::mutex cards_mutex_;  // `load` changes the table while others ask.
  std::map<std::uint32_t, std::unique_ptr<CardRuntime>> cards_;
};

}  // namespace orrery::actors
