// The denoiser's and text encoder's own ops: tables, patches, the sampler's step. Small next to the products, so
// plain loops; each element is computed alone, in the order of operations of the reference.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "cards/kernels/ops.hpp"

namespace orrery::cards {
namespace {

template <class Function>
void for_rows(ThreadPool& pool, std::uint64_t rows, Function f) {
  pool.parallel_for((rows + tile_rows - 1) / tile_rows, [&](std::uint64_t tile, Scratch& scratch) {
    for (auto row = tile * tile_rows; row < std::min<std::uint64_t>(rows, (tile + 1) * tile_rows); ++row) {
      scratch.release(0);
      f(row, scratch);
    }
  });
}

/// One row of a table as f32.
void read_row(const Weight& table, std::uint64_t row, float* to) {
  const auto columns = table.spec->columns();
  convert(table.data + row * columns * size_of(table.spec->dtype), table.spec->dtype, reinterpret_cast<std::byte*>(to),
          DType::f32, columns);
}

void write_row(const float* from, const Operand& to, std::uint64_t offset, std::uint64_t count) {
  convert(reinterpret_cast<const std::byte*>(from), DType::f32, to.data + offset * size_of(to.dtype), to.dtype, count);
}

bool is_real(const Operand& operand) { return operand.dtype == DType::f32 || operand.dtype == DType::bf16; }

/// Patches in order (frame, row, column), column fastest.
struct PatchGrid {
  std::uint64_t frames, height, width;
  std::array<std::uint64_t, 3> place(std::uint64_t token) const {
    return {token / (height * width), token / width % height, token % width};
  }
  std::uint64_t count() const { return frames * height * width; }
};

PatchGrid grid_of(const Command& command) {
  return {command.count(Attr::frames), command.count(Attr::height), command.count(Attr::width)};
}

}  // namespace

Status embedding(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.weights.size() == 1);
  const auto &ids = call.inputs[0], &x = call.outputs[0];
  const auto& table = call.weights[0];
  ORRERY_OPERANDS(ids.dtype == DType::i32 && is_real(x) && table.data != nullptr);
  const auto width = table.spec->columns();
  ORRERY_OPERANDS(x.count() == ids.count() * width);
  for (std::uint64_t i = 0; i < ids.count(); ++i) {
    const auto id = ids.as<const std::int32_t>()[i];
    if (id < 0 || static_cast<std::uint64_t>(id) >= table.spec->rows())
      return Error{ErrorCode::invalid_request, "token " + std::to_string(i) + " has number " + std::to_string(id) +
                                                   ", but the vocabulary has " + std::to_string(table.spec->rows()),
                   "the tokenizer and the text encoder do not belong together"};
  }
  for_rows(call.pool, ids.count(), [&](std::uint64_t row, Scratch&) {
    const auto id = static_cast<std::uint64_t>(ids.as<const std::int32_t>()[row]);
    convert(table.data + id * width * size_of(table.spec->dtype), table.spec->dtype,
            x.data + row * width * size_of(x.dtype), x.dtype, width);
  });
  return Done{};
}

Status timestep_embedding(const Call& call) {
  ORRERY_OPERANDS(call.outputs.size() == 1);
  const auto& out = call.outputs[0];
  ORRERY_OPERANDS(is_real(out) && out.rank() > 0 && out.count() == out.shape->back() && out.count() % 2 == 0);
  const auto half = out.count() / 2;
  auto timestep = static_cast<float>(call.scalar(Scalar::timestep));
  if (out.dtype == DType::bf16) timestep = f32_of_bf16(bf16_of(timestep));
  std::vector<float> values(out.count());
  for (std::uint64_t k = 0; k < half; ++k) {
    const auto frequency = static_cast<float>(std::exp(-std::log(10000.0) * static_cast<double>(k) / static_cast<double>(half)));
    const double angle = timestep * frequency;
    values[k] = static_cast<float>(std::cos(angle));
    values[half + k] = static_cast<float>(std::sin(angle));
  }
  write_row(values.data(), out, 0, out.count());
  return Done{};
}

