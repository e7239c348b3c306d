// Wraps any card and makes it misbehave as broken cards do, while it works: for tests and fault injection.
//
//   slow      every run takes `factor` times as long: the inner run is measured, the rest is waited for
//   hang      calls that work (load, open, run) do not come back until `heal`, `abort` or the destructor
//   fail      the next runs end with an error
//   refuse    load_weights and open_lane fail with card_memory_exhausted
//   flip      one bit is wrong: in a weight as it is loaded, or in a slot that a command has just written
//   crash     the process ends with SIGKILL once a load has copied so many bytes
//
// What a flip is good for: nothing in Orrery may take wrong bits for right ones, so tests put them here and see
// that the checker notices. Which bit it is follows from the seed alone.
//
// Cost: one relaxed load a call while nothing is wrong.

#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>

#include "base/clock.hpp"
#include "base/random.hpp"
#include "cards/card.hpp"

namespace orrery::cards {

/// What was done so far.
struct CardFaultCounts {
  std::uint64_t runs_slowed = 0;
  std::uint64_t calls_hung = 0;
  std::uint64_t runs_failed = 0;
  std::uint64_t calls_refused = 0;
  std::uint64_t bits_flipped = 0;
};

/// Threads:   any. A hang blocks the calling thread; closing a lane and dropping weights never block.
/// Ownership: the inner card. Nobody may be inside a call when it is destroyed: `abort` first, then join.
class FaultyCard final : public Card {
public:
  FaultyCard(std::unique_ptr<Card> inner, const Clock& clock) : inner_(std::move(inner)), clock_(clock) {}
  ~FaultyCard() override { abort(); }

  /// From 1; 1: as fast as it is.
  void slow(double factor);
  void hang();
  /// The next `times` runs fail with this; 0: all.
  void fail(Error error, std::uint64_t times);
  void refuse_memory();
  /// In `count` tensors of the next loads, one bit each.
  void flip_weights(std::uint64_t count, std::uint64_t seed);
  /// After each of the next `count` commands that write something, one bit of what was written.
  void flip_activations(std::uint64_t count, std::uint64_t seed);
  /// The next load that has copied this many bytes ends the process.
  void crash_while_loading(std::uint64_t after_bytes);

  /// Ends all of the above; those who hang go on with their work. Bits that were flipped stay flipped.
  void heal();
  /// For good: those who hang, and all later calls that would work, end with peer_lost.
  void abort();

  CardFaultCounts counts() const;
  /// Hears of each load: (bytes done, bytes of the set). Set before the card is used; for fault triggers.
  void on_load(std::function<void(std::uint64_t done, std::uint64_t total)> heard) { on_load_ = std::move(heard); }
  Card& inner() { return *inner_; }

  const CardOptions& options() const override { return inner_->options(); }
  CardUse use() const override { return inner_->use(); }
  Status load_weights(std::shared_ptr<const WeightSet> weights, const WeightSource& source,
                      const std::function<bool(std::uint64_t bytes_done)>& progress) override;
  void drop_weights(const std::string& component) override { inner_->drop_weights(component); }
  Status stream_weights(std::shared_ptr<const WeightSet> weights, std::shared_ptr<const WeightSource> source) override;
  void expect(LaneId lane, std::uint32_t program, std::uint32_t runs_left) override { inner_->expect(lane, program, runs_left); }
  Duration stalled(LaneId lane) const override { return inner_->stalled(lane); }
  Result<LaneId> open_lane(std::shared_ptr<const ProgramSet> programs) override;
  void close_lane(LaneId lane) override;
  std::span<std::byte> memory(LaneId lane, SlotId slot) override { return inner_->memory(lane, slot); }
  Status run(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars) override;
  /// Only while nothing is wrong with it: faults are between commands.
  bool runs_rows(Op op) const override { return !active_.load(std::memory_order_relaxed) && inner_->runs_rows(op); }
  Status run_rows(LaneId lane, std::uint32_t program, std::uint32_t command, RowRange rows, const Scalars& scalars) override;

private:
  struct Flips {
    std::uint64_t left = 0;
    Random random{0};
  };
  struct Failing {
    Error error;
    std::uint64_t left = 0;
    bool always = false;
  };

  /// Waits out a hang; then says whether the call may work.
  Status enter(std::unique_lock<std::mutex>& lock);
  void refresh();  // Under the mutex.
  Error refused();
  Status run_flipping(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars);

  const std::unique_ptr<Card> inner_;
  const Clock& clock_;
  std::function<void(std::uint64_t, std::uint64_t)> on_load_;

  std::atomic<bool> active_{false};
  mutable std::mutex mutex_;  // Guards everything below; not held while the inner card works.
  std::condition_variable changed_;
  double factor_ = 1;
  bool hanging_ = false, refusing_ = false, aborted_ = false;
  std::uint64_t heals_ = 0;  // A wait ends when this changes.
  std::optional<Failing> failing_;
  Flips weight_flips_, activation_flips_;
  std::optional<std::uint64_t> crash_after_;
  std::map<LaneId, std::shared_ptr<const ProgramSet>> lanes_;
  CardFaultCounts counts_;
};

}  // namespace orrery::cards
