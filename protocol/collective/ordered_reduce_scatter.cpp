#include "protocol/collective/ordered_reduce_scatter.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "protocol/collective/tree_sum.hpp"

namespace orrery::protocol {
namespace {

// Messages of a piece have its index as their part; others have numbers of their own.
constexpr std::uint32_t gather_part = 0x4000, relay_part = 0x8000;

Error bad_group(const std::string& what) { return Error{ErrorCode::usage, "a reduce cannot be set up: " + what}; }

Status check_group(std::uint32_t slice_count, const std::vector<ReduceRank>& group) {
  std::vector<bool> owned(slice_count, false);
  std::size_t owned_count = 0;
  for (const auto& rank : group) {
    for (const auto slice : rank.slices) {
      if (slice >= slice_count || owned[slice])
        return bad_group("slice " + std::to_string(slice) + " is owned twice or does not exist");
      owned[slice] = true;
      ++owned_count;
    }
  }
  if (owned_count != slice_count) return bad_group("a slice has no owner");
  std::vector<RowRange> rows;
  for (const auto& rank : group)
    if (rank.rows.begin != rank.rows.end) rows.push_back(rank.rows);
  // All rows for everybody: an all-reduce.
  if (!rows.empty() && rows.size() == group.size() && rows[0].begin == 0 && rows[0].end > 0 &&
      std::all_of(rows.begin(), rows.end(), [&](const auto& each) { return each.begin == 0 && each.end == rows[0].end; }))
    return Done{};
  std::sort(rows.begin(), rows.end(), [](auto a, auto b) { return a.begin < b.begin; });
  std::uint64_t next = 0;
  for (const auto range : rows) {
    if (range.begin != next || range.end < range.begin) return bad_group("rows are not covered exactly once");
    next = range.end;
  }
  return Done{};
}

}  // namespace

Result<OrderedReduceScatter> OrderedReduceScatter::create(std::uint32_t slice_count, std::vector<ReduceRank> group,
                                                          EndpointId self, std::uint64_t width, std::uint64_t relay_bytes) {
  if (slice_count == 0) return bad_group("no slices");
  ORRERY_TRY_DONE(check_group(slice_count, group));
  const auto me = std::find_if(group.begin(), group.end(), [&](const auto& rank) { return rank.endpoint == self; });
  if (me == group.end()) return bad_group("card " + std::to_string(self) + " is not in the group");

  OrderedReduceScatter reduce;
  reduce.slice_count_ = slice_count;
  reduce.width_ = width;
  for (const auto& rank : group) reduce.row_count_ = std::max(reduce.row_count_, rank.rows.end);
  reduce.rows_ = me->rows;
  reduce.pieces_ = pieces_of(me->slices, slice_count);
  reduce.plan(group, static_cast<std::size_t>(me - group.begin()), relay_bytes);
  return reduce;
}

// Goes through all messages of the group in one order, which all ranks share, and keeps those of `me`.
void OrderedReduceScatter::plan(const std::vector<ReduceRank>& group, std::size_t me, std::uint64_t relay_bytes) {
  std::vector<std::vector<SliceRange>> pieces;
  std::map<std::uint32_t, std::vector<std::size_t>> nodes;
  for (std::size_t rank = 0; rank < group.size(); ++rank) {
    pieces.push_back(pieces_of(group[rank].slices, slice_count_));
    nodes[group[rank].node].push_back(rank);
  }
  const auto row_bytes = width_ * sizeof(float);
  std::map<std::pair<std::size_t, std::size_t>, std::uint16_t> gathered;  // Parts between two ranks of a node so far.

  for (std::size_t target = 0; target < group.size(); ++target) {
    const auto rows = group[target].rows;
    const auto bytes = rows.count() * row_bytes;
    if (bytes == 0) continue;
    const auto send = [&](std::size_t from, std::size_t piece, std::size_t to, std::uint16_t part) {
      if (from == me)
        sends_.push_back({.target = group[to].endpoint, .part = part, .piece = static_cast<std::uint32_t>(piece), .rows = rows,
                          .offset = rows.begin * row_bytes, .bytes = bytes});
    };
    const auto direct = [&](std::size_t from, std::size_t piece) {
      const auto part = static_cast<std::uint16_t>(piece);
      send(from, piece, target, part);
      if (target == me) receives_.push_back({.source = group[from].endpoint, .part = part, .slices = pieces[from][piece], .bytes = bytes});
    };
    for (const auto& [node, ranks] : nodes) {
      std::vector<std::uint32_t> slices;
      for (const auto rank : ranks) slices.insert(slices.end(), group[rank].slices.begin(), group[rank].slices.end());
      // Within a node, and for short messages, every piece goes directly.
      const bool relays = node != group[target].node && bytes >= relay_bytes && slice_count_ <= gather_part;
      if (!relays) {
        for (const auto rank : ranks)
          for (std::size_t piece = 0; rank != target && piece < pieces[rank].size(); ++piece) direct(rank, piece);
        continue;
      }
      const auto together = pieces_of(slices, slice_count_);
      for (std::size_t i = 0; i < together.size(); ++i) {
        std::vector<std::pair<std::size_t, std::size_t>> members;  // Rank and piece.
        std::vector<std::size_t> owners;
        for (const auto rank : ranks) {
          for (std::size_t piece = 0; piece < pieces[rank].size(); ++piece)
            if (pieces[rank][piece].begin >= together[i].begin && pieces[rank][piece].end <= together[i].end)
              members.emplace_back(rank, piece);
          if (!members.empty() && members.back().first == rank) owners.push_back(rank);
        }
        if (members.size() == 1) {
          direct(members[0].first, members[0].second);
          continue;
        }
        const auto adder = owners[(target + i) % owners.size()];
        const auto part = static_cast<std::uint16_t>(relay_part + i);
        ReduceRelay relay{.target = group[target].endpoint, .part = part, .slices = together[i], .rows = rows, .bytes = bytes, .own = {}, .receives = {}};
        for (const auto& [rank, piece] : members) {
          if (rank == adder) {
            relay.own.push_back(static_cast<std::uint32_t>(piece));
            continue;
          }
          const auto inner = static_cast<std::uint16_t>(gather_part + gathered[{rank, adder}]++);
          send(rank, piece, adder, inner);
          relay.receives.push_back({.source = group[rank].endpoint, .part = inner, .slices = pieces[rank][piece], .bytes = bytes});
        }
        if (adder == me) relays_.push_back(std::move(relay));
        if (target == me) receives_.push_back({.source = group[adder].endpoint, .part = part, .slices = together[i], .bytes = bytes});
      }
    }
  }
}

Status OrderedReduceScatter::check_own(std::span<const std::span<const float>> own) const {
  for (std::size_t i = 0; i < own.size(); ++i)
    if (own[i].size() != row_count_ * width_)
      return Error{ErrorCode::bad_frame, "own piece " + std::to_string(i) + " of a reduce has " + std::to_string(own[i].size()) +
                                             " values, expected " + std::to_string(row_count_ * width_)};
  return Done{};
}

Status OrderedReduceScatter::relay(std::size_t index, std::span<const std::span<const float>> own,
                                   std::span<const Message> received, std::span<float> out) const {
  const auto& what = relays_[index];
  if (own.size() != pieces_.size() || received.size() != what.receives.size() || out.size() != what.rows.count() * width_)
    return Error{ErrorCode::bad_frame, "a relay of a reduce got " + std::to_string(received.size()) + " messages for " +
                                           std::to_string(out.size()) + " values, expected " +
                                           std::to_string(what.receives.size()) + " for " +
                                           std::to_string(what.rows.count() * width_)};
  ORRERY_TRY_DONE(check_own(own));
  std::vector<Summand> summands;
  for (const auto piece : what.own)
    summands.push_back({pieces_[piece], {std::as_bytes(own[piece].subspan(what.rows.begin * width_, out.size()))}});
  for (std::size_t i = 0; i < received.size(); ++i) {
    Summand summand{what.receives[i].slices, {}};
    for (const auto& chunk : received[i].chunks) summand.runs.push_back(chunk.bytes.bytes());
    summands.push_back(std::move(summand));
  }
  return tree_sum(what.slices, summands, out);
}

Status OrderedReduceScatter::combine(std::span<const std::span<const float>> own, std::span<const Message> received,
                                     std::span<float> out) const {
  if (own.size() != pieces_.size() || received.size() != receives_.size())
    return Error{ErrorCode::bad_frame, "a reduce got " + std::to_string(own.size()) + " own pieces and " +
                                           std::to_string(received.size()) + " messages, expected " +
                                           std::to_string(pieces_.size()) + " and " +
                                           std::to_string(receives_.size())};
  if (out.size() != rows_.count() * width_)
    return Error{ErrorCode::bad_frame, "a reduce's result has " + std::to_string(out.size()) + " values, expected " +
                                           std::to_string(rows_.count() * width_)};
  if (out.empty()) return Done{};
  ORRERY_TRY_DONE(check_own(own));
  std::vector<Summand> summands;
  summands.reserve(own.size() + received.size());
  for (std::size_t i = 0; i < own.size(); ++i)
    summands.push_back({pieces_[i], {std::as_bytes(own[i].subspan(rows_.begin * width_, out.size()))}});
  for (std::size_t i = 0; i < received.size(); ++i) {
    Summand summand{receives_[i].slices, {}};
    for (const auto& chunk : received[i].chunks) summand.runs.push_back(chunk.bytes.bytes());
    summands.push_back(std::move(summand));
  }
  return tree_sum({0, slice_count_}, summands, out);
}

}  // namespace orrery::protocol
