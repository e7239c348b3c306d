// What node and card actors drive: the seam between the control plane's logic and real cards, sockets and threads.
//
//   node actor ──▶ NodeBackend ─┬─ NodeServices   a node process: NodeRuntime, connections, background threads
//   card actor ──▶ CardBackend  └─ a simulated node (tests/simulation): the same actors under a virtual clock
//
// Nothing here blocks: what takes time is ordered, and its answer comes through a function, on any thread.
//
// Internal to actors/: this header includes CAF.

#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "actors/messages.hpp"
#include "base/clock.hpp"
#include "compiler/model_folder.hpp"
#include "protocol/exchange.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

/// One card: lanes and programs.
class CardBackend {
public:
  using Reply = std::function<void(CardDone)>;
  virtual ~CardBackend() = default;
  virtual void open_lane(const OpenLane& order, Reply reply) = 0;
  virtual void run(const RunProgram& order, Reply reply) = 0;
  virtual void close_lane(const CloseLane& order, Reply reply) = 0;
  /// The request's programs end with `cancelled` as soon as they notice: within one command.
  virtual void cancel(std::uint64_t request) = 0;
};

/// A neighbour that a card here waits for and that has fallen silent.
struct SilentNode {
  std::string name;
  Duration silence{};
  std::string waiting_for;
};

class NodeBackend {
public:
  virtual ~NodeBackend() = default;

  virtual const Clock& clock() const = 0;
  /// What this node says of itself; `node`, `epoch` are filled in by the node actor.
  virtual NodeHello hello() const = 0;
  /// Looks for the coordinator, for as long as it may take; `found` gets its actor, or why the search was given up.
  virtual void find_coordinator(std::function<void(Result<caf::actor>)> found) = 0;
  /// The node actors of these processes, in order.
  virtual void find_nodes(const std::vector<PeerAddress>& peers, std::function<void(Result<std::vector<caf::actor>>)> found) = 0;

  /// NodeRuntime::load, in the background. One at a time.
  virtual void load(const LoadPlan& order, std::function<void(std::uint64_t done, std::uint64_t total)> progress,
                    std::function<void(Result<PlanLoaded>)> loaded) = 0;
  virtual const topology::Plan& plan() const = 0;
  virtual const std::shared_ptr<const compiler::ModelFolder>& model() const = 0;
  /// Card number of the plan -> the card; only this node's.
  virtual std::map<std::uint32_t, CardBackend*> cards() = 0;

  virtual void drop(std::uint64_t request) = 0;
  virtual void drop_client(std::uint64_t request) = 0;
  virtual Status send_kept(const SendKept& order) = 0;
  virtual std::vector<SilentNode> silent_nodes(Duration limit) const = 0;
  virtual NodeHealth health() const = 0;
  virtual FaultAnswer fault(const FaultCommand& command) = 0;
  /// Blocks until the fault of this name is healed.
  virtual void hang(const std::string& fault) = 0;
};

}  // namespace orrery::actors
