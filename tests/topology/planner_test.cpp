// Placements are legal on any cluster, best where every placement can be tried, and the same each time.

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include <catch2/catch.hpp>

#include "base/random.hpp"
#include "topology/config_set.hpp"
#include "topology/model_demand.hpp"
#include "topology/plan_text.hpp"
#include "topology/planner.hpp"

using namespace orrery;
using namespace orrery::topology;

namespace {

const std::string configs = std::string(ORRERY_SOURCE_DIR) + "/configs";

/// One CardProfile per (memory, rate), so that clusters can be written as lists of those.
struct TestCard {
  std::uint64_t memory = std::uint64_t{1} << 30;
  double rate = 1e9;
};

ClusterSpec cluster_of(const std::vector<std::vector<TestCard>>& nodes) {
  ClusterSpec cluster;
  cluster.name = "test";
  auto& type = cluster.card_types["test"];
  type.name = "test";
  type.compute = {{"float32", 1e9}};
  type.memory_bandwidth = 1e12;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    ClusterNode node;
    node.name = node.address = "n" + std::to_string(i + 1);
    for (const auto& card : nodes[i]) node.cards.push_back({"test", card.memory, 1, card.rate / 1e9});
    cluster.nodes.push_back(std::move(node));
  }
  return cluster;
}

StageDemand denoiser(std::uint32_t slices = 8, std::uint32_t branches = 2) {
  StageDemand stage;
  stage.kind = StageKind::denoiser;
  stage.slices = slices;
  stage.blocks = 4;
  stage.rows = 512;
  stage.width = 256;
  stage.sequence_split = true;
  stage.branches = branches;
  stage.steps = 10;
  stage.weight_bytes_replicated = 1 << 20;
  stage.weight_bytes_sliced = 64 << 20;
  stage.activation_bytes_fixed = 1 << 20;
  stage.activation_bytes_split = 4 << 20;
  stage.flops_linear = 1e9;
  stage.flops_attention = 1e8;
  return stage;
}

StageDemand encoder() {
  auto stage = denoiser(4, 1);
  stage.kind = StageKind::text_encoder;
  stage.sequence_split = false;
  stage.steps = 1;
  stage.reduces_per_block = 2;
  return stage;
}

StageDemand decoder() {
  StageDemand stage;
  stage.kind = StageKind::decoder;
  stage.weight_bytes_replicated = 8 << 20;
  stage.activation_bytes_fixed = 16 << 20;
  stage.flops_linear = 5e8;
  return stage;
}

Demand demand_of_stages(std::vector<StageDemand> stages) { return {"toy", "float32", 1 << 16, std::move(stages)}; }

/// Everything that must hold of any plan; empty when it does.
std::string broken_rule(const Plan& plan, Demand demand, const ClusterSpec& cluster,
                        const std::set<std::uint32_t>& lost = {}) {
  demand.streamed_weights = plan.streamed;
  if (plan.cards.size() != cluster.card_count()) return "cards are missing";
  if (plan.stages.size() != demand.stages.size()) return "stages are missing";
  std::vector<MemoryBill> bills(plan.cards.size());
  std::vector<std::vector<std::uint64_t>> lanes(plan.cards.size());
  for (std::size_t i = 0; i < plan.stages.size(); ++i) {
    const auto& stage = demand.stages[i];
    const auto& placed = plan.stages[i];
    if (placed.kind != stage.kind) return "a stage is out of order";
    if (placed.groups.empty() || placed.groups.size() > (stage.kind == StageKind::denoiser ? stage.branches : 1U))
      return "a stage has a wrong number of groups";
    std::set<std::uint32_t> used;
    for (std::size_t g = 0; g < placed.groups.size(); ++g) {
      std::uint32_t next = 0;
      for (std::size_t r = 0; r < placed.groups[g].ranks.size(); ++r) {
        const auto& rank = placed.groups[g].ranks[r];
        if (rank.card >= plan.cards.size() || lost.contains(rank.card)) return "a card is used that may not be";
        if (!used.insert(rank.card).second) return "a card has two places in a stage";
        if (rank.slices.empty()) return "a rank owns nothing";
        for (const auto slice : rank.slices)
          if (slice != next++) return "slices are not contiguous in rank order";
        const auto bill = bill_of(demand, stage, placed, g, r);
        bills[rank.card].weights += bill.weights;
        lanes[rank.card].push_back(bill.activations);
      }
      if (next != stage.slices) return "a slice has no owner";
    }
  }
  for (std::size_t card = 0; card < bills.size(); ++card) {
    // Two videos are under way: the two largest lanes are open.
    std::sort(lanes[card].rbegin(), lanes[card].rend());
    lanes[card].resize(std::max<std::size_t>(lanes[card].size(), 2));
    const MemoryBill& said = plan.bills[card];
    if (said.weights != bills[card].weights || said.activations != lanes[card][0] || said.overlap != lanes[card][1])
      return "a bill does not add up";
    // Room for all of them, whatever gaps they leave.
    if (std::accumulate(lanes[card].begin(), lanes[card].end(), said.weights) > plan.cards[card].memory_bytes) return "a card is overfull";
  }
  if (plan.predicted_video_seconds < plan.lower_bound_seconds * (1 - 1e-9)) return "a plan beats the bound";
  return "";
}

