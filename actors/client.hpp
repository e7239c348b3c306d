// A client of a cluster: submits a request, hears how far it is, receives the frames.
//
// Events come over the control plane, frames over the data plane, straight from the decoder's card.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "actors/control.hpp"
#include "actors/request_spec.hpp"
#include "base/result.hpp"
#include "base/tensor.hpp"

namespace orrery::actors {

class Coordinator;

/// What the cluster is and how it works, for provenance.
struct ClusterFacts {
  std::string cluster, model, model_folder, dtype, numerics;
  std::string plan;  // JSON
  std::uint64_t plan_digest = 0;
  RequestSpec defaults;  // Of the model folder's generation_config.json; prompt and seed are empty.
};

struct StageEvent {
  enum class Kind : std::uint8_t { started, progress, done } kind = Kind::started;
  std::string stage;
  std::uint64_t done = 0, total = 0;
  double seconds = 0;  // Of the last step, or of the whole stage.
};

/// Called on the thread that called `generate`.
struct ClientHandlers {
  std::function<void(const StageEvent&)> on_event;
  /// u8 RGB [frames][height][width][3], in order. An error cancels the request.
  std::function<Status(std::span<const std::byte> rgb, std::uint64_t frames)> on_frames;
  /// With RequestSpec::save_tensors: names as edges.hpp, `step` where there are several.
  std::function<void(const std::string& name, std::uint32_t step, Tensor tensor)> on_tensor;
  /// Asked about ten times a second; true cancels.
  std::function<bool()> interrupted;
};

/// Threads: one at a time.
class Client {
public:
  /// Fails with unreachable.
  static Result<std::unique_ptr<Client>> connect(Control& control, const std::string& host, std::uint16_t port);
  /// To a coordinator in this process.
  static Result<std::unique_ptr<Client>> local(Control& control, Coordinator& coordinator);
  ~Client();

  /// Runs one request to its end; returns the coordinator's account of it (JSON: seconds, stages). `noise`: initial
  /// noise f32[C,T,H,W] in place of the seed's. Fails with the request's own error, cancelled, or peer_lost when the
  /// coordinator went away.
  Result<std::string> generate(const RequestSpec& spec, const std::optional<TensorView>& noise, const ClientHandlers& handlers);

  Result<ClusterFacts> facts();
  /// State of everything as JSON.
  Result<std::string> status();
  /// Asks the cluster to end.
  Status shut_down(const std::string& reason);

private:
  struct State;
  explicit Client(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::actors