Status rope_table(const Call& call) {
  ORRERY_OPERANDS(call.outputs.size() == 2);
  const auto &cos = call.outputs[0], &sin = call.outputs[1];
  const auto grid = grid_of(call.command);
  const auto head_dim = call.command.count(Attr::head_dim), begin = call.command.count(Attr::begin);
  ORRERY_OPERANDS(cos.dtype == DType::f32 && sin.dtype == DType::f32 && head_dim >= 2 && head_dim % 2 == 0);
  const auto half = head_dim / 2;
  const auto rows = cos.count() / half;
  ORRERY_OPERANDS(cos.count() == rows * half && sin.count() == cos.count() && begin <= grid.count() && rows <= grid.count() - begin);

  const auto spatial = 2 * (head_dim / 6), temporal = head_dim - 2 * spatial;
  const auto frequencies = [](std::uint64_t length, double scale) {
    const auto d = static_cast<double>(length);
    const double base = scale == 1 ? 10000.0 : 10000.0 * std::pow(scale, d / (d - 2));
    std::vector<float> all(length / 2);
    for (std::size_t k = 0; k < all.size(); ++k)
      all[k] = static_cast<float>(1.0 / std::pow(base, 2 * static_cast<double>(k) / d));
    return all;
  };
  const auto of_time = frequencies(temporal, call.command.attr(Attr::scale_t, 1));
  const auto of_height = frequencies(spatial, call.command.attr(Attr::scale_h, 1));
  const auto of_width = frequencies(spatial, call.command.attr(Attr::scale_w, 1));
  const auto fps = static_cast<float>(call.command.attr(Attr::fps));
  for_rows(call.pool, rows, [&](std::uint64_t row, Scratch&) {
    const auto [t, y, x] = grid.place(begin + row);
    auto *c = cos.as<float>() + row * half, *s = sin.as<float>() + row * half;
    const auto put = [&](float position, const std::vector<float>& all) {
      for (const auto frequency : all) {
        const double angle = position * frequency;
        *c++ = static_cast<float>(std::cos(angle));
        *s++ = static_cast<float>(std::sin(angle));
      }
    };
    put(fps > 0 ? static_cast<float>(t) / fps * 24.0f : static_cast<float>(t), of_time);
    put(static_cast<float>(y), of_height);
    put(static_cast<float>(x), of_width);
  });
  return Done{};
}

Status learnable_positions(const Call& call) {
  ORRERY_OPERANDS(call.weights.size() == 3 && call.outputs.size() == 1 && call.outputs[0].dtype == DType::f32);
  const auto grid = grid_of(call.command);
  const auto begin = call.command.count(Attr::begin), width = call.weights[0].spec->columns();
  for (const auto& weight : call.weights) ORRERY_OPERANDS(weight.data != nullptr && weight.spec->columns() == width && width > 0);
  ORRERY_OPERANDS(grid.frames <= call.weights[0].spec->rows() && grid.height <= call.weights[1].spec->rows() &&
                  grid.width <= call.weights[2].spec->rows());
  const auto rows = call.outputs[0].count() / width;
  ORRERY_OPERANDS(call.outputs[0].count() == rows * width && begin <= grid.count() && rows <= grid.count() - begin);
  for_rows(call.pool, rows, [&](std::uint64_t row, Scratch& scratch) {
    const auto place = grid.place(begin + row);
    auto* sum = call.outputs[0].as<float>() + row * width;
    auto* part = scratch.take_of<float>(width);
    read_row(call.weights[0], place[0], sum);
    for (std::size_t axis = 1; axis < 3; ++axis) {
      read_row(call.weights[axis], place[axis], part);
      for (std::uint64_t i = 0; i < width; ++i) sum[i] += part[i];
    }
    double squares = 0;
    for (std::uint64_t i = 0; i < width; ++i) squares += double{sum[i]} * double{sum[i]};
    const auto norm = static_cast<float>(1e-6 + std::sqrt(squares / static_cast<double>(width)));
    for (std::uint64_t i = 0; i < width; ++i) sum[i] /= norm;
  });
  return Done{};
}

