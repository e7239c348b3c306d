#include "cards/cpu_card.hpp"

#include <algorithm>

namespace orrery::cards {
namespace {

/// Every number in the programs points at something; kernels check shapes themselves.
Status check_references(const ProgramSet& set, std::size_t weight_count) {
  const auto lane_bytes = set.lane_bytes();
  for (const auto& slot : set.slots) {
    const auto bytes = checked_bytes(slot.shape, slot.dtype);
    if (!bytes.has_value() || slot.offset % 64 != 0 || slot.offset > lane_bytes || *bytes > lane_bytes - slot.offset)
      return Error{ErrorCode::internal, "slot " + slot.name + " of " + set.component + " does not lie in its lane"};
  }
  for (const auto& program : set.programs)
    for (const auto& command : program.commands) {
      const auto inside = [&](const std::vector<SlotId>& slots) {
        return std::all_of(slots.begin(), slots.end(), [&](SlotId slot) { return slot < set.slots.size(); });
      };
      if (!inside(command.inputs) || !inside(command.outputs) ||
          !std::all_of(command.weights.begin(), command.weights.end(), [&](WeightId id) { return id < weight_count; }))
        return Error{ErrorCode::internal, "command " + command.label + " of " + set.component + " names what does not exist"};
    }
  return Done{};
}

}  // namespace

Result<std::unique_ptr<Card>> CpuCard::create(const CardOptions& options) {
  if (options.threads == 0 || options.threads > 1024)
    return Error{ErrorCode::invalid_config,
                 "card " + options.name + " asks for " + std::to_string(options.threads) + " threads", "use 1 to 1024"};
  ORRERY_TRY(memory, DeviceMemory::create(options.name, options.memory_bytes));
  return std::unique_ptr<Card>(new CpuCard(options, std::move(memory)));
}

CpuCard::CpuCard(const CardOptions& options, std::unique_ptr<DeviceMemory> memory)
    : options_(options), compute_row_(trace::track(options.name + " compute")), memory_(std::move(memory)), pool_(options.threads) {}

CardUse CpuCard::use() const {
  CardUse use;
  use.budget = memory_->budget();
  use.high_water = memory_->high_water();
  const auto used = memory_->used();
  use.lanes = std::min(used, lane_bytes_.load());
  use.weights = used - use.lanes;
  if (const auto stream = this->stream()) use.stream = stream->use();
  return use;
}

Status CpuCard::load_weights(std::shared_ptr<const WeightSet> weights, const WeightSource& source,
                             const std::function<bool(std::uint64_t bytes_done)>& progress) {
  drop_weights(weights->component);  // Old and new together would rarely fit.
  const auto component = weights->component;
  ORRERY_TRY(loaded, load(std::move(weights), source, *memory_, progress));
  const std::lock_guard lock(mutex_);
  weights_[component] = std::move(loaded);
  return Done{};
}

void CpuCard::drop_weights(const std::string& component) {
  std::shared_ptr<const LoadedWeights> dropped;  // Freed outside the lock.
  const std::lock_guard lock(mutex_);
  if (stream_) stream_->remove(component);
  const auto found = weights_.find(component);
  if (found == weights_.end()) return;
  dropped = std::move(found->second);
  weights_.erase(found);
}

std::shared_ptr<WeightStream> CpuCard::stream() const {
  const std::lock_guard lock(mutex_);
  return stream_;
}

Status CpuCard::stream_weights(std::shared_ptr<const WeightSet> weights, std::shared_ptr<const WeightSource> source) {
  drop_weights(weights->component);
  {
    const std::lock_guard lock(mutex_);
    if (!stream_) stream_ = std::make_shared<WeightStream>(options_.name, *memory_, options_.copy_bandwidth);
  }
  return stream()->add(std::move(weights), std::move(source));
}

void CpuCard::expect(LaneId id, std::uint32_t program, std::uint32_t runs_left) {
  const auto lane = lane_of(id);
  if (lane != nullptr && lane->weights == nullptr) stream()->expect(id, program, runs_left);
}

Duration CpuCard::stalled(LaneId lane) const {
  const auto stream = this->stream();
  return stream ? stream->stalled(lane) : Duration{};
}

Result<LaneId> CpuCard::open_lane(std::shared_ptr<const ProgramSet> programs) {
  auto lane = std::make_shared<Lane>();
  std::shared_ptr<const WeightSet> held;
  const auto streaming = stream();
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = weights_.find(programs->component); found != weights_.end()) {
      lane->weights = found->second;
      held = lane->weights->set;
    }
  }
  if (held == nullptr && streaming) held = streaming->weights_of(programs->component);
  if (held == nullptr)
    return Error{ErrorCode::not_found, "card " + options_.name + " has no weights of " + programs->component};
  if (programs->weights != nullptr && !same_weights(*programs->weights, *held))
    return Error{ErrorCode::internal, "card " + options_.name + " holds other slices of " + programs->component +
                                          " than its programs were made for"};
  ORRERY_TRY_DONE(check_references(*programs, held->weights.size()));
  const auto what = "a request of " + programs->component;
  auto block = streaming ? streaming->make_room(programs->lane_bytes(), what) : memory_->reserve(programs->lane_bytes(), what);
  if (!block.ok()) return block.error();
  lane->block = std::move(block).value();
  for (const auto& slot : programs->slots)
    lane->operands.push_back({lane->block.bytes().data() + slot.offset, slot.dtype, &slot.shape});
  lane->programs = std::move(programs);
  lane_bytes_ += lane->block.bytes().size();
  LaneId id = 0;
  {
    const std::lock_guard lock(mutex_);
    id = next_lane_++;
    lanes_.emplace(id, lane);
  }
  if (lane->weights == nullptr) streaming->open_lane(id, lane->programs);
  return id;
}

