// The transport over ZeroMQ: tcp:// between hosts, ipc:// on one.
//
//   others' DEALERs ──▶ ROUTER (bound, one) ─┐
//                                            ├─ pump: a thread, or a helper ──▶ handlers
//   send, queues ─────▶ DEALER (one per peer)┘
//
// `send` hands the frame to ZeroMQ on the caller's thread; when ZeroMQ's queue is full, to a bounded queue that the pump
// empties. Whoever waits in `help` is the pump meanwhile, else this transport's own thread: so a message wakes up ZeroMQ's
// thread and the one that wants it. Sockets pass from thread to thread under locks. The payload is not copied on either
// side (but for received ones of at most 8 KiB): ZeroMQ reads the Shard's memory and lets go of it; a received message is
// kept alive by the Shard that shows its bytes. A peer that vanishes is noticed at once when its system says so, else
// after 1.5 s of silence; what was queued for it is let go of then.
//
// With keys (base/keys.hpp) and an address that others can reach, every connection is encrypted and both ends prove who
// they are (CURVE). `address()` then ends in "#KEY", our public key, and `add_peer` wants such an address: from then on
// frames of that peer's number are taken from that key's connections only. Whoever hands addresses around (the
// coordinator, over the control plane) thereby says who is who; the list of allowed keys says who may take part at all.
// Without keys such an address is refused, unless the options say `insecure`.
//
// Does not: order control before bulk.

#pragma once

#include <memory>
#include <string>

#include "base/keys.hpp"
#include "protocol/transport.hpp"

namespace orrery::protocol {

struct ZmqOptions {
  PeerId self = 0;
  /// "tcp://ADDRESS:PORT" (port 0: any free one; `address()` tells), or "ipc://PATH": a socket file in a folder
  /// that only this user can enter; it is removed at close.
  std::string bind = "tcp://127.0.0.1:0";
  /// What peers are told instead of a wildcard or private bind address ("tcp://node1"); the port is appended.
  /// Empty: the bind address.
  std::string advertise = {};
  std::uint64_t payload_bytes_max = std::uint64_t{16} << 20;  // Longer parts end the sender's connection.
  std::uint32_t queue_frames = 16;                            // Per peer, in our queue and again in ZeroMQ's.
  Security security = {};
};

/// Binds. Fails with port_in_use ("tcp://0.0.0.0:5801 is in use by another program"), invalid_config for an
/// address that cannot be read or would need keys, io_failed otherwise.
Result<std::unique_ptr<Transport>> make_zmq_transport(const ZmqOptions& options);

}  // namespace orrery::protocol
