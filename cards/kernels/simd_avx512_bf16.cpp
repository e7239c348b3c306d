// Compiled with the flags of AVX-512 and its bf16 instructions (cards/CMakeLists.txt).

#include "cards/kernels/simd.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define ORRERY_SIMD_TABLE simd_avx512_bf16
#define ORRERY_SIMD_NAME "avx512_bf16"
#include "cards/kernels/simd_body.hpp"
#else
const orrery::cards::Simd* const orrery::cards::simd_avx512_bf16 = nullptr;
#endif
