// Attention without a score matrix in memory, and what stands around it.
//
// One job is (slice, head, up to 8 tiles of query rows). A tile is as many rows as a panel has columns (64 with AVX-512): a
// row is a column, so that the softmax of a row never crosses vector lanes and keys and values are read as they lie. Keys come
// in fixed blocks of 128 in index order; each tile merges a block into its running softmax (Simd::attend):
//
//   scores = k q^T           [128, 64]
//   m' = max(m, scores)      l = l 2^(m-m') + sum 2^(scores-m')     o^T = o^T 2^(m-m') + v^T 2^(scores-m')   [head_dim, 64]
//
// A query row's bits depend on its head's q row, k and v only. When q, k and v are bf16 and the machine multiplies bf16
// (Simd::attend_pairs), both products take bf16 operands, 2^(..) rounded to bf16 for the second one; otherwise operands
// are widened and products are f32. Sums and the softmax's state are f32 in both. A thread's working memory does not
// depend on the number of queries or keys (but for one row of T5's bias).

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "cards/kernels/ops.hpp"
#include "cards/kernels/simd.hpp"

namespace orrery::cards {
namespace {

constexpr std::uint64_t key_block = 128;
constexpr std::uint64_t query_tiles_max = 8;

constexpr std::uint64_t round_up(std::uint64_t count, std::uint64_t unit) { return (count + unit - 1) / unit * unit; }

/// What all jobs of one call share.
struct AttentionCall {
  Operand q, k, v, o;
  std::uint64_t heads = 0, head_dim = 0;
  const float *bias = nullptr, *mask = nullptr;
  float scale = 1, zero_keys = 0;

