// A node process: its cards, its data plane and its node actor, joined to a coordinator.

#pragma once

#include <functional>
#include <memory>
#include <string>

#include "actors/control.hpp"
#include "base/result.hpp"

namespace orrery::actors {

struct NodeHostOptions {
  std::string name;                       // As in the cluster file.
  std::string coordinator_host = "127.0.0.1";
  std::uint16_t coordinator_port = 0;
  std::uint64_t cluster_id = 0;           // As the coordinator told the launcher; others are refused.
  std::uint32_t peer = 0;                 // Number on the data plane: 1 + index of the node in the cluster.
  std::string listen_host = "127.0.0.1";  // Where this node's control and data ports listen (port 0: any free one).
  std::string data_bind;                  // Empty: tcp on listen_host; or "ipc://PATH".
  bool share_memory = true;               // With processes of the same host.
  std::string data_advertise;             // What others connect to, when that is not where it listens (a relay).
  Duration join_timeout = std::chrono::seconds(60);  // The coordinator may come up later than we, or again.
  bool allow_faults = false;              // Obeys `orrery fault`.
  Security security = {};                 // Of its control and data connections.
};

/// Threads: one owner; `stop` from any.
class NodeHost {
public:
  /// Starts everything and joins; keeps trying until `join_timeout`. `interrupted` is asked meanwhile. Whenever the
  /// coordinator is lost later, the node keeps its cards and joins again.
  static Result<std::unique_ptr<NodeHost>> start(const NodeHostOptions& options, const std::function<bool()>& interrupted);
  ~NodeHost();

  /// Waits up to `timeout` for the end (a Shutdown, or no coordinator for `join_timeout`); true once it has come.
  bool wait(Duration timeout);
  /// Ok for an orderly shutdown; unreachable when there was no coordinator any more, peer_lost when a card hangs.
  Status outcome() const;
  /// A card hangs in a command: this object cannot be destroyed, the process has to end at once.
  bool stuck() const;

private:
  struct State;
  explicit NodeHost(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::actors
