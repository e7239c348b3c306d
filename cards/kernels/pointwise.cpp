// Norms, gates, sums, activations and copies: rows in tiles of 64, each row by one vector kernel.

#include <algorithm>

#include "cards/kernels/ops.hpp"
#include "cards/kernels/simd.hpp"

namespace orrery::cards {
namespace {

bool is_real(const Operand& operand) { return operand.dtype == DType::f32 || operand.dtype == DType::bf16; }
bool is_f32(const Operand& operand) { return operand.dtype == DType::f32; }
bool is_bf16(DType dtype) { return dtype == DType::bf16; }

/// f(row) for all rows, in tiles.
template <class Function>
void for_rows(ThreadPool& pool, std::uint64_t rows, Function f) {
  pool.parallel_for((rows + tile_rows - 1) / tile_rows, [&](std::uint64_t tile, Scratch&) {
    for (auto row = tile * tile_rows; row < std::min<std::uint64_t>(rows, (tile + 1) * tile_rows); ++row) f(row);
  });
}

/// f(begin, count) over pieces of a flat tensor.
template <class Function>
void for_elements(ThreadPool& pool, std::uint64_t count, Function f) {
  constexpr std::uint64_t piece = std::uint64_t{1} << 15;
  pool.parallel_for((count + piece - 1) / piece,
                    [&](std::uint64_t i, Scratch&) { f(i * piece, std::min(piece, count - i * piece)); });
}

}  // namespace

Status layer_norm_modulate(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 3 && call.outputs.size() == 1 && call.inputs[0].rank() > 0);
  const auto &x = call.inputs[0], &shift = call.inputs[1], &scale = call.inputs[2], &y = call.outputs[0];
  const auto width = x.shape->back();
  ORRERY_OPERANDS(is_f32(x) && is_f32(shift) && is_f32(scale) && is_real(y) && width > 0);
  ORRERY_OPERANDS(y.count() == x.count() && shift.count() == width && scale.count() == width);
  const auto eps = static_cast<float>(call.command.attr(Attr::eps));
  for_rows(call.pool, x.count() / width, [&](std::uint64_t row) {
    simd().layer_norm_modulate(x.as<float>() + row * width, shift.as<float>(), scale.as<float>(), eps,
                               {y.data + row * width * size_of(y.dtype), is_bf16(y.dtype)}, width);
  });
  return Done{};
}

Status rms_norm(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && call.inputs[0].rank() > 0);
  const auto &x = call.inputs[0], &y = call.outputs[0];
  const auto width = x.shape->back();
  ORRERY_OPERANDS(is_real(x) && is_real(y) && width > 0 && y.count() == x.count());
  const float* weight = nullptr;
  if (!call.weights.empty()) {
    ORRERY_OPERANDS(call.weights[0].data != nullptr);
    ORRERY_OPERANDS(call.weights[0].spec->rows() * call.weights[0].spec->columns() == width);
    weight = call.weights[0].floats();
  }
  const auto eps = static_cast<float>(call.command.attr(Attr::eps));
  for_rows(call.pool, x.count() / width, [&](std::uint64_t row) {
    simd().rms_norm({x.data + row * width * size_of(x.dtype), is_bf16(x.dtype)}, weight, eps,
                    {y.data + row * width * size_of(y.dtype), is_bf16(y.dtype)}, width);
  });
  return Done{};
}

Status gate_add(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 3 && call.outputs.size() == 1);
  const auto &h = call.outputs[0], &gate = call.inputs[1], &y = call.inputs[2];
  ORRERY_OPERANDS(call.inputs[0].data == h.data && is_f32(h) && is_f32(gate) && is_real(y) && h.rank() > 0);
  const auto width = h.shape->back();
  ORRERY_OPERANDS(width > 0 && gate.count() == width && y.count() == h.count());
  for_rows(call.pool, h.count() / width, [&](std::uint64_t row) {
    simd().gate_add(h.as<float>() + row * width, gate.as<float>(),
                    {y.data + row * width * size_of(y.dtype), is_bf16(y.dtype)}, width);
  });
  return Done{};
}

Status add_op(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 2 && call.outputs.size() == 1);
  const auto &a = call.inputs[0], &b = call.inputs[1], &to = call.outputs[0];
  ORRERY_OPERANDS(is_real(a) && is_real(b) && is_real(to) && a.count() == b.count() && a.count() == to.count());
  for_elements(call.pool, a.count(), [&](std::uint64_t begin, std::uint64_t count) {
    add(a.data + begin * size_of(a.dtype), a.dtype, b.data + begin * size_of(b.dtype), b.dtype,
        to.data + begin * size_of(to.dtype), to.dtype, count);
  });
  return Done{};
}

Status activate_op(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1);
  const auto &x = call.inputs[0], &y = call.outputs[0];
  ORRERY_OPERANDS(is_real(x) && is_real(y) && x.count() == y.count());
  for_elements(call.pool, x.count(), [&](std::uint64_t begin, std::uint64_t count) {
    activate(x.data + begin * size_of(x.dtype), x.dtype, y.data + begin * size_of(y.dtype), y.dtype, count,
             call.activation());
  });
  return Done{};
}

Status slice_columns(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1);
  const auto &x = call.inputs[0], &y = call.outputs[0];
  ORRERY_OPERANDS(is_real(x) && is_real(y) && x.rank() > 0 && y.rank() > 0);
  const auto width = x.shape->back(), taken = y.shape->back(), begin = call.command.count(Attr::begin);
  ORRERY_OPERANDS(width > 0 && begin <= width && taken <= width - begin);
  const auto rows = x.count() / width;
  ORRERY_OPERANDS(y.count() == rows * taken);
  for_rows(call.pool, rows, [&](std::uint64_t row) {
    convert(x.data + (row * width + begin) * size_of(x.dtype), x.dtype, y.data + row * taken * size_of(y.dtype),
            y.dtype, taken);
  });
  return Done{};
}

Status copy_rows(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1);
  const auto &x = call.inputs[0], &y = call.outputs[0];
  ORRERY_OPERANDS(is_real(x) && is_real(y) && x.rank() > 0 && y.rank() > 0);
  const auto width = x.shape->back(), begin = call.command.count(Attr::begin);
  ORRERY_OPERANDS(width > 0 && y.shape->back() == width);
  const auto rows = x.count() / width, taken = y.count() / width;
  ORRERY_OPERANDS(begin <= rows && taken <= rows - begin);
  for_rows(call.pool, taken, [&](std::uint64_t row) {
    convert(x.data + (begin + row) * width * size_of(x.dtype), x.dtype, y.data + row * width * size_of(y.dtype),
            y.dtype, width);
  });
  return Done{};
}

}  // namespace orrery::cards
