// A card of this machine's cores: real arithmetic, card memory with a hard budget.
//
//   load_weights ────▶ LoadedWeights (weight_loader.hpp) ┐
//   stream_weights ──▶ WeightStream (weight_stream.hpp)  ├─▶ run: kernel_of(op) on the thread pool
//   open_lane ───────▶ lane memory, operands resolved    ┘
//
// Commands of different lanes take turns on the pool, one command at a time: a lane that waits for a neighbour
// holds nothing. Weights stay until nobody uses them: a component that is replaced or dropped while lanes are
// open keeps its memory until these are closed. Loading drops the component's old weights first, so after a load
// that failed it is not loaded.

#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <vector>

#include "base/trace.hpp"
#include "cards/card.hpp"
#include "cards/device_memory.hpp"
#include "cards/kernels/kernels.hpp"
#include "cards/weight_loader.hpp"
#include "cards/weight_stream.hpp"

namespace orrery::cards {

class CpuCard final : public Card {
public:
  /// Fails with io_failed (address space) or invalid_config (no memory, no threads).
  static Result<std::unique_ptr<Card>> create(const CardOptions& options);

  const CardOptions& options() const override { return options_; }
  CardUse use() const override;
  Status load_weights(std::shared_ptr<const WeightSet> weights, const WeightSource& source,
                      const std::function<bool(std::uint64_t bytes_done)>& progress) override;
  void drop_weights(const std::string& component) override;
  Status stream_weights(std::shared_ptr<const WeightSet> weights, std::shared_ptr<const WeightSource> source) override;
  void expect(LaneId lane, std::uint32_t program, std::uint32_t runs_left) override;
  Duration stalled(LaneId lane) const override;
  Result<LaneId> open_lane(std::shared_ptr<const ProgramSet> programs) override;
  void close_lane(LaneId lane) override;
  std::span<std::byte> memory(LaneId lane, SlotId slot) override;
  Status run(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars) override;
  bool runs_rows(Op op) const override { return cards::runs_rows(op); }
  Status run_rows(LaneId lane, std::uint32_t program, std::uint32_t command, RowRange rows, const Scalars& scalars) override;

private:
  struct Lane {
    std::shared_ptr<const ProgramSet> programs;
    std::shared_ptr<const LoadedWeights> weights;  // Null: they are streamed.
    DeviceMemory::Block block;
    std::vector<Operand> operands;  // One per slot.
  };

  CpuCard(const CardOptions& options, std::unique_ptr<DeviceMemory> memory);
  std::shared_ptr<Lane> lane_of(LaneId lane) const;
  Result<std::shared_ptr<Lane>> lane_with(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end) const;
  Status run(LaneId id, Lane& lane, std::uint32_t program, std::uint32_t command, const Scalars& scalars, std::optional<RowRange> rows = {});
  std::shared_ptr<WeightStream> stream() const;

  const CardOptions options_;
  const trace::Track compute_row_;
  const std::unique_ptr<DeviceMemory> memory_;  // Outlives everything that lies in it.
  mutable std::mutex mutex_;                    // Guards the tables below.
  std::map<std::string, std::shared_ptr<const LoadedWeights>> weights_;
  std::shared_ptr<WeightStream> stream_;  // Made when first asked for.
  std::map<LaneId, std::shared_ptr<Lane>> lanes_;
  LaneId next_lane_ = 1;
  std::atomic<std::uint64_t> lane_bytes_{0};
  std::mutex command_mutex_;  // Held while a command runs.
  ThreadPool pool_;
};

}  // namespace orrery::cards
