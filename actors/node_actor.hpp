// The node actor: one per node process. Starts cards as the plan says, spawns stages, says how it is. Thin glue over
// NodeRuntime; what blocks (reading weights, connecting to other nodes) runs on one background thread.

#pragma once

#include "actors/board.hpp"
#include "actors/lane_worker.hpp"
#include "actors/node_runtime.hpp"
#include "actors/stage_actor.hpp"

namespace orrery::actors {

/// What the process that hosts the node waits for.
struct NodeBoard {
  bool ended = false;
  std::string reason;
  Failure failure;
};

struct NodeActorSetup {
  Control::State* control = nullptr;
  NodeRuntime* runtime = nullptr;  // Outlives the actor.
  Board<NodeBoard>* board = nullptr;
  std::string name;
  LaneWorker* background = nullptr;
};

class NodeActorState {
public:
  static inline const char* name = "node";
  ~NodeActorState();

  void start(caf::stateful_actor<NodeActorState>* self, NodeActorSetup setup);
  caf::response_promise on_load(const LoadPlan& order);
  void on_loaded(const LoadFinished& finished);
  caf::response_promise on_spawn_stage(const SpawnStage& order);
  void on_cards_found(const CardsFound& found);
  CardHandle on_get_card(const GetCard& order);
  void on_drop(const DropRequest& order);
  void on_shutdown(const Shutdown& order);
  void on_down(const caf::down_msg& down);

private:
  void end(const std::string& reason, Failure failure);
  void stop_children();

  caf::stateful_actor<NodeActorState>* self_ = nullptr;
  NodeActorSetup setup_;
  LoadPlan order_;
  caf::actor coordinator_;
  caf::response_promise load_promise_;
  std::map<std::uint32_t, caf::actor> cards_;  // By plan number; this node's.
  struct Spawning {
    SpawnStage order;
    caf::response_promise promise;
  };
  std::map<std::uint64_t, Spawning> spawning_;
  std::uint64_t next_ticket_ = 1;
  std::vector<caf::actor> stages_;
};

caf::behavior node_actor(caf::stateful_actor<NodeActorState>* self, NodeActorSetup setup);

}  // namespace orrery::actors
