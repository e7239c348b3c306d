#include "cards/kernel_bench.hpp"

#include <cstring>
#include <memory>

#include <oneapi/dnnl/dnnl.hpp>
#include <omp.h>

#include "cards/kernels/kernels.hpp"

namespace orrery::cards {
namespace {

constexpr std::uint32_t slice_count = 8;

Tensor filled(DType dtype, const Shape& shape) {
  Tensor tensor(dtype, shape);
  std::uint32_t state = 1;
  for (std::uint64_t i = 0; i < element_count(shape); ++i) {
    state = state * 1664525U + 1013904223U;
    const float value = static_cast<float>(state >> 8) * 0x1p-24F - 0.5F;
    if (dtype == DType::f32) tensor.as<float>()[i] = value;
    else tensor.as<std::uint16_t>()[i] = bf16_of(value);
  }
  return tensor;
}

/// A command with its operands and weights in memory of its own.
struct OwnCall {
  Command command;
  std::vector<Tensor> inputs, outputs, packed, vectors;
  std::vector<PackedMatrix> matrices;
  std::vector<WeightSpec> specs;
  Scalars scalars{};

  void add_matrix(DType dtype, std::uint64_t N, std::uint64_t K) {
    const auto values = filled(dtype, {N, K});
    packed.emplace_back(DType::u8, Shape{PackedMatrix::packed_bytes(N, K, dtype)});
    const auto row = K * size_of(dtype);
    matrices.push_back(PackedMatrix::pack(
        N, K, dtype,
        [&](std::uint64_t begin, std::uint64_t end, std::byte* to) { std::memcpy(to, values.data() + begin * row, (end - begin) * row); },
        {packed.back().data(), packed.back().bytes()}));
  }
  void add_vector(std::uint64_t length) { vectors.push_back(filled(DType::f32, {length})); }

