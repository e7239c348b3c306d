// A client of a cluster: submits a request, hears how far it is, receives the frames.
//
// Events come over the control plane, frames over the data plane, straight from the decoder's card. When the coordinator
// goes away the client looks for it and submits the same request again, which attaches it to the work under way. Frames
// that are made once more after a failure are recognised by their place and dropped.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "actors/control.hpp"
#include "actors/request_spec.hpp"
#include "base/clock.hpp"
#include "base/result.hpp"
#include "base/tensor.hpp"

namespace orrery::actors {

class TraceCollector;

/// What the cluster is and how it works, for provenance.
struct ClusterFacts {
  std::string cluster, model, model_folder, dtype, numerics;
  std::string plan;  // JSON
  std::uint64_t plan_digest = 0;
  RequestSpec defaults;  // Of the model folder's generation_config.json; prompt and seed are empty.
};

struct StageEvent {
  enum class Kind : std::uint8_t { started, progress, done, notice } kind = Kind::started;
  std::string stage;
  std::uint64_t done = 0, total = 0;
  double seconds = 0;  // Of the last step, or of the whole stage.
  std::string text;    // notice: "card n1:1 was lost; going on with 3 cards after step 7"
};

/// A new request id: 128 random bits as 32 hex digits.
std::string new_request_id();

/// Called on the thread that called `generate`.
struct ClientHandlers {
  std::function<void(const StageEvent&)> on_event;
  /// u8 RGB [frames][height][width][3], in order. An error cancels the request.
  std::function<Status(std::span<const std::byte> rgb, std::uint64_t frames)> on_frames;
  /// With RequestSpec::save_tensors: names as edges.hpp, `step` where there are several.
  std::function<void(const std::string& name, std::uint32_t step, Tensor tensor)> on_tensor;
  /// All frames are there; what is done now is done before the coordinator is told that the video is delivered, so that a
  /// client that dies here can come back for it. `account`: what `generate` returns. An error leaves the request undelivered.
  std::function<Status(const std::string& account)> on_complete;
  /// Asked about ten times a second; true cancels.
  std::function<bool()> interrupted;
};

/// Threads: one at a time.
class Client {
public:
  /// Fails with unreachable.
  static Result<std::unique_ptr<Client>> connect(Control& control, const std::string& host, std::uint16_t port);
  ~Client();

  /// Runs one request to its end; returns the coordinator's account of it (JSON: seconds, stages). `id`: see
  /// new_request_id; one that was submitted before, with the same spec, goes on or is delivered again. `noise`: initial
  /// noise f32[C,T,H,W] in place of the seed's. Fails with the request's own error, cancelled, or peer_lost when the
  /// coordinator stays away for `patience`.
  Result<std::string> generate(const std::string& id, const RequestSpec& spec, const std::optional<TensorView>& noise,
                               const ClientHandlers& handlers, Duration patience = std::chrono::seconds(60));
  /// Cancels the open request whose id begins so, or "all"; returns how many. Fails with not_found, or usage when several
  /// begin so.
  Result<std::uint32_t> cancel(const std::string& id);

  /// Of the plan in use; empty where there is none at the moment.
  Result<ClusterFacts> facts();
  /// State of everything as JSON.
  Result<std::string> status();
  /// Begins to record what all processes of the cluster do (trace_collector.hpp).
  std::unique_ptr<TraceCollector> record_trace();
  /// Asks the cluster to end.
  Status shut_down(const std::string& reason);

  /// From the launcher: the process of a node is dead.
  Status node_died(const std::string& node, std::int64_t pid, const std::string& how);
  /// From the launcher: it died too often and is not started again.
  Status node_quarantined(const std::string& node, const std::string& why);

  /// Fault injection, where the cluster allows it: a FaultOrder (fault_switch.hpp) for a node; healing one by name, or
  /// all; what is active. `node` empty: all nodes. Answers with each node's JSON in an array.
  Result<std::string> inject_fault(const std::string& node, const std::string& order);
  Result<std::string> heal_faults(const std::string& node, const std::string& name);
  Result<std::string> list_faults(const std::string& node);

private:
  struct State;
  explicit Client(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::actors
