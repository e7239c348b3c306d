// The bound that kernels are measured against: oneDNN's matrix product of this machine with weights packed as it
// likes best (`format_tag::any`), on as many threads as asked, called as oneDNN wants to be called.

#pragma once

#include <cstdint>
#include <memory>

#include "base/tensor.hpp"

namespace orrery::bench {

/// y[M,N] = x[M,K] W[K,N]; x and W f32 or bf16 with f32 y, or (i8) u8 x with s8 W and s32 y. Values are small random numbers.
class PackedProduct {
public:
  PackedProduct(DType dtype, std::uint64_t M, std::uint64_t K, std::uint64_t N, std::uint32_t threads);
  ~PackedProduct();

  void run();
  double operations() const { return operations_; }

private:
  struct State;
  std::unique_ptr<State> state_;
  double operations_;
};

}  // namespace orrery::bench
