// Kernels of the video autoencoder: convolutions, group norm, attention over time, sampling, patches.
//
// Video lies channels last, [T][H][W][C]: a pixel is a row of C, and everything is computed pixel by pixel. A
// convolution gathers the neighbours of 64 output pixels at a time into a compact tile [64, 9C] or [64, 3C] (im2col, never
// the whole matrix) and hands it to the same tile product as a linear layer. So the bits of a pixel do not depend
// on how many frames a call has: decoding frame by frame gives what decoding the clip gives.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "cards/kernels/kernels.hpp"
#include "cards/kernels/simd.hpp"

namespace orrery::cards {

namespace {

/// Pixels of one tile of the element-wise kernels, and of one partial sum of group norm. Part of the numerics.
constexpr std::uint64_t block_pixels = 256;

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16; }

ConstRow row_of(const Operand& operand, std::uint64_t element) {
  return {operand.data + element * size_of(operand.dtype), operand.dtype == DType::bf16};
}
Row target_row_of(const Operand& operand, std::uint64_t element) {
  return {operand.data + element * size_of(operand.dtype), operand.dtype == DType::bf16};
}

float element_of(const Operand& operand, std::uint64_t index) {
  return operand.dtype == DType::f32 ? operand.as<float>()[index] : f32_of_bf16(operand.as<std::uint16_t>()[index]);
}
void set_element(const Operand& operand, std::uint64_t index, float value) {
  if (operand.dtype == DType::f32)
    operand.as<float>()[index] = value;
  else
    operand.as<std::uint16_t>()[index] = bf16_of(value);
}

/// [T,H,W,C] of an operand of rank 4.
struct Extents {
  std::uint64_t frames, height, width, channels;
  explicit Extents(const Operand& x) : frames(x.extent(0)), height(x.extent(1)), width(x.extent(2)), channels(x.extent(3)) {}
  std::uint64_t pixels() const { return height * width; }
};

std::uint64_t blocks_of(std::uint64_t count) { return (count + block_pixels - 1) / block_pixels; }

// --- convolutions ----------------------------------------------------------------------------------------

/// Copies `count` elements into a tile of the matrix's dtype.
void gather(const Operand& x, std::uint64_t element, std::byte* tile, DType dtype, std::uint64_t count) {
  const auto* from = x.data + element * size_of(x.dtype);
  if (x.dtype == dtype)
    std::memcpy(tile, from, count * size_of(dtype));
  else
    convert(from, x.dtype, tile, dtype, count);
}

Status conv_spatial(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.weights.size() == 2);
  ORRERY_OPERANDS(call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4 && call.weights[0].matrix != nullptr);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const auto& matrix = *call.weights[0].matrix;
  const Extents in(x), out(y);
  const auto stride = call.command.count(Attr::stride, 1);
  ORRERY_OPERANDS(is_float(x.dtype) && is_float(y.dtype) && (stride == 1 || stride == 2));
  ORRERY_OPERANDS(matrix.K() == 9 * in.channels && matrix.N() == out.channels && out.frames == in.frames);
  ORRERY_OPERANDS(stride == 1 ? out.height == in.height && out.width == in.width
                              : out.height == in.height / 2 && out.width == in.width / 2);
  // Stride 1 pads on all sides, stride 2 only right and below.
  const std::int64_t lead = stride == 1 ? 1 : 0;
  const auto element = size_of(matrix.dtype());
  const auto height = static_cast<std::int64_t>(in.height), width = static_cast<std::int64_t>(in.width);
  const auto write = [&](std::uint64_t begin, std::uint32_t count, std::byte* tile, Scratch&) {
    for (std::uint32_t r = 0; r < count; ++r) {
      const auto row = begin + r;
      const auto frame = row / out.pixels();
      const auto left = static_cast<std::int64_t>(row % out.width * stride) - lead;
      const auto top = static_cast<std::int64_t>(row % out.pixels() / out.width * stride) - lead;
      // The three neighbours of one line lie side by side in memory, as in the tile.
      const auto first = std::max<std::int64_t>(left, 0), last = std::min(left + 3, width);
      for (std::int64_t ky = 0; ky < 3; ++ky, tile += 3 * in.channels * element) {
        const auto line = top + ky;
        if (line < 0 || line >= height) {
          std::memset(tile, 0, 3 * in.channels * element);
          continue;
        }
        const auto before = static_cast<std::uint64_t>(first - left) * in.channels;
        const auto inside = static_cast<std::uint64_t>(last - first) * in.channels;
        std::memset(tile, 0, before * element);
        gather(x, ((frame * in.height + static_cast<std::uint64_t>(line)) * in.width + static_cast<std::uint64_t>(first)) * in.channels,
               tile + before * element, matrix.dtype(), inside);
        std::memset(tile + (before + inside) * element, 0, (3 * in.channels - before - inside) * element);
      }
    }
  };
  product(call.pool, matrix, out.frames * out.pixels(), write,
          {y.data, y.dtype, out.channels, call.weights[1].floats(), Activation::none});
  return Done{};
}