Status patchify(const Call& call) {
  const bool has_condition = call.command.count(Attr::has_condition) != 0;
  const bool has_padding = call.command.count(Attr::has_padding) != 0;
  ORRERY_OPERANDS(call.inputs.size() == std::size_t{1} + (has_condition ? 1 : 0) + (has_padding ? 1 : 0) && call.outputs.size() == 1);
  const auto &z = call.inputs[0], &x = call.outputs[0];
  ORRERY_OPERANDS(z.rank() == 4 && is_real(x) && x.rank() == 2);
  for (const auto& input : call.inputs) ORRERY_OPERANDS(input.dtype == DType::f32);
  const auto C = z.extent(0), T = z.extent(1), H = z.extent(2), W = z.extent(3);
  const auto pt = call.command.count(Attr::patch_t, 1), ph = call.command.count(Attr::patch_h, 1), pw = call.command.count(Attr::patch_w, 1);
  ORRERY_OPERANDS(pt > 0 && ph > 0 && pw > 0 && T % pt == 0 && H % ph == 0 && W % pw == 0);
  if (has_condition) ORRERY_OPERANDS(call.inputs[1].count() == T * H * W);
  if (has_padding) ORRERY_OPERANDS(call.inputs.back().count() == H * W);
  const PatchGrid grid{T / pt, H / ph, W / pw};
  const auto width = (C + (has_condition ? 1 : 0) + (has_padding ? 1 : 0)) * pt * ph * pw;
  const auto begin = call.command.count(Attr::begin), rows = x.extent(0);
  ORRERY_OPERANDS(x.extent(1) == width && begin <= grid.count() && rows <= grid.count() - begin);
  const auto c_in = static_cast<float>(call.scalar(Scalar::c_in));
  for_rows(call.pool, rows, [&](std::uint64_t row, Scratch& scratch) {
    const auto [t, y, column] = grid.place(begin + row);
    auto* token = scratch.take_of<float>(width);
    auto* to = token;
    // One channel of the patch; a padding mask has one frame that stands for all.
    const auto put = [&, t = t, y = y, column = column](const float* channel, bool every_frame, float factor) {
      for (std::uint64_t i = 0; i < pt; ++i)
        for (std::uint64_t j = 0; j < ph; ++j)
          for (std::uint64_t k = 0; k < pw; ++k)
            *to++ = channel[((every_frame ? t * pt + i : 0) * H + y * ph + j) * W + column * pw + k] * factor;
    };
    for (std::uint64_t c = 0; c < C; ++c) put(z.as<const float>() + c * T * H * W, true, c_in);
    if (has_condition) put(call.inputs[1].as<const float>(), true, 1);
    if (has_padding) put(call.inputs.back().as<const float>(), false, 1);
    write_row(token, x, row * width, width);
  });
  return Done{};
}

Status unpatchify(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1);
  const auto &y = call.inputs[0], &z = call.outputs[0];
  ORRERY_OPERANDS(y.rank() == 2 && is_real(y) && z.rank() == 4 && z.dtype == DType::f32);
  const auto C = z.extent(0), T = z.extent(1), H = z.extent(2), W = z.extent(3);
  const auto pt = call.command.count(Attr::patch_t, 1), ph = call.command.count(Attr::patch_h, 1), pw = call.command.count(Attr::patch_w, 1);
  ORRERY_OPERANDS(pt > 0 && ph > 0 && pw > 0 && T % pt == 0 && H % ph == 0 && W % pw == 0);
  const PatchGrid grid{T / pt, H / ph, W / pw};
  const auto width = ph * pw * pt * C;
  ORRERY_OPERANDS(y.extent(0) == grid.count() && y.extent(1) == width);
  for_rows(call.pool, grid.count(), [&](std::uint64_t row, Scratch& scratch) {
    const auto [t, patch_y, patch_x] = grid.place(row);
    auto* token = scratch.take_of<float>(width);
    convert(y.data + row * width * size_of(y.dtype), y.dtype, reinterpret_cast<std::byte*>(token), DType::f32, width);
    for (std::uint64_t j = 0; j < ph; ++j)
      for (std::uint64_t k = 0; k < pw; ++k)
        for (std::uint64_t i = 0; i < pt; ++i)
          for (std::uint64_t c = 0; c < C; ++c)
            z.as<float>()[((c * T + t * pt + i) * H + patch_y * ph + j) * W + patch_x * pw + k] = *token++;
  });
  return Done{};
}

