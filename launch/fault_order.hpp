// From the words of `orrery fault inject ACTION TARGET key=value ...` to an order for one process.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "actors/fault_switch.hpp"
#include "base/result.hpp"

namespace orrery::launch {

struct FaultWords {
  std::string action, target;
  std::vector<std::string> parameters = {};
  std::string duration = {}, name = {};
  std::string event = "now";
  std::uint64_t request = 0;
  std::uint32_t step = 0;
  std::optional<std::uint32_t> block = {};
  std::uint64_t seed = 1;
  bool one_way = false;
};

struct ToldFault {
  std::string node;  // Or "coordinator".
  actors::FaultOrder order;
};

/// Fails with usage and what is wrong with which word.
Result<ToldFault> order_from_words(const FaultWords& words);

}  // namespace orrery::launch
