// Which rows of a tensor each rank of a group owns: in proportion to the slices it owns.
//
// Pure and the same everywhere, so ranks agree without talking. A rank may own no row when rows are few.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace orrery {

/// Rows [begin, end).
struct RowRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t count() const { return end - begin; }
  bool operator==(const RowRange&) const = default;
};

/// `shares[r]` is the number of slices that rank r owns. The ranges cover [0, rows) in rank order.
inline std::vector<RowRange> split_rows(std::uint64_t rows, std::span<const std::uint32_t> shares) {
  std::uint64_t total = 0;
  for (const auto share : shares) total += share;
  std::vector<RowRange> ranges;
  std::uint64_t sum = 0, begin = 0;
  for (const auto share : shares) {
    sum += share;
    const auto end = static_cast<std::uint64_t>(static_cast<unsigned __int128>(rows) * sum / total);
    ranges.push_back({begin, end});
    begin = end;
  }
  return ranges;
}

}  // namespace orrery
