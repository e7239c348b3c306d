#include "actors/node_actor.hpp"

#include "actors/card_actor.hpp"
#include "actors/request_check.hpp"

namespace orrery::actors {

using topology::StageKind;

namespace {
constexpr Duration connect_timeout = std::chrono::seconds(5);
}

caf::behavior node_actor(caf::stateful_actor<NodeActorState>* self, NodeActorSetup setup) {
  auto& node = self->state;
  node.start(self, std::move(setup));
  return {
      [&node](const LoadPlan& order) { return node.on_load(order); },
      [&node](const LoadFinished& finished) { node.on_loaded(finished); },
      [&node](const SpawnStage& order) { return node.on_spawn_stage(order); },
      [&node](const CardsFound& found) { node.on_cards_found(found); },
      [&node](const GetCard& order) { return node.on_get_card(order); },
      [&node](const DropRequest& order) { node.on_drop(order); },
      [&node](const Shutdown& order) { node.on_shutdown(order); },
      [&node, runtime = setup.runtime](const AskNodeHealth&) { return runtime->health(); },
  };
}

NodeActorState::~NodeActorState() = default;

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
  for (const auto& [number, card] : cards_) self_->send_exit(card, caf::exit_reason::user_shutdown);
  cards_.clear();
}

caf::response_promise NodeActorState::on_load(const LoadPlan& order) {
  auto promise = self_->make_response_promise();
  if (load_promise_.pending()) {
    PlanLoaded busy;
    busy.failure = Error{ErrorCode::pool_exhausted, "node " + setup_.name + " is loading a plan already"};
    promise.deliver(busy);
    return promise;
  }
  stop_children();
  order_ = order;
  coordinator_ = order.coordinator;
  self_->monitor(coordinator_);
  load_promise_ = promise;
  const auto self = caf::actor_cast<caf::actor>(self_);
  setup_.background->post([self, order, runtime = setup_.runtime, name = setup_.name] {
    SteadyClock clock;
    auto told = clock.now() - std::chrono::seconds(1);
    const auto progress = [&](std::uint64_t done, std::uint64_t total) {
      const auto now = clock.now();
      if (now - told >= std::chrono::milliseconds(100) || done == total) {
        told = now;
        LoadProgress message;
        message.node = name;
        message.bytes_done = done;
        message.bytes_total = total;
        caf::anon_send(order.coordinator, message);
      }
      return true;
    };
    LoadFinished finished;
    if (auto loaded = runtime->load(order, progress); loaded.ok())
      finished.result.numerics = loaded.value();
    else
      finished.result.failure = loaded.error();
    caf::anon_send(self, finished);
  });
  return promise;
}

void NodeActorState::on_loaded(const LoadFinished& finished) {
  if (finished.result.failure.ok())
    for (const auto& [number, card] : setup_.runtime->cards()) cards_[number] = self_->spawn(card_actor, card.get());
  load_promise_.deliver(finished.result);
}

CardHandle NodeActorState::on_get_card(const GetCard& order) {
  CardHandle handle;
  const auto found = cards_.find(order.card);
  if (order.epoch != order_.epoch)
    handle.failure = Error{ErrorCode::stale_epoch, "node " + setup_.name + " works on epoch " + std::to_string(order_.epoch) +
                                                       ", not " + std::to_string(order.epoch)};
  else if (found == cards_.end())
    handle.failure = Error{ErrorCode::not_found, "node " + setup_.name + " has no card number " + std::to_string(order.card)};
  else
    handle.card = {found->second};
  return handle;
}

