#include "launch/fault_plan.hpp"

#include <algorithm>

#include "base/random.hpp"

namespace orrery::launch {

using topology::ScenarioAction;
using topology::ScenarioEvent;
using topology::TargetKind;

namespace {

/// One thing that a fault may be done to.
struct Candidate {
  std::string name;  // "n1:0", "n1"
  std::string node;
  std::optional<std::uint32_t> card;  // Within the node.
};

bool works_for(const topology::Plan& plan, std::uint32_t card, const std::string& role) {
  if (role.empty()) return true;
  for (const auto& stage : plan.stages) {
    if (topology::name_of(stage.kind) != role) continue;
    for (const auto& group : stage.groups)
      for (const auto& rank : group.ranks)
        if (rank.card == card) return true;
  }
  return false;
}

/// In the plan's order.
std::vector<Candidate> candidates_of(const topology::ScenarioTarget& target, const topology::Plan& plan) {
  const bool of_cards = target.kind == TargetKind::card;
  std::vector<Candidate> all;
  for (std::uint32_t number = 0; number < plan.cards.size(); ++number) {
    const auto& card = plan.cards[number];
    if (!works_for(plan, number, target.where.role)) continue;
    if (!target.where.node.empty() && target.where.node != card.node) continue;
    if (target.where.card && *target.where.card != card.index) continue;
    Candidate candidate{card.node, card.node, std::nullopt};
    if (of_cards) {
      candidate.name += ":" + std::to_string(card.index);
      candidate.card = card.index;
    }
    if (!target.name.empty() && target.name != candidate.name) continue;
    const auto same = [&](const Candidate& other) { return other.name == candidate.name; };
    if (std::none_of(all.begin(), all.end(), same)) all.push_back(std::move(candidate));
  }
  return all;
}

std::vector<std::string> nodes_of(const topology::Plan& plan) {
  std::vector<std::string> nodes;
  for (const auto& card : plan.cards)
    if (std::find(nodes.begin(), nodes.end(), card.node) == nodes.end()) nodes.push_back(card.node);
  return nodes;
}

bool is_link(ScenarioAction action) { return fits(action, TargetKind::link); }

std::optional<actors::FaultEvent> node_event(ScenarioEvent event) {
  switch (event) {
    case ScenarioEvent::command: return actors::FaultEvent::command;
    case ScenarioEvent::step_begin: return actors::FaultEvent::step_begin;
    case ScenarioEvent::step_end: return actors::FaultEvent::step_end;
    case ScenarioEvent::encode: return actors::FaultEvent::encode;
    case ScenarioEvent::decode: return actors::FaultEvent::decode;
    case ScenarioEvent::load: return actors::FaultEvent::load;
    default: return std::nullopt;
  }
}

actors::FaultOrder order_of(const topology::ScenarioFault& fault, std::uint64_t seed) {
  actors::FaultOrder order;
  order.name = fault.name;
  if (const auto action = actors::fault_action_of(topology::name_of(fault.action))) order.action = *action;
  const auto& from = fault.parameters;
  auto& to = order.parameters;
  to.factor = from.factor;
  to.latency = from.latency;
  to.jitter = from.jitter;
  to.bytes_per_second = from.rate;
  to.probability = from.probability;
  to.bits = from.bits;
  to.bytes = from.bytes;
  to.times = from.times;
  to.hit = from.hit;
  to.point = from.point;
  to.effect = from.effect;
  if (is_link(fault.action)) to.probability *= fault.every.p;
  else order.chance = fault.every.p;
  order.for_seconds = fault.duration.value_or(0);
  order.seed = seed;
  return order;
}

void set_moment(DrawnFault& drawn) {
  const auto& when = drawn.fault.when;
  if (!when || drawn.place != FaultPlace::node) return;
  const auto event = node_event(when->event);
  if (!event) return;
  drawn.armed = true;
  drawn.order.event = *event;
  drawn.order.request = when->request;
  drawn.order.step = when->step;
  drawn.order.block = when->block;
  drawn.order.stage = when->stage;
}

}  // namespace

Result<std::vector<DrawnFault>> draw_faults(const topology::ScenarioSpec& scenario, const topology::Plan& plan) {
  std::vector<DrawnFault> all;
  Random random(scenario.seed);
  const auto nodes = nodes_of(plan);
  const auto known = [&](const std::string& node) { return std::find(nodes.begin(), nodes.end(), node) != nodes.end(); };
  for (const auto& fault : scenario.faults) {
    // A fixed number of draws for each fault: a choice more in one shifts no other's.
    Random own(random.next());
    DrawnFault drawn;
    drawn.name = fault.name;
    drawn.fault = fault;
    drawn.order = order_of(fault, own.next() >> 1);
    const auto& target = fault.target;
    const auto none = [&](const std::string& what) {
      return Error{ErrorCode::invalid_config, "fault '" + fault.name + "' of scenario " + scenario.name + ": " + what};
    };
    if (target.kind == TargetKind::coordinator || target.kind == TargetKind::storage || target.kind == TargetKind::client) {
      drawn.target = std::string(topology::name_of(target.kind));
      const bool told = target.kind == TargetKind::storage || fault.action == ScenarioAction::point;
      drawn.place = told ? FaultPlace::coordinator : FaultPlace::launcher;
      all.push_back(std::move(drawn));
      continue;
    }
    if (target.kind == TargetKind::link) {
      for (const auto* end : {&target.from, &target.to})
        if (!end->empty() && !known(*end)) return none("there is no node '" + *end + "'");
      if (nodes.size() < 2) return none("a cluster of one node has no links");
      auto from = target.from;
      while (from.empty() || from == target.to) from = nodes[own.below(nodes.size())];
      drawn.node = from;
      drawn.order.peer = target.to;
      const bool forward = target.direction == topology::ScenarioDirection::forward;
      if (forward) drawn.order.direction = protocol::LinkDirection::out;
      drawn.target = "link " + from + (forward ? " > " : " - ") + (target.to.empty() ? "all" : target.to);
      set_moment(drawn);
      all.push_back(std::move(drawn));
      continue;
    }
    auto candidates = candidates_of(target, plan);
    if (candidates.empty()) return none("no " + std::string(topology::name_of(target.kind)) + " of this cluster fits");
    if (!target.all) {
      // Drawn without repetition, then in the plan's order.
      std::vector<std::size_t> order(candidates.size());
      for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
      for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[own.below(i)]);
      order.resize(std::min<std::size_t>(target.count, order.size()));
      std::sort(order.begin(), order.end());
      std::vector<Candidate> chosen;
      for (const auto index : order) chosen.push_back(candidates[index]);
      candidates = std::move(chosen);
    }
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      auto one = drawn;
      if (i > 0) one.name = one.order.name = fault.name + "." + std::to_string(i + 1);
      one.node = candidates[i].node;
      one.order.card = candidates[i].card;
      one.target = (candidates[i].card ? "card " : "node ") + candidates[i].name;
      set_moment(one);
      all.push_back(std::move(one));
    }
  }
  return all;
}

OrderedJson json_of(const std::vector<DrawnFault>& faults) {
  auto all = OrderedJson::array();
  for (const auto& fault : faults) {
    OrderedJson row{{"name", fault.name}, {"target", fault.target}};
    if (!fault.node.empty()) row["node"] = fault.node;
    row["order"] = actors::json_of(fault.order);
    all.push_back(std::move(row));
  }
  return all;
}

}  // namespace orrery::launch
