// Weights that do not all fit on a card: copied in unit by unit while programs run.
//
//   WeightSource (mapped files) ──one copying thread──▶ slots in card memory ──▶ commands
//                                    ▲                      │
//                              CopyScheduler ◀── visits, times, pins
//
// A component's weights, in order of first use, form units of about a thirtieth of the card's memory. Units live in slots
// of one size at the high end of the card's memory: as many as lanes leave room for. A lane that needs the memory takes
// slots away (make_room); when it is gone they come back. Commands pin the units that they use.
//
// All components of a card share the slots, so encoder, denoiser and decoder hand the memory over to each other; the
// scheduler has learned who comes next, and its first units arrive while the last step still computes.

#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/trace.hpp"
#include "cards/card.hpp"
#include "cards/copy_scheduler.hpp"
#include "cards/device_memory.hpp"
#include "cards/weight_loader.hpp"

namespace orrery::cards {

/// Threads: any. `memory` outlives it. The bits of results do not depend on what is copied when.
class WeightStream {
public:
  /// `bandwidth`: at most so many bytes per second; 0: no limit.
  WeightStream(std::string card, DeviceMemory& memory, double bandwidth);
  /// Waits for the copy at hand.
  ~WeightStream();
  WeightStream(const WeightStream&) = delete;
  WeightStream& operator=(const WeightStream&) = delete;

  /// See Card::stream_weights. No lane may be open.
  Status add(std::shared_ptr<const WeightSet> set, std::shared_ptr<const WeightSource> source);
  /// False: there is none. No lane of it may be open.
  bool remove(const std::string& component);
  /// Nothing when the component is not streamed.
  std::shared_ptr<const WeightSet> weights_of(const std::string& component) const;

  void open_lane(LaneId lane, std::shared_ptr<const ProgramSet> programs);
  void close_lane(LaneId lane);
  void expect(LaneId lane, std::uint32_t program, std::uint32_t runs_left);

  /// Waits until all weights of the command are on the card and keeps them there until `release`; `weights` in its order.
  /// Fails with what reading them fails with, and with card_memory_exhausted when they do not fit at once.
  Status acquire(LaneId lane, std::uint32_t program, std::uint32_t command, std::vector<Weight>& weights);
  void release(LaneId lane, std::uint32_t program, std::uint32_t command);

  /// Gives slots up until `bytes` can be reserved, and reserves them. Fails with card_memory_exhausted when the slots that
  /// commands need at the least would have to go.
  Result<DeviceMemory::Block> make_room(std::uint64_t bytes, const std::string& what);

  StreamUse use() const;
  Duration stalled(LaneId lane) const;

private:
  struct Slot {
    DeviceMemory::Block block;
    std::optional<UnitId> unit;  // What is in it, or on its way into it.
  };
  struct Component {
    std::shared_ptr<const WeightSet> set;
    std::shared_ptr<const WeightSource> source;
    UnitId first_unit = 0, end_unit = 0;
    std::vector<UnitId> unit_of;          // By WeightId.
    std::vector<PlacedWeight> placed;     // By WeightId; of present units.
    std::optional<Error> failure;         // Of reading it.
  };
  struct Unit {
    Component* component = nullptr;
    WeightId first = 0, end = 0;
    std::uint64_t bytes = 0;
    std::size_t slot = SIZE_MAX;
  };
  struct LaneProgram {
    TrackId track = 0;
    std::vector<std::vector<UnitId>> units;    // By command: sorted, each once.
    std::vector<std::uint32_t> visit;          // By command.
    std::uint32_t last_visited = 0;            // Command that ends the last visit.
  };
  struct Lane {
    std::shared_ptr<const ProgramSet> programs;
    Component* component = nullptr;
    std::vector<LaneProgram> by_program;
    std::uint32_t program = UINT32_MAX;  // Of the run at hand.
    std::uint32_t visit = UINT32_MAX;    // That it has.
    Duration stalled{};
  };

  void run();
  /// Where the next unit can go without giving one up: an empty slot, or a new one while memory is left.
  std::optional<std::size_t> empty_slot();
  void give_up(UnitId unit);
  void copy(UnitId unit, std::size_t slot, std::unique_lock<std::mutex>& lock);
  void pace(std::uint64_t bytes);
  Lane& lane_of(LaneId lane) { return lanes_.at(lane); }

  const std::string card_;
  const trace::Track copy_row_, wait_row_;
  DeviceMemory& memory_;
  const double bandwidth_;
  const SteadyClock clock_;
  std::mutex turn_;                // Who waits for units; one at a time, so that two never hold half of what they need.
  mutable std::mutex mutex_;       // All below.
  std::condition_variable changed_;  // For the copying thread.
  std::condition_variable arrived_;  // For those who wait for units or room.
  CopyScheduler scheduler_;
  std::map<std::string, std::unique_ptr<Component>> components_;
  std::deque<Unit> units_;         // By UnitId.
  std::vector<Slot> slots_;
  std::uint64_t slot_bytes_ = 0;
  std::size_t slots_min_ = 0;      // What the widest command needs, and one to copy into.
  bool making_room_ = false;       // No new slots, and the lowest is not filled.
  std::size_t commands_running_ = 0;
  std::map<LaneId, Lane> lanes_;
  StreamUse use_;
  bool ending_ = false;
  Time paced_until_{};             // Of the copying thread.
  std::thread copier_;
};

}  // namespace orrery::cards