caf::response_promise NodeActorState::on_spawn_stage(const SpawnStage& order) {
  auto promise = self_->make_response_promise();
  const auto ticket = next_ticket_++;
  spawning_.emplace(ticket, Spawning{order, promise});
  const auto& plan = setup_.runtime->plan();
  std::vector<std::uint32_t> wanted;
  const auto kind = static_cast<StageKind>(order.stage);
  for (const auto& stage : plan.stages)
    if (stage.kind == kind && kind != StageKind::text_guardrail && kind != StageKind::video_guardrail)
      for (const auto& group : stage.groups)
        for (const auto& rank : group.ranks) wanted.push_back(rank.card);

  // Cards of other nodes: connect directly, so that steps do not pass through the coordinator.
  struct Wanted {
    caf::actor here;
    PeerAddress there;
    std::uint32_t card = 0;
  };
  std::vector<Wanted> list;
  for (const auto number : wanted) {
    Wanted each;
    each.card = number;
    if (const auto found = cards_.find(number); found != cards_.end()) each.here = found->second;
    for (const auto& peer : order_.peers)
      if (peer.name == plan.cards[number].node) each.there = peer;
    list.push_back(std::move(each));
  }
  const auto self = caf::actor_cast<caf::actor>(self_);
  setup_.background->post([self, ticket, list = std::move(list), epoch = order_.epoch, control = setup_.control] {
    CardsFound found;
    found.ticket = ticket;
    caf::scoped_actor asking{control->system};
    std::map<std::string, caf::actor> nodes;
    for (const auto& each : list) {
      if (each.here) {
        found.cards.push_back(each.here);
        continue;
      }
      auto& node = nodes[each.there.name];
      if (!node) {
        auto connected = connect(control->system, each.there.control_host, each.there.control_port, connect_timeout);
        if (!connected.ok()) {
          found.failure = connected.error();
          break;
        }
        node = connected.value();
      }
      GetCard get;
      get.epoch = epoch;
      get.card = each.card;
      asking->request(node, connect_timeout, get)
          .receive(
              [&](const CardHandle& handle) {
                if (!handle.failure.ok())
                  found.failure = handle.failure;
                else if (handle.card.empty())
                  found.failure = Error{ErrorCode::internal, "node " + each.there.name + " answered without a card"};
                else
                  found.cards.push_back(handle.card.at(0));
              },
              [&](const caf::error& error) {
                found.failure = error_of(control->system, error, "asking node " + each.there.name + " for a card");
              });
      if (!found.failure.ok()) break;
    }
    caf::anon_send(self, found);
  });
  return promise;
}

void NodeActorState::on_cards_found(const CardsFound& found) {
  auto node = spawning_.extract(found.ticket);
  if (node.empty()) return;
  auto& [order, promise] = node.mapped();
  StageSpawned spawned;
  spawned.failure = found.failure;
  if (spawned.failure.ok()) {
    StageSetup setup;
    setup.kind = static_cast<StageKind>(order.stage);
    setup.plan = setup_.runtime->plan();
    setup.model = setup_.runtime->model();
    setup.queue_max = order_.queue_max;
    std::size_t next = 0;
    if (!found.cards.empty())
      for (const auto& stage : setup.plan.stages)
        if (stage.kind == setup.kind)
          for (const auto& group : stage.groups) {
            setup.cards.emplace_back();
            for (std::size_t rank = 0; rank < group.ranks.size(); ++rank) setup.cards.back().push_back(found.cards[next++]);
          }
    if (setup.kind == StageKind::text_encoder) {
      auto tokenizer = compiler::Tokenizer::open(setup.model->path + "/tokenizer");
      if (tokenizer.ok())
        setup.tokenizer = std::make_shared<const compiler::Tokenizer>(std::move(tokenizer).value());
      else
        spawned.failure = model_error(tokenizer.error());
    }
    if (setup.kind == StageKind::text_guardrail) {
      auto guardrail = TextGuardrail::open(order_.guardrail_folders);
      if (guardrail.ok())
        setup.guardrail = std::make_shared<const TextGuardrail>(std::move(guardrail).value());
      else
        spawned.failure = guardrail.error();
    }
    if (spawned.failure.ok()) {
      stages_.push_back(self_->spawn(stage_actor, std::move(setup)));
      spawned.stage = {stages_.back()};
    }
  }
  promise.deliver(spawned);
}

void NodeActorState::on_drop(const DropRequest& order) { setup_.runtime->drop(order.request); }

void NodeActorState::on_shutdown(const Shutdown& order) { end(order.reason, {}); }

void NodeActorState::on_down(const caf::down_msg& down) {
  if (coordinator_ && down.source == coordinator_.address())
    end("the coordinator is gone", Error{ErrorCode::peer_lost, "node " + setup_.name + " lost its coordinator"});
}

void NodeActorState::end(const std::string& reason, Failure failure) {
  stop_children();
  setup_.board->update([&](NodeBoard& board) {
    board.ended = true;
    board.reason = reason;
    board.failure = std::move(failure);
  });
  self_->quit();
}

}  // namespace orrery::actors
