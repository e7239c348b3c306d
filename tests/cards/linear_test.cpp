// Holds: products against plain loops in double; row, column, slice and thread invariance; tree sums.
//
// Tolerance of a product of length K: each of K fused steps rounds once, so |got - exact| <= (K + 2) 2^-24 sum|x w|;
// a bf16 output adds half a unit of its last place, 2^-9 |exact|.

#include <cstdlib>
#include <filesystem>

#include "base/slice_tree.hpp"
#include "cards/kernels/kernels.hpp"
#include "tests/support/one_op.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

/// As on a machine with matrix units; see the last case.
const bool library_products = [] {
  if (std::getenv("ORRERY_TEST_LIBRARY_PRODUCTS") == nullptr) return false;
  prefer_library_products();
  return true;
}();

double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }

struct Exact {
  std::vector<double> values, bounds;
};

Exact product(const std::vector<float>& x, const std::vector<float>& w, std::uint64_t rows, std::uint64_t N, std::uint64_t K) {
  Exact exact;
  for (std::uint64_t i = 0; i < rows; ++i)
    for (std::uint64_t j = 0; j < N; ++j) {
      double sum = 0, size = 0;
      for (std::uint64_t k = 0; k < K; ++k) {
        const double term = double{x[i * K + k]} * double{w[j * K + k]};
        sum += term;
        size += std::abs(term);
      }
      exact.values.push_back(sum);
      exact.bounds.push_back(static_cast<double>(K + 2) * 0x1p-24 * size);
    }
  return exact;
}

Tensor rows_of(const Tensor& tensor, std::uint64_t begin, std::uint64_t end) {
  const auto row_bytes = tensor.bytes() / tensor.shape()[0];
  Shape shape = tensor.shape();
  shape[0] = end - begin;
  Tensor part(tensor.dtype(), shape);
  std::memcpy(part.data(), tensor.data() + begin * row_bytes, part.bytes());
  return part;
}

Tensor run_linear(const Tensor& x, const Tensor& w, DType weight_dtype, DType out, std::uint32_t threads = 1) {
  OneOp op(Op::linear);
  op.input(x);
  op.weight(w, WeightForm::matrix, weight_dtype);
  const auto y = op.output(out, {x.shape()[0], w.shape()[0]});
  op.run(threads);
  return op.result(y);
}

}  // namespace

TEST_CASE("linear: agrees with a plain product for all dtypes and odd sizes", "[cards][linear]") {
  const auto x_dtype = GENERATE(DType::f32, DType::bf16);
  const auto w_dtype = GENERATE(DType::f32, DType::bf16);
  const auto out = GENERATE(DType::f32, DType::bf16);
  struct Size { std::uint64_t rows, N, K; };
  for (const auto& size : {Size{1, 1, 1}, Size{7, 16, 24}, Size{65, 300, 68}, Size{130, 17, 515}, Size{64, 512, 33}}) {
    const auto x = random_tensor(x_dtype, {size.rows, size.K}, 1);
    const auto w = random_tensor(w_dtype, {size.N, size.K}, 2);
    auto x_values = floats_of(x);
    if (w_dtype == DType::bf16)  // An f32 source is rounded first.
      for (auto& value : x_values) value = f32_of_bf16(bf16_of(value));
    auto exact = product(x_values, floats_of(w), size.rows, size.N, size.K);
    if (out == DType::bf16)
      for (std::size_t i = 0; i < exact.bounds.size(); ++i) exact.bounds[i] += 0x1p-8 * std::abs(exact.values[i]);
    require_near(floats_of(run_linear(x, w, w_dtype, out)), exact.values, exact.bounds);
  }
}

TEST_CASE("linear: adds the bias, then activates", "[cards][linear]") {
  const auto activation = GENERATE(Activation::none, Activation::gelu, Activation::relu, Activation::silu);
  const std::uint64_t rows = 9, N = 40, K = 32;
  const auto x = random_tensor(DType::f32, {rows, K}, 1), w = random_tensor(DType::f32, {N, K}, 2);
  const auto bias = random_tensor(DType::f32, {N}, 3);
  OneOp op(Op::linear);
  op.input(x);
  op.weight(w, WeightForm::matrix, DType::f32);
  op.weight(bias, WeightForm::vector, DType::f32);
  op.attr(Attr::activation, static_cast<double>(activation));
  const auto y = op.output(DType::f32, {rows, N});
  op.run();
  auto exact = product(floats_of(x), floats_of(w), rows, N, K);
  for (std::size_t i = 0; i < exact.values.size(); ++i) {
    auto& value = exact.values[i];
    value += double{floats_of(bias)[i % N]};
    if (activation == Activation::gelu) value = gelu(value);
    if (activation == Activation::relu) value = std::max(value, 0.0);
    if (activation == Activation::silu) value = value / (1 + std::exp(-value));
    exact.bounds[i] = exact.bounds[i] * 1.2 + std::abs(value) * 1e-6 + 1e-7;  // Slopes are at most 1.13.
  }
  require_near(op.values(y), exact.values, exact.bounds);
}

