// One command on a cpu card: slots, weights and scalars in, output slots out.
//
//   OneOp op(Op::add);
//   op.input(a); op.input(b);
//   const auto sum = op.output(DType::f32, {4});
//   op.run();              // REQUIREs success
//   op.values(sum)         // as f32

#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "base/random.hpp"
#include "cards/card.hpp"

namespace orrery::cards {

/// Tensors in memory; counts what was released.
class MemoryWeights final : public WeightSource {
public:
  void add(const std::string& name, Tensor tensor) { tensors_[name] = std::move(tensor); }
  Result<TensorView> tensor(const std::string& name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return Error{ErrorCode::invalid_model, "no tensor " + name};
    return found->second.view();
  }
  void release(std::span<const std::byte> part) const override { released += part.size(); }
  mutable std::uint64_t released = 0;

private:
  std::map<std::string, Tensor> tensors_;
};

inline Tensor tensor_of(DType dtype, const Shape& shape, const std::vector<float>& values) {
  Tensor tensor(dtype, shape);
  REQUIRE(values.size() == element_count(shape));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) tensor.as<float>()[i] = values[i];
    if (dtype == DType::bf16) tensor.as<std::uint16_t>()[i] = bf16_of(values[i]);
    if (dtype == DType::i32) tensor.as<std::int32_t>()[i] = static_cast<std::int32_t>(values[i]);
  }
  return tensor;
}

/// Standard normal values, rounded to `dtype`.
inline Tensor random_tensor(DType dtype, const Shape& shape, std::uint64_t seed) {
  std::vector<float> values(element_count(shape));
  fill_normal(seed, RandomStream::synthetic_weights, 0, values);
  return tensor_of(dtype, shape, values);
}

inline std::vector<float> floats_of(const Tensor& tensor) {
  const auto copy = copy_as_f32(tensor.view());
  REQUIRE(copy.ok());
  const auto values = copy.value().as<float>();
  return {values.begin(), values.end()};
}

class OneOp {
public:
  explicit OneOp(Op op) {
    command_.op = op;
    command_.label = "test";
    scalars_.fill(0);
  }

  SlotId input(const Tensor& tensor) {
    const auto slot = add_slot(tensor.dtype(), tensor.shape());
    contents_[slot] = tensor;
    command_.inputs.push_back(slot);
    return slot;
  }
  SlotId output(DType dtype, const Shape& shape) {
    const auto slot = add_slot(dtype, shape);
    command_.outputs.push_back(slot);
    return slot;
  }
  /// The output is the slot of an input.
  void output_in(SlotId slot) { command_.outputs.push_back(slot); }
  /// A whole tensor as weight, kept as `dtype`.
  void weight(const Tensor& tensor, WeightForm form, DType dtype) {
    weight_part(tensor, form, dtype, 0, tensor.shape()[0], 0, tensor.bytes() / size_of(tensor.dtype()) / tensor.shape()[0]);
  }
  void weight_part(const Tensor& tensor, WeightForm form, DType dtype, std::uint64_t row_begin, std::uint64_t row_end,
                   std::uint64_t column_begin, std::uint64_t column_end) {
    WeightSpec spec;
    spec.tensor = "w" + std::to_string(weights_.weights.size());
    spec.form = form;
    spec.dtype = dtype;
    spec.shape = tensor.shape();
    spec.row_begin = row_begin;
    spec.row_end = row_end;
    spec.column_begin = column_begin;
    spec.column_end = column_end;
    source_.add(spec.tensor, tensor);
    command_.weights.push_back(static_cast<WeightId>(weights_.weights.size()));
    weights_.weights.push_back(spec);
  }
  OneOp& attr(Attr name, double value) {
    command_.attrs[name] = value;
    return *this;
  }
  OneOp& scalar(Scalar name, double value) {
    scalars_[static_cast<std::size_t>(name)] = value;
    return *this;
  }
  OneOp& slices(std::vector<std::uint32_t> owned) {
    command_.slices = std::move(owned);
    return *this;
  }

  Status try_run(std::uint32_t threads = 1) {
    CardOptions options;
    options.memory_bytes = std::uint64_t{1} << 30;
    options.threads = threads;
    ORRERY_TRY(card, make_cpu_card(options));
    weights_.component = "test";
    auto set = std::make_shared<ProgramSet>();
    set->component = "test";
    set->weights = std::make_shared<WeightSet>(weights_);
    set->slots = slots_;
    set->programs = {{"only", {command_}}};
    set->state_bytes = bytes_;
    ORRERY_TRY_DONE(card->load_weights(set->weights, source_, {}));
    ORRERY_TRY(lane, card->open_lane(set));
    for (const auto& [slot, tensor] : contents_) std::memcpy(card->memory(lane, slot).data(), tensor.data(), tensor.bytes());
    ORRERY_TRY_DONE(card->run(lane, 0, 0, 1, scalars_));
    for (const auto slot : command_.outputs) {
      Tensor result(slots_[slot].dtype, slots_[slot].shape);
      std::memcpy(result.data(), card->memory(lane, slot).data(), result.bytes());
      results_[slot] = std::move(result);
    }
    card->close_lane(lane);
    return Done{};
  }
  OneOp& run(std::uint32_t threads = 1) {
    const auto status = try_run(threads);
    if (!status.ok()) FAIL(status.error().text());
    return *this;
  }
  const Tensor& result(SlotId slot) const { return results_.at(slot); }
  std::vector<float> values(SlotId slot) const { return floats_of(results_.at(slot)); }
  const Command& command() const { return command_; }

private:
  SlotId add_slot(DType dtype, const Shape& shape) {
    Slot slot;
    slot.name = "s" + std::to_string(slots_.size());
    slot.dtype = dtype;
    slot.shape = shape;
    slot.state = true;
    slot.offset = bytes_;
    bytes_ += (slot.bytes() + 63) / 64 * 64;
    slots_.push_back(slot);
    return static_cast<SlotId>(slots_.size() - 1);
  }

  Command command_;
  Scalars scalars_;
  std::vector<Slot> slots_;
  std::uint64_t bytes_ = 0;
  std::map<SlotId, Tensor> contents_, results_;
  WeightSet weights_;
  MemoryWeights source_;
};

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

/// |got - wanted| <= bound element by element; names the first that is not.
inline void require_near(const std::vector<float>& got, const std::vector<double>& wanted, const std::vector<double>& bound) {
  REQUIRE(got.size() == wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    if (!(std::abs(got[i] - wanted[i]) <= bound[i]))
      FAIL("element " << i << ": got " << got[i] << ", wanted " << wanted[i] << " within " << bound[i]);
}
/// The same with one relative and one absolute bound for all.
inline void require_near(const std::vector<float>& got, const std::vector<double>& wanted, double relative, double absolute) {
  std::vector<double> bound;
  for (const auto value : wanted) bound.push_back(std::abs(value) * relative + absolute);
  require_near(got, wanted, bound);
}

}  // namespace orrery::cards
