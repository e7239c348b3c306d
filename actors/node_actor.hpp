// The node actor: one per node process. Joins the coordinator, and joins again whenever it lost it; starts cards as the
// plan says, spawns stages, says which neighbours are silent. What takes time is the backend's business.

#pragma once

#include "actors/board.hpp"
#include "actors/control_state.hpp"
#include "actors/node_backend.hpp"
#include "actors/stage_actor.hpp"

namespace orrery::actors {

/// What the process that hosts the node waits for.
struct NodeBoard {
  bool joined = false;
  bool ended = false;
  bool stuck = false;  // A card hangs: only the end of the process frees it.
  std::string reason;
  Failure failure;
};

struct NodeActorSetup {
  NodeBackend* backend = nullptr;  // Outlives the actor.
  Board<NodeBoard>* board = nullptr;
  std::string name;
};

class NodeActorState {
public:
  static inline const char* name = "node";

  void start(caf::stateful_actor<NodeActorState>* self, NodeActorSetup setup);
  void on_rejoin(const Rejoin& order);
  void on_coordinator_found(const CoordinatorFound& found);
  caf::response_promise on_load(const LoadPlan& order);
  void on_loaded(const LoadFinished& finished);
  caf::response_promise on_spawn_stage(const SpawnStage& order);
  void on_nodes_found(const NodesFound& found);
  CardHandle on_get_card(const GetCard& order);
  void on_ping(const Ping& ping);
  void on_shutdown(const Shutdown& order);
  void on_down(const caf::down_msg& down);

private:
  struct Spawning {
    SpawnStage order;
    caf::response_promise promise;
    std::vector<std::uint32_t> wanted;            // Cards, in the order of the plan's groups and ranks.
    std::map<std::uint32_t, caf::actor> cards;    // Those that were found.
    std::vector<PeerAddress> peers;               // Nodes that the stage talks to, without this one.
    std::vector<caf::actor> nodes;                // Of these.
    std::size_t answers_due = 0;
    Failure failure;
  };

  /// Whether this epoch's cards are here and no later one was ordered.
  bool is_current(std::uint64_t epoch) const { return epoch == ready_epoch_ && epoch == loading_epoch_; }
  void seek();
  void end(const std::string& reason, Failure failure, bool stuck = false);
  void stop_children();
  void start_load();
  void answer_spawn(std::uint64_t ticket);
  Result<caf::actor> spawn_stage(const Spawning& spawning);

  caf::stateful_actor<NodeActorState>* self_ = nullptr;
  NodeActorSetup setup_;
  LoadPlan order_;
  std::uint64_t loading_epoch_ = 0;  // The newest that was ordered.
  std::uint64_t ready_epoch_ = 0;    // Of cards_ and stages_.
  bool seeking_ = false;
  caf::actor coordinator_;
  std::map<std::uint64_t, caf::response_promise> load_promises_;  // By epoch.
  std::map<std::uint32_t, caf::actor> cards_;                     // By plan number; this node's.
  std::map<std::uint64_t, Spawning> spawning_;
  std::uint64_t next_ticket_ = 1;
  std::vector<caf::actor> stages_;
  std::vector<caf::actor_addr> ending_;  // Card actors of the epoch before; they may still use their cards.
  bool load_due_ = false;                // When these have ended.
};

caf::behavior node_actor(caf::stateful_actor<NodeActorState>* self, NodeActorSetup setup);

}  // namespace orrery::actors
