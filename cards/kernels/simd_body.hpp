// Vector kernels for one instruction set; included once each by simd_avx512_bf16.cpp, simd_avx512.cpp,
// simd_avx2.cpp and simd_sse2.cpp.
//
// The includer defines ORRERY_SIMD_TABLE (the name of its table) and ORRERY_SIMD_NAME. Everything is in an
// unnamed namespace and no standard header with inline functions is used: a function that was compiled for
// AVX-512 must never be the one that the linker keeps for everybody.

#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cards/kernels/simd.hpp"

namespace orrery::cards {
namespace {

using u16 = std::uint16_t;
using u64 = std::uint64_t;

#if defined(__AVX512F__)
constexpr u64 lanes = 16;
constexpr u64 panel_vectors = 4;
constexpr u64 panel_rows = 6;
#elif defined(__AVX2__)
constexpr u64 lanes = 8;
constexpr u64 panel_vectors = 2;
constexpr u64 panel_rows = 6;
#else
constexpr u64 lanes = 4;
constexpr u64 panel_vectors = 2;
constexpr u64 panel_rows = 4;
#endif
constexpr u64 panel_columns = lanes * panel_vectors;

using V = float __attribute__((vector_size(lanes * 4)));
using I = std::int32_t __attribute__((vector_size(lanes * 4)));
using W = std::uint32_t __attribute__((vector_size(lanes * 4)));
using H = u16 __attribute__((vector_size(lanes * 2)));
using UnalignedI = std::int32_t __attribute__((vector_size(lanes * 4), aligned(4), may_alias));
using B = std::uint8_t __attribute__((vector_size(lanes)));
using UnalignedB = std::uint8_t __attribute__((vector_size(lanes), aligned(1), may_alias));
using UnalignedV = float __attribute__((vector_size(lanes * 4), aligned(4), may_alias));
using UnalignedH = u16 __attribute__((vector_size(lanes * 2), aligned(2), may_alias));

#define ORRERY_INLINE inline __attribute__((always_inline))

ORRERY_INLINE V splat(float x) { return x - V{}; }

ORRERY_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

ORRERY_INLINE V load(const float* from) { return *reinterpret_cast<const UnalignedV*>(from); }
ORRERY_INLINE V load(const u16* from) {
  const H half = *reinterpret_cast<const UnalignedH*>(from);
  return (V)(__builtin_convertvector(half, W) << 16);
}
ORRERY_INLINE I load(const std::int32_t* from) { return *reinterpret_cast<const UnalignedI*>(from); }
ORRERY_INLINE void store(std::int32_t* to, I value) { *reinterpret_cast<UnalignedI*>(to) = value; }
ORRERY_INLINE void store(float* to, V value) { *reinterpret_cast<UnalignedV*>(to) = value; }
/// Round to nearest, ties to even; NaN stays NaN.
ORRERY_INLINE void store(u16* to, V value) {
  const W bits = (W)value;
  const W rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const W quiet = (bits >> 16) | 0x40U;
  const W chosen = (bits & 0x7fffffffU) > 0x7f800000U ? quiet : rounded;
  *reinterpret_cast<UnalignedH*>(to) = __builtin_convertvector(chosen, H);
}

/// The first `count` lanes from memory, the others zero.
template <class T>
ORRERY_INLINE V load_part(const T* from, u64 count) {
  T buffer[lanes] = {};
  for (u64 i = 0; i < count; ++i) buffer[i] = from[i];
  return load(buffer);
}
template <class T>
ORRERY_INLINE void store_part(T* to, V value, u64 count) {
  if (count == lanes) return store(to, value);
  T buffer[lanes];
  store(buffer, value);
  for (u64 i = 0; i < count; ++i) to[i] = buffer[i];
}

/// to[i] = f(i, vector of from[i]...) with the same vector code for the tail. `f` gets the position and how many
/// lanes count.
template <class In, class Out, class Function>
ORRERY_INLINE void map_row(const In* from, Out* to, u64 count, Function f) {
  u64 i = 0;
  for (; i + lanes <= count; i += lanes) store(to + i, f(i, lanes, load(from + i)));
  if (i < count) store_part(to + i, f(i, count - i, load_part(from + i, count - i)), count - i);
}

template <class T>
ORRERY_INLINE V load_at(const T* from, u64 i, u64 count) {
  return count == lanes ? load(from + i) : load_part(from + i, count);
}

/// The larger one; `otherwise` where they cannot be compared.
ORRERY_INLINE V larger(V value, V otherwise) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_max_ps(0xffff, (__m512)value, (__m512)otherwise);
#else
  return value > otherwise ? value : otherwise;
#endif
}

ORRERY_INLINE float sum_of(V value) {
  float part[lanes];
  store(part, value);
  for (u64 width = lanes / 2; width > 0; width /= 2)
    for (u64 i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}
ORRERY_INLINE I lane_numbers() {
  I numbers;
  for (u64 i = 0; i < lanes; ++i) numbers[i] = static_cast<int>(i);
  return numbers;
}
ORRERY_INLINE V keep_lanes(V value, u64 count, float otherwise) {
  return lane_numbers() < static_cast<int>(count) ? value : splat(otherwise);
}

/// e^x to about 1 ulp; 0 below -105, infinity above 89. Coefficients: Cephes expf.
ORRERY_INLINE V exp_of(V x) {
  x = x < splat(-110.0f) ? splat(-110.0f) : x;
  x = x > splat(89.5f) ? splat(89.5f) : x;
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer.
  const V n = fma(x, splat(1.44269504088896341f), magic) - magic;
  V r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  V p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const I whole = __builtin_convertvector(n, I);
  const I half = whole >> 1;
  const V low = (V)((half + 127) << 23);
  const V high = (V)((whole - half + 127) << 23);
  return p * low * high;
}

/// 2^x for x <= 0, 0 below -127 (or where f32 ends), NaN for NaN. Relative error 1e-7, or 1e-4 with `Rough`, which is
/// enough for what is rounded to bf16. 1 for 0.
template <bool Rough>
ORRERY_INLINE V power_of_two(V x) {
#if defined(__AVX512F__)
  // Masks of all lanes: GCC 12 warns falsely about the forms without one.
  x = (V)_mm512_maskz_max_ps(0xffff, (__m512)splat(-200.0f), (__m512)x);
  const V n = (V)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  x = x < splat(-127.0f) ? splat(-127.0f) : x;
  const V magic = splat(12582912.0f);
  const V n = (x + magic) - magic;
#endif
  const V r = x - n;
  V p;
  if constexpr (Rough) {
    p = splat(5.500892922e-2f);
    p = fma(p, r, splat(2.422109544e-1f));
    p = fma(p, r, splat(6.932829022e-1f));
  } else {
    p = splat(1.326472731e-3f);
    p = fma(p, r, splat(9.671512991e-3f));
    p = fma(p, r, splat(5.550733581e-2f));
    p = fma(p, r, splat(2.402224243e-1f));
    p = fma(p, r, splat(6.931470037e-1f));
  }
  p = fma(p, r, splat(1.0f));
#if defined(__AVX512F__)
  return (V)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  return p * (V)((__builtin_convertvector(n, I) + 127) << 23);
#endif
}

/// erf to about 1 ulp (two minimax polynomials, split at 0.921875; N. Juffa).
ORRERY_INLINE V erf_of(V x) {
  const V t = (V)((W)x & 0x7fffffffU);
  const V s = x * x;
  V r = fma(splat(-1.72853470e-5f), t, splat(3.83197126e-4f));
  const V u = fma(splat(-3.88396438e-3f), t, splat(2.42546219e-2f));
  r = fma(r, s, u);
  r = fma(r, t, splat(-1.06777877e-1f));
  r = fma(r, t, splat(-6.34846687e-1f));
  r = fma(r, t, splat(-1.28717512e-1f));
  r = fma(r, t, -t);
  r = 1.0f - power_of_two<false>(r * 1.44269504088896341f);
  const V large = (V)((W)r | ((W)x & 0x80000000U));
  V q = splat(-5.96761703e-4f);
  q = fma(q, s, splat(4.99119423e-3f));
  q = fma(q, s, splat(-2.67681349e-2f));
  q = fma(q, s, splat(1.12819925e-1f));
  q = fma(q, s, splat(-3.76125336e-1f));
  q = fma(q, s, splat(1.28379166e-1f));
  const V small = fma(q, x, x);
  const V result = t > splat(0.921875f) ? large : small;
  return t > splat(4.0f) ? (V)((W)splat(1.0f) | ((W)x & 0x80000000U)) : result;
}

ORRERY_INLINE V activated(V x, int activation) {
  switch (activation) {
    case 1: return 0.5f * x * (1.0f + erf_of(x * 0.70710678118654752f));
    case 2: return x > V{} ? x : V{};
    case 3: return x / (1.0f + exp_of(-x));
    default: return x;
  }
}

/// Calls f(from, to) with the element types of the rows.
template <class Function>
ORRERY_INLINE void with_types(ConstRow from, Row to, Function f) {
  if (from.bf16) {
    if (to.bf16)
      f(static_cast<const u16*>(from.data), static_cast<u16*>(to.data));
    else
      f(static_cast<const u16*>(from.data), static_cast<float*>(to.data));
  } else {
    if (to.bf16)
      f(static_cast<const float*>(from.data), static_cast<u16*>(to.data));
    else
      f(static_cast<const float*>(from.data), static_cast<float*>(to.data));
  }
}

void convert_row(ConstRow from, Row to, u64 count) {
  with_types(from, to, [&](const auto* in, auto* out) { map_row(in, out, count, [](u64, u64, V x) { return x; }); });
}

void activate_row(ConstRow from, Row to, u64 count, int activation) {
  with_types(from, to, [&](const auto* in, auto* out) {
    map_row(in, out, count, [&](u64, u64, V x) { return activated(x, activation); });
  });
}

void add_row(ConstRow a, ConstRow b, Row to, u64 count) {
  with_types(a, to, [&](const auto* in, auto* out) {
    if (b.bf16)
      map_row(in, out, count, [&](u64 i, u64 n, V x) { return x + load_at(static_cast<const u16*>(b.data), i, n); });
    else
      map_row(in, out, count, [&](u64 i, u64 n, V x) { return x + load_at(static_cast<const float*>(b.data), i, n); });
  });
}

void finish_row(const float* acc, const float* bias, Row to, u64 count, int activation) {
  with_types(ConstRow{acc, false}, to, [&](const auto* in, auto* out) {
    map_row(in, out, count, [&](u64 i, u64 n, V x) {
      if (bias != nullptr) x += load_at(bias, i, n);
      return activated(x, activation);
    });
  });
}

void gate_add_row(float* h, const float* gate, ConstRow y, u64 count) {
  const auto add = [&](const auto* values) {
    map_row(h, h, count, [&](u64 i, u64 n, V x) { return fma(load_at(gate, i, n), load_at(values, i, n), x); });
  };
  if (y.bf16)
    add(static_cast<const u16*>(y.data));
  else
    add(static_cast<const float*>(y.data));
}

/// Sum over a row of f(position, lanes that count, values): one accumulator per lane, then a tree over lanes.
template <class T, class Function>
ORRERY_INLINE float sum_row(const T* x, u64 count, Function f) {
  V sum = {};
  u64 i = 0;
  for (; i + lanes <= count; i += lanes) sum += f(load(x + i));
  if (i < count) sum += keep_lanes(f(load_part(x + i, count - i)), count - i, 0.0f);
  return sum_of(sum);
}

void layer_norm_modulate_row(const float* x, const float* shift, const float* scale, float eps, Row to, u64 count) {
  const float length = static_cast<float>(count);
  const float mean = sum_row(x, count, [](V v) { return v; }) / length;
  const float variance = sum_row(x, count, [&](V v) { return (v - mean) * (v - mean); }) / length;
  const float factor = 1.0f / __builtin_sqrtf(variance + eps);
  with_types(ConstRow{x, false}, to, [&](const auto* in, auto* out) {
    map_row(in, out, count, [&](u64 i, u64 n, V v) {
      return fma((v - mean) * factor, 1.0f + load_at(scale, i, n), load_at(shift, i, n));
    });
  });
}

void rms_norm_row(ConstRow x, const float* weight, float eps, Row to, u64 count) {
  with_types(x, to, [&](const auto* in, auto* out) {
    const float mean = sum_row(in, count, [](V v) { return v * v; }) / static_cast<float>(count);
    const float factor = 1.0f / __builtin_sqrtf(mean + eps);
    map_row(in, out, count, [&](u64 i, u64 n, V v) {
      v *= factor;
      return weight == nullptr ? v : v * load_at(weight, i, n);
    });
  });
}

void rotate_row(float* x, const float* cos, const float* sin, u64 count) {
  const u64 half = count / 2;
  for (u64 i = 0; i < half; i += lanes) {
    const u64 n = half - i < lanes ? half - i : lanes;
    const V a = load_at(x, i, n), b = load_at(x + half, i, n), c = load_at(cos, i, n), s = load_at(sin, i, n);
    store_part(x + i, a * c - b * s, n);
    store_part(x + half + i, b * c + a * s, n);
  }
}

/// One step along K of a panel product: a row's value times a vector of columns.
template <class T>
struct OneByOne {
  using Value = float;
  using Panel = T;
  using Splat = V;
  using Sum = V;
  using Result = float;
  static constexpr u64 width = 1;  // Panel elements per column and step.
  static ORRERY_INLINE V columns_at(const T* panel) { return load(panel); }
  static ORRERY_INLINE V value_at(const float* x) { return splat(*x); }
  static ORRERY_INLINE V step(V value, V columns, V sum) { return fma(value, columns, sum); }
};

#if defined(__AVX512BF16__)
struct PairByPair {
  using Value = u16;
  using Panel = u16;
  using Splat = __m512bh;
  using Sum = V;
  using Result = float;
  static constexpr u64 width = 2;
  static ORRERY_INLINE __m512bh columns_at(const u16* panel) { return (__m512bh)_mm512_loadu_si512(panel); }
  static ORRERY_INLINE __m512bh value_at(const u16* x) {
    int pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static ORRERY_INLINE V step(__m512bh value, __m512bh columns, V sum) {
    return (V)_mm512_dpbf16_ps((__m512)sum, value, columns);
  }
};
#endif

/// Four products of bytes, x unsigned and columns signed, added to a whole number: exact, so in any order.
struct QuadByQuad {
  using Value = std::uint8_t;
  using Panel = std::int8_t;
  using Splat = I;
  using Sum = I;
  using Result = std::int32_t;
  static constexpr u64 width = 4;
  static ORRERY_INLINE I columns_at(const std::int8_t* panel) { return *reinterpret_cast<const UnalignedI*>(panel); }
  static ORRERY_INLINE I value_at(const std::uint8_t* x) {
    std::int32_t quad;
    __builtin_memcpy(&quad, x, sizeof quad);
    return quad - I{};
  }
  static ORRERY_INLINE I step(I value, I columns, I sum) {
#if defined(__AVX512VNNI__)
    return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)value, (__m512i)columns);
#else
    for (int byte = 0; byte < 4; ++byte) sum += ((value >> (8 * byte)) & 255) * ((columns << (24 - 8 * byte)) >> 24);
    return sum;
#endif
  }
};

/// Rows of a tile times one panel. Each element is a chain of steps along K, from 0 (or from acc). Steps of x lie
/// `x_step` apart. With `most`: [panel_columns], raised to the largest result of each column.
template <u64 Rows, class Step>
ORRERY_INLINE void multiply_rows(const typename Step::Panel* panel, u64 steps, const typename Step::Value* x, u64 x_stride,
                                 u64 x_step, typename Step::Result* acc, u64 acc_stride, bool accumulate, float* most = nullptr) {
  typename Step::Sum sums[Rows][panel_vectors];
  for (u64 r = 0; r < Rows; ++r)
    for (u64 v = 0; v < panel_vectors; ++v) sums[r][v] = accumulate ? load(acc + r * acc_stride + v * lanes) : typename Step::Sum{};
  for (u64 k = 0; k < steps; ++k) {
    typename Step::Splat columns[panel_vectors];
    for (u64 v = 0; v < panel_vectors; ++v)
      columns[v] = Step::columns_at(panel + (k * panel_columns + v * lanes) * Step::width);
    for (u64 r = 0; r < Rows; ++r) {
      const auto value = Step::value_at(x + r * x_stride + k * x_step);
      for (u64 v = 0; v < panel_vectors; ++v) sums[r][v] = Step::step(value, columns[v], sums[r][v]);
    }
  }
  for (u64 r = 0; r < Rows; ++r)
    for (u64 v = 0; v < panel_vectors; ++v) store(acc + r * acc_stride + v * lanes, sums[r][v]);
  if constexpr (Step::width < 4) {
    if (most == nullptr) return;
    for (u64 v = 0; v < panel_vectors; ++v) {
      V largest = load(most + v * lanes);
      for (u64 r = 0; r < Rows; ++r) largest = larger(sums[r][v], largest);
      store(most + v * lanes, largest);
    }
  }
}

template <u64 Value>
struct Count {
  static constexpr u64 value = Value;
};

/// f(first row, Count<rows>) for groups of rows.
template <class Function>
ORRERY_INLINE void for_row_groups(u64 rows, Function f) {
  u64 r = 0;
  for (; r + panel_rows <= rows; r += panel_rows) f(r, Count<panel_rows>{});
  switch (rows - r) {
    case 1: f(r, Count<1>{}); break;
    case 2: f(r, Count<2>{}); break;
    case 3: f(r, Count<3>{}); break;
    case 4: f(r, Count<4>{}); break;
    case 5: f(r, Count<5>{}); break;
    default: break;
  }
}

/// Bytes of a panel that are used for all rows before the next ones are: they stay in the second-level cache.
constexpr u64 panel_bytes = 128 * 1024;

template <class Step>
void multiply_panels(const typename Step::Panel* panels, u64 columns, u64 steps, const typename Step::Value* x, u64 x_stride,
                     u64 rows, typename Step::Result* acc, u64 acc_stride, bool accumulate) {
  constexpr u64 steps_most = panel_bytes / (panel_columns * Step::width * sizeof(typename Step::Panel));
  for (u64 column = 0; column < columns; column += panel_columns)
    for (u64 begin = 0; begin < steps; begin += steps_most) {
      const u64 count = steps - begin < steps_most ? steps - begin : steps_most;
      for_row_groups(rows, [&](u64 r, auto group) {
        multiply_rows<decltype(group)::value, Step>(panels, count, x + r * x_stride + begin * Step::width, x_stride, Step::width,
                                                    acc + r * acc_stride + column, acc_stride, accumulate || begin > 0);
      });
      panels += count * panel_columns * Step::width;
    }
}

void multiply_tile(const void* panels, bool panels_bf16, u64 columns, u64 K, const float* x, u64 x_stride, u64 rows,
                   float* acc, u64 acc_stride, bool accumulate) {
  if (panels_bf16)
    multiply_panels<OneByOne<u16>>(static_cast<const u16*>(panels), columns, K, x, x_stride, rows, acc, acc_stride, accumulate);
  else
    multiply_panels<OneByOne<float>>(static_cast<const float*>(panels), columns, K, x, x_stride, rows, acc, acc_stride, accumulate);
}

/// scores * scale + bias, masked; and the largest of each column.
ORRERY_INLINE void adjust_scores(const KeyBlock& block, float* most) {
  V largest[panel_vectors];
  for (u64 v = 0; v < panel_vectors; ++v) largest[v] = load(most + v * lanes);
  for (u64 j = 0; j < block.count; ++j)
    for (u64 v = 0; v < panel_vectors; ++v) {
      float* at = block.scores + j * panel_columns + v * lanes;
      V score = load(at) * block.scale;
      if (block.bias != nullptr) score += load(block.bias + v * lanes - j);
      if (block.key_mask != nullptr && block.key_mask[j] == 0) score = splat(-__builtin_inff());
      largest[v] = larger(score, largest[v]);
      store(at, score);
    }
  for (u64 v = 0; v < panel_vectors; ++v) store(most + v * lanes, largest[v]);
}

#if defined(__AVX512BF16__)
/// bf16 of even and odd next to each other.
ORRERY_INLINE void store_pairs(void* to, V even, V odd) {
  const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                          19, 3, 18, 2, 17, 1, 16, 0);
  const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(places, both));
}
#endif