Status conv_temporal(const Call& call) {
  ORRERY_OPERANDS((call.inputs.size() == 1 || call.inputs.size() == 2) && call.outputs.size() == 1 && call.weights.size() == 2);
  ORRERY_OPERANDS(call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4 && call.weights[0].matrix != nullptr);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const auto& matrix = *call.weights[0].matrix;
  const Extents in(x), out(y);
  const auto stride = call.command.count(Attr::stride, 1);
  const Operand* history = call.inputs.size() == 2 ? &call.inputs[1] : nullptr;
  ORRERY_OPERANDS(is_float(x.dtype) && is_float(y.dtype) && (stride == 1 || (stride == 2 && history == nullptr)));
  ORRERY_OPERANDS(matrix.K() == 3 * in.channels && matrix.N() == out.channels && in.frames > 0);
  ORRERY_OPERANDS(out.height == in.height && out.width == in.width && out.frames == (in.frames - 1) / stride + 1);
  ORRERY_OPERANDS(history == nullptr || (history->dtype == x.dtype && history->count() == 2 * in.pixels() * in.channels));
  const bool first = history == nullptr || call.command.count(Attr::first, 1) != 0;
  const auto element = size_of(matrix.dtype());
  const auto frame_elements = in.pixels() * in.channels;
  const auto write = [&](std::uint64_t begin, std::uint32_t count, std::byte* tile, Scratch&) {
    for (std::uint32_t r = 0; r < count; ++r) {
      const auto frame = static_cast<std::int64_t>((begin + r) / in.pixels() * stride);
      const auto pixel = (begin + r) % in.pixels() * in.channels;
      for (std::int64_t kt = 0; kt < 3; ++kt, tile += in.channels * element) {
        const auto source = frame + kt - 2;
        if (source < 0 && !first)
          gather(*history, static_cast<std::uint64_t>(source + 2) * frame_elements + pixel, tile, matrix.dtype(), in.channels);
        else
          gather(x, static_cast<std::uint64_t>(std::max<std::int64_t>(source, 0)) * frame_elements + pixel, tile, matrix.dtype(),
                 in.channels);
      }
    }
  };
  product(call.pool, matrix, out.frames * out.pixels(), write,
          {y.data, y.dtype, out.channels, call.weights[1].floats(), Activation::none});

  if (history != nullptr) {
    const auto bytes = frame_elements * size_of(x.dtype);
    if (in.frames >= 2)
      std::memcpy(history->data, x.data + (in.frames - 2) * bytes, bytes);
    else
      std::memcpy(history->data, first ? x.data : history->data + bytes, bytes);
    std::memcpy(history->data + bytes, x.data + (in.frames - 1) * bytes, bytes);
  }
  return Done{};
}

// --- norm and attention over time ------------------------------------------------------------------------

