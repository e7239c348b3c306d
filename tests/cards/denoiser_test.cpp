// Holds: the denoiser's tables, patches and sampler step against their formulas (cosmos: rows in order t, y, x).
//
// Tolerance: single f32 operations round to 2^-24; angles of up to 100 rad carry 4e-6.

#include "tests/support/one_op.hpp"

using namespace orrery;
using namespace orrery::cards;

TEST_CASE("embedding: takes table rows by token and refuses tokens outside", "[cards][denoiser]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const auto table = random_tensor(DType::f32, {50, 24}, 1);
  OneOp op(Op::embedding);
  op.input(tensor_of(DType::i32, {4}, {0, 49, 7, 7}));
  op.weight(table, WeightForm::table, dtype);
  const auto x = op.output(DType::f32, {4, 24});
  op.run();
  const auto rows = floats_of(tensor_of(dtype, {50, 24}, floats_of(table)));
  const std::size_t ids[] = {0, 49, 7, 7};
  for (std::size_t r = 0; r < 4; ++r)
    for (std::size_t c = 0; c < 24; ++c) REQUIRE(op.values(x)[r * 24 + c] == rows[ids[r] * 24 + c]);
  for (const float bad : {-1.0f, 50.0f}) {
    OneOp outside(Op::embedding);
    outside.input(tensor_of(DType::i32, {2}, {1, bad}));
    outside.weight(table, WeightForm::table, dtype);
    outside.output(DType::f32, {2, 24});
    const auto status = outside.try_run();
    REQUIRE(!status.ok());
    CHECK(status.error().code == ErrorCode::invalid_request);
  }
}

TEST_CASE("timestep_embedding: cosines first, then sines", "[cards][denoiser]") {
  OneOp op(Op::timestep_embedding);
  op.scalar(Scalar::timestep, -0.731);
  const auto s = op.output(DType::f32, {1, 64});
  op.run();
  std::vector<double> wanted(64);
  for (std::size_t k = 0; k < 32; ++k) {
    const double angle = double{-0.731f} * std::exp(-std::log(10000.0) * static_cast<double>(k) / 32);
    wanted[k] = std::cos(angle);
    wanted[32 + k] = std::sin(angle);
  }
  require_near(op.values(s), wanted, 0, 2e-7);

  OneOp rounded(Op::timestep_embedding);  // In bf16 the timestep is rounded first.
  rounded.scalar(Scalar::timestep, -0.731);
  const auto b = rounded.output(DType::bf16, {1, 64});
  rounded.run();
  const double timestep = f32_of_bf16(bf16_of(-0.731f));
  CHECK(rounded.values(b)[0] == f32_of_bf16(bf16_of(static_cast<float>(std::cos(timestep)))));
}

TEST_CASE("rope_table: rows of any begin are rows of the whole table", "[cards][denoiser]") {
  const auto run = [](std::uint64_t begin, std::uint64_t rows, double fps) {
    OneOp op(Op::rope_table);
    op.attr(Attr::begin, static_cast<double>(begin)).attr(Attr::frames, 3).attr(Attr::height, 4).attr(Attr::width, 5);
    op.attr(Attr::head_dim, 24).attr(Attr::scale_t, 2).attr(Attr::scale_h, 1).attr(Attr::scale_w, 1).attr(Attr::fps, fps);
    const auto cos = op.output(DType::f32, {rows, 12}), sin = op.output(DType::f32, {rows, 12});
    op.run(2);
    return std::pair(op.values(cos), op.values(sin));
  };
  const auto [cos, sin] = run(0, 60, 12);
  std::vector<double> wanted_cos, wanted_sin;
  for (int t = 0; t < 3; ++t)
    for (int y = 0; y < 4; ++y)
      for (int x = 0; x < 5; ++x)
        for (int axis = 0; axis < 3; ++axis)  // head_dim 24: 8 of each axis.
          for (int k = 0; k < 4; ++k) {
            const double base = axis == 0 ? 10000 * std::pow(2.0, 8.0 / 6) : 10000;
            const double angle = (axis == 0 ? t * 24 / 12.0 : axis == 1 ? y : x) / std::pow(base, 2 * k / 8.0);
            wanted_cos.push_back(std::cos(angle));
            wanted_sin.push_back(std::sin(angle));
          }
  require_near(cos, wanted_cos, 0, 1e-6);
  require_near(sin, wanted_sin, 0, 1e-6);
  const auto part = run(17, 20, 12);
  CHECK(part.first == std::vector<float>(cos.begin() + 17 * 12, cos.begin() + 37 * 12));
  CHECK(part.second == std::vector<float>(sin.begin() + 17 * 12, sin.begin() + 37 * 12));
  CHECK(run(0, 60, 0).first[20 * 12] == Approx(std::cos(1.0)));  // No fps: whole frames.
}

