// The transport whose network is a queue that the test turns by hand: no thread, no clock, same order always.

#pragma once

#include <cstddef>
#include <memory>

#include "protocol/transport.hpp"

namespace orrery::protocol {

/// The network. Threads: one; `deliver` runs the handlers.
class LoopbackNetwork {
public:
  LoopbackNetwork();
  ~LoopbackNetwork();
  /// `queue_frames` bounds each (sender, receiver) pair. The network must outlive its transports. A second
  /// transport with the same id takes the first one's place.
  std::unique_ptr<Transport> make_transport(PeerId self, std::uint32_t queue_frames = 64);
  /// Delivers the oldest frame or hint; false when there is none.
  bool deliver_one();
  /// Delivers until nothing is left; returns how many. New frames that handlers send are delivered too.
  std::size_t deliver_all();

  struct State;

private:
  std::shared_ptr<State> state_;
};

}  // namespace orrery::protocol
