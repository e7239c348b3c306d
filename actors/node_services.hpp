// A node process behind NodeBackend: NodeRuntime, connections to other processes, and the threads that wait for them.
//
// Internal to actors/: this header includes CAF.

#pragma once

#include <atomic>

#include "actors/control_state.hpp"
#include "actors/lane_worker.hpp"
#include "actors/node_backend.hpp"
#include "actors/node_host.hpp"
#include "actors/node_runtime.hpp"

namespace orrery::actors {

/// Threads: any. The runtime and the control plane outlive it. Its threads use actors, and CAF's thread-local logger holds
/// on to the actor system: it ends before that does.
class NodeServices final : public NodeBackend {
public:
  NodeServices(const NodeHostOptions& options, Control::State& control, NodeRuntime& runtime);
  ~NodeServices() override;

  /// Where other nodes find the node actor; before `hello` is asked.
  void set_control_port(std::uint16_t port) { control_port_ = port; }

  const Clock& clock() const override { return runtime_.clock(); }
  NodeHello hello() const override;
  void find_coordinator(std::function<void(Result<caf::actor>)> found) override;
  void find_nodes(const std::vector<PeerAddress>& peers, std::function<void(Result<std::vector<caf::actor>>)> found) override;
  void load(const LoadPlan& order, std::function<void(std::uint64_t, std::uint64_t)> progress,
            std::function<void(Result<PlanLoaded>)> loaded) override;
  const topology::Plan& plan() const override { return runtime_.plan(); }
  const std::shared_ptr<const compiler::ModelFolder>& model() const override { return runtime_.model(); }
  std::map<std::uint32_t, CardBackend*> cards() override;
  void drop(std::uint64_t request) override { runtime_.drop(request); }
  void drop_client(std::uint64_t request) override { runtime_.drop_client(request); }
  Status send_kept(const SendKept& order) override;
  std::vector<SilentNode> silent_nodes(Duration limit) const override;
  NodeHealth health() const override { return runtime_.health(); }
  FaultAnswer fault(const FaultCommand& command) override;
  void hang(const std::string& fault) override;

private:
  const NodeHostOptions options_;
  Control::State& control_;
  NodeRuntime& runtime_;
  const std::uint64_t session_;
  std::uint16_t control_port_ = 0;
  std::atomic<bool> ending_{false};
  mutable std::mutex names_mutex_;
  std::map<std::uint32_t, std::string> names_;  // Of nodes, by peer. Guarded by names_mutex_.
  LaneWorker seeker_, loader_, finder_;         // Last: joined first.
};

}  // namespace orrery::actors