ClusterSpec random_cluster(Random& random, std::size_t nodes_most, std::size_t cards_most) {
  std::vector<std::vector<TestCard>> nodes(1 + random.below(nodes_most));
  for (auto& node : nodes) {
    node.resize(1 + random.below(cards_most));
    for (auto& card : node)
      card = {(std::uint64_t{20} << 20) << random.below(4), 1e9 * static_cast<double>(1 + random.below(3))};
  }
  auto cluster = cluster_of(nodes);
  const LinkShape shapes[] = {LinkShape::mesh, LinkShape::ports, LinkShape::ring, LinkShape::shared};
  cluster.within_node = {"in", 1e9 * static_cast<double>(1 + random.below(10)),
                         1e-6 * static_cast<double>(random.below(50)), shapes[random.below(4)]};
  cluster.between_nodes = {"out", 1e8 * static_cast<double>(1 + random.below(20)),
                           1e-6 * static_cast<double>(random.below(200)), shapes[random.below(4)]};
  return cluster;
}

const PlannedStage& denoiser_in(const Plan& plan) { return *plan.stage(StageKind::denoiser); }

std::size_t cards_in(const PlannedStage& stage) {
  std::size_t count = 0;
  for (const auto& group : stage.groups) count += group.ranks.size();
  return count;
}

}  // namespace

TEST_CASE("planner: every placement on random clusters is legal, or the refusal names a card",
          "[topology][planner]") {
  Random random(2026);
  std::size_t planned = 0, refused = 0;
  for (int i = 0; i < 400; ++i) {
    const auto cluster = random_cluster(random, 6, 6);
    const auto demand = demand_of_stages({encoder(),
                                          denoiser(static_cast<std::uint32_t>(1 + random.below(12)),
                                                   static_cast<std::uint32_t>(1 + random.below(2))),
                                          decoder()});
    DeploymentSpec deployment;
    if (random.below(3) == 0) deployment.parallelism.tensor = static_cast<std::uint32_t>(1 + random.below(6));
    if (random.below(4) == 0) deployment.parallelism.cfg = static_cast<std::uint32_t>(1 + random.below(2));
    std::set<std::uint32_t> lost;
    if (random.below(4) == 0) lost.insert(static_cast<std::uint32_t>(random.below(cluster.card_count())));
    CardConditions conditions{lost, {}};
    for (std::uint32_t card = 0; card < cluster.card_count(); ++card)
      if (random.below(8) == 0) conditions.slowdown[card] = 4 * random.uniform();
    const auto plan = make_plan(cluster, deployment, demand, conditions);
    INFO("instance " << i);
    if (plan.ok()) {
      ++planned;
      CHECK(broken_rule(plan.value(), demand, cluster, lost) == "");
      if (deployment.parallelism.tensor.value_or(1) > 1)
        for (const auto& group : denoiser_in(plan.value()).groups) {
          CHECK(group.ranks.size() == *deployment.parallelism.tensor);
          CHECK(denoiser_in(plan.value()).split == Split::tensor);
        }
      if (deployment.parallelism.cfg) CHECK(denoiser_in(plan.value()).groups.size() == *deployment.parallelism.cfg);
    } else {
      ++refused;
      CHECK(plan.error().code == ErrorCode::no_feasible_plan);
      const auto& said = plan.error().message;
      CHECK((said.find("card n") != std::string::npos || said.find("[E30") != std::string::npos ||
             said.find("no card is left") != std::string::npos));
    }
  }
  CHECK(planned > 100);
  CHECK(refused > 20);
}

TEST_CASE("planner: on small clusters no placement is faster than the chosen one", "[topology][planner]") {
  Random random(7);
  for (int i = 0; i < 60; ++i) {
    auto cluster = random_cluster(random, 3, 2);
    for (auto& node : cluster.nodes)
      for (auto& card : node.cards) card.memory = std::uint64_t{1} << 30;
    const auto stage = denoiser(4, static_cast<std::uint32_t>(1 + random.below(2)));
    const auto demand = demand_of_stages({stage});
    const auto cards = cards_of(cluster, "float32");
    CardConditions conditions;
    std::vector<double> seconds_per_slice;
    for (std::uint32_t c = 0; c < cards.size(); ++c) {
      if (i % 2 == 1 && random.below(3) == 0)
        conditions.slowdown[c] = 1 + static_cast<double>(random.below(40)) / 8;
      const auto slow = conditions.slowdown.find(c);
      seconds_per_slice.push_back((slow == conditions.slowdown.end() ? 1 : slow->second) / cards[c].relative_compute);
    }
    const auto plan = make_plan(cluster, {}, demand, conditions);
    REQUIRE(plan.ok());
    // Every assignment of cards to {unused, first group, second group}, both splits.
    double best = std::numeric_limits<double>::infinity();
    std::size_t combinations = 1;
    for (std::size_t c = 0; c < cards.size(); ++c) combinations *= 3;
    for (std::size_t code = 0; code < combinations; ++code) {
      std::vector<std::uint32_t> groups[2];
      auto rest = code;
      for (std::uint32_t c = 0; c < cards.size(); ++c, rest /= 3)
        if (rest % 3 > 0) groups[rest % 3 - 1].push_back(c);
      if (groups[0].empty() || groups[0].size() > 4 || groups[1].size() > 4 ||
          (!groups[1].empty() && stage.branches < 2))
        continue;
      for (const auto split : {Split::tensor, Split::sequence}) {
        PlannedStage placed{StageKind::denoiser, split, 4, {}};
        for (const auto& own : groups) {
          if (own.empty()) continue;
          std::vector<double> seconds;
          for (const auto c : own) seconds.push_back(seconds_per_slice[c]);
          const auto shares = share_out(4, seconds, std::vector<std::uint32_t>(own.size(), 4));
          PlannedGroup group;
          std::uint32_t next = 0;
          for (std::size_t r = 0; r < own.size(); ++r) {
            group.ranks.push_back({own[r], {}});
            for (std::uint32_t s = 0; s < shares[r]; ++s) group.ranks.back().slices.push_back(next++);
          }
          placed.groups.push_back(std::move(group));
        }
        best = std::min(best, predict(cluster, demand, stage, placed, conditions).total_seconds());
      }
    }
    INFO("instance " << i);
    CHECK(plan.value().exhaustive);
    CHECK(plan.value().predicted.front().total_seconds() == Approx(best).epsilon(1e-12));
  }
}

