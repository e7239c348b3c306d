// Brings weights from a WeightSource into card memory, in the forms that kernels read.
//
//   memory-mapped tensor ──rows, columns──▶ converted to the compute dtype ──packed──▶ card memory
//
// Rows pass through in blocks of 256 and their source pages are released behind, so resident memory grows by the
// packed weights only, however large the file is.

#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "cards/card.hpp"
#include "cards/device_memory.hpp"
#include "cards/kernels/kernels.hpp"

namespace orrery::cards {

/// One component's weights on a card. `weights[i]` belongs to WeightId i.
struct LoadedWeights {
  std::shared_ptr<const WeightSet> set;
  DeviceMemory::Block block;
  std::vector<Weight> weights;
  std::vector<PackedMatrix> matrices;  // What weights[i].matrix points to.
};

/// See Card::load_weights. Fails with card_memory_exhausted before reading anything, invalid_model when a tensor is
/// not as specified, unsupported for a dtype without conversion, cancelled.
Result<std::shared_ptr<const LoadedWeights>> load(std::shared_ptr<const WeightSet> set, const WeightSource& source,
                                                  DeviceMemory& memory,
                                                  const std::function<bool(std::uint64_t bytes_done)>& progress);

}  // namespace orrery::cards
