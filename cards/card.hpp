// Card: an accelerator behind one interface. It has memory with a hard budget, holds weights, and runs the
// compute commands of programs.
//
// Variants: `cpu` (cpu_card.hpp, real arithmetic on this machine's cores), `null` (null_card.hpp, the skeleton
// for whoever writes a driver). Exchange commands are not the card's business: actors/program_runner executes
// them on the memory that `memory()` shows.
//
// Lanes: a card serves several stages in turn. Each request that a stage works on opens a lane: a piece of card
// memory for one ProgramSet. Lanes run concurrently from different threads; their compute commands take turns on
// the card's cores, so a lane that waits for a neighbour never blocks another.

#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "base/row_split.hpp"
#include "cards/program.hpp"

namespace orrery::cards {

struct CardOptions {
  std::string name = "card";                            // "n1:0", for messages.
  std::uint64_t memory_bytes = std::uint64_t{8} << 30;  // Hard budget for weights and lanes.
  std::uint32_t threads = 1;
  double copy_bandwidth = 0;  // Bytes per second from the host; 0: as fast as it goes.
};

/// Weights that are copied in while programs run, since the card was made.
struct StreamUse {
  std::uint64_t copied_bytes = 0;
  double copy_seconds = 0;   // The copies took, from first to last byte of each.
  double stall_seconds = 0;  // Commands waited for copies.
  std::uint64_t copies = 0;
  std::uint64_t late = 0;    // Visits of a unit that had to wait.
  std::uint64_t visits = 0;
  std::uint64_t look_ahead_bytes = 0;      // Now: present and needed before the first that is missing.
  std::uint64_t look_ahead_bytes_max = 0;
  double rate = 0;                         // Bytes per second of the last copies.
  /// Of the copying, what commands did not wait for.
  double hidden_share() const { return copy_seconds > 0 ? 1 - std::min(1.0, stall_seconds / copy_seconds) : 1; }
};

struct CardUse {
  std::uint64_t budget = 0;
  std::uint64_t weights = 0;     // Bytes now.
  std::uint64_t lanes = 0;       // Bytes now.
  std::uint64_t high_water = 0;  // Most that was ever reserved.
  StreamUse stream;
};

/// Where weights come from. Implemented over a model folder (compiler/weight_file.hpp).
class WeightSource {
public:
  virtual ~WeightSource() = default;
  /// The whole tensor in the file's dtype; borrowed, memory-mapped. Fails with invalid_model naming file and tensor.
  virtual Result<TensorView> tensor(const std::string& name) const = 0;
  /// The pages of this part are not needed any more.
  virtual void release(std::span<const std::byte> part) const = 0;
};

using LaneId = std::uint32_t;

/// Threads: any; every call may come from any thread. A lane is used by one thread at a time.
class Card {
public:
  virtual ~Card() = default;

  virtual const CardOptions& options() const = 0;
  virtual CardUse use() const = 0;

  /// Copies the parts of the tensors that `weights` names into card memory, packed for the kernels, reading each once.
  /// `progress` hears bytes done so far; when it returns false the load stops with `cancelled`. Loading a component that
  /// is loaded replaces it. Fails with card_memory_exhausted before anything is kept.
  virtual Status load_weights(std::shared_ptr<const WeightSet> weights, const WeightSource& source,
                              const std::function<bool(std::uint64_t bytes_done)>& progress) = 0;
  virtual void drop_weights(const std::string& component) = 0;
  /// Instead of load_weights: they stay with the host, and parts come when commands need them, copied ahead as far as it
  /// pays, into what memory the lanes leave. For weights that do not fit, and for stages that take turns. Fails with
  /// invalid_model, card_memory_exhausted (not even a few parts fit) and, on cards that cannot, unsupported.
  virtual Status stream_weights(std::shared_ptr<const WeightSet> weights, std::shared_ptr<const WeightSource> source) = 0;
  /// `program` of the lane is run next, and `runs_left` more times in a row after that. A hint for copies.
  virtual void expect(LaneId, std::uint32_t /*program*/, std::uint32_t /*runs_left*/) {}

  /// Reserves lane memory (zeroed) for a set whose component is loaded, and prepares its kernels.
  virtual Result<LaneId> open_lane(std::shared_ptr<const ProgramSet> programs) = 0;
  virtual void close_lane(LaneId lane) = 0;

  /// The slot's bytes. Valid until the lane is closed; nobody may write them while a command uses them.
  virtual std::span<std::byte> memory(LaneId lane, SlotId slot) = 0;

  /// How long commands of this lane have waited for streamed weights.
  virtual Duration stalled(LaneId) const { return {}; }

  /// Runs compute commands [begin, end) of one program, in order, and returns when they are done.
  virtual Status run(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars) = 0;

  /// Whether commands of this op can be run for some rows of their output at a time (run_rows).
  virtual bool runs_rows(Op) const { return false; }
  /// Runs one command for these rows only. All rows in any order give the bits of `run`.
  virtual Status run_rows(LaneId, std::uint32_t /*program*/, std::uint32_t command, RowRange, const Scalars&) {
    return Error{ErrorCode::unsupported, "card " + options().name + " runs command " + std::to_string(command) + " only as a whole"};
  }
};

Result<std::unique_ptr<Card>> make_cpu_card(const CardOptions& options);

/// Checks on this machine that tiles keep their bits when rows, widths and threads change; run once per process.
/// The text names the numerics class: "oneDNN 2.6.3 avx512_core_bf16, tiles 64x...". Fails with numerics_mismatch.
Result<std::string> check_numerics();

}  // namespace orrery::cards
