// Reads tensors of a safetensors file for tests, and compares results with a reference.

#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <string>

#include "base/tensor.hpp"
#include "catch2/catch.hpp"
#include "compiler/weight_file.hpp"

namespace orrery::testing {

inline std::string golden(const std::string& name) { return std::string(ORRERY_SOURCE_DIR) + "/tests/golden/data/" + name; }

inline std::map<std::string, Tensor> tensors_of(const std::string& path) {
  auto file = compiler::TensorFile::open(path);
  INFO((file.ok() ? path : file.error().text()));
  REQUIRE(file.ok());
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, view] : file.value().tensors()) {
    Tensor copy(view.dtype, view.shape);
    if (view.bytes() > 0) std::memcpy(copy.data(), view.data, view.bytes());
    tensors.emplace(name, std::move(copy));
  }
  return tensors;
}

/// Largest of |got - reference| / (tolerance * max|reference| + 1e-6): at most 1 when within tolerance.
inline double worst_ratio(std::span<const float> got, std::span<const float> reference, double tolerance) {
  REQUIRE(got.size() == reference.size());
  double most = 0, worst = 0;
  for (const float value : reference) most = std::max(most, std::abs(static_cast<double>(value)));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - static_cast<double>(reference[i]));
    // Not-a-number never passes.
    worst = std::max(worst, difference == difference ? difference / (tolerance * most + 1e-6) : 1e30);
  }
  return worst;
}

/// |got - reference|_2 / |reference|_2.
inline double relative_l2(std::span<const float> got, std::span<const float> reference) {
  REQUIRE(got.size() == reference.size());
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = static_cast<double>(got[i]) - static_cast<double>(reference[i]);
    difference += d * d;
    norm += static_cast<double>(reference[i]) * static_cast<double>(reference[i]);
  }
  return std::sqrt(difference / norm);
}

}  // namespace orrery::testing
