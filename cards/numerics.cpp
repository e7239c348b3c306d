// check_numerics: the promise of equal bits, tried on this machine.
//
// One product in f32, bf16 and int8 is computed as a whole and in every way a cluster might cut it: by rows, by
// columns, at other places of a tile, by more threads. Any bit that differs is an error.

#include <algorithm>
#include <cstring>

#include "base/random.hpp"
#include "cards/card.hpp"
#include "cards/kernels/kernels.hpp"

namespace orrery::cards {
namespace {

// Longer than one block of columns, than one tile of rows, and than oneDNN's pieces of K.
constexpr std::uint64_t test_rows = 150, test_columns = 336, test_depth = 2056;

class Probe {
public:
  Probe(DType dtype, std::span<const float> x, std::span<const float> w) : dtype_(dtype), x_(x.size()), w_(w.size()) {
    x_.resize(x.size() * size_of(rows_dtype()));
    w_.resize(w.size() * size_of(rows_dtype()));
    convert(std::as_bytes(x).data(), DType::f32, x_.data(), rows_dtype(), x.size());
    convert(std::as_bytes(w).data(), DType::f32, w_.data(), rows_dtype(), w.size());
  }

  /// Rows [row, row + rows) of x times rows [column, column + columns) of W.
  std::vector<float> product(ThreadPool& pool, std::uint64_t row, std::uint64_t rows, std::uint64_t column, std::uint64_t columns) {
    Scratch memory;
    const auto row_bytes = test_depth * size_of(rows_dtype());
    const auto bytes = PackedMatrix::packed_bytes(columns, test_depth, dtype_);
    const auto matrix = PackedMatrix::pack(
        columns, test_depth, dtype_,
        [&](std::uint64_t begin, std::uint64_t end, std::byte* to) {
          std::memcpy(to, w_.data() + (column + begin) * row_bytes, (end - begin) * row_bytes);
        },
        std::span(memory.take(bytes), bytes));
    implementation_ = matrix.implementation();
    std::vector<float> y(rows * columns);
    product_of_rows(pool, matrix, rows, x_.data() + row * row_bytes, rows_dtype(),
                    {reinterpret_cast<std::byte*>(y.data()), DType::f32, columns});
    return y;
  }
  const std::string& implementation() const { return implementation_; }

private:
  /// int8 is made of f32 on the way.
  DType rows_dtype() const { return dtype_ == DType::i8 ? DType::f32 : dtype_; }

  DType dtype_;
  std::vector<std::byte> x_, w_;
  std::string implementation_;
};

Result<std::string> check_dtype(DType dtype, std::span<const float> x, std::span<const float> w) {
  Probe probe(dtype, x, w);
  ThreadPool one(1), two(2);
  const auto whole = probe.product(one, 0, test_rows, 0, test_columns);
  const auto implementation = probe.implementation();
  const auto differs = [&](ThreadPool& pool, std::uint64_t row, std::uint64_t rows, std::uint64_t column, std::uint64_t columns) {
    const auto part = probe.product(pool, row, rows, column, columns);
    for (std::uint64_t r = 0; r < rows; ++r)
      if (std::memcmp(part.data() + r * columns, whole.data() + (row + r) * test_columns + column, columns * sizeof(float)) != 0)
        return true;
    return false;
  };
  std::string what;
  if (differs(two, 0, test_rows, 0, test_columns)) what = "with 2 threads";
  for (const std::uint64_t rows : {1, 5, 13, 24, 40, 64})
    if (differs(one, 3, rows, 0, test_columns)) what = "when " + std::to_string(rows) + " rows are computed apart";
  if (differs(one, 57, 93, 0, test_columns)) what = "at another place of a tile";
  for (const std::uint64_t columns : {16, 64, 168, 256})
    if (differs(one, 0, 96, test_columns - columns, columns)) what = "when " + std::to_string(columns) + " columns are computed apart";
  if (what.empty()) return implementation;
  return Error{ErrorCode::numerics_mismatch,
               "the " + std::string(name_of(dtype)) + " matrix product of this machine (" + implementation + ") gives other bits " + what,
               "videos would depend on the cluster; set ONEDNN_MAX_CPU_ISA to another instruction set"};
}

}  // namespace

Result<std::string> check_numerics() {
  std::vector<float> x(test_rows * test_depth), w(test_columns * test_depth);
  // Quick numbers of mixed size and sign.
  Random random(1);
  const auto fill = [&](std::vector<float>& values) {
    for (auto& value : values) value = static_cast<float>(static_cast<std::int64_t>(random.next() >> 40) - (1 << 23)) * 0x1.0p-23f;
  };
  fill(x);
  fill(w);
  ORRERY_TRY(f32, check_dtype(DType::f32, x, w));
  ORRERY_TRY(bf16, check_dtype(DType::bf16, x, w));
  ORRERY_TRY(int8, check_dtype(DType::i8, x, w));
  return product_library() + ", f32 " + f32 + ", bf16 " + bf16 + ", int8 " + int8 + ", kernels " + std::string(kernel_instruction_set()) +
         ", tiles " + std::to_string(tile_rows) + "x" + std::to_string(block_columns);
}

}  // namespace orrery::cards