struct Sums {
  double value = 0, square = 0;
};

/// Sums of one block, in sixteen lanes over the elements that are then added pairwise.
Sums sums_of(const float* values, std::uint64_t count) {
  constexpr std::uint64_t lanes = 16;
  std::array<double, lanes> value{}, square{};
  std::uint64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (std::uint64_t lane = 0; lane < lanes; ++lane) {
      const auto v = static_cast<double>(values[i + lane]);
      value[lane] += v;
      square[lane] += v * v;
    }
  for (std::uint64_t lane = 0; i < count; ++i, ++lane) {
    const auto v = static_cast<double>(values[i]);
    value[lane] += v;
    square[lane] += v * v;
  }
  for (std::uint64_t half = lanes / 2; half > 0; half /= 2)
    for (std::uint64_t lane = 0; lane < half; ++lane) {
      value[lane] += value[lane + half];
      square[lane] += square[lane + half];
    }
  return {value[0], square[0]};
}

/// Adds the blocks of one frame along a binary tree; writes into `sums`.
Sums tree_sum(Sums* sums, std::uint64_t count) {
  for (std::uint64_t step = 1; step < count; step *= 2)
    for (std::uint64_t i = 0; i + step < count; i += 2 * step) {
      sums[i].value += sums[i + step].value;
      sums[i].square += sums[i + step].square;
    }
  return sums[0];
}

Status group_norm(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.weights.size() == 2);
  ORRERY_OPERANDS(call.inputs[0].rank() == 4 && *call.inputs[0].shape == *call.outputs[0].shape);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const Extents size(x);
  ORRERY_OPERANDS(is_float(x.dtype) && is_float(y.dtype) && size.pixels() > 0);
  ORRERY_OPERANDS(call.weights[0].spec == nullptr || call.weights[0].spec->rows() * call.weights[0].spec->columns() == size.channels);
  const auto blocks = blocks_of(size.pixels());
  const auto first_of = [&](std::uint64_t tile) { return (tile / blocks * size.pixels() + tile % blocks * block_pixels) * size.channels; };
  const auto count_of = [&](std::uint64_t tile) {
    return std::min(block_pixels, size.pixels() - tile % blocks * block_pixels) * size.channels;
  };

  std::vector<Sums> sums(size.frames * blocks);
  call.pool.parallel_for(sums.size(), [&](std::uint64_t tile, Scratch& scratch) {
    const auto first = first_of(tile), count = count_of(tile);
    const float* values = x.dtype == DType::f32 ? x.as<float>() + first : nullptr;
    if (values == nullptr) {
      auto* copy = scratch.take_of<float>(count);
      convert(x.data + first * 2, x.dtype, reinterpret_cast<std::byte*>(copy), DType::f32, count);
      values = copy;
    }
    sums[tile] = sums_of(values, count);
  });
  struct Moments {
    float mean, inverse;
  };
  std::vector<Moments> moments(size.frames);
  for (std::uint64_t frame = 0; frame < size.frames; ++frame) {
    const auto total = tree_sum(&sums[frame * blocks], blocks);
    const auto n = static_cast<double>(size.pixels() * size.channels);
    const double mean = total.value / n;
    const double variance = std::max(0.0, total.square / n - mean * mean);
    moments[frame] = {static_cast<float>(mean), static_cast<float>(1 / std::sqrt(variance + call.command.attr(Attr::eps, 1e-6)))};
  }

  const float* weight = call.weights[0].floats();
  const float* bias = call.weights[1].floats();
  const auto activation = static_cast<int>(call.activation());
  call.pool.parallel_for(sums.size(), [&](std::uint64_t tile, Scratch& scratch) {
    const auto first = first_of(tile), count = count_of(tile);
    const auto [mean, inverse] = moments[tile / blocks];
    auto* row = scratch.take_of<float>(size.channels);
    for (std::uint64_t at = 0; at < count; at += size.channels) {
      simd().convert(row_of(x, first + at), {row, false}, size.channels);
      for (std::uint64_t c = 0; c < size.channels; ++c) row[c] = (row[c] - mean) * inverse * weight[c] + bias[c];
      simd().activate({row, false}, target_row_of(y, first + at), size.channels, activation);
    }
  });
  return Done{};
}

