// A cluster brought up from YAML by this process: one coordinator process and one node process per host, kept alive.
//
//   this process ── Supervisor ──┬─ orrery coordinator   (journal in the state folder; same port after a restart)
//        │                       ├─ orrery node n1       (child, or over ssh)
//        │ Client                └─ orrery node n2
//        └───────▶ coordinator: "node n1, process 4711, was ended by signal 9" within milliseconds
//
// Used by `up` and by `generate` without a running cluster, which talk to the coordinator as any client does. Logs and
// sockets lie in a private folder that is removed at the end. Children die with this process, whatever kills it.

#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/client.hpp"
#include "actors/control.hpp"
#include "base/result.hpp"
#include "launch/planned_cluster.hpp"
#include "launch/signals.hpp"

namespace orrery::launch {

struct LocalClusterOptions {
  std::string state_folder;     // Of the coordinator; empty: in the private folder, gone at the end.
  bool log_nodes_here = false;  // Output of the children to our stderr instead of log files.
  std::string keep_logs_in;     // Folder for logs that stays; empty: the private folder.
  /// The cluster ends when it waits for cards that will not come back: a node is quarantined. Otherwise it waits.
  bool end_when_starved = false;
  std::function<void(std::uint64_t done, std::uint64_t total)> on_load = {};
};

/// Threads: one; a second inside watches the children, a third reports their deaths.
class LocalCluster {
public:
  /// Starts everything and waits until the cluster takes requests. A child that is killed meanwhile is started again; one
  /// that gives up by itself says why, and that is the error. Fails with timed_out, naming the nodes that did not come up
  /// in launch.ready_timeout, and with cancelled on a signal; nothing is left running then.
  static Result<std::unique_ptr<LocalCluster>> start(const PlannedCluster& planned, const ClusterArguments& arguments,
                                                     const LocalClusterOptions& options, SignalWatch& signals);
  /// Ends all in order: the coordinator, who tells the nodes.
  ~LocalCluster();

  actors::Control& control();
  std::string address() const;  // "127.0.0.1:41234"
  /// A client of this cluster.
  Result<std::unique_ptr<actors::Client>> connect();

  /// Readable when there is something to `take_news` of, or `ended` has become something.
  int descriptor() const;
  /// What happened to the children since the last call, in sentences for people. Never waits.
  std::vector<std::string> take_news();
  /// Once the cluster is over: ok when somebody asked for its end, else why. Never waits.
  std::optional<Status> ended();

  struct State;

private:
  explicit LocalCluster(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::launch