  void run(ThreadPool& pool) {
    std::vector<Operand> in, out;
    for (auto& tensor : inputs) in.push_back({tensor.data(), tensor.dtype(), &tensor.shape()});
    if (outputs.empty()) out.push_back(in[0]);  // In place.
    for (auto& tensor : outputs) out.push_back({tensor.data(), tensor.dtype(), &tensor.shape()});
    std::vector<Weight> weights;
    for (auto& one : matrices) weights.push_back({nullptr, nullptr, &one});
    specs.resize(vectors.size());
    for (std::size_t i = 0; i < vectors.size(); ++i) {
      specs[i].row_end = 1;
      specs[i].column_end = element_count(vectors[i].shape());
      weights.push_back({&specs[i], vectors[i].data(), nullptr});
    }
    ORRERY_CHECK(kernel_of(command.op)({command, in, out, weights, scalars, pool}).ok());
  }
};

std::vector<std::uint32_t> all_slices() {
  std::vector<std::uint32_t> slices;
  for (std::uint32_t i = 0; i < slice_count; ++i) slices.push_back(i);
  return slices;
}

double number(std::uint64_t count) { return static_cast<double>(count); }

/// x[rows, K] times eight slices of [N/8, K].
OwnCall to_slices(DType dtype, std::uint64_t rows, std::uint64_t K, std::uint64_t N, Activation activation) {
  OwnCall call;
  call.command.op = Op::linear_to_slices;
  call.command.slices = all_slices();
  call.command.attrs[Attr::activation] = static_cast<double>(activation);
  call.inputs.push_back(filled(dtype, {rows, K}));
  for (std::uint32_t i = 0; i < slice_count; ++i) call.add_matrix(dtype, N / slice_count, K);
  call.outputs.emplace_back(dtype, Shape{slice_count, rows, N / slice_count});
  return call;
}

/// Eight slices of x[rows, K/8] times [N, K/8], summed.
OwnCall from_slices(DType dtype, std::uint64_t rows, std::uint64_t K, std::uint64_t N) {
  OwnCall call;
  call.command.op = Op::linear_from_slices;
  call.command.slices = all_slices();
  call.command.attrs[Attr::slice_count] = slice_count;
  call.inputs.push_back(filled(dtype, {slice_count, rows, K / slice_count}));
  for (std::uint32_t i = 0; i < slice_count; ++i) call.add_matrix(dtype, N, K / slice_count);
  call.outputs.emplace_back(DType::f32, Shape{1, rows, N});
  return call;
}

OwnCall attention(DType dtype, std::uint64_t heads, std::uint64_t queries, std::uint64_t keys, std::uint64_t head_dim) {
  OwnCall call;
  call.command.op = Op::attention;
  call.command.attrs = {{Attr::head_dim, number(head_dim)}, {Attr::scale, 0.125}};
  for (const auto rows : {queries, keys, keys}) call.inputs.push_back(filled(dtype, {heads / 2, rows, 2 * head_dim}));
  call.outputs.emplace_back(dtype, Shape{heads / 2, queries, 2 * head_dim});
  return call;
}

OwnCall convolution(DType dtype, Op op, std::uint64_t taps, std::uint64_t frames, std::uint64_t side, std::uint64_t channels) {
  OwnCall call;
  call.command.op = op;
  const Shape shape = {frames, side, side, channels};
  call.inputs.push_back(filled(dtype, shape));
  call.add_matrix(dtype, channels, taps * channels);
  call.add_vector(channels);
  call.outputs.emplace_back(dtype, shape);
  return call;
}

std::string size_text(std::initializer_list<std::uint64_t> extents) {
  std::string text;
  for (const auto extent : extents) text += (text.empty() ? "" : "x") + std::to_string(extent);
  return text;
}

struct PackedProduct {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::memory source, weights, target;
  dnnl::matmul product;
};

}  // namespace

std::vector<std::pair<std::string, std::function<KernelCase()>>> kernel_cases(DType dtype, std::uint32_t threads) {
  const auto pool = std::make_shared<ThreadPool>(threads);
  std::vector<std::pair<std::string, std::function<KernelCase()>>> all;
  const auto add = [&](const std::string& name, double operations, double bytes, std::function<OwnCall()> make) {
    all.emplace_back(name, [=] {
      auto call = std::make_shared<OwnCall>(make());
      return KernelCase{name, operations, bytes, [call, pool] { call->run(*pool); }};
    });
  };
  const auto element = number(size_of(dtype));
  struct Product {
    const char* what;
    std::uint64_t rows, K, N;
  };
  for (const auto& [what, rows, K, N] : {Product{"qkv", 1600, 1024, 1024}, {"ff", 1600, 1024, 4096}, {"7B qkv", 1600, 4096, 4096}})
    add(std::string("linear to slices, ") + what + " " + size_text({rows, K, N}), 2 * number(rows * K * N), element * number(rows * K + K * N + rows * N),
        [=] { return to_slices(dtype, rows, K, N, std::string_view(what) == "ff" ? Activation::gelu : Activation::none); });
  for (const auto& [what, rows, K, N] : {Product{"out", 1600, 1024, 1024}, {"ff", 1600, 4096, 1024}, {"7B out", 1600, 4096, 4096}})
    add(std::string("linear from slices, ") + what + " " + size_text({rows, K, N}), 2 * number(rows * K * N), element * number(rows * K + K * N) + 4 * number(rows * N),
        [=] { return from_slices(dtype, rows, K, N); });
  for (const auto& [what, heads, keys, head_dim] : {std::tuple("self", 16, 1600, 64), std::tuple("cross", 16, 512, 64), std::tuple("7B self", 4, 1600, 128)}) {
    const std::uint64_t queries = 1600, h = static_cast<std::uint64_t>(heads), k = static_cast<std::uint64_t>(keys), d = static_cast<std::uint64_t>(head_dim);
    add(std::string("attention, ") + what + " " + std::to_string(heads) + " heads " + size_text({queries, k, d}), 4 * number(h * queries * k * d),
        element * number(h * d * (2 * queries + 2 * k)), [=] { return attention(dtype, h, queries, k, d); });
  }
  const std::uint64_t rows = 1600, width = 1024, head_dim = 64;
  add("norm and modulate " + size_text({rows, width}), 0, number(rows * width) * (4 + element), [=] {
    OwnCall call;
    call.command.op = Op::layer_norm_modulate;
    call.command.attrs[Attr::eps] = 1e-6;
    call.inputs = {filled(DType::f32, {rows, width}), filled(DType::f32, {width}), filled(DType::f32, {width})};
    call.outputs.emplace_back(dtype, Shape{rows, width});
    return call;
  });
  add("gate and add " + size_text({rows, width}), 0, number(rows * width) * 12, [=] {
    OwnCall call;
    call.command.op = Op::gate_add;
    call.inputs = {filled(DType::f32, {rows, width}), filled(DType::f32, {width}), filled(DType::f32, {rows, width})};
    return call;
  });
  add("head norm and rotation " + size_text({rows, width}), 0, number(rows * width) * 2 * element, [=] {
    OwnCall call;
    call.command.op = Op::head_norm_rope;
    call.command.attrs = {{Attr::eps, 1e-6}, {Attr::head_dim, number(head_dim)}};
    call.inputs = {filled(dtype, {slice_count, rows, width / slice_count}), filled(DType::f32, {rows, head_dim / 2}), filled(DType::f32, {rows, head_dim / 2})};
    call.add_vector(head_dim);
    return call;
  });
  const std::uint64_t frames = 4, side = 64, channels = 256;
  add("convolution 1x3x3, " + size_text({frames, side, side, channels}), 2 * number(frames * side * side * channels * channels * 9),
      element * number(frames * side * side * channels * 2), [=] { return convolution(dtype, Op::conv_spatial, 9, frames, side, channels); });
  add("convolution 3x1x1, " + size_text({frames, side, side, channels}), 2 * number(frames * side * side * channels * channels * 3),
      element * number(frames * side * side * channels * 2), [=] { return convolution(dtype, Op::conv_temporal, 3, frames, side, channels); });
  add("group norm and silu, " + size_text({frames, side, side, channels}), 0, element * number(frames * side * side * channels * 3), [=] {
    OwnCall call;
    call.command.op = Op::group_norm;
    call.command.attrs = {{Attr::eps, 1e-6}, {Attr::activation, static_cast<double>(Activation::silu)}};
    const Shape shape = {frames, side, side, channels};
    call.inputs.push_back(filled(dtype, shape));
    call.add_vector(channels);
    call.add_vector(channels);
    call.outputs.emplace_back(dtype, shape);
    return call;
  });
  return all;
}

KernelCase packed_product_bound(DType dtype, std::uint32_t threads) {
  using dnnl::memory;
  constexpr std::uint64_t side = 2048;
  const auto n = static_cast<memory::dim>(side);
  const auto type = dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  auto state = std::make_shared<PackedProduct>();
  const dnnl::matmul::primitive_desc description(
      dnnl::matmul::desc(memory::desc({n, n}, type, memory::format_tag::ab), memory::desc({n, n}, type, memory::format_tag::any),
                         memory::desc({n, n}, memory::data_type::f32, memory::format_tag::ab)),
      state->engine);
  const auto values = filled(dtype, {side, side});
  memory plain(memory::desc({n, n}, type, memory::format_tag::ba), state->engine);
  std::memcpy(plain.get_data_handle(), values.data(), values.bytes());
  state->source = memory(description.src_desc(), state->engine);
  std::memcpy(state->source.get_data_handle(), values.data(), values.bytes());
  state->weights = memory(description.weights_desc(), state->engine);
  state->target = memory(description.dst_desc(), state->engine);
  dnnl::reorder(plain, state->weights).execute(state->stream, plain, state->weights);
  state->stream.wait();
  state->product = dnnl::matmul(description);
  return {"packed product " + size_text({side, side, side}), 2.0 * number(side * side * side), 0, [state, threads] {
            omp_set_num_threads(static_cast<int>(threads));  // A pool of ours may have set 1 for this thread.
            state->product.execute(state->stream, {{DNNL_ARG_SRC, state->source}, {DNNL_ARG_WEIGHTS, state->weights}, {DNNL_ARG_DST, state->target}});
            state->stream.wait();
          }};
}

KernelCase memory_bound(std::uint32_t threads) {
  constexpr std::size_t bytes = std::size_t{64} << 20;
  struct State {
    explicit State(std::uint32_t count) : pool(count), from(count, std::vector<char>(bytes, 1)), to(count, std::vector<char>(bytes, 2)) {}
    ThreadPool pool;
    std::vector<std::vector<char>> from, to;
  };
  auto state = std::make_shared<State>(threads);
  return {"memcpy", 0, 2.0 * number(bytes) * threads, [state, threads] {
            state->pool.parallel_for(threads, [&](std::uint64_t i, Scratch&) { std::memcpy(state->to[i].data(), state->from[i].data(), bytes); });
          }};
}

}  // namespace orrery::cards