/// Scores to weights 2^((score - most) factor), in place; adds them to `sum`. With `Pairs` two rows become one row of pairs.
template <bool Pairs>
ORRERY_INLINE void weigh_scores(const KeyBlock& block, const float* most, float factor, float* sum) {
  V largest[panel_vectors], total[panel_vectors];
  for (u64 v = 0; v < panel_vectors; ++v) {
    largest[v] = load(most + v * lanes);
    total[v] = V{};
  }
  if constexpr (Pairs) {
#if defined(__AVX512BF16__)
    for (u64 j = 0; j < block.count; j += 2)
      for (u64 v = 0; v < panel_vectors; ++v) {
        const float* at = block.scores + j * panel_columns + v * lanes;
        const V even = power_of_two<true>((load(at) - largest[v]) * factor);
        V odd = {};
        if (j + 1 < block.count) odd = power_of_two<true>((load(at + panel_columns) - largest[v]) * factor);
        total[v] = (total[v] + even) + odd;
        store_pairs(block.scores + j / 2 * panel_columns + v * lanes, even, odd);
      }
#endif
  } else {
    for (u64 j = 0; j < block.count; ++j)
      for (u64 v = 0; v < panel_vectors; ++v) {
        float* at = block.scores + j * panel_columns + v * lanes;
        const V weight = power_of_two<false>((load(at) - largest[v]) * factor);
        total[v] += weight;
        store(at, weight);
      }
  }
  for (u64 v = 0; v < panel_vectors; ++v) store(sum + v * lanes, load(sum + v * lanes) + total[v]);
}

