// The memory that a process shows to the other processes of its host, and how one finds and checks another's.
//
// A process has two files in memory (memfd: no name, nothing is left behind by a kill):
//
//   segment   written by its owner only, sealed so that not even a wild peer can write or shrink it; the others map it
//             for reading. Head, one lane per peer, and the pool of payloads:
//
//               head │ lane 0: what I send to a peer (ring of records), how far I read what it sends, what I let go of
//                    │ lane 1: the same for another peer ...
//                    │ pool: payloads too long for a ring
//
//   bell      one number that everybody may change: the futex that its owner sleeps on
//
// A frame from A to B is a record in A's lane for B; B says in its own lane for A how far it has read. So every word
// has one writer. Whoever reads another's words takes a copy and checks it before it is used.
//
// Others find the files as /proc/PID/fd/N and know them by a random token in the head; PID, N and the token come in an
// Introduction, over a connection that says who sent it.
//
// Cost: a page of head and about 160 KiB per peer that is talked to, and as much of the pool as was ever used at once.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "protocol/message.hpp"
#include "protocol/transport.hpp"

namespace orrery::protocol {

inline constexpr std::uint32_t shm_lanes = 128;
inline constexpr std::uint64_t shm_ring_bytes = std::uint64_t{128} << 10;
inline constexpr std::uint32_t shm_slots = 4096;
/// Payloads up to here lie in the ring; the receiver copies them.
inline constexpr std::uint64_t shm_inline_bytes = 8192;

using ShmToken = std::array<std::uint64_t, 2>;

/// How whoever has something for the owner makes sure that it is seen.
enum class ShmListening : std::uint32_t {
  awake = 0,           // Somebody looks, or soon will: no need to ring.
  helper = 1,          // A thread sleeps in `help`, shortly: ring for everything that is waited for.
  patient_helper = 2,  // It sleeps for long: ring it for everything.
  thread = 3,          // Only the transport's thread sleeps, for long: ring it for everything.
};

struct ShmLane {
  alignas(64) std::atomic<std::uint64_t> life;  // Changes whenever the lane is given to another use; 0: to none.
  // What the owner sends.
  std::atomic<std::uint64_t> written;  // Bytes of records, ever.
  std::atomic<std::uint32_t> wants_room;           // The owner was refused: ring it when you have read or let go.
  // What the owner has received.
  alignas(64) std::atomic<std::uint64_t> read;  // Bytes of records, ever.
  std::atomic<std::uint32_t> detached;          // It reads no more; what lies beyond `read` was not taken.
  alignas(64) std::array<std::atomic<std::uint32_t>, shm_slots> released;  // Per slot of the peer: frames let go of, ever.
  alignas(4096) std::array<std::byte, shm_ring_bytes> ring;
};

struct ShmHead {
  std::uint64_t magic;
  std::uint64_t version;
  ShmToken token;
  std::uint64_t bytes;       // Of the file.
  std::uint64_t pool_begin;  // Offset of the pool.
  std::uint64_t pool_bytes;
  alignas(64) std::atomic<std::uint32_t> listening;  // ShmListening
  alignas(4096) std::array<ShmLane, shm_lanes> lanes;
};

/// A frame in a ring. Records are multiples of 64 bytes, begin at such, and do not wrap around.
struct ShmRecord {
  std::uint32_t record_bytes = 0;  // All of it: this, the header, the payload if it lies here, padding.
  std::uint16_t header_bytes = 0;
  std::uint16_t kind = 0;          // ShmRecordKind
  std::uint32_t slot = 0;
  std::uint32_t crowded = 0;       // Copy the payload and let go at once: the sender runs out of room.
  std::uint64_t offset = 0;        // Of the payload in the sender's pool.
  std::uint64_t payload_bytes = 0;
  std::uint64_t after = 0;         // Frames of the inner transport that come before this one.
  std::uint64_t position = 0;      // Bytes written before this record.
  std::uint64_t check = 0;         // Of all the above.
  bool operator==(const ShmRecord&) const = default;
};
static_assert(sizeof(ShmRecord) <= 64);

enum class ShmRecordKind : std::uint16_t { filler = 1, in_ring = 2, in_pool = 3 };

std::uint64_t check_of(const ShmRecord& record, const ShmToken& token, std::uint64_t lane_life);

/// One use of one lane of one process.
struct ShmPlace {
  ShmToken token{};
  std::uint64_t life = 0;
  std::uint32_t lane = 0;
  std::uint32_t padding = 0;
  bool operator==(const ShmPlace&) const = default;
};

/// What a process tells a peer about itself, over the inner transport, instead of a frame's header.
struct ShmIntroduction {
  static constexpr std::uint64_t magic_word = 0x31304d48535252ffULL;  // No frame header begins like that.
  std::uint64_t magic = magic_word;
  std::array<std::uint64_t, 2> boot{};  // Of the kernel: the same host or not.
  std::uint32_t pid = 0;
  std::int32_t segment_fd = -1;
  std::int32_t bell_fd = -1;
  std::uint32_t takes_unchecked = 0;  // Payloads without checksums are welcome.
  ShmPlace own;                       // The sender's lane for the one this is told to.
  ShmPlace known;                     // The lane that the sender reads already; empty: none.
  std::uint64_t inner_frames = 0;     // That the sender sent over the inner transport before this.
  std::uint64_t wants_answer = 0;     // The sender does not know yet that it is read.
};

/// Nothing when these are not the bytes of an introduction.
std::optional<ShmIntroduction> parse_introduction(std::span<const std::byte> header);

/// Random id of this boot of the kernel; zero where the system does not tell.
std::array<std::uint64_t, 2> boot_id();

/// A futex that several processes see. Bits choose which of the sleepers a ring wakes up.
class ShmBell {
public:
  static constexpr std::uint32_t helper_bit = 1, thread_bit = 2;
  explicit ShmBell(std::atomic<std::uint32_t>* word) : word_(word) {}
  std::uint32_t value() const { return word_->load(std::memory_order_seq_cst); }
  void ring(std::uint32_t bits) const;
  /// Until rung since `seen` was read, or for `longest`. May also return for no reason.
  void sleep(std::uint32_t seen, std::uint32_t bits, Duration longest) const;

private:
  std::atomic<std::uint32_t>* word_;
};

/// This process's own two files.
/// Ownership: whoever still shows bytes of the pool holds a share.
class ShmHome {
public:
  /// Fails with io_failed.
  static Result<std::shared_ptr<ShmHome>> create(std::uint64_t pool_bytes);
  ~ShmHome();
  ShmHome(const ShmHome&) = delete;
  ShmHome& operator=(const ShmHome&) = delete;

