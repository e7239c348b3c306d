// What a scenario leaves open is drawn from its seed, and every order is one that a node accepts.

#include "launch/fault_plan.hpp"

#include <set>

#include <catch2/catch.hpp>

#include "topology/config_set.hpp"

using namespace orrery;
using namespace orrery::launch;

namespace {

topology::Plan two_nodes() {
  topology::Plan plan;
  for (const auto* node : {"n1", "n2"})
    for (std::uint32_t index = 0; index < 2; ++index) plan.cards.push_back({node, index, "cpu", 1 << 20, 1, 1});
  const auto stage = [&](topology::StageKind kind, std::vector<std::uint32_t> cards) {
    topology::PlannedStage planned;
    planned.kind = kind;
    topology::PlannedGroup group;
    for (const auto card : cards) group.ranks.push_back({card, {card}});
    planned.groups.push_back(std::move(group));
    plan.stages.push_back(std::move(planned));
  };
  stage(topology::StageKind::text_encoder, {0});
  stage(topology::StageKind::denoiser, {0, 1, 2, 3});
  stage(topology::StageKind::decoder, {3});
  return plan;
}

topology::ScenarioSpec scenario_of(const std::string& faults, std::uint64_t seed = 1) {
  Findings findings;
  const auto documents = read_yaml("s.yaml", "seed: " + std::to_string(seed) + "\nfaults:\n" + faults + "expect: [\"1 == 1\"]\n", findings);
  REQUIRE(documents.size() == 1);
  YamlReader reader(findings, process_environment());
  auto scenario = topology::read_scenario(documents.front(), "s", reader);
  INFO(text_of(findings));
  REQUIRE(findings.empty());
  return scenario;
}

std::vector<DrawnFault> drawn(const std::string& faults, std::uint64_t seed = 1) {
  auto all = draw_faults(scenario_of(faults, seed), two_nodes());
  if (!all.ok()) FAIL(all.error().text());
  return std::move(all).value();
}

}  // namespace

TEST_CASE("fault plan: roles, names and counts choose targets, the seed the rest", "[launch][fault]") {
  const std::string any = "  - {name: a, when: {event: step_end, step: 2}, action: kill, target: {kind: card}}\n";
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 32; ++seed) {
    const auto once = drawn(any, seed);
    REQUIRE(once.size() == 1);
    CHECK(json_of(once) == json_of(drawn(any, seed)));
    seen.insert(once[0].target);
  }
  CHECK(seen == std::set<std::string>{"card n1:0", "card n1:1", "card n2:0", "card n2:1"});
  CHECK(drawn("  - {name: a, at: 1s, action: slow, target: {kind: card, where: {role: decoder}}}\n")[0].target == "card n2:1");
  CHECK(drawn("  - {name: a, at: 1s, action: kill, target: {kind: node, where: {role: text_encoder}}}\n")[0].target == "node n1");
  CHECK(drawn("  - {name: a, at: 1s, action: kill, target: {kind: node, name: n2}}\n")[0].node == "n2");
  const auto all = drawn("  - {name: a, at: 1s, action: slow, target: {kind: card, mode: all}}\n");
  REQUIRE(all.size() == 4);
  CHECK(all[3].name == "a.4");
  CHECK(all[3].order.name == "a.4");
  CHECK(drawn("  - {name: a, at: 1s, action: slow, target: {kind: card, count: 3}}\n").size() == 3);
}

TEST_CASE("fault plan: moments inside a program are the node's, all others the launcher's", "[launch][fault]") {
  const auto inside = drawn("  - {name: a, when: {event: command, request: 2, step: 3, block: 1, stage: denoiser}, action: hang, target: {kind: card}}\n");
  CHECK(inside[0].armed);
  CHECK(inside[0].order.event == actors::FaultEvent::command);
  CHECK(inside[0].order.request == 2);
  CHECK(inside[0].order.block == 1U);
  CHECK_FALSE(drawn("  - {name: a, when: {event: recovery}, action: kill, target: {kind: node}}\n")[0].armed);
  CHECK_FALSE(drawn("  - {name: a, at: 1s, action: kill, target: {kind: node}}\n")[0].armed);
  const auto coordinator = drawn("  - {name: a, when: {event: step_end, step: 3}, action: kill, target: {kind: coordinator}}\n");
  CHECK_FALSE(coordinator[0].armed);
  CHECK(coordinator[0].place == FaultPlace::launcher);
  CHECK(drawn("  - {name: a, at: 1s, action: disk_full, target: {kind: storage}}\n")[0].place == FaultPlace::coordinator);
}

TEST_CASE("fault plan: a link fault is one end's, with its direction and share", "[launch][fault]") {
  const auto both = drawn("  - {name: a, at: 1s, action: corrupt, target: {kind: link, from: n1, to: n2}, every: {p: 0.25}}\n");
  CHECK(both[0].node == "n1");
  CHECK(both[0].order.peer == "n2");
  CHECK(both[0].order.direction == protocol::LinkDirection::both);
  CHECK(both[0].order.parameters.probability == 0.25);
  CHECK(both[0].target == "link n1 - n2");
  const auto one_way = drawn("  - {name: a, at: 1s, action: cut, target: {kind: link, to: n1, direction: forward}}\n");
  CHECK(one_way[0].node == "n2");
  CHECK(one_way[0].order.direction == protocol::LinkDirection::out);
}

TEST_CASE("fault plan: what the cluster does not have is told", "[launch][fault]") {
  for (const auto* wrong : {"  - {name: a, at: 1s, action: kill, target: {kind: node, name: n9}}\n",
                            "  - {name: a, at: 1s, action: cut, target: {kind: link, from: n1, to: n9}}\n",
                            "  - {name: a, at: 1s, action: slow, target: {kind: card, where: {card: 7}}}\n"}) {
    const auto all = draw_faults(scenario_of(wrong), two_nodes());
    REQUIRE_FALSE(all.ok());
    CHECK(all.error().code == ErrorCode::invalid_config);
    CHECK_THAT(all.error().message, Catch::Contains("fault 'a' of scenario s: "));
  }
}

TEST_CASE("fault plan: every action of a scenario that a node does is one that its switch knows", "[launch][fault]") {
  const auto set = topology::ConfigSet::read({{std::string(ORRERY_SOURCE_DIR) + "/configs/scenarios"}, {},
                                              std::string(ORRERY_SOURCE_DIR) + "/configs", process_environment()});
  REQUIRE(set.ok());
  for (const auto& [name, scenario] : set.scenarios()) {
    CAPTURE(name);
    const auto all = draw_faults(scenario, two_nodes());
    REQUIRE(all.ok());
    for (const auto& fault : all.value()) {
      if (fault.place == FaultPlace::launcher) continue;
      CHECK(actors::name_of(fault.order.action) == topology::name_of(fault.fault.action));
      const auto read = actors::fault_order_from_json(actors::json_of(fault.order).dump());
      REQUIRE(read.ok());
      CHECK(actors::json_of(read.value()) == actors::json_of(fault.order));
    }
  }
}
