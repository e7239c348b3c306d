// Who sends which bytes to whom: transfer lists for the collectives that only move values.
//
// Every function here is pure and gives each member of a group its own list; two members' lists fit together
// because both follow from the same arguments. The caller copies or lends the bytes, sends and receives.
// Transfers of no bytes are left out on both sides.
//
//   all_gather_rows   everyone's rows to everyone                       (P-1)/P of the tensor received per rank
//   move_rows         rows from one row split to another, also between two groups
//   tokens_to_heads   Ulysses: {all slices, own rows} to {own slices, all rows}
//   heads_to_tokens   and back                                          (P-1)/P of a rank's part sent each way
//   broadcast         one tensor from one endpoint to all
//   point_to_point    one tensor from one endpoint to another
//
// What adds values is in ordered_reduce_scatter.hpp.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/row_split.hpp"
#include "protocol/message.hpp"

namespace orrery::protocol {

/// A strided block of a buffer: `runs` runs of `run_bytes` bytes, whose starts lie `pitch` bytes apart, the
/// first at `offset`. On the wire the runs follow each other without gaps.
struct Region {
  std::uint64_t offset = 0;
  std::uint64_t runs = 1;
  std::uint64_t run_bytes = 0;
  std::uint64_t pitch = 0;  // At least run_bytes; without meaning when runs is 1.

  std::uint64_t bytes() const { return runs * run_bytes; }
  /// One run of memory: can be lent to a send as it is.
  bool contiguous() const { return runs <= 1 || pitch == run_bytes; }
  /// First byte after the last run.
  std::uint64_t end() const { return bytes() == 0 ? offset : offset + (runs - 1) * pitch + run_bytes; }
  bool operator==(const Region&) const = default;
};

/// Copies a region of `buffer` to `packed`, which must have region.bytes() bytes.
void copy_out(std::span<const std::byte> buffer, const Region& region, std::span<std::byte> packed);
/// Copies a message of region.bytes() bytes into a region of `buffer`. Fails with bad_frame on another length.
Status copy_in(const Message& message, const Region& region, std::span<std::byte> buffer);
/// Copies between two regions of equal bytes; the buffers must not overlap.
void copy_region(std::span<const std::byte> from, const Region& source, std::span<std::byte> to, const Region& target);

struct TransferSend {
  EndpointId target = 0;
  std::uint16_t part = 0;
  Region region;  // In the source buffer.
  bool operator==(const TransferSend&) const = default;
};

struct TransferReceive {
  EndpointId source = 0;
  std::uint16_t part = 0;
  Region region;  // In the target buffer.
  bool operator==(const TransferReceive&) const = default;
};

struct TransferCopy {
  Region source, target;
  bool operator==(const TransferCopy&) const = default;
};

/// One endpoint's part of a collective. Source and target buffer are different memory.
struct TransferList {
  std::vector<TransferSend> sends;
  std::vector<TransferReceive> receives;
  std::vector<TransferCopy> copies;  // What stays on this card.
};

/// Rows of a tensor that an endpoint holds (as source) or wants (as target).
struct RowHolder {
  EndpointId endpoint = 0;
  RowRange rows;
};

/// Each endpoint of `from` holds its rows in a buffer of just these; each of `to` wants its rows in a buffer of
/// just those. The rows of `from` must not overlap; those of `to` may. An endpoint may be in both.
TransferList move_rows(std::span<const RowHolder> from, std::span<const RowHolder> to, EndpointId self,
                       std::uint64_t row_bytes);

/// Own rows (a buffer of just these) of everyone to everyone's buffer of all rows [0, rows).
TransferList all_gather_rows(std::span<const RowHolder> group, std::uint64_t rows, EndpointId self,
                             std::uint64_t row_bytes);

/// One rank of a sequence-parallel group.
struct SliceRowHolder {
  EndpointId endpoint = 0;
  std::vector<std::uint32_t> slices;  // Ascending. All ranks together have every slice once.
  RowRange rows;                      // All ranks together have every row once.
};

/// From [V][own rows][width] to [own slices][rows][width]; `slice_row_bytes` are the bytes of one row of one
/// slice. `rows` is the number of all rows.
TransferList tokens_to_heads(std::span<const SliceRowHolder> group, std::uint64_t rows, EndpointId self,
                             std::uint64_t slice_row_bytes);
/// From [own slices][rows][width] to [V][own rows][width].
TransferList heads_to_tokens(std::span<const SliceRowHolder> group, std::uint64_t rows, EndpointId self,
                             std::uint64_t slice_row_bytes);

/// `bytes` bytes from `root`'s buffer to every member's (the root's own target buffer too, if it is a member).
TransferList broadcast(EndpointId root, std::span<const EndpointId> members, EndpointId self, std::uint64_t bytes);
TransferList point_to_point(EndpointId source, EndpointId target, EndpointId self, std::uint64_t bytes);

}  // namespace orrery::protocol