TEST_CASE("planner: no other sharing of slices makes the slowest rank faster", "[topology][planner]") {
  Random random(11);
  for (int i = 0; i < 200; ++i) {
    const auto ranks = 1 + random.below(4);
    const auto slices = static_cast<std::uint32_t>(ranks + random.below(7));
    std::vector<double> seconds(ranks);
    std::vector<std::uint32_t> most(ranks);
    for (auto& one : seconds) one = 1 + static_cast<double>(random.below(5));
    for (auto& one : most) one = static_cast<std::uint32_t>(1 + random.below(slices));
    double best = std::numeric_limits<double>::infinity();
    std::vector<std::uint32_t> shares(ranks);
    const std::function<void(std::size_t, std::uint32_t)> all = [&](std::size_t rank, std::uint32_t left) {
      if (rank == ranks) {
        if (left > 0) return;
        double slowest = 0;
        for (std::size_t r = 0; r < ranks; ++r) slowest = std::max(slowest, shares[r] * seconds[r]);
        best = std::min(best, slowest);
        return;
      }
      for (std::uint32_t s = 1; s <= std::min(left, most[rank]); ++s) {
        shares[rank] = s;
        all(rank + 1, left - s);
      }
    };
    all(0, slices);
    const auto chosen = share_out(slices, seconds, most);
    if (chosen.empty()) {
      CHECK(best == std::numeric_limits<double>::infinity());
      continue;
    }
    double slowest = 0;
    for (std::size_t r = 0; r < ranks; ++r) slowest = std::max(slowest, chosen[r] * seconds[r]);
    CHECK(std::accumulate(chosen.begin(), chosen.end(), 0U) == slices);
    CHECK(slowest == best);
  }
  CHECK(share_out(8, std::vector<double>{1, 1, 1}, std::vector<std::uint32_t>{8, 8, 8}) ==
        std::vector<std::uint32_t>{3, 3, 2});
  CHECK(share_out(8, std::vector<double>{3, 3, 3, 1}, std::vector<std::uint32_t>{8, 8, 8, 8}) ==
        std::vector<std::uint32_t>{1, 1, 1, 5});
  CHECK(share_out(6, std::vector<double>{1, 1, 1.0 / 3}, std::vector<std::uint32_t>{8, 8, 8}) ==
        std::vector<std::uint32_t>{1, 1, 4});
  CHECK(share_out(2, std::vector<double>{1, 1, 1}, std::vector<std::uint32_t>{2, 2, 2}).empty());
}

TEST_CASE("planner: the same input gives the same bytes, and names of cards do not matter to the time",
          "[topology][planner]") {
  Random random(3);
  for (int i = 0; i < 20; ++i) {
    const auto cluster = random_cluster(random, 4, 3);
    const auto demand = demand_of_stages({encoder(), denoiser(), decoder()});
    const auto first = make_plan(cluster, {}, demand), second = make_plan(cluster, {}, demand);
    REQUIRE(first.ok() == second.ok());
    if (!first.ok()) continue;
    CHECK(json_of(first.value()).dump() == json_of(second.value()).dump());
    CHECK(text_of(first.value(), true) == text_of(second.value(), true));
    CHECK(first.value().digest() == second.value().digest());
    auto renamed = cluster;
    for (auto& node : renamed.nodes) node.name = "x" + node.name;
    CHECK(make_plan(renamed, {}, demand).value().predicted_video_seconds == first.value().predicted_video_seconds);
  }
}

TEST_CASE("planner: another card never makes the prediction worse", "[topology][planner]") {
  Random random(5);
  for (int i = 0; i < 40; ++i) {
    auto cluster = random_cluster(random, 3, 2);
    for (auto& node : cluster.nodes)
      for (auto& card : node.cards) card.memory = std::uint64_t{1} << 30;
    // On meshes and ports a card that is not used changes nothing; in rings it lengthens the way.
    cluster.within_node.shape = cluster.between_nodes.shape = LinkShape::ports;
    const auto demand = demand_of_stages({encoder(), denoiser(), decoder()});
    const auto before = make_plan(cluster, {}, demand);
    cluster.nodes.front().cards.push_back(cluster.nodes.front().cards.front());
    const auto after = make_plan(cluster, {}, demand);
    REQUIRE((before.ok() && after.ok()));
    CHECK(after.value().predicted_video_seconds <= before.value().predicted_video_seconds * (1 + 1e-12));
  }
}

