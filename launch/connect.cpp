#include "launch/connect.hpp"

#include "launch/registry.hpp"
#include "launch/security.hpp"

namespace orrery::launch {

Result<Connection> connect_to(const ConnectArguments& arguments) {
  if (arguments.cluster.find(':') != std::string::npos) return connect_to(arguments.cluster, arguments.security);
  ORRERY_TRY(found, find_cluster(arguments.cluster));
  auto security = found.security;
  if (!arguments.security.keys.empty()) security.keys = arguments.security.keys;
  return connect_to(found.address, security);
}

Result<Connection> connect_to(const std::string& address, const topology::SecuritySpec& security) {
  ORRERY_TRY(where, actors::parse_address(address));
  actors::ControlOptions options;
  ORRERY_TRY(keys, security_of(security, "client"));
  options.security = std::move(keys);
  Connection connection;
  connection.control = std::make_unique<actors::Control>(options);
  ORRERY_TRY(client, actors::Client::connect(*connection.control, where.host, where.port));
  connection.client = std::move(client);
  return connection;
}

}  // namespace orrery::launch
