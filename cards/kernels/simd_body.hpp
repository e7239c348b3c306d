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

ORRERY_INLINE float sum_of(V value) {
  float part[lanes];
  store(part, value);
  for (u64 width = lanes / 2; width > 0; width /= 2)
    for (u64 i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}
ORRERY_INLINE float max_of(V value) {
  float part[lanes];
  store(part, value);
  float most = part[0];
  for (u64 i = 1; i < lanes; ++i) most = part[i] > most ? part[i] : most;
  return most;
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
  r = 1.0f - exp_of(r);
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

void scale_row(float* values, float factor, u64 count) {
  map_row(values, values, count, [&](u64, u64, V x) { return x * factor; });
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

/// Rows of a tile times one panel. Each element is a chain of steps along K, from 0 (or from acc).
template <u64 Rows, class Step>
ORRERY_INLINE void multiply_rows(const typename Step::Panel* panel, u64 steps, const typename Step::Value* x, u64 x_stride,
                                 float* acc, u64 acc_stride, bool accumulate) {
  V sums[Rows][panel_vectors];
  for (u64 r = 0; r < Rows; ++r)
    for (u64 v = 0; v < panel_vectors; ++v) sums[r][v] = accumulate ? load(acc + r * acc_stride + v * lanes) : V{};
  for (u64 k = 0; k < steps; ++k) {
    typename Step::Splat columns[panel_vectors];
    for (u64 v = 0; v < panel_vectors; ++v)
      columns[v] = Step::columns_at(panel + (k * panel_columns + v * lanes) * Step::width);
    for (u64 r = 0; r < Rows; ++r) {
      const auto value = Step::value_at(x + r * x_stride + k * Step::width);
      for (u64 v = 0; v < panel_vectors; ++v) sums[r][v] = Step::step(value, columns[v], sums[r][v]);
    }
  }
  for (u64 r = 0; r < Rows; ++r)
    for (u64 v = 0; v < panel_vectors; ++v) store(acc + r * acc_stride + v * lanes, sums[r][v]);
}

template <class Step>
void multiply_panels(const typename Step::Panel* panels, u64 columns, u64 steps, const typename Step::Value* x, u64 x_stride,
                     u64 rows, float* acc, u64 acc_stride, bool accumulate) {
  for (u64 column = 0; column < columns; column += panel_columns, panels += steps * panel_columns * Step::width) {
    u64 r = 0;
    for (; r + panel_rows <= rows; r += panel_rows)
      multiply_rows<panel_rows, Step>(panels, steps, x + r * x_stride, x_stride, acc + r * acc_stride + column, acc_stride, accumulate);
    const auto* rest = x + r * x_stride;
    float* to = acc + r * acc_stride + column;
    switch (rows - r) {
      case 1: multiply_rows<1, Step>(panels, steps, rest, x_stride, to, acc_stride, accumulate); break;
      case 2: multiply_rows<2, Step>(panels, steps, rest, x_stride, to, acc_stride, accumulate); break;
      case 3: multiply_rows<3, Step>(panels, steps, rest, x_stride, to, acc_stride, accumulate); break;
      case 4: multiply_rows<4, Step>(panels, steps, rest, x_stride, to, acc_stride, accumulate); break;
      case 5: multiply_rows<5, Step>(panels, steps, rest, x_stride, to, acc_stride, accumulate); break;
      default: break;
    }
  }
}

void multiply_tile(const void* panels, bool panels_bf16, u64 columns, u64 K, const float* x, u64 x_stride, u64 rows,
                   float* acc, u64 acc_stride, bool accumulate) {
  if (panels_bf16)
    multiply_panels<OneByOne<u16>>(static_cast<const u16*>(panels), columns, K, x, x_stride, rows, acc, acc_stride, accumulate);
  else
    multiply_panels<OneByOne<float>>(static_cast<const float*>(panels), columns, K, x, x_stride, rows, acc, acc_stride, accumulate);
}

void softmax_block_row(const SoftmaxRow& row, u64 keys, u64 value_columns) {
  const float nothing = -__builtin_inff();
  V most = splat(nothing);
  for (u64 i = 0; i < keys; i += lanes) {
    const u64 n = keys - i < lanes ? keys - i : lanes;
    V score = load(row.scores + i) * row.scale;
    if (row.bias != nullptr) score += load_at(row.bias, i, n);
    if (row.key_mask != nullptr) score = load_at(row.key_mask, i, n) != V{} ? score : splat(nothing);
    score = keep_lanes(score, n, nothing);
    most = score > most ? score : most;
    store(row.scores + i, score);
  }
  const float block_max = max_of(most);
  const float max = block_max > *row.max ? block_max : *row.max;
  if (max == nothing) {  // Every key so far is masked.
    for (u64 i = 0; i < keys; i += lanes) store(row.scores + i, V{});
    return;
  }
  V sum = {};
  for (u64 i = 0; i < keys; i += lanes) {
    const V weight = exp_of(load(row.scores + i) - max);
    sum += weight;
    store(row.scores + i, weight);
  }
  const float shrink = exp_of(splat(*row.max - max))[0];
  *row.sum = *row.sum * shrink + sum_of(sum);
  *row.max = max;
  if (shrink != 1.0f) scale_row(row.values, shrink, value_columns);
}

#if defined(__AVX512BF16__)
constexpr auto multiply_pairs_tile = multiply_panels<PairByPair>;
#else
constexpr decltype(Simd::multiply_pairs) multiply_pairs_tile = nullptr;
#endif

const Simd table = {ORRERY_SIMD_NAME, lanes,      panel_columns, convert_row,         activate_row,
                    add_row,          finish_row, gate_add_row,  scale_row,           layer_norm_modulate_row,
                    rms_norm_row,     rotate_row, multiply_tile, multiply_pairs_tile, softmax_block_row};

}  // namespace

const Simd* const ORRERY_SIMD_TABLE = &table;

}  // namespace orrery::cards
