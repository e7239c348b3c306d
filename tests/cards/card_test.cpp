// Holds: the hard memory budget, what loading checks and keeps resident, lanes, the null card, the thread pool.

#include <atomic>
#include <cstdio>
#include <fstream>
#include <thread>

#include <unistd.h>

#include "base/file.hpp"
#include "cards/device_memory.hpp"
#include "cards/kernels/kernels.hpp"
#include "cards/null_card.hpp"
#include "tests/support/one_op.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

std::unique_ptr<Card> card_of(std::uint64_t bytes, std::uint32_t threads = 1) {
  CardOptions options;
  options.name = "n1:0";
  options.memory_bytes = bytes;
  options.threads = threads;
  auto card = make_cpu_card(options);
  REQUIRE(card.ok());
  return std::move(card).value();
}

WeightSpec spec_of(std::string tensor, WeightForm form, DType dtype, Shape shape) {
  WeightSpec spec;
  spec.tensor = std::move(tensor);
  spec.form = form;
  spec.dtype = dtype;
  spec.shape = shape;
  spec.row_end = shape[0];
  spec.column_end = element_count(shape) / shape[0];
  return spec;
}

std::shared_ptr<const WeightSet> set_of(std::vector<WeightSpec> specs, std::string component = "transformer") {
  return std::make_shared<WeightSet>(WeightSet{std::move(component), std::move(specs)});
}

/// x[rows, K] W^T in a lane of its own.
std::shared_ptr<const ProgramSet> linear_set(std::shared_ptr<const WeightSet> weights, std::uint64_t rows) {
  const auto N = weights->weights[0].rows(), K = weights->weights[0].columns();
  auto set = std::make_shared<ProgramSet>();
  set->component = weights->component;
  set->weights = std::move(weights);
  Slot x, y;
  x.name = "x";
  x.shape = {rows, K};
  y.name = "y";
  y.shape = {rows, N};
  y.offset = (x.bytes() + 63) / 64 * 64;
  set->slots = {x, y};
  Command command;
  command.op = Op::linear;
  command.inputs = {0};
  command.outputs = {1};
  command.weights = {0};
  command.label = "y";
  set->programs = {{"step", {command}}};
  set->activation_bytes = y.offset + (y.bytes() + 63) / 64 * 64;
  return set;
}

std::uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

