// Makes a lossy transport reliable, for one pair of processes and one epoch. Pure: no threads, no sockets; it
// is handed frames and `now`, and says which frame to send.
//
//   queue(message) ──▶ chunks ──▶ next() ─ ─ ─ transport ─ ─ ─▶ on_frame() ──▶ chunk for the exchange
//                        ▲                                          │
//                        └── kept until acked ◀─ ─ ─ acks ─ ─ ─ ─ ─ ┘
//
// Order     Every data frame has a sequence number. Chunks say where they belong, so a frame that overtook
//           another is used at once; a repeated one is dropped by its number. No reorder buffer is needed.
// Resend    A frame is sent again when three later ones were acked before it, or when nothing at all was acked for
//           `resend_after` (doubling up to `resend_after_max`). After silence one frame is tried first, then
//           twice as many with every answer, so a slow link is never flooded with repeats.
// Credit    The receiver grants bytes, cumulatively. A frame counts as its payload + 256 until the last owner lets
//           go of its Shard. The sender stops when it has used up its grant; it may overshoot by one frame, so
//           any window can carry any chunk. While `demand` is set (someone waits for this peer) the receiver grants
//           a further window beyond all that has come, up to `unclaimed_bytes_max`.
// Sessions  hello frames tell each side the other's life. When the peer's life changes within an epoch, what it owed
//           and was owed is lost: the channel says so once and carries nothing any more.
//
// Cost: two small map-free updates per frame; one allocation per received chunk (the Shard that returns credit).
// See also: orrery.capnp for the fields, exchange.hpp for what stands above.

#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/buffer.hpp"
#include "base/clock.hpp"
#include "base/result.hpp"
#include "protocol/bell.hpp"
#include "protocol/frame.hpp"

namespace orrery::protocol {

struct ChannelOptions {
  std::uint64_t window_bytes = std::uint64_t{64} << 20;
  std::uint64_t unclaimed_bytes_max = std::uint64_t{1} << 30;
  Duration resend_after = std::chrono::milliseconds(100);
  Duration resend_after_max = std::chrono::milliseconds(1000);
  Duration probe_after = std::chrono::milliseconds(100);
  Duration ack_delay = std::chrono::milliseconds(2);  // For a chunk in the middle of a message.
  Duration small_ack_delay = std::chrono::microseconds(500);  // For a small message: an answer mostly takes the ack along.
};

/// Nobody waits for the memory of messages up to this size: Exchange::send copies them.
constexpr std::uint64_t small_message_bytes = 8192;

/// Who talks to whom, of which plan.
struct ChannelIdentity {
  std::uint64_t cluster_id = 0;
  std::uint64_t epoch = 0;
  std::uint64_t plan_digest = 0;
  PeerId self = 0;
  PeerId peer = 0;
  std::uint64_t session = 1;  // This process's life.
};

/// A message to send, cut into chunks of `chunk_bytes` (the last one shorter).
struct OutgoingMessage {
  MessageKey key;
  DType dtype = DType::f32;
  Shape shape;
  Shard bytes;
  std::uint64_t chunk_bytes = 1;
  // xxh3 of each chunk; one (of nothing) for an empty message. 0: left out, as long as it passes no wire.
  std::vector<std::uint64_t> checksums = {};
};

/// Traffic with one peer since start.
struct PeerStatistics {
  std::uint64_t frames_sent = 0;       // Data frames, first transmissions.
  std::uint64_t bytes_sent = 0;        // Their payloads.
  std::uint64_t frames_resent = 0;
  std::uint64_t frames_received = 0;   // Data frames that were used.
  std::uint64_t bytes_received = 0;
  std::uint64_t frames_duplicate = 0;  // Arrived again; dropped.
  std::uint64_t frames_bad = 0;        // Failed a check; dropped, and resent by the peer.
  std::uint64_t frames_stale = 0;      // Of a former epoch or life; dropped.
  std::uint64_t unclaimed_bytes = 0;   // Now: received, not yet let go.
  std::uint64_t unacked_bytes = 0;     // Now: sent or queued, not yet acked.
};

/// Bytes that consumers let go of; shared with every Shard handed out, so it outlives the channel.
struct CreditAccount {
  std::atomic<std::uint64_t> released{0};
  std::atomic<std::uint64_t> ring_at{~std::uint64_t{0}};  // Ring the bell when `released` reaches this.
  std::shared_ptr<Bell> bell;
};

/// Ownership: payload Shards that are no longer needed are collected; `take_released` hands them over, so that
///            the owner lets go of them where no lock is held.
/// Threads:   one at a time; only the returned Shards may be let go of anywhere.
class Channel {
public:
  /// `statistics` and `bell` (rung when a new grant should be announced) outlive the channel; bell may be null.
  Channel(ChannelOptions options, ChannelIdentity identity, PeerStatistics& statistics, std::shared_ptr<Bell> bell);

