#include "launch/bench_link_rank.hpp"

#include <condition_variable>
#include <cstring>
#include <iostream>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.hpp"
#include "base/json.hpp"
#include "base/tensor.hpp"
#include "launch/verb.hpp"
#include "protocol/collective/ordered_reduce_scatter.hpp"
#include "protocol/collective/transfer.hpp"
#include "protocol/exchange.hpp"
#include "protocol/host_transport.hpp"

namespace orrery::launch {
namespace {

using protocol::EndpointId;
using protocol::MessageKey;
using protocol::RowHolder;

constexpr Duration patience = std::chrono::seconds(30);
/// Bytes of a row: what a card's rows have is a few KiB; less lets small vectors be shared out evenly.
constexpr std::uint64_t row_bytes = 64;
/// What an all-reduce of much more is cut into: a core's cache holds a rank's part of it, from the sum to the wire.
constexpr std::uint64_t block_bytes = std::uint64_t{2} << 20;
constexpr std::size_t blocks_ahead = 2;
constexpr std::uint32_t reduce_op = 1, gather_op = 2, move_op = 3, barrier_op = 4;

const std::vector<std::pair<std::string, LinkOp>> ops = {
    {"all_reduce", LinkOp::all_reduce}, {"reduce_scatter", LinkOp::reduce_scatter}, {"all_gather", LinkOp::all_gather},
    {"all_to_all", LinkOp::all_to_all}, {"broadcast", LinkOp::broadcast},           {"sendrecv", LinkOp::sendrecv}};

/// Memory that is lent to sends; whoever writes it again waits until it is back.
class LentBuffer {
public:
  /// New memory, aligned as a card's is: what a size takes does not hang on the sizes before it.
  void resize(std::uint64_t bytes) { memory_ = Tensor(DType::f32, {bytes / sizeof(float)}); }
  std::span<std::byte> bytes() { return {memory_.data(), memory_.bytes()}; }
  std::span<float> values() { return memory_.as<float>(); }

  Shard lend(std::uint64_t offset, std::uint64_t size) {
    {
      const std::lock_guard lock(state_->mutex);
      ++state_->lent;
    }
    return {bytes().subspan(offset, size), [state = state_] {
              {
                const std::lock_guard lock(state->mutex);
                --state->lent;
              }
              state->back.notify_all();
            }};
  }
  /// Fails with timed_out.
  Status wait() const {
    std::unique_lock lock(state_->mutex);
    if (state_->back.wait_for(lock, patience, [&] { return state_->lent == 0; })) return Done{};
    return Error{ErrorCode::timed_out, "a neighbour did not take what it was sent within 30 s"};
  }

private:
  struct State {
    std::mutex mutex;
    std::condition_variable back;
    std::uint32_t lent = 0;
  };
  Tensor memory_;
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

/// Element `i` of what rank `rank` contributes: a whole number below 1024.
float value_of(std::uint64_t i, std::uint32_t rank) { return static_cast<float>((i * 7 + rank * 131) % 1024); }

class Rank {
public:
  Rank(const LinkRankArguments& arguments, const Clock& clock, protocol::Exchange& exchange)
      : self_(arguments.rank), ranks_(arguments.ranks), clock_(clock), exchange_(exchange) {}

  Result<OrderedJson> measure(LinkOp op, std::uint64_t bytes, std::uint32_t iterations, std::uint32_t samples, std::uint32_t warmup) {
    ORRERY_TRY_DONE(prepare(op, bytes));
    ORRERY_TRY_DONE(barrier());
    for (std::uint32_t i = 0; i < warmup; ++i) ORRERY_TRY_DONE(run());
    OrderedJson seconds = OrderedJson::array();
    for (std::uint32_t sample = 0; sample < samples; ++sample) {
      ORRERY_TRY_DONE(barrier());
      const auto begun = clock_.now();
      for (std::uint32_t i = 0; i < iterations; ++i) ORRERY_TRY_DONE(run());
      seconds.push_back(seconds_of(clock_.now() - begun) / iterations);
    }
    // Once more, into memory that holds no former result.
    ORRERY_TRY_DONE(barrier());
    for (auto& output : outputs_) {
      ORRERY_TRY_DONE(output.wait());
      std::fill(output.values().begin(), output.values().end(), -1.0F);
    }
    ORRERY_TRY_DONE(run());
    const auto wrong = wrong_values(op);
    ORRERY_TRY_DONE(barrier());
    return OrderedJson{{"seconds", seconds}, {"wrong", wrong}};
  }

