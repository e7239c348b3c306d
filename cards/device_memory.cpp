#include "cards/device_memory.hpp"

#include <algorithm>
#include <cstring>

#include <sys/mman.h>
#include <unistd.h>

#include "base/file.hpp"
#include "base/units.hpp"

namespace orrery::cards {
namespace {

constexpr std::uint64_t alignment = 64;

std::uint64_t page_size() {
  static const auto size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

std::uint64_t needed_for(std::uint64_t bytes) { return std::max(alignment, (bytes + alignment - 1) / alignment * alignment); }

std::string text_of(std::uint64_t bytes) { return text_of_bytes(static_cast<double>(bytes)); }

}  // namespace

Result<std::unique_ptr<DeviceMemory>> DeviceMemory::create(std::string card, std::uint64_t budget) {
  const auto usable = budget / alignment * alignment;
  if (usable == 0)
    return Error{ErrorCode::invalid_config, "card " + card + " has a memory budget of " + std::to_string(budget) + " bytes",
                 "give it at least 64 bytes"};
  void* base = ::mmap(nullptr, usable, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    return Error{ErrorCode::io_failed,
                 "card " + card + ": the system refused " + text_of(usable) + " of address space: " + errno_text(),
                 "lower the card's memory or the process's limits (ulimit -v)"};
  return std::unique_ptr<DeviceMemory>(new DeviceMemory(std::move(card), static_cast<std::byte*>(base), usable));
}

DeviceMemory::DeviceMemory(std::string card, std::byte* base, std::uint64_t budget)
    : card_(std::move(card)), base_(base), budget_(budget), free_{{0, budget}} {}

DeviceMemory::~DeviceMemory() { ::munmap(base_, budget_); }

Result<DeviceMemory::Block> DeviceMemory::reserve(std::uint64_t bytes, const std::string& what) {
  const std::lock_guard lock(mutex_);
  std::uint64_t largest = 0;
  if (bytes <= budget_) {
    const auto needed = needed_for(bytes);
    for (const auto& [offset, length] : free_) {
      largest = std::max(largest, length);
      if (length >= needed) return take(offset, needed);
    }
  }
  const auto free_bytes = budget_ - used_;
  std::string message = "card " + card_ + " cannot hold " + what + ": needs " + text_of(bytes) + ", has " +
                        text_of(free_bytes) + " free of " + text_of(budget_);
  if (free_bytes >= bytes) message += " (largest free piece " + text_of(largest) + ")";
  return Error{ErrorCode::card_memory_exhausted, std::move(message),
               "give the card more memory, spread the model over more cards, or ask for a smaller video"};
}

std::optional<DeviceMemory::Block> DeviceMemory::reserve_high(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes > budget_) return std::nullopt;
  const auto needed = needed_for(bytes);
  for (auto piece = free_.rbegin(); piece != free_.rend(); ++piece)
    if (piece->second >= needed) return take(piece->first + piece->second - needed, needed);
  return std::nullopt;
}

DeviceMemory::Block DeviceMemory::take(std::uint64_t offset, std::uint64_t bytes) {
  const auto piece = std::prev(free_.upper_bound(offset));
  const auto begin = piece->first, end = piece->first + piece->second;
  free_.erase(piece);
  if (begin < offset) free_.emplace(begin, offset - begin);
  if (offset + bytes < end) free_.emplace(offset + bytes, end - offset - bytes);
  used_ += bytes;
  high_water_ = std::max(high_water_, used_);
  return Block(this, std::span(base_ + offset, bytes));
}

void DeviceMemory::give_back(std::span<std::byte> bytes) {
  // Whole pages go back to the system and read as zero from then on; the edges are cleared by hand.
  auto* const end = bytes.data() + bytes.size();
  const auto page = page_size();
  const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
  auto* const first_page = bytes.data() + ((page - address % page) % page);
  auto* const last_page = end - reinterpret_cast<std::uintptr_t>(end) % page;
  if (first_page < last_page && ::madvise(first_page, static_cast<std::size_t>(last_page - first_page), MADV_DONTNEED) == 0) {
    std::memset(bytes.data(), 0, static_cast<std::size_t>(first_page - bytes.data()));
    std::memset(last_page, 0, static_cast<std::size_t>(end - last_page));
  } else {
    std::memset(bytes.data(), 0, bytes.size());
  }

  const std::lock_guard lock(mutex_);
  used_ -= bytes.size();
  auto offset = static_cast<std::uint64_t>(bytes.data() - base_);
  auto length = static_cast<std::uint64_t>(bytes.size());
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + length) {
    length += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += length;
      return;
    }
  }
  free_.emplace(offset, length);
}

void DeviceMemory::Block::drop() {
  if (memory_ != nullptr) std::exchange(memory_, nullptr)->give_back(bytes_);
  bytes_ = {};
}

std::uint64_t DeviceMemory::used() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

std::uint64_t DeviceMemory::high_water() const {
  const std::lock_guard lock(mutex_);
  return high_water_;
}

}  // namespace orrery::cards
