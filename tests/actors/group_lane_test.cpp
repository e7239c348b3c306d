// A component on several cards of this process: the bits of one card, whatever the cluster; failures end all ranks.

#include "actors/group_lane.hpp"

#include <thread>

#include "base/random.hpp"
#include "compiler/run_component.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::actors {
namespace {

using topology::DataTransport;

/// Cards of each node by their share of compute: {{1, 1}, {3}} is two nodes, the second with one fast card.
topology::ClusterSpec cluster_of(const std::vector<std::vector<double>>& nodes,
                                 DataTransport transport = DataTransport::automatic) {
  topology::ClusterSpec cluster;
  cluster.name = "test";
  cluster.data.transport = transport;
  topology::CardProfile cpu;
  cpu.name = "cpu";
  cpu.backend = topology::Backend::cpu;
  cpu.compute["float32"] = 1e11;
  cluster.card_types["cpu"] = cpu;
  for (const auto& cards : nodes) {
    topology::ClusterNode node;
    node.name = "n" + std::to_string(cluster.nodes.size() + 1);
    for (const auto share : cards) node.cards.push_back({"cpu", std::uint64_t{1} << 28, 1, share});
    cluster.nodes.push_back(node);
  }
  return cluster;
}

GroupOptions group_of(const topology::ClusterSpec& cluster, const topology::ParallelismSpec& parallelism = {}) {
  GroupOptions options;
  options.cluster = cluster;
  options.deployment.parallelism = parallelism;
  return options;
}
constexpr std::nullopt_t automatic = std::nullopt;

struct Component {
  std::string name, folder, inputs;
  bool wide = false;  // As many tokens as the transformer takes: 1,152.
  compiler::ModelFolder model() const {
    auto opened = compiler::open_model_folder(testing::golden(folder));
    REQUIRE(opened.ok());
    return std::move(opened).value();
  }
};
const Component transformer = {"transformer", "transformer_tp8/transformer", "transformer_tp8/t8.in.safetensors"};
// Four slices, two items with masks of their own.
const Component text_encoder = {"text_encoder", "pipeline_text2world/model/text_encoder",
                                "pipeline_text2world/in.safetensors"};

compiler::NamedTensors inputs_of(const Component& component) {
  auto inputs = testing::tensors_of(testing::golden(component.inputs));
  inputs.erase("noise");  // The pipeline's file holds it too.
  if (component.wide) {
    Tensor latents(DType::f32, {1, 4, 8, 24, 24}), mask(DType::f32, {1, 1, 192, 192});
    fill_normal(5, RandomStream::noise, 0, latents.as<float>());
    inputs["hidden_states"] = std::move(latents);
    inputs["padding_mask"] = std::move(mask);
  }
  return inputs;
}

compiler::NamedTensors on_one_card(const Component& component, compiler::Compute compute = compiler::Compute::f32) {
  auto card = cards::make_cpu_card({"one", std::uint64_t{1} << 28, 2});
  REQUIRE(card.ok());
  auto outputs =
      compiler::run_component(component.model(), component.name, inputs_of(component), *card.value(), {compute, 8});
  REQUIRE(outputs.ok());
  return std::move(outputs).value();
}

/// Whether a group of `ranks` cards gives these bits.
void check_same(const Component& component, GroupOptions options, std::size_t ranks,
                const compiler::NamedTensors& expected, compiler::Compute compute = compiler::Compute::f32) {
  options.component = component.name;
  GroupLanes lanes(options);
  const auto outputs =
      compiler::run_component(component.model(), component.name, inputs_of(component), lanes, {compute, 8});
  INFO((outputs.ok() ? std::string() : outputs.error().text()));
  REQUIRE(outputs.ok());
  CHECK(lanes.cards().size() == ranks);
  REQUIRE(outputs.value().size() == expected.size());
  for (const auto& [name, tensor] : expected) {
    const auto& got = outputs.value().at(name);
    CHECK(got.shape() == tensor.shape());
    CHECK(std::memcmp(got.data(), tensor.data(), tensor.bytes()) == 0);
  }
}

std::vector<std::size_t> shares_of(const topology::Plan& plan) {
  std::vector<std::size_t> shares;
  for (const auto& rank : plan.stages.at(0).groups.at(0).ranks) shares.push_back(rank.slices.size());
  return shares;
}

void check_refused(const GroupOptions& options, std::uint32_t slices, const std::string& says,
                   ErrorCode code = ErrorCode::no_feasible_plan) {
  const auto plan = plan_group(options, slices);
  INFO(says);
  REQUIRE(!plan.ok());
  INFO(plan.error().text());
  CHECK(plan.error().code == code);
  CHECK(plan.error().text().find(says) != std::string::npos);
}

using Programs = Result<std::shared_ptr<const cards::ProgramSet>>;

Programs forward_of(const compiler::TransformerConfig& config, const compiler::Layout& layout, std::uint64_t height) {
  ORRERY_TRY(weights, compiler::denoiser_weights(config, layout, compiler::Compute::f32));
  compiler::TransformerShape shape;
  shape.frames = 2;
  shape.height = height;
  shape.width = 8;
  shape.text_rows = 4;
  return compiler::compile_transformer(config, weights, layout, compiler::Compute::f32, shape);
}

/// Rank 1 has nothing to do, so the others wait for it.
compiler::CompileFor with_silent_rank(const compiler::TransformerConfig& config) {
  return [config](const compiler::Layout& layout) -> Programs {
    ORRERY_TRY(set, forward_of(config, layout, 8));
    if (layout.rank != 1) return std::move(set);
    auto silent = std::make_shared<cards::ProgramSet>(*set);
    for (auto& program : silent->programs) program.commands.clear();
    return std::shared_ptr<const cards::ProgramSet>(std::move(silent));
  };
}

}  // namespace