  Status barrier() {
    ++turn_;
    for (std::uint32_t other = 0; other < ranks_; ++other)
      if (other != self_) ORRERY_TRY_DONE(exchange_.send(key(barrier_op, self_, other), DType::u8, {0}, Shard()));
    for (std::uint32_t other = 0; other < ranks_; ++other)
      if (other != self_) {
        auto met = exchange_.receive(key(barrier_op, other, self_), clock_.now() + patience);
        if (!met.ok()) return met.error();
      }
    return Done{};
  }

private:
  /// Rows that are reduced and gathered by themselves, while those before and after are on their way.
  struct Block {
    std::uint64_t first = 0, rows = 0;
    protocol::OrderedReduceScatter reduce;
    protocol::TransferList gather;  // Offsets within the block. Empty: the sum comes in one turn.
  };

  MessageKey key(std::uint32_t op, EndpointId source, EndpointId target, std::uint16_t part = 0, std::size_t block = 0) const {
    return {1, turn_, static_cast<std::uint16_t>(block), part, op, source, target};
  }
  RowRange part_of(std::uint64_t rows, std::uint32_t rank) const { return {rows * rank / ranks_, rows * (rank + 1) / ranks_}; }
  RowRange rows_of(std::uint32_t rank) const { return part_of(rows_, rank); }
  std::uint64_t bytes_of(RowRange rows) const { return rows.count() * row_bytes; }
  protocol::TransferList gather_of(std::uint64_t rows) const {
    std::vector<RowHolder> holders;
    for (std::uint32_t rank = 0; rank < ranks_; ++rank) holders.push_back({rank, part_of(rows, rank)});
    return protocol::all_gather_rows(holders, rows, self_, row_bytes);
  }

  Status add_block(LinkOp op, std::uint64_t first, std::uint64_t rows) {
    const bool in_one_turn = op == LinkOp::all_reduce && protocol::OrderedReduceScatter::in_one_turn(rows * row_bytes, ranks_);
    std::vector<protocol::ReduceRank> group;
    for (std::uint32_t rank = 0; rank < ranks_; ++rank) group.push_back({rank, {rank}, in_one_turn ? RowRange{0, rows} : part_of(rows, rank)});
    ORRERY_TRY(reduce, protocol::OrderedReduceScatter::create(ranks_, std::move(group), self_, row_bytes / sizeof(float)));
    blocks_.push_back({first, rows, std::move(reduce), op == LinkOp::all_reduce && !in_one_turn ? gather_of(rows) : protocol::TransferList{}});
    return Done{};
  }

