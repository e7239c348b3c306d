// Sends and receives named tensors between endpoints, wherever they live. One per OS process.
//
//   card actor ── send(key, bytes) ──▶ Exchange ── same process ──────────────▶ receive(key)
//                                         │                                        ▲
//                                      Channel (one per peer: order, acks, credit) │
//                                         │                                        │
//                                     Transport ════════ other process ════════ Exchange
//
// Messages are named by what they are (request, step, op, part, source, target), never matched by order of
// arrival. Large ones travel in chunks. Nothing is copied by this class (only what leaves the process and is small, up to 8 KiB):
// a receiver gets the network's buffers, or, inside one process, the sender's own bytes.
//
// Memory. Bytes that arrived and were not yet let go count against the sender's window. A full window stops
// the sender; nothing is lost. So that a full window never blocks the message that someone waits for, the
// window grows while a receive waits for that peer (or an endpoint is subscribed), up to `unclaimed_bytes_max`;
// a waiter whose deadline passes at that limit fails with pool_exhausted, which names the numbers. Hence: below
// the limit two processes never wait for each other's credit.
//
// See also: channel.hpp, transport.hpp; README.md, "The life of a shard".

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/buffer.hpp"
#include "base/clock.hpp"
#include "base/result.hpp"
#include "protocol/channel.hpp"
#include "protocol/message.hpp"
#include "protocol/transport.hpp"

namespace orrery::protocol {

struct ExchangeOptions {
  std::uint64_t cluster_id = 0;  // Frames of another cluster are refused.
  /// This life of the process; random, not 0. 0: drawn from the operating system.
  std::uint64_t session = 0;
  std::uint64_t chunk_bytes = std::uint64_t{1} << 20;           // 64 B to 16 MiB.
  std::uint64_t window_bytes = std::uint64_t{64} << 20;         // Per peer: received, not yet let go.
  std::uint64_t unclaimed_bytes_max = std::uint64_t{1} << 30;   // Per peer: the window's limit while someone waits.
  std::uint64_t send_bytes_max = std::uint64_t{4} << 30;        // Per peer: handed to `send`, not yet acked.
  Duration resend_after = std::chrono::milliseconds(100);       // Without any ack; doubles up to resend_after_max.
  Duration resend_after_max = std::chrono::milliseconds(1000);
  Duration probe_after = std::chrono::milliseconds(100);        // Silence of a peer that someone waits for.
  /// false: the owner calls `tick` (simulation, tests); else a thread of this class does.
  bool own_timer = true;
};

struct ExchangeStatistics {
  std::map<PeerId, PeerStatistics> peers;
  PeerStatistics gone;  // Summed: of peers that the routes no longer name.
  std::uint64_t receives_waiting = 0;  // Now: calls of `receive` that wait.
  std::uint64_t messages_local = 0;    // Handed over inside this process.
  std::uint64_t frames_unknown = 0;    // Not decodable, wrong version, wrong cluster, or of a process we do not know.
};

/// A process that somebody here waits for, and that says nothing, not even to probes.
struct SilentPeer {
  PeerId peer = 0;
  Duration silence{};
  std::string waiting_for;  // text_of the message that was waited for longest.
};

/// Threads: any, for all functions.
/// Ownership: bytes handed to `send` stay borrowed (their Shard alive) until they were copied or the remote process acknowledged
///            them, a local receiver let go of them, or the epoch ended (and the transport noticed that a silent
///            peer is gone: zmq_transport.hpp). Shards are let go outside of locks.
class Exchange {
public:
  /// Starts the transport. Fails with usage if an option is out of range. `clock` must outlive this object.
  static Result<std::unique_ptr<Exchange>> create(ExchangeOptions options, std::unique_ptr<Transport> transport,
                                                  const Clock& clock);
  /// Fails all waiters with cancelled and closes the transport. Nobody may call in meanwhile or after.
  ~Exchange();

  PeerId self() const;
  /// Where other processes reach this one.
  std::string address() const;
  /// Makes another process known; it may come up later, or again at another address. Fails with invalid_config.
  Status add_peer(PeerId peer, const std::string& address);

  /// Begins epoch `epoch`: which process each endpoint lives in, this one's own endpoints included. All
  /// messages of former epochs are dropped and their waiters fail with stale_epoch; failures are forgiven and
  /// forgotten requests may come again. With the present epoch and digest it only replaces the routes (a client
  /// joins or leaves). Peers that the routes do not name are let go of, with all that waits for them; add_peer makes
  /// them known again. Fails with stale_epoch when the epoch is lower, with version_mismatch when the digest differs.
  Status set_routes(std::uint64_t epoch, std::uint64_t plan_digest, std::map<EndpointId, PeerId> routes);
  std::uint64_t epoch() const;

  /// Hands a message over; returns at once. `bytes.size()` must be that of the shape. Fails with not_found for
  /// an endpoint without route, with the sticky error of a failed one, with pool_exhausted beyond send_bytes_max.
  Status send(const MessageKey& key, DType dtype, Shape shape, Shard bytes);

  /// Waits for a message; each is received once. Fails with timed_out at `deadline` ("card 3 did not deliver
  /// op 17 of step 12, request 4; last heard 240 ms ago") or then with pool_exhausted (see above); at once with
  /// stale_epoch, cancelled (forget), the source's sticky error, not_found (no route), or out_of_step if another
  /// thread waits for the same message.
  Result<Message> receive(const MessageKey& key, Time deadline);
  /// The message if it is complete already. Otherwise nothing, and until it came it counts as waited for.
  std::optional<Message> try_receive(const MessageKey& key);

  /// From now on messages to `target` go to `callback`, in order of completion, instead of being kept for
  /// `receive`; what has arrived is handed over at once. Called on the transport's thread or, for local
  /// messages, the sender's; no lock is held. An empty callback ends it (one call may still be under way).
  using Callback = std::function<void(const MessageKey&, Message)>;
  void subscribe(EndpointId target, Callback callback);

  /// Ends a request within this epoch: stored messages are dropped, those that still come too, and waiters
  /// fail with cancelled.
  void forget(std::uint64_t request);
  /// Sticky until the next epoch: whoever waits for, or sends to, this endpoint gets `error`. Messages that
  /// arrived completely can still be received. A process that came back to life fails its endpoints by itself.
  void fail(EndpointId endpoint, Error error);

  ExchangeStatistics statistics() const;
  /// When the last valid frame of this process came; nothing before the first one.
  std::optional<Time> last_heard(PeerId peer) const;

  /// Processes that a `receive` or `try_receive` has been waiting for, and that have been silent, for at least `limit`.
  std::vector<SilentPeer> silent_peers(Duration limit) const;

  /// Resends, probes and grants that are due; returns when to call again. Only with own_timer == false.
  Time tick();

private:
  struct State;
  explicit Exchange(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::protocol
