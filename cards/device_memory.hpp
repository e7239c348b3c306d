// Card memory of the cpu card: one reservation with a hard budget.
//
//   [ weights of a component | lane 1 | free ... | lane 2 | free ........ ]
//
// First fit over offsets, from either end; neighbours that are free become one. Address space is reserved at once, pages come
// when they are first written and go back to the system when their block is freed, so resident memory follows
// use. Free memory is always zero, hence so is a new block.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "base/result.hpp"

namespace orrery::cards {

/// Threads: any.
class DeviceMemory {
public:
  /// A reserved range; gives itself back. Must not outlive the DeviceMemory.
  class Block {
  public:
    Block() = default;
    Block(Block&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)), bytes_(other.bytes_) {}
    Block& operator=(Block&& other) noexcept {
      if (this != &other) {
        drop();
        memory_ = std::exchange(other.memory_, nullptr);
        bytes_ = other.bytes_;
      }
      return *this;
    }
    ~Block() { drop(); }
    std::span<std::byte> bytes() const { return bytes_; }

  private:
    friend class DeviceMemory;
    Block(DeviceMemory* memory, std::span<std::byte> bytes) : memory_(memory), bytes_(bytes) {}
    void drop();
    DeviceMemory* memory_ = nullptr;
    std::span<std::byte> bytes_;
  };

  /// Reserves address space for `budget` bytes. Fails with io_failed when the system refuses.
  static Result<std::unique_ptr<DeviceMemory>> create(std::string card, std::uint64_t budget);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// `bytes` zeroed bytes, 64-byte aligned. Fails with card_memory_exhausted; `what` ("weights of transformer") is for
  /// the message. Nothing changes after a failure.
  Result<Block> reserve(std::uint64_t bytes, const std::string& what);
  /// The same at the high end, in the last piece that is large enough: what comes and goes as long as others leave room
  /// does not cut up theirs. Nothing when there is no such piece.
  std::optional<Block> reserve_high(std::uint64_t bytes);

  std::uint64_t budget() const { return budget_; }
  std::uint64_t used() const;
  /// The most that was ever reserved.
  std::uint64_t high_water() const;

private:
  DeviceMemory(std::string card, std::byte* base, std::uint64_t budget);
  Block take(std::uint64_t offset, std::uint64_t bytes);  // Of a free piece; the mutex is held.
  void give_back(std::span<std::byte> bytes);

  const std::string card_;
  std::byte* const base_;
  const std::uint64_t budget_;
  mutable std::mutex mutex_;
  std::map<std::uint64_t, std::uint64_t> free_;  // Offset -> length; never adjacent.
  std::uint64_t used_ = 0, high_water_ = 0;
};

}  // namespace orrery::cards
