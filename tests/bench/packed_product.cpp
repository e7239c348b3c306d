#include "tests/bench/packed_product.hpp"

#include <vector>

#include <oneapi/dnnl/dnnl.hpp>
#include <omp.h>

namespace orrery::bench {

struct PackedProduct::State {
  int threads = 1;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::memory source, weights, target;
  dnnl::matmul product;
};

namespace {

using dnnl::memory;

memory::data_type type_of(DType dtype, memory::data_type of_i8) {
  return dtype == DType::f32 ? memory::data_type::f32 : dtype == DType::bf16 ? memory::data_type::bf16 : of_i8;
}

void fill(memory& values, DType dtype) {
  auto* bytes = static_cast<unsigned char*>(values.get_data_handle());
  const auto count = values.get_desc().get_size() / size_of(dtype);
  std::uint32_t state = 1;
  for (std::uint64_t i = 0; i < count; ++i) {
    state = state * 1664525U + 1013904223U;
    const float value = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
    if (dtype == DType::f32)
      reinterpret_cast<float*>(bytes)[i] = value;
    else if (dtype == DType::bf16)
      reinterpret_cast<std::uint16_t*>(bytes)[i] = bf16_of(value);
    else
      bytes[i] = static_cast<unsigned char>(state >> 24);
  }
}

}  // namespace

PackedProduct::PackedProduct(DType dtype, std::uint64_t M, std::uint64_t K, std::uint64_t N, std::uint32_t threads)
    : state_(std::make_unique<State>()), operations_(2.0 * static_cast<double>(M) * static_cast<double>(K) * static_cast<double>(N)) {
  auto& state = *state_;
  state.threads = static_cast<int>(threads);
  omp_set_num_threads(state.threads);
  const auto m = static_cast<memory::dim>(M), k = static_cast<memory::dim>(K), n = static_cast<memory::dim>(N);
  const auto source_type = type_of(dtype, memory::data_type::u8), weight_type = type_of(dtype, memory::data_type::s8);
  const auto target_type = dtype == DType::i8 ? memory::data_type::s32 : memory::data_type::f32;
  const dnnl::matmul::primitive_desc description(
      dnnl::matmul::desc(memory::desc({m, k}, source_type, memory::format_tag::ab),
                         memory::desc({k, n}, weight_type, memory::format_tag::any),
                         memory::desc({m, n}, target_type, memory::format_tag::ab)),
      state.engine);
  memory plain(memory::desc({k, n}, weight_type, memory::format_tag::ba), state.engine);
  fill(plain, dtype);
  state.source = memory(description.src_desc(), state.engine);
  fill(state.source, dtype);
  state.weights = memory(description.weights_desc(), state.engine);
  state.target = memory(description.dst_desc(), state.engine);
  dnnl::reorder(plain, state.weights).execute(state.stream, plain, state.weights);
  state.stream.wait();
  state.product = dnnl::matmul(description);
}

PackedProduct::~PackedProduct() = default;

void PackedProduct::run() {
  auto& state = *state_;
  omp_set_num_threads(state.threads);  // A ThreadPool of ours may have set 1 for this thread.
  state.product.execute(state.stream, {{DNNL_ARG_SRC, state.source}, {DNNL_ARG_WEIGHTS, state.weights}, {DNNL_ARG_DST, state.target}});
  state.stream.wait();
}

}  // namespace orrery::bench
