// A type of card: what it can hold, compute and move. From configs/cards/ or inline in a cluster file.

#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/yaml_schema.hpp"

namespace orrery::topology {

/// What runs a card's programs.
enum class Backend : std::uint8_t {
  cpu,    // Real arithmetic on the host's cores.
  model,  // Virtual time from this profile.
  null,   // The skeleton of a driver.
};
std::string_view name_of(Backend backend);

/// Part of the named compute rate that work of a kind reaches.
struct Efficiency {
  double linear = 1;
  double attention = 1;
};

struct CardProfile {
  std::string name;
  std::uint64_t memory = std::uint64_t{4} << 30;
  /// FLOP/s by dtype ("float32", "bfloat16").
  std::map<std::string, double> compute;
  double memory_bandwidth = 0;  // Bytes per second.
  double host_bandwidth = 0;    // Bytes per second from host memory; 0: not limited.
  Backend backend = Backend::model;
  std::uint32_t threads = 1;  // Of backend cpu.
  Efficiency efficiency;

  /// Named rate for a dtype. A type that does not name it runs it at the rate of the other dtype, halved for
  /// float32 on a card that names bfloat16 only.
  double compute_of(const std::string& dtype) const;
};

const Schema<CardProfile>& card_profile_schema();

}  // namespace orrery::topology
