// Holds: the vector kernels of every instruction set that this machine can run agree with plain arithmetic and give
// an element the same bits at every position.

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/random.hpp"
#include "base/tensor.hpp"
#include "cards/kernels/simd.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

std::vector<const Simd*> tables() {
  std::vector<const Simd*> all;
  for (const auto* table : {simd_avx512_bf16, simd_avx512, simd_avx2, simd_sse2})
    if (table != nullptr && can_run(*table)) all.push_back(table);
  return all;
}

std::vector<float> normal(std::uint64_t count, std::uint64_t seed) {
  std::vector<float> values(count);
  fill_normal(seed, RandomStream::synthetic_weights, 0, values);
  return values;
}

}  // namespace

TEST_CASE("simd: the process takes the widest table that the machine can run", "[cards][simd]") {
  CHECK(&simd() == tables().front());
  CHECK(tables().back() == simd_sse2);
}

TEST_CASE("simd: bf16 rounds to nearest even and keeps NaN, as base does", "[cards][simd]") {
  auto values = normal(1000, 1);
  for (const float special : {0.0f, -0.0f, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), std::nanf(""), 3.4e38f, 1e-40f,
                              f32_of_bf16(0x3f80) + 0x1p-8f, f32_of_bf16(0x3f81) + 0x1p-8f})
    values.push_back(special);
  for (const auto* table : tables()) {
    INFO(table->name);
    std::vector<std::uint16_t> rounded(values.size());
    table->convert({values.data(), false}, {rounded.data(), true}, values.size());
    std::vector<float> back(values.size());
    table->convert({rounded.data(), true}, {back.data(), false}, values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      REQUIRE(rounded[i] == bf16_of(values[i]));
      const auto wide = f32_of_bf16(rounded[i]);
      REQUIRE(std::memcmp(&back[i], &wide, 4) == 0);
    }
  }
}

TEST_CASE("simd: gelu, relu and silu at every position", "[cards][simd]") {
  std::vector<float> xs;
  for (double x = -14; x < 14; x += 0.0173) xs.push_back(static_cast<float>(x));
  for (const auto* table : tables())
    for (const int activation : {1, 2, 3}) {
      INFO(table->name << " activation " << activation);
      std::vector<float> ys(xs.size());
      table->activate({xs.data(), false}, {ys.data(), false}, xs.size(), activation);
      for (std::size_t i = 0; i < xs.size(); ++i) {
        const double x = xs[i];
        const double wanted = activation == 1 ? 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))) : activation == 2 ? std::max(x, 0.0) : x / (1 + std::exp(-x));
        REQUIRE(std::abs(ys[i] - wanted) <= 6e-7 * std::abs(wanted) + 1e-7 * std::min(std::abs(x), 6.0));
        float alone = 0;
        table->activate({xs.data() + i, false}, {&alone, false}, 1, activation);
        REQUIRE(alone == ys[i]);
      }
    }
}

TEST_CASE("simd: panel products are right for every count of rows and columns, and rows keep their bits", "[cards][simd]") {
  for (const auto* table : tables()) {
    INFO(table->name);
    const auto width = table->panel_columns;
    for (const std::uint64_t K : {1, 7, 64})
      for (const std::uint64_t columns : {std::uint64_t{1}, width, 2 * width + 3})
        for (const bool accumulate : {false, true}) {
          const std::uint64_t rows = 17, padded = (columns + width - 1) / width * width;
          const auto x = normal(rows * K, 1), w = normal(columns * K, 2), before = normal(rows * padded, 3);
          std::vector<float> panels(padded * K);
          for (std::uint64_t j = 0; j < columns; ++j)
            for (std::uint64_t k = 0; k < K; ++k) panels[j / width * width * K + k * width + j % width] = w[j * K + k];
          auto acc = before;
          table->multiply(panels.data(), false, columns, K, x.data(), K, rows, acc.data(), padded, accumulate);
          for (std::uint64_t r = 0; r < rows; ++r)
            for (std::uint64_t j = 0; j < columns; ++j) {
              double sum = accumulate ? before[r * padded + j] : 0, size = std::abs(sum);
              for (std::uint64_t k = 0; k < K; ++k) {
                sum += double{x[r * K + k]} * double{w[j * K + k]};
                size += std::abs(double{x[r * K + k]} * double{w[j * K + k]});
              }
              REQUIRE(std::abs(acc[r * padded + j] - sum) <= static_cast<double>(2 * K + 2) * 0x1p-24 * size);
            }
          for (std::uint64_t r = 0; r < rows; ++r) {
            std::vector<float> one(before.begin() + static_cast<std::ptrdiff_t>(r * padded), before.begin() + static_cast<std::ptrdiff_t>((r + 1) * padded));
            table->multiply(panels.data(), false, columns, K, x.data() + r * K, K, 1, one.data(), padded, accumulate);
            REQUIRE(std::memcmp(one.data(), acc.data() + r * padded, columns * sizeof(float)) == 0);
          }
        }
  }
}

