// Streamed weights on the cpu card: the bits of resident ones, within the budget, whoever else wants the memory.

#include "cards/weight_stream.hpp"

#include <atomic>
#include <thread>

#include "tests/support/one_op.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

constexpr std::uint64_t width = 64;
constexpr std::uint64_t matrix_bytes = width * width * sizeof(float);

/// Fails to give tensors while told so.
class ShakyWeights final : public WeightSource {
public:
  MemoryWeights inner;
  std::atomic<bool> failing{false};
  Result<TensorView> tensor(const std::string& name) const override {
    if (failing) return Error{ErrorCode::io_failed, "cannot read " + name + ": a bad sector"};
    return inner.tensor(name);
  }
  void release(std::span<const std::byte> part) const override { inner.release(part); }
};

struct Net {
  std::shared_ptr<ShakyWeights> source = std::make_shared<ShakyWeights>();
  std::shared_ptr<const WeightSet> weights;
  std::shared_ptr<ProgramSet> programs;
};

/// `depth` square layers, `per_command` matrices in each command: x_i+1 = x_i + x_i W_i.
Net net_of(std::string component, std::uint32_t depth, std::uint64_t rows = 3, std::uint32_t per_command = 1) {
  Net net;
  auto weights = std::make_shared<WeightSet>();
  weights->component = component;
  auto set = std::make_shared<ProgramSet>();
  set->component = component;
  const auto slot = [&](std::string name, Shape shape) {
    Slot made;
    made.name = std::move(name);
    made.shape = std::move(shape);
    made.offset = set->activation_bytes;
    set->activation_bytes += (made.bytes() + 63) / 64 * 64;
    set->slots.push_back(made);
  };
  slot("x", {rows, width});
  slot("y", {per_command, rows, width});
  Program program;
  program.name = "step";
  for (std::uint32_t i = 0; i < depth; ++i) {
    Command product;
    product.op = Op::linear_to_slices;
    product.inputs = {0};
    product.outputs = {1};
    product.label = "layer" + std::to_string(i);
    for (std::uint32_t j = 0; j < per_command; ++j) {
      const auto name = component + ".w" + std::to_string(i * per_command + j);
      net.source->inner.add(name, random_tensor(DType::f32, {width, width}, i * per_command + j));
      WeightSpec spec;
      spec.tensor = name;
      spec.shape = {width, width};
      spec.row_end = spec.column_end = width;
      product.weights.push_back(static_cast<WeightId>(weights->weights.size()));
      product.slices.push_back(j);
      weights->weights.push_back(spec);
    }
    Command activate;
    activate.op = Op::copy_rows;
    activate.inputs = {1};
    activate.outputs = {0};
    activate.label = "take" + std::to_string(i);
    if (per_command > 1) set->slots[1].shape = {per_command * rows, width};
    program.commands.push_back(product);
    if (per_command == 1) program.commands.push_back(activate);
  }
  if (per_command > 1) set->slots[1].shape = {per_command, rows, width};
  set->programs = {program};
  net.weights = weights;
  set->weights = weights;
  net.programs = set;
  return net;
}

std::unique_ptr<Card> card_of(std::uint64_t bytes, double bandwidth = 0) {
  CardOptions options;
  options.name = "n1:0";
  options.memory_bytes = bytes;
  options.copy_bandwidth = bandwidth;
  auto card = make_cpu_card(options);
  REQUIRE(card.ok());
  return std::move(card).value();
}

std::vector<float> run(Card& card, const Net& net, std::uint32_t times = 3) {
  const auto lane = card.open_lane(net.programs);
  REQUIRE(lane.ok());
  const auto x = card.memory(lane.value(), 0);
  fill_normal(7, RandomStream::noise, 0, {reinterpret_cast<float*>(x.data()), x.size() / sizeof(float)});
  for (std::uint32_t i = 0; i < times; ++i) {
    card.expect(lane.value(), 0, times - i - 1);
    const auto status = card.run(lane.value(), 0, 0, static_cast<std::uint32_t>(net.programs->programs[0].commands.size()), {});
    INFO((status.ok() ? std::string() : status.error().text()));
    REQUIRE(status.ok());
  }
  const auto out = card.memory(lane.value(), 1);
  std::vector<float> values(out.size() / sizeof(float));
  std::memcpy(values.data(), out.data(), out.size());
  card.close_lane(lane.value());
  return values;
}

