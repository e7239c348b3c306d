// Wraps any transport and does to its frames what networks do, by a seed: for tests and fault injection.
//
// Two ways, which may be used together:
//
//   FaultOptions   for all peers, at the sender, for tests under a hand-turned network: delays are counted in
//                  later frames, not in time, so one seed gives one order. A delayed frame is overtaken by up to
//                  `delay_frames_max` others.
//   LinkFaults     for one peer and direction, in time, set and healed while it runs:
//
//     send ──▶ FaultOptions ──▶ LinkFaults out ──▶ inner ══════▶ peer
//     handler ◀───────────────── LinkFaults in ◀── inner ◀══════ peer
//
//     cut ─▶ drop ─▶ corrupt, truncate ─▶ duplicate ─▶ stall | rate, delay ─▶ reorder
//
// Frames that wait are handed on by a thread that exists only while some do; they keep their order, except those
// that `reorder` chose, which are held until later ones have passed. At most `waiting_frames_max` and about
// `waiting_bytes_max` wait per peer and direction: a sender then hears pool_exhausted and later `writable`, and what comes in beyond is lost, as
// on a wire with full buffers. A frame that the inner transport has no room for is tried again.
//
// Cost without faults: a mutex per frame and direction.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "base/clock.hpp"
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

/// Seen from this process.
enum class LinkDirection : std::uint8_t { out, in, both };

/// What one direction of a link does to frames. Probabilities per frame, 0 to 1.
struct LinkFaults {
  std::uint64_t seed = 1;
  bool cut = false;    // Everything is lost.
  bool stall = false;  // Everything waits, and goes on in order when this is healed.
  double drop = 0;
  double duplicate = 0;
  double corrupt = 0;   // One bit of the header or of a copy of the payload.
  double truncate = 0;  // A part of the payload's end is missing; of the header's, when there is no payload.
  double reorder = 0;   // Held until `reorder_hold` later.
  Duration reorder_hold = std::chrono::milliseconds(5);
  Duration delay{};        // Of those that `delay_share` chooses...
  Duration jitter{};       // ...plus up to this.
  double delay_share = 1;  // A frame that is not chosen is not overtaken: it waits behind those that are.
  double bytes_per_second = 0;  // Header and payload; 0: as fast as it is.

  bool any() const {
    return cut || stall || drop > 0 || duplicate > 0 || corrupt > 0 || truncate > 0 || reorder > 0 ||
           ((delay > Duration::zero() || jitter > Duration::zero()) && delay_share > 0) || bytes_per_second > 0;
  }
};

/// What was done so far, in frames.
struct FaultCounts {
  std::uint64_t dropped = 0;
  std::uint64_t duplicated = 0;
  std::uint64_t corrupted = 0;
  std::uint64_t truncated = 0;
  std::uint64_t delayed = 0;  // Also by a rate.
  std::uint64_t reordered = 0;
  std::uint64_t stalled = 0;
  std::uint64_t cut = 0;
};

/// Threads: any.
class FaultyTransport final : public Transport {
public:
  static constexpr std::size_t waiting_frames_max = 4096;
  static constexpr std::uint64_t waiting_bytes_max = std::uint64_t{256} << 20;

  FaultyTransport(std::unique_ptr<Transport> inner, FaultOptions options);
  ~FaultyTransport() override;

  /// From now on, beginning with the seed.
  void set_faults(FaultOptions options);
  /// Loses everything to this peer until `heal`. Cut both ends for a full partition.
  void cut(PeerId peer);
  void heal(PeerId peer);

  /// Replaces what this direction does from now on; what waits goes on as it was told to, except that it goes on
  /// at once where a stall, delay or rate ends. The peer need not be known yet.
  void set_link(PeerId peer, LinkDirection direction, const LinkFaults& faults);
  void heal_link(PeerId peer, LinkDirection direction) { set_link(peer, direction, {}); }
  /// All peers, both directions, and FaultOptions.
  void heal_all();
  LinkFaults link(PeerId peer, LinkDirection out_or_in) const;

  FaultCounts counts() const;
  /// Frames that wait now.
  std::size_t waiting() const;

  void start(TransportHandlers handlers) override;
  void close() override;
  PeerId self() const override;
  std::string address() const override;
  Status add_peer(PeerId peer, const std::string& address) override;
  void remove_peer(PeerId peer) override;
  Status send(PeerId peer, const HeaderBytes& header, Shard payload) override;
  TransportStatistics statistics() const override;

  // Frames that may be damaged here have checksums: `unchecked` stays false, also for what comes.
  std::optional<Shard> stage(PeerId peer, const Shard& payload) override;
  bool helps(PeerId peer) const override;
  void help(Duration longest) override;
  void wake_helper() override;

private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace orrery::protocol