TEST_CASE("planner: all cards are used when the links are fast, one when they are slow", "[topology][planner]") {
  auto cluster = cluster_of({{{}, {}}, {{}, {}}});
  auto stage = denoiser(8, 1);
  stage.flops_linear = 1e11;
  cluster.within_node = {"in", 1e11, 1e-7, LinkShape::ports};
  cluster.between_nodes = {"out", 1e11, 1e-7, LinkShape::ports};
  const auto demand = demand_of_stages({stage});
  CHECK(cards_in(denoiser_in(make_plan(cluster, {}, demand).value())) == 4);
  cluster.within_node.latency = cluster.between_nodes.latency = 10;
  CHECK(cards_in(denoiser_in(make_plan(cluster, {}, demand).value())) == 1);
  // Slow between nodes only: the cards of one node.
  cluster.within_node.latency = 1e-7;
  const auto plan = make_plan(cluster, {}, demand).value();
  CHECK(cards_in(denoiser_in(plan)) == 2);
  CHECK(plan.cards[denoiser_in(plan).groups[0].ranks[0].card].node ==
        plan.cards[denoiser_in(plan).groups[0].ranks[1].card].node);
}

TEST_CASE("planner: guidance branches go to different cards before a branch is split", "[topology][planner]") {
  const auto plan = make_plan(cluster_of({{{}}, {{}}}), {}, demand_of_stages({denoiser()})).value();
  REQUIRE(denoiser_in(plan).groups.size() == 2);
  CHECK(denoiser_in(plan).groups[0].ranks.size() == 1);
  CHECK(denoiser_in(plan).groups[0].ranks[0].card != denoiser_in(plan).groups[1].ranks[0].card);
}

TEST_CASE("planner: a card three times as fast gets the more slices", "[topology][planner]") {
  const auto set = ConfigSet::read({{configs + "/clusters/uneven.yaml", configs + "/models/cosmos-tiny.yaml"},
                                    {"parallelism.tensor=4", "parallelism.cfg=1"},
                                    configs,
                                    process_environment()});
  const auto resolved = set.resolve().value();
  const auto demand = demand_of(resolved.model, shape_of(resolved.model.defaults)).value();
  const auto plan = make_plan(resolved.cluster, resolved.deployment, demand).value();
  CHECK(broken_rule(plan, demand, resolved.cluster) == "");
  std::vector<std::size_t> shares;
  for (const auto& rank : denoiser_in(plan).groups[0].ranks) shares.push_back(rank.slices.size());
  CHECK(shares == std::vector<std::size_t>{1, 1, 1, 5});
  CHECK(plan.cards[3].relative_compute == Approx(3));
}

TEST_CASE("planner: what is asked for explicitly is honoured exactly", "[topology][planner]") {
  const auto cluster = cluster_of({{{}, {}, {}}, {{}, {}, {}}});
  const auto demand = demand_of_stages({encoder(), denoiser(), decoder()});
  for (std::uint32_t degree = 1; degree <= 6; ++degree) {
    DeploymentSpec tensor, sequence;
    tensor.parallelism = {degree, 1, 1};
    sequence.parallelism = {1, degree, 1};
    const auto a = make_plan(cluster, tensor, demand).value(), b = make_plan(cluster, sequence, demand).value();
    CHECK(cards_in(denoiser_in(a)) == degree);
    CHECK(denoiser_in(a).split == Split::tensor);
    CHECK(cards_in(denoiser_in(b)) == degree);
    CHECK(denoiser_in(b).split == (degree == 1 ? Split::tensor : Split::sequence));
  }
  DeploymentSpec branches;
  branches.parallelism = {3, std::nullopt, 2};
  const auto plan = make_plan(cluster, branches, demand).value();
  REQUIRE(denoiser_in(plan).groups.size() == 2);
  CHECK(denoiser_in(plan).groups[0].ranks.size() == 3);
  CHECK(denoiser_in(plan).groups[1].ranks.size() == 3);
}

TEST_CASE("planner: a request that cannot be met says what can", "[topology][planner]") {
  const auto cluster = cluster_of({{{}, {}}, {{}, {}}});
  const auto said = [&](ParallelismSpec wanted, std::uint32_t branches = 2) {
    DeploymentSpec deployment;
    deployment.parallelism = wanted;
    const auto plan = make_plan(cluster, deployment, demand_of_stages({denoiser(3, branches)}));
    return plan.ok() ? std::string("a plan") : plan.error().text();
  };
  CHECK(said({4, {}, {}}) ==
        "parallelism.tensor=4 is more than the 3 slices of model 'toy' [E301] (use 1 to 3, or auto)");
  CHECK(said({3, {}, 2}) ==
        "parallelism.tensor=3 with cfg=2 needs 6 cards, and 4 are usable on cluster 'test' [E302] (use 1 to 2, or "
        "auto)");
  CHECK(said({{}, 3, 2}) ==
        "parallelism.sequence=3 with cfg=2 needs 6 cards, and 4 are usable on cluster 'test' [E302] (use 1 to 2, "
        "or auto)");
  CHECK(said({2, 2, {}}) ==
        "parallelism.tensor=2 and parallelism.sequence=2 are not combined [E303] (set one of them to 1 or auto)");
  CHECK(said({{}, {}, 2}, 1) ==
        "parallelism.cfg=2 needs guidance, and this request has one branch [E304] (set guidance_scale above 1, or "
        "cfg to auto)");
}