TEST_CASE("device memory: first fit, joined when freed, zeroed, never past its budget", "[cards][memory]") {
  auto created = DeviceMemory::create("n1:0", 1 << 20);
  REQUIRE(created.ok());
  auto& memory = *created.value();
  {
    auto a = memory.reserve(300'000, "a").value(), b = memory.reserve(300'000, "b").value(), c = memory.reserve(300'000, "c").value();
    std::memset(a.bytes().data(), 1, a.bytes().size());
    std::memset(b.bytes().data(), 1, b.bytes().size());
    const auto used = memory.used();
    CHECK(used >= 900'000);
    const auto refused = memory.reserve(300'000, "weights of transformer");
    REQUIRE(!refused.ok());
    CHECK(refused.error().code == ErrorCode::card_memory_exhausted);
    CHECK(refused.error().message == "card n1:0 cannot hold weights of transformer: needs 293 KiB, has 145 KiB free of 1.00 MiB");
    CHECK(memory.used() == used);
    a = {};
    b = {};
    auto joined = memory.reserve(590'000, "joined");  // Fits only if a and b became one piece.
    REQUIRE(joined.ok());
    const auto bytes = joined.value().bytes();
    CHECK(std::all_of(bytes.begin(), bytes.end(), [](std::byte value) { return value == std::byte{0}; }));
  }
  CHECK(memory.used() == 0);
  CHECK(memory.high_water() >= 900'000);
  CHECK(memory.reserve(1 << 20, "all of it").ok());
  CHECK(!memory.reserve((1 << 20) + 1, "too much").ok());
  CHECK(!memory.reserve(~std::uint64_t{0}, "far too much").ok());
}

TEST_CASE("cpu card: weights and lanes are counted, and closing gives everything back", "[cards][memory]") {
  auto card = card_of(8 << 20);
  MemoryWeights source;
  source.add("w", random_tensor(DType::f32, {256, 128}, 1));
  const auto weights = set_of({spec_of("w", WeightForm::matrix, DType::f32, {256, 128})});
  std::uint64_t heard = 0;
  REQUIRE(card->load_weights(weights, source, [&](std::uint64_t bytes) { heard = bytes; return true; }).ok());
  CHECK(heard == 256 * 128 * 4);
  CHECK(source.released >= 256 * 128 * 4);
  CHECK(card->use().weights == 256 * 128 * 4);
  CHECK(card->use().lanes == 0);
  const auto set = linear_set(weights, 1000);
  const auto first = card->open_lane(set), second = card->open_lane(set);
  REQUIRE((first.ok() && second.ok()));
  CHECK(card->use().lanes == 2 * set->lane_bytes());
  const auto peak = card->use().high_water;
  CHECK(peak == card->use().weights + card->use().lanes);
  const auto big = card->open_lane(linear_set(weights, 4000));
  REQUIRE(!big.ok());
  CHECK(big.error().code == ErrorCode::card_memory_exhausted);
  CHECK(big.error().message.find("card n1:0 cannot hold a request of transformer: needs") == 0);
  card->close_lane(first.value());
  card->drop_weights("transformer");
  CHECK(card->use().weights + card->use().lanes == 256 * 128 * 4 + set->lane_bytes());  // The open lane keeps its weights.
  card->close_lane(second.value());
  card->close_lane(second.value());
  CHECK(card->use().weights == 0);
  CHECK(card->use().lanes == 0);
  CHECK(card->use().high_water == peak);
}

TEST_CASE("cpu card: weights that do not fit are refused before anything is kept", "[cards][memory]") {
  auto card = card_of(1 << 20);
  MemoryWeights source;
  source.add("w", random_tensor(DType::f32, {1024, 512}, 1));
  const auto status = card->load_weights(set_of({spec_of("w", WeightForm::matrix, DType::f32, {1024, 512})}), source, {});
  REQUIRE(!status.ok());
  CHECK(status.error().code == ErrorCode::card_memory_exhausted);
  CHECK(status.error().message == "card n1:0 cannot hold the weights of transformer: needs 2.00 MiB, has 1.00 MiB free of 1.00 MiB");
  CHECK(card->use().weights == 0);
  CHECK(card->use().high_water == 0);
}

TEST_CASE("cpu card: a tensor of another shape, a missing one and a wrong part are named", "[cards][fault]") {
  auto card = card_of(1 << 20);
  MemoryWeights source;
  source.add("w", random_tensor(DType::f32, {16, 8}, 1));
  source.add("ids", Tensor(DType::i64, {16, 8}));
  const auto load = [&](WeightSpec spec) {
    const auto status = card->load_weights(set_of({std::move(spec)}), source, {});
    REQUIRE(!status.ok());
    CHECK(card->use().weights == 0);
    return status.error();
  };
  CHECK(load(spec_of("w", WeightForm::matrix, DType::f32, {8, 16})).message == "tensor w has shape [16, 8], but transformer needs [8, 16]");
  CHECK(load(spec_of("v", WeightForm::matrix, DType::f32, {8, 16})).code == ErrorCode::invalid_model);
  CHECK(load(spec_of("ids", WeightForm::matrix, DType::f32, {16, 8})).code == ErrorCode::unsupported);
  auto outside = spec_of("w", WeightForm::matrix, DType::f32, {16, 8});
  outside.row_end = 17;
  CHECK(load(outside).code == ErrorCode::invalid_model);
  auto empty = spec_of("w", WeightForm::table, DType::f32, {16, 8});
  empty.column_begin = 8;
  CHECK(load(empty).code == ErrorCode::invalid_model);
  CHECK(load(spec_of("w", WeightForm::table, DType::i8, {16, 8})).code == ErrorCode::unsupported);
  source.add("long", Tensor(DType::bf16, {1, 65537}));
  CHECK(load(spec_of("long", WeightForm::matrix, DType::i8, {1, 65537})).code == ErrorCode::unsupported);
  CHECK(load(spec_of("w", WeightForm::matrix, DType::f32, {std::uint64_t{1} << 40, std::uint64_t{1} << 40})).code == ErrorCode::invalid_model);
}

TEST_CASE("cpu card: a load that is cancelled keeps nothing", "[cards][fault]") {
  auto card = card_of(4 << 20);
  MemoryWeights source;
  source.add("w", random_tensor(DType::f32, {1024, 64}, 1));
  std::uint64_t last = 0;
  const auto status = card->load_weights(set_of({spec_of("w", WeightForm::matrix, DType::f32, {1024, 64})}), source,
                                         [&](std::uint64_t bytes) { last = bytes; return bytes < 100'000; });
  REQUIRE(!status.ok());
  CHECK(status.error().code == ErrorCode::cancelled);
  CHECK(last == 7 * 64 * 64 * 4);  // It stopped after the block of 64 rows that went beyond.
  CHECK(card->use().weights == 0);
}

TEST_CASE("cpu card: f16 and bf16 tensors are widened, f32 ones rounded", "[cards]") {
  const std::vector<float> values = {1, -2, 0.5, 1.0009765625f, 65504, 6.103515625e-05f, 0, 3.140625f};
  Tensor half(DType::f16, {1, 8});
  const std::uint16_t bits[] = {0x3c00, 0xc000, 0x3800, 0x3c01, 0x7bff, 0x0400, 0x0000, 0x4248};
  std::memcpy(half.data(), bits, sizeof bits);
  for (const auto dtype : {DType::f32, DType::bf16}) {
    OneOp op(Op::embedding);
    op.input(tensor_of(DType::i32, {1}, {0}));
    op.weight(half, WeightForm::table, dtype);
    const auto x = op.output(DType::f32, {1, 8});
    op.run();
    CHECK(op.values(x) == floats_of(tensor_of(dtype, {8}, values)));
  }
}

TEST_CASE("cpu card: loading a mapped file leaves only the card's own copy resident", "[cards][memory]") {
  const std::uint64_t N = 4096, K = 4096;  // 64 MiB.
  const auto path = "/tmp/orrery_card_test_" + std::to_string(::getpid());
  {
    std::ofstream file(path, std::ios::binary);
    const std::vector<float> row(K, 0.5f);
    for (std::uint64_t i = 0; i < N; ++i) file.write(reinterpret_cast<const char*>(row.data()), K * 4);
  }
  class FileWeights final : public WeightSource {
  public:
    explicit FileWeights(MappedFile file) : file_(std::move(file)) {}
    Result<TensorView> tensor(const std::string&) const override { return TensorView{file_.bytes().data(), DType::f32, {4096, 4096}}; }
    void release(std::span<const std::byte> part) const override { file_.release_pages(part); }

  private:
    MappedFile file_;
  };
  auto file = MappedFile::open(path);
  ::unlink(path.c_str());
  REQUIRE(file.ok());
  const FileWeights source(std::move(file).value());
  auto card = card_of(256 << 20);
  auto quarter = spec_of("w", WeightForm::matrix, DType::bf16, {N, K});
  quarter.row_begin = 1024;
  quarter.row_end = 2048;
  const auto before = resident_bytes();
  std::uint64_t most = 0;
  REQUIRE(card->load_weights(set_of({quarter}), source, [&](std::uint64_t) { most = std::max(most, resident_bytes()); return true; }).ok());
  CHECK(card->use().weights == 1024 * K * 2);
  // The packed quarter (8 MiB), one block of 256 rows in flight (2 MiB packed, 4 MiB in the file), and what compiled
  // kernels and the allocator keep. With the source left resident it would be 26 MiB and more.
  CHECK(most < before + (std::uint64_t{8 + 6 + 6} << 20));
  card->drop_weights("transformer");
  CHECK(resident_bytes() < before + (std::uint64_t{8} << 20));
}

TEST_CASE("cpu card: convolution weights are matrices with the channel fastest", "[cards]") {
  // One output channel, K = 2 channels, taps numbered: row of the packed matrix is (ky, kx, k).
  const auto form = GENERATE(WeightForm::conv_spatial, WeightForm::conv_temporal);
  const std::uint64_t taps = form == WeightForm::conv_spatial ? 9 : 3;
  Tensor w(DType::f32, form == WeightForm::conv_spatial ? Shape{1, 2, 1, 3, 3} : Shape{1, 2, 3, 1, 1});
  for (std::uint64_t k = 0; k < 2; ++k)
    for (std::uint64_t tap = 0; tap < taps; ++tap) w.as<float>()[k * taps + tap] = static_cast<float>(100 * k + tap);
  // x = unit vectors picks single weights.
  Tensor x(DType::f32, {2 * taps, 2 * taps});
  for (std::uint64_t i = 0; i < 2 * taps; ++i) x.as<float>()[i * 2 * taps + i] = 1;
  OneOp op(Op::linear);
  op.input(x);
  op.weight(w, form, DType::f32);
  const auto y = op.output(DType::f32, {2 * taps, 1});
  op.run();
  for (std::uint64_t tap = 0; tap < taps; ++tap)
    for (std::uint64_t k = 0; k < 2; ++k) CHECK(op.values(y)[tap * 2 + k] == static_cast<float>(100 * k + tap));
}

TEST_CASE("cpu card: lanes of several threads run at once and get their own results", "[cards]") {
  auto card = card_of(64 << 20, 2);
  MemoryWeights source;
  source.add("w", random_tensor(DType::f32, {300, 128}, 1));
  const auto weights = set_of({spec_of("w", WeightForm::matrix, DType::f32, {300, 128})});
  REQUIRE(card->load_weights(weights, source, {}).ok());
  const auto set = linear_set(weights, 100);
  const auto run = [&](std::uint64_t seed) {
    const auto x = random_tensor(DType::f32, {100, 128}, seed);
    const auto lane = card->open_lane(set);
    std::memcpy(card->memory(lane.value(), 0).data(), x.data(), x.bytes());
    if (!card->run(lane.value(), 0, 0, 1, Scalars{}).ok()) std::abort();
    Tensor y(DType::f32, {100, 300});
    std::memcpy(y.data(), card->memory(lane.value(), 1).data(), y.bytes());
    card->close_lane(lane.value());
    return y;
  };
  const auto a = run(10), b = run(11);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (const std::uint64_t seed : {10, 11, 10, 11})
    threads.emplace_back([&, seed] {
      for (int i = 0; i < 20; ++i)
        if (!same_bits(run(seed), seed == 10 ? a : b)) ++wrong;
    });
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(card->use().lanes == 0);
}

TEST_CASE("cpu card: what does not exist is refused, not run", "[cards][fault]") {
  auto card = card_of(8 << 20);
  MemoryWeights source;
  source.add("w", random_tensor(DType::f32, {16, 8}, 1));
  const auto weights = set_of({spec_of("w", WeightForm::matrix, DType::f32, {16, 8})});
  const auto set = linear_set(weights, 4);
  CHECK(card->open_lane(set).error().code == ErrorCode::not_found);
  REQUIRE(card->load_weights(weights, source, {}).ok());
  const auto lane = card->open_lane(set);
  REQUIRE(lane.ok());
  CHECK(!card->run(lane.value() + 1, 0, 0, 1, Scalars{}).ok());
  CHECK(!card->run(lane.value(), 1, 0, 1, Scalars{}).ok());
  CHECK(!card->run(lane.value(), 0, 0, 2, Scalars{}).ok());
  CHECK(card->run(lane.value(), 0, 1, 1, Scalars{}).ok());

  auto exchange = std::make_shared<ProgramSet>(*set);
  exchange->programs[0].commands[0].op = Op::all_gather_rows;
  const auto other = card->open_lane(exchange);
  REQUIRE(other.ok());
  CHECK(!card->run(other.value(), 0, 0, 1, Scalars{}).ok());
  auto broken = std::make_shared<ProgramSet>(*set);
  broken->slots[1].offset = 1 << 20;
  CHECK(!card->open_lane(broken).ok());
  broken = std::make_shared<ProgramSet>(*set);
  broken->programs[0].commands[0].weights = {1};
  CHECK(!card->open_lane(broken).ok());
  auto foreign = std::make_shared<WeightSet>(*weights);
  foreign->weights[0].row_end = 8;
  broken = std::make_shared<ProgramSet>(*set);
  broken->weights = foreign;
  CHECK(!card->open_lane(broken).ok());
}

TEST_CASE("cpu card: a budget or thread count that makes no card is refused", "[cards][fault]") {
  CardOptions options;
  options.threads = 0;
  CHECK(make_cpu_card(options).error().code == ErrorCode::invalid_config);
  options.threads = 1;
  options.memory_bytes = 10;
  CHECK(make_cpu_card(options).error().code == ErrorCode::invalid_config);
}

TEST_CASE("thread pool: every tile once, on one caller or several threads", "[cards][threads]") {
  for (const std::uint32_t threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    CHECK(pool.thread_count() == threads);
    for (const std::uint64_t count : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> seen(count);
      pool.parallel_for(count, [&](std::uint64_t i, Scratch& scratch) {
        auto* mine = scratch.take(100);
        mine[99] = std::byte{1};
        ++seen[i];
      });
      for (const auto& times : seen) REQUIRE(times == 1);
    }
  }
}

TEST_CASE("null card: every call answers unsupported and says so", "[cards]") {
  CardOptions options;
  options.name = "n1:0";
  NullCard card(options);
  MemoryWeights source;
  const auto status = card.load_weights(set_of({}), source, {});
  REQUIRE(!status.ok());
  CHECK(status.error().code == ErrorCode::unsupported);
  CHECK(status.error().message == "card n1:0 is the null card: it does not load weights");
  CHECK(card.open_lane(std::make_shared<ProgramSet>()).error().code == ErrorCode::unsupported);
  CHECK(card.run(0, 0, 0, 0, Scalars{}).error().code == ErrorCode::unsupported);
  CHECK(card.memory(0, 0).empty());
  CHECK(card.use().budget == options.memory_bytes);
}
