// Attention without a score matrix in memory, and what stands around it.
//
// One job is (slice, head, up to 4 query tiles of 64 rows). Keys come in fixed blocks of 128 in index order; each
// block is packed once for the job, and each query tile merges it into its running softmax:
//
//   scores = q k^T          [64, 128]
//   m' = max(m, scores)     l = l e^(m-m') + sum e^(scores-m')     o = o e^(m-m') + e^(scores-m') v
//
// A query row's bits depend on its head's q row, k and v only. When q, k and v are bf16 and the machine multiplies bf16
// (Simd::multiply_pairs), both products take bf16 operands, e^(..) rounded to bf16 for the second one; otherwise
// operands are widened and products are f32. Sums and the softmax's state are f32 in both.

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
constexpr std::uint64_t query_tiles_max = 4;

struct HeadOfKeys {
  const std::byte* keys;  // Row 0, first column of the head.
  const std::byte* values;
  DType key_dtype, value_dtype;
  std::uint64_t row_stride;  // Elements.
  std::uint64_t head_dim;
};

constexpr std::uint64_t round_up(std::uint64_t count, std::uint64_t unit) { return (count + unit - 1) / unit * unit; }

/// Keys [begin, begin + count) as panels [keys / panel][head_dim][panel]: the right side of q k^T.
void pack_keys(const HeadOfKeys& head, std::uint64_t begin, std::uint64_t count, float* panels, float* row) {
  const auto width = simd().panel_columns;
  for (std::uint64_t j = 0; j < round_up(count, width); ++j) {
    float* to = panels + j / width * width * head.head_dim + j % width;
    if (j >= count) {
      for (std::uint64_t d = 0; d < head.head_dim; ++d) to[d * width] = 0;
      continue;
    }
    convert(head.keys + (begin + j) * head.row_stride * size_of(head.key_dtype), head.key_dtype,
            reinterpret_cast<std::byte*>(row), DType::f32, head.head_dim);
    for (std::uint64_t d = 0; d < head.head_dim; ++d) to[d * width] = row[d];
  }
}

/// Values [begin, begin + count) as panels [head_dim / panel][count][panel]: the right side of weights * v.
void pack_values(const HeadOfKeys& head, std::uint64_t begin, std::uint64_t count, float* panels) {
  const auto width = simd().panel_columns;
  for (std::uint64_t column = 0; column < head.head_dim; column += width) {
    const auto here = std::min(width, head.head_dim - column);
    for (std::uint64_t j = 0; j < count; ++j, panels += width) {
      convert(head.values + ((begin + j) * head.row_stride + column) * size_of(head.value_dtype), head.value_dtype,
              reinterpret_cast<std::byte*>(panels), DType::f32, here);
      for (auto d = here; d < width; ++d) panels[d] = 0;
    }
  }
}

/// Both packings for bf16 products: two neighbours along the summed axis stand together.
void pack_key_pairs(const HeadOfKeys& head, std::uint64_t begin, std::uint64_t count, std::uint16_t* panels) {
  const auto width = simd().panel_columns, pairs = (head.head_dim + 1) / 2;
  for (std::uint64_t j = 0; j < round_up(count, width); ++j) {
    auto* to = panels + (j / width * width * pairs + j % width) * 2;
    const auto* from = reinterpret_cast<const std::uint16_t*>(head.keys) + (begin + j) * head.row_stride;
    for (std::uint64_t p = 0; p < pairs; ++p, to += width * 2) {
      to[0] = j < count ? from[2 * p] : std::uint16_t{0};
      to[1] = j < count && 2 * p + 1 < head.head_dim ? from[2 * p + 1] : std::uint16_t{0};
    }
  }
}

void pack_value_pairs(const HeadOfKeys& head, std::uint64_t begin, std::uint64_t count, std::uint16_t* panels) {
  const auto width = simd().panel_columns, stride = head.row_stride;
  for (std::uint64_t column = 0; column < head.head_dim; column += width) {
    const auto here = std::min(width, head.head_dim - column);
    for (std::uint64_t j = 0; j < count; j += 2, panels += width * 2) {
      const auto* from = reinterpret_cast<const std::uint16_t*>(head.values) + (begin + j) * stride + column;
      for (std::uint64_t d = 0; d < width; ++d) {
        panels[2 * d] = d < here ? from[d] : std::uint16_t{0};
        panels[2 * d + 1] = d < here && j + 1 < count ? from[stride + d] : std::uint16_t{0};
      }
    }
  }
}

