// Counter-based random numbers (Philox4x32-10): element i of a stream depends only on (seed, stream, i).
//
// So noise has the same bits whoever draws it, in whatever order and pieces. Source: Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the Random123 known-answer vectors are in the tests.

#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace orrery {

/// One Philox4x32-10 block.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

/// Named sub-streams of one seed, so that a new use shifts no other. Append only.
enum class RandomStream : std::uint32_t { noise = 0, synthetic_weights = 1, fault = 2, sampling = 3 };

/// Standard normal values, element `first + i` of the stream into out[i]. Box-Muller on 24-bit uniforms, in
/// double precision with libm-free polynomials, so that the bits do not depend on the C library.
void fill_normal(std::uint64_t seed, RandomStream stream, std::uint64_t first, std::span<float> out);

/// A small seeded generator for tests, fault plans and back-off; not for noise.
class Random {
public:
  explicit Random(std::uint64_t seed, RandomStream stream = RandomStream::fault) : seed_(seed), stream_(stream) {}
  std::uint64_t next();
  /// Uniform in [0, bound); bound > 0.
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }
  /// Uniform in [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

private:
  std::uint64_t seed_;
  RandomStream stream_;
  std::uint64_t index_ = 0;
};

}  // namespace orrery
