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
#include "cards/kernels/kernels.hpp"
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

TEST_CASE("simd: products of bytes are exact and the same in every instruction set", "[cards][simd][int8]") {
  Random random(1);
  for (const std::uint64_t quads : {std::uint64_t{1}, std::uint64_t{9}, std::uint64_t{700}, int8_depth_max / 4})
    for (const auto* table : tables()) {
      INFO(table->name << " quads " << quads);
      const auto width = table->panel_columns, columns = width + 3, padded = 2 * width, depth = 4 * quads;
      const std::uint64_t rows = 8;
      std::vector<std::uint8_t> x(rows * depth);
      std::vector<std::int8_t> w(columns * depth), panels(padded * depth);
      // The largest depth with the largest values: the sum must still fit.
      const bool extreme = depth == int8_depth_max;
      for (auto& value : x) value = extreme ? 255 : static_cast<std::uint8_t>(random.next() >> 56);
      for (auto& value : w) value = extreme ? 127 : static_cast<std::int8_t>(static_cast<int>(random.next() % 255) - 127);
      for (std::uint64_t j = 0; j < columns; ++j)
        for (std::uint64_t k = 0; k < depth; ++k) panels[((j / width * quads + k / 4) * width + j % width) * 4 + k % 4] = w[j * depth + k];
      std::vector<std::int32_t> acc(rows * padded);
      table->multiply_quads(panels.data(), columns, quads, x.data(), depth, rows, acc.data(), padded, false);
      for (std::uint64_t r = 0; r < rows; ++r)
        for (std::uint64_t j = 0; j < columns; ++j) {
          std::int64_t sum = 0;
          for (std::uint64_t k = 0; k < depth; ++k) sum += std::int64_t{x[r * depth + k]} * w[j * depth + k];
          REQUIRE(acc[r * padded + j] == sum);
        }
    }
}

TEST_CASE("simd: a row keeps its values to half a step of 127 when it is quantised", "[cards][simd][int8]") {
  for (const auto* table : tables())
    for (const bool bf16 : {false, true})
      for (const std::uint64_t count : {1, 3, 16, 77}) {
        INFO(table->name << " count " << count);
        auto values = normal(count, 7);
        std::vector<std::uint16_t> narrow(count);
        table->convert({values.data(), false}, {narrow.data(), true}, count);
        if (bf16) table->convert({narrow.data(), true}, {values.data(), false}, count);
        const auto padded = (count + 3) / 4 * 4;
        std::vector<std::uint8_t> bytes(padded);
        const auto scale = table->quantize({bf16 ? static_cast<const void*>(narrow.data()) : values.data(), bf16}, count, padded, bytes.data());
        float most = 0;
        for (const auto value : values) most = std::max(most, std::abs(value));
        REQUIRE(scale == most / 127.0f);
        for (std::uint64_t i = 0; i < count; ++i) REQUIRE(std::abs(static_cast<float>(bytes[i] - 128) * scale - values[i]) <= 0.501f * scale);
        for (auto i = count; i < padded; ++i) REQUIRE(bytes[i] == 128);
        // A value's byte does not depend on its place.
        const std::vector<float> two = {most, values[count - 1]};
        std::vector<std::uint8_t> alone(4);
        table->quantize({two.data(), false}, 2, 4, alone.data());
        REQUIRE(alone[1] == bytes[count - 1]);
      }
}

TEST_CASE("simd: a row of zeros is quantised to zero, one with a NaN to NaN", "[cards][simd][int8]") {
  for (const auto* table : tables()) {
    std::vector<std::uint8_t> bytes(20);
    std::vector<float> row(20, 0);
    REQUIRE(table->quantize({row.data(), false}, 20, 20, bytes.data()) == 0);
    REQUIRE(std::all_of(bytes.begin(), bytes.end(), [](auto byte) { return byte == 128; }));
    row[3] = -std::nanf("");
    row[7] = std::numeric_limits<float>::infinity();
    REQUIRE(std::isnan(table->quantize({row.data(), false}, 20, 20, bytes.data())));
  }
}