TEST_CASE("linear: a row's bits depend on no other row, on no place in a tile, on no thread", "[cards][linear][bits]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16, DType::i8);
  const std::uint64_t rows = 200, N = 330, K = 1100;
  const auto x_dtype = dtype == DType::i8 ? DType::f32 : dtype;
  const auto x = random_tensor(x_dtype, {rows, K}, 1), w = random_tensor(x_dtype, {N, K}, 2);
  const auto whole = run_linear(x, w, dtype, DType::f32);
  for (const std::uint32_t threads : {2, 3}) CHECK(same_bits(run_linear(x, w, dtype, DType::f32, threads), whole));
  struct Part { std::uint64_t begin, end; };
  for (const auto& part : {Part{0, 1}, Part{1, 2}, Part{63, 65}, Part{5, 200}, Part{100, 133}, Part{199, 200}, Part{3, 20}})
    CHECK(same_bits(run_linear(rows_of(x, part.begin, part.end), w, dtype, DType::f32), rows_of(whole, part.begin, part.end)));
}

TEST_CASE("linear: int8 is near the exact product by the steps of both sides", "[cards][linear][int8]") {
  const auto x_dtype = GENERATE(DType::f32, DType::bf16);
  struct Size { std::uint64_t rows, N, K; };
  for (const auto& size : {Size{1, 1, 1}, Size{7, 16, 24}, Size{65, 300, 67}, Size{130, 17, 515}, Size{64, 512, 1000}}) {
    const auto x = random_tensor(x_dtype, {size.rows, size.K}, 1), w = random_tensor(DType::f32, {size.N, size.K}, 2);
    const auto x_values = floats_of(x), w_values = floats_of(w);
    auto exact = product(x_values, w_values, size.rows, size.N, size.K);
    const auto steps = [&](const std::vector<float>& values, std::uint64_t row) {
      double most = 0, sum = 0;
      for (std::uint64_t k = 0; k < size.K; ++k) {
        most = std::max(most, double{std::abs(values[row * size.K + k])});
        sum += std::abs(values[row * size.K + k]);
      }
      return std::pair(most / 254 * 1.001, sum);  // Half a step, and what it multiplies.
    };
    for (std::uint64_t i = 0; i < size.rows; ++i)
      for (std::uint64_t j = 0; j < size.N; ++j) {
        const auto [x_step, x_sum] = steps(x_values, i);
        const auto [w_step, w_sum] = steps(w_values, j);
        exact.bounds[i * size.N + j] = x_step * w_sum + w_step * x_sum + x_step * w_step * static_cast<double>(size.K) + 1e-5;
      }
    require_near(floats_of(run_linear(x, w, DType::i8, DType::f32)), exact.values, exact.bounds);
  }
}

TEST_CASE("linear_to_slices: each slice is the product with its own rows of the weight", "[cards][linear][bits]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const std::uint64_t rows = 70, width = 48, K = 96, V = 4;
  const auto x = random_tensor(dtype, {rows, K}, 1), w = random_tensor(dtype, {V * width, K}, 2);
  OneOp op(Op::linear_to_slices);
  op.input(x);
  for (const std::uint64_t slice : {1, 3}) op.weight_part(w, WeightForm::matrix, dtype, slice * width, (slice + 1) * width, 0, K);
  op.attr(Attr::activation, static_cast<double>(Activation::gelu)).slices({1, 3});
  const auto y = op.output(dtype, {2, rows, width});
  op.run(2);
  for (const std::uint64_t i : {0, 1}) {
    OneOp alone(Op::linear_to_slices);
    alone.input(x);
    const auto slice = i == 0 ? std::uint64_t{1} : std::uint64_t{3};
    alone.weight_part(w, WeightForm::matrix, dtype, slice * width, (slice + 1) * width, 0, K);
    alone.attr(Attr::activation, static_cast<double>(Activation::gelu));
    const auto z = alone.output(dtype, {1, rows, width});
    alone.run();
    CHECK(std::memcmp(op.result(y).data() + i * alone.result(z).bytes(), alone.result(z).data(), alone.result(z).bytes()) == 0);
  }
}

