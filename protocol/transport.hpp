// Moves frames between processes, as well as it can: the seam below all reliability.
//
// A frame is a small header and a payload. A transport may lose, repeat or reorder frames (ZeroMQ loses
// accepted ones when a connection breaks); it keeps a frame's two parts together and never mixes frames.
// Sequence numbers, resending, credits and epochs are in channel.hpp, above it.
//
//   loopback_transport  in memory, delivered when the test says so
//   inproc_transport    several "processes" inside one, joined by memory; no copies
//   zmq_transport       tcp:// and ipc://
//   shm_transport       wraps another: peers of this host get their frames through shared memory
//   faulty_transport    wraps any of them: drop, repeat, reorder, corrupt, cut
//
// All of them pass tests/conformance/transport_test.cpp. See also: README.md, "The life of a shard".

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "base/buffer.hpp"
#include "base/clock.hpp"
#include "base/result.hpp"
#include "protocol/message.hpp"

namespace orrery::protocol {

/// Part 1 of a frame, by value: headers are small, so no frame costs an allocation for its header.
class HeaderBytes {
public:
  static constexpr std::size_t capacity = 512;
  HeaderBytes() = default;
  /// Precondition: at most `capacity` bytes.
  explicit HeaderBytes(std::span<const std::byte> bytes) : size_(static_cast<std::uint16_t>(bytes.size())) {
    ORRERY_CHECK(bytes.size() <= capacity);
    if (!bytes.empty()) std::memcpy(bytes_.data(), bytes.data(), bytes.size());
  }
  std::span<const std::byte> bytes() const { return {bytes_.data(), size_}; }
  std::span<std::byte> bytes() { return {bytes_.data(), size_}; }

private:
  std::array<std::byte, capacity> bytes_;
  std::uint16_t size_ = 0;
};

/// What a transport thinks of a peer. Hints only: late, or never. Decisions rest on frames.
enum class PeerHint : std::uint8_t {
  up,        // A connection was made (again).
  down,      // The connection broke.
  writable,  // A send that was refused with pool_exhausted may succeed now.
};

/// Called on the transport's thread or on one inside `help`, one call at a time, never from inside `send`. A handler
/// may call `send`.
struct TransportHandlers {
  /// `header` lives as long as the call; `payload` as long as the Shard.
  std::function<void(PeerId from, std::span<const std::byte> header, Shard payload)> on_frame;
  std::function<void(PeerId peer, PeerHint hint)> on_hint;
  /// As on_frame, for a payload that is seen where the peer put it, in memory that only it can write: there was no
  /// wire on the way, and the sender may have left out the payload's checksum. Empty: peers hear that checksums are
  /// wanted, and on_frame is called.
  std::function<void(PeerId from, std::span<const std::byte> header, Shard payload)> on_memory_frame = {};
};

/// What the sender of a frame knows about it.
struct SendHints {
  bool quiet = false;        // Nobody waits for it: the peer may notice it a millisecond later.
  bool memory_only = false;  // Its payload has no checksum: through shared memory, or not at all (`unreachable`).
};

struct TransportStatistics {
  std::uint64_t frames_sent = 0;
  std::uint64_t frames_received = 0;
  std::uint64_t payload_bytes_sent = 0;
  std::uint64_t payload_bytes_received = 0;
  std::uint64_t frames_malformed = 0;  // Wrong number of parts, no sender, too long: dropped.
  std::uint64_t frames_foreign = 0;    // From a friend who used another friend's number: dropped.
  std::uint64_t handshakes_refused = 0;  // Strangers, and friends that took us for one: no frame came of it.
  // Of the above, those that went and came through shared memory.
  std::uint64_t memory_frames_sent = 0;
  std::uint64_t memory_frames_received = 0;
  std::uint64_t memory_bytes_sent = 0;
  std::uint64_t memory_bytes_received = 0;
};

/// Ownership: a payload Shard is let go once the transport no longer reads it, which says nothing about
///            delivery; after `close` all are.
/// Threads:   any, except that `start` comes first and `close` is not called from a handler.
class Transport {
public:
  virtual ~Transport() = default;

  /// Begins to deliver. Once.
  virtual void start(TransportHandlers handlers) = 0;
  /// Stops: no handler runs after it returns, frames on the way are lost, all Shards are let go. Idempotent.
  virtual void close() = 0;

  virtual PeerId self() const = 0;
  /// Where others reach this process: what they hand to `add_peer`.
  virtual std::string address() const = 0;

  /// Makes a peer reachable; connecting goes on in the background and is repeated until it succeeds. A known
  /// peer with another address moves there. Fails with invalid_config if the address cannot be read.
  virtual Status add_peer(PeerId peer, const std::string& address) = 0;
  /// Lets go of all that waits for the peer. Unknown peers are ignored.
  virtual void remove_peer(PeerId peer) = 0;

  /// Takes a frame for sending; never waits. Fails with pool_exhausted when the peer's queue is full (hint
  /// `writable` follows) or it is not connected (hint `up` follows; some transports lose the frame instead), and
  /// with unreachable for a peer that was not added; then nothing was kept. Frames are not kept for a peer that
  /// is gone: their payloads are let go of.
  virtual Status send(PeerId peer, const HeaderBytes& header, Shard payload) = 0;

  virtual Status send_hinted(PeerId peer, const HeaderBytes& header, Shard payload, SendHints hints) {
    if (hints.memory_only) return Error{ErrorCode::unreachable, "no memory is shared with process " + std::to_string(peer)};
    return send(peer, header, std::move(payload));
  }

  // --- Memory that is shared with a peer; transports that have none leave these as they are.

  /// The payload, copied to where `peer` can read it: `send` copies it, or parts of it, no more, also to other peers
  /// with whom memory is shared, and the original need not stay borrowed. Asked again for bytes that are still there,
  /// it copies nothing. Nothing when no memory is shared with the peer, room is short, or the payload is too small.
  virtual std::optional<Shard> stage(PeerId, const Shard&) { return std::nullopt; }
  /// True when frames to the peer pass no wire, and it takes payloads without checksums. May change at any time.
  virtual bool unchecked(PeerId) const { return false; }
  /// Whether a thread that waits for a frame of the peer should wait inside `help`.
  virtual bool helps(PeerId) const { return false; }
  /// Waits for frames in place of the transport's thread, which saves waking up two threads for one frame. Returns
  /// after handlers ran, after `wake_helper`, or after `longest`. One thread at a time; holds no lock meanwhile.
  virtual void help(Duration longest) { static_cast<void>(longest); }
  /// Ends a `help` that sleeps, or the next one. Safe under any lock.
  virtual void wake_helper() {}

  virtual TransportStatistics statistics() const = 0;
};

}  // namespace orrery::protocol
