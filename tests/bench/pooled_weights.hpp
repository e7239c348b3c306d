// Weights of any model without files: every tensor that a set names, out of one pool of small random numbers.

#pragma once

#include <algorithm>
#include <map>
#include <string>

#include "cards/card.hpp"

namespace orrery::cards {

class PooledWeights final : public WeightSource {
public:
  explicit PooledWeights(const WeightSet& set, DType dtype = DType::f32) : dtype_(dtype) {
    std::uint64_t most = 0;
    for (const auto& weight : set.weights) {
      shapes_[weight.tensor] = weight.shape;
      most = std::max(most, element_count(weight.shape));
    }
    pool_ = Tensor(dtype, {most});
    std::uint32_t state = 1;
    for (std::uint64_t i = 0; i < most; ++i) {
      state = state * 1664525U + 1013904223U;
      const float value = (static_cast<float>(state >> 8) * 0x1p-24f - 0.5f) * 0.05f;
      if (dtype == DType::f32)
        pool_.as<float>()[i] = value;
      else
        pool_.as<std::uint16_t>()[i] = bf16_of(value);
    }
  }
  Result<TensorView> tensor(const std::string& name) const override {
    const auto found = shapes_.find(name);
    if (found == shapes_.end()) return Error{ErrorCode::invalid_model, "no tensor " + name};
    return TensorView{pool_.data(), dtype_, found->second};
  }
  void release(std::span<const std::byte>) const override {}

private:
  const DType dtype_;
  std::map<std::string, Shape> shapes_;
  Tensor pool_;
};

}  // namespace orrery::cards