TEST_CASE("group lane: the transformer on several cards gives the bits of one card", "[actors][bits]") {
  const auto expected = on_one_card(transformer);
  const std::vector<std::vector<double>> eight = {{1, 1, 1}, {1, 1, 1, 1, 1}};
  for (const auto transport : {DataTransport::automatic, DataTransport::shm, DataTransport::ipc, DataTransport::tcp}) {
    INFO("transport " << name_of(transport));
    for (const std::uint32_t degree : {1U, 2U, 3U, 8U}) {
      INFO("degree " << degree);
      check_same(transformer, group_of(cluster_of(eight, transport), {degree, automatic, automatic}), degree, expected);
      check_same(transformer, group_of(cluster_of(eight, transport), {automatic, degree, 2}), degree, expected);
    }
    check_same(transformer, group_of(cluster_of({{1}, {1, 1}, {3}}, transport)), 4, expected);
  }
  check_same(transformer, group_of(cluster_of({{1, 1, 1}}, DataTransport::inproc)), 3, expected);
}

TEST_CASE("group lane: the transformer in bf16 on several cards gives the bits of one card", "[actors][bits]") {
  const auto expected = on_one_card(transformer, compiler::Compute::bf16);
  const auto cluster = cluster_of({{1, 1}, {2}}, DataTransport::tcp);
  check_same(transformer, group_of(cluster, {3, automatic, automatic}), 3, expected, compiler::Compute::bf16);
  check_same(transformer, group_of(cluster, {automatic, 3, automatic}), 3, expected, compiler::Compute::bf16);
}

TEST_CASE("group lane: products that go by rows around an exchange give the bits of one card", "[actors][bits]") {
  auto wide = transformer;
  wide.wide = true;
  for (const auto compute : {compiler::Compute::f32, compiler::Compute::bf16}) {
    const auto expected = on_one_card(wide, compute);
    for (const std::uint32_t degree : {2U, 3U, 8U}) {
      INFO("degree " << degree);
      const auto cluster = cluster_of({{1, 1, 1, 1}, {1, 1, 1, 1}}, DataTransport::ipc);
      check_same(wide, group_of(cluster, {degree, automatic, automatic}), degree, expected, compute);
    }
    check_same(wide, group_of(cluster_of({{3}, {1, 2}}, DataTransport::tcp), {3, automatic, automatic}), 3, expected, compute);
  }
}

