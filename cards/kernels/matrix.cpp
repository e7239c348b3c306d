// PackedMatrix, and the products built on it. The only product file that includes oneDNN.
//
// Our own panel kernels (simd.hpp) do the products: an element is one chain of fused steps along K, whatever stands beside
// it. They reach what oneDNN reaches with large matrices, and more with the tiles that we need (README.md). Where oneDNN
// has matrix units that we do not program (AMX), it does: its brgemm kernels keep their bits as long as source and
// destination are compact (measured with avx512_core; check_numerics repeats it on each machine).

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

#include <oneapi/dnnl/dnnl.hpp>
#include <omp.h>

#include "cards/kernels/kernels.hpp"
#include "cards/kernels/simd.hpp"

namespace orrery::cards {
namespace {

constexpr std::array<std::uint32_t, 4> tile_heights = {64, 32, 16, 8};
constexpr std::size_t height_index(std::uint32_t rows) { return rows > 32 ? 0 : rows > 16 ? 1 : rows > 8 ? 2 : 3; }

constexpr std::uint64_t round_up(std::uint64_t count, std::uint64_t unit) { return (count + unit - 1) / unit * unit; }
constexpr std::uint64_t aligned(std::uint64_t bytes) { return round_up(bytes, 64); }

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

dnnl::stream& stream_of_this_thread() {
  thread_local dnnl::stream stream(engine());
  return stream;
}

/// Compiled products of one block shape: x[height, K] times W[K, columns], for each tile height.
struct BlockKernel {
  std::uint32_t columns = 0;
  std::uint64_t K = 0;
  DType dtype = DType::f32;
  bool brgemm = false;
  std::string implementation;  // "brg:avx512_core_bf16_amx_bf16", or ours: "panel", "pairs", "quads".
  std::uint64_t packed_bytes = 0;

  bool pairs() const { return !brgemm && dtype == DType::bf16 && K % 2 == 0 && simd().multiply_pairs != nullptr; }
  /// Columns in whole panels, of our own kernels.
  std::uint64_t width() const { return round_up(columns, simd().panel_columns); }