/// One job's query rows against blocks of keys; the two arithmetics differ here only.
class WideProducts {
public:
  WideProducts(const HeadOfKeys& head, std::uint64_t rows, Scratch& scratch)
      : head_(head),
        query_(scratch.take_of<float>(rows * head.head_dim)),
        keys_(scratch.take_of<float>(round_up(key_block, simd().panel_columns) * head.head_dim)),
        values_(scratch.take_of<float>(round_up(head.head_dim, simd().panel_columns) * key_block)),
        row_(scratch.take_of<float>(head.head_dim)) {}
  void take_query(std::uint64_t row, const std::byte* from, DType dtype) {
    convert(from, dtype, reinterpret_cast<std::byte*>(query_ + row * head_.head_dim), DType::f32, head_.head_dim);
  }
  void take_keys(std::uint64_t begin, std::uint64_t count) {
    pack_keys(head_, begin, count, keys_, row_);
    pack_values(head_, begin, count, values_);
  }
  void scores(std::uint64_t row, std::uint64_t rows, std::uint64_t count, float* to) {
    simd().multiply(keys_, false, count, head_.head_dim, query_ + row * head_.head_dim, head_.head_dim, rows, to, key_block, false);
  }
  void add_values(const float* weights, std::uint64_t rows, std::uint64_t count, float* output, std::uint64_t stride) {
    simd().multiply(values_, false, head_.head_dim, count, weights, key_block, rows, output, stride, true);
  }

private:
  const HeadOfKeys& head_;
  float *query_, *keys_, *values_, *row_;
};

class PairProducts {
public:
  PairProducts(const HeadOfKeys& head, std::uint64_t rows, Scratch& scratch)
      : head_(head),
        depth_((head.head_dim + 1) / 2 * 2),
        query_(scratch.take_of<std::uint16_t>(rows * depth_)),
        keys_(scratch.take_of<std::uint16_t>(round_up(key_block, simd().panel_columns) * depth_)),
        values_(scratch.take_of<std::uint16_t>(round_up(head.head_dim, simd().panel_columns) * key_block)),
        weights_(scratch.take_of<std::uint16_t>(tile_rows * key_block)) {}
  void take_query(std::uint64_t row, const std::byte* from, DType) {
    std::memcpy(query_ + row * depth_, from, head_.head_dim * sizeof(std::uint16_t));
    if (depth_ > head_.head_dim) query_[row * depth_ + head_.head_dim] = 0;
  }
  void take_keys(std::uint64_t begin, std::uint64_t count) {
    pack_key_pairs(head_, begin, count, keys_);
    pack_value_pairs(head_, begin, count, values_);
  }
  void scores(std::uint64_t row, std::uint64_t rows, std::uint64_t count, float* to) {
    simd().multiply_pairs(keys_, count, depth_ / 2, query_ + row * depth_, depth_, rows, to, key_block, false);
  }
  void add_values(const float* weights, std::uint64_t rows, std::uint64_t count, float* output, std::uint64_t stride) {
    // The softmax wrote zeros up to a whole vector, so an odd last key has a partner.
    simd().convert({weights, false}, {weights_, true}, rows * key_block);
    simd().multiply_pairs(values_, head_.head_dim, (count + 1) / 2, weights_, key_block, rows, output, stride, true);
  }

private:
  const HeadOfKeys& head_;
  const std::uint64_t depth_;
  std::uint16_t *query_, *keys_, *values_, *weights_;
};

/// What all jobs of one call share.
struct AttentionCall {
  Operand q, k, v, o;
  std::uint64_t heads = 0, head_dim = 0;
  const float *bias = nullptr, *mask = nullptr;
  float scale = 1, zero_keys = 0;
};

