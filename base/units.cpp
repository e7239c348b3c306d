#include "base/units.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <span>

namespace orrery {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};

constexpr double kilo = 1e3, mega = 1e6, giga = 1e9, tera = 1e12, peta = 1e15;
constexpr double kibi = 1024.0, mebi = kibi * 1024, gibi = mebi * 1024, tebi = gibi * 1024;

constexpr std::array bytes_units{Unit{"B", 1},      Unit{"KB", kilo},  Unit{"MB", mega},  Unit{"GB", giga},  Unit{"TB", tera},
                                 Unit{"KiB", kibi}, Unit{"MiB", mebi}, Unit{"GiB", gibi}, Unit{"TiB", tebi}};
constexpr std::array rate_units{
    Unit{"B/s", 1},        Unit{"KB/s", kilo},       Unit{"MB/s", mega},       Unit{"GB/s", giga},
    Unit{"TB/s", tera},    Unit{"KiB/s", kibi},      Unit{"MiB/s", mebi},      Unit{"GiB/s", gibi},
    Unit{"bit/s", 0.125},  Unit{"Kbit/s", kilo / 8}, Unit{"Mbit/s", mega / 8}, Unit{"Gbit/s", giga / 8},
    Unit{"Tbit/s", tera / 8}};
constexpr std::array flop_units{Unit{"FLOP/s", 1}, Unit{"MFLOP/s", mega}, Unit{"GFLOP/s", giga}, Unit{"TFLOP/s", tera}, Unit{"PFLOP/s", peta}};
constexpr std::array time_units{Unit{"ns", 1e-9}, Unit{"us", 1e-6}, Unit{"ms", 1e-3}, Unit{"s", 1}, Unit{"min", 60}, Unit{"h", 3600}};

std::string known(std::span<const Unit> units) {
  std::string text;
  for (const auto& unit : units) text += (text.empty() ? "" : ", ") + std::string(unit.name);
  return text;
}

Result<double> parse(std::string_view text, std::span<const Unit> units, std::string_view example) {
  const auto wrong = [](std::string message, std::string hint) {
    return Error{ErrorCode::invalid_config, std::move(message), std::move(hint)};
  };
  double number = 0;
  const auto [rest, status] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (status != std::errc{})
    return wrong("is not a quantity: '" + std::string(text) + "'", "write e.g. '" + std::string(example) + "'");
  std::string_view unit(rest, static_cast<std::size_t>(text.data() + text.size() - rest));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  while (unit.ends_with(' ')) unit.remove_suffix(1);
  if (unit.empty()) return wrong("needs a unit, e.g. '" + std::string(example) + "'", "");
  if (!std::isfinite(number) || number < 0) return wrong("must be finite and not negative", "");
  for (const auto& row : units)
    if (row.name == unit) return number * row.factor;
  return wrong("has the unknown unit '" + std::string(unit.substr(0, 24)) + "'", "known: " + known(units));
}

std::string scaled(double value, std::span<const Unit> units) {
  const Unit* best = &units.front();
  for (const auto& unit : units)
    if (value >= unit.factor) best = &unit;
  const double shown = value / best->factor;
  char text[64];
  std::snprintf(text, sizeof text, "%.*f %s", shown >= 99.95 ? 0 : shown >= 9.995 ? 1 : 2, shown, best->name.data());
  return text;
}

}  // namespace

Result<std::uint64_t> parse_bytes(std::string_view text) {
  ORRERY_TRY(value, parse(text, bytes_units, "64GiB"));
  if (value >= 9e18) return Error{ErrorCode::invalid_config, "is too large"};
  return static_cast<std::uint64_t>(std::llround(value));
}
Result<double> parse_bytes_per_second(std::string_view text) { return parse(text, rate_units, "64 GB/s"); }
Result<double> parse_flops(std::string_view text) { return parse(text, flop_units, "64 TFLOP/s"); }
Result<double> parse_seconds(std::string_view text) { return parse(text, time_units, "60s"); }

std::string text_of_bytes(double bytes) {
  static constexpr std::array units{Unit{"B", 1}, Unit{"KiB", kibi}, Unit{"MiB", mebi}, Unit{"GiB", gibi}, Unit{"TiB", tebi}};
  if (bytes < kibi) return std::to_string(std::llround(bytes)) + " B";
  return scaled(bytes, units);
}
std::string text_of_bytes_per_second(double rate) {
  static constexpr std::array units{Unit{"B/s", 1}, Unit{"KB/s", kilo}, Unit{"MB/s", mega}, Unit{"GB/s", giga}, Unit{"TB/s", tera}};
  return scaled(rate, units);
}
std::string text_of_flops(double rate) { return scaled(rate, flop_units); }
std::string text_of_seconds(double seconds) {
  if (seconds <= 0) return "0 s";
  if (seconds >= 120) {
    const auto whole = std::llround(seconds);
    if (whole >= 7200) return std::to_string(whole / 3600) + " h " + std::to_string(whole % 3600 / 60) + " min";
    return std::to_string(whole / 60) + " min " + std::to_string(whole % 60) + " s";
  }
  static constexpr std::array units{Unit{"ns", 1e-9}, Unit{"us", 1e-6}, Unit{"ms", 1e-3}, Unit{"s", 1}};
  return scaled(seconds, units);
}

}  // namespace orrery