/// Sixteen lanes, added pairwise.
float dot(const float* a, const float* b, std::uint64_t count) {
  constexpr std::uint64_t lanes = 16;
  std::array<float, lanes> sum{};
  std::uint64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (std::uint64_t lane = 0; lane < lanes; ++lane) sum[lane] += a[i + lane] * b[i + lane];
  for (std::uint64_t lane = 0; i < count; ++i, ++lane) sum[lane] += a[i] * b[i];
  for (std::uint64_t half = lanes / 2; half > 0; half /= 2)
    for (std::uint64_t lane = 0; lane < half; ++lane) sum[lane] += sum[lane + half];
  return sum[0];
}

Status temporal_attention(const Call& call) {
  ORRERY_OPERANDS((call.inputs.size() == 3 || call.inputs.size() == 5) && call.outputs.size() == 1);
  for (const auto& input : call.inputs) ORRERY_OPERANDS(input.rank() == 4 && is_float(input.dtype));
  const auto& q = call.inputs[0];
  const auto& o = call.outputs[0];
  const Extents size(q);
  ORRERY_OPERANDS(*call.inputs[1].shape == *q.shape && *call.inputs[2].shape == *q.shape && *o.shape == *q.shape && is_float(o.dtype));
  Operand keys = call.inputs[1], values = call.inputs[2];
  const auto frame_elements = size.pixels() * size.channels;
  std::uint64_t earlier = 0;  // Frames already in the caches.
  if (call.inputs.size() == 5) {
    // The first latent frame is one frame here, each later one as many as this call has.
    const double latent_frame = call.scalar(Scalar::latent_frame);
    ORRERY_OPERANDS(latent_frame >= 0 && latent_frame <= static_cast<double>(call.inputs[3].extent(0)));
    if (latent_frame >= 1) earlier = 1 + (static_cast<std::uint64_t>(latent_frame) - 1) * size.frames;
    ORRERY_OPERANDS(earlier + size.frames <= call.inputs[3].extent(0));
    ORRERY_OPERANDS(call.inputs[3].count() == call.inputs[3].extent(0) * frame_elements && *call.inputs[3].shape == *call.inputs[4].shape);
    ORRERY_OPERANDS(call.inputs[3].dtype == keys.dtype && call.inputs[4].dtype == values.dtype);
    const auto bytes = frame_elements * size_of(keys.dtype);
    std::memcpy(call.inputs[3].data + earlier * bytes, keys.data, size.frames * bytes);
    const auto value_bytes = frame_elements * size_of(values.dtype);
    std::memcpy(call.inputs[4].data + earlier * value_bytes, values.data, size.frames * value_bytes);
    keys = call.inputs[3];
    values = call.inputs[4];
  }
  const auto total = earlier + size.frames;
  const auto scale = static_cast<float>(call.command.attr(Attr::scale, 1));
  const auto C = size.channels;
  constexpr std::uint64_t tile_pixels = 32;
  call.pool.parallel_for((size.pixels() + tile_pixels - 1) / tile_pixels, [&](std::uint64_t tile, Scratch& scratch) {
    auto* k = scratch.take_of<float>(total * C);
    auto* v = scratch.take_of<float>(total * C);
    auto* query = scratch.take_of<float>(C);
    auto* sum = scratch.take_of<float>(C);
    auto* weight = scratch.take_of<float>(total);
    const auto end = std::min(size.pixels(), (tile + 1) * tile_pixels);
    for (auto pixel = tile * tile_pixels; pixel < end; ++pixel) {
      for (std::uint64_t t = 0; t < total; ++t) {
        simd().convert(row_of(keys, t * frame_elements + pixel * C), {k + t * C, false}, C);
        simd().convert(row_of(values, t * frame_elements + pixel * C), {v + t * C, false}, C);
      }
      for (std::uint64_t t = 0; t < size.frames; ++t) {
        const auto seen = earlier + t + 1;
        simd().convert(row_of(q, t * frame_elements + pixel * C), {query, false}, C);
        float largest = -INFINITY;
        for (std::uint64_t j = 0; j < seen; ++j) {
          weight[j] = dot(query, k + j * C, C) * scale;
          largest = std::max(largest, weight[j]);
        }
        float denominator = 0;
        std::fill(sum, sum + C, 0.0F);
        for (std::uint64_t j = 0; j < seen; ++j) {
          const float factor = std::exp(weight[j] - largest);
          denominator += factor;
          for (std::uint64_t c = 0; c < C; ++c) sum[c] += factor * v[j * C + c];
        }
        for (std::uint64_t c = 0; c < C; ++c) sum[c] /= denominator;
        simd().convert({sum, false}, target_row_of(o, t * frame_elements + pixel * C), C);
      }
    }
  });
  return Done{};
}

