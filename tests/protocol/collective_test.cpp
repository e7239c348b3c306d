// Collectives, run as a whole group inside one test: every member's list is carried out and compared with the
// result of one card.

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <tuple>
#include <vector>

#include <catch2/catch.hpp>

#include "base/random.hpp"
#include "protocol/collective/ordered_reduce_scatter.hpp"
#include "protocol/collective/transfer.hpp"
#include "protocol/collective/tree_sum.hpp"

using namespace orrery;
using namespace orrery::protocol;

namespace {

using Buffer = std::vector<std::byte>;
using Wire = std::map<std::tuple<EndpointId, EndpointId, std::uint16_t>, Message>;

// A message in several chunks, to see that nobody relies on one.
Message message_of(std::span<const std::byte> bytes, std::uint64_t chunk_bytes) {
  Message message{DType::u8, {bytes.size()}, {}};
  for (std::uint64_t at = 0; at < bytes.size(); at += chunk_bytes)
    message.chunks.push_back({at, Shard::copy_of(bytes.subspan(at, std::min<std::uint64_t>(chunk_bytes, bytes.size() - at)))});
  return message;
}

void put(Wire& wire, EndpointId self, const TransferList& list, const Buffer& source, Buffer& target) {
  for (const auto& send : list.sends) {
    Buffer packed(send.region.bytes());
    copy_out(source, send.region, packed);
    REQUIRE(wire.emplace(std::tuple(self, send.target, send.part), message_of(packed, 12)).second);
  }
  for (const auto& copy : list.copies) copy_region(source, copy.source, target, copy.target);
}

void take(Wire& wire, EndpointId self, const TransferList& list, Buffer& target) {
  for (const auto& receive : list.receives) {
    const auto found = wire.find({receive.source, self, receive.part});
    REQUIRE(found != wire.end());
    REQUIRE(copy_in(found->second, receive.region, target).ok());
    wire.erase(found);
  }
}

// Deals V slices to ranks at random; every rank gets at least one.
std::vector<std::vector<std::uint32_t>> deal(std::uint32_t slices, std::uint32_t ranks, Random& random) {
  std::vector<std::uint32_t> order(slices);
  std::iota(order.begin(), order.end(), 0U);
  for (std::uint32_t i = slices; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  std::vector<std::vector<std::uint32_t>> owned(ranks);
  for (std::uint32_t i = 0; i < slices; ++i) owned[i < ranks ? i : random.below(ranks)].push_back(order[i]);
  for (auto& rank : owned) std::sort(rank.begin(), rank.end());
  return owned;
}

std::vector<RowRange> rows_for(std::uint64_t rows, const std::vector<std::vector<std::uint32_t>>& owned) {
  std::vector<std::uint32_t> shares;
  for (const auto& rank : owned) shares.push_back(static_cast<std::uint32_t>(rank.size()));
  return split_rows(rows, shares);
}

// The meaning of the tree, written as plainly as possible.
float plain_sum(SliceRange range, const std::vector<std::vector<float>>& slices, std::size_t i) {
  if (range.count() == 1) return slices[range.begin][i];
  const auto split = split_of(range);
  return plain_sum({range.begin, split}, slices, i) + plain_sum({split, range.end}, slices, i);
}

std::vector<std::vector<float>> partials(std::uint32_t slices, std::uint64_t values, std::uint64_t seed) {
  std::vector<std::vector<float>> all(slices, std::vector<float>(values));
  for (std::uint32_t s = 0; s < slices; ++s) {
    fill_normal(seed, RandomStream::synthetic_weights, s * values, all[s]);
    // Magnitudes that differ make every other order of additions visible.
    for (auto& value : all[s]) value *= static_cast<float>(1 << (s * 3 % 11));
  }
  return all;
}

std::span<const std::byte> bytes_of(std::span<const float> values) { return std::as_bytes(values); }

}  // namespace

TEST_CASE("ordered reduce-scatter: every ownership gives the bits of one card", "[protocol][collective]") {
  const auto slices = GENERATE(1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U, 12U);
  const auto rows = GENERATE(std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{7}, std::uint64_t{64}, std::uint64_t{65});
  CAPTURE(slices, rows);
  const std::uint64_t width = 5;
  const auto all = partials(slices, rows * width, 42);
  Random random(slices * 1000 + rows);
  for (int round = 0; round < 12; ++round) {
    const auto ranks = 1 + static_cast<std::uint32_t>(random.below(slices));
    const auto owned = deal(slices, ranks, random);
    const auto ranges = rows_for(rows, owned);
    std::vector<ReduceRank> group;
    for (std::uint32_t r = 0; r < ranks; ++r) group.push_back({100 + r, owned[r], ranges[r]});

    std::vector<OrderedReduceScatter> reduces;
    std::vector<std::vector<std::vector<float>>> pieces(ranks);
    Wire wire;
    for (std::uint32_t r = 0; r < ranks; ++r) {
      auto made = OrderedReduceScatter::create(slices, group, 100 + r, width);
      REQUIRE(made.ok());
      reduces.push_back(std::move(made).value());
      for (const auto piece : reduces[r].pieces()) {
        std::vector<Summand> leaves;
        for (auto s = piece.begin; s < piece.end; ++s) leaves.push_back({{s, s + 1}, {bytes_of(all[s])}});
        pieces[r].emplace_back(rows * width);
        REQUIRE(tree_sum(piece, leaves, pieces[r].back()).ok());
      }
      for (const auto& send : reduces[r].sends()) {
        const auto from = bytes_of(pieces[r][send.part]).subspan(send.offset, send.bytes);
        REQUIRE(wire.emplace(std::tuple(100 + r, send.target, send.part), message_of(from, 4 * (1 + random.below(40)))).second);
      }
    }
    for (std::uint32_t r = 0; r < ranks; ++r) {
      std::vector<std::span<const float>> own(pieces[r].begin(), pieces[r].end());
      std::vector<Message> received;
      for (const auto& receive : reduces[r].receives()) {
        const auto found = wire.find({receive.source, 100 + r, receive.part});
        REQUIRE(found != wire.end());
        CHECK(found->second.bytes() == receive.bytes);
        received.push_back(std::move(found->second));
        wire.erase(found);
      }
      std::vector<float> out(ranges[r].count() * width, -1.0f);
      REQUIRE(reduces[r].combine(own, received, out).ok());
      for (std::size_t i = 0; i < out.size(); ++i) {
        const auto expected = plain_sum({0, slices}, all, ranges[r].begin * width + i);
        if (std::bit_cast<std::uint32_t>(out[i]) != std::bit_cast<std::uint32_t>(expected))
          FAIL("round " << round << " rank " << r << " value " << i << ": " << out[i] << " is not " << expected);
      }
    }
    CHECK(wire.empty());
  }
}

TEST_CASE("ordered reduce-scatter: adding within nodes first gives the same bits", "[protocol][collective]") {
  const auto slices = GENERATE(2U, 3U, 5U, 8U, 12U);
  const auto rows = GENERATE(std::uint64_t{1}, std::uint64_t{7}, std::uint64_t{65});
  CAPTURE(slices, rows);
  const std::uint64_t width = 5;
  const auto all = partials(slices, rows * width, 43);
  Random random(slices * 1000 + rows);
  for (int round = 0; round < 20; ++round) {
    const auto ranks = 1 + static_cast<std::uint32_t>(random.below(slices));
    const auto owned = deal(slices, ranks, random);
    const auto ranges = rows_for(rows, owned);
    std::vector<ReduceRank> group;
    for (std::uint32_t r = 0; r < ranks; ++r)
      group.push_back({100 + r, owned[r], ranges[r], static_cast<std::uint32_t>(random.below(3))});
    // Some messages are relayed, some are too short for it.
    const auto relay_bytes = random.below(2) == 0 ? 0 : random.below(rows * width * 4);

    std::vector<OrderedReduceScatter> reduces;
    std::vector<std::vector<std::vector<float>>> pieces(ranks);
    Wire wire;
    const auto take = [&](EndpointId source, EndpointId target, std::uint16_t part, std::uint64_t bytes) {
      const auto found = wire.find({source, target, part});
      REQUIRE(found != wire.end());
      CHECK(found->second.bytes() == bytes);
      auto message = std::move(found->second);
      wire.erase(found);
      return message;
    };
    for (std::uint32_t r = 0; r < ranks; ++r) {
      auto made = OrderedReduceScatter::create(slices, group, 100 + r, width, relay_bytes);
      REQUIRE(made.ok());
      reduces.push_back(std::move(made).value());
      for (const auto piece : reduces[r].pieces()) {
        std::vector<Summand> leaves;
        for (auto each = piece.begin; each < piece.end; ++each) leaves.push_back({{each, each + 1}, {bytes_of(all[each])}});
        pieces[r].emplace_back(rows * width);
        REQUIRE(tree_sum(piece, leaves, pieces[r].back()).ok());
      }
      for (const auto& send : reduces[r].sends()) {
        const auto from = bytes_of(pieces[r][send.piece]).subspan(send.offset, send.bytes);
        REQUIRE(wire.emplace(std::tuple(100 + r, send.target, send.part), message_of(from, 4 * (1 + random.below(40)))).second);
      }
    }
    for (std::uint32_t r = 0; r < ranks; ++r) {
      const std::vector<std::span<const float>> own(pieces[r].begin(), pieces[r].end());
      for (std::size_t i = 0; i < reduces[r].relays().size(); ++i) {
        const auto& relay = reduces[r].relays()[i];
        CHECK(group[relay.target - 100].node != group[r].node);
        std::vector<Message> received;
        for (const auto& each : relay.receives) {
          CHECK(group[each.source - 100].node == group[r].node);
          received.push_back(take(each.source, 100 + r, each.part, each.bytes));
        }
        std::vector<float> sum(relay.rows.count() * width);
        REQUIRE(reduces[r].relay(i, own, received, sum).ok());
        REQUIRE(wire.emplace(std::tuple(100 + r, relay.target, relay.part), message_of(bytes_of(sum), 64)).second);
        CHECK_FALSE(reduces[r].relay(i, own, {}, {}).ok());
      }
    }
    for (std::uint32_t r = 0; r < ranks; ++r) {
      const std::vector<std::span<const float>> own(pieces[r].begin(), pieces[r].end());
      std::vector<Message> received;
      for (const auto& each : reduces[r].receives()) received.push_back(take(each.source, 100 + r, each.part, each.bytes));
      std::vector<float> out(ranges[r].count() * width, -1.0f);
      REQUIRE(reduces[r].combine(own, received, out).ok());
      for (std::size_t i = 0; i < out.size(); ++i) {
        const auto expected = plain_sum({0, slices}, all, ranges[r].begin * width + i);
        if (std::bit_cast<std::uint32_t>(out[i]) != std::bit_cast<std::uint32_t>(expected))
          FAIL("round " << round << " rank " << r << " value " << i << ": " << out[i] << " is not " << expected);
      }
    }
    CHECK(wire.empty());
  }
}

TEST_CASE("ordered reduce-scatter: in one turn everybody has the bits of one card", "[protocol][collective]") {
  const std::uint32_t slices = 8;
  const std::uint64_t rows = 5, width = 3;
  const auto all = partials(slices, rows * width, 44);
  const std::vector<std::vector<std::uint32_t>> owned{{0, 1, 2}, {3, 4}, {5, 6, 7}};
  std::vector<ReduceRank> group;
  for (EndpointId r = 0; r < 3; ++r) group.push_back({r, owned[r], {0, rows}});
  std::vector<std::vector<std::vector<float>>> pieces(3);
  Wire wire;
  for (EndpointId r = 0; r < 3; ++r) {
    const auto reduce = OrderedReduceScatter::create(slices, group, r, width).value();
    for (const auto piece : reduce.pieces()) {
      std::vector<Summand> leaves;
      for (auto each = piece.begin; each < piece.end; ++each) leaves.push_back({{each, each + 1}, {bytes_of(all[each])}});
      pieces[r].emplace_back(rows * width);
      REQUIRE(tree_sum(piece, leaves, pieces[r].back()).ok());
    }
    for (const auto& send : reduce.sends())
      wire.emplace(std::tuple(r, send.target, send.part), message_of(bytes_of(pieces[r][send.piece]).subspan(send.offset, send.bytes), 16));
  }
  for (EndpointId r = 0; r < 3; ++r) {
    const auto reduce = OrderedReduceScatter::create(slices, group, r, width).value();
    std::vector<Message> received;
    for (const auto& each : reduce.receives()) received.push_back(std::move(wire.at({each.source, r, each.part})));
    std::vector<float> out(rows * width);
    REQUIRE(reduce.combine(std::vector<std::span<const float>>(pieces[r].begin(), pieces[r].end()), received, out).ok());
    for (std::size_t i = 0; i < out.size(); ++i)
      CHECK(std::bit_cast<std::uint32_t>(out[i]) == std::bit_cast<std::uint32_t>(plain_sum({0, slices}, all, i)));
  }
  CHECK(OrderedReduceScatter::in_one_turn(4096, 4));
  CHECK_FALSE(OrderedReduceScatter::in_one_turn(1 << 20, 4));
  CHECK(OrderedReduceScatter::in_one_turn(1 << 20, 2));
  CHECK_FALSE(OrderedReduceScatter::in_one_turn(1 << 21, 2));
}

TEST_CASE("ordered reduce-scatter: with n cards per node an n-th of the bytes travels between nodes", "[protocol][collective]") {
  const std::uint64_t rows = 64, width = 256;
  const auto between_nodes = [&](std::uint32_t nodes, std::uint32_t cards, bool relayed) {
    std::vector<ReduceRank> group;
    const auto ranks = nodes * cards;
    for (std::uint32_t r = 0; r < ranks; ++r)
      group.push_back({r, {r}, {rows * r / ranks, rows * (r + 1) / ranks}, relayed ? r / cards : 0});
    std::uint64_t bytes = 0;
    for (std::uint32_t r = 0; r < ranks; ++r) {
      const auto reduce = OrderedReduceScatter::create(ranks, group, r, width, 0).value();
      for (const auto& each : reduce.receives())
        if (each.source / cards != r / cards) bytes += each.bytes;
    }
    return bytes;
  };
  const auto tensor = rows * width * 4;
  CHECK(between_nodes(2, 2, false) == 2 * tensor);
  CHECK(between_nodes(2, 2, true) == tensor);
  CHECK(between_nodes(2, 4, false) == 4 * tensor);
  CHECK(between_nodes(2, 4, true) == tensor);
  CHECK(between_nodes(4, 2, true) == between_nodes(4, 2, false) / 2);

  // The work of adding is shared out over the node's cards.
  std::vector<ReduceRank> group;
  for (std::uint32_t r = 0; r < 4; ++r) group.push_back({r, {r}, {16 * r, 16 * (r + 1)}, r / 2});
  for (std::uint32_t r = 0; r < 4; ++r) CHECK(OrderedReduceScatter::create(4, group, r, width, 0).value().relays().size() == 1);
}

TEST_CASE("ordered reduce-scatter: pieces that make up no larger subtree of a node go directly", "[protocol][collective]") {
  // Card 0 has the first slice, card 1 the last: between them nothing can be added.
  const std::vector<ReduceRank> group{{0, {0}, {0, 2}, 0}, {1, {3}, {2, 4}, 0}, {2, {1, 2}, {4, 6}, 1}};
  for (EndpointId self = 0; self < 3; ++self) CHECK(OrderedReduceScatter::create(4, group, self, 8, 0).value().relays().empty());
}

TEST_CASE("ordered reduce-scatter: contiguous power-of-two ownership sends one piece per card", "[protocol][collective]") {
  std::vector<ReduceRank> group{{0, {0, 1}, {0, 2}}, {1, {2, 3}, {2, 4}}, {2, {4, 5, 6, 7}, {4, 8}}};
  for (EndpointId r = 0; r < 3; ++r) {
    const auto reduce = OrderedReduceScatter::create(8, group, r, 16);
    REQUIRE(reduce.ok());
    CHECK(reduce.value().pieces().size() == 1);
    CHECK(reduce.value().sends().size() == 2);
    CHECK(reduce.value().receives().size() == 2);
  }
  // 3 + 3 + 2 of 8 costs a second piece on two cards.
  std::vector<ReduceRank> uneven{{0, {0, 1, 2}, {0, 3}}, {1, {3, 4, 5}, {3, 6}}, {2, {6, 7}, {6, 8}}};
  CHECK(OrderedReduceScatter::create(8, uneven, 0, 16).value().pieces() == std::vector<SliceRange>{{0, 2}, {2, 3}});
  CHECK(OrderedReduceScatter::create(8, uneven, 1, 16).value().pieces() == std::vector<SliceRange>{{3, 4}, {4, 6}});
}

TEST_CASE("ordered reduce-scatter: a group that does not add up is refused", "[protocol][collective]") {
  const auto refused = [](std::vector<ReduceRank> group, EndpointId self = 0) {
    const auto made = OrderedReduceScatter::create(4, std::move(group), self, 8);
    return !made.ok() && made.error().code == ErrorCode::usage;
  };
  CHECK_FALSE(refused({{0, {0, 1, 2, 3}, {0, 8}}}));
  CHECK(refused({{0, {0, 1, 2}, {0, 8}}}));
  CHECK(refused({{0, {0, 1, 2, 3, 3}, {0, 8}}}));
  CHECK(refused({{0, {0, 1, 2, 4}, {0, 8}}}));
  CHECK(refused({{0, {0, 1}, {0, 4}}, {1, {2, 3}, {5, 8}}}));
  CHECK(refused({{0, {0, 1}, {0, 4}}, {1, {2, 3}, {3, 8}}}));
  CHECK(refused({{0, {0, 1, 2, 3}, {0, 8}}}, 9));
}

TEST_CASE("ordered reduce-scatter: a message of another length is refused and leaves the result alone",
          "[protocol][collective][fault]") {
  std::vector<ReduceRank> group{{0, {0}, {0, 2}}, {1, {1}, {2, 4}}};
  const auto reduce = OrderedReduceScatter::create(2, group, 0, 3).value();
  const std::vector<float> piece(12, 1.0f);
  const std::vector<std::span<const float>> own{piece};
  std::vector<float> out(6, -1.0f);
  for (const std::size_t bytes : {0, 20, 23, 28}) {
    const std::vector<Message> received{message_of(Buffer(bytes), 8)};
    const auto status = reduce.combine(own, received, out);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code == ErrorCode::bad_frame);
  }
  CHECK_FALSE(reduce.combine(own, {}, out).ok());
  CHECK(out == std::vector<float>(6, -1.0f));
}