std::vector<float> resident(const Net& net) {
  const auto card = card_of(std::uint64_t{1} << 24);
  REQUIRE(card->load_weights(net.weights, *net.source, {}).ok());
  return run(*card, net);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("weight stream: the bits are those of resident weights, in any memory", "[cards][stream][bits]") {
  const auto net = net_of("transformer", 24);
  const auto expected = resident(net);
  for (const std::uint64_t parts : {4, 7, 12, 40}) {
    CAPTURE(parts);
    const auto budget = parts * matrix_bytes;
    const auto card = card_of(budget);
    REQUIRE(card->stream_weights(net.weights, net.source).ok());
    CHECK(same_bits(run(*card, net), expected));
    const auto use = card->use();
    CHECK(use.high_water <= budget);
    CHECK(use.stream.copied_bytes >= 24 * matrix_bytes);
    if (parts == 40) CHECK(use.stream.copied_bytes == 24 * matrix_bytes);  // Each once: they all stay.
    if (parts < 24) CHECK(use.stream.copied_bytes > 24 * matrix_bytes);
  }
}

TEST_CASE("weight stream: what stays is not copied again", "[cards][stream]") {
  const auto net = net_of("transformer", 24);
  const auto card = card_of(20 * matrix_bytes);
  REQUIRE(card->stream_weights(net.weights, net.source).ok());
  run(*card, net, 20);
  const auto copied = static_cast<double>(card->use().stream.copied_bytes) / matrix_bytes;
  CHECK(copied >= 24 + 19 * 4);
  CHECK(copied <= 24 + 19 * 20);  // All 24 in each round would be 480.
}

TEST_CASE("weight stream: weights that cannot be read end the command with the reason, and the next try may succeed", "[cards][stream]") {
  const auto net = net_of("transformer", 12);
  const auto card = card_of(6 * matrix_bytes);
  REQUIRE(card->stream_weights(net.weights, net.source).ok());
  const auto lane = card->open_lane(net.programs);
  REQUIRE(lane.ok());
  net.source->failing = true;
  const auto all = static_cast<std::uint32_t>(net.programs->programs[0].commands.size());
  const auto failed = card->run(lane.value(), 0, 0, all, {});
  REQUIRE_FALSE(failed.ok());
  CHECK(failed.error().message.find("bad sector") != std::string::npos);
  net.source->failing = false;
  CHECK(card->run(lane.value(), 0, 0, all, {}).ok());
  card->close_lane(lane.value());
  CHECK(same_bits(run(*card, net), resident(net)));
}

TEST_CASE("weight stream: a tensor of another shape is refused before anything runs", "[cards][stream]") {
  const auto net = net_of("transformer", 4);
  net.source->inner.add("transformer.w2", random_tensor(DType::f32, {width, width / 2}, 1));
  const auto card = card_of(8 * matrix_bytes);
  const auto refused = card->stream_weights(net.weights, net.source);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::invalid_model);
  CHECK(refused.error().message.find("transformer.w2") != std::string::npos);
}

TEST_CASE("weight stream: lanes take memory from the weights and give it back", "[cards][stream][bits]") {
  const auto net = net_of("transformer", 16);
  const auto wide = net_of("transformer", 16, 100);
  const auto card = card_of(8 * matrix_bytes);
  REQUIRE(card->stream_weights(net.weights, net.source).ok());
  const auto expected = resident(net);
  CHECK(same_bits(run(*card, net), expected));
  CHECK(same_bits(run(*card, wide), resident(wide)));  // Takes three parts' worth.
  CHECK(same_bits(run(*card, net), expected));
  const auto huge = net_of("transformer", 16, 220);
  const auto refused = card->open_lane(huge.programs);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::card_memory_exhausted);
  CHECK(same_bits(run(*card, net), expected));
}