TEST_CASE("group lane: streamed weights give the bits of resident ones, on every card", "[actors][bits][stream]") {
  auto wide = transformer;
  wide.wide = true;
  const auto expected = on_one_card(wide);
  for (const std::uint32_t degree : {1U, 2U, 3U}) {
    INFO("degree " << degree);
    auto options = group_of(cluster_of({{1, 1, 1}}), {degree, automatic, automatic});
    options.deployment.weights = topology::WeightPlacement::streamed;
    check_same(wide, options, degree, expected);
    options.component = wide.name;
    GroupLanes lanes(options);
    REQUIRE(compiler::run_component(wide.model(), wide.name, inputs_of(wide), lanes, {compiler::Compute::f32, 8}).ok());
    for (const auto& card : lanes.cards()) CHECK(card.use.stream.copied_bytes > 0);
  }
}

TEST_CASE("group lane: the text encoder on several cards gives the bits of one card", "[actors][bits]") {
  const auto expected = on_one_card(text_encoder);
  for (const auto transport : {DataTransport::automatic, DataTransport::tcp}) {
    const auto cluster = cluster_of({{1, 1}, {1, 1, 1}}, transport);
    for (const std::uint32_t degree : {2U, 3U, 4U}) {
      INFO("transport " << name_of(transport) << " degree " << degree);
      check_same(text_encoder, group_of(cluster, {degree, automatic, automatic}), degree, expected);
      check_same(text_encoder, group_of(cluster, {automatic, degree, automatic}), degree, expected);
    }
    check_same(text_encoder, group_of(cluster), 4, expected);
  }
}

TEST_CASE("group lane: the codec runs on one card", "[actors][bits]") {
  const Component codec = {"vae", "vae_cv8x8x8/vae", "vae_cv8x8x8/image1.in.safetensors"};
  check_same(codec, group_of(cluster_of({{1, 1}, {1}}, DataTransport::tcp), {3, automatic, automatic}), 1,
             on_one_card(codec));
}

TEST_CASE("group lane: slices go to cards in proportion to their compute", "[actors]") {
  const auto shares = [](const GroupOptions& options, std::uint32_t slices) {
    const auto plan = plan_group(options, slices);
    INFO((plan.ok() ? std::string() : plan.error().text()));
    REQUIRE(plan.ok());
    return shares_of(plan.value());
  };
  using Shares = std::vector<std::size_t>;
  CHECK(shares(group_of(cluster_of({{1}, {1, 1}, {3}})), 8) == Shares{1, 1, 1, 5});
  CHECK(shares(group_of(cluster_of({{1, 1, 1}})), 8) == Shares{3, 3, 2});
  CHECK(shares(group_of(cluster_of({{1, 1, 1, 1}})), 3) == Shares{1, 1, 1});
  CHECK(shares(group_of(cluster_of({{1, 1, 1, 1}})), 1) == Shares{1});
  CHECK(shares(group_of(cluster_of({{1, 1}, {2, 2}}), {2, automatic, automatic}), 8) == Shares{4, 4});
  auto placed = group_of(cluster_of({{1, 1}, {1, 1}}));
  placed.component = "text_encoder";
  placed.deployment.placement.text_encoder = {"n2"};
  placed.deployment.placement.denoiser = {"n1:0"};
  CHECK(shares(placed, 8) == Shares{4, 4});
  CHECK(plan_group(placed, 8).value().stages[0].groups[0].ranks[0].card == 2);
}

