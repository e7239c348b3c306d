// How fast the cpu card's kernels are: one matrix product and one attention, by dtype and threads.
//
// Why: these two are nearly all of a step. A good number: what the cores can do in fused multiply-adds, about
// 32 (f32) or 64 (bf16 products) operations a cycle and core on Zen 4, so 100 and 200 GFLOP/s at 3.2 GHz; attention
// computes in f32 for both dtypes. A gap below 80 % in `product` means tiles that are too small or memory; in
// `attention` it is the exponentials and the packing of keys.
//
//   bench_kernels [threads]

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "cards/card.hpp"
#include "cards/kernels/ops.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

void report(const std::string& name, double operations, const std::function<void()>& work) {
  work();
  std::vector<double> rates;
  for (int i = 0; i < 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    rates.push_back(operations / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / 1e9);
  }
  std::sort(rates.begin(), rates.end());
  std::printf("%-44s %7.1f GFLOP/s (%.1f to %.1f)\n", name.c_str(), rates[2], rates[0], rates[4]);
}

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

void bench_product(ThreadPool& pool, DType dtype, std::uint64_t M, std::uint64_t K, std::uint64_t N) {
  const auto x = filled(dtype, {M, K});
  const auto w = filled(dtype, {N, K});
  Tensor packed(DType::u8, {PackedMatrix::packed_bytes(N, K, dtype)});
  const auto matrix = PackedMatrix::pack(
      N, K, dtype,
      [&](std::uint64_t begin, std::uint64_t end, std::byte* to) {
        std::copy_n(w.data() + begin * K * size_of(dtype), (end - begin) * K * size_of(dtype), to);
      },
      {packed.data(), packed.bytes()});
  Tensor y(DType::f32, {M, N});
  const auto name = "product/" + std::string(name_of(dtype)) + "/" + std::to_string(M) + "x" + std::to_string(K) + "x" +
                    std::to_string(N) + "/threads=" + std::to_string(pool.thread_count());
  report(name, 2.0 * static_cast<double>(M * K * N), [&] {
    product_of_rows(pool, matrix, M, x.data(), dtype, {y.data(), DType::f32, N});
  });
}

void bench_attention(ThreadPool& pool, DType dtype, std::uint64_t heads, std::uint64_t N, std::uint64_t head_dim) {
  const Shape shape = {heads, N, head_dim};
  auto q = filled(dtype, shape), k = filled(dtype, shape), v = filled(dtype, shape), o = filled(dtype, shape);
  Command command;
  command.op = Op::attention;
  command.attrs = {{Attr::head_dim, static_cast<double>(head_dim)}, {Attr::scale, 0.1}};
  const Operand inputs[] = {{q.data(), dtype, &shape}, {k.data(), dtype, &shape}, {v.data(), dtype, &shape}};
  const Operand outputs[] = {{o.data(), dtype, &shape}};
  const Scalars scalars{};
  const auto name = "attention/" + std::string(name_of(dtype)) + "/" + std::to_string(heads) + "x" + std::to_string(N) + "x" +
                    std::to_string(head_dim) + "/threads=" + std::to_string(pool.thread_count());
  report(name, 4.0 * static_cast<double>(heads * N * N * head_dim), [&] {
    if (!attention({command, inputs, outputs, {}, scalars, pool}).ok()) std::abort();
  });
}

}  // namespace

int main(int argument_count, char** arguments) {
  const auto begin = std::chrono::steady_clock::now();
  const auto numerics = check_numerics();
  std::printf("%s (checked in %.0f ms)\n", numerics.ok() ? numerics.value().c_str() : numerics.error().text().c_str(),
              std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  ThreadPool pool(argument_count > 1 ? static_cast<std::uint32_t>(std::max(1, std::atoi(arguments[1]))) : 1);
  for (const auto dtype : {DType::f32, DType::bf16}) {
    bench_product(pool, dtype, 2048, 4096, 1024);
    bench_product(pool, dtype, 512, 1024, 256);
    bench_product(pool, dtype, 8, 4096, 4096);
    bench_attention(pool, dtype, 2, 2048, 128);
    bench_attention(pool, dtype, 8, 256, 32);
  }
}