  // Only for brgemm.
  dnnl::memory::desc plain, packed;  // W as [K, columns] over rows of W, and as the kernels want it.
  std::array<dnnl::memory::desc, 4> source, target, scratchpad;
  std::array<dnnl::matmul, 4> products;
};

/// Set by tests only.
bool library_preferred = false;

/// Fills in oneDNN's products of the block where they use matrix units; else false.
bool use_matrix_units(BlockKernel& kernel) {
  using dnnl::memory;
  omp_set_num_threads(1);  // oneDNN plans a kernel for the threads that it sees now.
  const auto type = kernel.dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const auto depth = static_cast<memory::dim>(kernel.K);
  const auto width = static_cast<memory::dim>(kernel.columns);
  try {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    auto weights = memory::desc({depth, width}, type, memory::format_tag::any);
    std::string implementation;
    for (std::size_t i = 0; i < tile_heights.size(); ++i) {
      const memory::dim height = tile_heights[i];
      const memory::desc source({height, depth}, type, memory::format_tag::ab);
      const memory::desc target({height, width}, memory::data_type::f32, memory::format_tag::ab);
      const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(source, weights, target), attributes, engine());
      const std::string name = description.impl_info_str();
      if (name.compare(0, 4, "brg:") != 0 || (name.find("amx") == std::string::npos && !library_preferred)) return false;
      if (i == 0) {
        weights = description.weights_desc();  // The other heights must take the same packing.
        implementation = name;
      }
      kernel.source[i] = source;
      kernel.target[i] = target;
      kernel.scratchpad[i] = description.scratchpad_desc();
      kernel.products[i] = dnnl::matmul(description);
    }
    kernel.plain = memory::desc({depth, width}, type, memory::format_tag::ba);
    kernel.packed = weights;
    kernel.implementation = implementation;
    kernel.packed_bytes = aligned(weights.get_size());
    kernel.brgemm = true;
    return true;
  } catch (const dnnl::error&) {  // No such kernel on this machine.
    return false;
  }
}

std::unique_ptr<BlockKernel> make_block_kernel(std::uint32_t columns, std::uint64_t K, DType dtype) {
  auto kernel = std::make_unique<BlockKernel>();
  kernel->columns = columns;
  kernel->K = K;
  kernel->dtype = dtype;
  if (dtype == DType::i8) {
    // Panels, then for each column its scale and 128 times its sum.
    kernel->implementation = "quads";
    kernel->packed_bytes = aligned(kernel->width() * (round_up(K, 4) + sizeof(float) + sizeof(std::int32_t)));
    return kernel;
  }
  if (use_matrix_units(*kernel)) return kernel;
  kernel->implementation = kernel->pairs() ? "pairs" : "panel";
  kernel->packed_bytes = aligned(kernel->width() * K * size_of(dtype));
  return kernel;
}

/// Compiled kernels of the process, made on first use. They hold no weights.
const BlockKernel& block_kernel(std::uint32_t columns, std::uint64_t K, DType dtype) {
  static std::mutex mutex;
  static std::map<std::tuple<std::uint32_t, std::uint64_t, DType>, std::unique_ptr<BlockKernel>> kernels;
  const std::lock_guard lock(mutex);
  auto& kernel = kernels[{columns, K, dtype}];
  if (!kernel) kernel = make_block_kernel(columns, K, dtype);
  return *kernel;
}

/// W rows [columns][K] to panels [columns / panel][K][panel], zero-padded.
template <class T>
void pack_panels(const T* rows, std::uint64_t columns, std::uint64_t K, T* panels) {
  const auto width = simd().panel_columns;
  for (std::uint64_t first = 0; first < columns; first += width, panels += K * width)
    for (std::uint64_t k = 0; k < K; ++k)
      for (std::uint64_t j = 0; j < width; ++j)
        panels[k * width + j] = first + j < columns ? rows[(first + j) * K + k] : T{};
}

/// Rows of `words` 4-byte elements to panels [columns / panel][words][panel], zero-padded: for elements in pairs and fours.
void pack_words(const std::uint32_t* rows, std::uint64_t columns, std::uint64_t words, std::uint32_t* panels) {
  const auto width = simd().panel_columns;
  for (std::uint64_t first = 0; first < columns; first += width, panels += words * width) {
    const auto count = std::min(width, columns - first);
    if (count < width) std::memset(panels, 0, words * width * sizeof(std::uint32_t));
    simd().transpose(rows + first * words, words, count, words, panels, width);
  }
}

/// Where the parts of an int8 block lie.
struct QuadBlock {
  std::int8_t* panels;
  float* scales;
  std::int32_t* offsets;
  QuadBlock(const BlockKernel& kernel, std::byte* data)
      : panels(reinterpret_cast<std::int8_t*>(data)),
        scales(reinterpret_cast<float*>(data + kernel.width() * round_up(kernel.K, 4))),
        offsets(reinterpret_cast<std::int32_t*>(scales + kernel.width())) {}
};

/// f32 rows [columns][K], each rounded to 255 steps of its own size, to panels.
void pack_quads(const BlockKernel& kernel, const float* rows, std::byte* data) {
  const QuadBlock block(kernel, data);
  const auto depth = round_up(kernel.K, 4);
  std::vector<std::uint32_t> words(kernel.columns * depth / 4);
  auto* bytes = reinterpret_cast<std::uint8_t*>(words.data());
  std::memset(block.scales, 0, kernel.width() * (sizeof(float) + sizeof(std::int32_t)));
  for (std::uint32_t column = 0; column < kernel.columns; ++column) {
    auto* row = bytes + column * depth;
    block.scales[column] = simd().quantize({rows + column * kernel.K, false}, kernel.K, depth, row);
    std::int32_t sum = 0;
    for (std::uint64_t k = 0; k < depth; ++k) {
      row[k] ^= 0x80U;  // From 128 + value to the signed value.
      sum += static_cast<std::int8_t>(row[k]);
    }
    block.offsets[column] = 128 * sum;
  }
  pack_words(words.data(), kernel.columns, depth / 4, reinterpret_cast<std::uint32_t*>(block.panels));
}

/// A tile of int8 rows: [height][K rounded up to 4] bytes, then a scale for each row.
float* scales_of_tile(std::byte* tile, std::uint32_t height, std::uint64_t K) {
  return reinterpret_cast<float*>(tile + aligned(height * round_up(K, 4)));
}
std::uint64_t tile_bytes(std::uint32_t height, std::uint64_t K, DType dtype) {
  return dtype == DType::i8 ? aligned(height * round_up(K, 4)) + height * sizeof(float) : height * K * size_of(dtype);
}

}  // namespace

