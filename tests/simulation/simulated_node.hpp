// A node process without cards and sockets: the product's node actor, keeper and exchange over cards whose time is
// virtual and whose arithmetic is small, but real.
//
// A card's lane holds latents of 16 x 4 values. A step makes one partial sum per slice, whose values are of such
// different size that f32 sums depend on their order; partial sums travel through the Exchange and are added by the
// product's OrderedReduceScatter. So a shard that is lost, stale, repeated or out of order stops the result or changes
// it, and the same request gives the same bytes on every cluster.
//
// What a thread would wait for, a coroutine does: `Routine` runs until it waits, and ends by itself.

#pragma once

#include <coroutine>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actors/keeper.hpp"
#include "actors/node_actor.hpp"
#include "actors/node_backend.hpp"
#include "world.hpp"

namespace orrery::simulation {

/// A coroutine that nobody waits for. Suspended ones are destroyed with the set that they are in.
struct Routine {
  struct promise_type {
    std::set<void*>* alive = nullptr;
    template <class Owner, class... Arguments>
    promise_type(Owner& owner, Arguments&&...) : alive(&owner.routines()) {}
    ~promise_type() {
      if (alive != nullptr) alive->erase(std::coroutine_handle<promise_type>::from_promise(*this).address());
    }
    Routine get_return_object() {
      alive->insert(std::coroutine_handle<promise_type>::from_promise(*this).address());
      return {};
    }
    std::suspend_never initial_suspend() { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };
};
/// Destroys all that are suspended.
void end_routines(std::set<void*>& routines);

/// What goes wrong with a card, until it is healed.
struct CardFaults {
  bool hang = false;         // The next command does not end; only the end of the process frees the card.
  std::uint32_t fail = 0;    // So many of the next programs fail.
  double slow = 1;
};

/// What all nodes of a run share: rules that must never be broken, and what is measured.
class Observer {
public:
  virtual ~Observer() = default;
  virtual void violated(const std::string& invariant, const std::string& what) = 0;
  virtual void plan_loaded(const Process& process, std::uint64_t epoch, std::uint64_t digest) = 0;
};

class SimulatedNode;

class SimulatedCard final : public actors::CardBackend {
public:
  SimulatedCard(SimulatedNode& node, std::uint32_t number) : node_(node), number_(number) {}
  ~SimulatedCard() override { end_routines(routines_); }
  SimulatedCard(const SimulatedCard&) = delete;
  SimulatedCard& operator=(const SimulatedCard&) = delete;

  void open_lane(const actors::OpenLane& order, Reply reply) override;
  void run(const actors::RunProgram& order, Reply reply) override;
  void close_lane(const actors::CloseLane& order, Reply reply) override;
  void cancel(std::uint64_t request) override;

  void cancel_all();
  /// Obeys nothing from now on: its epoch is over.
  void retire();
  bool idle() const { return busy_.empty(); }
  /// Hangs in a command; only the end of the process frees it, and what is in its lanes.
  bool stuck() const { return stuck_; }
  std::size_t lanes() const { return lanes_.size(); }
  std::size_t queued() const;
  /// Goes on with what can go on.
  bool poll();
  std::set<void*>& routines() { return routines_; }

private:
  struct Lane {
    actors::OpenLane open;
    std::vector<float> latents, prompt, negative;
    std::uint64_t chain = 0;  // Of the decoder: what it has made so far.
    bool cancelled = false;
  };
  using LaneKey = std::pair<std::uint64_t, std::uint8_t>;
  struct Wait {
    protocol::MessageKey key;
    Time deadline{};
    bool is_collective = false;
    std::optional<Result<protocol::Message>> outcome;
    std::coroutine_handle<> handle;
  };
  struct Receive;
  struct Sleep;

  void post(std::uint8_t stage, std::function<void()> work);
  void done(std::uint8_t stage);
  Routine run_now(actors::RunProgram order, Reply reply);
  Status send(const protocol::MessageKey& key, const Shape& shape, const std::vector<float>& values, bool is_collective);
  Result<std::vector<float>> values_of(const protocol::Message& message) const;