  ShmHead& head() const { return *head_; }
  std::span<std::byte> pool() const;
  ShmBell bell() const { return ShmBell(bell_); }
  int segment_fd() const { return segment_fd_; }
  int bell_fd() const { return bell_fd_; }

private:
  ShmHome() = default;
  int segment_fd_ = -1, bell_fd_ = -1;
  ShmHead* head_ = nullptr;
  std::uint64_t bytes_ = 0;
  std::atomic<std::uint32_t>* bell_ = nullptr;
};

/// Another process's files, seen from here. Stays valid after the other's death.
class ShmNeighbour {
public:
  /// Opens what an introduction names. Fails with unreachable when that is not to be had here (another host,
  /// container or user), with bad_frame when it is not what it should be.
  static Result<std::shared_ptr<ShmNeighbour>> open(const ShmIntroduction& introduction);
  ~ShmNeighbour();
  ShmNeighbour(const ShmNeighbour&) = delete;
  ShmNeighbour& operator=(const ShmNeighbour&) = delete;

  const ShmHead& head() const { return *head_; }
  /// Bytes of its pool; empty when they do not lie inside.
  std::span<const std::byte> pool(std::uint64_t offset, std::uint64_t bytes) const;
  ShmBell bell() const { return ShmBell(bell_); }
  /// Its process has ended: nobody reads or shows our bytes any more.
  bool dead() const;

private:
  ShmNeighbour() = default;
  int process_ = -1;
  const ShmHead* head_ = nullptr;
  std::uint64_t bytes_ = 0, pool_begin_ = 0, pool_bytes_ = 0;
  std::atomic<std::uint32_t>* bell_ = nullptr;
};

}  // namespace orrery::protocol
