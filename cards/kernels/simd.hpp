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

/// Query rows of one head, side by side: row i is column i of `columns` = Simd::panel_columns. What attention keeps of them.
struct QueryTile {
  const void* query;  // [head_dim][columns] f32, or in pairs [head_dim / 2][columns][2] bf16.
  float* most;        // [columns] Largest score so far; -FLT_MAX when there is none.
  float* sum;         // [columns] Sum of 2^(..) so far, and ...
  float* output;      // [head_dim][columns] ... of 2^(..) v; both shrink when `most` grows.
};

/// Some keys and values of the same head, and what happens to scores.
struct KeyBlock {
  const void* keys;       // [count][head_dim] f32, or bf16 with an even head_dim.
  const void* values;     // [count][head_dim] f32, or in pairs [ceil(count / 2)][head_dim][2] bf16; a missing partner is 0.
  std::uint64_t count;    // At least 1.
  std::uint64_t head_dim;
  float scale;            // > 0 unless `adjust`: scores are scaled first, then ...
  const float* bias;      // ... bias[column - key] is added, or null, and ...
  const float* key_mask;  // ... keys of mask 0 are taken out, or null. Both only with `adjust`.
  bool adjust;            // The same for all blocks of a tile: `most` is of adjusted, else of raw scores.
  float* scores;          // Working memory: [count][columns].
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
  /// The same for bytes in fours, x unsigned and panels signed, into whole numbers: exact while 4 * quads <= 65536.
  /// panels: [ceil(columns / panel_columns)][quads][panel_columns][4].
  void (*multiply_quads)(const std::int8_t* panels, std::uint64_t columns, std::uint64_t quads, const std::uint8_t* x,
                         std::uint64_t x_stride, std::uint64_t rows, std::int32_t* acc, std::uint64_t acc_stride, bool accumulate);
  /// to = 128 + x / scale, rounded to nearest even, where scale (returned) is the largest |x| / 127; 128 up to `padded`. A row of
  /// zeros has scale 0, one with a NaN scale NaN.
  float (*quantize)(ConstRow x, std::uint64_t count, std::uint64_t padded, std::uint8_t* to);
  /// to = (sums - offsets) * (scales * scale); `to` may be `sums`.
  void (*dequantize)(const std::int32_t* sums, const std::int32_t* offsets, const float* scales, float scale, float* to, std::uint64_t count);
  /// Merges a block of keys into the running softmax of a tile. Columns do not meet; keys are added in order.
  void (*attend)(const KeyBlock& block, const QueryTile& tile);
  /// The same with bf16 operands in pairs, weights rounded to bf16 for the second product; null as multiply_pairs.
  void (*attend_pairs)(const KeyBlock& block, const QueryTile& tile);
  /// to[c][r] = from[r][c] for r < rows, c < columns; 4-byte elements.
  void (*transpose)(const std::uint32_t* from, std::uint64_t from_stride, std::uint64_t rows, std::uint64_t columns,
                    std::uint32_t* to, std::uint64_t to_stride);
  /// to[2 i] = a[i], to[2 i + 1] = b[i], or 0 where b is null.
  void (*interleave)(const std::uint16_t* a, const std::uint16_t* b, std::uint16_t* to, std::uint64_t count);
  /// values[r][c] *= factors[c] for c < panel_columns.
  void (*scale_columns)(float* values, const float* factors, std::uint64_t rows);
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