template <class Products>
void attend(const AttentionCall& call, std::uint64_t slice, std::uint64_t head, std::uint64_t row_begin, std::uint64_t rows,
            Scratch& scratch) {
  const auto queries = call.q.extent(1), keys = call.k.extent(1), width = call.q.extent(2), head_dim = call.head_dim;
  const auto span = std::max(queries, keys);
  const auto head_column = head * head_dim;
  const auto place = [&](const Operand& operand, std::uint64_t row) {
    return operand.data + ((slice * operand.extent(1) + row) * width + head_column) * size_of(operand.dtype);
  };
  const HeadOfKeys source{place(call.k, 0), place(call.v, 0), call.k.dtype, call.v.dtype, width, head_dim};
  Products products(source, rows, scratch);
  for (std::uint64_t r = 0; r < rows; ++r) products.take_query(r, place(call.q, row_begin + r), call.q.dtype);

  const auto stride = round_up(head_dim, simd().panel_columns);
  auto* output = scratch.take_of<float>(rows * stride);
  std::memset(output, 0, rows * stride * sizeof(float));
  auto* most = scratch.take_of<float>(rows);
  auto* sum = scratch.take_of<float>(rows);
  // zero_keys keys of score 0 and value 0 are a first block of their own.
  std::fill(most, most + rows, call.zero_keys > 0 ? 0.0f : -std::numeric_limits<float>::infinity());
  std::fill(sum, sum + rows, call.zero_keys);
  auto* scores = scratch.take_of<float>(tile_rows * key_block);

  for (std::uint64_t key = 0; key < keys; key += key_block) {
    const auto count = std::min(key_block, keys - key);
    products.take_keys(key, count);
    for (std::uint64_t tile = 0; tile < rows; tile += tile_rows) {
      const auto tile_count = std::min<std::uint64_t>(tile_rows, rows - tile);
      products.scores(tile, tile_count, count, scores);
      for (std::uint64_t r = 0; r < tile_count; ++r) {
        const auto row = tile + r;
        SoftmaxRow softmax{scores + r * key_block, call.scale, nullptr, nullptr, most + row, sum + row, output + row * stride};
        if (call.bias != nullptr)
          softmax.bias = call.bias + (slice * call.heads + head) * (2 * span - 1) + key + (span - 1) - (row_begin + row);
        if (call.mask != nullptr) softmax.key_mask = call.mask + key;
        simd().softmax_block(softmax, count, stride);
      }
      products.add_values(scores, tile_count, count, output + tile * stride, stride);
    }
  }
  for (std::uint64_t r = 0; r < rows; ++r) {
    auto* row = output + r * stride;
    simd().scale(row, sum[r] > 0 ? 1.0f / sum[r] : 0.0f, head_dim);
    convert(reinterpret_cast<const std::byte*>(row), DType::f32, place(call.o, row_begin + r), call.o.dtype, head_dim);
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
  const bool pairs = simd().multiply_pairs != nullptr && q.dtype == DType::bf16 && k.dtype == DType::bf16 && v.dtype == DType::bf16;

  const auto tiles = (queries + tile_rows - 1) / tile_rows;
  // More query tiles in a job pack keys less often; fewer keep all threads busy.
  const auto jobs_wanted = std::uint64_t{call.pool.thread_count()} * 4;
  const auto tiles_per_job = std::clamp<std::uint64_t>(slices * heads * tiles / jobs_wanted, 1, query_tiles_max);
  const auto jobs_per_head = (tiles + tiles_per_job - 1) / tiles_per_job;
  call.pool.parallel_for(slices * heads * jobs_per_head, [&](std::uint64_t job, Scratch& scratch) {
    const auto slice = job / jobs_per_head / heads, head = job / jobs_per_head % heads;
    const auto row_begin = job % jobs_per_head * tiles_per_job * tile_rows;
    const auto rows = std::min(queries - row_begin, tiles_per_job * tile_rows);
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
  const auto all_rows = x.extent(0) * rows;
  call.pool.parallel_for((all_rows + tile_rows - 1) / tile_rows, [&](std::uint64_t tile, Scratch& scratch) {
    auto* normed = scratch.take_of<float>(head_dim);
    for (auto i = tile * tile_rows; i < std::min<std::uint64_t>(all_rows, (tile + 1) * tile_rows); ++i)
      for (std::uint64_t column = 0; column < width; column += head_dim) {
        auto* head = x.data + (i * width + column) * size_of(x.dtype);
        simd().rms_norm({head, x.dtype == DType::bf16}, weight, eps, {normed, false}, head_dim);
        if (cos != nullptr) simd().rotate(normed, cos + i % rows * (head_dim / 2), sin + i % rows * (head_dim / 2), head_dim);
        convert(reinterpret_cast<const std::byte*>(normed), DType::f32, head, x.dtype, head_dim);
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
