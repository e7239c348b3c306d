// The faulty card: without faults it is its inner card; each fault does what it says, and healing ends it.

#include "cards/faulty_card.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "tests/support/one_op.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

std::shared_ptr<const WeightSet> one_matrix() {
  WeightSpec spec;
  spec.tensor = "w";
  spec.form = WeightForm::matrix;
  spec.shape = {32, 16};
  spec.row_begin = 8;
  spec.row_end = 24;
  spec.column_end = 16;
  return std::make_shared<WeightSet>(WeightSet{"transformer", {spec}});
}

/// y = x W^T, then z = y + y: two commands.
std::shared_ptr<const ProgramSet> two_commands(std::shared_ptr<const WeightSet> weights) {
  auto set = std::make_shared<ProgramSet>();
  set->component = "transformer";
  set->weights = std::move(weights);
  Slot x, y, z;
  x.name = "x";
  x.shape = {4, 16};
  y.name = "y";
  y.shape = {4, 16};
  y.offset = 256;
  z.name = "z";
  z.shape = {4, 16};
  z.offset = 512;
  set->slots = {x, y, z};
  Command product, sum;
  product.op = Op::linear;
  product.inputs = {0};
  product.outputs = {1};
  product.weights = {0};
  sum.op = Op::add;
  sum.inputs = {1, 1};
  sum.outputs = {2};
  sum.after = {0};
  set->programs = {{"step", {product, sum}}};
  set->activation_bytes = 768;
  return set;
}

struct World {
  ManualClock clock;
  std::unique_ptr<FaultyCard> card;
  MemoryWeights source;
  std::shared_ptr<const WeightSet> weights = one_matrix();
  LaneId lane = 0;

  World() {
    auto inner = make_cpu_card({"n1:0", 1 << 20, 1});
    REQUIRE(inner.ok());
    card = std::make_unique<FaultyCard>(std::move(inner).value(), clock);
    source.add("w", random_tensor(DType::f32, {32, 16}, 1));
  }
  Status load() {
    return card->load_weights(weights, source, [](std::uint64_t) { return true; });
  }
  Status open() {
    ORRERY_TRY(opened, card->open_lane(two_commands(weights)));
    lane = opened;
    const auto memory = card->memory(lane, 0);
    fill_normal(2, RandomStream::noise, 0, {reinterpret_cast<float*>(memory.data()), memory.size() / sizeof(float)});
    return Done{};
  }
  Status run() { return card->run(lane, 0, 0, 2, Scalars{}); }
  std::vector<std::byte> z() {
    const auto bytes = card->memory(lane, 2);
    return {bytes.begin(), bytes.end()};
  }
};

std::vector<std::byte> right_bytes() {
  World world;
  REQUIRE(world.load().ok());
  REQUIRE(world.open().ok());
  REQUIRE(world.run().ok());
  return world.z();
}

int bits_apart(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
  int bits = 0;
  for (std::size_t i = 0; i < a.size(); ++i) bits += __builtin_popcount(std::to_integer<unsigned>(a[i] ^ b[i]));
  return bits;
}

template <class Condition>
void wait_for(Condition condition) {
  while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

/// Time goes by while it runs.
class SlowInner final : public Card {
public:
  SlowInner(std::unique_ptr<Card> inner, ManualClock& clock) : inner_(std::move(inner)), clock_(clock) {}
  const CardOptions& options() const override { return inner_->options(); }
  CardUse use() const override { return inner_->use(); }
  Status load_weights(std::shared_ptr<const WeightSet> weights, const WeightSource& source,
                      const std::function<bool(std::uint64_t)>& progress) override {
    return inner_->load_weights(std::move(weights), source, progress);
  }
  void drop_weights(const std::string& component) override { inner_->drop_weights(component); }
  Status stream_weights(std::shared_ptr<const WeightSet> weights, std::shared_ptr<const WeightSource> source) override {
    return inner_->stream_weights(std::move(weights), std::move(source));
  }
  Result<LaneId> open_lane(std::shared_ptr<const ProgramSet> programs) override { return inner_->open_lane(std::move(programs)); }
  void close_lane(LaneId lane) override { inner_->close_lane(lane); }
  std::span<std::byte> memory(LaneId lane, SlotId slot) override { return inner_->memory(lane, slot); }
  Status run(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars) override {
    clock_.advance(std::chrono::seconds(10));
    return inner_->run(lane, program, begin, end, scalars);
  }

private:
  std::unique_ptr<Card> inner_;
  ManualClock& clock_;
};

}  // namespace

TEST_CASE("faulty card: a refusal of memory lasts until it is healed", "[cards][fault]") {
  World world;
  world.card->refuse_memory();
  const auto refused = world.load();
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::card_memory_exhausted);
  world.card->heal();
  REQUIRE(world.load().ok());
  world.card->refuse_memory();
  CHECK(world.open().error().code == ErrorCode::card_memory_exhausted);
  world.card->heal();
  REQUIRE(world.open().ok());
  REQUIRE(world.run().ok());
  CHECK(world.z() == right_bytes());
  CHECK(world.card->counts().calls_refused == 2);
}