TEST_CASE("simd: norms and rotation agree between instruction sets to rounding", "[cards][simd]") {
  const std::uint64_t D = 77;
  const auto x = normal(D, 1), shift = normal(D, 2), scale = normal(D, 3);
  std::vector<float> wanted(D), got(D);
  for (const auto* table : tables()) {
    INFO(table->name);
    simd_sse2->layer_norm_modulate(x.data(), shift.data(), scale.data(), 1e-6f, {wanted.data(), false}, D);
    table->layer_norm_modulate(x.data(), shift.data(), scale.data(), 1e-6f, {got.data(), false}, D);
    for (std::uint64_t i = 0; i < D; ++i) REQUIRE(got[i] == Approx(wanted[i]).epsilon(1e-5).margin(1e-6));
    simd_sse2->rms_norm({x.data(), false}, scale.data(), 1e-6f, {wanted.data(), false}, D);
    table->rms_norm({x.data(), false}, scale.data(), 1e-6f, {got.data(), false}, D);
    for (std::uint64_t i = 0; i < D; ++i) REQUIRE(got[i] == Approx(wanted[i]).epsilon(1e-5).margin(1e-6));
    wanted = x;
    got = x;
    simd_sse2->rotate(wanted.data(), shift.data(), scale.data(), D - 1);
    table->rotate(got.data(), shift.data(), scale.data(), D - 1);
    for (std::uint64_t i = 0; i < D; ++i) REQUIRE(got[i] == Approx(wanted[i]).epsilon(1e-6).margin(1e-6));
  }
}

TEST_CASE("simd: softmax of a block equals the formula, masked keys weigh nothing", "[cards][simd]") {
  for (const auto* table : tables())
    for (const std::uint64_t keys : {1, 5, 16, 100, 128}) {
      INFO(table->name << " keys " << keys);
      auto scores = normal(128, 1);
      const auto raw = scores, bias = normal(128, 2);
      std::vector<float> mask(128, 1);
      if (keys > 3) mask[3] = 0;
      float most = 0.25f, sum = 2;
      std::vector<float> values(20, 3);
      table->softmax_block({scores.data(), 0.5f, bias.data(), mask.data(), &most, &sum, values.data()}, keys, 20);
      double max = 0.25;
      for (std::uint64_t j = 0; j < keys; ++j)
        if (mask[j] != 0) max = std::max(max, double{raw[j] * 0.5f + bias[j]});
      double total = 2 * std::exp(0.25 - max);
      for (std::uint64_t j = 0; j < keys; ++j) {
        const double weight = mask[j] == 0 ? 0 : std::exp(double{raw[j] * 0.5f + bias[j]} - max);
        total += weight;
        REQUIRE(std::abs(scores[j] - weight) <= 1e-6);
      }
      REQUIRE(std::abs(sum - total) <= 2e-6 * total);
      REQUIRE(std::abs(values[19] - 3 * std::exp(0.25 - max)) <= 1e-6);
      REQUIRE(most == static_cast<float>(max));
    }
}