TEST_CASE("tree sum: runs of any cut and alignment give the same bits", "[protocol][collective]") {
  const std::size_t values = 10'007;  // Several blocks and a rest.
  const auto all = partials(8, values, 5);
  std::vector<float> expected(values);
  for (std::size_t i = 0; i < values; ++i) expected[i] = plain_sum({0, 8}, all, i);
  Random random(1);
  for (int round = 0; round < 20; ++round) {
    std::vector<Buffer> memory;
    std::vector<Summand> summands;
    for (std::uint32_t s = 0; s < 8; ++s) {
      const auto shift = random.below(4);
      memory.emplace_back(values * 4 + 4);
      std::memcpy(memory.back().data() + shift, all[s].data(), values * 4);
      Summand summand{{s, s + 1}, {}};
      auto rest = std::span<const std::byte>(memory.back()).subspan(shift, values * 4);
      while (!rest.empty()) {
        const auto count = std::min<std::size_t>(rest.size(), 4 * random.below(5000));
        summand.runs.push_back(rest.first(count));
        rest = rest.subspan(count);
      }
      summands.push_back(std::move(summand));
    }
    std::swap(summands[0], summands[random.below(8)]);
    std::vector<float> out(values);
    REQUIRE(tree_sum({0, 8}, summands, out).ok());
    CHECK(std::memcmp(out.data(), expected.data(), values * 4) == 0);
  }
}

