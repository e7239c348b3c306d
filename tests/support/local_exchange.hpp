// All ranks of all groups of one component in this process: a thread and a card for each, and exchange commands
// carried out by copying through a board in memory. No network, no clock; the arithmetic is the real one.

#pragma once

#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <tuple>
#include <vector>

#include "base/slice_tree.hpp"
#include "cards/card.hpp"
#include "compiler/layout.hpp"

namespace orrery::testing {

/// Bytes that ranks show each other, by (run, exchange id, group, rank). Threads: any.
class Board {
public:
  using Key = std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>;
  void post(const Key& key, std::span<const std::byte> bytes) {
    const std::lock_guard lock(mutex_);
    posted_[key].assign(bytes.begin(), bytes.end());
    changed_.notify_all();
  }
  /// Waits until it is there, or until a rank failed; then null.
  const std::vector<std::byte>* wait(const Key& key) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return failed_ || posted_.contains(key); });
    return failed_ ? nullptr : &posted_[key];
  }
  void fail() {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    changed_.notify_all();
  }

private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Key, std::vector<std::byte>> posted_;
  bool failed_ = false;
};

/// One rank: its card, its lane, and its part in exchanges.
class LocalRank {
public:
  LocalRank(Board& board, compiler::Layout layout, std::shared_ptr<const cards::ProgramSet> set)
      : board_(board), layout_(std::move(layout)), set_(std::move(set)) {}

  Status start(const cards::WeightSource& source) {
    const auto name = "g" + std::to_string(layout_.group) + "r" + std::to_string(layout_.rank);
    ORRERY_TRY(card, cards::make_cpu_card({name, std::uint64_t{1} << 28, 1}));
    card_ = std::move(card);
    ORRERY_TRY_DONE(card_->load_weights(set_->weights, source, [](std::uint64_t) { return true; }));
    ORRERY_TRY(lane, card_->open_lane(set_));
    lane_ = lane;
    return Done{};
  }

  const cards::ProgramSet& set() const { return *set_; }
  std::span<std::byte> memory(cards::SlotId slot) { return card_->memory(lane_, slot); }

  template <class T>
  void write(const std::string& input, std::span<const T> values) {
    const auto found = set_->inputs.find(input);
    if (found == set_->inputs.end()) return;  // Another group's branch.
    const auto to = memory(found->second);
    ORRERY_CHECK(to.size() == values.size_bytes());
    std::memcpy(to.data(), values.data(), to.size());
  }
  std::vector<float> read(const std::string& output) {
    const auto from = memory(set_->outputs.at(output));
    std::vector<float> values(from.size() / sizeof(float));
    std::memcpy(values.data(), from.data(), from.size());
    return values;
  }

  Status run(const std::string& program, const cards::Scalars& scalars) {
    ++run_;
    const auto index = set_->index_of(program);
    const auto& commands = set_->programs[index].commands;
    for (std::uint32_t i = 0; i < commands.size(); ++i) {
      if (commands[i].queue == cards::Queue::compute) {
        ORRERY_TRY_DONE(card_->run(lane_, index, i, i + 1, scalars));
      } else {
        ORRERY_TRY_DONE(exchange(commands[i]));
      }
    }
    return Done{};
  }

private:
  Board::Key key(const cards::Command& command, std::uint32_t group, std::uint32_t rank) const {
    return {run_, static_cast<std::uint32_t>(command.count(cards::Attr::exchange)), group, rank};
  }

  Status exchange(const cards::Command& command) {
    if (!command.inputs.empty()) board_.post(key(command, layout_.group, layout_.rank), memory(command.inputs[0]));
    const double source = command.attr(cards::Attr::source_group, -1);
    const auto group = source < 0 ? layout_.group : static_cast<std::uint32_t>(source);
    std::vector<const std::vector<std::byte>*> shown;
    for (std::uint32_t rank = 0; rank < layout_.owned[group].size(); ++rank) {
      shown.push_back(board_.wait(key(command, group, rank)));
      if (shown.back() == nullptr) return Error{ErrorCode::cancelled, command.label + ": another rank failed"};
    }
    const auto out = memory(command.outputs[0]);
    const auto& shape = set_->slots[command.outputs[0]].shape;
    const auto width = shape.back() * size_of(set_->slots[command.outputs[0]].dtype);
    switch (command.op) {
      case cards::Op::all_gather_rows: {
        std::size_t at = 0;
        for (const auto* part : shown) {
          if (at + part->size() > out.size()) return wrong(command);
          if (!part->empty()) std::memcpy(out.data() + at, part->data(), part->size());
          at += part->size();
        }
        return at == out.size() ? Status(Done{}) : wrong(command);
      }
      case cards::Op::reduce_scatter: {
        const auto rows = set_->slots[command.inputs[0]].shape[1];
        const auto own = layout_.rows(rows);
        if (own.count() * width != out.size()) return wrong(command);
        const auto sum = tree_sum({0, layout_.slice_count}, shown, rows * shape.back());
        if (own.count() > 0) std::memcpy(out.data(), sum.data() + own.begin * shape.back(), out.size());
        return Done{};
      }
      case cards::Op::to_heads: {  // [V, own rows, w] of each rank -> [S, all rows, w]
        const auto rows = shape[1];
        const auto ranges = layout_.rows_of_group(group, rows);
        for (std::size_t s = 0; s < layout_.slices().size(); ++s)
          for (std::size_t rank = 0; rank < ranges.size(); ++rank)
            copy(out, (s * rows + ranges[rank].begin) * width, *shown[rank],
                 layout_.slices()[s] * ranges[rank].count() * width, ranges[rank].count() * width);
        return Done{};
      }
      case cards::Op::to_tokens: {  // [S, all rows, w] of each rank -> [V, own rows, w]
        const auto rows = set_->slots[command.inputs[0]].shape[1];
        const auto own = layout_.rows(rows);
        for (std::size_t rank = 0; rank < shown.size(); ++rank) {
          const auto& slices = layout_.owned[group][rank];
          for (std::size_t s = 0; s < slices.size(); ++s)
            copy(out, slices[s] * own.count() * width, *shown[rank], (s * rows + own.begin) * width,
                 own.count() * width);
        }
        return Done{};
      }
      default: return wrong(command);
    }
  }

