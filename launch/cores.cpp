#include "launch/cores.hpp"

#include <hwloc.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

namespace orrery::launch {
namespace {

/// Physical cores that this process may run on; neighbours beside each other.
std::vector<CpuSet> cores_of_machine() {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return {};  // More processors than this set has room for.
  hwloc_topology_t made = nullptr;
  if (hwloc_topology_init(&made) != 0) return {};
  const std::unique_ptr<hwloc_topology, decltype(&hwloc_topology_destroy)> topology(made, &hwloc_topology_destroy);
  if (hwloc_topology_load(made) != 0) return {};
  const auto type = hwloc_get_nbobjs_by_type(made, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
  std::vector<CpuSet> cores;
  for (hwloc_obj_t core = nullptr; (core = hwloc_get_next_obj_by_type(made, type, core)) != nullptr;) {
    CpuSet cpus;
    for (int cpu = hwloc_bitmap_first(core->cpuset); cpu >= 0; cpu = hwloc_bitmap_next(core->cpuset, cpu))
      if (cpu < CPU_SETSIZE && CPU_ISSET(static_cast<std::size_t>(cpu), &allowed)) cpus.push_back(static_cast<std::uint32_t>(cpu));
    if (!cpus.empty()) cores.push_back(std::move(cpus));
  }
  return cores;
}

/// A name in the abstract namespace of sockets is a lock that leaves no file and ends with its holder. -1: taken.
int lock_of(std::uint32_t cpu) {
  const auto name = "orrery-core-" + std::to_string(cpu);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path + 1, sizeof address.sun_path - 1);
  const int lock = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (lock < 0) return -1;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (::bind(lock, reinterpret_cast<const sockaddr*>(&address), size) == 0) return lock;
  ::close(lock);
  return -1;
}

}  // namespace

std::vector<CpuSet> share_cores(const std::vector<CpuSet>& free, const std::vector<std::uint32_t>& wanted) {
  std::vector<CpuSet> sets(wanted.size());
  const auto sum = std::accumulate(wanted.begin(), wanted.end(), std::uint64_t{0});
  if (sum == 0 || free.size() < sum) return sets;
  // Process i gets the cores between its share of the wishes before it and that with its own.
  std::uint64_t before = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const auto first = before * free.size() / sum;
    before += wanted[i];
    const auto end = before * free.size() / sum;
    for (auto core = first; core < end; ++core) sets[i].insert(sets[i].end(), free[core].begin(), free[core].end());
  }
  return sets;
}

CoreClaim CoreClaim::take(const std::vector<std::uint32_t>& wanted) {
  CoreClaim claim;
  // One process alone has nobody to keep away from.
  if (wanted.size() < 2) return claim;
  const auto sum = std::accumulate(wanted.begin(), wanted.end(), std::uint64_t{0});
  const auto cores = cores_of_machine();
  if (sum == 0 || cores.size() < sum) return claim;
  std::vector<CpuSet> free;
  for (const auto& core : cores) {
    const int lock = lock_of(core.front());
    if (lock < 0) continue;
    claim.locks_.push_back(lock);
    free.push_back(core);
  }
  if (free.size() < sum) return {};
  claim.sets_ = share_cores(free, wanted);
  return claim;
}

CoreClaim::CoreClaim(CoreClaim&& other) noexcept { *this = std::move(other); }

CoreClaim& CoreClaim::operator=(CoreClaim&& other) noexcept {
  std::swap(sets_, other.sets_);
  std::swap(locks_, other.locks_);
  return *this;
}

CoreClaim::~CoreClaim() {
  for (const int lock : locks_) ::close(lock);
}

}  // namespace orrery::launch