TEST_CASE("tree sum: summands that are no nodes of the tree are refused", "[protocol][collective]") {
  const std::vector<float> v(4, 1.0f);
  std::vector<float> out(4);
  const auto sum = [&](std::vector<SliceRange> ranges) {
    std::vector<Summand> summands;
    for (const auto range : ranges) summands.push_back({range, {bytes_of(v)}});
    return tree_sum({0, 4}, summands, out).ok();
  };
  CHECK(sum({{0, 4}}));
  CHECK(sum({{2, 4}, {0, 2}}));
  CHECK_FALSE(sum({}));
  CHECK_FALSE(sum({{0, 2}}));
  CHECK_FALSE(sum({{0, 1}, {1, 3}, {3, 4}}));  // [1,3) is no node.
  CHECK_FALSE(sum({{0, 2}, {0, 2}, {2, 4}}));
  CHECK_FALSE(sum({{0, 2}, {1, 2}, {2, 4}}));
  CHECK_FALSE(sum({{0, 2}, {2, 4}, {4, 5}}));
}

TEST_CASE("move rows: rows of any split arrive in any other, also between groups", "[protocol][collective]") {
  const auto rows = GENERATE(std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{7}, std::uint64_t{64}, std::uint64_t{65});
  const std::uint64_t row_bytes = 6;
  Random random(rows);
  Buffer all(rows * row_bytes);
  for (auto& byte : all) byte = static_cast<std::byte>(random.next());
  for (int round = 0; round < 20; ++round) {
    const auto from_count = 1 + static_cast<std::uint32_t>(random.below(5));
    const auto to_count = 1 + static_cast<std::uint32_t>(random.below(5));
    const auto shift = random.below(6);  // The second group overlaps the first one, or not.
    const auto from_rows = rows_for(rows, deal(8, from_count, random)), to_rows = rows_for(rows, deal(8, to_count, random));
    std::vector<RowHolder> from, to;
    for (std::uint32_t r = 0; r < from_count; ++r) from.push_back({r, from_rows[r]});
    const bool gather = round % 2 == 0;
    for (std::uint32_t r = 0; r < to_count; ++r)
      to.push_back({static_cast<EndpointId>(r + shift), gather ? RowRange{0, rows} : to_rows[r]});
    Wire wire;
    std::map<EndpointId, Buffer> source, target;
    for (const auto& holder : from)
      source[holder.endpoint] = {all.begin() + static_cast<std::ptrdiff_t>(holder.rows.begin * row_bytes),
                                 all.begin() + static_cast<std::ptrdiff_t>(holder.rows.end * row_bytes)};
    for (const auto& holder : to) target[holder.endpoint].resize(holder.rows.count() * row_bytes);
    for (EndpointId e = 0; e < 12; ++e) put(wire, e, move_rows(from, to, e, row_bytes), source[e], target[e]);
    for (EndpointId e = 0; e < 12; ++e) take(wire, e, move_rows(from, to, e, row_bytes), target[e]);
    CHECK(wire.empty());
    for (const auto& holder : to)
      CHECK(std::equal(target[holder.endpoint].begin(), target[holder.endpoint].end(),
                       all.begin() + static_cast<std::ptrdiff_t>(holder.rows.begin * row_bytes)));
  }
}

