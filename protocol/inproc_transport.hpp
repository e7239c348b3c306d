// Several "processes" of the data plane inside one, joined by memory: for clusters on one machine without
// sockets, and for tests. Nothing is copied; the receiver reads the sender's bytes.
//
// Each transport has its own delivery thread, so a slow receiver delays nobody else.

#pragma once

#include <memory>

#include "protocol/transport.hpp"

namespace orrery::protocol {

/// The place where transports of one process meet. Threads: any. Outlived by none of its transports' peers:
/// transports share ownership.
class InprocHub;
std::shared_ptr<InprocHub> make_inproc_hub();

/// `queue_frames`: how many frames may wait at a receiver per sender before `send` says pool_exhausted.
/// A second transport with the same id takes the first one's place (a restarted peer). Addresses are ignored.
std::unique_ptr<Transport> make_inproc_transport(std::shared_ptr<InprocHub> hub, PeerId self,
                                                 std::uint32_t queue_frames = 64);

}  // namespace orrery::protocol