struct PackedMatrix::State {
  std::uint64_t N = 0, K = 0;
  DType dtype = DType::f32;
  struct Block {
    const BlockKernel* kernel = nullptr;
    std::byte* data = nullptr;
    dnnl::memory weights;  // Refers to `data`; only read by products.
  };
  std::vector<Block> blocks;
};

std::uint64_t PackedMatrix::packed_bytes(std::uint64_t N, std::uint64_t K, DType dtype) {
  const auto full = N / block_columns, rest = N % block_columns;
  std::uint64_t bytes = 0;
  if (full > 0) bytes += full * block_kernel(block_columns, K, dtype).packed_bytes;
  if (rest > 0) bytes += block_kernel(static_cast<std::uint32_t>(rest), K, dtype).packed_bytes;
  return bytes;
}

PackedMatrix PackedMatrix::pack(std::uint64_t N, std::uint64_t K, DType dtype, const RowReader& read,
                                std::span<std::byte> memory) {
  ORRERY_CHECK(N > 0 && K > 0 && (dtype == DType::f32 || dtype == DType::bf16 || (dtype == DType::i8 && K <= int8_depth_max)));
  auto state = std::make_shared<State>();
  state->N = N;
  state->K = K;
  state->dtype = dtype;
  const auto read_bytes = dtype == DType::i8 ? sizeof(float) : size_of(dtype);
  std::vector<std::uint64_t> rows((std::min<std::uint64_t>(N, block_columns) * K * read_bytes + 7) / 8);
  auto* plain = reinterpret_cast<std::byte*>(rows.data());
  std::uint64_t offset = 0;
  for (std::uint64_t begin = 0; begin < N; begin += block_columns) {
    const auto columns = static_cast<std::uint32_t>(std::min<std::uint64_t>(block_columns, N - begin));
    const auto& kernel = block_kernel(columns, K, dtype);
    ORRERY_CHECK(offset + kernel.packed_bytes <= memory.size());
    read(begin, begin + columns, plain);
    State::Block block;
    block.kernel = &kernel;
    block.data = memory.data() + offset;
    if (kernel.brgemm) {
      omp_set_num_threads(1);
      block.weights = dnnl::memory(kernel.packed, engine(), block.data);
      dnnl::memory from(kernel.plain, engine(), plain);
      auto& stream = stream_of_this_thread();
      dnnl::reorder(from, block.weights).execute(stream, from, block.weights);
      stream.wait();
    } else if (dtype == DType::i8) {
      pack_quads(kernel, reinterpret_cast<const float*>(plain), block.data);
    } else if (kernel.pairs()) {
      pack_words(reinterpret_cast<const std::uint32_t*>(plain), columns, K / 2, reinterpret_cast<std::uint32_t*>(block.data));
    } else if (dtype == DType::bf16) {
      pack_panels(reinterpret_cast<const std::uint16_t*>(plain), columns, K, reinterpret_cast<std::uint16_t*>(block.data));
    } else {
      pack_panels(reinterpret_cast<const float*>(plain), columns, K, reinterpret_cast<float*>(block.data));
    }
    offset += kernel.packed_bytes;
    state->blocks.push_back(std::move(block));
  }
  PackedMatrix matrix;
  matrix.state_ = std::move(state);
  return matrix;
}

std::uint64_t PackedMatrix::N() const { return state_->N; }
std::uint64_t PackedMatrix::K() const { return state_->K; }
DType PackedMatrix::dtype() const { return state_->dtype; }
std::uint32_t PackedMatrix::block_count() const { return static_cast<std::uint32_t>(state_->blocks.size()); }
std::uint32_t PackedMatrix::columns_of(std::uint32_t block) const { return state_->blocks[block].kernel->columns; }
std::string PackedMatrix::implementation() const { return state_->blocks.front().kernel->implementation; }

