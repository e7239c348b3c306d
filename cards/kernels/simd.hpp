// The vector kernels under the operations, as one table per instruction set.
//
// simd_body.hpp is compiled four times (avx512_bf16, avx512, avx2, sse2); `simd()` picks one table per process, because the
// choice decides bits (lane count, fused multiply-add). Within a table an element's bits never depend on where
// it lies: tails go through the same vector code as full vectors, and every sum has one fixed order.
//
// Rows here are contiguous; bf16 rows are marked by a flag. Nothing allocates, throws or checks.

#pragma once

#include <cstdint>

namespace orrery::cards {

/// f32 or bf16 row elements.
struct ConstRow {
  const void* data;
  bool bf16;
};
struct Row {
  void* data;
  bool bf16;
};

/// One query row's running softmax state and what is added to its scores.
struct SoftmaxRow {
  float* scores;          // In: q k^T of this block; out: exp(score - max).
  float scale;
  const float* bias;      // One per key of the block, or null.
  const float* key_mask;  // 0 removes the key; or null.
  float* max;             // Running maximum and sum.
  float* sum;
  float* values;          // Running un-normalised output, rescaled when the maximum grows.
};

struct Simd {
  const char* name;
  std::uint64_t lanes;
  std::uint64_t panel_columns;

  void (*convert)(ConstRow from, Row to, std::uint64_t count);
  /// activation: cards::Activation as a number.
  void (*activate)(ConstRow from, Row to, std::uint64_t count, int activation);
  void (*add)(ConstRow a, ConstRow b, Row to, std::uint64_t count);
  /// to = act(acc + bias); bias may be null.
  void (*finish)(const float* acc, const float* bias, Row to, std::uint64_t count, int activation);
  /// h += gate * y.
  void (*gate_add)(float* h, const float* gate, ConstRow y, std::uint64_t count);
  void (*scale)(float* values, float factor, std::uint64_t count);
  void (*layer_norm_modulate)(const float* x, const float* shift, const float* scale, float eps, Row to, std::uint64_t count);
  /// weight may be null (ones).
  void (*rms_norm)(ConstRow x, const float* weight, float eps, Row to, std::uint64_t count);
  /// Halves j, j + count/2 of x rotated in place.
  void (*rotate)(float* x, const float* cos, const float* sin, std::uint64_t count);
  /// acc[rows][acc_stride] (+)= x[rows][x_stride] * panels, K long, sequential fused (or plain) adds over k.
  /// panels: [ceil(columns / panel_columns)][K][panel_columns]; acc has that many columns, rounded up.
  void (*multiply)(const void* panels, bool panels_bf16, std::uint64_t columns, std::uint64_t K, const float* x,
                   std::uint64_t x_stride, std::uint64_t rows, float* acc, std::uint64_t acc_stride, bool accumulate);
  /// The same for bf16 operands in pairs along k, two products an instruction; null without such an instruction.
  /// panels: [ceil(columns / panel_columns)][pairs][panel_columns][2]; x rows of 2 * pairs elements used.
  void (*multiply_pairs)(const std::uint16_t* panels, std::uint64_t columns, std::uint64_t pairs, const std::uint16_t* x,
                         std::uint64_t x_stride, std::uint64_t rows, float* acc, std::uint64_t acc_stride, bool accumulate);
  /// Softmax of one block of `keys` scores; the buffers of scores are padded to whole vectors.
  void (*softmax_block)(const SoftmaxRow& row, std::uint64_t keys, std::uint64_t value_columns);
};

/// The table of this process.
const Simd& simd();

/// Whether this machine can run a table.
bool can_run(const Simd& table);

/// Null when the compiler was not asked for that instruction set.
extern const Simd* const simd_avx512_bf16;
extern const Simd* const simd_avx512;
extern const Simd* const simd_avx2;
extern const Simd* const simd_sse2;

}  // namespace orrery::cards
