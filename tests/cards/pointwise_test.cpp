// Holds: norms, gates, sums, activations, copies against plain loops in double; the same bits at every position.
//
// Tolerance: sums over D values are kept in 4 to 16 lanes, each off by at most D/lanes 2^-24 relative; 1e-5 relative to
// the largest term covers D <= 5120. bf16 outputs add 2^-8 relative.

#include "tests/support/one_op.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

double relative_of(DType dtype) { return dtype == DType::bf16 ? 0x1p-8 : 1e-6; }

}  // namespace

TEST_CASE("layer_norm_modulate: centres, scales and shifts each row", "[cards][pointwise]") {
  const auto out = GENERATE(DType::f32, DType::bf16);
  const auto D = GENERATE(std::uint64_t{1}, std::uint64_t{30}, std::uint64_t{64}, std::uint64_t{1027});
  const std::uint64_t R = 70;
  const auto x = random_tensor(DType::f32, {R, D}, 1), shift = random_tensor(DType::f32, {D}, 2), scale = random_tensor(DType::f32, {D}, 3);
  OneOp op(Op::layer_norm_modulate);
  op.input(x);
  op.input(shift);
  op.input(scale);
  op.attr(Attr::eps, 1e-6);
  const auto slot = op.output(out, {R, D});
  op.run(2);
  const auto in = floats_of(x), a = floats_of(shift), b = floats_of(scale);
  std::vector<double> wanted;
  for (std::uint64_t r = 0; r < R; ++r) {
    double mean = 0, variance = 0;
    for (std::uint64_t i = 0; i < D; ++i) mean += in[r * D + i];
    mean /= static_cast<double>(D);
    for (std::uint64_t i = 0; i < D; ++i) variance += (in[r * D + i] - mean) * (in[r * D + i] - mean);
    variance /= static_cast<double>(D);
    for (std::uint64_t i = 0; i < D; ++i) wanted.push_back((in[r * D + i] - mean) / std::sqrt(variance + 1e-6) * (1 + double{b[i]}) + double{a[i]});
  }
  require_near(op.values(slot), wanted, relative_of(out), 2e-5);
}

TEST_CASE("rms_norm: divides each row by its root mean square", "[cards][pointwise]") {
  const auto out = GENERATE(DType::f32, DType::bf16);
  const auto D = GENERATE(std::uint64_t{1}, std::uint64_t{30}, std::uint64_t{4096});
  const std::uint64_t R = 67;
  const auto x = random_tensor(DType::f32, {R, D}, 1), weight = random_tensor(DType::bf16, {D}, 2);
  OneOp op(Op::rms_norm);
  op.input(x);
  op.weight(weight, WeightForm::vector, DType::f32);
  op.attr(Attr::eps, 1e-6);
  const auto slot = op.output(out, {R, D});
  op.run();
  const auto in = floats_of(x), w = floats_of(weight);
  std::vector<double> wanted;
  for (std::uint64_t r = 0; r < R; ++r) {
    double squares = 0;
    for (std::uint64_t i = 0; i < D; ++i) squares += double{in[r * D + i]} * double{in[r * D + i]};
    for (std::uint64_t i = 0; i < D; ++i) wanted.push_back(in[r * D + i] / std::sqrt(squares / static_cast<double>(D) + 1e-6) * w[i]);
  }
  require_near(op.values(slot), wanted, relative_of(out), 2e-5);
}

TEST_CASE("gate_add: h grows by gate times y, in place", "[cards][pointwise]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const std::uint64_t R = 65, D = 37;
  const auto h = random_tensor(DType::f32, {R, D}, 1), gate = random_tensor(DType::f32, {D}, 2), y = random_tensor(dtype, {R, D}, 3);
  OneOp op(Op::gate_add);
  const auto slot = op.input(h);
  op.input(gate);
  op.input(y);
  op.output_in(slot);
  op.run(2);
  std::vector<double> wanted;
  const auto a = floats_of(h), g = floats_of(gate), b = floats_of(y);
  for (std::size_t i = 0; i < a.size(); ++i) wanted.push_back(double{a[i]} + double{g[i % D]} * double{b[i]});
  require_near(op.values(slot), wanted, 1e-6, 1e-6);
}

