#include "protocol/collective/ordered_reduce_scatter.hpp"

#include <algorithm>
#include <string>

#include "protocol/collective/tree_sum.hpp"

namespace orrery::protocol {
namespace {

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
                                                          EndpointId self, std::uint64_t width) {
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
  const auto row_bytes = width * sizeof(float);
  for (const auto& rank : group) {
    if (rank.endpoint == self) continue;
    for (std::size_t part = 0; part < reduce.pieces_.size() && rank.rows.count() * row_bytes != 0; ++part)
      reduce.sends_.push_back({.target = rank.endpoint,
                               .part = static_cast<std::uint16_t>(part),
                               .rows = rank.rows,
                               .offset = rank.rows.begin * row_bytes,
                               .bytes = rank.rows.count() * row_bytes});
    const auto pieces = pieces_of(rank.slices, slice_count);
    for (std::size_t part = 0; part < pieces.size() && me->rows.count() * row_bytes != 0; ++part)
      reduce.receives_.push_back({.source = rank.endpoint,
                                  .part = static_cast<std::uint16_t>(part),
                                  .slices = pieces[part],
                                  .bytes = me->rows.count() * row_bytes});
  }
  return reduce;
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
  std::vector<Summand> summands;
  summands.reserve(own.size() + received.size());
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (own[i].size() != row_count_ * width_)
      return Error{ErrorCode::bad_frame, "own piece " + std::to_string(i) + " of a reduce has " +
                                             std::to_string(own[i].size()) + " values, expected " +
                                             std::to_string(row_count_ * width_)};
    summands.push_back({pieces_[i], {std::as_bytes(own[i].subspan(rows_.begin * width_, out.size()))}});
  }
  for (std::size_t i = 0; i < received.size(); ++i) {
    Summand summand{receives_[i].slices, {}};
    for (const auto& chunk : received[i].chunks) summand.runs.push_back(chunk.bytes.bytes());
    summands.push_back(std::move(summand));
  }
  return tree_sum({0, slice_count_}, summands, out);
}

}  // namespace orrery::protocol
