// Shapes, element types and borrowed views of dense row-major tensors.
//
// A view owns nothing and lives no longer than the call it is passed to, unless the callee says otherwise.
// Element types are those of safetensors files; arithmetic is done in f32 and bf16 only.

#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace orrery {

enum class DType : std::uint8_t { f32 = 1, bf16 = 2, f16 = 3, f64 = 4, i64 = 5, i32 = 6, i16 = 7, i8 = 8, u8 = 9, u16 = 10, u32 = 11, u64 = 12, boolean = 13 };

/// Bytes of one element.
constexpr std::uint64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
    case DType::u64: return 8;
    case DType::f32:
    case DType::i32:
    case DType::u32: return 4;
    case DType::bf16:
    case DType::f16:
    case DType::i16:
    case DType::u16: return 2;
    default: return 1;
  }
}

/// "f32", "bf16" ...
std::string_view name_of(DType dtype);

/// Extents, outermost first. No extent is negative; an empty shape is a scalar.
using Shape = std::vector<std::uint64_t>;

/// Number of elements. Callers check untrusted shapes with `checked_bytes` first.
std::uint64_t element_count(const Shape& shape);

/// Bytes of a tensor, or nothing when the product overflows 63 bits.
std::optional<std::uint64_t> checked_bytes(const Shape& shape, DType dtype);

/// "[2, 16, 64]".
std::string text_of(const Shape& shape);

struct TensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::f32;
  Shape shape;

  std::uint64_t bytes() const { return element_count(shape) * size_of(dtype); }
  /// The elements as T; T's size must be that of the dtype.
  template <class T>
  std::span<const T> as() const {
    ORRERY_CHECK(sizeof(T) == size_of(dtype));
    return {reinterpret_cast<const T*>(data), element_count(shape)};
  }
};

/// A tensor that owns its bytes (host memory, 64-byte aligned). For files, tests and small things; the data
/// path uses Shard and card memory.
class Tensor {
public:
  Tensor() = default;
  /// Zero-filled.
  Tensor(DType dtype, Shape shape);

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::uint64_t bytes() const { return size_; }
  std::byte* data() { return reinterpret_cast<std::byte*>(storage_.data()); }
  const std::byte* data() const { return reinterpret_cast<const std::byte*>(storage_.data()); }
  TensorView view() const { return {data(), dtype_, shape_}; }
  template <class T>
  std::span<T> as() {
    ORRERY_CHECK(sizeof(T) == size_of(dtype_));
    return {reinterpret_cast<T*>(data()), element_count(shape_)};
  }
  template <class T>
  std::span<const T> as() const {
    return view().as<T>();
  }

private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  DType dtype_ = DType::f32;
  Shape shape_;
  std::uint64_t size_ = 0;
  std::vector<Line> storage_;
};

/// Copies any numeric tensor to f32 (exact for bf16 and f16; i64 and f64 are rounded to nearest).
Result<Tensor> copy_as_f32(const TensorView& tensor);

/// Round to nearest, ties to even; NaN stays NaN.
constexpr std::uint16_t bf16_of(float value) {
  auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  bits += 0x7fffU + ((bits >> 16) & 1U);
  return static_cast<std::uint16_t>(bits >> 16);
}
constexpr float f32_of_bf16(std::uint16_t value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

}  // namespace orrery
