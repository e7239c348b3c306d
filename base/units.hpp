// Quantities as people write and read them: "64GiB", "200 Gbit/s", "1.5 us", "64 TFLOP/s".
//
// Where a unit is meant, a bare number is refused: the reader has to choose between GB and GiB, bits and bytes.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace orrery {

/// Each parses "NUMBER UNIT" with or without a space; decimals allowed; finite and not negative.
/// Fails with invalid_config and a sentence such as "needs a unit, e.g. '64GiB'".
Result<std::uint64_t> parse_bytes(std::string_view text);      // B KB MB GB TB KiB MiB GiB TiB
Result<double> parse_bytes_per_second(std::string_view text);  // B/s ... GB/s GiB/s, bit/s Kbit/s Mbit/s Gbit/s Tbit/s
Result<double> parse_flops(std::string_view text);             // FLOP/s ... GFLOP/s TFLOP/s PFLOP/s
Result<double> parse_seconds(std::string_view text);           // ns us ms s min h

/// "9.1 MiB", "64.0 GiB"; three significant digits.
std::string text_of_bytes(double bytes);
/// "64.0 GB/s".
std::string text_of_bytes_per_second(double rate);
/// "64.0 TFLOP/s".
std::string text_of_flops(double rate);
/// "1.50 us", "41.2 ms", "12.3 s", "6 min 20 s".
std::string text_of_seconds(double seconds);

}  // namespace orrery
