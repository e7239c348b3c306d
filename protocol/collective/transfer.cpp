#include "protocol/collective/transfer.hpp"

#include <algorithm>
#include <cstring>

namespace orrery::protocol {
namespace {

RowRange overlap(RowRange a, RowRange b) {
  const RowRange common{std::max(a.begin, b.begin), std::min(a.end, b.end)};
  return common.begin < common.end ? common : RowRange{0, 0};
}

Region whole(std::uint64_t offset, std::uint64_t bytes) {
  return {.offset = offset, .runs = 1, .run_bytes = bytes, .pitch = bytes};
}

// Consecutive slices that a rank owns: `first` as a slice number, `place` within the rank's own slices.
struct SliceRun {
  std::uint32_t first, place, count;
};

std::vector<SliceRun> runs_of(const std::vector<std::uint32_t>& slices) {
  std::vector<SliceRun> runs;
  for (std::uint32_t i = 0; i < slices.size(); ++i) {
    if (!runs.empty() && slices[i] == runs.back().first + runs.back().count)
      ++runs.back().count;
    else
      runs.push_back({slices[i], i, 1});
  }
  return runs;
}

// The part of a [V][own rows][width] buffer that holds the slices of a run.
Region token_region(const SliceRun& run, RowRange rows, std::uint64_t slice_row_bytes) {
  const auto plane = rows.count() * slice_row_bytes;
  return {.offset = run.first * plane, .runs = run.count, .run_bytes = plane, .pitch = plane};
}

// The part of a [own slices][all rows][width] buffer that holds some rows of the slices of a run.
Region head_region(const SliceRun& run, RowRange part, std::uint64_t rows, std::uint64_t slice_row_bytes) {
  return {.offset = (run.place * rows + part.begin) * slice_row_bytes,
          .runs = run.count,
          .run_bytes = part.count() * slice_row_bytes,
          .pitch = rows * slice_row_bytes};
}

const SliceRowHolder* find(std::span<const SliceRowHolder> group, EndpointId self) {
  const auto found = std::find_if(group.begin(), group.end(), [&](const auto& rank) { return rank.endpoint == self; });
  return found == group.end() ? nullptr : &*found;
}

}  // namespace

void copy_out(std::span<const std::byte> buffer, const Region& region, std::span<std::byte> packed) {
  ORRERY_CHECK(packed.size() == region.bytes() && region.end() <= buffer.size());
  copy_region(buffer, region, packed, whole(0, region.bytes()));
}

Status copy_in(const Message& message, const Region& region, std::span<std::byte> buffer) {
  if (message.bytes() != region.bytes())
    return Error{ErrorCode::bad_frame, "a message has " + std::to_string(message.bytes()) + " bytes, expected " +
                                           std::to_string(region.bytes())};
  ORRERY_CHECK(region.end() <= buffer.size());
  for (const auto& chunk : message.chunks) {
    auto bytes = chunk.bytes.bytes();
    auto at = chunk.offset;
    while (!bytes.empty()) {
      const auto run = at / region.run_bytes, within = at % region.run_bytes;
      const auto count = std::min<std::uint64_t>(bytes.size(), region.run_bytes - within);
      std::memcpy(buffer.data() + region.offset + run * region.pitch + within, bytes.data(), count);
      bytes = bytes.subspan(count);
      at += count;
    }
  }
  return Done{};
}

void copy_region(std::span<const std::byte> from, const Region& source, std::span<std::byte> to, const Region& target) {
  ORRERY_CHECK(source.bytes() == target.bytes());
  ORRERY_CHECK(source.end() <= from.size() && target.end() <= to.size());
  // Runs of the two sides may be cut differently: go from boundary to boundary of either.
  for (std::uint64_t at = 0; at < source.bytes();) {
    const auto source_within = at % source.run_bytes, target_within = at % target.run_bytes;
    const auto count = std::min(source.run_bytes - source_within, target.run_bytes - target_within);
    std::memcpy(to.data() + target.offset + at / target.run_bytes * target.pitch + target_within,
                from.data() + source.offset + at / source.run_bytes * source.pitch + source_within, count);
    at += count;
  }
}

TransferList move_rows(std::span<const RowHolder> from, std::span<const RowHolder> to, EndpointId self,
                       std::uint64_t row_bytes) {
  TransferList list;
  for (const auto& source : from) {
    for (const auto& target : to) {
      const auto rows = overlap(source.rows, target.rows);
      if (rows.count() * row_bytes == 0) continue;
      const auto bytes = rows.count() * row_bytes;
      const auto read = whole((rows.begin - source.rows.begin) * row_bytes, bytes);
      const auto written = whole((rows.begin - target.rows.begin) * row_bytes, bytes);
      if (source.endpoint == self && target.endpoint == self)
        list.copies.push_back({read, written});
      else if (source.endpoint == self)
        list.sends.push_back({.target = target.endpoint, .part = 0, .region = read});
      else if (target.endpoint == self)
        list.receives.push_back({.source = source.endpoint, .part = 0, .region = written});
    }
  }
  return list;
}

TransferList all_gather_rows(std::span<const RowHolder> group, std::uint64_t rows, EndpointId self,
                             std::uint64_t row_bytes) {
  std::vector<RowHolder> everyone;
  for (const auto& rank : group) everyone.push_back({rank.endpoint, {0, rows}});
  return move_rows(group, everyone, self, row_bytes);
}

TransferList tokens_to_heads(std::span<const SliceRowHolder> group, std::uint64_t rows, EndpointId self,
                             std::uint64_t slice_row_bytes) {
  TransferList list;
  const auto* me = find(group, self);
  if (!me) return list;
  const auto my_runs = runs_of(me->slices);
  for (const auto& rank : group) {
    const auto runs = runs_of(rank.slices);
    if (rank.endpoint == self) {
      for (const auto& run : my_runs)
        if (me->rows.count() * slice_row_bytes != 0)
          list.copies.push_back({token_region(run, me->rows, slice_row_bytes),
                                 head_region(run, me->rows, rows, slice_row_bytes)});
      continue;
    }
    for (std::size_t i = 0; i < runs.size(); ++i)
      if (me->rows.count() * slice_row_bytes != 0)
        list.sends.push_back({.target = rank.endpoint, .part = static_cast<std::uint16_t>(i),
                              .region = token_region(runs[i], me->rows, slice_row_bytes)});
    for (std::size_t i = 0; i < my_runs.size(); ++i)
      if (rank.rows.count() * slice_row_bytes != 0)
        list.receives.push_back({.source = rank.endpoint, .part = static_cast<std::uint16_t>(i),
                                 .region = head_region(my_runs[i], rank.rows, rows, slice_row_bytes)});
  }
  return list;
}

TransferList heads_to_tokens(std::span<const SliceRowHolder> group, std::uint64_t rows, EndpointId self,
                             std::uint64_t slice_row_bytes) {
  // The same regions, the other way round. Parts are numbered by the slice runs of whoever holds the heads.
  const auto forward = tokens_to_heads(group, rows, self, slice_row_bytes);
  TransferList list;
  for (const auto& receive : forward.receives)
    list.sends.push_back({.target = receive.source, .part = receive.part, .region = receive.region});
  for (const auto& send : forward.sends)
    list.receives.push_back({.source = send.target, .part = send.part, .region = send.region});
  for (const auto& copy : forward.copies) list.copies.push_back({copy.target, copy.source});
  return list;
}

TransferList broadcast(EndpointId root, std::span<const EndpointId> members, EndpointId self, std::uint64_t bytes) {
  TransferList list;
  if (bytes == 0) return list;
  for (const auto member : members) {
    if (self == root && member == root)
      list.copies.push_back({whole(0, bytes), whole(0, bytes)});
    else if (self == root)
      list.sends.push_back({.target = member, .part = 0, .region = whole(0, bytes)});
    else if (member == self)
      list.receives.push_back({.source = root, .part = 0, .region = whole(0, bytes)});
  }
  return list;
}

TransferList point_to_point(EndpointId source, EndpointId target, EndpointId self, std::uint64_t bytes) {
  return broadcast(source, std::span(&target, 1), self, bytes);
}

}  // namespace orrery::protocol
