// Wraps any transport and does to its frames what networks do, by a seed: for tests and fault injection.
//
// Faults happen at the sender. Delays are counted in later frames, not in time, so one seed gives one order
// under a hand-turned network; a delayed frame is overtaken by up to `delay_frames_max` others.

#pragma once

#include <cstdint>
#include <memory>

#include "protocol/transport.hpp"

namespace orrery::protocol {

/// Probabilities per frame, 0 to 1.
struct FaultOptions {
  std::uint64_t seed = 1;
  double drop = 0;
  double duplicate = 0;
  double corrupt = 0;  // One bit of the header or of a copy of the payload.
  double delay = 0;
  std::uint32_t delay_frames_max = 8;
};

/// What was done so far, in frames.
struct FaultCounts {
  std::uint64_t dropped = 0;
  std::uint64_t duplicated = 0;
  std::uint64_t corrupted = 0;
  std::uint64_t delayed = 0;
  std::uint64_t cut = 0;
};

/// Threads: any.
class FaultyTransport final : public Transport {
public:
  FaultyTransport(std::unique_ptr<Transport> inner, FaultOptions options);
  ~FaultyTransport() override;

  /// From now on, beginning with the seed.
  void set_faults(FaultOptions options);
  /// Loses everything to this peer until `heal`. Cut both ends for a full partition.
  void cut(PeerId peer);
  void heal(PeerId peer);
  FaultCounts counts() const;

  void start(TransportHandlers handlers) override;
  void close() override;
  PeerId self() const override;
  std::string address() const override;
  Status add_peer(PeerId peer, const std::string& address) override;
  void remove_peer(PeerId peer) override;
  Status send(PeerId peer, const HeaderBytes& header, Shard payload) override;
  TransportStatistics statistics() const override;

private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace orrery::protocol