// --- sampling --------------------------------------------------------------------------------------------

Status avg_pool_spatial(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const Extents in(x), out(y);
  ORRERY_OPERANDS(is_float(x.dtype) && is_float(y.dtype) && out.frames == in.frames && out.channels == in.channels);
  ORRERY_OPERANDS(out.height == (in.height + 1) / 2 && out.width == (in.width + 1) / 2);
  call.pool.parallel_for(out.frames * out.height, [&](std::uint64_t line, Scratch&) {
    const auto frame = line / out.height, top = line % out.height * 2;
    for (std::uint64_t column = 0; column < out.width; ++column)
      for (std::uint64_t c = 0; c < in.channels; ++c) {
        float sum = 0;
        for (std::uint64_t i = top; i < top + 2; ++i)
          for (std::uint64_t j = 2 * column; j < 2 * column + 2; ++j)
            if (i < in.height && j < in.width) sum += element_of(x, ((frame * in.height + i) * in.width + j) * in.channels + c);
        set_element(y, (line * out.width + column) * in.channels + c, sum * 0.25F);
      }
  });
  return Done{};
}

Status avg_pool_temporal(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const Extents in(x), out(y);
  ORRERY_OPERANDS(is_float(x.dtype) && is_float(y.dtype) && out.frames == (in.frames + 1) / 2 && out.pixels() == in.pixels() &&
                  out.channels == in.channels);
  const auto frame_elements = in.pixels() * in.channels;
  const auto blocks = blocks_of(frame_elements);
  call.pool.parallel_for(out.frames * blocks, [&](std::uint64_t tile, Scratch&) {
    const auto frame = tile / blocks;
    const auto earlier = frame == 0 ? 0 : 2 * frame - 1, later = 2 * frame;
    const auto begin = tile % blocks * block_pixels, end = std::min(frame_elements, begin + block_pixels);
    for (auto i = begin; i < end; ++i)
      set_element(y, frame * frame_elements + i,
                  (element_of(x, earlier * frame_elements + i) + element_of(x, later * frame_elements + i)) * 0.5F);
  });
  return Done{};
}

Status repeat_temporal(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() >= 1 && call.outputs[0].rank() >= 1);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const auto drop = call.command.count(Attr::drop);
  ORRERY_OPERANDS(x.dtype == y.dtype && x.extent(0) > 0 && drop <= 1 && y.extent(0) == 2 * x.extent(0) - drop);
  ORRERY_OPERANDS(y.count() / y.extent(0) == x.count() / x.extent(0));
  const auto bytes = x.count() / x.extent(0) * size_of(x.dtype);
  call.pool.parallel_for(y.extent(0), [&](std::uint64_t frame, Scratch&) {
    std::memcpy(y.data + frame * bytes, x.data + (frame + drop) / 2 * bytes, bytes);
  });
  return Done{};
}