  Status prepare(LinkOp op, std::uint64_t bytes) {
    ORRERY_TRY_DONE(input_.wait());
    for (auto& output : outputs_) ORRERY_TRY_DONE(output.wait());
    rows_ = bytes / row_bytes;
    const auto own = bytes_of(rows_of(self_));
    blocks_.clear();
    transfers_ = {};
    input_.resize(op == LinkOp::all_gather ? own : bytes);
    for (auto& output : outputs_) output.resize(op == LinkOp::reduce_scatter ? own : bytes);
    // What a rank holds of an all-gather is its part of the whole.
    const auto first = op == LinkOp::all_gather ? rows_of(self_).begin * (row_bytes / sizeof(float)) : 0;
    for (std::uint64_t i = 0; i < input_.values().size(); ++i) input_.values()[i] = value_of(first + i, op == LinkOp::all_gather ? 0 : self_);

    switch (op) {
      case LinkOp::all_reduce: {
        const auto block_rows = block_bytes / row_bytes;
        for (std::uint64_t begin = 0; begin < rows_; begin += block_rows)
          ORRERY_TRY_DONE(add_block(op, begin, std::min(block_rows, rows_ - begin)));
        break;
      }
      case LinkOp::reduce_scatter: ORRERY_TRY_DONE(add_block(op, 0, rows_)); break;
      case LinkOp::all_gather: transfers_ = gather_of(rows_); break;
      case LinkOp::all_to_all: {
        std::vector<protocol::SliceRowHolder> group;
        const auto all = rows_ / ranks_;  // Of one slice; the input is [slices][own rows].
        for (std::uint32_t rank = 0; rank < ranks_; ++rank) group.push_back({rank, {rank}, {all * rank, all * (rank + 1)}});
        transfers_ = protocol::tokens_to_heads(group, all * ranks_, self_, row_bytes);
        break;
      }
      case LinkOp::broadcast: {
        std::vector<EndpointId> members;
        for (std::uint32_t rank = 0; rank < ranks_; ++rank) members.push_back(rank);
        transfers_ = protocol::broadcast(0, members, self_, bytes);
        break;
      }
      case LinkOp::sendrecv: {
        // Every rank sends to the next one and receives from the one before.
        const auto next = (self_ + 1) % ranks_, before = (self_ + ranks_ - 1) % ranks_;
        transfers_.sends = protocol::point_to_point(self_, next, self_, bytes).sends;
        transfers_.receives = protocol::point_to_point(before, self_, self_, bytes).receives;
        break;
      }
    }
    return Done{};
  }

  /// Two outputs in turn, as programs have slots: what was lent comes back meanwhile.
  Status run() {
    ++turn_;
    auto& output = outputs_[turn_ % outputs_.size()];
    last_ = &output;
    ORRERY_TRY_DONE(output.wait());
    if (blocks_.empty()) return transfer(input_, output);
    // While a block is added up, those after it are on their way, and the one before it comes home.
    for (std::size_t block = 0; block < std::min(blocks_ahead, blocks_.size()); ++block) ORRERY_TRY_DONE(send_parts(block));
    for (std::size_t block = 0; block < blocks_.size(); ++block) {
      if (block + blocks_ahead < blocks_.size()) ORRERY_TRY_DONE(send_parts(block + blocks_ahead));
      ORRERY_TRY_DONE(add_up(block, output));
      if (block > 0) ORRERY_TRY_DONE(take_sums(block - 1, output));
    }
    ORRERY_TRY_DONE(take_sums(blocks_.size() - 1, output));
    return Done{};
  }

  Status send_parts(std::size_t index) {
    const auto& block = blocks_[index];
    for (const auto& due : block.reduce.sends())
      ORRERY_TRY_DONE(exchange_.send(key(reduce_op, self_, due.target, due.part, index), DType::f32, {due.rows.count(), block.reduce.width()},
                                     input_.lend(block.first * row_bytes + due.offset, due.bytes)));
    return Done{};
  }

  /// Own rows of the sum lie in their place already.
  Status add_up(std::size_t index, LentBuffer& output) {
    const auto& block = blocks_[index];
    const auto width = block.reduce.width();
    received_.clear();
    for (const auto& due : block.reduce.receives()) {
      ORRERY_TRY(message, exchange_.receive(key(reduce_op, due.source, self_, due.part, index), clock_.now() + patience));
      received_.push_back(std::move(message));
    }
    const std::span<const float> own = input_.values().subspan(block.first * width, block.rows * width);
    const auto rows = block.reduce.rows();
    const bool whole = output.values().size() == input_.values().size();
    ORRERY_TRY_DONE(block.reduce.combine(std::span(&own, 1), received_, output.values().subspan(whole ? (block.first + rows.begin) * width : 0, rows.count() * width)));
    received_.clear();
    for (const auto& due : block.gather.sends)
      ORRERY_TRY_DONE(exchange_.send(key(gather_op, self_, due.target, due.part, index), DType::f32, {due.region.bytes() / sizeof(float)},
                                     output.lend((block.first + rows.begin) * row_bytes + due.region.offset, due.region.bytes())));
    return Done{};
  }

