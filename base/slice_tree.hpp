// The fixed binary tree over slice indices in which partial sums are added.
//
//   8 slices:            [0,8)                 5 slices:        [0,5)
//                   [0,4)     [4,8)                         [0,4)   [4,5)
//                [0,2) [2,4) ...                         [0,2) [2,4)
//
// A range longer than one splits at the largest power of two below its length. The order of additions is
// thus a property of the model (its slice count), never of the cluster: a card that owns some slices first
// adds the complete subtrees it owns ("pieces"), and whoever completes the sum adds pieces along the same
// tree. Contiguous power-of-two ownership gives one piece per card.

#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace orrery {

/// Slices [begin, end): a node of the tree.
struct SliceRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  std::uint32_t count() const { return end - begin; }
  bool operator==(const SliceRange&) const = default;
};

/// Where `range` splits: the left child is [begin, split), the right one [split, end).
/// Precondition: range.count() >= 2.
constexpr std::uint32_t split_of(SliceRange range) {
  return range.begin + std::bit_floor(range.end - range.begin - 1);
}

namespace detail {
inline bool append_pieces(SliceRange range, const std::vector<bool>& owned, std::vector<SliceRange>& pieces) {
  if (range.count() == 1) {
    if (owned[range.begin]) pieces.push_back(range);
    return owned[range.begin];
  }
  const auto split = split_of(range);
  const auto before = pieces.size();
  const bool left = append_pieces({range.begin, split}, owned, pieces);
  const bool right = append_pieces({split, range.end}, owned, pieces);
  if (!left || !right) return false;
  pieces.resize(before);
  pieces.push_back(range);
  return true;
}
}  // namespace detail

/// The maximal complete subtrees of slices `owned` (any order, each < slice_count), from left to right.
inline std::vector<SliceRange> pieces_of(const std::vector<std::uint32_t>& owned, std::uint32_t slice_count) {
  std::vector<bool> have(slice_count, false);
  for (const auto slice : owned) have[slice] = true;
  std::vector<SliceRange> pieces;
  if (slice_count > 0) detail::append_pieces({0, slice_count}, have, pieces);
  return pieces;
}

}  // namespace orrery