Status upsample_spatial(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const Extents in(x), out(y);
  ORRERY_OPERANDS(x.dtype == y.dtype && out.frames == in.frames && out.height == 2 * in.height && out.width == 2 * in.width &&
                  out.channels == in.channels);
  const auto pixel = in.channels * size_of(x.dtype);
  call.pool.parallel_for(in.frames * in.height, [&](std::uint64_t line, Scratch&) {
    const auto* from = x.data + line * in.width * pixel;
    auto* to = y.data + 2 * line * out.width * pixel;
    for (std::uint64_t column = 0; column < out.width; ++column) std::memcpy(to + column * pixel, from + column / 2 * pixel, pixel);
    std::memcpy(to + out.width * pixel, to, out.width * pixel);
  });
  return Done{};
}

Status take_frame(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() >= 1);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const double at = call.scalar(Scalar::latent_frame);
  ORRERY_OPERANDS(at >= 0 && at < static_cast<double>(x.extent(0)) && is_float(x.dtype) && is_float(y.dtype));
  ORRERY_OPERANDS(y.count() == x.count() / x.extent(0));
  convert(x.data + static_cast<std::uint64_t>(at) * y.count() * size_of(x.dtype), x.dtype, y.data, y.dtype, y.count());
  return Done{};
}

// --- layouts ---------------------------------------------------------------------------------------------

Status channels_last(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const Extents out(y);
  const auto pixels = out.frames * out.pixels();
  ORRERY_OPERANDS(x.dtype == DType::f32 && is_float(y.dtype) && x.extent(0) == out.channels && x.count() == pixels * out.channels);
  call.pool.parallel_for(blocks_of(pixels), [&](std::uint64_t tile, Scratch&) {
    for (auto i = tile * block_pixels; i < std::min(pixels, (tile + 1) * block_pixels); ++i)
      for (std::uint64_t c = 0; c < out.channels; ++c) set_element(y, i * out.channels + c, x.as<float>()[c * pixels + i]);
  });
  return Done{};
}

Status channels_first(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const Extents in(x);
  const auto pixels = in.frames * in.pixels();
  ORRERY_OPERANDS(y.dtype == DType::f32 && is_float(x.dtype) && y.extent(0) == in.channels && y.count() == pixels * in.channels);
  call.pool.parallel_for(blocks_of(pixels), [&](std::uint64_t tile, Scratch&) {
    for (std::uint64_t c = 0; c < in.channels; ++c)
      for (auto i = tile * block_pixels; i < std::min(pixels, (tile + 1) * block_pixels); ++i)
        y.as<float>()[c * pixels + i] = element_of(x, i * in.channels + c);
  });
  return Done{};
}

/// A cube of p x p x p pixels of each channel, between video and its row of channels.
///
/// Haar, log2(p) levels: a level turns 8 neighbours of a cube into 8 sub-bands b of (p/2)^3, b outermost in the order of
/// channels: y_b = 1/8 sum (-1)^(b . ijk) x_ijk, and back without the factor. Otherwise channels stand as (c, t, h, w).
class PatchCube {
public:
  PatchCube(std::uint64_t channels, std::uint64_t patch, bool haar) : channels_(channels), patch_(patch), haar_(haar) {}

