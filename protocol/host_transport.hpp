// The transport of an OS process: what node processes, clients and benchmarks use, so that all take the same way.
//
//   automatic, shm   ZeroMQ at the given address; peers that turn out to live on the same host get their frames
//                    through shared memory (shm_transport.hpp), peer by peer, without being told
//   zmq              ZeroMQ only, tcp:// or ipc:// as the address says, also between processes of one host
//
// Which way the frames took is in Transport::statistics(): memory_frames_sent of frames_sent.

#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "protocol/zmq_transport.hpp"

namespace orrery::protocol {

enum class HostPath : std::uint8_t { automatic, shm, zmq };

struct HostTransportOptions {
  /// Of the ZeroMQ transport: own number, address, keys. Peers are told this transport's `address()`.
  ZmqOptions wire = {};
  HostPath path = HostPath::automatic;
};

/// Fails as make_zmq_transport does, and, with `shm`, with io_failed where the system gives no shared memory;
/// `automatic` goes on without it.
Result<std::unique_ptr<Transport>> make_host_transport(const HostTransportOptions& options);

/// The address to bind for a transport named as on command lines and in cluster files: "auto", "shm" and "tcp" listen
/// at tcp://HOST:0, "ipc" at a socket in `folder` that only this user can enter; and the path that goes with it.
/// Fails with usage for another name.
Result<HostTransportOptions> host_transport_of(std::string_view name, PeerId self, const std::string& host,
                                               const std::string& folder);

}  // namespace orrery::protocol
