// How fast the cpu card computes, as a share of the best matrix product of the machine.
//
// Why: nearly all of a video's time is spent here. The bound is oneDNN's product with packed weights on the same threads
// (packed_product.hpp); it is measured again right before every sample, so that a noisy machine moves both. A good number
// is 90 % for products and attention, 85 % for whole components; below, the table of shares says which op to look at:
// `linear*` low means tiles or packing, `attention` exponentials, everything else memory.
//
//   bench_kernels [--threads 1,2] [--types f32,bf16,int8] [--repetitions 5] [--only TEXT] [--clock wall|cpu]
//                 cpu: processor time, for a machine that others use, too; says nothing about idle threads
//   bench_kernels --turns TYPE --threads N    one denoiser forward and one bound for each line of standard input; prints
//                                             "seconds processor_seconds/N GFLOP bound_GFLOP/s bound_by_processor_time"
//                                             (for tests/bench/denoiser_peers); with --only bound no forward (scaling)

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/random.hpp"
#include "cards/card.hpp"
#include "cards/kernels/ops.hpp"
#include "compiler/compile.hpp"
#include "compiler/models/cosmos_codec.hpp"
#include "tests/bench/bench_support.hpp"
#include "tests/bench/packed_product.hpp"
#include "tests/bench/pooled_weights.hpp"

using namespace orrery;
using namespace orrery::cards;
using bench::median;
using bench::must;
using compiler::Compute;

