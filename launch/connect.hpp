// From what a person calls a cluster to a client of it.

#pragma once

#include <memory>
#include <string>

#include "actors/client.hpp"
#include "base/result.hpp"
#include "launch/verb.hpp"
#include "topology/cluster_spec.hpp"

namespace orrery::launch {

struct ConnectArguments {
  std::string cluster;              // HOST:PORT, the name of one that runs on this machine, or empty for the only one.
  topology::SecuritySpec security;  // From flags; a named cluster has its own, of which flags replace the keys only.
};

/// A client with the control plane that it lives on.
struct Connection {
  std::unique_ptr<actors::Control> control;
  std::unique_ptr<actors::Client> client;  // Last: goes first.
  actors::Client* operator->() const { return client.get(); }
};

/// Fails with not_found or invalid_config (keys), and as find_cluster and Client::connect do.
Result<Connection> connect_to(const ConnectArguments& arguments);
/// The same for an address and what the cluster file, or the registry, says of keys.
Result<Connection> connect_to(const std::string& address, const topology::SecuritySpec& security);

}  // namespace orrery::launch
