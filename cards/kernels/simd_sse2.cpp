// Compiled with the flags that the whole project has: every x86-64 machine can run this.

#define ORRERY_SIMD_TABLE simd_sse2
#define ORRERY_SIMD_NAME "sse2"
#include "cards/kernels/simd_body.hpp"