  /// First element of a head's row.
  std::byte* place(const Operand& operand, std::uint64_t slice, std::uint64_t head, std::uint64_t row) const {
    return operand.data + ((slice * operand.extent(1) + row) * operand.extent(2) + head * head_dim) * size_of(operand.dtype);
  }
  std::uint64_t row_bytes(const Operand& operand) const { return operand.extent(2) * size_of(operand.dtype); }
};

/// How operands are laid out for f32 products ...
struct WideProducts {
  using Element = float;
  static constexpr std::uint64_t group = 1;  // Neighbours along the summed axis that lie together.
  static void attend(const KeyBlock& block, const QueryTile& tile) { simd().attend(block, tile); }
  static void take_row(const std::byte* from, DType dtype, float* to, std::uint64_t head_dim) {
    convert(from, dtype, reinterpret_cast<std::byte*>(to), DType::f32, head_dim);
  }
  static void take_values(const std::byte* from, std::uint64_t stride, DType dtype, std::uint64_t count, float* to, std::uint64_t head_dim) {
    for (std::uint64_t j = 0; j < count; ++j) take_row(from + j * stride, dtype, to + j * head_dim, head_dim);
  }
};

/// ... and for bf16 products.
struct PairProducts {
  using Element = std::uint16_t;
  static constexpr std::uint64_t group = 2;
  static void attend(const KeyBlock& block, const QueryTile& tile) { simd().attend_pairs(block, tile); }
  static void take_row(const std::byte* from, DType, std::uint16_t* to, std::uint64_t head_dim) {
    std::memcpy(to, from, head_dim * sizeof(std::uint16_t));
  }
  static void take_values(const std::byte* from, std::uint64_t stride, DType, std::uint64_t count, std::uint16_t* to, std::uint64_t head_dim) {
    for (std::uint64_t j = 0; j < count; j += 2) {
      const auto* a = reinterpret_cast<const std::uint16_t*>(from + j * stride);
      const auto* b = j + 1 < count ? reinterpret_cast<const std::uint16_t*>(from + (j + 1) * stride) : nullptr;
      simd().interleave(a, b, to + j * head_dim, head_dim);
    }
  }
};

template <class Products>
void attend(const AttentionCall& call, std::uint64_t slice, std::uint64_t head, std::uint64_t row_begin, std::uint64_t rows,
            Scratch& scratch) {
  using Element = typename Products::Element;
  const auto queries = call.q.extent(1), keys = call.k.extent(1), head_dim = call.head_dim, columns = simd().panel_columns;
  const auto span = std::max(queries, keys);
  const auto tiles = round_up(rows, columns) / columns;

  // Queries: rows as they are, then turned so that a row is a column of 4-byte elements. Missing rows are zero.
  auto* row_memory = scratch.take_of<float>(columns * head_dim);
  auto* queries_turned = scratch.take_of<Element>(tiles * columns * head_dim);
  const auto words = head_dim / Products::group;
  for (std::uint64_t tile = 0; tile < tiles; ++tile) {
    auto* taken = reinterpret_cast<Element*>(row_memory);
    const auto count = std::min(columns, rows - tile * columns);
    for (std::uint64_t r = 0; r < count; ++r)
      Products::take_row(call.place(call.q, slice, head, row_begin + tile * columns + r), call.q.dtype, taken + r * head_dim, head_dim);
    std::memset(taken + count * head_dim, 0, (columns - count) * head_dim * sizeof(Element));
    simd().transpose(reinterpret_cast<const std::uint32_t*>(taken), words, columns, words,
                     reinterpret_cast<std::uint32_t*>(queries_turned + tile * columns * head_dim), columns);
  }
  // The bias of (row, key) lies at key - row: backwards it can be read along rows. Missing rows read zeros.
  const float* bias = nullptr;
  if (call.bias != nullptr) {
    const auto* from = call.bias + (slice * call.heads + head) * (2 * span - 1);
    auto* backwards = scratch.take_of<float>(2 * span - 1 + columns);
    std::reverse_copy(from, from + (2 * span - 1), backwards);
    std::fill_n(backwards + 2 * span - 1, columns, 0.0f);
    bias = backwards + span - 1 + row_begin;  // Of key 0 and the first row.
  }

  auto* output = scratch.take_of<float>(tiles * head_dim * columns);
  std::memset(output, 0, tiles * head_dim * columns * sizeof(float));
  auto* most = scratch.take_of<float>(tiles * columns);
  auto* sum = scratch.take_of<float>(tiles * columns);
  // zero_keys keys of score 0 and value 0 are a first block of their own.
  std::fill_n(most, tiles * columns, call.zero_keys > 0 ? 0.0f : -std::numeric_limits<float>::max());
  std::fill_n(sum, tiles * columns, call.zero_keys);
  auto* key_rows = scratch.take_of<Element>(key_block * head_dim);
  auto* value_rows = scratch.take_of<Element>(key_block * head_dim);
  KeyBlock block{};
  block.keys = key_rows;
  block.values = value_rows;
  block.head_dim = head_dim;
  block.scale = call.scale;
  block.adjust = call.bias != nullptr || call.mask != nullptr || !(call.scale > 0);
  block.scores = scratch.take_of<float>(key_block * columns);

  for (std::uint64_t key = 0; key < keys; key += key_block) {
    block.count = std::min(key_block, keys - key);
    for (std::uint64_t j = 0; j < block.count; ++j)
      Products::take_row(call.place(call.k, slice, head, key + j), call.k.dtype, key_rows + j * head_dim, head_dim);
    Products::take_values(call.place(call.v, slice, head, key), call.row_bytes(call.v), call.v.dtype, block.count, value_rows, head_dim);
    if (call.mask != nullptr) block.key_mask = call.mask + key;
    for (std::uint64_t tile = 0; tile < tiles; ++tile) {
      if (bias != nullptr) block.bias = bias + tile * columns - key;
      Products::attend(block, {queries_turned + tile * columns * head_dim, most + tile * columns, sum + tile * columns,
                               output + tile * columns * head_dim});
    }
  }
  for (std::uint64_t tile = 0; tile < tiles; ++tile) {
    auto* factors = sum + tile * columns;
    for (std::uint64_t i = 0; i < columns; ++i) factors[i] = factors[i] > 0 ? 1.0f / factors[i] : 0.0f;
    auto* turned = output + tile * columns * head_dim;
    simd().scale_columns(turned, factors, head_dim);
    simd().transpose(reinterpret_cast<const std::uint32_t*>(turned), columns, head_dim, columns,
                     reinterpret_cast<std::uint32_t*>(row_memory), head_dim);
    for (std::uint64_t r = 0; r < std::min(columns, rows - tile * columns); ++r)
      convert(reinterpret_cast<const std::byte*>(row_memory + r * head_dim), DType::f32,
              call.place(call.o, slice, head, row_begin + tile * columns + r), call.o.dtype, head_dim);
  }
}

}  // namespace

Status attention(const Call& call) {
  const bool has_bias = call.command.count(Attr::has_bias) != 0, has_mask = call.command.count(Attr::has_mask) != 0;
  ORRERY_OPERANDS(call.inputs.size() == std::size_t{3} + (has_bias ? 1 : 0) + (has_mask ? 1 : 0) && call.outputs.size() == 1);
  const auto &q = call.inputs[0], &k = call.inputs[1], &v = call.inputs[2], &o = call.outputs[0];
  for (const auto* operand : {&q, &k, &v, &o})
    ORRERY_OPERANDS(operand->rank() == 3 && (operand->dtype == DType::f32 || operand->dtype == DType::bf16));
  const auto slices = q.extent(0), queries = q.extent(1), width = q.extent(2), keys = k.extent(1);
  ORRERY_OPERANDS(*k.shape == *v.shape && *o.shape == *q.shape && k.extent(0) == slices && k.extent(2) == width);
  const auto head_dim = call.command.count(Attr::head_dim);
  ORRERY_OPERANDS(head_dim > 0 && width % head_dim == 0);
  const auto heads = width / head_dim;
  const auto span = std::max(queries, keys);
  const float* bias = nullptr;
  if (has_bias) {
    ORRERY_OPERANDS(call.inputs[3].dtype == DType::f32 && call.inputs[3].count() == slices * heads * (2 * span - 1));
    bias = call.inputs[3].as<const float>();
  }
  const float* mask = nullptr;
  if (has_mask) {
    ORRERY_OPERANDS(call.inputs.back().dtype == DType::f32 && call.inputs.back().count() == keys);
    mask = call.inputs.back().as<const float>();
  }
  AttentionCall shared{q, k, v, o, heads, head_dim, bias, mask, static_cast<float>(call.command.attr(Attr::scale, 1)),
                       static_cast<float>(call.command.attr(Attr::zero_keys))};
  const bool pairs = simd().attend_pairs != nullptr && head_dim % 2 == 0 && q.dtype == DType::bf16 && k.dtype == DType::bf16 &&
                     v.dtype == DType::bf16;

  // More query tiles in a job read keys less often; fewer keep all threads busy. A head's jobs are about equal.
  const auto columns = simd().panel_columns;
  const auto tiles = (queries + columns - 1) / columns;
  const auto jobs_wanted = std::uint64_t{call.pool.thread_count()} * 8;
  const auto tiles_most = std::clamp<std::uint64_t>(slices * heads * tiles / jobs_wanted, 1, query_tiles_max);
  const auto jobs_per_head = (tiles + tiles_most - 1) / tiles_most;
  call.pool.parallel_for(slices * heads * jobs_per_head, [&](std::uint64_t job, Scratch& scratch) {
    const auto slice = job / jobs_per_head / heads, head = job / jobs_per_head % heads;
    const auto part = job % jobs_per_head;
    const auto row_begin = tiles * part / jobs_per_head * columns;
    const auto rows = std::min(queries, tiles * (part + 1) / jobs_per_head * columns) - row_begin;
    if (pairs)
      attend<PairProducts>(shared, slice, head, row_begin, rows, scratch);
    else
      attend<WideProducts>(shared, slice, head, row_begin, rows, scratch);
  });
  return Done{};
}

Status head_norm_rope(const Call& call) {
  ORRERY_OPERANDS((call.inputs.size() == 1 || call.inputs.size() == 3) && call.outputs.size() == 1);
  const auto& x = call.outputs[0];
  ORRERY_OPERANDS(call.inputs[0].data == x.data && *call.inputs[0].shape == *x.shape && x.rank() == 3);
  ORRERY_OPERANDS(x.dtype == DType::f32 || x.dtype == DType::bf16);
  const auto rows = x.extent(1), width = x.extent(2);
  std::uint64_t head_dim = call.command.count(Attr::head_dim);
  const float* weight = nullptr;
  if (!call.weights.empty()) {
    const auto length = call.weights[0].spec->rows() * call.weights[0].spec->columns();
    if (head_dim == 0) head_dim = length;
    ORRERY_OPERANDS(length == head_dim && call.weights[0].data != nullptr);
    weight = call.weights[0].floats();
  }
  ORRERY_OPERANDS(head_dim > 0 && width % head_dim == 0);
  const float *cos = nullptr, *sin = nullptr;
  if (call.inputs.size() == 3) {
    ORRERY_OPERANDS(head_dim % 2 == 0 && call.inputs[1].dtype == DType::f32 && call.inputs[2].dtype == DType::f32);
    ORRERY_OPERANDS(call.inputs[1].count() == rows * head_dim / 2 && call.inputs[2].count() == rows * head_dim / 2);
    cos = call.inputs[1].as<const float>();
    sin = call.inputs[2].as<const float>();
  }
  const auto eps = static_cast<float>(call.command.attr(Attr::eps));
  const auto part = call.rows_of(rows);
  const auto all_rows = x.extent(0) * part.count();
  call.pool.parallel_for((all_rows + tile_rows - 1) / tile_rows, [&](std::uint64_t tile, Scratch& scratch) {
    auto* normed = scratch.take_of<float>(head_dim);
    for (auto at = tile * tile_rows; at < std::min<std::uint64_t>(all_rows, (tile + 1) * tile_rows); ++at) {
      const auto i = at / part.count() * rows + part.begin + at % part.count();
      for (std::uint64_t column = 0; column < width; column += head_dim) {
        auto* head = x.data + (i * width + column) * size_of(x.dtype);
        simd().rms_norm({head, x.dtype == DType::bf16}, weight, eps, {normed, false}, head_dim);
        if (cos != nullptr) simd().rotate(normed, cos + i % rows * (head_dim / 2), sin + i % rows * (head_dim / 2), head_dim);
        convert(reinterpret_cast<const std::byte*>(normed), DType::f32, head, x.dtype, head_dim);
      }
    }
  });
  return Done{};
}

Status relative_bias(const Call& call) {
  ORRERY_OPERANDS(call.weights.size() == 1 && call.outputs.size() == 1 && call.outputs[0].dtype == DType::f32);
  const auto& table = call.weights[0];
  const auto rows = call.command.count(Attr::rows), heads = call.command.count(Attr::heads);
  const auto buckets = call.command.count(Attr::buckets), max_distance = call.command.count(Attr::max_distance);
  ORRERY_OPERANDS(rows > 0 && heads > 0 && buckets >= 4 && max_distance > buckets / 4);
  ORRERY_OPERANDS(table.data != nullptr && table.spec->rows() == buckets);
  const auto columns = table.spec->columns(), distances = 2 * rows - 1;
  const auto& slices = call.command.slices;
  ORRERY_OPERANDS(call.outputs[0].count() == slices.size() * heads * distances);
  const auto half = buckets / 2, exact = half / 2;
  std::vector<float> row(columns);
  std::vector<std::uint64_t> bucket_of(distances);
  for (std::uint64_t i = 0; i < distances; ++i) {
    const auto distance = static_cast<std::int64_t>(i) - static_cast<std::int64_t>(rows - 1);  // key - query
    const auto apart = static_cast<std::uint64_t>(std::abs(distance));
    std::uint64_t bucket = apart;
    if (apart >= exact) {
      // As the reference: logarithms in f32, cut towards zero.
      const float ratio = std::log(static_cast<float>(apart) / static_cast<float>(exact)) /
                          static_cast<float>(std::log(static_cast<double>(max_distance) / static_cast<double>(exact))) *
                          static_cast<float>(half - exact);
      bucket = std::min(half - 1, exact + static_cast<std::uint64_t>(ratio));
    }
    bucket_of[i] = bucket + (distance > 0 ? half : 0);
  }
  auto* to = call.outputs[0].as<float>();
  for (std::uint64_t i = 0; i < distances; ++i) {
    convert(table.data + bucket_of[i] * columns * size_of(table.spec->dtype), table.spec->dtype,
            reinterpret_cast<std::byte*>(row.data()), DType::f32, columns);
    for (std::size_t s = 0; s < slices.size(); ++s)
      for (std::uint64_t h = 0; h < heads; ++h) {
        ORRERY_OPERANDS(slices[s] * heads + h < columns);
        to[(s * heads + h) * distances + i] = row[slices[s] * heads + h];
      }
  }
  return Done{};
}

}  // namespace orrery::cards