TEST_CASE("add: exact sums of any two dtypes, rounded once", "[cards][pointwise]") {
  const auto a_dtype = GENERATE(DType::f32, DType::bf16), b_dtype = GENERATE(DType::f32, DType::bf16), out = GENERATE(DType::f32, DType::bf16);
  const auto a = random_tensor(a_dtype, {40001}, 1), b = random_tensor(b_dtype, {40001}, 2);
  OneOp op(Op::add);
  op.input(a);
  op.input(b);
  const auto slot = op.output(out, {40001});
  op.run(2);
  std::vector<float> sums;
  const auto x = floats_of(a), y = floats_of(b);
  for (std::size_t i = 0; i < x.size(); ++i) sums.push_back(x[i] + y[i]);
  CHECK(same_bits(op.result(slot), tensor_of(out, {40001}, sums)));
}

TEST_CASE("activate: gelu, relu and silu to f32 precision over the whole range", "[cards][pointwise]") {
  const auto activation = GENERATE(Activation::gelu, Activation::relu, Activation::silu);
  std::vector<float> xs;
  for (double x = -12; x <= 12; x += 0.00071) xs.push_back(static_cast<float>(x));
  for (const float x : {0.0f, -0.0f, 1e-30f, -1e-30f, 100.0f, -100.0f, 1e30f, -1e30f}) xs.push_back(x);
  OneOp op(Op::activate);
  op.input(tensor_of(DType::f32, {xs.size()}, xs));
  op.attr(Attr::activation, static_cast<double>(activation));
  const auto slot = op.output(DType::f32, {xs.size()});
  op.run();
  std::vector<double> wanted, bound;
  for (const auto x : xs) {
    const double v = x;
    wanted.push_back(activation == Activation::gelu ? 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))) : activation == Activation::relu ? std::max(v, 0.0) : v / (1 + std::exp(-v)));
    bound.push_back(4e-7 * std::abs(wanted.back()) + 1e-7 * std::min(std::abs(v), 6.0));
  }
  require_near(op.values(slot), wanted, bound);
}

TEST_CASE("activate: an element's bits do not depend on its position", "[cards][pointwise][bits]") {
  const auto activation = GENERATE(Activation::gelu, Activation::silu);
  const auto x = floats_of(random_tensor(DType::f32, {100}, 1));
  const auto run = [&](std::vector<float> values) {
    OneOp op(Op::activate);
    const auto count = values.size();
    op.input(tensor_of(DType::f32, {count}, values));
    op.attr(Attr::activation, static_cast<double>(activation));
    const auto slot = op.output(DType::f32, {count});
    op.run();
    return op.values(slot);
  };
  const auto whole = run(x);
  for (std::size_t begin = 1; begin < 40; ++begin) CHECK(run({x.begin() + static_cast<std::ptrdiff_t>(begin), x.end()}) == std::vector<float>(whole.begin() + static_cast<std::ptrdiff_t>(begin), whole.end()));
}

TEST_CASE("slice_columns and copy_rows: take what they are told and nothing outside", "[cards][pointwise]") {
  const auto x = random_tensor(DType::f32, {100, 30}, 1);
  const auto in = floats_of(x);
  OneOp columns(Op::slice_columns);
  columns.input(x);
  columns.attr(Attr::begin, 7);
  const auto y = columns.output(DType::f32, {100, 11});
  columns.run();
  for (std::size_t r = 0; r < 100; ++r)
    for (std::size_t c = 0; c < 11; ++c) REQUIRE(columns.values(y)[r * 11 + c] == in[r * 30 + 7 + c]);

  OneOp rows(Op::copy_rows);
  rows.input(x);
  rows.attr(Attr::begin, 90);
  const auto z = rows.output(DType::f32, {10, 30});
  rows.run();
  CHECK(rows.values(z) == std::vector<float>(in.begin() + 2700, in.end()));

  OneOp beyond(Op::copy_rows);
  beyond.input(x);
  beyond.attr(Attr::begin, 91);
  beyond.output(DType::f32, {10, 30});
  CHECK(!beyond.try_run().ok());
}