  std::uint64_t count() const { return channels_ * patch_ * patch_ * patch_; }
  /// `cube` [channels, p, p, p] becomes the row; both of count() floats; `cube` is overwritten.
  void forward(float* cube, float* row) const {
    if (!haar_) {
      std::copy(cube, cube + count(), row);
      return;
    }
    std::uint64_t channels = channels_;
    float *from = cube, *to = row;
    for (std::uint64_t edge = patch_; edge > 1; edge /= 2, channels *= 8) {
      level(channels, edge / 2, [&](std::uint64_t band, std::uint64_t whole, float (&v)[8], bool load) {
        if (load) {
          for (int i = 0; i < 8; ++i) v[i] = from[whole + offset(i, edge)];
        } else {
          for (std::uint64_t b = 0; b < 8; ++b) to[b * channels * (edge / 2) * (edge / 2) * (edge / 2) + band] = v[b] * 0.125F;
        }
      });
      std::swap(from, to);
    }
    if (from != row) std::copy(from, from + count(), row);
  }
  /// And back; `row` is overwritten.
  void inverse(float* row, float* cube) const {
    if (!haar_) {
      std::copy(row, row + count(), cube);
      return;
    }
    std::uint64_t channels = count() / 8;
    float *from = row, *to = cube;
    for (std::uint64_t edge = 2; edge <= patch_; edge *= 2, channels /= 8) {
      level(channels, edge / 2, [&](std::uint64_t band, std::uint64_t whole, float (&v)[8], bool load) {
        if (load) {
          for (std::uint64_t b = 0; b < 8; ++b) v[b] = from[b * channels * (edge / 2) * (edge / 2) * (edge / 2) + band];
        } else {
          for (int i = 0; i < 8; ++i) to[whole + offset(i, edge)] = v[i];
        }
      });
      std::swap(from, to);
    }
    if (from != cube) std::copy(from, from + count(), cube);
  }

private:
  static std::uint64_t offset(int bits, std::uint64_t edge) {
    const auto b = static_cast<std::uint64_t>(bits);
    return ((b >> 2) * edge + ((b >> 1) & 1)) * edge + (b & 1);
  }
  /// Calls `move` around the butterfly of each group of eight: loads, then stores.
  template <class Move>
  static void level(std::uint64_t channels, std::uint64_t half, const Move& move) {
    for (std::uint64_t c = 0; c < channels; ++c)
      for (std::uint64_t t = 0; t < half; ++t)
        for (std::uint64_t h = 0; h < half; ++h)
          for (std::uint64_t w = 0; w < half; ++w) {
            const auto band = ((c * half + t) * half + h) * half + w;
            const auto whole = ((c * 2 * half + 2 * t) * 2 * half + 2 * h) * 2 * half + 2 * w;
            float v[8];
            move(band, whole, v, true);
            for (int bit = 1; bit < 8; bit *= 2)
              for (int i = 0; i < 8; ++i)
                if ((i & bit) == 0) {
                  const float low = v[i], high = v[i + bit];
                  v[i] = low + high;
                  v[i + bit] = low - high;
                }
            move(band, whole, v, false);
          }
  }

  std::uint64_t channels_, patch_;
  bool haar_;
};

bool is_power_of_two(std::uint64_t value) { return value > 0 && (value & (value - 1)) == 0; }

Status patch_video(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const Extents out(y);
  const auto p = call.command.count(Attr::patch, 1), before = call.command.count(Attr::repeat_first);
  const auto channels = x.extent(0), frames = x.extent(1), height = x.extent(2), width = x.extent(3);
  ORRERY_OPERANDS(x.dtype == DType::f32 && is_float(y.dtype) && is_power_of_two(p) && frames > 0);
  ORRERY_OPERANDS(out.frames * p == frames + before && out.height * p == height && out.width * p == width &&
                  out.channels == channels * p * p * p);
  const PatchCube patch(channels, p, call.command.count(Attr::haar) != 0);
  call.pool.parallel_for(out.frames * out.height, [&](std::uint64_t line, Scratch& scratch) {
    auto* cube = scratch.take_of<float>(patch.count());
    auto* row = scratch.take_of<float>(patch.count());
    const auto t = line / out.height, h = line % out.height;
    for (std::uint64_t w = 0; w < out.width; ++w) {
      auto* to = cube;
      for (std::uint64_t c = 0; c < channels; ++c)
        for (std::uint64_t i = 0; i < p; ++i) {
          const auto frame = t * p + i < before ? 0 : t * p + i - before;
          for (std::uint64_t j = 0; j < p; ++j)
            for (std::uint64_t k = 0; k < p; ++k)
              *to++ = x.as<float>()[((c * frames + frame) * height + h * p + j) * width + w * p + k];
        }
      patch.forward(cube, row);
      simd().convert({row, false}, target_row_of(y, (line * out.width + w) * out.channels), out.channels);
    }
  });
  return Done{};
}

