// The disk below the journal: the real one, a real one with faults, or one that lives in memory and can lose power.
//
// A Storage is an SQLite VFS with a name, and the lock on a folder. The journal is the same code over all of them:
//
//   Journal ── SQLite ── VFS ──┬── RealStorage     SQLite's own files
//                              ├── FaultyStorage   the same files; faults are switched on while it runs
//                              └── SimulatedDisk   memory; knows what was synced; `crash` loses the rest
//
// A Storage outlives the journals over it. SQLite's types stay in storage.cpp.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/random.hpp"
#include "base/result.hpp"

namespace orrery::actors {

/// The right to write in a folder; given back by the destructor, and by the death of the process.
class FolderLock {
public:
  virtual ~FolderLock() = default;
  /// False when somebody else has taken the folder over (the lock file was removed or replaced). Cheap: two stats.
  virtual bool held() const = 0;
};

class Storage {
public:
  virtual ~Storage() = default;
  /// The registered SQLite VFS.
  virtual const std::string& vfs_name() const = 0;
  /// Makes the folder if it is missing (only for this user) and locks it. Fails with journal_busy, naming the
  /// process that has it, or io_failed.
  virtual Result<std::unique_ptr<FolderLock>> lock_folder(const std::string& folder) = 0;
  /// The file exists when this returns OK (empty if it is new), readable by this user only, and so does its
  /// directory entry after a power cut.
  virtual Status make_file(const std::string& path) = 0;
  /// Bytes; nothing when there is no such file.
  virtual std::optional<std::uint64_t> file_size(const std::string& path) const = 0;
  /// For identities: unpredictable on real disks, from the seed in simulation.
  virtual std::uint64_t random() = 0;
};

/// SQLite's default VFS. Threads: any.
Storage& real_storage();

/// Reads a file, writes the same bytes in place and syncs: what a failed sync left readable, but not on the disk, is
/// there afterwards. Gives the bytes. Fails with io_failed.
Result<std::string> write_again(Storage& storage, const std::string& path);

/// Faults on demand. Threads: any; each switch works from the next call of SQLite on.
struct DiskFaults {
  std::atomic<bool> full{false};               // Every write fails: no space.
  std::atomic<std::uint32_t> failed_syncs{0};  // The next n syncs fail; in simulation their data is lost, too.
  std::atomic<std::uint32_t> short_writes{0};  // The next n writes stop half-way with an I/O error.
  std::atomic<bool> torn_write{false};         // Half of the next write arrives, and the power is gone.

  std::atomic<std::uint64_t> fired{0};  // How many calls were failed so far.
};

/// The real disk with faults, for a live coordinator.
///
/// A torn write ends the process as kill -9 would, in the middle of the write; tests pass another `die`, after
/// which the write reports an I/O error.
class FaultyStorage final : public Storage {
public:
  explicit FaultyStorage(std::function<void()> die = {});
  ~FaultyStorage() override;
  FaultyStorage(const FaultyStorage&) = delete;
  FaultyStorage& operator=(const FaultyStorage&) = delete;

  DiskFaults& faults();

  const std::string& vfs_name() const override;
  Result<std::unique_ptr<FolderLock>> lock_folder(const std::string& folder) override;
  Status make_file(const std::string& path) override;
  std::optional<std::uint64_t> file_size(const std::string& path) const override;
  std::uint64_t random() override;

private:
  struct Shim;
  std::unique_ptr<Shim> shim_;
};

/// A disk in memory, deterministic: same seed and same calls, same bytes. Threads: one at a time, all its journals.
///
/// What a crash leaves: everything that was synced, and of what was written since, any part: nothing, all, the
/// first so many writes, or 512-byte sectors at random, one of them torn. New and deleted names likewise, until the
/// folder was synced (as ext4 does with SQLite: by the first sync of a new file, or a delete that asks for it).
class SimulatedDisk final : public Storage {
public:
  explicit SimulatedDisk(std::uint64_t seed);
  ~SimulatedDisk() override;
  SimulatedDisk(const SimulatedDisk&) = delete;
  SimulatedDisk& operator=(const SimulatedDisk&) = delete;

  DiskFaults& faults();

  /// Power cut: open files and locks are dead, unsynced writes are decided by `random`, the disk works again.
  void crash(Random& random);
  /// The power goes just before the operation (write, truncate, sync, delete) that comes after `operations` more:
  /// from then on every call fails until `crash`.
  void halt_after(std::uint64_t operations);
  bool halted() const;
  /// Writes, truncations, syncs and deletes so far.
  std::uint64_t operations() const;
  std::uint64_t syncs() const;
  /// All locks are lost, as when an operator removes the lock file below a living coordinator.
  void revoke_locks();

  /// One bit of a file, on the platter. False when the file is not that long.
  bool flip_bit(const std::string& path, std::uint64_t bit);
  /// Seconds since 1970, as SQLite would see it; 0 at first.
  void set_time(double seconds);

  /// The file as a reader sees it now; nothing when there is none. `put`: the file is there, synced.
  std::optional<std::string> contents(const std::string& path) const;
  void put(const std::string& path, std::string bytes);
  /// Digest of every file's name and bytes, for comparing runs.
  std::uint64_t digest() const;

  const std::string& vfs_name() const override;
  Result<std::unique_ptr<FolderLock>> lock_folder(const std::string& folder) override;
  Status make_file(const std::string& path) override;
  std::optional<std::uint64_t> file_size(const std::string& path) const override;
  std::uint64_t random() override;

  struct State;  // In storage.cpp.

private:
  std::unique_ptr<State> state_;
};

}  // namespace orrery::actors