  static Error wrong(const cards::Command& command) {
    return Error{ErrorCode::internal, command.label + ": sizes do not fit"};
  }
  static void copy(std::span<std::byte> to, std::size_t to_offset, const std::vector<std::byte>& from,
                   std::size_t from_offset, std::size_t size) {
    ORRERY_CHECK(to_offset + size <= to.size() && from_offset + size <= from.size());
    if (size > 0) std::memcpy(to.data() + to_offset, from.data() + from_offset, size);
  }

  /// Sum over a range of slices: one rank's piece where it is one, else left plus right.
  std::vector<float> tree_sum(SliceRange range, const std::vector<const std::vector<std::byte>*>& shown,
                              std::size_t count) const {
    for (std::size_t rank = 0; rank < shown.size(); ++rank) {
      const auto pieces = pieces_of(layout_.owned[layout_.group][rank], layout_.slice_count);
      for (std::size_t i = 0; i < pieces.size(); ++i)
        if (pieces[i] == range) {
          std::vector<float> values(count);
          ORRERY_CHECK((i + 1) * count * sizeof(float) <= shown[rank]->size());
          if (count > 0)
            std::memcpy(values.data(), shown[rank]->data() + i * count * sizeof(float), count * sizeof(float));
          return values;
        }
    }
    const auto split = split_of(range);
    auto left = tree_sum({range.begin, split}, shown, count);
    const auto right = tree_sum({split, range.end}, shown, count);
    for (std::size_t i = 0; i < count; ++i) left[i] += right[i];
    return left;
  }

  Board& board_;
  compiler::Layout layout_;
  std::shared_ptr<const cards::ProgramSet> set_;
  std::unique_ptr<cards::Card> card_;
  cards::LaneId lane_ = 0;
  std::uint32_t run_ = 0;
};

using Owned = std::vector<std::vector<std::vector<std::uint32_t>>>;

/// Compiles for every rank with `compile(layout)`, then runs `work` on each rank's thread. The ranks stay readable.
class LocalCluster {
public:
  using Compile = std::function<Result<std::shared_ptr<const cards::ProgramSet>>(const compiler::Layout&)>;
  using Work = std::function<Status(LocalRank&)>;

  static Result<std::unique_ptr<LocalCluster>> run(const Owned& owned, compiler::Split split, std::uint32_t slice_count,
                                                   const cards::WeightSource& source, const Compile& compile,
                                                   const Work& work) {
    auto cluster = std::make_unique<LocalCluster>();
    for (std::uint32_t group = 0; group < owned.size(); ++group)
      for (std::uint32_t rank = 0; rank < owned[group].size(); ++rank) {
        compiler::Layout layout;
        layout.slice_count = slice_count;
        layout.split = split;
        layout.owned = owned;
        layout.group = group;
        layout.rank = rank;
        ORRERY_TRY(set, compile(layout));
        cluster->ranks_.push_back(std::make_unique<LocalRank>(cluster->board_, std::move(layout), set));
      }
    std::vector<std::thread> threads;
    std::vector<std::optional<Error>> errors(cluster->ranks_.size());
    for (std::size_t i = 0; i < cluster->ranks_.size(); ++i)
      threads.emplace_back([&, i] {
        auto& rank = *cluster->ranks_[i];
        auto status = rank.start(source);
        if (status.ok()) status = work(rank);
        if (!status.ok()) {
          errors[i] = status.error();
          cluster->board_.fail();
        }
      });
    for (auto& thread : threads) thread.join();
    for (const auto& error : errors)
      if (error && error->code != ErrorCode::cancelled) return *error;
    return cluster;
  }

  std::vector<std::unique_ptr<LocalRank>>& ranks() { return ranks_; }

private:
  Board board_;
  std::vector<std::unique_ptr<LocalRank>> ranks_;
};

}  // namespace orrery::testing
