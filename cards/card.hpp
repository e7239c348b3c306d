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

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/result.hpp"
#include "cards/program.hpp"

namespace orrery::cards {

struct CardOptions {
  std::string name = "card";                            // "n1:0", for messages.
  std::uint64_t memory_bytes = std::uint64_t{8} << 30;  // Hard budget for weights and lanes.
  std::uint32_t threads = 1;
};

struct CardUse {
  std::uint64_t budget = 0;
  std::uint64_t weights = 0;     // Bytes now.
  std::uint64_t lanes = 0;       // Bytes now.
  std::uint64_t high_water = 0;  // Most that was ever reserved.
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

  /// Reserves lane memory (zeroed) for a set whose component is loaded, and prepares its kernels.
  virtual Result<LaneId> open_lane(std::shared_ptr<const ProgramSet> programs) = 0;
  virtual void close_lane(LaneId lane) = 0;

  /// The slot's bytes. Valid until the lane is closed; nobody may write them while a command uses them.
  virtual std::span<std::byte> memory(LaneId lane, SlotId slot) = 0;

  /// Runs compute commands [begin, end) of one program, in order, and returns when they are done.
  virtual Status run(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars) = 0;
};

Result<std::unique_ptr<Card>> make_cpu_card(const CardOptions& options);

/// Checks on this machine that tiles keep their bits when rows, widths and threads change; run once per process.
/// The text names the numerics class: "oneDNN 2.6.3 avx512_core_bf16, tiles 64x...". Fails with numerics_mismatch.
Result<std::string> check_numerics();

}  // namespace orrery::cards