TEST_CASE("all-gather rows: everyone ends with all rows", "[protocol][collective]") {
  const std::vector<RowHolder> group{{3, {0, 2}}, {5, {2, 2}}, {9, {2, 5}}};
  const Buffer all = [] {
    Buffer b(20);
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<std::byte>(i);
    return b;
  }();
  Wire wire;
  std::map<EndpointId, Buffer> target;
  for (const auto& rank : group) {
    target[rank.endpoint].resize(20);
    const Buffer own(all.begin() + static_cast<std::ptrdiff_t>(rank.rows.begin * 4), all.begin() + static_cast<std::ptrdiff_t>(rank.rows.end * 4));
    put(wire, rank.endpoint, all_gather_rows(group, 5, rank.endpoint, 4), own, target[rank.endpoint]);
  }
  CHECK(wire.size() == 4);  // The rank without rows sends nothing.
  for (const auto& rank : group) {
    take(wire, rank.endpoint, all_gather_rows(group, 5, rank.endpoint, 4), target[rank.endpoint]);
    CHECK(target[rank.endpoint] == all);
  }
}

TEST_CASE("tokens to heads and back: every value ends where it belongs", "[protocol][collective]") {
  const auto slices = GENERATE(1U, 3U, 8U);
  const auto rows = GENERATE(std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{7}, std::uint64_t{65});
  const std::uint64_t width = 3;
  CAPTURE(slices, rows);
  Random random(slices + rows);
  const auto value = [&](std::uint64_t slice, std::uint64_t row, std::uint64_t i) {
    return static_cast<std::byte>(slice * 89 + row * 7 + i);
  };
  for (int round = 0; round < 10; ++round) {
    const auto ranks = 1 + static_cast<std::uint32_t>(random.below(slices));
    const auto owned = deal(slices, ranks, random);
    const auto ranges = rows_for(rows, owned);
    std::vector<SliceRowHolder> group;
    for (std::uint32_t r = 0; r < ranks; ++r) group.push_back({10 + r, owned[r], ranges[r]});
    std::vector<Buffer> tokens(ranks), heads(ranks);
    for (std::uint32_t r = 0; r < ranks; ++r) {
      for (std::uint32_t s = 0; s < slices; ++s)
        for (auto row = ranges[r].begin; row < ranges[r].end; ++row)
          for (std::uint64_t i = 0; i < width; ++i) tokens[r].push_back(value(s, row, i));
      heads[r].resize(owned[r].size() * rows * width);
    }
    Wire wire;
    for (std::uint32_t r = 0; r < ranks; ++r) put(wire, 10 + r, tokens_to_heads(group, rows, 10 + r, width), tokens[r], heads[r]);
    for (std::uint32_t r = 0; r < ranks; ++r) take(wire, 10 + r, tokens_to_heads(group, rows, 10 + r, width), heads[r]);
    CHECK(wire.empty());
    for (std::uint32_t r = 0; r < ranks; ++r) {
      Buffer expected;
      for (const auto s : owned[r])
        for (std::uint64_t row = 0; row < rows; ++row)
          for (std::uint64_t i = 0; i < width; ++i) expected.push_back(value(s, row, i));
      CHECK(heads[r] == expected);
    }
    std::vector<Buffer> back(ranks);
    for (std::uint32_t r = 0; r < ranks; ++r) back[r].resize(tokens[r].size());
    for (std::uint32_t r = 0; r < ranks; ++r) put(wire, 10 + r, heads_to_tokens(group, rows, 10 + r, width), heads[r], back[r]);
    for (std::uint32_t r = 0; r < ranks; ++r) take(wire, 10 + r, heads_to_tokens(group, rows, 10 + r, width), back[r]);
    CHECK(wire.empty());
    CHECK(back == tokens);
  }
}