void PackedMatrix::multiply(std::uint32_t block, const std::byte* x, std::uint32_t rows, float* acc,
                            Scratch& scratch) const {
  const auto& from = state_->blocks[block];
  const auto& kernel = *from.kernel;
  const auto i = height_index(rows);
  const auto mark = scratch.mark();
  if (kernel.brgemm) {
    auto* workspace = scratch.take(kernel.scratchpad[i].get_size() + 1);
    // Plain layouts have no padding, so making these touches no memory.
    dnnl::memory source(kernel.source[i], engine(), const_cast<std::byte*>(x));
    dnnl::memory target(kernel.target[i], engine(), acc);
    dnnl::memory scratchpad(kernel.scratchpad[i], engine(), workspace);
    const std::array<dnnl_exec_arg_t, 4> arguments = {{{DNNL_ARG_SRC, source.get()},
                                                       {DNNL_ARG_WEIGHTS, from.weights.get()},
                                                       {DNNL_ARG_DST, target.get()},
                                                       {DNNL_ARG_SCRATCHPAD, scratchpad.get()}}};
    auto& stream = stream_of_this_thread();
    ORRERY_CHECK(dnnl_primitive_execute(kernel.products[i].get(), stream.get(), arguments.size(), arguments.data()) ==
                 dnnl_success);
    scratch.release(mark);
    return;
  }
  // Ours. Results of whole panels, in place where the block has no others.
  const auto K = state_->K;
  const auto width = kernel.width();
  auto* wide = width == kernel.columns ? acc : scratch.take_of<float>(rows * width);
  if (kernel.dtype == DType::i8) {
    const QuadBlock quads(kernel, from.data);
    const auto depth = round_up(K, 4);
    const auto* scales = scales_of_tile(const_cast<std::byte*>(x), padded_rows(rows), K);
    auto* sums = reinterpret_cast<std::int32_t*>(wide);
    simd().multiply_quads(quads.panels, kernel.columns, depth / 4, reinterpret_cast<const std::uint8_t*>(x), depth, rows, sums, width, false);
    for (std::uint32_t r = 0; r < rows; ++r)
      simd().dequantize(sums + r * width, quads.offsets, quads.scales, scales[r], wide + r * width, kernel.columns);
  } else if (kernel.pairs()) {
    simd().multiply_pairs(reinterpret_cast<const std::uint16_t*>(from.data), kernel.columns, K / 2, reinterpret_cast<const std::uint16_t*>(x), K, rows,
                          wide, width, false);
  } else {
    const auto bf16 = kernel.dtype == DType::bf16;
    const auto* values = reinterpret_cast<const float*>(x);
    if (bf16) {
      auto* copy = scratch.take_of<float>(rows * K);
      simd().convert({x, true}, {copy, false}, rows * K);
      values = copy;
    }
    simd().multiply(from.data, bf16, kernel.columns, K, values, K, rows, wide, width, false);
  }
  if (wide != acc)
    for (std::uint32_t r = 0; r < rows; ++r)
      std::memcpy(acc + std::uint64_t{r} * kernel.columns, wide + r * width, kernel.columns * sizeof(float));
  scratch.release(mark);
}

void prefer_library_products() { library_preferred = true; }

std::string product_library() {
  const auto* version = dnnl::version();
  return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
         std::to_string(version->patch);
}

void convert(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype, std::uint64_t count) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, count * size_of(from_dtype));
    return;
  }
  simd().convert({from, from_dtype == DType::bf16}, {to, to_dtype == DType::bf16}, count);
}

void activate(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype, std::uint64_t count,
              Activation activation) {
  simd().activate({from, from_dtype == DType::bf16}, {to, to_dtype == DType::bf16}, count, static_cast<int>(activation));
}

void add(const std::byte* a, DType a_dtype, const std::byte* b, DType b_dtype, std::byte* to, DType to_dtype,
         std::uint64_t count) {
  simd().add({a, a_dtype == DType::bf16}, {b, b_dtype == DType::bf16}, {to, to_dtype == DType::bf16}, count);
}

void finish_tile(const float* acc, std::uint32_t rows, std::uint32_t columns, const ProductOutput& output,
                 std::uint64_t row, std::uint64_t first_column) {
  const auto* bias = output.bias == nullptr ? nullptr : output.bias + first_column;
  for (std::uint32_t r = 0; r < rows; ++r) {
    auto* to = output.data + ((row + r) * output.row_stride + first_column) * size_of(output.dtype);
    simd().finish(acc + std::uint64_t{r} * columns, bias, {to, output.dtype == DType::bf16}, columns,
                  static_cast<int>(output.activation));
  }
}

std::uint64_t column_groups(const ThreadPool& pool, std::uint64_t tiles, std::uint64_t blocks) {
  const std::uint64_t jobs_wanted = std::uint64_t{pool.thread_count()} * 32;
  if (pool.thread_count() == 1 || tiles == 0 || tiles >= jobs_wanted) return 1;
  return std::min(blocks, (jobs_wanted + tiles - 1) / tiles);
}

