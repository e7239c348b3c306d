// Kernels of the cpu card: the thread pool, the tile product, and one function for each operation.
//
// Every kernel computes canonical tiles: an output's bits depend on its own row, its own column and the
// model's shapes, never on how many rows a call has, which thread computes a tile, or what is computed
// beside it. Threads share tiles out; no tile is ever shared by threads.
//
//   source rows ──64 at a time──▶ tile [64, K] ──panel kernel──▶ f32 [64, 64] ──finish──▶ output slot
//                                                ▲
//                        PackedMatrix: columns in fixed blocks of 64, packed once at load
//
// oneDNN's types stay in matrix.cpp. See README.md, "Why tiles".

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "base/row_split.hpp"
#include "base/tensor.hpp"
#include "cards/program.hpp"

namespace orrery::cards {

/// Working memory of one thread of a pool: buffers that grow to the largest size asked for and are kept.
/// Not card memory; the counterpart of an accelerator's on-chip buffers.
class Scratch {
public:
  /// 64-byte aligned, contents undefined, valid until the current tile is done.
  std::byte* take(std::uint64_t bytes);
  template <class T>
  T* take_of(std::uint64_t count) {
    return reinterpret_cast<T*>(take(count * sizeof(T)));
  }
  /// Everything taken since `mark()` is free again.
  std::size_t mark() const { return used_; }
  void release(std::size_t mark) { used_ = mark; }
  /// What is kept, in use or not.
  std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const auto& buffer : buffers_) sum += buffer.size() * sizeof(Line);
    return sum;
  }

private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<std::vector<Line>> buffers_;
  std::size_t used_ = 0;
};