TEST_CASE("broadcast and point to point: the root's bytes reach everyone named", "[protocol][collective]") {
  const std::vector<EndpointId> members{1, 4, 6};
  CHECK(broadcast(4, members, 4, 10).sends.size() == 2);
  CHECK(broadcast(4, members, 4, 10).copies.size() == 1);
  CHECK(broadcast(4, members, 6, 10).receives == std::vector<TransferReceive>{{4, 0, {0, 1, 10, 10}}});
  CHECK(broadcast(4, members, 9, 10).receives.empty());
  CHECK(broadcast(9, members, 9, 10).sends.size() == 3);
  CHECK(broadcast(4, members, 4, 0).sends.empty());
  CHECK(point_to_point(1, 2, 1, 8).sends == std::vector<TransferSend>{{2, 0, {0, 1, 8, 8}}});
  CHECK(point_to_point(1, 2, 2, 8).receives.size() == 1);
  CHECK(point_to_point(2, 2, 2, 8).copies.size() == 1);
}

TEST_CASE("transfer: a message of another length is refused", "[protocol][collective][fault]") {
  Buffer target(64);
  const Region region{.offset = 8, .runs = 3, .run_bytes = 5, .pitch = 16};
  CHECK(copy_in(message_of(Buffer(15), 4), region, target).ok());
  CHECK(copy_in(message_of(Buffer(14), 4), region, target).error().code == ErrorCode::bad_frame);
  CHECK(copy_in(Message{}, region, target).error().code == ErrorCode::bad_frame);
  CHECK(copy_in(Message{}, Region{}, target).ok());
}