namespace {

/// Processor seconds that count instead of the clock on the wall, by this many threads; 0: the wall.
std::uint32_t threads_counted = 0;

double now() {
  timespec time{};
  clock_gettime(threads_counted > 0 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return (static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9) / std::max(1U, threads_counted);
}

double seconds_of(const std::function<void()>& work) {
  const auto begin = now();
  work();
  return now() - begin;
}

// --- what is measured --------------------------------------------------------------------------------------

/// One thing to measure. `operations` in floating-point operations; 0: memory-bound, reported as bytes.
struct Item {
  std::string name;
  double operations = 0;
  double bytes = 0;
  std::function<void()> work;
  std::function<void()> after;  // Prints more, once at the end.
};

Tensor filled(DType dtype, const Shape& shape) {
  Tensor tensor(dtype, shape);
  std::uint32_t state = 1;
  for (std::uint64_t i = 0; i < element_count(shape); ++i) {
    state = state * 1664525U + 1013904223U;
    const float value = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
    if (dtype == DType::f32)
      tensor.as<float>()[i] = value;
    else
      tensor.as<std::uint16_t>()[i] = bf16_of(value);
  }
  return tensor;
}

/// A command with its operands and weights in memory of its own.
struct OwnCall {
  Command command;
  std::vector<Tensor> inputs, outputs;
  bool in_place = false;  // Output 0 is input 0.
  std::vector<Tensor> packed;
  std::vector<PackedMatrix> matrices;
  std::vector<WeightSpec> specs;
  std::vector<Tensor> vectors;
  Scalars scalars{};

  void matrix(DType dtype, std::uint64_t N, std::uint64_t K) {
    const auto values = filled(DType::f32, {N, K});
    packed.emplace_back(DType::u8, Shape{PackedMatrix::packed_bytes(N, K, dtype)});
    matrices.push_back(PackedMatrix::pack(
        N, K, dtype,
        [&](std::uint64_t begin, std::uint64_t end, std::byte* to) {
          convert(values.data() + begin * K * sizeof(float), DType::f32, to, dtype == DType::bf16 ? DType::bf16 : DType::f32, (end - begin) * K);
        },
        {packed.back().data(), packed.back().bytes()}));
  }
  void run(Kernel kernel, ThreadPool& pool) {
    std::vector<Operand> in, out;
    for (auto& tensor : inputs) in.push_back({tensor.data(), tensor.dtype(), &tensor.shape()});
    if (in_place) out.push_back(in[0]);
    for (auto& tensor : outputs) out.push_back({tensor.data(), tensor.dtype(), &tensor.shape()});
    std::vector<Weight> weights;
    for (auto& one : matrices) weights.push_back({nullptr, nullptr, &one});
    specs.resize(vectors.size());
    for (std::size_t i = 0; i < vectors.size(); ++i) {
      specs[i].row_end = 1;
      specs[i].column_end = element_count(vectors[i].shape());
      weights.push_back({&specs[i], vectors[i].data(), nullptr});
    }
    must(kernel({command, in, out, weights, scalars, pool}));
  }
};

Item item_of(std::string name, double operations, double bytes, std::shared_ptr<OwnCall> call, Kernel kernel, ThreadPool& pool) {
  return {std::move(name), operations, bytes, [call, kernel, &pool] { call->run(kernel, pool); }, {}};
}

std::string size_text(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  return std::to_string(a) + "x" + std::to_string(b) + "x" + std::to_string(c);
}

constexpr std::uint32_t slice_count = 8;

std::vector<std::uint32_t> all_slices() {
  std::vector<std::uint32_t> slices;
  for (std::uint32_t i = 0; i < slice_count; ++i) slices.push_back(i);
  return slices;
}

/// x[rows, K] times 8 slices of [N/8, K].
Item to_slices(ThreadPool& pool, DType activations, DType weights, const char* where, std::uint64_t rows, std::uint64_t K, std::uint64_t N,
               Activation activation = Activation::none) {
  auto call = std::make_shared<OwnCall>();
  call->command.op = Op::linear_to_slices;
  call->command.slices = all_slices();
  call->command.attrs[Attr::activation] = static_cast<double>(activation);
  call->inputs.push_back(filled(activations, {rows, K}));
  for (std::uint32_t i = 0; i < slice_count; ++i) call->matrix(weights, N / slice_count, K);
  call->outputs.emplace_back(activations, Shape{slice_count, rows, N / slice_count});
  return item_of(std::string("to_slices ") + where + " " + size_text(rows, K, N), 2.0 * static_cast<double>(rows * K * N), 0, call, linear_to_slices, pool);
}

/// 8 slices of x[rows, K/8] times [N, K/8], summed.
Item from_slices(ThreadPool& pool, DType activations, DType weights, const char* where, std::uint64_t rows, std::uint64_t K, std::uint64_t N) {
  auto call = std::make_shared<OwnCall>();
  call->command.op = Op::linear_from_slices;
  call->command.slices = all_slices();
  call->command.attrs[Attr::slice_count] = slice_count;
  call->inputs.push_back(filled(activations, {slice_count, rows, K / slice_count}));
  for (std::uint32_t i = 0; i < slice_count; ++i) call->matrix(weights, N, K / slice_count);
  call->outputs.emplace_back(DType::f32, Shape{1, rows, N});
  return item_of(std::string("from_slices ") + where + " " + size_text(rows, K, N), 2.0 * static_cast<double>(rows * K * N), 0, call, linear_from_slices, pool);
}

Item attention_item(ThreadPool& pool, DType dtype, const char* where, std::uint64_t heads, std::uint64_t queries, std::uint64_t keys, std::uint64_t head_dim) {
  auto call = std::make_shared<OwnCall>();
  call->command.op = Op::attention;
  call->command.attrs = {{Attr::head_dim, static_cast<double>(head_dim)}, {Attr::scale, 0.125}};
  call->inputs.push_back(filled(dtype, {heads / 2, queries, 2 * head_dim}));
  call->inputs.push_back(filled(dtype, {heads / 2, keys, 2 * head_dim}));
  call->inputs.push_back(filled(dtype, {heads / 2, keys, 2 * head_dim}));
  call->outputs.emplace_back(dtype, Shape{heads / 2, queries, 2 * head_dim});
  return item_of(std::string("attention ") + where + " " + std::to_string(heads) + " heads " + size_text(queries, keys, head_dim),
                 4.0 * static_cast<double>(heads * queries * keys * head_dim), 0, call, attention, pool);
}

Item row_item(ThreadPool& pool, DType dtype, Op op, std::uint64_t rows, std::uint64_t width) {
  auto call = std::make_shared<OwnCall>();
  call->command.op = op;
  call->command.attrs[Attr::eps] = 1e-6;
  const auto bytes = static_cast<double>(rows * width);
  if (op == Op::layer_norm_modulate) {
    call->inputs = {filled(DType::f32, {rows, width}), filled(DType::f32, {width}), filled(DType::f32, {width})};
    call->outputs.emplace_back(dtype, Shape{rows, width});
    return item_of("norm+modulate " + std::to_string(rows) + "x" + std::to_string(width), 0, bytes * static_cast<double>(4 + size_of(dtype)), call, layer_norm_modulate, pool);
  }
  if (op == Op::gate_add) {
    call->inputs = {filled(DType::f32, {rows, width}), filled(DType::f32, {width}), filled(DType::f32, {rows, width})};
    call->in_place = true;
    return item_of("gate+add " + std::to_string(rows) + "x" + std::to_string(width), 0, bytes * 12, call, gate_add, pool);
  }
  constexpr std::uint64_t head_dim = 64;
  call->command.attrs[Attr::head_dim] = head_dim;
  call->inputs = {filled(dtype, {slice_count, rows, width / slice_count}), filled(DType::f32, {rows, head_dim / 2}), filled(DType::f32, {rows, head_dim / 2})};
  call->vectors.push_back(filled(DType::f32, {head_dim}));
  call->in_place = true;
  return item_of("head_norm_rope " + std::to_string(rows) + "x" + std::to_string(width), 0, bytes * 2 * static_cast<double>(size_of(dtype)), call, head_norm_rope, pool);
}

Item conv_item(ThreadPool& pool, DType dtype, bool spatial, std::uint64_t frames, std::uint64_t side, std::uint64_t channels) {
  auto call = std::make_shared<OwnCall>();
  call->command.op = spatial ? Op::conv_spatial : Op::conv_temporal;
  const Shape shape = {frames, side, side, channels};
  const auto taps = std::uint64_t{spatial ? 9U : 3U};
  call->inputs.push_back(filled(dtype, shape));
  call->matrix(dtype, channels, taps * channels);
  call->vectors.push_back(filled(DType::f32, {channels}));
  call->outputs.emplace_back(dtype, shape);
  return item_of(std::string(spatial ? "conv 1x3x3 " : "conv 3x1x1 ") + std::to_string(frames) + "x" + size_text(side, side, channels),
                 2.0 * static_cast<double>(frames * side * side * channels * channels * taps), 0, call, kernel_of(call->command.op), pool);
}

Item group_norm_item(ThreadPool& pool, DType dtype, std::uint64_t frames, std::uint64_t side, std::uint64_t channels) {
  auto call = std::make_shared<OwnCall>();
  call->command.op = Op::group_norm;
  call->command.attrs = {{Attr::eps, 1e-6}, {Attr::activation, static_cast<double>(Activation::silu)}};
  const Shape shape = {frames, side, side, channels};
  call->inputs.push_back(filled(dtype, shape));
  call->vectors = {filled(DType::f32, {channels}), filled(DType::f32, {channels})};
  call->outputs.emplace_back(dtype, shape);
  return item_of("group norm+silu " + std::to_string(frames) + "x" + size_text(side, side, channels), 0,
                 static_cast<double>(element_count(shape) * 3 * size_of(dtype)), call, kernel_of(Op::group_norm), pool);
}

/// A compiled component on a card of its own; counts time by op.
class Component {
public:
  Component(std::shared_ptr<const ProgramSet> set, std::uint32_t threads) : set_(std::move(set)) {
    CardOptions options;
    options.threads = threads;
    options.memory_bytes = std::uint64_t{16} << 30;
    card_ = must(make_cpu_card(options));
    const PooledWeights weights(*set_->weights);
    must(card_->load_weights(set_->weights, weights, [](std::uint64_t) { return true; }));
    lane_ = must(card_->open_lane(set_));
    for (const auto& [name, slot] : set_->inputs)
      inputs_[slot] = set_->slots[slot].dtype == DType::f32 ? filled(DType::f32, set_->slots[slot].shape) : Tensor(DType::i32, set_->slots[slot].shape);
  }
  void run() {
    // A program may use the memory of its inputs for something else once it has read them.
    for (const auto& [slot, values] : inputs_) std::memcpy(card_->memory(lane_, slot).data(), values.data(), values.bytes());
    Scalars scalars{};
    scalars[static_cast<std::size_t>(Scalar::timestep)] = 0.4;
    scalars[static_cast<std::size_t>(Scalar::c_in)] = 1;
    const auto& commands = set_->programs[0].commands;
    for (std::uint32_t i = 0; i < commands.size(); ++i)
      by_op_[std::string(name_of(commands[i].op))] += seconds_of([&] { must(card_->run(lane_, 0, i, i + 1, scalars)); });
  }
  void print_shares() const {
    double sum = 0;
    std::vector<std::pair<double, std::string>> ops;
    for (const auto& [op, seconds] : by_op_) {
      sum += seconds;
      ops.emplace_back(seconds, op);
    }
    std::sort(ops.rbegin(), ops.rend());
    std::printf("      of its time:");
    for (std::size_t i = 0; i < ops.size() && ops[i].first > 0.003 * sum; ++i)
      std::printf(" %s %.1f%%", ops[i].second.c_str(), 100 * ops[i].first / sum);
    std::printf("\n");
  }

private:
  std::shared_ptr<const ProgramSet> set_;
  std::unique_ptr<Card> card_;
  LaneId lane_ = 0;
  std::map<SlotId, Tensor> inputs_;
  std::map<std::string, double> by_op_;
};

struct Workload {
  std::shared_ptr<const ProgramSet> set;
  double operations = 0;
};

/// 8 layers, 16 heads of 64, 1,600 tokens, text of 512 rows, which is projected too: 0.504 TFLOP.
Workload denoiser_forward(Compute compute) {
  compiler::TransformerConfig config;
  config.heads = 16;
  config.head_dim = 64;
  config.layers = 8;
  config.learnable_positions = false;
  const auto layout = compiler::single_card(compiler::slice_count_of(config));
  compiler::TransformerShape shape;
  shape.frames = 4;
  shape.height = shape.width = 40;
  shape.text_rows = 512;
  const auto weights = must(compiler::denoiser_weights(config, layout, compute));
  const double tokens = 1600, text = 512, width = 1024, layers = 8;
  const double linear = tokens * width * width * (6 + 8) + text * width * width * 2;
  const double attention = 2 * tokens * (tokens + text) * width;
  return {must(compiler::compile_transformer(config, weights, layout, compute, shape)), layers * 2 * (linear + attention)};
}

Workload text_encoder_forward(Compute compute) {
  compiler::TextEncoderConfig config;
  config.layers = 2;
  config.heads = 32;
  config.feed_forward = 16384;
  config.vocabulary = 256;
  const auto layout = compiler::single_card(compiler::slice_count_of(config));
  const auto weights = must(compiler::text_encoder_weights(config, layout, compute));
  const double rows = 512, inner = 4096, width = 1024;
  return {must(compiler::compile_text_encoder(config, weights, layout, compute, 512, false)),
          2 * 2 * rows * (4 * inner * width + 2 * 16384 * width + 2 * rows * inner)};
}

Workload decode(Compute compute) {
  compiler::CodecConfig config;  // The published one.
  const compiler::CodecShape shape{2, 16, 16};
  const auto figures = must(compiler::decoder_figures(config, compute, shape));
  return {must(compiler::compile_decode_whole(config, must(compiler::decoder_weights(config, compute)), compute, shape)),
          figures.flops_linear + figures.flops_attention};
}

Item component_item(std::string name, const Workload& workload, std::uint32_t threads) {
  auto component = std::make_shared<Component>(workload.set, threads);
  return {std::move(name), workload.operations, 0, [component] { component->run(); }, [component] { component->print_shares(); }};
}

// --- measuring ---------------------------------------------------------------------------------------------

struct Type {
  const char* name;
  Compute compute;
  DType activations, weights;
};
constexpr Type types[] = {{"f32", Compute::f32, DType::f32, DType::f32}, {"bf16", Compute::bf16, DType::bf16, DType::bf16},
                          {"int8", Compute::bf16_int8, DType::bf16, DType::i8}};

const Type& type_named(const std::string& name) {
  for (const auto& type : types)
    if (name == type.name) return type;
  std::fprintf(stderr, "there is no type '%s'\n", name.c_str());
  std::exit(2);
}

using Maker = std::function<Item(ThreadPool&, std::uint32_t threads)>;

/// Makers, so that only one item's memory exists at a time.
std::vector<std::pair<std::string, Maker>> makers_of(const Type& type) {
  std::vector<std::pair<std::string, Maker>> makers;
  const auto add = [&](const char* name, Maker maker) { makers.emplace_back(name, std::move(maker)); };
  const auto a = type.activations, w = type.weights;
  for (const auto& [M, K, N] : {std::array<std::uint64_t, 3>{2048, 4096, 4096}, {1600, 1024, 1024}, {1600, 1024, 4096}, {1600, 4096, 1024}})
    add("packed", [=](ThreadPool&, std::uint32_t threads) {
      auto product = std::make_shared<bench::PackedProduct>(w, M, K, N, threads);
      return Item{"oneDNN packed " + size_text(M, K, N), product->operations(), 0, [product] { product->run(); }, {}};
    });
  add("to_slices", [=](ThreadPool& pool, std::uint32_t) { return to_slices(pool, a, w, "qkv", 1600, 1024, 1024); });
  add("to_slices", [=](ThreadPool& pool, std::uint32_t) { return to_slices(pool, a, w, "ff+gelu", 1600, 1024, 4096, Activation::gelu); });
  add("from_slices", [=](ThreadPool& pool, std::uint32_t) { return from_slices(pool, a, w, "out", 1600, 1024, 1024); });
  add("from_slices", [=](ThreadPool& pool, std::uint32_t) { return from_slices(pool, a, w, "ff", 1600, 4096, 1024); });
  add("to_slices", [=](ThreadPool& pool, std::uint32_t) { return to_slices(pool, a, w, "7B qkv", 1600, 4096, 4096); });
  add("from_slices", [=](ThreadPool& pool, std::uint32_t) { return from_slices(pool, a, w, "7B out", 1600, 4096, 4096); });
  add("to_slices", [=](ThreadPool& pool, std::uint32_t) { return to_slices(pool, a, w, "7B ff+gelu", 512, 4096, 16384, Activation::gelu); });
  add("from_slices", [=](ThreadPool& pool, std::uint32_t) { return from_slices(pool, a, w, "7B ff", 512, 16384, 4096); });
  if (w == DType::i8) {
    add("denoiser", [=](ThreadPool&, std::uint32_t threads) { return component_item("denoiser forward, 8 layers", denoiser_forward(type.compute), threads); });
    add("text encoder", [=](ThreadPool&, std::uint32_t threads) { return component_item("text encoder, 2 layers", text_encoder_forward(type.compute), threads); });
    return makers;
  }
  add("attention", [=](ThreadPool& pool, std::uint32_t) { return attention_item(pool, a, "self", 16, 1600, 1600, 64); });
  add("attention", [=](ThreadPool& pool, std::uint32_t) { return attention_item(pool, a, "cross", 16, 1600, 512, 64); });
  add("attention", [=](ThreadPool& pool, std::uint32_t) { return attention_item(pool, a, "7B self", 4, 1600, 1600, 128); });
  add("attention", [=](ThreadPool& pool, std::uint32_t) { return attention_item(pool, a, "7B self", 2, 14080, 14080, 128); });
  add("attention", [=](ThreadPool& pool, std::uint32_t) { return attention_item(pool, a, "7B cross", 4, 14080, 512, 128); });
  add("norm", [=](ThreadPool& pool, std::uint32_t) { return row_item(pool, a, Op::layer_norm_modulate, 1600, 1024); });
  add("gate", [=](ThreadPool& pool, std::uint32_t) { return row_item(pool, a, Op::gate_add, 1600, 1024); });
  add("head_norm", [=](ThreadPool& pool, std::uint32_t) { return row_item(pool, a, Op::head_norm_rope, 1600, 1024); });
  add("group norm", [=](ThreadPool& pool, std::uint32_t) { return group_norm_item(pool, a, 4, 64, 512); });
  add("conv", [=](ThreadPool& pool, std::uint32_t) { return conv_item(pool, a, true, 4, 64, 256); });
  add("conv", [=](ThreadPool& pool, std::uint32_t) { return conv_item(pool, a, false, 8, 64, 512); });
  add("denoiser", [=](ThreadPool&, std::uint32_t threads) { return component_item("denoiser forward, 8 layers", denoiser_forward(type.compute), threads); });
  add("text encoder", [=](ThreadPool&, std::uint32_t threads) { return component_item("text encoder, 2 layers", text_encoder_forward(type.compute), threads); });
  add("vae", [=](ThreadPool&, std::uint32_t threads) { return component_item("vae decode 2x16x16", decode(type.compute), threads); });
  return makers;
}

double load_average() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : -1;
}

void measure(const Type& type, std::uint32_t threads, int repetitions, const std::string& only) {
  if (threads_counted > 0) threads_counted = threads;
  ThreadPool pool(threads);
  bench::PackedProduct bound(type.weights, 2048, 2048, 2048, threads);
  bound.run();
  std::printf("\n%s, %u thread%s%s (load %.1f)\n  %-46s %12s %10s   %s\n", type.name, threads, threads > 1 ? "s" : "", threads_counted > 0 ? ", processor time" : "", load_average(), "what", "median", "of bound",
              "low to high");
  for (const auto& [group, make] : makers_of(type)) {
    if (!only.empty() && group.find(only) == std::string::npos) continue;
    const auto item = make(pool, threads);
    item.work();
    std::vector<double> rates, shares;
    for (int i = 0; i < repetitions; ++i) {
      const auto limit = bound.operations() / seconds_of([&] { bound.run(); });
      // Short work is repeated to last as long as a glance at the clock is sure.
      int times = 0;
      double seconds = 0;
      do {
        seconds += seconds_of(item.work);
        ++times;
      } while (seconds < 0.05);
      rates.push_back((item.operations > 0 ? item.operations : item.bytes) * times / seconds / 1e9);
      shares.push_back(rates.back() * 1e9 / limit);
    }
    const auto [low, high] = std::minmax_element(rates.begin(), rates.end());
    if (item.operations > 0)
      std::printf("  %-46s %5.0f GFLOP/s %8.1f %%   %.0f to %.0f\n", item.name.c_str(), median(rates), 100 * median(shares), *low, *high);
    else
      std::printf("  %-46s %8.1f GB/s %10s   %.1f to %.1f\n", item.name.c_str(), median(rates), "memory", *low, *high);
    if (item.after) item.after();
    std::fflush(stdout);
  }
}

int take_turns(const Type& type, std::uint32_t threads, bool only_bound) {
  const auto workload = denoiser_forward(type.compute);
  std::optional<Component> component;
  if (!only_bound) component.emplace(workload.set, threads);
  bench::PackedProduct bound(type.weights, 2048, 2048, 2048, threads);
  if (component) component->run();
  std::string line;
  while (std::getline(std::cin, line)) {
    // On the wall's clock and in processor time, with one measurement of each.
    const auto both = [&](const std::function<void()>& work) {
      threads_counted = threads;
      const auto processor = now();
      threads_counted = 0;
      const auto wall = seconds_of(work);
      threads_counted = threads;
      const auto used = now() - processor;
      threads_counted = 0;
      return std::pair(wall, used);
    };
    const auto [limit_wall, limit_used] = both([&] { bound.run(); });
    const auto [wall, used] = both([&] {
      if (component) component->run();
    });
    std::printf("%.6f %.6f %.3f %.1f %.1f\n", wall, used, workload.operations / 1e9, bound.operations() / limit_wall / 1e9,
                bound.operations() / limit_used / 1e9);
    std::fflush(stdout);
  }
  return 0;
}

std::vector<std::string> list_of(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

}  // namespace

int main(int count, char** words) {
  std::map<std::string, std::string> options = {{"--threads", "1,2"}, {"--types", "f32,bf16,int8"}, {"--repetitions", "5"}, {"--only", ""}, {"--turns", ""}, {"--clock", "wall"}};
  for (int i = 1; i < count; i += 2) {
    if (!options.contains(words[i]) || i + 1 == count) {
      std::fprintf(stderr, "usage: bench_kernels [--threads 1,2] [--types f32,bf16,int8] [--repetitions 5] [--only TEXT] [--clock wall|cpu] [--turns TYPE]\n");
      return 2;
    }
    options[words[i]] = words[i + 1];
  }
  const auto threads = list_of(options["--threads"]);
  if (options["--clock"] == "cpu") threads_counted = 1;
  const auto count_of = [](const std::string& text) { return static_cast<std::uint32_t>(std::clamp(std::atoi(text.c_str()), 1, 1024)); };
  if (!options["--turns"].empty()) return take_turns(type_named(options["--turns"]), count_of(threads.front()), options["--only"] == "bound");
  std::string numerics;
  const auto check_seconds = seconds_of([&] { numerics = must(check_numerics()); });
  std::printf("%s (checked in %.0f ms)\n", numerics.c_str(), check_seconds * 1e3);
  for (const auto& type : list_of(options["--types"]))
    for (const auto& one : threads) measure(type_named(type), count_of(one), static_cast<int>(count_of(options["--repetitions"])), options["--only"]);
  return 0;
}
