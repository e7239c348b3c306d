// Matrix products: whole, column parallel and row parallel.

#include <algorithm>
#include <cstring>

#include "base/slice_tree.hpp"
#include "cards/kernels/ops.hpp"

namespace orrery::cards {
namespace {

bool is_real(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16; }

}  // namespace

Status linear(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1);
  ORRERY_OPERANDS(call.weights.size() == 1 || call.weights.size() == 2);
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  const auto* matrix = call.weights[0].matrix;
  ORRERY_OPERANDS(matrix != nullptr && x.rank() > 0 && y.rank() > 0);
  ORRERY_OPERANDS(x.shape->back() == matrix->K() && y.shape->back() == matrix->N());
  const auto rows = x.count() / matrix->K();
  ORRERY_OPERANDS(y.count() == rows * matrix->N() && is_real(x.dtype) && is_real(y.dtype));
  ProductOutput output{y.data, y.dtype, matrix->N(), nullptr, call.activation()};
  if (call.weights.size() == 2) {
    ORRERY_OPERANDS(call.weights[1].data != nullptr && call.weights[1].spec->rows() * call.weights[1].spec->columns() == matrix->N());
    output.bias = call.weights[1].floats();
  }
  product_of_rows(call.pool, *matrix, rows, x.data, x.dtype, output);
  return Done{};
}

Status linear_to_slices(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && !call.weights.empty());
  const auto& x = call.inputs[0];
  const auto& y = call.outputs[0];
  ORRERY_OPERANDS(x.rank() == 2 && y.rank() == 3 && is_real(x.dtype) && is_real(y.dtype));
  const auto rows = x.extent(0), width = y.extent(2);
  ORRERY_OPERANDS(y.extent(0) == call.weights.size() && y.extent(1) == rows);
  const auto part = call.rows_of(rows);
  std::vector<const PackedMatrix*> matrices;
  std::vector<ProductOutput> outputs;
  for (const auto& weight : call.weights) {
    ORRERY_OPERANDS(weight.matrix != nullptr && weight.matrix->K() == x.extent(1) && weight.matrix->N() == width);
    ORRERY_OPERANDS(weight.matrix->dtype() == call.weights[0].matrix->dtype());
    auto* const to = y.data + (matrices.size() * rows + part.begin) * width * size_of(y.dtype);
    outputs.push_back({to, y.dtype, width, nullptr, call.activation()});
    matrices.push_back(weight.matrix);
  }
  products_of_rows(call.pool, matrices, part.count(), x.data + part.begin * x.extent(1) * size_of(x.dtype), x.dtype, outputs);
  return Done{};
}

namespace {

/// The sum over `range` of x[slice] W[slice]^T for one block, added along the slice tree. Uses buffers[depth...].
void sum_of_slices(SliceRange range, const std::vector<const PackedMatrix*>& matrices,
                   const std::vector<const std::byte*>& tiles, std::uint32_t block, std::uint32_t rows,
                   std::span<float* const> buffers, Scratch& scratch) {
  if (range.count() == 1) {
    matrices[range.begin]->multiply(block, tiles[range.begin], rows, buffers[0], scratch);
    return;
  }
  const auto split = split_of(range);
  sum_of_slices({range.begin, split}, matrices, tiles, block, rows, buffers, scratch);
  sum_of_slices({split, range.end}, matrices, tiles, block, rows, buffers.subspan(1), scratch);
  const auto count = std::uint64_t{rows} * matrices[range.begin]->columns_of(block);
  auto* left = reinterpret_cast<std::byte*>(buffers[0]);
  add(left, DType::f32, reinterpret_cast<const std::byte*>(buffers[1]), DType::f32, left, DType::f32, count);
}

}  // namespace

Status linear_from_slices(const Call& call) {
  ORRERY_OPERANDS(call.inputs.size() == 1 && call.outputs.size() == 1 && !call.weights.empty());
  const auto& x = call.inputs[0];
  const auto& pieces_out = call.outputs[0];
  const auto& owned = call.command.slices;
  const auto slice_count = static_cast<std::uint32_t>(call.command.count(Attr::slice_count));
  ORRERY_OPERANDS(x.rank() == 3 && pieces_out.rank() == 3 && pieces_out.dtype == DType::f32 && is_real(x.dtype));
  ORRERY_OPERANDS(owned.size() == call.weights.size() && x.extent(0) == owned.size());
  for (std::size_t i = 0; i < owned.size(); ++i)
    ORRERY_OPERANDS(owned[i] < slice_count && (i == 0 || owned[i - 1] < owned[i]));
  const auto pieces = pieces_of(owned, slice_count);
  const auto rows = x.extent(1), width = x.extent(2), columns = pieces_out.extent(2);
  ORRERY_OPERANDS(pieces_out.extent(0) == pieces.size() && pieces_out.extent(1) == rows);

  std::vector<const PackedMatrix*> matrices(slice_count, nullptr);
  for (std::size_t i = 0; i < owned.size(); ++i) {
    const auto* matrix = call.weights[i].matrix;
    ORRERY_OPERANDS(matrix != nullptr && matrix->K() == width && matrix->N() == columns);
    ORRERY_OPERANDS(matrix->dtype() == call.weights[0].matrix->dtype());
    matrices[owned[i]] = matrix;
  }
  const auto& first = *call.weights[0].matrix;
  std::size_t depth = 1;
  for (std::uint32_t span = 1; span < slice_count; span *= 2) ++depth;

  const auto part = call.rows_of(rows);
  const auto tiles = (part.count() + tile_rows - 1) / tile_rows;
  const std::uint64_t blocks = first.block_count();
  const auto groups = column_groups(call.pool, tiles, blocks);
  call.pool.parallel_for(tiles * groups, [&](std::uint64_t job, Scratch& scratch) {
    const auto row = part.begin + job / groups * tile_rows;
    const auto group = job % groups;
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(tile_rows, part.end - row));
    std::vector<const std::byte*> sources(slice_count, nullptr);
    for (std::size_t i = 0; i < owned.size(); ++i)
      sources[owned[i]] = tile_of_rows(x.data + i * rows * width * size_of(x.dtype), x.dtype, width, first.dtype(),
                                       row, count, scratch);
    std::vector<float*> buffers;
    for (std::size_t i = 0; i < depth; ++i)
      buffers.push_back(scratch.take_of<float>(std::uint64_t{padded_rows(count)} * block_columns));
    const auto end = static_cast<std::uint32_t>(blocks * (group + 1) / groups);
    for (auto block = static_cast<std::uint32_t>(blocks * group / groups); block < end; ++block)
      for (std::size_t p = 0; p < pieces.size(); ++p) {
        sum_of_slices(pieces[p], matrices, sources, block, count, buffers, scratch);
        const ProductOutput output{pieces_out.data + p * rows * columns * sizeof(float), DType::f32, columns};
        finish_tile(buffers[0], count, first.columns_of(block), output, row, std::uint64_t{block} * block_columns);
      }
  });
  return Done{};
}

}  // namespace orrery::cards