TEST_CASE("planner: a model that does not fit names the card and the shortfall", "[topology][planner]") {
  auto stage = denoiser(8, 1);
  stage.weight_bytes_sliced = std::uint64_t{4} << 30;
  DeploymentSpec resident;
  resident.weights = WeightPlacement::resident;
  const auto two = make_plan(cluster_of({{{}}, {{}}}), resident, demand_of_stages({stage}));
  REQUIRE_FALSE(two.ok());
  CHECK(two.error().code == ErrorCode::no_feasible_plan);
  CHECK(two.error().message ==
        "model 'toy' does not fit cluster 'test': card n1:0 has 1.00 GiB for the denoiser, which needs at least "
        "3.51 GiB there (2.51 GiB too little)");
  CHECK(two.error().hint == "add cards or memory, or ask for fewer or smaller frames");
  // Streamed, a card needs two of the blocks: these have two, so nothing is won; with sixteen it fits.
  CHECK_FALSE(make_plan(cluster_of({{{}}, {{}}}), {}, demand_of_stages({stage})).ok());
  auto deep = stage;
  deep.blocks = 16;
  const auto streamed = make_plan(cluster_of({{{}}, {{}}}), {}, demand_of_stages({deep}));
  REQUIRE(streamed.ok());
  CHECK(streamed.value().streamed);
  CHECK(streamed.value().bills[0].total() <= std::uint64_t{1} << 30);
  CHECK_FALSE(make_plan(cluster_of({{{}}, {{}}}), resident, demand_of_stages({deep})).ok());
  // Eight cards of the same size hold it in tensor split only.
  const auto eight = make_plan(cluster_of({{{}, {}, {}, {}}, {{}, {}, {}, {}}}), {}, demand_of_stages({stage}));
  REQUIRE(eight.ok());
  CHECK(denoiser_in(eight.value()).split == Split::tensor);
  const bool explained =
      std::any_of(eight.value().rejected.begin(), eight.value().rejected.end(), [](const RejectedPlan& one) {
        return one.what == "denoiser sequence=8 cfg=1" && one.why == "n1:0 needs 4.00 GiB of 1.00 GiB";
      });
  CHECK(explained);
}

TEST_CASE("planner: an uneven budget gives the card with less memory fewer slices", "[topology][planner]") {
  auto stage = denoiser(8, 1);
  DeploymentSpec both;
  both.parallelism = {2, 1, 1};
  const auto plan = make_plan(cluster_of({{{std::uint64_t{24} << 20, 1e9}, {std::uint64_t{1} << 30, 1e9}}}), both,
                              demand_of_stages({stage}));
  REQUIRE(plan.ok());
  CHECK(denoiser_in(plan.value()).groups[0].ranks[0].slices.size() == 2);
  CHECK(denoiser_in(plan.value()).groups[0].ranks[1].slices.size() == 6);
}

TEST_CASE("planner: stages that do not fit on one card go to others", "[topology][planner]") {
  auto heavy = decoder();
  heavy.weight_bytes_replicated = std::uint64_t{900} << 20;
  auto stage = denoiser(1, 1);
  stage.weight_bytes_sliced = std::uint64_t{900} << 20;
  const auto plan = make_plan(cluster_of({{{}, {}}}), {}, demand_of_stages({stage, heavy}));
  REQUIRE(plan.ok());
  CHECK(plan.value().stages[0].groups[0].ranks[0].card != plan.value().stages[1].groups[0].ranks[0].card);
  const auto one = make_plan(cluster_of({{{}}}), {}, demand_of_stages({stage, heavy}));
  REQUIRE_FALSE(one.ok());
  CHECK(one.error().message.find("card n1:0 has ") != std::string::npos);
}

TEST_CASE("planner: a stage that is split finds the cards that the denoiser left free, though all cards are alike",
          "[topology][planner]") {
  auto stage = denoiser(8, 1);
  stage.weight_bytes_sliced = std::uint64_t{900} << 20;
  auto text = encoder();
  text.weight_bytes_sliced = std::uint64_t{900} << 20;
  DeploymentSpec one;
  one.parallelism = {1, 1, 1};
  const auto demand = demand_of_stages({text, stage, decoder()});
  for (const auto& cluster : {cluster_of({{{}, {}}}), cluster_of({{{}}, {{}}}),
                              cluster_of(std::vector<std::vector<TestCard>>(40, std::vector<TestCard>(4)))}) {
    const auto plan = make_plan(cluster, one, demand);
    REQUIRE(plan.ok());
    CHECK(broken_rule(plan.value(), demand, cluster) == "");
  }
}

TEST_CASE("planner: a stage without work goes somewhere, too", "[topology][planner]") {
  Demand demand;
  demand.model = "m";
  StageDemand guardrail;
  guardrail.kind = StageKind::text_guardrail;
  demand.stages = {guardrail, encoder(), denoiser(), decoder()};
  const auto plan = make_plan(cluster_of({{{}, {}}, {{}, {}}}), {}, demand);
  REQUIRE(plan.ok());
  CHECK(plan.value().stage(StageKind::text_guardrail)->groups.size() == 1);
}

