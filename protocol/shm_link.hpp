// Two processes of one host that read each other's segments, and the pool that one of them shows payloads from.
//
//   ShmPool   gives out runs of the own pool ("slots"), and takes one back when nobody shows it any more: neither a
//             Shard of this process nor a peer that was told of it
//   ShmLink   one peer: writes records into the own lane, reads the peer's, lets go of what was read
//
// No threads and no waiting here: shm_transport.hpp decides when.

#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "base/buffer.hpp"
#include "protocol/shm_segment.hpp"

namespace orrery::protocol {

class ShmLink;

/// The lanes of the own segment that are in use.
class ShmLanes {
public:
  explicit ShmLanes(std::shared_ptr<ShmHome> home) : home_(std::move(home)) {}
  /// A lane as new, with a life of its own; nothing when all are in use.
  std::optional<ShmPlace> take();
  void give_back(const ShmPlace& place);

private:
  const std::shared_ptr<ShmHome> home_;
  std::mutex mutex_;
  std::set<std::uint32_t> used_;
  std::uint64_t lives_ = 0;
};

/// Threads: any.
/// Ownership: slots that Shards of this process show keep the pool alive.
class ShmPool : public std::enable_shared_from_this<ShmPool> {
public:
  explicit ShmPool(std::shared_ptr<ShmHome> home);

  /// A copy of `payload` in the pool; nothing without room. With `remember` the same bytes are not copied again, for
  /// other peers, until `forget` or until the copy is shown no more; so long they stay borrowed.
  std::optional<Shard> copy_of(const Shard& payload, bool remember);
  void forget();
  /// The slot and offset of bytes that this pool shows; nothing for other bytes.
  struct Place {
    std::uint32_t slot = 0;
    std::uint64_t offset = 0;
  };
  std::optional<Place> find(std::span<const std::byte> bytes) const;

  /// A peer was told of bytes of a slot: it stays until the peer let go of it.
  void lend(std::uint32_t slot, const std::shared_ptr<ShmLink>& to, std::uint64_t bytes);
  /// Takes back what all have let go of.
  void reclaim();
  /// Bytes that are in use, by anybody.
  std::uint64_t used_bytes() const;
  /// Whether so many bytes could be copied, now.
  bool fits(std::uint64_t bytes) const;

private:
  struct Reader {
    std::shared_ptr<ShmLink> link;
    std::uint64_t bytes = 0;
  };
  struct Slot {
    std::uint64_t offset = 0, bytes = 0;
    bool shown = false;  // By a Shard of this process.
    std::vector<Reader> readers;
  };
  // The original stays borrowed as long as the copy is shown, so its bytes are still those that were copied.
  struct Recent {
    std::uint32_t slot = 0;
    Shard original;
    std::weak_ptr<const void> copy;
    std::span<const std::byte> bytes;
  };
  class Shown;

  std::optional<std::uint32_t> allocate(std::uint64_t bytes);
  bool settle(Slot& slot);
  void reclaim_some(std::size_t count);
  void free_slot(std::map<std::uint32_t, Slot>::iterator slot);
  void hide(std::uint32_t slot);

  const std::shared_ptr<ShmHome> home_;
  mutable std::mutex mutex_;
  std::map<std::uint64_t, std::uint64_t> free_;         // Offset to bytes; neighbours are joined.
  std::map<std::uint32_t, Slot> slots_;
  std::map<std::uint64_t, std::uint32_t> by_offset_;
  std::vector<std::uint32_t> numbers_;                  // Slot numbers that are free.
  std::deque<std::uint32_t> lent_;                      // Slots that peers were told of, oldest first.
  std::deque<Recent> recent_;
  std::atomic<bool> remembers_{false};
  std::uint64_t used_ = 0;
};

/// What `read` found.
struct ShmArrival {
  HeaderBytes header;
  Shard payload;
};

/// Threads: the sending half and the reading half each one at a time; Shards that were read may be let go of anywhere.
class ShmLink : public std::enable_shared_from_this<ShmLink> {
public:
  /// `own` was taken from `lanes` and goes back with this object.
  ShmLink(std::shared_ptr<ShmHome> home, std::shared_ptr<ShmLanes> lanes, ShmPlace own,
          std::shared_ptr<ShmNeighbour> neighbour, ShmPlace theirs);
  ~ShmLink();

  const ShmPlace& own() const { return own_; }
  const ShmPlace& theirs() const { return theirs_; }
  const ShmNeighbour& neighbour() const { return *neighbour_; }
  /// The own lane, for another link, if no frame has gone either way; then this one is at its end.
  std::optional<ShmPlace> give_up_lane();

  // --- The sending half.

  enum class Written { yes, full, gone };
  /// Bytes of the pool, or a payload of at most shm_inline_bytes that is copied into the ring.
  Written write(const HeaderBytes& header, std::span<const std::byte> payload, std::optional<ShmPool::Place> place,
                std::uint64_t after, bool crowded, ShmPool& pool);
  /// Whether the ring has room for any frame, now.
  bool writable();
  /// Asks the peer to ring when it has read or let go of something.
  void want_room(bool want);
  /// Wakes up whoever listens at the other side, if somebody sleeps who should know.
  void ring(bool quiet) const;
  /// Bytes that the peer was told of and has not let go of.
  std::uint64_t held_bytes() const { return held_bytes_; }
  /// Nothing is sent any more; what was sent stays until the peer has let go of it, or died.
  void close() { closed_ = true; }

  // --- The reading half.

  /// The peer has written what was not read.
  bool waiting() const;
  enum class Read { nothing, frame, held, broken };
  /// Takes the next frame, unless it comes after more than `inner_frames` frames of the inner transport.
  Read read(std::uint64_t inner_frames, ShmArrival& arrival);
  /// Reads no more; tells the peer so, for whom what was not read is free again.
  void detach();

private:
  friend class ShmPool;
  friend class ShmView;
  ShmLane& lane() const { return home_->head().lanes[own_.lane]; }
  const ShmLane& their_lane() const { return neighbour_->head().lanes[theirs_.lane]; }
  /// Under the pool's lock: the peer has let go of all frames that showed the slot.
  bool let_go(std::uint32_t slot);
  void release(std::uint32_t slot) const;
  void ring_if_wanted() const;
  std::optional<std::uint64_t> room();

  const std::shared_ptr<ShmHome> home_;
  const std::shared_ptr<ShmLanes> lanes_;
  const ShmPlace own_, theirs_;
  const std::shared_ptr<ShmNeighbour> neighbour_;

  // The sending half.
  struct InRing {
    std::uint64_t position;
    std::uint32_t slot;
  };
  std::uint64_t written_ = 0;
  std::deque<InRing> in_ring_;            // Records that show slots, as far as they may be unread. Under the pool's lock.
  std::vector<std::uint32_t> lent_;       // Per slot: frames sent, ever. Under the pool's lock.
  std::atomic<std::uint64_t> held_bytes_{0};
  bool recalled_ = false;                 // What the peer never took was counted back.
  std::atomic<bool> closed_{false};

  // The reading half.
  std::uint64_t read_ = 0;
  bool detached_ = false;
  bool has_lane_ = true;
};

}  // namespace orrery::protocol
