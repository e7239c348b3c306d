// The clusters that this user runs on this machine: one small file each, so that `status`, `down` and `generate`
// find them without an address.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "topology/cluster_spec.hpp"

namespace orrery::launch {

struct RunningCluster {
  std::string name;
  std::string address;  // Of the coordinator.
  int pid = 0;
  topology::SecuritySpec security = {};  // Of its cluster file: whoever finds it here needs no flags.
};

/// XDG_RUNTIME_DIR/orrery, else /tmp/orrery-UID; made (mode 0700) if missing. Fails with io_failed when it belongs to
/// somebody else.
Result<std::string> registry_folder();

/// Whether the process exists and runs; a dead one that nobody has collected does not.
bool is_alive(int pid);

/// All whose process lives; files of dead ones are removed.
Result<std::vector<RunningCluster>> running_clusters();

/// By name, or the only one when `name` is empty. Fails with not_found, naming what runs.
Result<RunningCluster> find_cluster(const std::string& name);

/// Registers this process's cluster until the object is gone. Fails with invalid_config when one of that name runs.
class Registration {
public:
  static Result<Registration> create(const RunningCluster& cluster);
  Registration(Registration&& other) noexcept;
  Registration& operator=(Registration&&) = delete;
  ~Registration();

private:
  explicit Registration(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace orrery::launch
