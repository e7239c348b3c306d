#include "base/random.hpp"

#include <bit>
#include <cmath>
#include <numbers>

namespace orrery {

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(product0)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

namespace {

// ln(x) for x in (0, 1]: exponent and mantissa apart, then the series of 2 atanh((m-1)/(m+1)). Only + - * /,
// so every IEEE machine gives the same bits (libm's log may differ by an ulp between versions).
double portable_log(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  auto exponent = static_cast<int>((bits >> 52) & 0x7ff) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0xfffffffffffffULL) | 0x3ff0000000000000ULL);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  const double s = (mantissa - 1) / (mantissa + 1);
  const double s2 = s * s;
  double sum = 0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * s2 + 1.0 / k;
  return 2 * s * sum + exponent * std::numbers::ln2;
}

// cos(2 pi u) and sin(2 pi u) for u in [0, 1): reduced to an eighth of the circle, then Taylor.
void portable_sincos(double u, double& cosine, double& sine) {
  const double eighths = u * 8;
  const int octant = static_cast<int>(eighths);
  const double part = octant % 2 == 0 ? eighths - octant : 1 - (eighths - octant);
  const double x = part * (std::numbers::pi / 4);
  const double x2 = x * x;
  double c = 1, s = 1;
  for (int k = 10; k >= 1; --k) {
    c = 1 - c * x2 / ((2 * k - 1) * (2 * k));
    s = 1 - s * x2 / ((2 * k) * (2 * k + 1));
  }
  s *= x;
  // Octants 1, 2, 5, 6 swap the axes; the sign follows the quadrant.
  const bool swap = octant == 1 || octant == 2 || octant == 5 || octant == 6;
  const double a = swap ? s : c;
  const double b = swap ? c : s;
  cosine = octant >= 2 && octant <= 5 ? -a : a;
  sine = octant >= 4 ? -b : b;
}

}  // namespace

void fill_normal(std::uint64_t seed, RandomStream stream, std::uint64_t first, std::span<float> out) {
  const std::array key{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  const auto uniform = [](std::uint32_t bits) { return (bits >> 8) * 0x1.0p-24; };
  std::uint64_t block_index = ~std::uint64_t{0};
  std::array<float, 4> block{};
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::uint64_t element = first + i;
    if (element / 4 != block_index) {
      block_index = element / 4;
      const auto bits = philox({static_cast<std::uint32_t>(block_index), static_cast<std::uint32_t>(block_index >> 32),
                                static_cast<std::uint32_t>(stream), 0},
                               key);
      for (std::size_t pair = 0; pair < 2; ++pair) {
        const double radius = std::sqrt(-2 * portable_log(1 - uniform(bits[2 * pair])));
        double cosine = 0, sine = 0;
        portable_sincos(uniform(bits[2 * pair + 1]), cosine, sine);
        block[2 * pair] = static_cast<float>(radius * cosine);
        block[2 * pair + 1] = static_cast<float>(radius * sine);
      }
    }
    out[i] = block[element % 4];
  }
}

std::uint64_t Random::next() {
  const auto bits = philox({static_cast<std::uint32_t>(index_), static_cast<std::uint32_t>(index_ >> 32),
                            static_cast<std::uint32_t>(stream_), 1},
                           {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)});
  ++index_;
  return (std::uint64_t{bits[0]} << 32) | bits[1];
}

}  // namespace orrery
