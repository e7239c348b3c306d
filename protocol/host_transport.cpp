#include "protocol/host_transport.hpp"

#include "base/log.hpp"
#include "protocol/shm_transport.hpp"

namespace orrery::protocol {

Result<std::unique_ptr<Transport>> make_host_transport(const HostTransportOptions& options) {
  ORRERY_TRY(transport, make_zmq_transport(options.wire));
  if (options.path == HostPath::zmq) return transport;
  auto shared = make_shm_transport(transport);
  if (shared.ok() || options.path == HostPath::shm) return shared;
  log_event(Level::info, "shm.not_used", {{"why", shared.error().message}});
  return transport;
}

Result<HostTransportOptions> host_transport_of(std::string_view name, PeerId self, const std::string& host,
                                               const std::string& folder) {
  HostTransportOptions options;
  options.wire.self = self;
  options.wire.bind = "tcp://" + host + ":0";
  if (name == "auto") return options;
  if (name == "shm") {
    options.path = HostPath::shm;
  } else if (name == "tcp") {
    options.path = HostPath::zmq;
  } else if (name == "ipc") {
    options.path = HostPath::zmq;
    options.wire.bind = "ipc://" + folder + "/" + std::to_string(self);
  } else {
    return Error{ErrorCode::usage, "'" + std::string(name) + "' is no transport", "write auto, shm, ipc or tcp"};
  }
  return options;
}

}  // namespace orrery::protocol
