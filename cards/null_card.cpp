#include "cards/null_card.hpp"

namespace orrery::cards {
namespace {

Error owed(const CardOptions& options, const std::string& what) {
  return {ErrorCode::unsupported, "card " + options.name + " is the null card: it does not " + what,
          "use backend cpu, or write a driver (cards/null_card.hpp)"};
}

}  // namespace

// Owed: the device's memory as budget, what weights and lanes take of it now, and the most they ever took. Count what
// the allocator takes (padding, packing), not what was asked for.
CardUse NullCard::use() const { return {options_.memory_bytes, 0, 0, 0, {}}; }

// Owed: compute the bytes of all packed forms first and refuse with card_memory_exhausted before copying anything;
// then, weight by weight in the order of the set, check the tensor's shape, convert rows and columns of the spec to
// its dtype, bring them into the layout of your matrix unit, copy them in, release the source pages, and tell
// `progress`, which may cancel. Reloading a component replaces it.
Status NullCard::load_weights(std::shared_ptr<const WeightSet>, const WeightSource&, const std::function<bool(std::uint64_t)>&) {
  return owed(options_, "load weights");
}

// Owed: keep the source; copy parts in ahead of the commands that name them (copy_scheduler.hpp says which and when), and
// let commands wait for them. Refuse with card_memory_exhausted what can never fit.
Status NullCard::stream_weights(std::shared_ptr<const WeightSet>, std::shared_ptr<const WeightSource>) {
  return owed(options_, "stream weights");
}

// Owed: forget the component; free its memory when the last lane that uses it is closed.
void NullCard::drop_weights(const std::string&) {}

// Owed: reserve and zero `lane_bytes()` of device memory, check that the loaded weights are those of the set, and
// compile what the device needs for each command. Refuse an op that you lack with unsupported, here and not in run.
Result<LaneId> NullCard::open_lane(std::shared_ptr<const ProgramSet>) { return owed(options_, "open lanes"); }

// Owed: wait until the lane's commands are done, then free its memory. Unknown lanes are ignored.
void NullCard::close_lane(LaneId) {}

// Owed: bytes that the host can read and write: mapped device memory, or a staging buffer that `run` keeps in step
// (copied in before a command that reads the slot, copied out after one that writes it).
std::span<std::byte> NullCard::memory(LaneId, SlotId) { return {}; }

// Owed: the compute commands in order, done when the call returns, with bits that depend only on the model's shapes:
// fixed tiles, sums in the order that cards/program.hpp names, rounding once. Run tests/cards against it.
Status NullCard::run(LaneId, std::uint32_t, std::uint32_t, std::uint32_t, const Scalars&) {
  return owed(options_, "run programs");
}

}  // namespace orrery::cards
