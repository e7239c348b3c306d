// The fault switch: orders in JSON, triggers at sites, effects on what is bound, healing by name, by time and all.

#include "actors/fault_switch.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "base/fault_point.hpp"
#include "protocol/loopback_transport.hpp"
#include "tests/support/one_op.hpp"

using namespace orrery;
using namespace orrery::actors;

namespace {

FaultOrder order_of(const std::string& json) {
  auto order = fault_order_from_json(json);
  if (!order.ok()) FAIL(order.error().text());
  return std::move(order).value();
}

std::string state_of(const FaultSwitch& faults, const std::string& name) {
  for (const auto& row : faults.list())
    if (row["name"] == name) return row["state"].get<std::string>() + " " + std::to_string(row["fired"].get<int>());
  return "none";
}

FaultSite step_end(std::uint64_t request, std::uint32_t step, std::uint32_t card = 0) {
  return {.event = FaultEvent::step_end, .card = card, .stage = "denoiser", .request = request, .step = step};
}

struct World {
  ManualClock clock;
  FaultSwitch faults{clock};
  std::vector<std::unique_ptr<cards::FaultyCard>> cards;

  explicit World(std::uint32_t count = 2) {
    for (std::uint32_t i = 0; i < count; ++i) {
      auto inner = cards::make_cpu_card({"n1:" + std::to_string(i), 1 << 20, 1});
      REQUIRE(inner.ok());
      cards.push_back(std::make_unique<cards::FaultyCard>(std::move(inner).value(), clock));
      faults.bind_card(i, *cards.back());
    }
  }
  ~World() {
    for (std::uint32_t i = 0; i < cards.size(); ++i) faults.unbind_card(i);
  }
  /// Refuses memory?
  bool refuses(std::size_t card) {
    cards::MemoryWeights source;
    source.add("w", cards::random_tensor(DType::f32, {4, 4}, 1));
    cards::WeightSpec spec;
    spec.tensor = "w";
    spec.shape = {4, 4};
    spec.row_end = spec.column_end = 4;
    auto set = std::make_shared<cards::WeightSet>(cards::WeightSet{"transformer", {spec}});
    const auto status = cards[card]->load_weights(set, source, [](std::uint64_t) { return true; });
    return !status.ok() && status.error().code == ErrorCode::card_memory_exhausted;
  }
};

}  // namespace

TEST_CASE("fault order: JSON is read strictly, and written as it was", "[actors][fault]") {
  const std::string text =
      R"({"name":"slow-one","action":"slow","card":1,"peer":"n2","direction":"in",)"
      R"("when":{"event":"command","request":1,"step":5,"block":3,"stage":"denoiser","chance":0.5},)"
      R"("for_seconds":5.0,"seed":9,"parameters":{"factor":8.0}})";
  const auto order = order_of(text);
  CHECK(order.action == FaultAction::slow);
  CHECK(order.block == 3U);
  CHECK(order.parameters.factor == 8);
  CHECK(json_of(order).dump() == text);

  const std::pair<const char*, const char*> bad[] = {
      {R"(nonsense)", "JSON"},
      {R"([])", "should be an object"},
      {R"({"action":"kill"})", "fault.name is missing"},
      {R"({"name":"a","action":"explode"})", "fault.action is not an action"},
      {R"({"name":"a","action":"kill","crad":1})", "fault.crad is not known"},
      {R"({"name":"a","action":"kill","card":-1})", "fault.card should be a whole number"},
      {R"({"name":"a","action":"kill","card":"1"})", "fault.card should be a whole number"},
      {R"({"name":"a","action":"kill","for_seconds":1e300})", "fault.for_seconds is out of range"},
      {R"({"name":"a","action":"kill","when":{"event":"lunch"}})", "fault.when.event is not an event"},
      {R"({"name":"a","action":"kill","when":{"stpe":1}})", "fault.when.stpe is not known"},
      {R"({"name":"a","action":"drop","parameters":{"probability":2}})", "fault.parameters.probability is out of range"},
      {R"({"name":"a","action":"cut","direction":"up"})", "fault.direction should be out, in or both"},
      {R"({"name":"a","action":"point"})", "fault.action needs parameters.point"},
      {R"({"name":"a","action":"kill","action":"kill"})", "key 'action' appears twice"},
  };
  for (const auto& [json, why] : bad) {
    CAPTURE(json);
    const auto read = fault_order_from_json(json);
    REQUIRE_FALSE(read.ok());
    CHECK(read.error().code == ErrorCode::usage);
    CHECK_THAT(read.error().message, Catch::Contains(why));
  }
}

TEST_CASE("fault order: every action has a name of its own", "[actors][fault]") {
  CHECK(fault_action_names().size() == 27);
  for (const auto& name : fault_action_names()) {
    const auto action = fault_action_of(name);
    REQUIRE(action);
    CHECK(name_of(*action) == name);
  }
  CHECK(block_of_label("block13.attn1.q") == 13U);
  CHECK_FALSE(block_of_label("norm_out"));
  CHECK_FALSE(block_of_label("blocks"));
}