  /// Precondition: the checksums fit the chunks.
  void queue(OutgoingMessage message);

  /// The frame to send now; false when nothing is due. Ask again after `sent`. The header's vectors are reused.
  bool next(Time now, FrameHeader& header, Shard& payload);
  /// The transport took the frame of the last `next`. Without it the same frame is offered again.
  void sent(Time now);
  /// When `next` may have something although nothing else happened.
  Time next_due(Time now) const;

  enum class Event {
    nothing,         // An answer may be due: call `next`.
    chunk,           // A data frame to use: `payload` was replaced by a Shard that returns credit.
    peer_restarted,  // Once. The channel is lost.
    refused,         // Once. `refusal()` says why. The channel is lost.
  };
  /// Takes a decoded frame whose payload checksum was checked.
  Event on_frame(const FrameHeader& header, Shard& payload, Time now);

  /// The connection came (back) up: say hello again.
  void on_connected() { hello_due_ = true; }
  /// `demand`: let the window grow. `probe`: ask a silent peer for a sign of life.
  void set_demand(bool demand, bool probe) {
    demand_ = demand;
    probe_ = probe;
  }
  /// True when the peer may send nothing more although someone waits: `unclaimed_bytes_max` is reached.
  bool exhausted() const;
  std::uint64_t unclaimed_bytes() const { return received_charge_ - account_->released.load(); }
  std::uint64_t unacked_bytes() const { return unacked_bytes_; }
  bool idle() const { return flight_.empty() && queue_.empty(); }
  /// Both sides know each other's session.
  bool established() const { return established_; }
  const std::optional<Error>& refusal() const { return refusal_; }
  std::vector<Shard> take_released() { return std::move(released_shards_); }

private:
  using MessagePointer = std::shared_ptr<const OutgoingMessage>;
  struct Flight {
    MessagePointer message;
    std::uint64_t chunk = 0;
    std::uint64_t transmission = 0;  // Number of its latest transmission.
    bool due = false;                // To be sent again.
    bool acked = false;
  };
  struct Queued {
    MessagePointer message;
    std::uint64_t next_chunk = 0;
  };
  enum class Offer { none, refusal, hello, resend, data, ack, probe };

  static std::uint64_t charge_of(std::uint64_t payload_bytes) { return payload_bytes + 256; }
  static std::uint64_t chunk_size(const OutgoingMessage& message, std::uint64_t chunk);
  Duration backed_off(std::uint32_t tries) const;
  bool may_send_new() const;
  std::optional<std::size_t> first_due() const;
  void fill(FrameKind kind, FrameHeader& header);
  void fill_chunk(const OutgoingMessage& message, std::uint64_t chunk, std::uint64_t sequence, FrameHeader& header,
                  Shard& payload) const;
  void update_grant();
  void check_resend_timer(Time now);
  void on_ack(const FrameHeader& header, Time now);
  bool settle(std::size_t index, std::uint64_t& newest);
  Event on_data(const FrameHeader& header, Shard& payload, Time now);
  void refuse(ErrorCode code, std::string text);
  Event lose(Event why);

  const ChannelOptions options_;
  const ChannelIdentity identity_;
  PeerStatistics& statistics_;
  const std::shared_ptr<Bell> bell_;
  std::vector<Shard> released_shards_;

  // Handshake.
  std::uint64_t peer_session_ = 0;
  bool established_ = false;
  bool lost_ = false;
  bool hello_due_ = true;
  Time hello_at_{};
  std::uint32_t hello_tries_ = 0;
  std::optional<Error> refusal_;        // What the peer answered.
  std::optional<Error> refusal_to_send_;
  std::uint64_t refused_session_ = 0;

  // As a sender.
  std::deque<Queued> queue_;
  std::deque<Flight> flight_;           // flight_[i] has sequence flight_base_ + i.
  std::uint64_t flight_base_ = 1;
  std::uint64_t sent_charge_ = 0;
  std::uint64_t peer_granted_ = 0;
  std::uint64_t transmissions_ = 0;
  std::uint64_t unacked_bytes_ = 0;
  std::uint64_t due_count_ = 0;
  std::uint64_t resend_allowance_ = 0;
  Time progress_at_{};
  std::uint32_t tries_ = 0;

  // As a receiver.
  std::uint64_t received_through_ = 0;
  std::set<std::uint64_t> received_after_;
  std::uint64_t received_charge_ = 0;
  std::uint64_t granted_;
  std::uint64_t announced_ = 0;
  std::shared_ptr<CreditAccount> account_;
  bool demand_ = false;
  bool probe_ = false;
  bool ack_due_ = false;
  std::optional<Time> ack_at_;
  std::uint32_t unacked_frames_ = 0;

  Time heard_at_{};
  Time probed_at_{};
  Offer offer_ = Offer::none;
  std::size_t offered_flight_ = 0;
};

}  // namespace orrery::protocol
