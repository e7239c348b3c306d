#include "actors/node_actor.hpp"

#include <algorithm>

#include "actors/card_actor.hpp"
#include "actors/request_check.hpp"
#include "actors/trace_answer.hpp"
#include "base/fault_point.hpp"
#include "base/log.hpp"

namespace orrery::actors {

using topology::StageKind;

namespace {

// Below the coordinator's own limit for silent nodes, so that a cut link is told apart from a dead node.
constexpr Duration link_silence_limit = std::chrono::milliseconds(700);
constexpr auto answer_timeout = std::chrono::seconds(5);

}  // namespace

caf::behavior node_actor(caf::stateful_actor<NodeActorState>* self, NodeActorSetup setup) {
  auto& node = self->state;
  auto* backend = setup.backend;
  const auto node_name = setup.name;
  node.start(self, std::move(setup));
  return {
      [&node](const Rejoin& order) { node.on_rejoin(order); },
      [&node](const CoordinatorFound& found) { node.on_coordinator_found(found); },
      [&node](const LoadPlan& order) { return node.on_load(order); },
      [&node](const LoadFinished& finished) { node.on_loaded(finished); },
      [&node](const SpawnStage& order) { return node.on_spawn_stage(order); },
      [&node](const NodesFound& found) { node.on_nodes_found(found); },
      [&node](const GetCard& order) { return node.on_get_card(order); },
      [&node](const Ping& ping) { node.on_ping(ping); },
      [&node](const Shutdown& order) { node.on_shutdown(order); },
      [backend](const DropRequest& order) { backend->drop(order.request); },
      [backend](const DropClient& order) { backend->drop_client(order.request); },
      [backend](const SendKept& order) {
        KeptSent sent;
        if (auto status = backend->send_kept(order); !status.ok()) sent.failure = status.error();
        return sent;
      },
      [backend](const AskNodeHealth&) { return backend->health(); },
      [backend](const FaultCommand& command) { return backend->fault(command); },
      [backend](const HangNode& order) { backend->hang(order.fault); },
      [node_name](const AskTrace& ask) { return answer_trace(ask, node_name); },
  };
}

void NodeActorState::start(caf::stateful_actor<NodeActorState>* self, NodeActorSetup setup) {
  self_ = self;
  setup_ = std::move(setup);
  self->set_down_handler([this](const caf::down_msg& down) { on_down(down); });
  self->set_exit_handler([this](const caf::exit_msg& exit) {
    stop_children();
    self_->quit(exit.reason);
  });
}

void NodeActorState::stop_children() {
  for (const auto& stage : stages_) self_->send_exit(stage, caf::exit_reason::user_shutdown);
  stages_.clear();
  for (const auto& [number, card] : cards_) {
    self_->monitor(card);
    ending_.push_back(card.address());
    self_->send_exit(card, caf::exit_reason::user_shutdown);
  }
  cards_.clear();
}

// ---- the coordinator --------------------------------------------------------------------------------------------

void NodeActorState::seek() {
  if (seeking_) return;
  seeking_ = true;
  if (coordinator_) self_->demonitor(coordinator_);
  coordinator_ = nullptr;
  const auto self = caf::actor_cast<caf::actor>(self_);
  setup_.backend->find_coordinator([self](Result<caf::actor> found) {
    CoordinatorFound message;
    if (found.ok())
      message.coordinator = {std::move(found).value()};
    else
      message.failure = found.error();
    caf::anon_send(self, message);
  });
}

void NodeActorState::on_coordinator_found(const CoordinatorFound& found) {
  seeking_ = false;
  if (found.coordinator.empty()) return end("there is no coordinator", found.failure);
  coordinator_ = found.coordinator.front();
  self_->monitor(coordinator_);
  auto hello = setup_.backend->hello();
  hello.node = caf::actor_cast<caf::actor>(self_);
  const auto asked = coordinator_.address();
  self_->request(coordinator_, answer_timeout, hello)
      .then(
          [this](const NodeWelcome& welcome) {
            if (!welcome.failure.ok()) return end("the coordinator refused", welcome.failure);
            setup_.board->update([](NodeBoard& board) { board.joined = true; });
          },
          [this, asked](const caf::error&) {
            if (coordinator_ && coordinator_.address() == asked) seek();
          });
}

void NodeActorState::on_rejoin(const Rejoin& order) {
  if (!order.reason.empty()) {
    log_event(Level::warn, "node.fenced", {{"node", setup_.name}, {"reason", order.reason}});
    stop_children();  // Our epoch is over: whatever we still do is for nobody.
  }
  seek();
}

void NodeActorState::on_down(const caf::down_msg& down) {
  // Cards go on with the step at hand: the coordinator may be back before it ends.
  if (coordinator_ && down.source == coordinator_.address()) return seek();
  std::erase(ending_, down.source);
  if (load_due_ && ending_.empty()) start_load();
}

void NodeActorState::on_ping(const Ping& ping) {
  if (!coordinator_) return;
  Pong pong;
  pong.node = setup_.name;
  pong.session = setup_.backend->hello().session;
  pong.round = ping.round;
  self_->send(coordinator_, pong);
  for (const auto& silent : setup_.backend->silent_nodes(link_silence_limit)) {
    LinkSilent report;
    report.node = setup_.name;
    report.peer = silent.name;
    report.epoch = ready_epoch_;
    report.seconds = seconds_of(silent.silence);
    report.waiting_for = silent.waiting_for;
    self_->send(coordinator_, report);
  }
}

// ---- plans --------------------------------------------------------------------------------------------------------

caf::response_promise NodeActorState::on_load(const LoadPlan& order) {
  auto promise = self_->make_response_promise();
  if (order.epoch <= loading_epoch_) {
    PlanLoaded refused;
    refused.failure = Error{ErrorCode::stale_epoch, "node " + setup_.name + " has been told of epoch " + std::to_string(loading_epoch_) +
                                                        " and refuses a plan of epoch " + std::to_string(order.epoch)};
    promise.deliver(refused);
    return promise;
  }
  ORRERY_FAULT_POINT("node.before_load");
  stop_children();
  loading_epoch_ = order.epoch;
  order_ = order;
  load_promises_[order.epoch] = promise;
  load_due_ = true;
  if (ending_.empty()) start_load();
  return promise;
}

void NodeActorState::start_load() {
  load_due_ = false;
  const auto order = order_;
  const auto self = caf::actor_cast<caf::actor>(self_);
  auto told = std::make_shared<std::optional<Time>>();
  const auto progress = [order, told, backend = setup_.backend, name = setup_.name](std::uint64_t done, std::uint64_t total) {
    const auto now = backend->clock().now();
    if (*told && now - **told < std::chrono::milliseconds(100) && done != total) return;
    *told = now;
    LoadProgress message;
    message.node = name;
    message.bytes_done = done;
    message.bytes_total = total;
    caf::anon_send(order.coordinator, message);
  };
  setup_.backend->load(order, progress, [self, epoch = order.epoch](Result<PlanLoaded> loaded) {
    LoadFinished finished;
    finished.epoch = epoch;
    if (loaded.ok())
      finished.result = std::move(loaded).value();
    else
      finished.result.failure = loaded.error();
    caf::anon_send(self, finished);
  });
}

void NodeActorState::on_loaded(const LoadFinished& finished) {
  ORRERY_FAULT_POINT("node.after_load");
  auto promise = load_promises_.extract(finished.epoch);
  if (finished.result.failure.ok() && finished.epoch == loading_epoch_) {
    ready_epoch_ = finished.epoch;
    for (const auto& [number, card] : setup_.backend->cards()) cards_[number] = self_->spawn(card_actor, card);
  }
  if (!promise.empty()) promise.mapped().deliver(finished.result);
  if (static_cast<ErrorCode>(finished.result.failure.code) == ErrorCode::peer_lost)
    end("a card hangs", finished.result.failure, true);
}

CardHandle NodeActorState::on_get_card(const GetCard& order) {
  CardHandle handle;
  const auto found = cards_.find(order.card);
  if (!is_current(order.epoch))
    handle.failure = Error{ErrorCode::stale_epoch, "node " + setup_.name + " works on epoch " + std::to_string(ready_epoch_) +
                                                       ", not " + std::to_string(order.epoch)};
  else if (found == cards_.end())
    handle.failure = Error{ErrorCode::not_found, "node " + setup_.name + " has no card number " + std::to_string(order.card)};
  else
    handle.card = {found->second};
  return handle;
}

// ---- stages -------------------------------------------------------------------------------------------------------

caf::response_promise NodeActorState::on_spawn_stage(const SpawnStage& order) {
  auto promise = self_->make_response_promise();
  if (!is_current(order.epoch)) {
    StageSpawned refused;
    refused.failure = Error{ErrorCode::stale_epoch, "node " + setup_.name + " works on epoch " + std::to_string(ready_epoch_) + ", not " +
                                                        std::to_string(order.epoch)};
    promise.deliver(refused);
    return promise;
  }
  const auto ticket = next_ticket_++;
  auto& spawning = spawning_[ticket];
  spawning.order = order;
  spawning.promise = promise;
  const auto& plan = setup_.backend->plan();
  const auto kind = static_cast<StageKind>(order.stage);
  for (const auto& stage : plan.stages)
    if (stage.kind == kind && kind != StageKind::text_guardrail && kind != StageKind::video_guardrail)
      for (const auto& group : stage.groups)
        for (const auto& rank : group.ranks) spawning.wanted.push_back(rank.card);
  // Cards and keepers of other nodes: connect directly, so that steps do not pass through the coordinator.
  if (kind == StageKind::denoiser || kind == StageKind::decoder)
    for (const auto& peer : order_.peers)
      if (peer.name != setup_.name) spawning.peers.push_back(peer);
  for (const auto number : spawning.wanted) {
    if (const auto found = cards_.find(number); found != cards_.end()) {
      spawning.cards[number] = found->second;
      continue;
    }
    for (const auto& peer : order_.peers) {
      const bool known = std::any_of(spawning.peers.begin(), spawning.peers.end(), [&](const auto& each) { return each.name == peer.name; });
      if (peer.name == plan.cards[number].node && !known) spawning.peers.push_back(peer);
    }
  }
  if (spawning.peers.empty()) {
    answer_spawn(ticket);
    return promise;
  }
  const auto self = caf::actor_cast<caf::actor>(self_);
  setup_.backend->find_nodes(spawning.peers, [self, ticket](Result<std::vector<caf::actor>> nodes) {
    NodesFound found;
    found.ticket = ticket;
    if (nodes.ok())
      found.nodes = std::move(nodes).value();
    else
      found.failure = nodes.error();
    caf::anon_send(self, found);
  });
  return promise;
}

void NodeActorState::on_nodes_found(const NodesFound& found) {
  const auto entry = spawning_.find(found.ticket);
  if (entry == spawning_.end()) return;
  auto& spawning = entry->second;
  spawning.failure = found.failure;
  if (!found.failure.ok()) return answer_spawn(found.ticket);
  spawning.nodes = found.nodes;
  const auto answered = [this, ticket = found.ticket](std::uint32_t card, const CardHandle& handle) {
    const auto at = spawning_.find(ticket);
    if (at == spawning_.end()) return;
    if (!handle.failure.ok())
      at->second.failure = handle.failure;
    else if (handle.card.empty())
      at->second.failure = Error{ErrorCode::internal, "a node answered without a card"};
    else
      at->second.cards[card] = handle.card.front();
    if (--at->second.answers_due == 0) answer_spawn(ticket);
  };
  const auto& plan = setup_.backend->plan();
  for (const auto number : spawning.wanted)
    if (!spawning.cards.contains(number)) ++spawning.answers_due;
  if (spawning.answers_due == 0) return answer_spawn(found.ticket);
  for (const auto number : spawning.wanted) {
    if (spawning.cards.contains(number)) continue;
    for (std::size_t i = 0; i < spawning.peers.size(); ++i) {
      if (spawning.peers[i].name != plan.cards[number].node) continue;
      GetCard get;
      get.epoch = spawning.order.epoch;
      get.card = number;
      const auto node_name = spawning.peers[i].name;
      self_->request(found.nodes[i], answer_timeout, get)
          .then([answered, number](const CardHandle& handle) { answered(number, handle); },
                [this, answered, number, node_name](const caf::error& error) {
                  CardHandle none;
                  none.failure = error_of(self_->system(), error, "asking node " + node_name + " for a card");
                  answered(number, none);
                });
    }
  }
}

Result<caf::actor> NodeActorState::spawn_stage(const Spawning& spawning) {
  StageSetup setup;
  setup.kind = static_cast<StageKind>(spawning.order.stage);
  setup.epoch = spawning.order.epoch;
  setup.clock = &setup_.backend->clock();
  setup.plan = setup_.backend->plan();
  setup.model = setup_.backend->model();
  setup.queue_max = order_.queue_max;
  setup.coordinator = order_.coordinator;
  for (std::size_t i = 0; i < spawning.nodes.size(); ++i) setup.nodes[spawning.peers[i].peer] = spawning.nodes[i];
  for (const auto& peer : order_.peers)
    if (peer.name == setup_.name) setup.nodes[peer.peer] = caf::actor_cast<caf::actor>(self_);
  setup.command_deadline = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(order_.collective_deadline_seconds));
  setup.straggler_factor = order_.straggler_factor;
  setup.straggler_steps = order_.straggler_steps;
  if (!spawning.wanted.empty())
    for (const auto& stage : setup.plan.stages)
      if (stage.kind == setup.kind)
        for (const auto& group : stage.groups) {
          setup.cards.emplace_back();
          for (const auto& rank : group.ranks) setup.cards.back().push_back(spawning.cards.at(rank.card));
        }
  if (setup.kind == StageKind::text_encoder) {
    auto tokenizer = compiler::Tokenizer::open(setup.model->path + "/tokenizer");
    if (!tokenizer.ok()) return model_error(tokenizer.error());
    setup.tokenizer = std::make_shared<const compiler::Tokenizer>(std::move(tokenizer).value());
  }
  if (setup.kind == StageKind::text_guardrail) {
    ORRERY_TRY(guardrail, TextGuardrail::open(order_.guardrail_folders));
    setup.guardrail = std::make_shared<const TextGuardrail>(std::move(guardrail));
  }
  stages_.push_back(self_->spawn(stage_actor, std::move(setup)));
  return stages_.back();
}

void NodeActorState::answer_spawn(std::uint64_t ticket) {
  auto entry = spawning_.extract(ticket);
  if (entry.empty()) return;
  auto& spawning = entry.mapped();
  ORRERY_FAULT_POINT("node.before_stage");
  StageSpawned spawned;
  spawned.failure = spawning.failure;
  if (spawned.failure.ok() && !is_current(spawning.order.epoch))
    spawned.failure = Error{ErrorCode::stale_epoch, "epoch " + std::to_string(spawning.order.epoch) + " is over"};
  if (spawned.failure.ok()) {
    if (auto stage = spawn_stage(spawning); stage.ok())
      spawned.stage = {stage.value()};
    else
      spawned.failure = stage.error();
  }
  spawning.promise.deliver(spawned);
}

// ---- the end --------------------------------------------------------------------------------------------------------

void NodeActorState::on_shutdown(const Shutdown& order) { end(order.reason, {}); }

void NodeActorState::end(const std::string& reason, Failure failure, bool stuck) {
  stop_children();
  setup_.board->update([&](NodeBoard& board) {
    board.ended = true;
    board.stuck = stuck;
    board.reason = reason;
    board.failure = std::move(failure);
  });
  self_->quit();
}

}  // namespace orrery::actors
