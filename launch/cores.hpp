// Cores of their own for processes that compute beside each other on this machine.
//
// A process that keeps to its cores hands work between its threads (kernels, data plane, ZeroMQ) within their caches,
// and the system does not move them about: all-reduces over TCP between two such processes of a two-core machine take
// a fifth to a third less time. Cores are physical ones, in hwloc's order: neighbours share caches and memory.
//
// Whoever claims a core holds it until it ends, so two clusters of one machine do not crowd on its first cores. Where
// there are too few free cores, nobody is bound and the system spreads the threads as it likes.

#pragma once

#include <cstdint>
#include <vector>

namespace orrery::launch {

/// Logical processors, by the system's number.
using CpuSet = std::vector<std::uint32_t>;

/// `free` cores (each its logical processors) shared out in runs of neighbours: entry i of the result has at least
/// `wanted[i]` cores, and all that is left over in proportion; none for a wish of 0. Empty sets when there are fewer
/// free cores than wished for. Pure.
std::vector<CpuSet> share_cores(const std::vector<CpuSet>& free, const std::vector<std::uint32_t>& wanted);

/// Holds cores until it is destroyed. Threads: one.
class CoreClaim {
public:
  CoreClaim() = default;
  /// `wanted`: of each process, how many of its threads compute. Never fails: without cores nobody is bound.
  static CoreClaim take(const std::vector<std::uint32_t>& wanted);
  CoreClaim(CoreClaim&& other) noexcept;
  CoreClaim& operator=(CoreClaim&& other) noexcept;
  ~CoreClaim();

  /// Where process i is to run (ProcessSpec::cpus); empty: anywhere.
  CpuSet of(std::size_t i) const { return i < sets_.size() ? sets_[i] : CpuSet{}; }

private:
  std::vector<CpuSet> sets_;
  std::vector<int> locks_;
};

}  // namespace orrery::launch
