// The cpu card's main operations at the model's shapes, ready to be measured: `orrery bench kernels` runs them.
//
// Each case owns its operands and weights. What a good time is follows from two bounds of the same run: oneDNN's product
// with weights packed as it likes best, for what computes, and memcpy, for what moves. See tests/bench/kernels_bench.cpp for
// whole components and more shapes.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/tensor.hpp"

namespace orrery::cards {

struct KernelCase {
  std::string name;
  double operations = 0;  // Floating-point, of one run; 0: bound by memory.
  double bytes = 0;       // Read and written, of one run.
  std::function<void()> run;
};

/// Makers, so that only one case's memory exists at a time; `dtype` f32 or bf16: of weights and activations. The cases
/// share a pool of `threads` threads.
std::vector<std::pair<std::string, std::function<KernelCase()>>> kernel_cases(DType dtype, std::uint32_t threads);

/// y[2048,2048] = x[2048,2048] W[2048,2048] by oneDNN, packed weights, on as many threads.
KernelCase packed_product_bound(DType dtype, std::uint32_t threads);
/// Copies 64 MiB on each of as many threads; bytes count reading and writing.
KernelCase memory_bound(std::uint32_t threads);

}  // namespace orrery::cards
