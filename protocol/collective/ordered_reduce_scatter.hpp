// Sums partial results of all ranks of a group and leaves each rank with its rows of the sum: the same bits for
// every ownership of slices, one card included.
//
// Rank r owns some of the V slices. It has added its slices' partial sums up to "pieces", the largest complete
// subtrees that it owns (base/slice_tree.hpp), each a [rows][width] f32 tensor. Every piece's row range of rank
// q goes to rank q, which adds what it got along the rest of the tree.
//
//   V = 4, slices {0,1,2} on rank 0, {3} on rank 1:
//
//     rank 0: piece 0 = [0,2), piece 1 = [2,3)       (s0 + s1) and s2
//     rank 1: piece 0 = [3,4)                         s3
//     both, for their rows: piece [0,2) + (piece [2,3) + piece [3,4))
//
// Cost per rank: (pieces of mine) x (rows of the others) x width x 4 bytes sent. With contiguous ownership of
// power-of-two blocks that is one piece: the bytes of an ordinary reduce-scatter, in one turn instead of P-1.
//
// Cards of one node add first. Where the pieces of a node's cards make up a larger subtree, one of these cards (another
// for each target) adds up the target's rows and sends them on as one message: with n cards per node an n-th of the bytes
// between nodes. It is the same tree, so the bits do not change. Pieces that make up nothing larger go directly.
//
//   node A: s0 s1 on card 0, s2 s3 on card 1      to card 2 of node B, its rows:
//     card 1 ── [2,4) ──▶ card 0 ── [0,2) + [2,4) = [0,4) ──▶ card 2        instead of [0,2) and [2,4)
//
// When every rank's rows are all rows, this is an all-reduce in one turn: everybody gets every piece and adds up
// everything. For short messages that is quicker than a reduce-scatter and an all-gather, which are two turns.
//
// This class moves no bytes. It says what to send and what is due, and adds up what came; the caller owns the
// transport, the clock and the waiting.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "base/row_split.hpp"
#include "base/slice_tree.hpp"
#include "protocol/message.hpp"

namespace orrery::protocol {

/// One rank of the group; the ranks' order is that of the plan.
struct ReduceRank {
  EndpointId endpoint = 0;
  std::vector<std::uint32_t> slices;  // Owned, any order. All ranks together have every slice exactly once.
  RowRange rows;  // Of the sum; all ranks together have every row exactly once, or each of them has all rows.
  std::uint32_t node = 0;             // Ranks with the same number reach each other without a wire.
};

/// Rows `rows` of own piece `piece` for `target`: the message's payload, row-major f32.
struct ReduceSend {
  EndpointId target = 0;
  std::uint16_t part = 0;
  std::uint32_t piece = 0;  // Index in pieces().
  RowRange rows;
  std::uint64_t offset = 0;  // Bytes, in the piece's [rows][width] buffer.
  std::uint64_t bytes = 0;
};

/// This rank's rows of the piece `slices` of `source`.
struct ReduceReceive {
  EndpointId source = 0;
  std::uint16_t part = 0;
  SliceRange slices;
  std::uint64_t bytes = 0;
};

/// What this rank adds up for `target` from its own pieces and those of other cards of its node, and sends on.
struct ReduceRelay {
  EndpointId target = 0;
  std::uint16_t part = 0;
  SliceRange slices;
  RowRange rows;
  std::uint64_t bytes = 0;
  std::vector<std::uint32_t> own;        // Indices in pieces().
  std::vector<ReduceReceive> receives;
};

/// Result:  every row of the sum has the bits of adding all V slices along the tree.
/// Threads: any; immutable after construction.
class OrderedReduceScatter {
public:
  /// Messages below this go directly: one more turn would cost more than their bytes.
  static constexpr std::uint64_t relay_bytes_min = std::uint64_t{64} << 10;

  /// Whether an all-reduce of `bytes` over `ranks` ranks is quicker in one turn: their rows then are all rows, and nothing
  /// is to be gathered. Between two ranks it moves no more bytes than two turns; each adds up twice as much.
  static constexpr bool in_one_turn(std::uint64_t bytes, std::size_t ranks) {
    return ranks > 2 ? bytes * (ranks - 1) <= (std::uint64_t{64} << 10) : bytes <= (std::uint64_t{1} << 20);
  }

  /// All ranks with the same arguments. Fails with usage when slices or rows are not covered exactly once or `self` is
  /// not in the group.
  static Result<OrderedReduceScatter> create(std::uint32_t slice_count, std::vector<ReduceRank> group, EndpointId self,
                                             std::uint64_t width, std::uint64_t relay_bytes = relay_bytes_min);

  /// What this rank adds up by itself (tree_sum over its slices' partials) before it sends.
  const std::vector<SliceRange>& pieces() const { return pieces_; }
  /// At once.
  const std::vector<ReduceSend>& sends() const { return sends_; }
  /// As soon as their receives are there, which wait for nothing but other ranks' sends; before the own receives.
  const std::vector<ReduceRelay>& relays() const { return relays_; }
  const std::vector<ReduceReceive>& receives() const { return receives_; }
  RowRange rows() const { return rows_; }
  std::uint64_t width() const { return width_; }

  /// Adds up what relays()[index] sends on: `received[i]` is the message of its receives[i], `out` are its
  /// rows.count() x width values. Fails as `combine` does.
  Status relay(std::size_t index, std::span<const std::span<const float>> own, std::span<const Message> received,
               std::span<float> out) const;

  /// Adds up this rank's rows. `own[i]` is piece i, all rows of it; `received[i]` is the message that
  /// receives()[i] names; `out` are rows().count() x width values, not in the memory of an own piece.
  /// Fails with bad_frame if a length is wrong; `out` is unchanged then.
  Status combine(std::span<const std::span<const float>> own, std::span<const Message> received,
                 std::span<float> out) const;

private:
  OrderedReduceScatter() = default;
  void plan(const std::vector<ReduceRank>& group, std::size_t me, std::uint64_t relay_bytes);
  Status check_own(std::span<const std::span<const float>> own) const;
  std::uint32_t slice_count_ = 0;
  std::uint64_t width_ = 0;
  std::uint64_t row_count_ = 0;
  RowRange rows_;
  std::vector<SliceRange> pieces_;
  std::vector<ReduceSend> sends_;
  std::vector<ReduceRelay> relays_;
  std::vector<ReduceReceive> receives_;
};

}  // namespace orrery::protocol