  SimulatedNode& node_;
  const std::uint32_t number_;
  bool retired_ = false, stuck_ = false;
  std::map<LaneKey, Lane> lanes_;
  std::map<std::uint8_t, std::deque<std::function<void()>>> queues_;
  std::set<std::uint8_t> busy_;
  std::vector<Wait*> waits_;
  std::set<void*> routines_;
};

struct NodeOptions {
  std::string name;
  std::uint32_t peer = 0;
  std::uint64_t cluster_id = 0;
  std::shared_ptr<const compiler::ModelFolder> model;
  std::function<std::optional<caf::actor>()> coordinator;                          // The living one.
  std::function<std::optional<caf::actor>(const std::string& node)> node_named;    // The living one of that name.
  std::map<std::uint32_t, CardFaults>* faults = nullptr;                           // By index within the node.
};

class SimulatedNode final : public actors::NodeBackend {
public:
  SimulatedNode(World& world, ProcessPointer process, NodeOptions options, Observer& observer);
  ~SimulatedNode() override;
  SimulatedNode(const SimulatedNode&) = delete;
  SimulatedNode& operator=(const SimulatedNode&) = delete;

  /// The node actor, told to join.
  void join();
  const caf::actor& actor() const { return actor_; }
  actors::NodeBoard board() const { return board_.get(); }
  std::string names_left() const;  // What is here that should not be, at rest; empty: nothing.
  std::string over_bounds() const;

  const Clock& clock() const override { return world_.clock(); }
  actors::NodeHello hello() const override;
  void find_coordinator(std::function<void(Result<caf::actor>)> found) override;
  void find_nodes(const std::vector<actors::PeerAddress>& peers, std::function<void(Result<std::vector<caf::actor>>)> found) override;
  void load(const actors::LoadPlan& order, std::function<void(std::uint64_t, std::uint64_t)> progress,
            std::function<void(Result<actors::PlanLoaded>)> loaded) override;
  const topology::Plan& plan() const override { return plan_; }
  const std::shared_ptr<const compiler::ModelFolder>& model() const override { return options_.model; }
  std::map<std::uint32_t, actors::CardBackend*> cards() override;
  void drop(std::uint64_t request) override;
  void drop_client(std::uint64_t request) override;
  Status send_kept(const actors::SendKept& order) override;
  std::vector<actors::SilentNode> silent_nodes(Duration limit) const override;
  actors::NodeHealth health() const override;
  actors::FaultAnswer fault(const actors::FaultCommand& command) override;
  void hang(const std::string& fault) override;

  // For its cards.
  World& world() { return world_; }
  const ProcessPointer& process() const { return process_; }
  protocol::Exchange& exchange() { return *process_->exchange; }
  Observer& observer() { return observer_; }
  CardFaults& faults_of(std::uint32_t card);
  Duration deadline() const { return deadline_; }
  std::uint64_t epoch() const { return epoch_; }
  Status add_client(std::uint64_t request, std::uint32_t endpoint, const std::string& address);
  std::set<void*>& routines() { return routines_; }

private:
  struct Load {
    actors::LoadPlan order;
    std::function<void(std::uint64_t, std::uint64_t)> progress;
    std::function<void(Result<actors::PlanLoaded>)> loaded;
  };
  struct Sleep;
  Routine load_all();
  Result<actors::PlanLoaded> take(const actors::LoadPlan& order);
  void seek(std::function<void(Result<caf::actor>)> found);
  bool poll();

  World& world_;
  const ProcessPointer process_;
  const NodeOptions options_;
  Observer& observer_;
  const std::uint64_t session_;
  actors::Board<actors::NodeBoard> board_;
  std::unique_ptr<actors::Keeper> keeper_;
  caf::actor actor_;
  topology::Plan plan_;
  std::uint64_t epoch_ = 0;
  Duration deadline_ = std::chrono::seconds(3);
  std::map<std::uint32_t, std::unique_ptr<SimulatedCard>> cards_;
  std::vector<std::unique_ptr<SimulatedCard>> retired_;  // Of former epochs: their actors may still be told something.
  std::set<std::string> weights_;                        // What cards hold, so that a reload is quick.
  std::map<protocol::EndpointId, protocol::PeerId> routes_;
  std::map<std::uint64_t, std::uint32_t> clients_;
  std::map<std::uint32_t, std::string> names_;
  std::deque<Load> loads_;
  bool loading_ = false;
  std::set<void*> routines_;
};

}  // namespace orrery::simulation