/// A fixed set of threads that share out tiles. With k = 1 everything runs inline on the caller.
///
/// Threads: one `parallel_for` at a time (the card's command lock sees to that). Nothing spins while idle.
class ThreadPool {
public:
  explicit ThreadPool(std::uint32_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::uint32_t thread_count() const;
  /// Working memory that all threads keep. Not while a parallel_for runs.
  std::uint64_t scratch_bytes() const;
  /// Calls `tile(i, scratch)` once for each i < count, on any thread in any order; returns when all are done.
  void parallel_for(std::uint64_t count, const std::function<void(std::uint64_t, Scratch&)>& tile);

private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Rows of a full tile, and columns of a full block of a PackedMatrix.
inline constexpr std::uint32_t tile_rows = 64;
inline constexpr std::uint32_t block_columns = 64;
/// Rows that a tile of `rows` (1..64) is padded to: 8, 16, 32 or 64.
constexpr std::uint32_t padded_rows(std::uint32_t rows) { return rows > 32 ? 64 : rows > 16 ? 32 : rows > 8 ? 16 : 8; }

/// Longest sum of an int8 product: it must fit in 32 bits.
inline constexpr std::uint64_t int8_depth_max = 65536;

/// A weight W[N,K] packed for x W^T. Its bytes lie in card memory; this object only refers to them.
///
/// Each block of columns is a product of our own panel kernels, or of oneDNN where it has matrix units for the block's
/// (columns, K, dtype). The choice never looks at row counts.
///
/// int8: W[n][k] ~ scale[n] q[n][k] with q in -127..127, and each row of x likewise with a scale of its own when a tile is
/// made; products of q are summed in whole numbers, exactly, and scaled back to f32 once.
class PackedMatrix {
public:
  /// Card memory that `pack` needs; N, K >= 1, dtype f32, bf16, or i8 with K <= int8_depth_max.
  static std::uint64_t packed_bytes(std::uint64_t N, std::uint64_t K, DType dtype);
  /// Gives rows [begin, end) of W as [end - begin, K] in the packed dtype (f32 for i8), written to `to`.
  using RowReader = std::function<void(std::uint64_t begin, std::uint64_t end, std::byte* to)>;
  /// Packs into `memory` (64-byte aligned, packed_bytes long), reading each row once, in order.
  static PackedMatrix pack(std::uint64_t N, std::uint64_t K, DType dtype, const RowReader& read,
                           std::span<std::byte> memory);

  std::uint64_t N() const;
  std::uint64_t K() const;
  DType dtype() const;
  std::uint32_t block_count() const;
  /// Columns of one block: 64, the last one fewer.
  std::uint32_t columns_of(std::uint32_t block) const;
  /// "panel", "pairs", "quads" of ours, or "brg:.._amx_..": what multiplies a full block.
  std::string implementation() const;

  /// acc[padded_rows(rows)][columns_of(block)] = x W_block^T in f32. `x` is a tile as tile_of_rows makes it: compact
  /// [padded_rows(rows)][K] in the matrix's dtype (rows past `rows` may hold anything); both are 4-byte aligned at least.
  void multiply(std::uint32_t block, const std::byte* x, std::uint32_t rows, float* acc, Scratch& scratch) const;

private:
  struct State;
  std::shared_ptr<const State> state_;
};

/// Where a product goes: rows of `row_stride` elements; act(value + bias), rounded to dtype once.
struct ProductOutput {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  std::uint64_t row_stride = 0;
  const float* bias = nullptr;  // [N] or none.
  Activation activation = Activation::none;
};

/// Writes source rows [begin, begin + count) (count <= 64) to `tile`: compact, K elements each, in the matrix's dtype.
using RowWriter = std::function<void(std::uint64_t begin, std::uint32_t count, std::byte* tile, Scratch& scratch)>;

/// output[rows, N] = act(x W^T + bias), where `write` makes the tiles of x (im2col and the like).
void product(ThreadPool& pool, const PackedMatrix& matrix, std::uint64_t rows, const RowWriter& write,
             const ProductOutput& output);
/// The same for x that lies in memory as compact [rows, K] of f32 or bf16.
void product_of_rows(ThreadPool& pool, const PackedMatrix& matrix, std::uint64_t rows, const std::byte* x,
                     DType x_dtype, const ProductOutput& output);
/// One x, several matrices of the same K and dtype, each with its output.
void products_of_rows(ThreadPool& pool, std::span<const PackedMatrix* const> matrices, std::uint64_t rows,
                      const std::byte* x, DType x_dtype, std::span<const ProductOutput> outputs);
/// Rows [row, row + count) of compact x[.., K] as a tile for `multiply`: x itself, or converted and padded in scratch.
const std::byte* tile_of_rows(const std::byte* x, DType x_dtype, std::uint64_t K, DType dtype, std::uint64_t row,
                              std::uint32_t count, Scratch& scratch);
/// Into how many jobs to cut the columns of each of `tiles` row tiles, so that all threads end at about the same time.
std::uint64_t column_groups(const ThreadPool& pool, std::uint64_t tiles, std::uint64_t blocks);
/// One block of a tile: adds bias, activates, rounds and writes `rows` rows of acc[][columns] to columns
/// [first_column, first_column + columns) of rows `row`...
void finish_tile(const float* acc, std::uint32_t rows, std::uint32_t columns, const ProductOutput& output,
                 std::uint64_t row, std::uint64_t first_column);

/// Element-wise helpers, vectorised; f32 and bf16 in any combination.
void convert(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype, std::uint64_t count);
void activate(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype, std::uint64_t count, Activation activation);
/// a + b in f32, rounded to the target's dtype.
void add(const std::byte* a, DType a_dtype, const std::byte* b, DType b_dtype, std::byte* to, DType to_dtype, std::uint64_t count);

// --- calls -----------------------------------------------------------------------------------------------

/// One operand of a command.
struct Operand {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  const Shape* shape = nullptr;

  std::uint64_t extent(std::size_t axis) const { return (*shape)[axis]; }
  std::size_t rank() const { return shape->size(); }
  std::uint64_t count() const { return element_count(*shape); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

/// A weight as it lies on the card: `matrix` for the packed forms, `data` for vector (f32) and table.
struct Weight {
  const WeightSpec* spec = nullptr;
  const std::byte* data = nullptr;
  const PackedMatrix* matrix = nullptr;

  const float* floats() const { return reinterpret_cast<const float*>(data); }
};

/// One command with its operands resolved.
struct Call {
  const Command& command;
  std::span<const Operand> inputs, outputs;
  std::span<const Weight> weights;
  const Scalars& scalars;
  ThreadPool& pool;
  std::optional<RowRange> only = {};  // Of an op for which runs_rows says so: these rows, the others stay as they are.

  RowRange rows_of(std::uint64_t all) const { return only ? RowRange{std::min(only->begin, all), std::min(only->end, all)} : RowRange{0, all}; }
  double scalar(Scalar which) const { return scalars[static_cast<std::size_t>(which)]; }
  Activation activation() const { return static_cast<Activation>(command.count(Attr::activation)); }
};

/// Leaves a kernel when operands do not fit: a program that `ProgramSet::check` should have refused.
#define ORRERY_OPERANDS(condition)                                                                         \
  do {                                                                                                     \
    if (!(condition))                                                                                      \
      return Error{ErrorCode::internal, "command " + call.command.label + " (" +                            \
                                            std::string(name_of(call.command.op)) + "): " #condition " does not hold"}; \
  } while (false)

/// Whether the op can be done for some rows of its output at a time, with the bits of all at once.
constexpr bool runs_rows(Op op) { return op == Op::linear_to_slices || op == Op::linear_from_slices || op == Op::head_norm_rope; }

using Kernel = Status (*)(const Call& call);
/// The table op -> function; null for exchange commands.
Kernel kernel_of(Op op);
/// The rows of that table for the video autoencoder's ops (video.cpp); null for any other.
Kernel video_kernel_of(Op op);

/// "avx512_bf16", "avx512", "avx2" or "sse2": the instruction set of our own kernels in this process.
std::string_view kernel_instruction_set();
/// "oneDNN 2.6.3".
std::string product_library();
/// For tests, before any matrix is packed: oneDNN does all products for which it has brgemm kernels, with matrix units or without.
void prefer_library_products();

}  // namespace orrery::cards
