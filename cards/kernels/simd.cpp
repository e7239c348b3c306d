#include "cards/kernels/simd.hpp"

#include "cards/kernels/kernels.hpp"

namespace orrery::cards {

bool can_run(const Simd& table) {
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (&table == simd_avx512_bf16) return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (&table == simd_avx512) return avx512;
  if (&table == simd_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return true;
}

const Simd& simd() {
  static const Simd& chosen = []() -> const Simd& {
    for (const auto* table : {simd_avx512_bf16, simd_avx512, simd_avx2})
      if (table != nullptr && can_run(*table)) return *table;
    return *simd_sse2;
  }();
  return chosen;
}

std::string_view kernel_instruction_set() { return simd().name; }

}  // namespace orrery::cards