namespace {

/// Runs every block of every matrix on every row tile. `source(row, count, height, scratch)` gives a tile of x:
/// `height` rows of K in the matrices' dtype, of which `count` matter.
template <class Source>
void run_products(ThreadPool& pool, std::span<const PackedMatrix* const> matrices, std::uint64_t rows,
                  std::span<const ProductOutput> outputs, const Source& source) {
  struct Work {
    std::size_t matrix;
    std::uint32_t block;
  };
  std::vector<Work> work;
  for (std::size_t i = 0; i < matrices.size(); ++i)
    for (std::uint32_t block = 0; block < matrices[i]->block_count(); ++block) work.push_back({i, block});
  // A job is one row tile times some blocks: all of them when there are tiles enough for the threads, so that
  // the source is made once.
  const auto tiles = (rows + tile_rows - 1) / tile_rows;
  const auto groups = column_groups(pool, tiles, work.size());
  pool.parallel_for(tiles * groups, [&](std::uint64_t job, Scratch& scratch) {
    const auto row = job / groups * tile_rows;
    const auto group = job % groups;
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(tile_rows, rows - row));
    const auto height = padded_rows(count);
    const std::byte* x = source(row, count, height, scratch);
    auto* acc = scratch.take_of<float>(std::uint64_t{height} * block_columns);
    for (auto i = work.size() * group / groups; i < work.size() * (group + 1) / groups; ++i) {
      const auto& matrix = *matrices[work[i].matrix];
      matrix.multiply(work[i].block, x, count, acc, scratch);
      finish_tile(acc, count, matrix.columns_of(work[i].block), outputs[work[i].matrix], row,
                  std::uint64_t{work[i].block} * block_columns);
    }
  });
}

}  // namespace

void product(ThreadPool& pool, const PackedMatrix& matrix, std::uint64_t rows, const RowWriter& write,
             const ProductOutput& output) {
  ORRERY_CHECK(matrix.dtype() != DType::i8);  // Whose tiles have scales, too.
  const auto* const one = &matrix;
  const auto row_bytes = matrix.K() * size_of(matrix.dtype());
  run_products(pool, std::span(&one, 1), rows, std::span(&output, 1),
               [&](std::uint64_t row, std::uint32_t count, std::uint32_t height, Scratch& scratch) {
                 auto* x = scratch.take(height * row_bytes);
                 write(row, count, x, scratch);
                 std::memset(x + count * row_bytes, 0, (height - count) * row_bytes);
                 return x;
               });
}

const std::byte* tile_of_rows(const std::byte* x, DType x_dtype, std::uint64_t K, DType dtype, std::uint64_t row,
                              std::uint32_t count, Scratch& scratch) {
  const auto height = padded_rows(count);
  const auto* from = x + row * K * size_of(x_dtype);
  if (x_dtype == dtype && height == count) return from;
  auto* tile = scratch.take(tile_bytes(height, K, dtype));
  if (dtype == DType::i8) {
    const auto depth = round_up(K, 4);
    auto* scales = scales_of_tile(tile, height, K);
    for (std::uint32_t r = 0; r < count; ++r)
      scales[r] = simd().quantize({from + r * K * size_of(x_dtype), x_dtype == DType::bf16}, K, depth,
                                  reinterpret_cast<std::uint8_t*>(tile) + r * depth);
    return tile;
  }
  convert(from, x_dtype, tile, dtype, count * K);
  std::memset(tile + count * K * size_of(dtype), 0, (height - count) * K * size_of(dtype));
  return tile;
}

void products_of_rows(ThreadPool& pool, std::span<const PackedMatrix* const> matrices, std::uint64_t rows,
                      const std::byte* x, DType x_dtype, std::span<const ProductOutput> outputs) {
  if (matrices.empty()) return;
  const auto K = matrices[0]->K();
  const auto dtype = matrices[0]->dtype();
  run_products(pool, matrices, rows, outputs,
               [&](std::uint64_t row, std::uint32_t count, std::uint32_t, Scratch& scratch) {
                 return tile_of_rows(x, x_dtype, K, dtype, row, count, scratch);
               });
}

void product_of_rows(ThreadPool& pool, const PackedMatrix& matrix, std::uint64_t rows, const std::byte* x,
                     DType x_dtype, const ProductOutput& output) {
  const auto* const one = &matrix;
  products_of_rows(pool, std::span(&one, 1), rows, x, x_dtype, std::span(&output, 1));
}

}  // namespace orrery::cards
