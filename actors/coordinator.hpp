// The coordinator of a cluster: membership, the journal, plans and epochs, requests. It touches no tensors.
//
// Takes greetings of the expected nodes, sends each its part of the plan, spawns the stages, then serves requests. When a
// card, a node or a link fails, or a card comes back: a new epoch begins, with a new plan for what is there, and every
// request goes on from its newest restart point. With too few cards requests wait, and status says why.
//
// A request is accepted only when it is in the journal. A coordinator that is started again with the same state folder
// goes on with what it finds there: nodes come back to it by themselves.

#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "actors/control.hpp"
#include "actors/request_spec.hpp"
#include "base/result.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

struct ResilienceOptions {
  Duration heartbeat_interval = std::chrono::milliseconds(100);
  Duration heartbeat_timeout = std::chrono::milliseconds(900);  // Silence after which a node counts as lost.
  bool replan_on_loss = true;        // false: requests that a loss interrupts fail, naming it.
  std::uint32_t restarts_max = 5;    // A card that failed more often within `restarts_within` is used no more.
  Duration restarts_within = std::chrono::seconds(60);
  double straggler_factor = 1.5;     // A card that takes so many times its group's median per slice ...
  std::uint32_t straggler_steps = 5; // ... in so many steps in a row gets fewer slices.
  Duration result_ttl = std::chrono::minutes(10);  // How long a finished request waits for its client.
  Duration request_deadline{};       // Of a request that names none; 0: none.
};

struct CoordinatorOptions {
  std::string cluster;                     // Name, for people.
  std::string state_folder;                // Where the journal lies; made when it is not there.
  std::string listen_host = "127.0.0.1";
  std::uint16_t listen_port = 0;           // 0: any free one.
  topology::Plan plan;                     // With all cards but the spares.
  /// A plan for the cards that are left; `slowdown`: measured, by card. Fails with no_feasible_plan, saying why. Pure.
  std::function<Result<topology::Plan>(const std::set<std::uint32_t>& lost, const std::map<std::uint32_t, double>& slowdown)> plan_without;
  std::set<std::uint32_t> spares = {};     // Cards that take over when others are lost.
  std::vector<std::string> nodes;          // Names, in plan order; each must join before the first plan is loaded.
  std::string model_name, model_folder, dtype;
  RequestSpec defaults = {};               // What a request gets when it says nothing.
  std::vector<std::string> guardrail_folders;
  std::uint32_t max_in_flight = 2, max_queue = 64;
  ResilienceOptions resilience = {};
  bool allow_faults = false;               // Obeys `orrery fault` itself: its disk and its fault points.
};

/// Threads: any.
class Coordinator {
public:
  /// Opens the journal and listens. Fails with port_in_use, invalid_model when the folder is not a whole model, and as
  /// Journal::open.
  static Result<std::unique_ptr<Coordinator>> start(Control& control, CoordinatorOptions options);
  /// Tells the nodes to end, and ends.
  ~Coordinator();

  std::uint16_t port() const;
  std::uint64_t cluster_id() const;
  std::uint64_t term() const;

  /// Of the cluster. `starved`: too few cards for a plan; requests wait.
  enum class Phase : std::uint8_t { waiting, loading, ready, starved, failed, ended };
  /// Waits up to `limit` for somebody to ask for the end, or for the cluster to fail; true once that happened.
  bool wait_for_end(Duration limit);
  /// Why it failed.
  Status outcome() const;
  /// State of everything, as JSON text.
  std::string status() const;

  struct State;
  State& state() { return *state_; }

private:
  explicit Coordinator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::actors