void CpuCard::close_lane(LaneId lane) {
  std::shared_ptr<Lane> closed;
  {
    const std::lock_guard lock(mutex_);
    const auto found = lanes_.find(lane);
    if (found == lanes_.end()) return;
    closed = std::move(found->second);
    lanes_.erase(found);
  }
  if (closed->weights == nullptr) stream()->close_lane(lane);
  lane_bytes_ -= closed->block.bytes().size();
}

std::shared_ptr<CpuCard::Lane> CpuCard::lane_of(LaneId lane) const {
  const std::lock_guard lock(mutex_);
  const auto found = lanes_.find(lane);
  return found == lanes_.end() ? nullptr : found->second;
}

std::span<std::byte> CpuCard::memory(LaneId lane, SlotId slot) {
  const auto open = lane_of(lane);
  ORRERY_CHECK(open != nullptr && slot < open->operands.size());
  return {open->operands[slot].data, open->programs->slots[slot].bytes()};
}

Result<std::shared_ptr<CpuCard::Lane>> CpuCard::lane_with(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end) const {
  auto open = lane_of(lane);
  if (open == nullptr)
    return Error{ErrorCode::internal, "card " + options_.name + " has no lane " + std::to_string(lane)};
  if (program >= open->programs->programs.size() || begin > end ||
      end > open->programs->programs[program].commands.size())
    return Error{ErrorCode::internal, "card " + options_.name + ": commands " + std::to_string(begin) + " to " +
                                          std::to_string(end) + " of program " + std::to_string(program) + " do not exist"};
  return open;
}

Status CpuCard::run(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars) {
  ORRERY_TRY(open, lane_with(lane, program, begin, end));
  for (auto i = begin; i < end; ++i) ORRERY_TRY_DONE(run(lane, *open, program, i, scalars));
  return Done{};
}

Status CpuCard::run_rows(LaneId lane, std::uint32_t program, std::uint32_t command, RowRange rows, const Scalars& scalars) {
  ORRERY_TRY(open, lane_with(lane, program, command, command + 1));
  ORRERY_CHECK(cards::runs_rows(open->programs->programs[program].commands[command].op));
  return run(lane, *open, program, command, scalars, rows);
}

Status CpuCard::run(LaneId id, Lane& lane, std::uint32_t program, std::uint32_t index, const Scalars& scalars, std::optional<RowRange> rows) {
  const auto& command = lane.programs->programs[program].commands[index];
  const auto kernel = kernel_of(command.op);
  if (kernel == nullptr)
    return Error{ErrorCode::internal,
                 "command " + command.label + " (" + std::string(name_of(command.op)) + ") is not for a card to run"};
  thread_local std::vector<Operand> inputs, outputs;
  thread_local std::vector<Weight> weights;
  inputs.clear();
  outputs.clear();
  weights.clear();
  for (const auto slot : command.inputs) inputs.push_back(lane.operands[slot]);
  for (const auto slot : command.outputs) outputs.push_back(lane.operands[slot]);
  if (lane.weights != nullptr) {
    for (const auto weight : command.weights) weights.push_back(lane.weights->weights[weight]);
    const std::lock_guard turn(command_mutex_);
    const trace::Span span(compute_row_, trace::Category::compute, command.label);
    return kernel({command, inputs, outputs, weights, scalars, pool_, rows});
  }
  const auto streaming = stream();
  ORRERY_TRY_DONE(streaming->acquire(id, program, index, weights));
  Status status = Done{};
  {
    const std::lock_guard turn(command_mutex_);
    const trace::Span span(compute_row_, trace::Category::compute, command.label);
    status = kernel({command, inputs, outputs, weights, scalars, pool_, rows});
  }
  streaming->release(id, program, index);
  return status;
}

Result<std::unique_ptr<Card>> make_cpu_card(const CardOptions& options) { return CpuCard::create(options); }

}  // namespace orrery::cards
