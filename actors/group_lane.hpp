// A component on the cards of a cluster, all in this process: what `orrery infer -f` runs on.
//
//   run_component ── GroupLanes::open ──▶ plan: which cards, which slices
//                                         a cpu card and a ProgramRunner per rank, an Exchange per node
//                 ── lane: write ───────▶ every rank         run ──▶ a thread per rank         read ◀── rank 0
//
// Nodes are joined as the cluster file says (data.transport): `ipc` and `tcp` through ZeroMQ sockets of this process,
// `shm` through memory that is shared as between processes, `inproc` and `auto` through memory. Programs, frames and sums are those of a real cluster; processes, recovery and
// CAF are not here.

#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "cards/card.hpp"
#include "compiler/component_lane.hpp"
#include "topology/cluster_spec.hpp"
#include "topology/deployment_spec.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

struct GroupOptions {
  topology::ClusterSpec cluster;
  /// `parallelism` says how many cards; `auto`: all that `placement` allows, one per slice at most. One forward has
  /// one guidance branch, so `cfg` says nothing here.
  topology::DeploymentSpec deployment;
  std::string component = "transformer";  // Or "text_encoder", "vae": whose placement, and for messages.
  std::string dtype = "float32";          // Whose compute rates share out the slices.
  /// Longest wait for one message. Generous: the ranks take turns on this machine's cores.
  Duration deadline = std::chrono::minutes(10);
};

/// What one card did.
struct GroupCard {
  std::string name;  // "n1:0"
  std::vector<std::uint32_t> slices;
  cards::CardUse use;
};

/// Which cards run `slices` slices of the component, and which of them each owns (one stage, one group). Pure.
/// Fails with no_feasible_plan (more cards than slices or than the cluster has, placement) and unsupported (a card of
/// which this machine has only the profile).
Result<topology::Plan> plan_group(const GroupOptions& options, std::uint32_t slices);

/// Threads: `open` and the lane from one at a time, `cancel` from any.
/// Errors:    the first rank's that failed; it ends the others.
class GroupLanes final : public compiler::Lanes {
public:
  explicit GroupLanes(GroupOptions options) : options_(std::move(options)) {}

  Result<std::unique_ptr<compiler::ComponentLane>> open(std::uint32_t slice_count, const compiler::CompileFor& compile,
                                                        const cards::WeightSource& source) override;
  /// From now on everything ends with `cancelled`, a running program within one command.
  void cancel();
  /// The cards of the lane that ended last.
  const std::vector<GroupCard>& cards() const { return cards_; }

private:
  class Lane;
  const GroupOptions options_;
  std::vector<GroupCard> cards_;
  std::mutex mutex_;  // Guards what follows.
  Lane* current_ = nullptr;
  bool cancelled_ = false;
};

}  // namespace orrery::actors
