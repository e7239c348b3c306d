// Shard: immutable bytes that several owners share; the last one gives them back.
//
// A Shard may be card memory that its owner promised not to overwrite, a received ZeroMQ message or a heap
// block. Handing one on never copies. What "given back" means is in the release function: drop a message,
// return a credit, mark card memory writable again. It runs on whichever thread lets go last, so it only
// flips an atomic or posts to a queue.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace orrery {

/// Threads: any; the bytes never change while a Shard of them exists.
class Shard {
public:
  Shard() = default;
  /// Borrows `bytes` until the last copy of this Shard is gone; then calls `release` (may be empty) once.
  Shard(std::span<const std::byte> bytes, std::function<void()> release)
      : owner_(std::shared_ptr<const void>(bytes.data(), [release = std::move(release)](const void*) {
          if (release) release();
        })),
        bytes_(bytes) {}
  /// Shares ownership with `owner`, which keeps `bytes` alive.
  Shard(std::shared_ptr<const void> owner, std::span<const std::byte> bytes) : owner_(std::move(owner)), bytes_(bytes) {}
  /// Takes over heap memory.
  static Shard of(std::vector<std::byte> bytes) {
    auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    const std::span<const std::byte> view(*owner);
    return {std::move(owner), view};
  }
  static Shard copy_of(std::span<const std::byte> bytes) { return of({bytes.begin(), bytes.end()}); }

  std::span<const std::byte> bytes() const { return bytes_; }
  std::uint64_t size() const { return bytes_.size(); }
  /// A part of the same memory; `offset + size` must lie inside.
  Shard part(std::uint64_t offset, std::uint64_t size) const { return {owner_, bytes_.subspan(offset, size)}; }

private:
  std::shared_ptr<const void> owner_;
  std::span<const std::byte> bytes_;
};

}  // namespace orrery