TEST_CASE("planner: pins and lost cards are kept out", "[topology][planner]") {
  const auto cluster = cluster_of({{{}, {}}, {{}, {}}});
  const auto demand = demand_of_stages({encoder(), denoiser(), decoder()});
  DeploymentSpec deployment;
  deployment.placement.denoiser = {"n2"};
  deployment.placement.decoder = {"n1:1"};
  const auto plan = make_plan(cluster, deployment, demand).value();
  for (const auto& group : denoiser_in(plan).groups)
    for (const auto& rank : group.ranks) CHECK(plan.cards[rank.card].node == "n2");
  CHECK(plan.card_name(plan.stage(StageKind::decoder)->groups[0].ranks[0].card) == "n1:1");
  const auto after = make_plan(cluster, deployment, demand, {{2}, {}}).value();
  CHECK(cards_in(denoiser_in(after)) == 1);
  CHECK(broken_rule(after, demand, cluster, {2}) == "");
  CHECK(make_plan(cluster, deployment, demand, {{2, 3}, {}}).error().message ==
        "no card is left for the denoiser on cluster 'test'");
  deployment.placement.denoiser = {"n3"};
  CHECK(make_plan(cluster, deployment, demand).error().text() ==
        "placement of the denoiser: 'n3' names no host of cluster 'test' [E305] (did you mean 'n1'?)");
  deployment.placement.denoiser = {"n2:7"};
  CHECK(make_plan(cluster, deployment, demand).error().text() ==
        "placement of the denoiser: 'n2:7' names no card of host 'n2' [E305] (it has cards 0 to 1)");
}

TEST_CASE("planner: a slow card gets fewer slices, then none, and the plan stays the same while they do",
          "[topology][planner]") {
  auto stage = denoiser(8, 1);
  stage.flops_linear = 1e11;
  const auto cluster = cluster_of({{{}, {}}, {{}, {}}});
  const auto demand = demand_of_stages({stage});
  DeploymentSpec four;
  four.parallelism = {4, 1, 1};
  const auto slices_of_second = [&](const DeploymentSpec& deployment, double slowdown) {
    const auto plan = make_plan(cluster, deployment, demand, {{}, {{1, slowdown}}}).value();
    CHECK(broken_rule(plan, demand, cluster) == "");
    for (const auto& rank : denoiser_in(plan).groups[0].ranks)
      if (rank.card == 1) return rank.slices.size();
    return std::size_t{0};
  };
  CHECK(slices_of_second(four, 1) == 2);
  CHECK(slices_of_second(four, 1.4) == 2);
  CHECK(slices_of_second(four, 2) == 1);
  CHECK(slices_of_second(four, 50) == 1);  // Four cards were asked for.
  CHECK(slices_of_second({}, 1) == 2);
  CHECK(slices_of_second({}, 1.2) == 2);
  CHECK(slices_of_second({}, 2) == 0);  // 3+3+2 on the others take no longer than 3+1+2+2.
  const auto plan = make_plan(cluster, four, demand).value();
  const auto little = make_plan(cluster, four, demand, {{}, {{1, 1.2}}}).value();
  CHECK(little.digest() == plan.digest());
  CHECK(little.predicted[0].compute_seconds == Approx(1.2 * plan.predicted[0].compute_seconds));
  CHECK(make_plan(cluster, four, demand, {{}, {{1, 2.0}}}).value().digest() != plan.digest());
}

TEST_CASE("planner: a card measured to be slow is planned as a slower card would be", "[topology][planner]") {
  Random random(17);
  int compared = 0;
  for (int i = 0; i < 100; ++i) {
    const auto cluster = random_cluster(random, 3, 2);
    const auto demand = demand_of_stages({encoder(), denoiser(), decoder()});
    CardConditions conditions;
    auto slower = cluster;
    std::uint32_t card = 0;
    for (auto& node : slower.nodes)
      for (auto& one : node.cards) {
        if (random.below(3) == 0) {
          conditions.slowdown[card] = static_cast<double>(2 << random.below(3));
          one.compute_share /= conditions.slowdown[card];
        }
        ++card;
      }
    const auto measured = make_plan(cluster, {}, demand, conditions), built = make_plan(slower, {}, demand);
    REQUIRE(measured.ok() == built.ok());
    if (!measured.ok()) continue;
    ++compared;
    CHECK(measured.value().predicted_video_seconds == Approx(built.value().predicted_video_seconds).epsilon(1e-9));
    CHECK(measured.value().lower_bound_seconds == Approx(built.value().lower_bound_seconds).epsilon(1e-9));
  }
  CHECK(compared > 30);
}

TEST_CASE("planner: a measurement that cannot be counts as none or as the slowest", "[topology][planner]") {
  const auto cluster = cluster_of({{{}, {}}});
  const auto demand = demand_of_stages({denoiser(8, 1)});
  const auto plain = json_of(make_plan(cluster, {}, demand).value()).dump();
  constexpr auto infinite = std::numeric_limits<double>::infinity();
  for (const double odd : {0.0, -3.0, 0.5, 1.0, std::numeric_limits<double>::quiet_NaN(), -infinite})
    CHECK(json_of(make_plan(cluster, {}, demand, {{}, {{0, odd}, {77, 2.0}}}).value()).dump() == plain);
  CHECK(json_of(make_plan(cluster, {}, demand, {{}, {{0, infinite}}}).value()).dump() ==
        json_of(make_plan(cluster, {}, demand, {{}, {{0, slowdown_max}}}).value()).dump());
}

