#include "compiler/component_lane.hpp"

#include <cstring>

namespace orrery::compiler {

namespace {

/// Weights on the card, and a lane once it is open; given back in the other order.
class LocalLane final : public ComponentLane {
public:
  LocalLane(cards::Card& card, std::shared_ptr<const cards::ProgramSet> set) : card_(card), set_(std::move(set)) {}
  ~LocalLane() override {
    if (open_) card_.close_lane(id_);
    card_.drop_weights(set_->weights->component);
  }
  LocalLane(const LocalLane&) = delete;
  LocalLane& operator=(const LocalLane&) = delete;

  Status open(const cards::WeightSource& source) {
    ORRERY_TRY_DONE(card_.load_weights(set_->weights, source, [](std::uint64_t) { return true; }));
    ORRERY_TRY(id, card_.open_lane(set_));
    id_ = id;
    open_ = true;
    return Done{};
  }

  void write(const std::string& input, std::span<const std::byte> values) override {
    const auto memory = card_.memory(id_, set_->inputs.at(input));
    ORRERY_CHECK(memory.size() == values.size());
    std::memcpy(memory.data(), values.data(), memory.size());
  }
  void read(const std::string& output, std::span<std::byte> values) override {
    const auto memory = card_.memory(id_, set_->outputs.at(output));
    ORRERY_CHECK(memory.size() == values.size());
    std::memcpy(values.data(), memory.data(), memory.size());
  }
  Shape shape_of(const std::string& output) const override { return set_->slots[set_->outputs.at(output)].shape; }
  Status run(const std::string& program, const cards::Scalars& scalars) override {
    const auto index = set_->index_of(program);
    return card_.run(id_, index, 0, static_cast<std::uint32_t>(set_->programs[index].commands.size()), scalars);
  }

private:
  cards::Card& card_;
  const std::shared_ptr<const cards::ProgramSet> set_;
  cards::LaneId id_ = 0;
  bool open_ = false;
};

}  // namespace

Result<std::unique_ptr<ComponentLane>> LocalLanes::open(std::uint32_t slice_count, const CompileFor& compile,
                                                        const cards::WeightSource& source) {
  ORRERY_TRY(set, compile(single_card(slice_count)));
  auto lane = std::make_unique<LocalLane>(card_, std::move(set));
  ORRERY_TRY_DONE(lane->open(source));
  return std::unique_ptr<ComponentLane>(std::move(lane));
}

}  // namespace orrery::compiler
