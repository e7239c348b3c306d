// A cluster brought up from YAML by this process: the coordinator here, one node process per host.
//
// Used by `up` and by `generate` without a running cluster. Nodes are children (launch via local) or run over ssh;
// they end when this object does. Logs and sockets lie in a private folder that is removed at the end.

#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "actors/client.hpp"
#include "actors/control.hpp"
#include "actors/coordinator.hpp"
#include "base/result.hpp"
#include "launch/planned_cluster.hpp"
#include "launch/signals.hpp"

namespace orrery::launch {

struct LocalClusterOptions {
  bool log_nodes_here = false;  // Node output to our stderr instead of log files.
  std::string keep_logs_in;     // Folder for node logs that stays; empty: the private folder.
  std::function<void(std::uint64_t done, std::uint64_t total)> on_load = {};
};

/// Threads: one, which must outlive the cluster (its children die with it).
class LocalCluster {
public:
  /// Starts everything and waits until the cluster takes requests. Fails with the node's name and last words when one
  /// dies or does not come up in launch.ready_timeout, and with cancelled on a signal; nothing is left running then.
  static Result<std::unique_ptr<LocalCluster>> start(const PlannedCluster& planned, const LocalClusterOptions& options,
                                                     SignalWatch& signals);
  ~LocalCluster();

  actors::Control& control();
  actors::Coordinator& coordinator();
  std::string address() const;  // "127.0.0.1:41234"

  /// Something that the cluster cannot live with: a node process that ended. Never waits.
  Status health();

  struct State;

private:
  explicit LocalCluster(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::launch