TEST_CASE("weight stream: what one command needs at once and never fits is refused with the numbers", "[cards][stream]") {
  const auto net = net_of("transformer", 2, 3, 6);
  const auto card = card_of(4 * matrix_bytes);
  REQUIRE(card->stream_weights(net.weights, net.source).ok());
  const auto lane = card->open_lane(net.programs);
  if (!lane.ok()) {
    CHECK(lane.error().code == ErrorCode::card_memory_exhausted);
    return;
  }
  const auto failed = card->run(lane.value(), 0, 0, 1, {});
  REQUIRE_FALSE(failed.ok());
  CHECK(failed.error().code == ErrorCode::card_memory_exhausted);
  CHECK(failed.error().message.find("at once") != std::string::npos);
}

TEST_CASE("weight stream: components that run at the same time share the memory", "[cards][stream][bits]") {
  const auto first = net_of("transformer", 20), second = net_of("text_encoder", 14);
  const auto expected_first = resident(first), expected_second = resident(second);
  const auto card = card_of(7 * matrix_bytes);
  REQUIRE(card->stream_weights(first.weights, first.source).ok());
  REQUIRE(card->stream_weights(second.weights, second.source).ok());
  std::vector<float> a, b;
  const auto open = [&](const Net& net, std::vector<float>& out) {
    for (int i = 0; i < 10; ++i) {
      const auto lane = card->open_lane(net.programs);
      if (!lane.ok()) return;
      const auto x = card->memory(lane.value(), 0);
      fill_normal(7, RandomStream::noise, 0, {reinterpret_cast<float*>(x.data()), x.size() / sizeof(float)});
      for (std::uint32_t step = 0; step < 3; ++step) {
        card->expect(lane.value(), 0, 2 - step);
        if (!card->run(lane.value(), 0, 0, static_cast<std::uint32_t>(net.programs->programs[0].commands.size()), {}).ok()) return;
      }
      const auto y = card->memory(lane.value(), 1);
      out.resize(y.size() / sizeof(float));
      std::memcpy(out.data(), y.data(), y.size());
      card->close_lane(lane.value());
    }
  };
  std::thread other([&] { open(second, b); });
  open(first, a);
  other.join();
  CHECK(same_bits(a, expected_first));
  CHECK(same_bits(b, expected_second));
  CHECK(card->use().high_water <= 7 * matrix_bytes);
}

TEST_CASE("weight stream: components that come and go leave nothing behind", "[cards][stream][bits]") {
  const auto first = net_of("transformer", 12), second = net_of("text_encoder", 9);
  const auto expected_first = resident(first), expected_second = resident(second);
  const auto card = card_of(6 * matrix_bytes);
  for (int i = 0; i < 20; ++i) {
    // In another order each time, with the other still there or not.
    if (i % 3 == 0) card->drop_weights("transformer");
    if (i % 2 == 0) card->drop_weights("text_encoder");
    REQUIRE(card->stream_weights(first.weights, first.source).ok());
    CHECK(same_bits(run(*card, first), expected_first));
    REQUIRE(card->stream_weights(second.weights, second.source).ok());
    CHECK(same_bits(run(*card, second), expected_second));
  }
  CHECK(card->use().high_water <= 6 * matrix_bytes);
}

TEST_CASE("weight stream: a capped link takes the time that its bytes take", "[cards][stream]") {
  const auto net = net_of("transformer", 12);
  const auto card = card_of(6 * matrix_bytes, 20e6);  // 12 x 16 KiB at 20 MB/s: 9.8 ms.
  REQUIRE(card->stream_weights(net.weights, net.source).ok());
  SteadyClock clock;
  const auto begun = clock.now();
  run(*card, net, 1);
  CHECK(seconds_of(clock.now() - begun) >= 0.9 * 12 * static_cast<double>(matrix_bytes) / 20e6 - 0.002);
  const auto use = card->use().stream;
  CHECK(use.rate <= 20e6 * 1.2);
}
