// The skeleton of a card driver: every call answers `unsupported` and says what an implementer owes.
//
// To bring Orrery to a real NPU, copy this file and null_card.cpp, and replace the calls one by one. The order in
// which they can be tested alone: use, load_weights, open_lane + memory, run (one op at a time against the cpu card).

#pragma once

#include "cards/card.hpp"

namespace orrery::cards {

/// Holds nothing, runs nothing. Threads: any.
class NullCard final : public Card {
public:
  explicit NullCard(CardOptions options) : options_(std::move(options)) {}

  const CardOptions& options() const override { return options_; }
  CardUse use() const override;
  Status load_weights(std::shared_ptr<const WeightSet> weights, const WeightSource& source,
                      const std::function<bool(std::uint64_t bytes_done)>& progress) override;
  void drop_weights(const std::string& component) override;
  Status stream_weights(std::shared_ptr<const WeightSet> weights, std::shared_ptr<const WeightSource> source) override;
  Result<LaneId> open_lane(std::shared_ptr<const ProgramSet> programs) override;
  void close_lane(LaneId lane) override;
  std::span<std::byte> memory(LaneId lane, SlotId slot) override;
  Status run(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars) override;

private:
  const CardOptions options_;
};

}  // namespace orrery::cards