TEST_CASE("planner: on large clusters, too, one slow card does not hold up the others", "[topology][planner]") {
  const auto cluster = cluster_of(std::vector<std::vector<TestCard>>(8, std::vector<TestCard>(8)));
  auto stage = denoiser(64, 1);
  stage.flops_linear = 1e12;
  const auto demand = demand_of_stages({stage});
  const auto before = make_plan(cluster, {}, demand).value();
  for (const std::uint32_t slow : {0U, 30U, 63U}) {
    const auto after = make_plan(cluster, {}, demand, {{}, {{slow, 20.0}}}).value();
    CHECK_FALSE(after.exhaustive);
    CHECK(broken_rule(after, demand, cluster) == "");
    CHECK(after.predicted[0].compute_seconds <= 2.01 * before.predicted[0].compute_seconds);
    for (const auto& group : denoiser_in(after).groups)
      for (const auto& rank : group.ranks) CHECK(rank.card != slow);
  }
}

TEST_CASE("planner: spare cards leave the nodes as even as they were", "[topology][planner]") {
  using Set = std::set<std::uint32_t>;
  const auto two = cluster_of({{{}, {}}, {{}, {}}});
  CHECK(spare_cards(two, 0) == Set{});
  CHECK(spare_cards(two, 1) == Set{3});
  CHECK(spare_cards(two, 2) == Set{1, 3});
  CHECK(spare_cards(two, 3) == Set{1, 2, 3});
  CHECK(spare_cards(two, 4) == Set{1, 2, 3});  // One has to work.
  CHECK(spare_cards(cluster_of({{{}, {}, {}, {}}, {{}, {}}}), 2) == Set{2, 3});
  // The slowest card of a node.
  CHECK(spare_cards(cluster_of({{{1 << 20, 2e9}, {1 << 20, 1e9}, {1 << 20, 2e9}}, {{}}}), 1) == Set{1});
  Random random(23);
  for (int i = 0; i < 200; ++i) {
    const auto cluster = random_cluster(random, 5, 6);
    const auto all = static_cast<std::uint32_t>(cluster.card_count());
    std::size_t most = 0, least = 99;
    for (const auto& node : cluster.nodes) {
      most = std::max(most, node.cards.size());
      least = std::min(least, node.cards.size());
    }
    Set before;
    for (std::uint32_t count = 0; count <= all; ++count) {
      const auto spares = spare_cards(cluster, count);
      CHECK(spares.size() == std::min(count, all - 1));
      CHECK(std::includes(spares.begin(), spares.end(), before.begin(), before.end()));
      std::size_t most_left = 0, least_left = 99;
      std::uint32_t card = 0;
      for (const auto& node : cluster.nodes) {
        std::size_t left = 0;
        for (std::size_t c = 0; c < node.cards.size(); ++c) left += spares.contains(card++) ? 0 : 1;
        most_left = std::max(most_left, left);
        least_left = std::min(least_left, left);
      }
      CHECK(most_left - least_left <= std::max<std::size_t>(1, most - least));
      before = spares;
    }
  }
}

TEST_CASE("planner: Cosmos 7B on a rack of ATOM-Max: branches apart, tokens split, and the figures of the paper",
          "[topology][planner]") {
  const auto set = ConfigSet::read(
      {{configs + "/deployments/atom_max_7b.yaml"}, {}, configs, [](const std::string&) { return std::nullopt; }});
  const auto resolved = set.resolve().value();
  const auto demand = demand_of(resolved.model, shape_of(resolved.model.defaults)).value();
  const auto& work = demand.stages[1];
  CHECK(work.rows == 56320);
  CHECK(work.flops_linear + work.flops_attention == Approx(2.209e15).epsilon(0.001));
  CHECK(static_cast<double>(work.weight_bytes_sliced + work.weight_bytes_replicated) ==
        Approx(14.47e9).epsilon(0.002));
  CHECK(static_cast<double>(demand.stages[0].weight_bytes_sliced + demand.stages[0].weight_bytes_replicated) ==
        Approx(9.73e9).epsilon(0.001));
  CHECK(demand.stages[2].flops_linear == Approx(61.3e12).epsilon(0.005));
  CHECK(demand.stages[2].weight_bytes_replicated == Approx(2 * 62738560.0).epsilon(0.01));
  CHECK(demand.latent_bytes == 3604480 * 4);
  const auto plan = make_plan(resolved.cluster, resolved.deployment, demand).value();
  CHECK(broken_rule(plan, demand, resolved.cluster) == "");
  CHECK(denoiser_in(plan).groups.size() == 2);
  CHECK(denoiser_in(plan).split == Split::sequence);
  CHECK(cards_in(denoiser_in(plan)) == 64);
  CHECK(plan.predicted_video_seconds < 1.5 * plan.lower_bound_seconds);
  // In tensor split, eight cards of one host send 7/8 of 84 reduce-scatters in f32 and of 84 all-gathers.
  auto tensor = resolved.deployment;
  tensor.parallelism = {8, 1, 1};
  const auto eight = make_plan(resolved.cluster, tensor, demand).value();
  std::uint64_t bytes = 0;
  for (const auto& link : eight.links) bytes += link.bytes_per_step;
  CHECK(static_cast<double>(bytes) == Approx(2 * 84 * 7 * 56320.0 * 4096 * (4 + 2)).epsilon(1e-9));
}