void scale_columns_of(float* values, const float* factors, u64 rows) {
  for (u64 r = 0; r < rows; ++r)
    for (u64 v = 0; v < panel_vectors; ++v) {
      float* at = values + r * panel_columns + v * lanes;
      store(at, load(at) * load(factors + v * lanes));
    }
}

template <class Step>
void attend_tile(const KeyBlock& block, const QueryTile& tile) {
  constexpr u64 width = Step::width;
  const auto* query = static_cast<const typename Step::Panel*>(tile.query);
  const auto* keys = static_cast<const typename Step::Value*>(block.keys);
  const auto* values = static_cast<const typename Step::Value*>(block.values);
  float before[panel_columns], most[panel_columns], shrink[panel_columns];
  for (u64 v = 0; v < panel_vectors; ++v) {
    const V old = load(tile.most + v * lanes);
    store(before + v * lanes, old);
    store(most + v * lanes, old);
  }
  for_row_groups(block.count, [&](u64 key, auto count) {
    multiply_rows<decltype(count)::value, Step>(query, block.head_dim / width, keys + key * block.head_dim, block.head_dim, width,
                                                block.scores + key * panel_columns, panel_columns, false,
                                                block.adjust ? nullptr : most);
  });
  const float log2_e = 1.44269504088896341f;
  if (block.adjust) adjust_scores(block, most);
  const float factor = block.adjust ? log2_e : block.scale * log2_e;
  bool grown = false;
  for (u64 v = 0; v < panel_vectors; ++v) {
    const V old = load(before + v * lanes), now = load(most + v * lanes);
    const V less = power_of_two<false>((old - now) * factor);
    store(shrink + v * lanes, less);
    store(tile.most + v * lanes, now);
    store(tile.sum + v * lanes, load(tile.sum + v * lanes) * less);
    for (u64 i = 0; i < lanes; ++i) grown |= before[v * lanes + i] != most[v * lanes + i];
  }
  if (grown) scale_columns_of(tile.output, shrink, block.head_dim);
  weigh_scores<width == 2>(block, most, factor, tile.sum);
  for_row_groups(block.head_dim, [&](u64 row, auto count) {
    multiply_rows<decltype(count)::value, Step>(reinterpret_cast<const typename Step::Panel*>(block.scores), (block.count + width - 1) / width,
                                                values + row * width, width, block.head_dim * width,
                                                tile.output + row * panel_columns, panel_columns, true);
  });
}

