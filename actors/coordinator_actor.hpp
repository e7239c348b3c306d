// The CAF side of the coordinator. Internal to actors/.

#pragma once

#include <map>
#include <set>

#include "actors/board.hpp"
#include "actors/control_state.hpp"
#include "actors/coordinator.hpp"
#include "base/json.hpp"
#include "compiler/model_folder.hpp"

namespace orrery::actors {

struct CoordinatorBoard {
  Coordinator::Phase phase = Coordinator::Phase::waiting;
  bool end_asked = false;
  std::string end_reason;
  Failure failure;
  std::vector<std::string> missing;
};

struct CoordinatorSetup {
  CoordinatorOptions options;
  std::shared_ptr<const compiler::ModelFolder> model;
  Board<CoordinatorBoard>* board = nullptr;
};

/// One request on its way through the stages. Spawned by the coordinator; tells client and coordinator how it ends.
struct RequestSetup {
  std::uint64_t request = 0;
  RequestSpec spec;
  std::uint32_t client_endpoint = 0;
  std::string client_data_address;
  caf::actor client, coordinator;
  std::vector<std::pair<topology::StageKind, caf::actor>> stages;  // Pipeline order.
};
struct RequestState {
  static inline const char* name = "request";
  RequestSetup setup;
  std::size_t at = 0;
  std::uint32_t prompt_rows = 0, negative_rows = 0;
  OrderedJson timings = OrderedJson::object();
  Time started{};
  bool ended = false;
};
caf::behavior request_actor(caf::stateful_actor<RequestState>* self, RequestSetup setup);

class CoordinatorState {
public:
  static inline const char* name = "coordinator";

  void start(caf::stateful_actor<CoordinatorState>* self, CoordinatorSetup setup);
  NodeWelcome on_hello(const NodeHello& hello);
  void on_load_progress(const LoadProgress& progress);
  ClusterRoutes on_routes();
  Submitted on_submit(const Submit& submit);
  void on_cancel(const Cancel& cancel);
  void on_fetched(const Fetched& fetched);
  void on_request_event(const RequestEvent& event);  // Final ones, from request actors.
  void on_shutdown(const Shutdown& order);
  void on_down(const caf::down_msg& down);
  caf::response_promise on_status();

private:
  struct Node {
    NodeHello hello;
    bool loaded = false;
    bool lost = false;
    std::uint64_t bytes_done = 0, bytes_total = 0;
    std::string numerics;
  };
  struct Request {
    RequestSpec spec;
    caf::actor actor, client;
    std::uint32_t client_endpoint = 0;
    bool running = true;
    std::string state = "running";
    std::string stage;
    std::uint64_t done = 0, total = 0;
  };

  void load_all();
  void spawn_stages();
  void fail(Failure failure);
  void publish_missing();
  void drop(std::uint64_t request);
  std::vector<PeerAddress> peers() const;

  caf::stateful_actor<CoordinatorState>* self_ = nullptr;
  CoordinatorSetup setup_;
  std::uint64_t epoch_ = 1;
  Coordinator::Phase phase_ = Coordinator::Phase::waiting;
  std::map<std::string, Node> nodes_;  // By name; those that joined.
  std::map<topology::StageKind, caf::actor> stages_;
  std::map<std::uint64_t, Request> requests_;
  std::uint64_t next_request_ = 1;
  std::string degraded_;  // Why no further request is taken; empty: all is well.
};

caf::behavior coordinator_actor(caf::stateful_actor<CoordinatorState>* self, CoordinatorSetup setup);

struct Coordinator::State {
  Control* control = nullptr;
  Board<CoordinatorBoard> board;
  caf::actor actor;
  std::uint16_t port = 0;
};

}  // namespace orrery::actors