TEST_CASE("learnable_positions: the normalised sum of three rows", "[cards][denoiser]") {
  const std::uint64_t D = 20;
  const auto t = random_tensor(DType::f32, {4, D}, 1), h = random_tensor(DType::f32, {5, D}, 2), w = random_tensor(DType::f32, {6, D}, 3);
  OneOp op(Op::learnable_positions);
  for (const auto* table : {&t, &h, &w}) op.weight(*table, WeightForm::table, DType::f32);
  op.attr(Attr::begin, 3).attr(Attr::frames, 2).attr(Attr::height, 3).attr(Attr::width, 4);
  const auto P = op.output(DType::f32, {21, D});
  op.run(2);
  std::vector<double> wanted;
  for (std::uint64_t row = 3; row < 24; ++row) {
    std::vector<double> sum;
    double squares = 0;
    for (std::uint64_t i = 0; i < D; ++i) {
      sum.push_back(double{floats_of(t)[row / 12 * D + i]} + double{floats_of(h)[row / 4 % 3 * D + i]} + double{floats_of(w)[row % 4 * D + i]});
      squares += sum.back() * sum.back();
    }
    for (const auto value : sum) wanted.push_back(value / (1e-6 + std::sqrt(squares / static_cast<double>(D))));
  }
  require_near(op.values(P), wanted, 1e-6, 1e-6);
}

TEST_CASE("patchify: channels, then the patch, condition and padding last; rows from any begin", "[cards][denoiser]") {
  const std::uint64_t C = 3, T = 2, H = 4, W = 6, pt = 1, ph = 2, pw = 2;
  const auto z = random_tensor(DType::f32, {C, T, H, W}, 1), condition = random_tensor(DType::f32, {1, T, H, W}, 2), padding = random_tensor(DType::f32, {H, W}, 3);
  OneOp op(Op::patchify);
  op.input(z);
  op.input(condition);
  op.input(padding);
  op.attr(Attr::patch_t, pt).attr(Attr::patch_h, ph).attr(Attr::patch_w, pw).attr(Attr::begin, 5);
  op.attr(Attr::has_condition, 1).attr(Attr::has_padding, 1).scalar(Scalar::c_in, 0.25);
  const auto x = op.output(DType::f32, {7, 20});
  op.run();
  std::size_t i = 0;
  for (std::uint64_t row = 5; row < 12; ++row) {
    const auto t = row / 6, y = row / 3 % 2, column = row % 3;
    for (std::uint64_t c = 0; c < 5; ++c)
      for (std::uint64_t j = 0; j < 2; ++j)
        for (std::uint64_t k = 0; k < 2; ++k, ++i) {
          const auto pixel = (y * 2 + j) * W + column * 2 + k;
          const auto wanted = c < 3 ? floats_of(z)[(c * T + t) * H * W + pixel] * 0.25f : c == 3 ? floats_of(condition)[t * H * W + pixel] : floats_of(padding)[pixel];
          REQUIRE(op.values(x)[i] == wanted);
        }
  }
}