TEST_CASE("planner: Cosmos 14B has the published work and weights; sizes that do not fit it are refused",
          "[topology][planner]") {
  const auto set =
      ConfigSet::read({{configs + "/models/cosmos-predict1-14b.yaml"}, {}, configs, process_environment()});
  const auto& model = set.models().at("cosmos-predict1-14b");
  const auto demand = demand_of(model, shape_of(model.defaults)).value();
  CHECK(demand.stages[1].flops_linear + demand.stages[1].flops_attention == Approx(3.848e15).epsilon(0.001));
  CHECK(static_cast<double>(demand.stages[1].weight_bytes_sliced + demand.stages[1].weight_bytes_replicated) ==
        Approx(28.53e9).epsilon(0.002));
  auto shape = shape_of(model.defaults);
  shape.size = {1280, 712};
  CHECK(demand_of(model, shape).error().message == "a frame of 1280x712 does not fit model 'cosmos-predict1-14b'");
  shape = shape_of(model.defaults);
  shape.num_frames = 120;
  CHECK(demand_of(model, shape).error().text() ==
        "120 frames do not fit model 'cosmos-predict1-14b' (use a multiple of 8, plus 1)");
  auto without = model;
  without.geometry.reset();
  CHECK(demand_of(without, shape).error().code == ErrorCode::invalid_config);
}

TEST_CASE("planner: a thousand hosts are planned from candidates", "[topology][planner]") {
  const auto cluster = cluster_of(std::vector<std::vector<TestCard>>(1000, std::vector<TestCard>(8)));
  const auto demand = demand_of_stages({encoder(), denoiser(32), decoder()});
  const auto plan = make_plan(cluster, {}, demand);
  REQUIRE(plan.ok());
  CHECK_FALSE(plan.value().exhaustive);
  CHECK(broken_rule(plan.value(), demand, cluster) == "");
}

TEST_CASE("planner: a bill counts the lanes of as many videos as are under way, and there is room for all stages", "[topology][planner]") {
  const std::uint64_t mib = 1 << 20;
  auto steps = denoiser(8, 1);
  steps.weight_bytes_replicated = 0;
  steps.weight_bytes_sliced = 64 * mib;
  steps.weight_padding_sliced = 16 * mib;
  steps.lanes = {{Split::tensor, false, 1, 1, 2 * mib}, {Split::tensor, false, 2, 1, 3 * mib}, {Split::tensor, false, 4, 1, 5 * mib}, {Split::tensor, false, 8, 1, 9 * mib},
                 {Split::sequence, false, 1, 1, 2 * mib}, {Split::sequence, false, 8, 1, 9 * mib}};
  const auto text = encoder();  // Its sizes are estimated: 69 MiB with everything.
  const auto frames = decoder();
  const auto demand = demand_of_stages({text, steps, frames});
  DeploymentSpec deployment;
  const auto bill = [&](std::uint32_t in_flight, std::uint64_t memory) {
    deployment.admission.max_in_flight = in_flight;
    return make_plan(cluster_of({{{memory, 1e9}}}), deployment, demand);
  };
  // Weights 65 + 80 + 8; lanes 5, 9 and 16.
  for (const auto& [in_flight, overlap] : {std::pair(1U, 0U), std::pair(2U, 9U), std::pair(3U, 14U), std::pair(9U, 14U)}) {
    const auto plan = bill(in_flight, 200 * mib);
    REQUIRE(plan.ok());
    CHECK(plan.value().bills[0].weights == 153 * mib);
    CHECK(plan.value().bills[0].activations == 16 * mib);
    CHECK(plan.value().bills[0].overlap == overlap * mib);
    CHECK(plan.value().bills[0].total() - plan.value().bills[0].one_video() == overlap * mib);
  }
  // What comes and goes leaves gaps.
  deployment.weights = WeightPlacement::resident;
  CHECK(bill(1, 183 * mib).ok());
  CHECK_FALSE(bill(1, 182 * mib).ok());

  // Slices 1 to 3 are two pieces: a sum of 512 rows of 256 more, and gaps. Three lie between two and four.
  PlannedStage placed{StageKind::denoiser, Split::tensor, 8, {{{{0, {0, 1, 2}}, {1, {3, 4}}, {2, {5, 6, 7}}}}}};
  const std::uint64_t sum = 512 * 256 * 4, gaps = sum / 16;
  CHECK(bill_of(demand, steps, placed, 0, 0).activations == 4 * mib + sum + gaps);
  CHECK(bill_of(demand, steps, placed, 0, 1).activations == 3 * mib + sum + gaps);
  CHECK(bill_of(demand, steps, placed, 0, 0).weights == 30 * mib);
  placed.split = Split::sequence;
  CHECK(bill_of(demand, steps, placed, 0, 1).activations == 3 * mib);
  CHECK(bill_of(demand, steps, placed, 0, 1).weights == 80 * mib);
}
