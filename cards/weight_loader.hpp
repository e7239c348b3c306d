// Brings weights from a WeightSource into card memory, in the forms that kernels read.
//
//   memory-mapped tensor ──rows, columns──▶ converted to the compute dtype ──packed──▶ card memory
//
// Rows pass through in blocks of 64 and their source pages are released behind, so resident memory grows by the
// packed weights only, however large the file is.

#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "cards/card.hpp"
#include "cards/device_memory.hpp"
#include "cards/kernels/kernels.hpp"

namespace orrery::cards {

/// Says what is wrong with a set before anything of it is read: a specification, or a tensor that is not as specified.
Status check(const WeightSet& set, const WeightSource& source);
/// Of one weight in its form on the card, padding included; a multiple of 64. Padding is that of this process's kernels:
/// panels of a fixed number of columns, so narrow slices take up to twice their elements.
std::uint64_t bytes_on_card(const WeightSpec& spec);
/// Of all weights of a set: what `load` reserves.
std::uint64_t bytes_on_card(const WeightSet& set);

/// A weight in card memory, with what it points to.
struct PlacedWeight {
  Weight weight;
  std::unique_ptr<PackedMatrix> matrix;  // What weight.matrix points to.
};
/// Reads one weight of a checked set into `memory`, bytes_on_card(spec) bytes. `progress` hears the bytes of elements that
/// each piece has brought, and stops the reading with `cancelled` by returning false.
Result<PlacedWeight> place(const WeightSpec& spec, const WeightSource& source, std::span<std::byte> memory,
                           const std::function<bool(std::uint64_t bytes)>& progress);

/// One component's weights on a card. `weights[i]` belongs to WeightId i.
struct LoadedWeights {
  std::shared_ptr<const WeightSet> set;
  DeviceMemory::Block block;
  std::vector<Weight> weights;
  std::vector<std::unique_ptr<PackedMatrix>> matrices;  // What weights[i].matrix points to.
};

/// See Card::load_weights. Fails with card_memory_exhausted before reading anything, invalid_model when a tensor is
/// not as specified, unsupported for a dtype without conversion, cancelled.
Result<std::shared_ptr<const LoadedWeights>> load(std::shared_ptr<const WeightSet> set, const WeightSource& source,
                                                  DeviceMemory& memory,
                                                  const std::function<bool(std::uint64_t bytes_done)>& progress);

}  // namespace orrery::cards
