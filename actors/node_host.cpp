#include "actors/node_host.hpp"

#include <unistd.h>

#include <thread>

#include "actors/node_actor.hpp"

namespace orrery::actors {

struct NodeHost::State {
  Board<NodeBoard> board;
  std::unique_ptr<NodeRuntime> runtime;
  std::unique_ptr<Control> control;
  std::unique_ptr<LaneWorker> background = std::make_unique<LaneWorker>();
  caf::actor node;
};

NodeHost::NodeHost(std::unique_ptr<State> state) : state_(std::move(state)) {}

NodeHost::~NodeHost() {
  if (state_->node) end_actor(state_->control->state().system, std::exchange(state_->node, nullptr));
  // The background thread asked actors, so CAF's thread-local logger holds on to the system until it has ended.
  state_->background.reset();
  state_->control.reset();  // Waits for the other actors.
}

bool NodeHost::wait(Duration timeout) {
  return state_->board.wait_for(timeout, [](const NodeBoard& board) { return board.ended; });
}

Status NodeHost::outcome() const {
  const auto board = state_->board.get();
  if (!board.failure.ok()) return board.failure.error();
  return Done{};
}

Result<std::unique_ptr<NodeHost>> NodeHost::start(const NodeHostOptions& options, const std::function<bool()>& interrupted) {
  auto state = std::make_unique<State>();
  NodeRuntimeOptions runtime;
  runtime.name = options.name;
  runtime.cluster_id = options.cluster_id;
  runtime.peer = options.peer;
  runtime.data_bind = options.data_bind.empty() ? "tcp://" + options.listen_host + ":0" : options.data_bind;
  ORRERY_TRY(made, NodeRuntime::create(runtime));
  state->runtime = std::move(made);
  state->control = std::make_unique<Control>();
  auto& control = state->control->state();

  NodeActorSetup setup;
  setup.control = &control;
  setup.runtime = state->runtime.get();
  setup.board = &state->board;
  setup.name = options.name;
  setup.background = state->background.get();
  state->node = control.system.spawn(node_actor, setup);
  std::unique_ptr<NodeHost> host(new NodeHost(std::move(state)));
  auto& own = *host->state_;
  ORRERY_TRY(port, publish(control.system, own.node, options.listen_host, 0));

  NodeHello hello;
  hello.version = control_version;
  hello.cluster_id = options.cluster_id;
  hello.name = options.name;
  hello.control_host = options.listen_host;
  hello.control_port = port;
  hello.data_address = own.runtime->data_address();
  hello.pid = ::getpid();
  hello.node = own.node;

  SteadyClock clock;
  const auto until = clock.now() + options.join_timeout;
  auto pause = std::chrono::milliseconds(20);
  for (;;) {
    auto coordinator = connect(control.system, options.coordinator_host, options.coordinator_port, std::chrono::seconds(1));
    if (coordinator.ok()) {
      std::optional<Failure> refused;
      bool welcome = false;
      caf::scoped_actor self{control.system};
      self->request(coordinator.value(), std::chrono::seconds(5), hello)
          .receive([&](const NodeWelcome& answer) { answer.failure.ok() ? void(welcome = true) : void(refused = answer.failure); },
                   [&](const caf::error&) {});
      if (welcome) return host;
      if (refused) return refused->error();
    }
    if (interrupted()) return Error{ErrorCode::cancelled, "interrupted"};
    if (clock.now() >= until)
      return Error{ErrorCode::unreachable,
                   "node " + options.name + " did not reach the coordinator at " + options.coordinator_host + ":" +
                       std::to_string(options.coordinator_port) + " within " + std::to_string(seconds_of(options.join_timeout)) + " s",
                   "is `orrery up` running there?"};
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(500));
  }
}

}  // namespace orrery::actors