TEST_CASE("simd: blocks of keys are merged into what softmax over all of them gives", "[cards][simd]") {
  // Two blocks of keys; columns are query rows. A bias and a mask where scores are adjusted.
  for (const auto* table : tables())
    for (const std::uint64_t head_dim : {2, 24, 64})
      for (const std::uint64_t keys : {1, 5, 64, 67})
        for (const bool pairs : {false, true})
          for (const bool adjust : {false, true}) {
            if (pairs && table->attend_pairs == nullptr) continue;
            INFO(table->name << " head_dim " << head_dim << " keys " << keys << " pairs " << pairs << " adjust " << adjust);
            const auto columns = table->panel_columns;
            auto q = normal(columns * head_dim, 1), k = normal(2 * keys * head_dim, 2), v = normal(2 * keys * head_dim, 3);
            const auto bias = normal(columns + 2 * keys, 4);
            std::vector<float> mask(2 * keys, 1);
            mask[keys / 2] = 0;
            if (pairs)
              for (auto* values : {&q, &k, &v})
                for (auto& value : *values) value = f32_of_bf16(bf16_of(value));
            const float scale = adjust ? 0.25f : 0.5f;

            std::vector<float> most(columns, -std::numeric_limits<float>::max()), sum(columns, 0), output(head_dim * columns, 0), scores(keys * columns);
            std::vector<float> turned(head_dim * columns), key_rows, value_rows;
            std::vector<std::uint16_t> turned_pairs(head_dim * columns), narrow(std::max(columns, keys + 1) * head_dim), narrow_keys(keys * head_dim),
                value_pairs((keys + 1) * head_dim);
            const auto narrowed = [&](const float* from, std::uint64_t count, std::uint16_t* to) { table->convert({from, false}, {to, true}, count); };
            if (pairs) {
              narrowed(q.data(), q.size(), narrow.data());
              table->transpose(reinterpret_cast<const std::uint32_t*>(narrow.data()), head_dim / 2, columns, head_dim / 2,
                               reinterpret_cast<std::uint32_t*>(turned_pairs.data()), columns);
            } else {
              table->transpose(reinterpret_cast<const std::uint32_t*>(q.data()), head_dim, columns, head_dim, reinterpret_cast<std::uint32_t*>(turned.data()), columns);
            }
            for (std::uint64_t begin = 0; begin < 2 * keys; begin += keys) {
              KeyBlock block{k.data() + begin * head_dim, v.data() + begin * head_dim, keys, head_dim, scale, nullptr, nullptr, adjust, scores.data()};
              if (pairs) {
                narrowed(k.data() + begin * head_dim, keys * head_dim, narrow_keys.data());
                narrowed(v.data() + begin * head_dim, keys * head_dim, narrow.data());
                for (std::uint64_t j = 0; j < keys; j += 2)
                  table->interleave(narrow.data() + j * head_dim, j + 1 < keys ? narrow.data() + (j + 1) * head_dim : nullptr, value_pairs.data() + j * head_dim, head_dim);
                block.keys = narrow_keys.data();
                block.values = value_pairs.data();
              }
              if (adjust) {
                block.bias = bias.data() + 2 * keys - begin;
                block.key_mask = mask.data() + begin;
              }
              const QueryTile tile{pairs ? static_cast<const void*>(turned_pairs.data()) : turned.data(), most.data(), sum.data(), output.data()};
              (pairs ? table->attend_pairs : table->attend)(block, tile);
            }
            for (std::uint64_t i = 0; i < columns; ++i) {
              std::vector<double> score(2 * keys);
              double largest = -1e300;
              for (std::uint64_t j = 0; j < 2 * keys; ++j) {
                for (std::uint64_t d = 0; d < head_dim; ++d) score[j] += double{q[i * head_dim + d]} * double{k[j * head_dim + d]};
                score[j] *= double{scale};
                if (adjust) score[j] += double{bias[2 * keys - j + i]};
                if (!adjust || mask[j] != 0) largest = std::max(largest, score[j]);
              }
              double total = 0;
              std::vector<double> wanted(head_dim);
              for (std::uint64_t j = 0; j < 2 * keys; ++j) {
                const double weight = adjust && mask[j] == 0 ? 0 : std::exp(score[j] - largest);
                total += weight;
                for (std::uint64_t d = 0; d < head_dim; ++d) wanted[d] += weight * double{v[j * head_dim + d]};
              }
              if (total == 0) {  // The only key of its kind was masked.
                REQUIRE(sum[i] == 0);
                continue;
              }
              const double rounding = pairs ? 0x1p-8 : 0;
              REQUIRE(std::abs(sum[i] - total) <= (pairs ? 2e-4 : 4e-6) * total);
              for (std::uint64_t d = 0; d < head_dim; ++d)
                REQUIRE(std::abs(output[d * columns + i] / sum[i] - wanted[d] / total) <= 1e-5 + rounding * 3);
            }
          }
}

TEST_CASE("simd: keys that were all masked weigh nothing, and later ones count alone", "[cards][simd]") {
  for (const auto* table : tables()) {
    INFO(table->name);
    const auto columns = table->panel_columns;
    const std::vector<float> query(2 * columns, 1), keys = {0, 0, 0, 0}, values = {3, 4, 5, 6}, nothing = {0, 0}, second = {0, 1};
    std::vector<float> most(columns, -std::numeric_limits<float>::max()), sum(columns, 0), output(2 * columns, 0), scores(2 * columns);
    const QueryTile tile{query.data(), most.data(), sum.data(), output.data()};
    table->attend({keys.data(), values.data(), 2, 2, 1.0f, nullptr, nothing.data(), true, scores.data()}, tile);
    for (std::uint64_t i = 0; i < columns; ++i) REQUIRE((sum[i] == 0 && output[i] == 0));
    table->attend({keys.data(), values.data(), 2, 2, 1.0f, nullptr, second.data(), true, scores.data()}, tile);
    for (std::uint64_t i = 0; i < columns; ++i) REQUIRE((sum[i] == 1 && output[i] == 5 && output[columns + i] == 6));
  }
}
