// The control plane of one process: CAF's actor system, configured for few, quiet threads.
//
// One per process. Public headers of actors/ show no CAF type; what needs them uses `State` (control_state.hpp).

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.hpp"
#include "base/keys.hpp"
#include "base/result.hpp"

namespace orrery::actors {

struct ControlOptions {
  std::uint32_t threads = 2;  // Actors only pass messages on; kernels have their own threads.
  Duration heartbeat = std::chrono::milliseconds(250);
  /// Silence after which a connection counts as lost. At least four heartbeats.
  Duration connection_timeout = std::chrono::milliseconds(5000);
  /// Connections that leave this machine are TLS with both sides' keys checked (tls_relay.hpp); without keys they are
  /// refused, unless `insecure`.
  Security security = {};
};

/// Threads: any. The destructor waits until all actors have ended.
class Control {
public:
  explicit Control(const ControlOptions& options = {});
  ~Control();
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  struct State;
  State& state() { return *state_; }

private:
  std::unique_ptr<State> state_;
};

/// "host:port" or "tcp://host:port" apart. Fails with usage.
struct HostPort {
  std::string host;
  std::uint16_t port = 0;
};
Result<HostPort> parse_address(const std::string& text);

}  // namespace orrery::actors
