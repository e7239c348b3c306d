#include "protocol/curve.hpp"

#include <zmq.h>

#include <array>

namespace orrery::protocol {
namespace {

constexpr std::size_t text_size = 40;
constexpr std::size_t raw_size = 32;

}  // namespace

Result<CurvePair> make_curve_pair() {
  std::array<char, text_size + 1> secret_key{}, public_key{};
  if (zmq_curve_keypair(public_key.data(), secret_key.data()) != 0)
    return Error{ErrorCode::unsupported, "this machine's ZeroMQ was built without CURVE"};
  return CurvePair{secret_key.data(), public_key.data()};
}

Result<std::string> curve_public_of(const std::string& secret) {
  std::array<char, text_size + 1> key{};
  if (secret.size() != text_size || zmq_curve_public(key.data(), secret.c_str()) != 0)
    return Error{ErrorCode::invalid_config, "the secret key of the data plane is no CURVE key"};
  return std::string(key.data());
}

std::optional<std::string> hex_of_curve_key(const std::string& z85) {
  std::array<std::uint8_t, raw_size> raw{};
  if (z85.size() != text_size || zmq_z85_decode(raw.data(), z85.c_str()) == nullptr) return std::nullopt;
  std::string hex;
  for (const auto byte : raw) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

std::optional<std::string> curve_key_of_hex(std::string_view hex) {
  constexpr std::string_view digits = "0123456789abcdef";
  if (hex.size() != 2 * raw_size || hex.find_first_not_of(digits) != std::string_view::npos) return std::nullopt;
  std::array<std::uint8_t, raw_size> raw{};
  for (std::size_t i = 0; i < raw_size; ++i)
    raw[i] = static_cast<std::uint8_t>(digits.find(hex[2 * i]) << 4 | digits.find(hex[2 * i + 1]));
  std::array<char, text_size + 1> text{};
  if (zmq_z85_encode(text.data(), raw.data(), raw.size()) == nullptr) return std::nullopt;
  return std::string(text.data());
}

}  // namespace orrery::protocol