TEST_CASE("fault switch: an order waits for its site, and fires once", "[actors][fault]") {
  World world;
  CHECK_FALSE(world.faults.armed());
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"refuse_memory","when":{"event":"step_end","request":2,"step":3}})")).ok());
  CHECK(world.faults.armed());
  world.faults.reached(step_end(71, 3));
  world.faults.reached(step_end(70, 2));
  world.faults.reached({.event = FaultEvent::step_begin, .card = 1, .stage = "denoiser", .request = 70, .step = 3});
  CHECK(state_of(world.faults, "a") == "armed 0");
  world.faults.reached(step_end(70, 3, 1));  // The second request that it saw.
  CHECK(state_of(world.faults, "a") == "active 1");
  CHECK_FALSE(world.faults.armed());
  CHECK(world.faults.list()[0]["site"]["request"] == 70);
  CHECK(world.refuses(1));  // The card at the site, no other.
  CHECK_FALSE(world.refuses(0));
  REQUIRE(world.faults.heal("a").ok());
  CHECK_FALSE(world.refuses(1));
  CHECK(world.faults.heal("a").error().code == ErrorCode::not_found);
}

TEST_CASE("fault switch: card, block and stage choose among sites", "[actors][fault]") {
  World world;
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"refuse_memory","card":1,"when":{"event":"command","stage":"denoiser","block":2}})")).ok());
  FaultSite site{.event = FaultEvent::command, .card = 1, .stage = "denoiser", .label = "block2.ff", .request = 1, .step = 1, .block = 2};
  std::vector<FaultSite> wrong(4, site);
  wrong[0].card = 0;
  wrong[1].stage = "text_encoder";
  wrong[2].block = 3;
  wrong[3].block.reset();
  for (const auto& each : wrong) {
    world.faults.reached(each);
    CHECK(state_of(world.faults, "a") == "armed 0");
  }
  world.faults.reached(site);
  CHECK(state_of(world.faults, "a") == "active 1");
}

TEST_CASE("fault switch: a load is a site when half of it is read", "[actors][fault]") {
  World world;
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"refuse_memory","card":1,"when":{"event":"load"}})")).ok());
  CHECK_FALSE(world.refuses(0));
  CHECK(state_of(world.faults, "a") == "armed 0");
  CHECK_FALSE(world.refuses(1));  // This load is past the question.
  CHECK(state_of(world.faults, "a") == "active 1");
  CHECK(world.refuses(1));
}

TEST_CASE("fault switch: chance fires by the seed", "[actors][fault]") {
  const auto step_of = [](int seed) {
    World world;
    REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"refuse_memory","seed":)" + std::to_string(seed) +
                                        R"(,"when":{"event":"step_end","chance":0.1}})")).ok());
    for (std::uint32_t step = 1; step < 1000; ++step) {
      world.faults.reached(step_end(1, step));
      if (!world.faults.armed()) return step;
    }
    return 0U;
  };
  CHECK(step_of(3) > 0);
  CHECK(step_of(3) == step_of(3));
  CHECK((step_of(4) != step_of(3) || step_of(5) != step_of(3)));
}

TEST_CASE("fault switch: names are unique until healed; what a process lacks cannot fail", "[actors][fault]") {
  World world;
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"slow"})")).ok());
  CHECK(world.faults.apply(order_of(R"({"name":"a","action":"slow"})")).error().code == ErrorCode::usage);
  CHECK(world.faults.apply(order_of(R"({"name":"b","action":"slow","card":7})")).error().code == ErrorCode::not_found);
  CHECK(world.faults.apply(order_of(R"({"name":"b","action":"cut"})")).error().code == ErrorCode::not_found);
  CHECK(world.faults.apply(order_of(R"({"name":"b","action":"disk_full"})")).error().code == ErrorCode::not_found);
  CHECK(world.faults.apply(order_of(R"({"name":"b","action":"hang_node"})")).error().code == ErrorCode::not_found);
  REQUIRE(world.faults.heal("").ok());
  REQUIRE(world.faults.heal("").ok());
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"slow"})")).ok());
}

TEST_CASE("fault switch: healing one fault of a card leaves the others", "[actors][fault]") {
  World world(1);
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"refuse_memory","card":0})")).ok());
  REQUIRE(world.faults.apply(order_of(R"({"name":"b","action":"slow","card":0})")).ok());
  REQUIRE(world.faults.heal("b").ok());
  CHECK(world.refuses(0));
  REQUIRE(world.faults.heal("a").ok());
  CHECK_FALSE(world.refuses(0));
}

TEST_CASE("fault switch: a fault of a card stays when the card is made again", "[actors][fault]") {
  World world(1);
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"refuse_memory","card":0})")).ok());
  World other(1);
  world.faults.unbind_card(0);
  world.faults.bind_card(0, *other.cards[0]);
  CHECK(other.refuses(0));
  world.faults.unbind_card(0);
}