  Status take_sums(std::size_t index, LentBuffer& output) {
    return take(blocks_[index].gather.receives, output.bytes().subspan(blocks_[index].first * row_bytes), gather_op, index);
  }

  Status transfer(LentBuffer& input, LentBuffer& output) {
    for (const auto& due : transfers_.sends)
      ORRERY_TRY_DONE(exchange_.send(key(move_op, self_, due.target, due.part), DType::f32, {due.region.bytes() / sizeof(float)},
                                     input.lend(due.region.offset, due.region.bytes())));
    for (const auto& copy : transfers_.copies) protocol::copy_region(input.bytes(), copy.source, output.bytes(), copy.target);
    // A root that only sends would run away from the others.
    if (transfers_.receives.empty()) return input.wait();
    return take(transfers_.receives, output.bytes(), move_op);
  }

  Status take(const std::vector<protocol::TransferReceive>& receives, std::span<std::byte> place, std::uint32_t op, std::size_t block = 0) {
    for (const auto& due : receives) {
      ORRERY_TRY(message, exchange_.receive(key(op, due.source, self_, due.part, block), clock_.now() + patience));
      ORRERY_TRY_DONE(protocol::copy_in(message, due.region, place));
    }
    return Done{};
  }

  std::uint64_t wrong_values(LinkOp op) {
    const auto values = last_->values();
    const std::uint64_t width = row_bytes / sizeof(float);
    std::uint64_t wrong = 0;
    for (std::uint64_t i = 0; i < values.size(); ++i) {
      float expected = 0;
      switch (op) {
        case LinkOp::all_reduce:
        case LinkOp::reduce_scatter: {
          const auto at = i + (op == LinkOp::reduce_scatter ? rows_of(self_).begin * width : 0);
          for (std::uint32_t rank = 0; rank < ranks_; ++rank) expected += value_of(at, rank);
          break;
        }
        case LinkOp::all_gather: expected = value_of(i, 0); break;
        case LinkOp::broadcast: expected = value_of(i, 0); break;
        case LinkOp::sendrecv: expected = value_of(i, (self_ + ranks_ - 1) % ranks_); break;
        case LinkOp::all_to_all: {
          // Rows of one slice, by rank: run `source` is slice `self_` of that rank.
          const auto run = values.size() / ranks_;
          expected = value_of(self_ * run + i % run, static_cast<std::uint32_t>(i / run));
          break;
        }
      }
      wrong += values[i] != expected;
    }
    return wrong;
  }

