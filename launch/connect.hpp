// From what a person calls a cluster to a client of it.

#pragma once

#include <memory>
#include <string>

#include "actors/client.hpp"
#include "base/result.hpp"
#include "launch/registry.hpp"

namespace orrery::launch {

/// `cluster`: HOST:PORT, the name of one that runs on this machine, or empty for the only one.
inline Result<std::unique_ptr<actors::Client>> connect_to(actors::Control& control, const std::string& cluster) {
  auto address = cluster;
  if (cluster.find(':') == std::string::npos) {
    ORRERY_TRY(found, find_cluster(cluster));
    address = found.address;
  }
  ORRERY_TRY(where, actors::parse_address(address));
  return actors::Client::connect(control, where.host, where.port);
}

}  // namespace orrery::launch