Status unpatch_video(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const Extents in(x);
  const auto p = call.command.count(Attr::patch, 1), drop = call.command.count(Attr::drop);
  const auto channels = y.extent(0), frames = y.extent(1), height = y.extent(2), width = y.extent(3);
  ORRERY_OPERANDS(y.dtype == DType::f32 && is_float(x.dtype) && is_power_of_two(p));
  ORRERY_OPERANDS(in.frames * p == frames + drop && in.height * p == height && in.width * p == width &&
                  in.channels == channels * p * p * p);
  const PatchCube patch(channels, p, call.command.count(Attr::haar) != 0);
  call.pool.parallel_for(in.frames * in.height, [&](std::uint64_t line, Scratch& scratch) {
    auto* row = scratch.take_of<float>(patch.count());
    auto* cube = scratch.take_of<float>(patch.count());
    const auto t = line / in.height, h = line % in.height;
    for (std::uint64_t w = 0; w < in.width; ++w) {
      simd().convert(row_of(x, (line * in.width + w) * in.channels), {row, false}, in.channels);
      patch.inverse(row, cube);
      for (std::uint64_t c = 0; c < channels; ++c)
        for (std::uint64_t i = 0; i < p; ++i) {
          if (t * p + i < drop) continue;
          const auto* from = cube + (c * p + i) * p * p;
          for (std::uint64_t j = 0; j < p; ++j)
            std::copy(from + j * p, from + (j + 1) * p,
                      y.as<float>() + ((c * frames + t * p + i - drop) * height + h * p + j) * width + w * p);
        }
    }
  });
  return Done{};
}

Status frames_u8(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() == 4 && call.outputs[0].rank() == 4);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const Extents out(y);
  const auto pixels = out.frames * out.pixels();
  ORRERY_OPERANDS(x.dtype == DType::f32 && y.dtype == DType::u8 && x.extent(0) == out.channels && x.count() == pixels * out.channels);
  call.pool.parallel_for(blocks_of(pixels), [&](std::uint64_t tile, Scratch&) {
    for (auto i = tile * block_pixels; i < std::min(pixels, (tile + 1) * block_pixels); ++i)
      for (std::uint64_t c = 0; c < out.channels; ++c) {
        const float value = x.as<float>()[c * pixels + i] / 2 + 0.5F;
        // Written so that NaN becomes black.
        y.as<std::uint8_t>()[i * out.channels + c] =
            value >= 1 ? std::uint8_t{255} : value > 0 ? static_cast<std::uint8_t>(value * 255) : std::uint8_t{0};
      }
  });
  return Done{};
}

}  // namespace

Kernel video_kernel_of(Op op) {
  switch (op) {
    case Op::group_norm: return group_norm;
    case Op::take_frame: return take_frame;
    case Op::channels_last: return channels_last;
    case Op::channels_first: return channels_first;
    case Op::conv_spatial: return conv_spatial;
    case Op::conv_temporal: return conv_temporal;
    case Op::temporal_attention: return temporal_attention;
    case Op::avg_pool_spatial: return avg_pool_spatial;
    case Op::avg_pool_temporal: return avg_pool_temporal;
    case Op::repeat_temporal: return repeat_temporal;
    case Op::upsample_spatial: return upsample_spatial;
    case Op::patch_video: return patch_video;
    case Op::unpatch_video: return unpatch_video;
    case Op::frames_u8: return frames_u8;
    default: return nullptr;
  }
}

}  // namespace orrery::cards