Status scale_noise(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].data == call.outputs[0].data);
  ORRERY_OPERANDS(call.outputs[0].dtype == DType::f32);
  auto* z = call.outputs[0].as<float>();
  const auto sigma = static_cast<float>(call.scalar(Scalar::sigma_max));
  for (std::uint64_t i = 0; i < call.outputs[0].count(); ++i) z[i] *= sigma;
  return Done{};
}

Status euler_step(const Call& call) {
  ORRERY_OPERANDS((call.inputs.size() == 2 || call.inputs.size() == 3) && call.outputs.size() == 1);
  ORRERY_OPERANDS(call.inputs[0].data == call.outputs[0].data);
  for (const auto& input : call.inputs)
    ORRERY_OPERANDS(input.dtype == DType::f32 && input.count() == call.outputs[0].count());
  auto* z = call.outputs[0].as<float>();
  const auto* prompt = call.inputs[1].as<const float>();
  const auto* negative = call.inputs.size() == 3 ? call.inputs[2].as<const float>() : nullptr;
  const auto guidance = static_cast<float>(call.scalar(Scalar::guidance));
  const auto c_skip = static_cast<float>(call.scalar(Scalar::c_skip)), c_out = static_cast<float>(call.scalar(Scalar::c_out));
  const auto sigma = static_cast<float>(call.scalar(Scalar::sigma));
  const auto change = static_cast<float>(call.scalar(Scalar::sigma_next)) - sigma;
  for (std::uint64_t i = 0; i < call.outputs[0].count(); ++i) {
    float F = prompt[i];
    if (negative != nullptr) F = F + guidance * (F - negative[i]);
    const float clean = c_skip * z[i] + c_out * F;
    z[i] = z[i] + (z[i] - clean) / sigma * change;
  }
  return Done{};
}

Status to_decoder(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && (call.weights.empty() || call.weights.size() == 2));
  const auto &z = call.inputs[0], &out = call.outputs[0];
  ORRERY_OPERANDS(z.rank() == 4 && *z.shape == *out.shape && z.dtype == DType::f32 && out.dtype == DType::f32);
  const auto C = z.extent(0), T = z.extent(1), pixels = z.extent(2) * z.extent(3);
  const auto sigma_data = static_cast<float>(call.command.attr(Attr::sigma_data, 1));
  const auto frames_max = call.command.count(Attr::frames_max);
  for (const auto& weight : call.weights)
    ORRERY_OPERANDS(weight.data != nullptr && weight.spec->rows() * weight.spec->columns() == C * frames_max && T <= frames_max);
  for (std::uint64_t c = 0; c < C; ++c)
    for (std::uint64_t t = 0; t < T; ++t) {
      const float mean = call.weights.empty() ? 0 : call.weights[0].floats()[c * frames_max + t];
      const float spread = call.weights.empty() ? 1 : call.weights[1].floats()[c * frames_max + t];
      const auto *from = z.as<const float>() + (c * T + t) * pixels;
      auto* to = out.as<float>() + (c * T + t) * pixels;
      for (std::uint64_t i = 0; i < pixels; ++i) to[i] = from[i] * spread / sigma_data + mean;
    }
  return Done{};
}

}  // namespace orrery::cards
