// The coordinator of a cluster: membership, the plan, requests. It touches no tensors.
//
// Takes greetings of the expected nodes, sends each its part of the plan, spawns the stages, then serves requests.
// A node that does not come, or dies, is named.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actors/control.hpp"
#include "actors/request_spec.hpp"
#include "base/result.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

struct CoordinatorOptions {
  std::string cluster;                     // Name, for people.
  std::uint64_t cluster_id = 0;            // Random per life of the cluster; guards against strangers.
  std::string listen_host = "127.0.0.1";
  std::uint16_t listen_port = 0;           // 0: any free one.
  topology::Plan plan;
  std::vector<std::string> nodes;          // Names, in plan order; each must join.
  std::string model_name, model_folder, dtype;
  RequestSpec defaults = {};               // What a request gets when it says nothing.
  std::vector<std::string> guardrail_folders;
  std::uint32_t max_in_flight = 2, max_queue = 64;
  /// Bytes of weights read so far, over all nodes; called on an actor thread.
  std::function<void(std::uint64_t done, std::uint64_t total)> on_load = {};
};

/// Threads: any.
class Coordinator {
public:
  /// Listens at once. Fails with port_in_use, or invalid_model when the folder is not a whole model.
  static Result<std::unique_ptr<Coordinator>> start(Control& control, CoordinatorOptions options);
  /// Tells the nodes to end, and ends.
  ~Coordinator();

  std::uint16_t port() const;

  enum class Phase : std::uint8_t { waiting, loading, ready, failed, ended };
  /// Waits up to `limit` for the phase to become ready, failed or ended; returns the phase then.
  Phase wait(Duration limit);
  /// Waits up to `limit` for somebody to ask for the end; true once that happened.
  bool wait_for_end(Duration limit);
  /// Why it failed.
  Status outcome() const;
  /// Names of nodes that have not joined.
  std::vector<std::string> missing() const;
  /// State of everything, as JSON text.
  std::string status() const;

  struct State;
  State& state() { return *state_; }

private:
  explicit Coordinator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::actors
