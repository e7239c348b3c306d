// Adds f32 partial sums along the slice tree of base/slice_tree.hpp, so that the bits never depend on who
// computed which slice.
//
// Works in blocks that stay in cache: each input is read once, the result written once.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "base/slice_tree.hpp"

namespace orrery::protocol {

/// One node of the tree: f32 values in order, in one or several runs of memory of any alignment (a message's
/// chunks, or one piece of card memory). Each run is a multiple of 4 bytes; together as long as the result.
struct Summand {
  SliceRange slices;
  std::vector<std::span<const std::byte>> runs;
};

/// out[i] = the sum of all summands' value i, added in the order of the tree `whole`, itself a node of the tree.
///
/// The summands must be nodes of that tree which cover `whole` exactly once, in any order; one is copied as it
/// is. `out` may be the memory of no summand. Fails with bad_frame when a length or the cover is wrong; `out`
/// is unchanged then. Threads: none kept; callers may split rows over threads, as every value stands alone.
Status tree_sum(SliceRange whole, std::span<const Summand> summands, std::span<float> out);

}  // namespace orrery::protocol
