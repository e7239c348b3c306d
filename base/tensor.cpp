#include "base/tensor.hpp"

#include <cstring>

namespace orrery {

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::bf16: return "bf16";
    case DType::f16: return "f16";
    case DType::f64: return "f64";
    case DType::i64: return "i64";
    case DType::i32: return "i32";
    case DType::i16: return "i16";
    case DType::i8: return "i8";
    case DType::u8: return "u8";
    case DType::u16: return "u16";
    case DType::u32: return "u32";
    case DType::u64: return "u64";
    case DType::boolean: return "bool";
  }
  return "unknown";
}

std::uint64_t element_count(const Shape& shape) {
  std::uint64_t count = 1;
  for (const auto extent : shape) count *= extent;
  return count;
}

std::optional<std::uint64_t> checked_bytes(const Shape& shape, DType dtype) {
  std::uint64_t bytes = size_of(dtype);
  for (const auto extent : shape)
    if (__builtin_mul_overflow(bytes, extent, &bytes) || bytes > INT64_MAX) return std::nullopt;
  return bytes;
}

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (const auto extent : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text + "]";
}

Tensor::Tensor(DType dtype, Shape shape) : dtype_(dtype), shape_(std::move(shape)) {
  const auto bytes = checked_bytes(shape_, dtype_);
  ORRERY_CHECK(bytes.has_value());
  size_ = *bytes;
  storage_.resize((size_ + 63) / 64);
}

namespace {

float f32_of_f16(std::uint16_t half) {
  const auto sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  std::uint32_t exponent = (half >> 10) & 0x1fU;
  std::uint32_t mantissa = half & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  if (exponent == 0) {
    if (mantissa == 0) return std::bit_cast<float>(sign);
    exponent = 1;
    while ((mantissa & 0x400U) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= 0x3ffU;
  }
  return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
}

template <class T, class Convert>
void convert_all(const TensorView& from, std::span<float> to, Convert convert) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    T value;
    std::memcpy(&value, from.data + i * sizeof(T), sizeof(T));
    to[i] = convert(value);
  }
}

}  // namespace

Result<Tensor> copy_as_f32(const TensorView& tensor) {
  Tensor copy(DType::f32, tensor.shape);
  const auto to = copy.as<float>();
  const auto plain = [](auto value) { return static_cast<float>(value); };
  switch (tensor.dtype) {
    case DType::f32: std::memcpy(to.data(), tensor.data, to.size() * 4); break;
    case DType::bf16: convert_all<std::uint16_t>(tensor, to, f32_of_bf16); break;
    case DType::f16: convert_all<std::uint16_t>(tensor, to, f32_of_f16); break;
    case DType::f64: convert_all<double>(tensor, to, plain); break;
    case DType::i64: convert_all<std::int64_t>(tensor, to, plain); break;
    case DType::i32: convert_all<std::int32_t>(tensor, to, plain); break;
    case DType::i16: convert_all<std::int16_t>(tensor, to, plain); break;
    case DType::i8: convert_all<std::int8_t>(tensor, to, plain); break;
    case DType::u8:
    case DType::boolean: convert_all<std::uint8_t>(tensor, to, plain); break;
    default:
      return Error{ErrorCode::unsupported,
                   "a tensor of type " + std::string(name_of(tensor.dtype)) + " cannot be read as f32"};
  }
  return copy;
}

}  // namespace orrery
