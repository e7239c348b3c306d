// Key pairs of the data plane (ZeroMQ's CURVE), as text.

#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace orrery::protocol {

/// Each 40 characters of Z85.
struct CurvePair {
  std::string secret_key, public_key;
};
/// Fails with unsupported when ZeroMQ was built without CURVE.
Result<CurvePair> make_curve_pair();

/// The public half. Fails with invalid_config when it is no key.
Result<std::string> curve_public_of(const std::string& secret);

/// The same key as 64 lower-case hex digits, which fit into an address; nothing when it is no key.
std::optional<std::string> hex_of_curve_key(const std::string& z85);
std::optional<std::string> curve_key_of_hex(std::string_view hex);

}  // namespace orrery::protocol