TEST_CASE("unpatchify: token vectors are (row, column, frame, channel)", "[cards][denoiser]") {
  const std::uint64_t C = 3, T = 4, H = 4, W = 6;
  const auto y = random_tensor(DType::f32, {2 * 2 * 3, 2 * 2 * 2 * C}, 1);
  OneOp op(Op::unpatchify);
  op.input(y);
  op.attr(Attr::patch_t, 2).attr(Attr::patch_h, 2).attr(Attr::patch_w, 2);
  const auto z = op.output(DType::f32, {C, T, H, W});
  op.run(2);
  const auto got = op.values(z), in = floats_of(y);
  for (std::uint64_t c = 0; c < C; ++c)
    for (std::uint64_t t = 0; t < T; ++t)
      for (std::uint64_t h = 0; h < H; ++h)
        for (std::uint64_t w = 0; w < W; ++w) {
          const auto token = (t / 2 * 2 + h / 2) * 3 + w / 2;
          const auto place = ((h % 2 * 2 + w % 2) * 2 + t % 2) * C + c;
          REQUIRE(got[((c * T + t) * H + h) * W + w] == in[token * 24 + place]);
        }
}

TEST_CASE("euler_step: one step towards the guided clean latents", "[cards][denoiser]") {
  const auto z = random_tensor(DType::f32, {1, 2, 3, 4}, 1), prompt = random_tensor(DType::f32, {1, 2, 3, 4}, 2), negative = random_tensor(DType::f32, {1, 2, 3, 4}, 3);
  const bool guided = GENERATE(true, false);
  OneOp op(Op::euler_step);
  const auto slot = op.input(z);
  op.input(prompt);
  if (guided) op.input(negative);
  op.output_in(slot);
  const double sigma = 4.6, next = 3.6, c_skip = 0.0117, c_out = 0.497, guidance = 7;
  op.scalar(Scalar::guidance, guidance).scalar(Scalar::c_skip, c_skip).scalar(Scalar::c_out, c_out).scalar(Scalar::sigma, sigma).scalar(Scalar::sigma_next, next);
  op.run();
  std::vector<double> wanted;
  for (std::size_t i = 0; i < 24; ++i) {
    double F = floats_of(prompt)[i];
    if (guided) F += guidance * (F - double{floats_of(negative)[i]});
    const double from = floats_of(z)[i];
    wanted.push_back(from + (from - (c_skip * from + c_out * F)) / sigma * (next - sigma));
  }
  require_near(op.values(slot), wanted, 1e-6, 2e-6);
}

TEST_CASE("scale_noise and to_decoder: scale to and from the latents' own spread", "[cards][denoiser]") {
  const auto z = random_tensor(DType::f32, {2, 3, 2, 2}, 1);
  OneOp noise(Op::scale_noise);
  const auto slot = noise.input(z);
  noise.output_in(slot);
  noise.scalar(Scalar::sigma_max, 80);
  noise.run();
  for (std::size_t i = 0; i < 24; ++i) REQUIRE(noise.values(slot)[i] == floats_of(z)[i] * 80);

  const auto mean = random_tensor(DType::f32, {2 * 5}, 2), spread = random_tensor(DType::f32, {2 * 5}, 3);
  OneOp op(Op::to_decoder);
  op.input(z);
  op.weight(mean, WeightForm::vector, DType::f32);
  op.weight(spread, WeightForm::vector, DType::f32);
  op.attr(Attr::sigma_data, 0.5).attr(Attr::frames_max, 5);
  const auto out = op.output(DType::f32, {2, 3, 2, 2});
  op.run();
  for (std::size_t i = 0; i < 24; ++i) {
    const auto at = i / 12 * 5 + i / 4 % 3;
    REQUIRE(op.values(out)[i] == floats_of(z)[i] * floats_of(spread)[at] / 0.5f + floats_of(mean)[at]);
  }
}
