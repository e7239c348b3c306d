// Files: memory-mapped for reading, written whole or not at all.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace orrery {

/// A file mapped read-only. Copies share the mapping. Threads: any. Nobody may shorten the file meanwhile.
class MappedFile {
public:
  /// Fails with not_found or io_failed, naming the path.
  static Result<MappedFile> open(const std::string& path);

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& path() const;

  /// Tells the kernel that these bytes are not needed for now: their pages leave this process's resident
  /// memory (the page cache may keep them). Only whole pages inside the range are dropped.
  void release_pages(std::span<const std::byte> range) const;

private:
  struct Mapping;
  std::shared_ptr<const Mapping> mapping_;
  std::span<const std::byte> bytes_;
};

/// The whole file as text; refuses more than `limit` bytes.
Result<std::string> read_text_file(const std::string& path, std::uint64_t limit);

/// A file that appears under its name only when `commit` is called; otherwise the destructor removes it.
class AtomicFile {
public:
  /// Creates PATH.partial-PID beside the target; locked, so that `remove_abandoned_partials` leaves it alone. Fails with
  /// io_failed when the folder is missing or not writable.
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&&) noexcept;
  AtomicFile& operator=(AtomicFile&&) noexcept;
  ~AtomicFile();

  Status write(std::span<const std::byte> bytes);
  Status write(std::string_view text) { return write(std::as_bytes(std::span(text))); }
  /// Flushes to disk and renames into place.
  Status commit();
  /// The name while it is being written.
  const std::string& partial_path() const { return partial_; }

private:
  AtomicFile() = default;
  void drop();
  std::string path_, partial_;
  int descriptor_ = -1;
};

/// Removes PATH.partial-PID* (files and folders, of this user) that killed processes left: their PID is dead and nobody
/// holds a lock on it. Reads the whole folder of `path`.
void remove_abandoned_partials(const std::string& path);

/// "Permission denied" and its kin for the current errno.
std::string errno_text();

}  // namespace orrery
