// What one card is within its stage: which group and rank, and who owns which slices.
//
// The same for every request; row ranges follow from it at whatever size (base/row_split.hpp).

#pragma once

#include <cstdint>
#include <vector>

#include "base/row_split.hpp"

namespace orrery::compiler {

enum class Split : std::uint8_t { tensor, sequence };

struct Layout {
  std::uint32_t slice_count = 1;
  Split split = Split::tensor;
  /// owned[group][rank] = slices of that rank, ascending. One group, or two when guidance branches are split:
  /// group 0 computes the prompt's branch, group 1 the negative prompt's.
  std::vector<std::vector<std::vector<std::uint32_t>>> owned = {{{0}}};
  std::uint32_t group = 0;
  std::uint32_t rank = 0;

  const std::vector<std::uint32_t>& slices() const { return owned[group][rank]; }
  std::uint32_t rank_count() const { return static_cast<std::uint32_t>(owned[group].size()); }
  /// Row ranges of the ranks of one group.
  std::vector<RowRange> rows_of_group(std::uint32_t which, std::uint64_t rows) const {
    std::vector<std::uint32_t> shares;
    for (const auto& slices_of_rank : owned[which]) shares.push_back(static_cast<std::uint32_t>(slices_of_rank.size()));
    return split_rows(rows, shares);
  }
  RowRange rows(std::uint64_t count) const { return rows_of_group(group, count)[rank]; }
};

/// Everything on one card.
Layout single_card(std::uint32_t slice_count);

}  // namespace orrery::compiler
