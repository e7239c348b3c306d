// Compiled with the flags of AVX2 and FMA (cards/CMakeLists.txt).

#include "cards/kernels/simd.hpp"

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#define ORRERY_SIMD_TABLE simd_avx2
#define ORRERY_SIMD_NAME "avx2"
#include "cards/kernels/simd_body.hpp"
#else
const orrery::cards::Simd* const orrery::cards::simd_avx2 = nullptr;
#endif
