#include "cards/kernels/simd.hpp"

#include "cards/kernels/kernels.hpp"

namespace orrery::cards {

const Simd& simd() {
  static const Simd& chosen = []() -> const Simd& {
    __builtin_cpu_init();
    if (simd_avx512 != nullptr && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
      return *simd_avx512;
    if (simd_avx2 != nullptr && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return *simd_avx2;
    return *simd_sse2;
  }();
  return chosen;
}

std::string_view kernel_instruction_set() { return simd().name; }

}  // namespace orrery::cards
