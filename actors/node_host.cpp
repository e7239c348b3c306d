#include "actors/node_host.hpp"

#include "actors/node_actor.hpp"
#include "actors/node_services.hpp"

namespace orrery::actors {

struct NodeHost::State {
  Board<NodeBoard> board;
  std::unique_ptr<NodeRuntime> runtime;
  std::unique_ptr<Control> control;
  std::unique_ptr<NodeServices> services;
  caf::actor node;
};

NodeHost::NodeHost(std::unique_ptr<State> state) : state_(std::move(state)) {}

NodeHost::~NodeHost() {
  if (auto* faults = state_->runtime->faults()) {
    faults->bind_hang({});
    static_cast<void>(faults->heal(""));
  }
  if (state_->node) end_actor(state_->control->state().system, std::exchange(state_->node, nullptr));
  state_->services.reset();
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

bool NodeHost::stuck() const { return state_->board.get().stuck; }

Result<std::unique_ptr<NodeHost>> NodeHost::start(const NodeHostOptions& options, const std::function<bool()>& interrupted) {
  auto state = std::make_unique<State>();
  NodeRuntimeOptions runtime;
  runtime.name = options.name;
  runtime.cluster_id = options.cluster_id;
  runtime.peer = options.peer;
  runtime.security = options.security;
  runtime.allow_faults = options.allow_faults;
  runtime.data_bind = options.data_bind.empty() ? "tcp://" + options.listen_host + ":0" : options.data_bind;
  runtime.share_memory = options.share_memory;
  ORRERY_TRY(made, NodeRuntime::create(runtime));
  state->runtime = std::move(made);
  ControlOptions control_options;
  control_options.security = options.security;
  state->control = std::make_unique<Control>(control_options);
  auto& control = state->control->state();
  state->services = std::make_unique<NodeServices>(options, control, *state->runtime);

  NodeActorSetup setup;
  setup.backend = state->services.get();
  setup.board = &state->board;
  setup.name = options.name;
  state->node = control.system.spawn(node_actor, setup);
  if (auto* faults = state->runtime->faults())
    faults->bind_hang([node = state->node](const std::string& name) { caf::anon_send(node, HangNode{name}); });
  std::unique_ptr<NodeHost> host(new NodeHost(std::move(state)));
  auto& own = *host->state_;
  ORRERY_TRY(port, publish(control.system, own.node, options.listen_host, 0));
  own.services->set_control_port(port);
  caf::anon_send(own.node, Rejoin{});
  while (!own.board.wait_for(std::chrono::milliseconds(100), [](const NodeBoard& board) { return board.joined || board.ended; }))
    if (interrupted()) return Error{ErrorCode::cancelled, "interrupted"};
  ORRERY_TRY_DONE(host->outcome());
  return host;
}

}  // namespace orrery::actors