namespace {

/// Pieces of the owned slices.
Tensor pieces(const Tensor& x, const Tensor& w, std::vector<std::uint32_t> owned, std::uint32_t V, std::uint32_t threads) {
  const auto rows = x.shape()[1], width = x.shape()[2], D = w.shape()[0];
  Tensor mine(x.dtype(), {owned.size(), rows, width});
  const auto slice_bytes = rows * width * size_of(x.dtype());
  for (std::size_t i = 0; i < owned.size(); ++i)
    std::memcpy(mine.data() + i * slice_bytes, x.data() + owned[i] * slice_bytes, slice_bytes);
  OneOp op(Op::linear_from_slices);
  op.input(mine);
  for (const auto slice : owned) op.weight_part(w, WeightForm::matrix, w.dtype(), 0, D, slice * width, (slice + 1) * width);
  const auto count = pieces_of(owned, V).size();
  op.attr(Attr::slice_count, V).slices(std::move(owned));
  const auto y = op.output(DType::f32, {count, rows, D});
  op.run(threads);
  return op.result(y);
}

/// The tree sum over `range` from the pieces of several owners.
std::vector<float> tree_sum(SliceRange range, const std::vector<std::pair<SliceRange, std::vector<float>>>& parts) {
  for (const auto& [piece, values] : parts)
    if (piece == range) return values;
  REQUIRE(range.count() > 1);
  const auto split = split_of(range);
  auto sum = tree_sum({range.begin, split}, parts);
  const auto right = tree_sum({split, range.end}, parts);
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += right[i];
  return sum;
}

}  // namespace

TEST_CASE("linear_from_slices: whoever owns the slices, the tree sum has the same bits", "[cards][linear][bits]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const std::uint32_t V = GENERATE(1u, 5u, 8u);
  const std::uint64_t rows = 71, width = 40, D = 270;
  const auto x = random_tensor(dtype, {V, rows, width}, 1), w = random_tensor(dtype, {D, V * width}, 2);
  std::vector<std::uint32_t> all;
  for (std::uint32_t i = 0; i < V; ++i) all.push_back(i);
  const auto whole = floats_of(pieces(x, w, all, V, 1));

  // Against a plain sum.
  std::vector<float> flat(rows * V * width);
  const auto values = floats_of(x);
  for (std::uint64_t s = 0; s < V; ++s)
    for (std::uint64_t r = 0; r < rows; ++r)
      for (std::uint64_t c = 0; c < width; ++c) flat[(r * V + s) * width + c] = values[(s * rows + r) * width + c];
  const auto exact = product(flat, floats_of(w), rows, D, V * width);
  require_near(whole, exact.values, exact.bounds);

  for (std::uint32_t pattern = 0; pattern < (1u << V) - 1; pattern += 1 + pattern / 8) {
    std::vector<std::pair<SliceRange, std::vector<float>>> parts;
    for (const bool side : {false, true}) {
      std::vector<std::uint32_t> owned;
      for (std::uint32_t i = 0; i < V; ++i)
        if (((pattern >> i) & 1u) == (side ? 1u : 0u)) owned.push_back(i);
      if (owned.empty()) continue;
      const auto result = floats_of(pieces(x, w, owned, V, side ? 2 : 1));
      const auto ranges = pieces_of(owned, V);
      for (std::size_t p = 0; p < ranges.size(); ++p)
        parts.emplace_back(ranges[p], std::vector<float>(result.begin() + static_cast<std::ptrdiff_t>(p * rows * D),
                                                         result.begin() + static_cast<std::ptrdiff_t>((p + 1) * rows * D)));
    }
    REQUIRE(tree_sum({0, V}, parts) == whole);
  }
}

TEST_CASE("numerics: this machine keeps the promise of equal bits", "[cards][numerics][bits]") {
  const auto text = check_numerics();
  if (!text.ok()) FAIL(text.error().text());
  CHECK(text.value().find("oneDNN") != std::string::npos);
  CHECK(text.value().find("tiles 64x64") != std::string::npos);
}

TEST_CASE("linear: operands that do not fit are refused by name", "[cards][linear][fault]") {
  OneOp op(Op::linear);
  op.input(random_tensor(DType::f32, {4, 8}, 1));
  op.weight(random_tensor(DType::f32, {16, 9}, 2), WeightForm::matrix, DType::f32);
  op.output(DType::f32, {4, 16});
  const auto status = op.try_run();
  REQUIRE(!status.ok());
  CHECK(status.error().code == ErrorCode::internal);
  CHECK(status.error().message.find("command test (linear)") != std::string::npos);
}

TEST_CASE("linear: all of this holds where oneDNN does the products", "[cards][bits]") {
  // Which kernels are used is settled once per process, so the cases run again in a child.
  if (library_products) return;
  const auto self = std::filesystem::read_symlink("/proc/self/exe").string();
  CHECK(std::system(("ORRERY_TEST_LIBRARY_PRODUCTS=1 '" + self + "' '[linear],[numerics]' > /dev/null").c_str()) == 0);
}