TEST_CASE("faulty card: the next runs fail, and no more", "[cards][fault]") {
  World world;
  REQUIRE(world.load().ok());
  REQUIRE(world.open().ok());
  world.card->fail({ErrorCode::internal, "a kernel threw"}, 2);
  CHECK(world.run().error().message == "a kernel threw");
  CHECK_FALSE(world.run().ok());
  REQUIRE(world.run().ok());
  CHECK(world.z() == right_bytes());
}

TEST_CASE("faulty card: who hangs goes on when it heals, with the same bits", "[cards][fault]") {
  World world;
  REQUIRE(world.load().ok());
  REQUIRE(world.open().ok());
  world.card->hang();
  std::atomic<bool> done{false};
  Status status = Done{};
  std::thread thread([&] {
    status = world.run();
    done = true;
  });
  wait_for([&] { return world.card->counts().calls_hung == 1; });
  CHECK_FALSE(done);
  world.card->heal();
  thread.join();
  REQUIRE(status.ok());
  CHECK(world.z() == right_bytes());
}

TEST_CASE("faulty card: who hangs is let go of for good by abort", "[cards][fault]") {
  World world;
  REQUIRE(world.load().ok());
  REQUIRE(world.open().ok());
  world.card->hang();
  Status status = Done{};
  std::thread thread([&] { status = world.run(); });
  wait_for([&] { return world.card->counts().calls_hung == 1; });
  world.card->close_lane(world.lane);  // Never blocks.
  world.card->abort();
  thread.join();
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::peer_lost);
  CHECK_FALSE(world.run().ok());
  world.card->heal();
  CHECK_FALSE(world.open().ok());
}

TEST_CASE("faulty card: slow waits for its factor of the measured time, and until it heals at most", "[cards][fault]") {
  ManualClock clock;
  auto inner = make_cpu_card({"n1:0", 1 << 20, 1});
  REQUIRE(inner.ok());
  FaultyCard card(std::make_unique<SlowInner>(std::move(inner).value(), clock), clock);
  MemoryWeights source;
  source.add("w", random_tensor(DType::f32, {32, 16}, 1));
  const auto weights = one_matrix();
  REQUIRE(card.load_weights(weights, source, [](std::uint64_t) { return true; }).ok());
  const auto lane = card.open_lane(two_commands(weights));
  REQUIRE(lane.ok());
  card.slow(4);  // 30 s of waiting: only `heal` can end it while this test runs.
  std::atomic<bool> done{false};
  std::thread thread([&] {
    CHECK(card.run(lane.value(), 0, 0, 2, Scalars{}).ok());
    done = true;
  });
  wait_for([&] { return card.counts().runs_slowed == 1; });
  CHECK_FALSE(done);
  card.heal();
  thread.join();
  CHECK(card.run(lane.value(), 0, 0, 2, Scalars{}).ok());
  CHECK(card.counts().runs_slowed == 1);
}

TEST_CASE("faulty card: flipped activations are wrong by a bit, the same bit for the same seed", "[cards][fault]") {
  const auto right = right_bytes();
  const auto flipped = [&](std::uint64_t seed) {
    World world;
    REQUIRE(world.load().ok());
    REQUIRE(world.open().ok());
    REQUIRE(world.card->run(world.lane, 0, 0, 1, Scalars{}).ok());
    world.card->flip_activations(1, seed);
    REQUIRE(world.card->run(world.lane, 0, 1, 2, Scalars{}).ok());
    CHECK(world.card->counts().bits_flipped == 1);
    const auto wrong = world.z();
    REQUIRE(world.run().ok());
    CHECK(world.z() == right);  // One was asked for.
    return wrong;
  };
  const auto first = flipped(3);
  CHECK(bits_apart(first, right) == 1);
  CHECK(flipped(3) == first);
  CHECK(flipped(4) != first);
}

TEST_CASE("faulty card: a flipped weight is one of this card's part, until the weights are loaded again", "[cards][fault]") {
  const auto right = right_bytes();
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    World world;
    world.card->flip_weights(1, seed);
    REQUIRE(world.load().ok());
    CHECK(world.card->counts().bits_flipped == 1);
    REQUIRE(world.open().ok());
    REQUIRE(world.run().ok());
    CHECK(world.z() != right);
    REQUIRE(world.load().ok());
    REQUIRE(world.open().ok());
    REQUIRE(world.run().ok());
    CHECK(world.z() == right);
  }
}

TEST_CASE("faulty card: a crash while loading ends the process", "[cards][fault]") {
  const auto child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    World world;
    std::uint64_t total = 0;
    world.card->on_load([&](std::uint64_t, std::uint64_t bytes) { total = bytes; });
    if (!world.load().ok() || total != 16 * 16 * 4) ::_exit(1);
    world.card->crash_while_loading(1);
    (void)world.load();
    ::_exit(2);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
}
