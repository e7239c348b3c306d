#include "actors/coordinator.hpp"

#include <algorithm>

#include "actors/coordinator_actor.hpp"
#include "actors/edges.hpp"
#include "actors/request_check.hpp"
#include "topology/plan_text.hpp"

namespace orrery::actors {

using topology::StageKind;

caf::behavior coordinator_actor(caf::stateful_actor<CoordinatorState>* self, CoordinatorSetup setup) {
  auto& state = self->state;
  state.start(self, std::move(setup));
  return {
      [&state](const NodeHello& hello) { return state.on_hello(hello); },
      [&state](const LoadProgress& progress) { state.on_load_progress(progress); },
      [&state](const AskRoutes&) { return state.on_routes(); },
      [&state](const Submit& submit) { return state.on_submit(submit); },
      [&state](const Cancel& cancel) { state.on_cancel(cancel); },
      [&state](const Fetched& fetched) { state.on_fetched(fetched); },
      [&state](const RequestEvent& event) { state.on_request_event(event); },
      [&state](const AskStatus&) { return state.on_status(); },
      [&state](const Shutdown& order) { state.on_shutdown(order); },
  };
}

void CoordinatorState::start(caf::stateful_actor<CoordinatorState>* self, CoordinatorSetup setup) {
  self_ = self;
  setup_ = std::move(setup);
  self->set_down_handler([this](const caf::down_msg& down) { on_down(down); });
  publish_missing();
}

// ---- membership -------------------------------------------------------------------------------------------------

void CoordinatorState::publish_missing() {
  std::vector<std::string> missing;
  for (const auto& node : setup_.options.nodes)
    if (!nodes_.contains(node)) missing.push_back(node);
  setup_.board->update([&](CoordinatorBoard& board) {
    board.missing = missing;
    board.phase = phase_;
  });
}

NodeWelcome CoordinatorState::on_hello(const NodeHello& hello) {
  const auto refuse = [&](ErrorCode code, const std::string& why) {
    NodeWelcome answer;
    answer.failure = Error{code, why};
    return answer;
  };
  if (hello.version != control_version)
    return refuse(ErrorCode::version_mismatch, "node " + hello.name + " speaks control version " + std::to_string(hello.version) +
                                                   ", this coordinator " + std::to_string(control_version));
  if (hello.cluster_id != setup_.options.cluster_id)
    return refuse(ErrorCode::version_mismatch, "node " + hello.name + " belongs to another cluster, or to a former life of this one");
  if (std::find(setup_.options.nodes.begin(), setup_.options.nodes.end(), hello.name) == setup_.options.nodes.end())
    return refuse(ErrorCode::invalid_config, "the cluster has no node named " + hello.name);
  if (nodes_.contains(hello.name)) return refuse(ErrorCode::invalid_config, "node " + hello.name + " has joined already");
  Node node;
  node.hello = hello;
  self_->monitor(hello.node);
  nodes_.emplace(hello.name, std::move(node));
  if (nodes_.size() == setup_.options.nodes.size()) load_all();
  publish_missing();
  return {};
}

std::vector<PeerAddress> CoordinatorState::peers() const {
  std::vector<PeerAddress> all;
  for (const auto& node : setup_.options.nodes) {
    const auto& hello = nodes_.at(node).hello;
    all.push_back({node, hello.control_host, hello.control_port, hello.data_address});
  }
  return all;
}

void CoordinatorState::load_all() {
  phase_ = Coordinator::Phase::loading;
  const auto& options = setup_.options;
  LoadPlan order;
  order.epoch = epoch_;
  order.plan = topology::json_of(options.plan).dump();
  order.model_folder = options.model_folder;
  order.dtype = options.dtype;
  order.peers = peers();
  order.coordinator = caf::actor_cast<caf::actor>(self_);
  // A collective waits for the slowest card's compute before it: a multiple of the predicted step, never below a
  // minute. Dead nodes are noticed by their connection long before.
  double step_seconds = 0;
  for (const auto& stage : options.plan.predicted) step_seconds = std::max(step_seconds, stage.total_seconds());
  order.collective_deadline_seconds = std::max(60.0, 20 * step_seconds);
  order.guardrail_folders = options.guardrail_folders;
  order.queue_max = options.max_queue;
  for (auto& [node_name, node] : nodes_) {
    const auto which = node_name;
    self_->request(node.hello.node, caf::infinite, order)
        .then(
            [this, which](const PlanLoaded& loaded) {
              if (!loaded.failure.ok()) {
                auto failure = loaded.failure;
                failure.message = "node " + which + ": " + failure.message;
                return fail(failure);
              }
              nodes_.at(which).loaded = true;
              nodes_.at(which).numerics = loaded.numerics;
              const bool all = std::all_of(nodes_.begin(), nodes_.end(), [](const auto& each) { return each.second.loaded; });
              if (!all) return;
              for (const auto& [other, state] : nodes_)
                if (state.numerics != loaded.numerics)
                  return fail(Error{ErrorCode::numerics_mismatch,
                                    "nodes " + which + " (" + loaded.numerics + ") and " + other + " (" + state.numerics +
                                        ") belong to different numerics classes, so a video's bytes would depend on the placement",
                                    "use hosts with the same instruction set and libraries in one cluster"});
              spawn_stages();
            },
            [this, which](const caf::error& error) { fail(error_of(self_->system(), error, "node " + which + " did not load its plan")); });
  }
}

void CoordinatorState::on_load_progress(const LoadProgress& progress) {
  const auto found = nodes_.find(progress.node);
  if (found == nodes_.end()) return;
  found->second.bytes_done = progress.bytes_done;
  found->second.bytes_total = progress.bytes_total;
  if (!setup_.options.on_load) return;
  std::uint64_t done = 0, total = 0;
  for (const auto& [which, node] : nodes_) {
    done += node.bytes_done;
    total += node.bytes_total;
  }
  setup_.options.on_load(done, total);
}

void CoordinatorState::spawn_stages() {
  for (const auto& stage : setup_.options.plan.stages) {
    const auto& first = setup_.options.plan.cards[stage.groups[0].ranks[0].card];
    SpawnStage order;
    order.stage = static_cast<std::uint8_t>(stage.kind);
    order.epoch = epoch_;
    const auto kind = stage.kind;
    self_->request(nodes_.at(first.node).hello.node, std::chrono::seconds(60), order)
        .then(
            [this, kind](const StageSpawned& spawned) {
              if (!spawned.failure.ok()) return fail(spawned.failure);
              if (spawned.stage.empty()) return fail(Error{ErrorCode::internal, "a node answered without a stage"});
              stages_[kind] = spawned.stage.front();
              if (stages_.size() < setup_.options.plan.stages.size()) return;
              if (phase_ == Coordinator::Phase::loading) phase_ = Coordinator::Phase::ready;
              publish_missing();
            },
            [this, kind](const caf::error& error) {
              fail(error_of(self_->system(), error, "stage " + std::string(topology::name_of(kind)) + " did not start"));
            });
  }
}

void CoordinatorState::fail(Failure failure) {
  if (phase_ == Coordinator::Phase::failed || phase_ == Coordinator::Phase::ended) return;
  phase_ = Coordinator::Phase::failed;
  degraded_ = failure.message;
  setup_.board->update([&](CoordinatorBoard& board) {
    board.phase = phase_;
    board.failure = std::move(failure);
  });
}

void CoordinatorState::on_down(const caf::down_msg& down) {
  for (auto& [which, node] : nodes_) {
    if (node.hello.node.address() != down.source || node.lost) continue;
    node.lost = true;
    const Failure lost = Error{ErrorCode::peer_lost, "node " + which + " was lost"};
    if (phase_ != Coordinator::Phase::ready) return fail(lost);
    degraded_ = "node " + which + " was lost";
    for (auto& [id, request] : requests_)
      if (request.running) {
        self_->send(request.actor, lost);
        drop(id);
      }
    return;
  }
  // A client that went away takes its request with it.
  for (auto& [id, request] : requests_)
    if (request.client.address() == down.source) {
      if (request.running) self_->send(request.actor, Cancel{id});
      drop(id);
    }
}

// ---- requests ---------------------------------------------------------------------------------------------------

ClusterRoutes CoordinatorState::on_routes() {
  ClusterRoutes routes;
  if (phase_ != Coordinator::Phase::ready || !degraded_.empty()) {
    routes.failure = Error{ErrorCode::unreachable,
                           degraded_.empty() ? "the cluster is still starting" : "the cluster takes no requests: " + degraded_};
    return routes;
  }
  const auto& options = setup_.options;
  routes.cluster_id = options.cluster_id;
  routes.epoch = epoch_;
  routes.plan_digest = options.plan.digest();
  routes.peers = peers();
  for (const auto& card : options.plan.cards) {
    const auto at = std::find(options.nodes.begin(), options.nodes.end(), card.node);
    routes.card_peers.push_back(static_cast<std::uint32_t>(at - options.nodes.begin()));
  }
  for (const auto& stage : options.plan.stages) {
    if (stage.kind == StageKind::decoder) routes.decoder_card = stage.groups[0].ranks[0].card;
    if (stage.kind == StageKind::denoiser)
      for (const auto& group : stage.groups)
        for (const auto& rank : group.ranks) routes.denoiser_cards.push_back(rank.card);
  }
  routes.plan = topology::json_of(options.plan).dump();
  routes.cluster = options.cluster;
  routes.model = options.model_name;
  routes.model_folder = options.model_folder;
  routes.dtype = options.dtype;
  routes.numerics = nodes_.begin()->second.numerics;
  routes.defaults = options.defaults;
  return routes;
}

Submitted CoordinatorState::on_submit(const Submit& submit) {
  Submitted answer;
  const auto running = static_cast<std::uint32_t>(
      std::count_if(requests_.begin(), requests_.end(), [](const auto& each) { return each.second.running; }));
  if (phase_ != Coordinator::Phase::ready || !degraded_.empty()) {
    answer.failure = Error{ErrorCode::unreachable,
                           degraded_.empty() ? "the cluster is still starting" : "the cluster takes no requests: " + degraded_};
    return answer;
  }
  if (running >= setup_.options.max_queue) {
    answer.failure = Error{ErrorCode::pool_exhausted, std::to_string(running) + " requests are under way already", "try again later"};
    return answer;
  }
  auto status = check_request(submit.spec, *setup_.model);
  if (status.ok() && submit.spec.noise_from_client) status = check_noise(submit.noise_shape, submit.spec, *setup_.model);
  if (!status.ok()) {
    answer.failure = status.error();
    return answer;
  }
  const auto taken = std::any_of(requests_.begin(), requests_.end(), [&](const auto& each) {
    return each.second.running && each.second.client_endpoint == submit.client_endpoint;
  });
  if (submit.client_endpoint < first_client_endpoint || taken) {
    answer.failure = Error{ErrorCode::invalid_request, "the client's endpoint number is taken or out of range"};
    return answer;
  }
  const auto id = next_request_++;
  answer.request = id;
  RequestSetup request;
  request.request = id;
  request.spec = submit.spec;
  request.client_endpoint = submit.client_endpoint;
  request.client_data_address = submit.client_data_address;
  request.client = submit.client;
  request.coordinator = caf::actor_cast<caf::actor>(self_);
  for (const auto& stage : setup_.options.plan.stages) request.stages.emplace_back(stage.kind, stages_.at(stage.kind));
  Request entry;
  entry.spec = submit.spec;
  entry.client = submit.client;
  entry.client_endpoint = submit.client_endpoint;
  self_->monitor(submit.client);
  entry.actor = self_->spawn(request_actor, std::move(request));
  requests_.emplace(id, std::move(entry));
  return answer;
}

void CoordinatorState::on_cancel(const Cancel& cancel) {
  const auto found = requests_.find(cancel.request);
  if (found != requests_.end() && found->second.running) self_->send(found->second.actor, cancel);
}

void CoordinatorState::on_request_event(const RequestEvent& event) {
  const auto found = requests_.find(event.request);
  if (found == requests_.end()) return;
  auto& request = found->second;
  const auto kind = static_cast<EventKind>(event.kind);
  if (!event.stage.empty()) request.stage = event.stage;
  request.done = event.done;
  request.total = event.total;
  if (kind != EventKind::completed && kind != EventKind::failed) return;
  request.running = false;
  request.state = kind == EventKind::completed ? "completed" : "failed: " + event.failure.message;
  if (kind == EventKind::failed) drop(event.request);
  // Only the latest are kept for `status`.
  while (requests_.size() > 256 && !requests_.begin()->second.running) requests_.erase(requests_.begin());
}

void CoordinatorState::on_fetched(const Fetched& fetched) { drop(fetched.request); }

void CoordinatorState::drop(std::uint64_t request) {
  for (const auto& [which, node] : nodes_)
    if (!node.lost) self_->send(node.hello.node, DropRequest{request});
}

void CoordinatorState::on_shutdown(const Shutdown& order) {
  for (const auto& [which, node] : nodes_)
    if (!node.lost) self_->send(node.hello.node, order);
  phase_ = Coordinator::Phase::ended;
  setup_.board->update([&](CoordinatorBoard& board) {
    board.end_asked = true;
    board.end_reason = order.reason;
    board.phase = phase_;
  });
}

caf::response_promise CoordinatorState::on_status() {
  auto promise = self_->make_response_promise();
  static constexpr const char* phases[] = {"waiting for nodes", "loading", "ready", "failed", "ended"};
  auto status = std::make_shared<OrderedJson>();
  auto& json = *status;
  json["cluster"] = setup_.options.cluster;
  json["phase"] = phases[static_cast<std::size_t>(phase_)];
  if (!degraded_.empty()) json["degraded"] = degraded_;
  json["model"] = setup_.options.model_name;
  json["dtype"] = setup_.options.dtype;
  json["epoch"] = epoch_;
  json["nodes"] = OrderedJson::array();
  for (const auto& which : setup_.options.nodes) {
    OrderedJson node;
    node["name"] = which;
    const auto found = nodes_.find(which);
    node["state"] = found == nodes_.end() ? "missing" : found->second.lost ? "lost" : found->second.loaded ? "up" : "loading";
    if (found != nodes_.end()) {
      node["pid"] = found->second.hello.pid;
      node["control"] = found->second.hello.control_host + ":" + std::to_string(found->second.hello.control_port);
      node["data"] = found->second.hello.data_address;
      node["numerics"] = found->second.numerics;
    }
    json["nodes"].push_back(node);
  }
  json["requests"] = OrderedJson::array();
  for (const auto& [id, request] : requests_) {
    OrderedJson entry;
    entry["id"] = id;
    entry["state"] = request.state;
    entry["stage"] = request.stage;
    entry["done"] = request.done;
    entry["total"] = request.total;
    entry["prompt"] = request.spec.prompt.substr(0, 200);
    json["requests"].push_back(entry);
  }
  // Then what each node says of itself, as far as it answers in time.
  auto left = std::make_shared<std::size_t>(0);
  for (const auto& [which, node] : nodes_) *left += node.lost ? 0 : 1;
  const auto finish = [status](caf::response_promise answer) {
    StatusText text;
    text.json = status->dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
    answer.deliver(text);
  };
  if (*left == 0) {
    finish(promise);
    return promise;
  }
  for (const auto& [which, node] : nodes_) {
    if (node.lost) continue;
    self_->request(node.hello.node, std::chrono::seconds(2), AskNodeHealth{})
        .then(
            [=](const NodeHealth& health) mutable {
              for (auto& entry : (*status)["nodes"])
                if (entry["name"] == health.name) {
                  entry["resident_bytes"] = health.resident_bytes;
                  entry["resident_bytes_max"] = health.resident_bytes_max;
                  entry["cpu_seconds"] = health.cpu_seconds;
                  entry["data_bytes_sent"] = health.bytes_sent;
                  entry["data_bytes_received"] = health.bytes_received;
                  entry["data_frames_resent"] = health.frames_resent;
                  entry["data_frames_refused"] = health.frames_refused;
                  entry["cards"] = OrderedJson::array();
                  for (std::size_t i = 0; i < health.card_bytes.size(); ++i)
                    entry["cards"].push_back(
                        {{"bytes", health.card_bytes[i]}, {"bytes_max", health.card_bytes_max[i]}, {"budget", health.card_budget[i]}});
                }
              if (--*left == 0) finish(promise);
            },
            [=](const caf::error&) mutable {
              if (--*left == 0) finish(promise);
            });
  }
  return promise;
}

// ---- outside ----------------------------------------------------------------------------------------------------

Coordinator::Coordinator(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<Coordinator>> Coordinator::start(Control& control, CoordinatorOptions options) {
  ORRERY_TRY(model, compiler::open_model_folder(options.model_folder));
  ORRERY_TRY_DONE(check_whole(model));
  auto state = std::make_unique<State>();
  state->control = &control;
  CoordinatorSetup setup;
  setup.model = std::make_shared<const compiler::ModelFolder>(std::move(model));
  setup.board = &state->board;
  const auto host = options.listen_host;
  const auto wanted_port = options.listen_port;
  setup.options = std::move(options);
  state->actor = control.state().system.spawn(coordinator_actor, std::move(setup));
  std::unique_ptr<Coordinator> coordinator(new Coordinator(std::move(state)));
  ORRERY_TRY(port, publish(control.state().system, coordinator->state_->actor, host, wanted_port));
  coordinator->state_->port = port;
  return coordinator;
}

Coordinator::~Coordinator() {
  if (!state_->actor) return;
  caf::anon_send(state_->actor, Shutdown{"the coordinator ends"});
  end_actor(state_->control->state().system, std::exchange(state_->actor, nullptr));  // The board it writes to is ours.
}

std::uint16_t Coordinator::port() const { return state_->port; }

Coordinator::Phase Coordinator::wait(Duration limit) {
  const auto over = [](const CoordinatorBoard& board) { return board.phase >= Phase::ready; };
  state_->board.wait_for(limit, over);
  return state_->board.get().phase;
}
bool Coordinator::wait_for_end(Duration limit) {
  return state_->board.wait_for(limit, [](const CoordinatorBoard& board) { return board.end_asked || board.phase >= Phase::failed; });
}
Status Coordinator::outcome() const {
  const auto board = state_->board.get();
  if (!board.failure.ok()) return board.failure.error();
  return Done{};
}
std::vector<std::string> Coordinator::missing() const { return state_->board.get().missing; }

std::string Coordinator::status() const {
  std::string text;
  caf::scoped_actor self{state_->control->state().system};
  self->request(state_->actor, std::chrono::seconds(5), AskStatus{})
      .receive([&](const StatusText& status) { text = status.json; }, [](const caf::error&) {});
  return text;
}

}  // namespace orrery::actors