  const std::uint32_t self_, ranks_;
  const Clock& clock_;
  protocol::Exchange& exchange_;
  std::uint32_t turn_ = 0;
  std::uint64_t rows_ = 0;
  LentBuffer input_;
  std::vector<LentBuffer> outputs_{2};
  LentBuffer* last_ = nullptr;
  std::vector<Block> blocks_;         // Of what adds up.
  protocol::TransferList transfers_;  // Of what only moves.
  std::vector<protocol::Message> received_;
};

Status say(const OrderedJson& line) { return write_out(line.dump() + "\n"); }

Result<Json> listen() {
  std::string line;
  if (!std::getline(std::cin, line)) return Json(nullptr);
  return parse_json(line, "standard input");
}

}  // namespace

std::string_view name_of(LinkOp op) {
  for (const auto& [word, one] : ops)
    if (one == op) return word;
  return "unknown";
}

Result<LinkOp> link_op_of(std::string_view word) {
  std::string known;
  for (const auto& [one, op] : ops) {
    if (one == word) return op;
    known += (known.empty() ? "" : ", ") + one;
  }
  return Error{ErrorCode::usage, "'" + std::string(word.substr(0, 64)) + "' is no collective", "known: " + known};
}

double bus_factor(LinkOp op, std::uint32_t ranks) {
  const auto n = static_cast<double>(ranks);
  switch (op) {
    case LinkOp::all_reduce: return 2 * (n - 1) / n;
    case LinkOp::reduce_scatter:
    case LinkOp::all_gather:
    case LinkOp::all_to_all: return (n - 1) / n;
    case LinkOp::broadcast:
    case LinkOp::sendrecv: return 1;
  }
  return 1;
}

std::uint64_t link_bytes(std::uint64_t bytes, std::uint32_t ranks) {
  const auto unit = row_bytes * ranks;
  return std::max(unit, bytes / unit * unit);
}

Result<int> run_link_rank(const LinkRankArguments& arguments) {
  if (arguments.ranks == 0 || arguments.rank >= arguments.ranks)
    return Error{ErrorCode::usage, "rank " + std::to_string(arguments.rank) + " is not among " + std::to_string(arguments.ranks)};
  SteadyClock clock;
  ORRERY_TRY(wire, protocol::host_transport_of(arguments.transport, arguments.rank + 1, "127.0.0.1", arguments.folder));
  ORRERY_TRY(transport, protocol::make_host_transport(wire));
  const auto& transport_in_use = *transport;  // The exchange owns it and outlives its uses below.
  protocol::ExchangeOptions options;
  options.cluster_id = arguments.cluster_id;
  ORRERY_TRY(exchange, protocol::Exchange::create(options, std::move(transport), clock));
  ORRERY_TRY_DONE(say({{"address", exchange->address()}}));
  ORRERY_TRY(peers, listen());
  if (peers.is_null()) return 0;
  const Error wrong{ErrorCode::usage, "standard input is not what `orrery bench links` writes"};
  if (!peers.is_object() || !peers.contains("peers") || !peers["peers"].is_array() || peers["peers"].size() != arguments.ranks) return wrong;
  std::map<EndpointId, protocol::PeerId> routes;
  for (std::uint32_t rank = 0; rank < arguments.ranks; ++rank) {
    routes[rank] = rank + 1;
    if (!peers["peers"][rank].is_string()) return wrong;
    if (rank != arguments.rank) ORRERY_TRY_DONE(exchange->add_peer(rank + 1, peers["peers"][rank].get<std::string>()));
  }
  ORRERY_TRY_DONE(exchange->set_routes(1, arguments.ranks, routes));
  Rank rank(arguments, clock, *exchange);
  ORRERY_TRY_DONE(rank.barrier());
  ORRERY_TRY_DONE(say({{"ready", true}}));
  for (;;) {
    ORRERY_TRY(order, listen());
    if (order.is_null()) return 0;
    const auto number = [&](const char* name) { return order.is_object() ? order.value(name, std::uint64_t{0}) : 0; };
    if (!order.is_object() || !order.contains("op") || !order["op"].is_string()) return wrong;
    ORRERY_TRY(op, link_op_of(order["op"].get<std::string>()));
    const auto before = transport_in_use.statistics();
    auto done = rank.measure(op, link_bytes(number("bytes"), arguments.ranks), static_cast<std::uint32_t>(number("iterations")),
                             static_cast<std::uint32_t>(number("samples")), static_cast<std::uint32_t>(number("warmup")));
    const auto after = transport_in_use.statistics();
    if (done.ok()) {
      done.value()["frames"] = after.frames_sent - before.frames_sent;
      done.value()["memory_frames"] = after.memory_frames_sent - before.memory_frames_sent;
    }
    ORRERY_TRY_DONE(say(done.ok() ? done.value() : OrderedJson{{"error", done.error().text()}, {"code", static_cast<int>(done.error().code)}}));
    if (!done.ok()) return 1;
  }
}

}  // namespace orrery::launch
