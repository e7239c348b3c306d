// Where a component runs: on one card or on several, here or elsewhere. What run_component needs of it, no more.
//
// Implementations: LocalLanes (below, one card), actors/group_lane.hpp (the cards of a cluster).

#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/result.hpp"
#include "cards/card.hpp"
#include "compiler/layout.hpp"

namespace orrery::compiler {

/// One component's programs with their weights and memory, on all cards that share it. Threads: one at a time.
class ComponentLane {
public:
  virtual ~ComponentLane() = default;

  /// Fills an input, on every card that has it. Precondition: the programs have it, and it has that many bytes.
  virtual void write(const std::string& input, std::span<const std::byte> values) = 0;
  /// Runs a program to its end on every card. After a failure the lane is of no use.
  virtual Status run(const std::string& program, const cards::Scalars& scalars) = 0;
  /// Copies an output. Precondition: as for `write`.
  virtual void read(const std::string& output, std::span<std::byte> values) = 0;
  virtual Shape shape_of(const std::string& output) const = 0;
};

/// What one card of a layout is to run. Pure, and so callable from several threads; what cannot be split ignores
/// the layout.
using CompileFor = std::function<Result<std::shared_ptr<const cards::ProgramSet>>(const Layout& layout)>;

/// Opens lanes, one at a time.
class Lanes {
public:
  virtual ~Lanes() = default;
  /// Compiles for each card, loads its weights and reserves its memory. `slice_count`: how finely the component can
  /// be shared out; 1: one card. `source` is used during the call only; the lane must not outlive this object.
  virtual Result<std::unique_ptr<ComponentLane>> open(std::uint32_t slice_count, const CompileFor& compile,
                                                      const cards::WeightSource& source) = 0;
};

/// One card, which must outlive this. Weights are dropped when a lane ends.
class LocalLanes final : public Lanes {
public:
  explicit LocalLanes(cards::Card& card) : card_(card) {}
  Result<std::unique_ptr<ComponentLane>> open(std::uint32_t slice_count, const CompileFor& compile,
                                              const cards::WeightSource& source) override;

private:
  cards::Card& card_;
};

}  // namespace orrery::compiler
