// The CAF side of Control. Internal to actors/.

#pragma once

#include <caf/all.hpp>
#include <caf/io/all.hpp>

#include "actors/control.hpp"
#include "actors/messages.hpp"
#include "actors/tls_relay.hpp"

namespace orrery::actors {

struct ControlConfig : caf::actor_system_config {
  explicit ControlConfig(const ControlOptions& options);
  /// A connection as CAF may have it: the socket itself where nothing needs protection, else the clear end of a relay.
  /// The socket is closed on failure.
  Result<int> protected_socket(int socket, bool server, std::shared_ptr<TlsOutcome> outcome = nullptr) const;

  const Security security;

private:
  mutable std::mutex mutex_;
  mutable std::unique_ptr<TlsRelay> relay_;  // Made when first needed; outlives the system.
};

struct Control::State {
  explicit State(const ControlOptions& options) : config(options), system(config) {}
  ControlConfig config;
  caf::actor_system system;
};

/// Publishes an actor. Fails with port_in_use, or invalid_config where keys are needed and missing.
Result<std::uint16_t> publish(caf::actor_system& system, const caf::actor& actor, const std::string& host, std::uint16_t port);

/// Connects to a published actor. Fails with unreachable, or timed_out when nobody speaks; each of the two parts takes
/// `timeout` at most. Blocks: not for actors' threads.
Result<caf::actor> connect(caf::actor_system& system, const std::string& host, std::uint16_t port, Duration timeout);

/// The address of this machine that packets to `host` leave from, as it stands in a tcp:// address: where whoever lives
/// there, or further on that way, reaches us. Sends nothing. Fails with unreachable.
Result<std::string> own_address_towards(const std::string& host, std::uint16_t port);

/// Asks an actor to end and waits until it has (a few seconds at most), so that what it uses may go.
void end_actor(caf::actor_system& system, caf::actor actor);

/// Turns a CAF error into ours.
Error error_of(caf::actor_system& system, const caf::error& error, const std::string& doing);

}  // namespace orrery::actors