void transpose_words(const std::uint32_t* from, u64 from_stride, u64 rows, u64 columns, std::uint32_t* to, u64 to_stride) {
  u64 r = 0;
  for (; r + 4 <= rows; r += 4) {
    u64 c = 0;
    for (; c + 4 <= columns; c += 4) {
      const auto* at = reinterpret_cast<const float*>(from + r * from_stride + c);
      __m128 a = _mm_loadu_ps(at), b = _mm_loadu_ps(at + from_stride), d = _mm_loadu_ps(at + 2 * from_stride), e = _mm_loadu_ps(at + 3 * from_stride);
      _MM_TRANSPOSE4_PS(a, b, d, e);
      auto* out = reinterpret_cast<float*>(to + c * to_stride + r);
      _mm_storeu_ps(out, a);
      _mm_storeu_ps(out + to_stride, b);
      _mm_storeu_ps(out + 2 * to_stride, d);
      _mm_storeu_ps(out + 3 * to_stride, e);
    }
    for (; c < columns; ++c)
      for (u64 i = r; i < r + 4; ++i) to[c * to_stride + i] = from[i * from_stride + c];
  }
  for (; r < rows; ++r)
    for (u64 c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
}

void interleave_row(const u16* a, const u16* b, u16* to, u64 count) {
  auto* pairs = reinterpret_cast<std::uint32_t*>(to);
  if (b == nullptr)
    for (u64 i = 0; i < count; ++i) pairs[i] = a[i];
  else
    for (u64 i = 0; i < count; ++i) pairs[i] = a[i] | static_cast<std::uint32_t>(b[i]) << 16;
}

/// Bits of the largest magnitude: NaN counts as larger than everything.
template <class T>
ORRERY_INLINE float magnitude_of(const T* x, u64 count) {
  W most = {};
  const auto look = [&](V values) {
    const W bits = (W)values & 0x7fffffffU;
    most = bits > most ? bits : most;
  };
  u64 i = 0;
  for (; i + lanes <= count; i += lanes) look(load(x + i));
  if (i < count) look(load_part(x + i, count - i));
  std::uint32_t bits = 0;
  for (u64 lane = 0; lane < lanes; ++lane) bits = most[lane] > bits ? most[lane] : bits;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

float quantize_row(ConstRow x, u64 count, u64 padded, std::uint8_t* to) {
  float scale = 0;
  const auto quantize = [&](const auto* values) {
    const float most = magnitude_of(values, count);
    scale = most / 127.0f;
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    const V magic = splat(12582912.0f);
    const auto bytes_of = [&](V v) {
      const V whole = (v * inverse + magic) - magic;
      return __builtin_convertvector(__builtin_convertvector(whole, I) + 128, B);
    };
    u64 i = 0;
    for (; i + lanes <= count; i += lanes) *reinterpret_cast<UnalignedB*>(to + i) = bytes_of(load(values + i));
    if (i < count) {
      const B last = bytes_of(load_part(values + i, count - i));
      for (u64 lane = 0; i < count; ++i, ++lane) to[i] = last[lane];
    }
  };
  if (x.bf16)
    quantize(static_cast<const u16*>(x.data));
  else
    quantize(static_cast<const float*>(x.data));
  for (u64 i = count; i < padded; ++i) to[i] = 128;
  return scale;
}

void dequantize_row(const std::int32_t* sums, const std::int32_t* offsets, const float* scales, float scale, float* to, u64 count) {
  const auto value = [&](I sum, I offset, V scale_of) { return __builtin_convertvector(sum - offset, V) * (scale_of * scale); };
  u64 i = 0;
  for (; i + lanes <= count; i += lanes) store(to + i, value(load(sums + i), load(offsets + i), load(scales + i)));
  for (; i < count; ++i) to[i] = static_cast<float>(sums[i] - offsets[i]) * (scales[i] * scale);
}

#if defined(__AVX512BF16__)
constexpr auto multiply_pairs_tile = multiply_panels<PairByPair>;
constexpr auto attend_pairs_tile = attend_tile<PairByPair>;
#else
constexpr decltype(Simd::multiply_pairs) multiply_pairs_tile = nullptr;
constexpr decltype(Simd::attend_pairs) attend_pairs_tile = nullptr;
#endif

const Simd table = {ORRERY_SIMD_NAME, lanes, panel_columns, convert_row, activate_row, add_row, finish_row, gate_add_row, layer_norm_modulate_row,
                    rms_norm_row, rotate_row, multiply_tile, multiply_pairs_tile, multiply_panels<QuadByQuad>, quantize_row, dequantize_row, attend_tile<OneByOne<float>>, attend_pairs_tile,
                    transpose_words, interleave_row, scale_columns_of};

}  // namespace

const Simd* const ORRERY_SIMD_TABLE = &table;

}  // namespace orrery::cards
