#include <catch2/catch.hpp>

#include <cmath>
#include <vector>

#include "base/random.hpp"

using namespace orrery;

TEST_CASE("philox: the Random123 known answers", "[base]") {
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) ==
        std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("normal noise: the same elements whatever the pieces", "[base]") {
  std::vector<float> whole(1001), pieces(1001);
  fill_normal(42, RandomStream::noise, 0, whole);
  for (std::size_t at = 0, size = 1; at < pieces.size(); at += size, size = size * 2 + 1)
    fill_normal(42, RandomStream::noise, at, std::span(pieces).subspan(at, std::min(size, pieces.size() - at)));
  CHECK(whole == pieces);
  fill_normal(43, RandomStream::noise, 0, pieces);
  CHECK(whole != pieces);
}

TEST_CASE("normal noise: mean 0, deviation 1, tails like a normal's", "[base]") {
  std::vector<float> values(400000);
  fill_normal(7, RandomStream::noise, 0, values);
  double sum = 0, squares = 0, fourth = 0;
  int beyond = 0;
  for (const double value : values) {
    sum += value;
    squares += value * value;
    fourth += value * value * value * value;
    beyond += std::abs(value) > 2 ? 1 : 0;
  }
  const auto count = static_cast<double>(values.size());
  CHECK(std::abs(sum / count) < 0.01);
  CHECK(std::abs(squares / count - 1) < 0.01);
  CHECK(std::abs(fourth / count - 3) < 0.1);
  CHECK(std::abs(beyond / count - 0.0455) < 0.002);
}