TEST_CASE("group lane: what a deployment cannot have is refused in clear words", "[actors]") {
  const auto cluster = cluster_of({{1, 1}, {1, 1}});
  check_refused(group_of(cluster, {9, automatic, automatic}), 8, "parallelism.tensor=9 is more than the 8 slices");
  check_refused(group_of(cluster, {automatic, 5, automatic}), 8,
                "parallelism.sequence=5 needs 5 cards, and 4 are usable");
  check_refused(group_of(cluster, {2, 2, automatic}), 8, "are not combined");
  auto placed = group_of(cluster);
  placed.component = "text_encoder";
  placed.deployment.placement.text_encoder = {"n7"};
  check_refused(placed, 8, "placement of the text_encoder: 'n7' names no host");
  auto profiles = group_of(cluster);
  profiles.cluster.card_types["cpu"].backend = topology::Backend::model;
  check_refused(profiles, 8, "card n1:0 is a cpu, of which this machine has only the profile", ErrorCode::unsupported);
}

TEST_CASE("group lane: a card that is too small is named, and ends the others", "[actors]") {
  auto options = group_of(cluster_of({{1, 1}, {1}}, DataTransport::tcp));
  options.cluster.nodes[1].cards[0].memory = 1 << 16;
  GroupLanes lanes(options);
  const auto outputs = compiler::run_component(transformer.model(), "transformer", inputs_of(transformer), lanes, {});
  REQUIRE(!outputs.ok());
  INFO(outputs.error().text());
  CHECK(outputs.error().code == ErrorCode::card_memory_exhausted);
  CHECK(outputs.error().text().find("n2:0") != std::string::npos);
}

TEST_CASE("group lane: a rank that fails ends the others, and its reason is told", "[actors]") {
  const auto model = transformer.model();
  const auto files = compiler::open_weights(model, "transformer");
  REQUIRE(files.ok());
  // Rank 1 works on a smaller picture: what it sends and expects has other sizes.
  const auto compile = [&](const compiler::Layout& layout) {
    return forward_of(*model.transformer, layout, layout.rank == 1 ? 4 : 8);
  };
  for (const auto transport : {DataTransport::inproc, DataTransport::tcp}) {
    GroupLanes lanes(group_of(cluster_of({{1, 1}, {1}}, transport)));
    auto lane = lanes.open(8, compile, *files.value());
    INFO((lane.ok() ? std::string() : lane.error().text()));
    REQUIRE(lane.ok());
    for (int again = 0; again < 2; ++again) {
      const auto status = lane.value()->run("forward", {});
      REQUIRE(!status.ok());
      INFO(status.error().text());
      CHECK(status.error().code != ErrorCode::cancelled);
      CHECK(status.error().code != ErrorCode::timed_out);
    }
  }
}

TEST_CASE("group lane: a rank that never delivers is named when the deadline has passed", "[actors]") {
  const auto model = transformer.model();
  const auto files = compiler::open_weights(model, "transformer");
  REQUIRE(files.ok());
  auto options = group_of(cluster_of({{1}, {1}}, DataTransport::tcp));
  options.deadline = std::chrono::milliseconds(50);
  GroupLanes lanes(options);
  auto lane = lanes.open(8, with_silent_rank(*model.transformer), *files.value());
  REQUIRE(lane.ok());
  const auto status = lane.value()->run("forward", {});
  REQUIRE(!status.ok());
  INFO(status.error().text());
  CHECK(status.error().code == ErrorCode::timed_out);
  CHECK(status.error().text().find("card 1") != std::string::npos);
}

TEST_CASE("group lane: cancel ends a run that waits, and whatever comes after", "[actors]") {
  const auto model = transformer.model();
  const auto files = compiler::open_weights(model, "transformer");
  REQUIRE(files.ok());
  const auto compile = with_silent_rank(*model.transformer);
  GroupLanes lanes(group_of(cluster_of({{1}, {1}})));
  {
    auto lane = lanes.open(8, compile, *files.value());
    REQUIRE(lane.ok());
    std::thread other([&] { lanes.cancel(); });
    const auto status = lane.value()->run("forward", {});
    other.join();
    REQUIRE(!status.ok());
    CHECK(status.error().code == ErrorCode::cancelled);
  }
  const auto late = lanes.open(8, compile, *files.value());
  REQUIRE(!late.ok());
  CHECK(late.error().code == ErrorCode::cancelled);
}

}  // namespace orrery::actors
