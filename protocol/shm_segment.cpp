#include "protocol/shm_segment.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "base/digest.hpp"

// Older than the kernels that know it.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace orrery::protocol {
namespace {

constexpr std::uint64_t segment_magic = 0x746e656d67655330ULL;
constexpr std::uint64_t segment_version = 1;
constexpr std::uint64_t segment_bytes_limit = std::uint64_t{1} << 40;
constexpr std::uint64_t page_bytes = 4096;
constexpr int bell_seals = F_SEAL_SHRINK | F_SEAL_GROW;
static_assert(sizeof(ShmHead) % page_bytes == 0);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free,
              "words in shared memory have no locks");
static_assert(sizeof(ShmIntroduction) <= HeaderBytes::capacity);

Error refused(const std::string& what) {
  return Error{ErrorCode::io_failed, "memory cannot be shared with other processes: " + what + " (" + std::strerror(errno) + ")"};
}
Error strange(const char* what) {
  return Error{ErrorCode::bad_frame, std::string("shared memory of a peer is not used: ") + what};
}

struct File {
  int fd = -1;
  explicit File(int f) : fd(f) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (fd >= 0) ::close(fd);
  }
  int take() { return std::exchange(fd, -1); }
};

// A file in memory of which another process cannot take back what we map: sealed against shrinking.
Result<std::uint64_t> sealed_bytes(int fd) {
  struct stat facts {};
  if (::fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) return strange("no file");
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & bell_seals) != bell_seals) return strange("it could be cut off");
  if (facts.st_size <= 0 || static_cast<std::uint64_t>(facts.st_size) > segment_bytes_limit) return strange("its size");
  return static_cast<std::uint64_t>(facts.st_size);
}

Result<int> open_of(std::uint32_t pid, std::int32_t fd, int flags) {
  const auto path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
  // Looked at first: opening a device or a pipe may do something.
  struct stat facts {};
  if (::stat(path.c_str(), &facts) != 0 || !S_ISREG(facts.st_mode))
    return Error{ErrorCode::unreachable, "its shared memory cannot be seen from here"};
  const int opened = ::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (opened < 0) return Error{ErrorCode::unreachable, "its shared memory may not be opened from here"};
  return opened;
}

}  // namespace

std::uint64_t check_of(const ShmRecord& record, const ShmToken& token, std::uint64_t lane_life) {
  auto copy = record;
  copy.check = token[0] ^ token[1] ^ lane_life;
  return xxh3_of(std::as_bytes(std::span(&copy, 1)));
}

std::optional<ShmIntroduction> parse_introduction(std::span<const std::byte> header) {
  ShmIntroduction introduction;
  if (header.size() != sizeof introduction) return std::nullopt;
  std::memcpy(&introduction, header.data(), sizeof introduction);
  if (introduction.magic != ShmIntroduction::magic_word) return std::nullopt;
  return introduction;
}

std::array<std::uint64_t, 2> boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::array<std::uint64_t, 2> id{};
  std::size_t digits = 0;
  for (char letter; digits < 32 && file.get(letter);) {
    const auto digit = letter >= '0' && letter <= '9' ? letter - '0' : letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
    if (digit < 0) continue;
    id[digits / 16] = id[digits / 16] << 4 | static_cast<std::uint64_t>(digit);
    ++digits;
  }
  return digits == 32 ? id : std::array<std::uint64_t, 2>{};
}

void ShmBell::ring(std::uint32_t bits) const {
  word_->fetch_add(1, std::memory_order_seq_cst);
  ::syscall(SYS_futex, word_, FUTEX_WAKE_BITSET, INT_MAX, nullptr, nullptr, bits);
}