TEST_CASE("fault switch: a fault ends when its time is over", "[actors][fault]") {
  World world(1);
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"refuse_memory","for_seconds":0.5})")).ok());
  CHECK(world.refuses(0));
  world.clock.advance(std::chrono::seconds(1));
  world.faults.wait_until_healed("a");
  CHECK_FALSE(world.refuses(0));
  CHECK(state_of(world.faults, "a") == "healed 1");
}

TEST_CASE("fault switch: link faults add up per peer and direction", "[actors][fault]") {
  World world(0);
  protocol::LoopbackNetwork network;
  protocol::FaultyTransport transport(network.make_transport(1, 16), {});
  world.faults.bind_transport(&transport);
  world.faults.set_peers({{"n2", 2}});
  using protocol::LinkDirection;
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"corrupt","peer":"n2","parameters":{"probability":0.1}})")).ok());
  REQUIRE(world.faults.apply(order_of(R"({"name":"b","action":"delay","direction":"out","parameters":{"latency":0.25}})")).ok());
  CHECK(transport.link(2, LinkDirection::out).corrupt == 0.1);
  CHECK(transport.link(2, LinkDirection::in).corrupt == 0.1);
  CHECK(transport.link(2, LinkDirection::out).delay == std::chrono::milliseconds(250));
  CHECK(transport.link(2, LinkDirection::in).delay == Duration::zero());
  world.faults.set_peers({{"n2", 2}, {"n3", 3}});  // "b" is for all.
  CHECK(transport.link(3, LinkDirection::out).delay == std::chrono::milliseconds(250));
  CHECK(transport.link(3, LinkDirection::out).corrupt == 0);
  REQUIRE(world.faults.heal("a").ok());
  CHECK(transport.link(2, LinkDirection::out).corrupt == 0);
  CHECK(transport.link(2, LinkDirection::out).delay == std::chrono::milliseconds(250));
  REQUIRE(world.faults.heal("").ok());
  CHECK_FALSE(transport.link(2, LinkDirection::out).any());
  CHECK_FALSE(transport.link(3, LinkDirection::out).any());
  world.faults.bind_transport(nullptr);
}

TEST_CASE("fault switch: disks, fault points and the node's actor", "[actors][fault]") {
  World world(0);
  DiskFaults disk;
  world.faults.bind_disk(&disk);
  REQUIRE(world.faults.apply(order_of(R"({"name":"a","action":"disk_full"})")).ok());
  REQUIRE(world.faults.apply(order_of(R"({"name":"b","action":"fail_sync","parameters":{"times":2}})")).ok());
  CHECK(disk.full);
  CHECK(disk.failed_syncs == 2);
  REQUIRE(world.faults.apply(order_of(R"({"name":"c","action":"point","parameters":{"point":"test.before_switch","effect":"fail"}})")).ok());
  const auto reach = []() -> Status {
    ORRERY_FAULT_STATUS("test.before_switch");
    return Done{};
  };
  CHECK_FALSE(reach().ok());
  std::string hung;
  world.faults.bind_hang([&](std::string name) { hung = std::move(name); });
  REQUIRE(world.faults.apply(order_of(R"({"name":"d","action":"hang_node"})")).ok());
  CHECK(hung == "d");
  std::thread actor([&] { world.faults.wait_until_healed("d"); });
  REQUIRE(world.faults.heal("").ok());
  actor.join();
  CHECK_FALSE(disk.full);
  CHECK(disk.failed_syncs == 0);
  CHECK(reach().ok());
}

TEST_CASE("fault switch: signals end or stop this process, and a timed stop ends by itself", "[actors][fault]") {
  const auto ended_by = [](const std::string& action, double seconds) {
    const auto child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      ::signal(SIGTERM, SIG_DFL);  // Not the test program's report.
      SteadyClock clock;
      FaultSwitch faults(clock);
      auto order = order_of(R"({"name":"a","action":")" + action + R"(","when":{"event":"step_end","step":2}})");
      order.for_seconds = seconds;
      if (!faults.apply(order).ok()) ::_exit(1);
      faults.reached(step_end(1, 1));
      faults.reached(step_end(1, 2));
      ::_exit(42);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, WUNTRACED) == child);
    if (WIFSTOPPED(status)) {
      if (seconds <= 0) ::kill(child, SIGCONT);
      REQUIRE(::waitpid(child, &status, 0) == child);
      return "stopped, then " + std::to_string(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    }
    return std::to_string(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  };
  CHECK(ended_by("kill", 0) == std::to_string(-SIGKILL));
  CHECK(ended_by("term", 0) == std::to_string(-SIGTERM));
  CHECK(ended_by("segv", 0) == std::to_string(-SIGSEGV));
  CHECK(ended_by("abort", 0) == std::to_string(-SIGABRT));
  CHECK(ended_by("pause", 0) == "stopped, then 42");
  CHECK(ended_by("pause", 0.02) == "stopped, then 42");
}
