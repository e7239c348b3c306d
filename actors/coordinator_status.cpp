// What the coordinator says of everything, and what it hands on to nodes: faults, traces. See coordinator.hpp.

#include <chrono>
#include <cmath>

#include "actors/coordinator_actor.hpp"
#include "actors/trace_answer.hpp"
#include "base/trace.hpp"

namespace orrery::actors {

caf::response_promise CoordinatorState::on_fault(const FaultCommand& command) {
  auto promise = self_->make_response_promise();
  if (static_cast<FaultVerb>(command.verb) != FaultVerb::list)
    trace::instant(trace::track("incidents"), trace::Category::incident,
                   static_cast<FaultVerb>(command.verb) == FaultVerb::inject ? "fault injected" : "fault healed",
                   {0, trace::no_step, 0, command.node + " " + command.order});
  auto answers = std::make_shared<OrderedJson>(OrderedJson::array());
  auto left = std::make_shared<std::size_t>(0);
  auto failure = std::make_shared<Failure>();
  auto good = std::make_shared<std::size_t>(0);
  std::vector<caf::actor> targets;
  for (const auto& [which, node] : nodes_)
    if (node.state == Node::State::up && (command.node.empty() || command.node == which)) targets.push_back(node.hello.node);
  const bool heals = static_cast<FaultVerb>(command.verb) == FaultVerb::heal;
  if (command.node == "coordinator" || (command.node.empty() && setup_.faults != nullptr)) {
    Status done = Done{};
    if (setup_.faults == nullptr) {
      done = Error{ErrorCode::unsupported, "the coordinator was started without fault injection", "start the cluster with --allow-faults"};
    } else if (static_cast<FaultVerb>(command.verb) == FaultVerb::inject) {
      auto order = fault_order_from_json(command.order);
      done = order.ok() ? setup_.faults->apply(std::move(order).value()) : Status(order.error());
    } else if (heals) {
      done = setup_.faults->heal(command.order);
    }
    if (done.ok()) ++*good;
    else *failure = done.error();
    if (setup_.faults != nullptr) answers->push_back(OrderedJson{{"node", "coordinator"}, {"faults", setup_.faults->list()}});
    if (targets.empty()) {
      FaultAnswer own;
      own.failure = *failure;
      own.json = answers->dump();
      promise.deliver(own);
      return promise;
    }
  }
  if (targets.empty()) {
    FaultAnswer none;
    none.failure = Error{ErrorCode::not_found, command.node.empty() ? "no node is up" : "node " + command.node + " is not up"};
    promise.deliver(none);
    return promise;
  }
  *left = targets.size();
  const std::function<void(const FaultAnswer&)> answered = [=](const FaultAnswer& answer) mutable {
    if (answer.failure.ok()) ++*good;
    else *failure = answer.failure;
    if (auto json = parse_json(answer.json.empty() ? "null" : answer.json, "answer"); json.ok()) answers->push_back(OrderedJson::parse(json.value().dump()));
    if (--*left > 0) return;
    FaultAnswer all;
    // A fault is healed by whoever has it; the others do not know its name.
    if (!heals || *good == 0) all.failure = *failure;
    all.json = answers->dump();
    promise.deliver(all);
  };
  for (const auto& node : targets)
    self_->request(node, std::chrono::seconds(5), command)
        .then([answered](const FaultAnswer& answer) { answered(answer); }, [this, answered](const caf::error& error) {
          FaultAnswer none;
          none.failure = error_of(self_->system(), error, "a node did not answer");
          answered(none);
        });
  return promise;
}

// The epoch at hand; on its end, and when a recording ends.
void CoordinatorState::trace_epoch() const {
  if (epoch_began_ == Time{}) return;
  trace::complete(trace::track("epochs"), trace::Category::epoch, "epoch " + std::to_string(epoch_), epoch_began_, setup_.clock->now());
}

caf::response_promise CoordinatorState::on_trace(const AskTrace& ask) {
  auto promise = self_->make_response_promise();
  if (ask.node.empty()) {
    if (!(ask.lease_seconds > 0) && trace::enabled()) trace_epoch();
    auto piece = answer_trace(ask, "");
    for (const auto& [which, node] : nodes_)
      if (node.state == Node::State::up) piece.nodes.push_back(which);
    promise.deliver(piece);
    return promise;
  }
  auto refuse = [promise](const Error& error) mutable {
    TracePiece none;
    none.failure = error;
    promise.deliver(none);
  };
  const auto node = nodes_.find(ask.node);
  if (node == nodes_.end() || node->second.state != Node::State::up) {
    refuse(Error{ErrorCode::not_found, "node " + ask.node + " is not up"});
    return promise;
  }
  self_->request(node->second.hello.node, std::chrono::seconds(1), ask)
      .then([promise](const TracePiece& piece) mutable { promise.deliver(piece); },
            [this, refuse, which = ask.node](const caf::error& error) mutable {
              refuse(error_of(self_->system(), error, "node " + which + " did not answer"));
            });
  return promise;
}

caf::response_promise CoordinatorState::on_status() {
  auto promise = self_->make_response_promise();
  static constexpr const char* phases[] = {"waiting for nodes", "loading", "ready", "waiting for cards", "failed", "ended"};
  auto status = std::make_shared<OrderedJson>();
  auto& json = *status;
  json["cluster"] = setup_.options.cluster;
  json["phase"] = phases[static_cast<std::size_t>(phase_)];
  if (!waiting_for_.empty()) json["waiting_for"] = waiting_for_;
  if (!journal_trouble_.empty()) json["journal"] = journal_trouble_;
  if (!failure_.ok()) json["failure"] = {{"code", failure_.code}, {"message", failure_.message}, {"hint", failure_.hint}};
  json["model"] = setup_.options.model_name;
  json["dtype"] = setup_.options.dtype;
  json["epoch"] = epoch_;
  json["term"] = term_;
  json["missing"] = OrderedJson::array();
  std::uint64_t done = 0, total = 0;
  for (const auto& which : setup_.options.nodes) {
    const auto& node = nodes_.at(which);
    if (node.state == Node::State::missing || (node.state == Node::State::lost && !was_ready_)) json["missing"].push_back(which);
    done += node.bytes_done;
    total += node.bytes_total;
  }
  json["load"] = {{"done", done}, {"total", total}};
  json["nodes"] = OrderedJson::array();
  for (const auto& which : setup_.options.nodes) {
    OrderedJson entry;
    const auto& node = nodes_.at(which);
    entry["name"] = which;
    switch (node.state) {
      case Node::State::missing: entry["state"] = "missing"; break;
      case Node::State::lost: entry["state"] = "lost"; break;
      case Node::State::quarantined: entry["state"] = "quarantined"; break;
      case Node::State::up: entry["state"] = node.retry_at ? "left out" : node.loaded_epoch == epoch_ ? "up" : "loading"; break;
    }
    if (!node.why.empty()) entry["why"] = node.why;
    if (node.state != Node::State::missing) {
      entry["pid"] = node.hello.pid;
      entry["control"] = node.hello.control_host + ":" + std::to_string(node.hello.control_port);
      entry["data"] = node.hello.data_address;
      entry["numerics"] = node.numerics;
      entry["last_heard_ms"] = seconds_of(setup_.clock->now() - node.last_heard) * 1000;
    }
    json["nodes"].push_back(entry);
  }
  json["card_conditions"] = OrderedJson::array();
  for (const auto& [card, condition] : cards_) {
    if (!condition.quarantined && !condition.retry_at && condition.slowdown <= 1) continue;
    OrderedJson entry;
    entry["card"] = setup_.options.plan.card_name(card);
    entry["state"] = condition.quarantined ? "quarantined" : condition.retry_at ? "suspected" : "slow";
    if (condition.slowdown > 1) entry["slowdown"] = condition.slowdown;
    if (!condition.why.empty()) entry["why"] = condition.why;
    json["card_conditions"].push_back(entry);
  }
  json["requests"] = OrderedJson::array();
  for (const auto& [number, request] : requests_) {
    OrderedJson entry;
    entry["id"] = number;
    entry["key"] = request.id;
    switch (request.state) {
      case Request::State::queued: entry["state"] = phase_ == Coordinator::Phase::starved ? "waiting for cards" : "queued"; break;
      case Request::State::running: entry["state"] = "running"; break;
      case Request::State::parked: entry["state"] = "waiting for its client"; break;
      case Request::State::closed: entry["state"] = name_of(request.outcome); break;
    }
    if (!request.failure.ok()) entry["reason"] = request.failure.message;
    entry["stage"] = request.stage;
    entry["done"] = request.done;
    entry["total"] = request.total;
    if (request.interruptions > 0) {
      entry["interruptions"] = request.interruptions;
      entry["steps_repeated"] = request.steps_repeated;
    }
    entry["prompt"] = request.spec.prompt.substr(0, 200);
    json["requests"].push_back(entry);
  }
  json["incidents"] = OrderedJson::array();
  for (const auto& each : incidents_) {
    OrderedJson entry;
    entry["at"] = each.wall;
    entry["epoch"] = each.epoch;
    entry["what"] = each.what;
    if (!each.node.empty()) entry["node"] = each.node;
    if (!each.card.empty()) entry["card"] = each.card;
    const auto milliseconds = [&](const char* key, double seconds) {
      if (seconds >= 0) entry[key] = std::round(seconds * 1e5) / 100;
    };
    milliseconds("detected_ms", each.detected);
    milliseconds("fenced_ms", each.fenced);
    milliseconds("replanned_ms", each.planned);
    milliseconds("loaded_ms", each.loaded);
    milliseconds("resumed_ms", each.resumed);
    entry["bytes_read"] = each.bytes_read;
    entry["steps_repeated"] = each.steps_repeated;
    if (!each.consequences.empty()) entry["consequences"] = each.consequences;
    json["incidents"].push_back(entry);
  }
  // Then what each node says of itself, as far as it answers in time.
  auto left = std::make_shared<std::size_t>(0);
  for (const auto& [which, node] : nodes_) *left += node.state == Node::State::up ? 1 : 0;
  const auto finish_answer = [status](caf::response_promise answer) {
    StatusText text;
    text.json = status->dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
    answer.deliver(text);
  };
  if (*left == 0) {
    finish_answer(promise);
    return promise;
  }
  for (const auto& [which, node] : nodes_) {
    if (node.state != Node::State::up) continue;
    self_->request(node.hello.node, std::chrono::seconds(1), AskNodeHealth{})
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
              if (--*left == 0) finish_answer(promise);
            },
            [=](const caf::error&) mutable {
              if (--*left == 0) finish_answer(promise);
            });
  }
  return promise;
}

}  // namespace orrery::actors