void ShmBell::sleep(std::uint32_t seen, std::uint32_t bits, Duration longest) const {
  // FUTEX_WAIT_BITSET wants the moment, not the time to it.
  timespec until{};
  ::clock_gettime(CLOCK_MONOTONIC, &until);
  const auto nanoseconds = longest.count() + until.tv_nsec;
  until.tv_sec += static_cast<time_t>(nanoseconds / 1'000'000'000);
  until.tv_nsec = static_cast<long>(nanoseconds % 1'000'000'000);
  ::syscall(SYS_futex, word_, FUTEX_WAIT_BITSET, seen, &until, nullptr, bits);
}

Result<std::shared_ptr<ShmHome>> ShmHome::create(std::uint64_t pool_bytes) {
  pool_bytes = (pool_bytes + page_bytes - 1) / page_bytes * page_bytes;
  const auto bytes = sizeof(ShmHead) + pool_bytes;
  if (pool_bytes == 0 || bytes > segment_bytes_limit)
    return Error{ErrorCode::usage, "a pool of " + std::to_string(pool_bytes) + " bytes cannot be shared"};
  std::shared_ptr<ShmHome> home(new ShmHome());
  home->bytes_ = bytes;
  home->segment_fd_ = ::memfd_create("orrery-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  home->bell_fd_ = ::memfd_create("orrery-bell", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (home->segment_fd_ < 0 || home->bell_fd_ < 0) return refused("no file in memory");
  if (::ftruncate(home->segment_fd_, static_cast<off_t>(bytes)) != 0 || ::ftruncate(home->bell_fd_, page_bytes) != 0)
    return refused("its length");
  auto* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, home->segment_fd_, 0);
  if (memory == MAP_FAILED) return refused("no address space");
  home->head_ = static_cast<ShmHead*>(memory);  // Zeroed by the system, which is what all its fields begin with.
  auto* bell = ::mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, home->bell_fd_, 0);
  if (bell == MAP_FAILED) return refused("no address space");
  home->bell_ = static_cast<std::atomic<std::uint32_t>*>(bell);
  auto& head = *home->head_;
  head.magic = segment_magic;
  head.version = segment_version;
  if (::getrandom(head.token.data(), sizeof head.token, 0) != static_cast<ssize_t>(sizeof head.token))
    return refused("no random numbers");
  head.bytes = bytes;
  head.pool_begin = sizeof(ShmHead);
  head.pool_bytes = pool_bytes;
  // From here on this mapping is the only one that can be written.
  if (::fcntl(home->segment_fd_, F_ADD_SEALS, bell_seals | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0 ||
      ::fcntl(home->bell_fd_, F_ADD_SEALS, bell_seals | F_SEAL_SEAL) != 0)
    return refused("it cannot be sealed");
  return home;
}

ShmHome::~ShmHome() {
  if (head_) ::munmap(head_, bytes_);
  if (bell_) ::munmap(bell_, page_bytes);
  if (segment_fd_ >= 0) ::close(segment_fd_);
  if (bell_fd_ >= 0) ::close(bell_fd_);
}

std::span<std::byte> ShmHome::pool() const {
  return {reinterpret_cast<std::byte*>(head_) + head_->pool_begin, head_->pool_bytes};
}

Result<std::shared_ptr<ShmNeighbour>> ShmNeighbour::open(const ShmIntroduction& introduction) {
  if (introduction.boot != boot_id() || introduction.boot == std::array<std::uint64_t, 2>{})
    return Error{ErrorCode::unreachable, "it lives on another host"};
  if (introduction.pid == 0 || introduction.segment_fd < 0 || introduction.bell_fd < 0 || introduction.own.lane >= shm_lanes)
    return strange("its introduction");
  std::shared_ptr<ShmNeighbour> neighbour(new ShmNeighbour());
  // First the process, then its files: if it still runs afterwards, its number meant the same process all the time.
  neighbour->process_ = static_cast<int>(::syscall(SYS_pidfd_open, introduction.pid, 0));
  if (neighbour->process_ < 0) return Error{ErrorCode::unreachable, "its process cannot be seen from here"};
  ORRERY_TRY(segment_fd, open_of(introduction.pid, introduction.segment_fd, O_RDONLY));
  const File segment(segment_fd);
  ORRERY_TRY(bell_fd, open_of(introduction.pid, introduction.bell_fd, O_RDWR));
  const File bell(bell_fd);
  ORRERY_TRY(bytes, sealed_bytes(segment.fd));
  ORRERY_TRY(bell_bytes, sealed_bytes(bell.fd));
  if (bytes < sizeof(ShmHead) || bell_bytes != page_bytes) return strange("its size");

  auto* memory = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, segment.fd, 0);
  if (memory == MAP_FAILED) return refused("no address space");
  neighbour->bytes_ = bytes;
  neighbour->head_ = static_cast<const ShmHead*>(memory);
  auto* word = ::mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bell.fd, 0);
  if (word == MAP_FAILED) return refused("no address space");
  neighbour->bell_ = static_cast<std::atomic<std::uint32_t>*>(word);
  // Copied once: the owner could change them under our hands.
  const auto& head = *neighbour->head_;
  const auto token = head.token;
  neighbour->pool_begin_ = head.pool_begin;
  neighbour->pool_bytes_ = head.pool_bytes;
  if (head.magic != segment_magic || head.version != segment_version || token != introduction.own.token)
    return strange("it is somebody else's");
  if (neighbour->pool_begin_ < sizeof(ShmHead) || neighbour->pool_begin_ > bytes || neighbour->pool_bytes_ > bytes - neighbour->pool_begin_)
    return strange("its pool lies outside");
  if (neighbour->dead()) return Error{ErrorCode::unreachable, "its process has ended"};
  return neighbour;
}

ShmNeighbour::~ShmNeighbour() {
  if (head_) ::munmap(const_cast<ShmHead*>(head_), bytes_);
  if (bell_) ::munmap(bell_, page_bytes);
  if (process_ >= 0) ::close(process_);
}

std::span<const std::byte> ShmNeighbour::pool(std::uint64_t offset, std::uint64_t bytes) const {
  if (offset > pool_bytes_ || bytes > pool_bytes_ - offset) return {};
  return {reinterpret_cast<const std::byte*>(head_) + pool_begin_ + offset, bytes};
}

bool ShmNeighbour::dead() const {
  pollfd ended{process_, POLLIN, 0};
  return ::poll(&ended, 1, 0) == 1;
}

}  // namespace orrery::protocol
