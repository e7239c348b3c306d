// Long because three disks stand behind one door; each is a screenful.

#include "actors/storage.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>
#include <random>
#include <vector>

#include "base/digest.hpp"
#include "base/file.hpp"

namespace orrery::actors {
namespace {

Error io_error(const std::string& what) { return Error{ErrorCode::io_failed, what + ": " + errno_text()}; }

std::string parent_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// SQLite wants a name that lives as long as the VFS, and no two alike.
std::string unique_vfs_name(const char* kind) {
  static std::atomic<std::uint64_t> next{0};
  return "orrery-" + std::string(kind) + "-" + std::to_string(next++);
}

// ---- Real folders ---------------------------------------------------------------------------------------------

/// flock, because it belongs to the open file: it ends with the process however that ends, and a second journal in
/// one process is refused too (fcntl locks would let it in).
class RealFolderLock final : public FolderLock {
public:
  RealFolderLock(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  ~RealFolderLock() override { ::close(descriptor_); }
  bool held() const override {
    struct stat ours {}, there {};
    return ::fstat(descriptor_, &ours) == 0 && ::stat(path_.c_str(), &there) == 0 && ours.st_ino == there.st_ino &&
           ours.st_dev == there.st_dev;
  }

private:
  int descriptor_;
  std::string path_;
};

Result<std::unique_ptr<FolderLock>> lock_real_folder(const std::string& folder) {
  std::error_code failed;
  if (!std::filesystem::is_directory(folder, failed)) {
    std::filesystem::create_directories(parent_of(folder), failed);
    // Prompts stand in the journal: nobody else needs to read them.
    if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return io_error("cannot make the folder " + folder);
  }
  const auto path = folder + "/journal.lock";
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (descriptor < 0) return io_error("cannot open " + path);
  auto lock = std::make_unique<RealFolderLock>(descriptor, path);
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return io_error("cannot lock " + path);
    char text[24] = {};
    const auto length = ::pread(descriptor, text, sizeof text - 1, 0);
    const auto pid = std::string(text, length > 0 ? std::strspn(text, "0123456789") : 0);
    return Error{ErrorCode::journal_busy,
                 "another coordinator" + (pid.empty() ? "" : ", process " + pid + ",") + " has the journal in " + folder,
                 "end that one first, or use another state folder"};
  }
  // Somebody may have removed the file between our open and our lock.
  if (!lock->held())
    return Error{ErrorCode::journal_busy, "the lock of " + folder + " was taken away while it was made", "try again"};
  const auto pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(descriptor, 0) != 0 || ::pwrite(descriptor, pid.data(), pid.size(), 0) < 0) {
    // The name is for people; a full disk must not keep a coordinator from reading its journal.
  }
  return std::unique_ptr<FolderLock>(std::move(lock));
}

// Before SQLite opens it: closing any descriptor of a file drops the process's fcntl locks on it.
Status make_real_file(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0) return io_error("cannot open " + path);
  ::close(file);
  const auto folder = parent_of(path);
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return io_error("cannot open the folder " + folder);
  const bool synced = ::fsync(descriptor) == 0;
  ::close(descriptor);
  if (!synced) return io_error("cannot sync the folder " + folder);
  return Done{};
}

std::optional<std::uint64_t> real_file_size(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return static_cast<std::uint64_t>(status.st_size);
}

std::uint64_t unpredictable() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

class RealStorage final : public Storage {
public:
  RealStorage() : name_(sqlite3_initialize() == SQLITE_OK ? sqlite3_vfs_find(nullptr)->zName : "") {}
  const std::string& vfs_name() const override { return name_; }
  Result<std::unique_ptr<FolderLock>> lock_folder(const std::string& folder) override { return lock_real_folder(folder); }
  Status make_file(const std::string& path) override { return make_real_file(path); }
  std::optional<std::uint64_t> file_size(const std::string& path) const override { return real_file_size(path); }
  std::uint64_t random() override { return unpredictable(); }

private:
  std::string name_;
};

/// Takes one of a count of faults.
bool take(std::atomic<std::uint32_t>& count) {
  auto left = count.load();
  while (left > 0)
    if (count.compare_exchange_weak(left, left - 1)) return true;
  return false;
}

}  // namespace

Storage& real_storage() {
  static RealStorage storage;
  return storage;
}

// Through the VFS, so that its faults count here too.
Result<std::string> write_again(Storage& storage, const std::string& path) {
  constexpr sqlite3_int64 piece_bytes = 1 << 16, bytes_max = 1 << 30;
  auto* vfs = sqlite3_vfs_find(storage.vfs_name().c_str());
  ORRERY_CHECK(vfs != nullptr);
  std::vector<std::max_align_t> room(static_cast<std::size_t>(vfs->szOsFile) / sizeof(std::max_align_t) + 1);
  auto* file = reinterpret_cast<sqlite3_file*>(room.data());
  const auto failed = [&](const char* doing) { return Error{ErrorCode::io_failed, std::string("cannot ") + doing + " " + path}; };
  if (vfs->xOpen(vfs, path.c_str(), file, SQLITE_OPEN_READWRITE | SQLITE_OPEN_WAL, nullptr) != SQLITE_OK) {
    if (file->pMethods != nullptr) file->pMethods->xClose(file);
    return failed("open");
  }
  std::string bytes;
  const auto done = [&]() -> Status {
    sqlite3_int64 size = 0;
    if (file->pMethods->xFileSize(file, &size) != SQLITE_OK || size > bytes_max) return failed("read");
    bytes.resize(static_cast<std::size_t>(size));
    for (sqlite3_int64 at = 0; at < size; at += piece_bytes)
      if (file->pMethods->xRead(file, bytes.data() + at, static_cast<int>(std::min(piece_bytes, size - at)), at) != SQLITE_OK)
        return failed("read");
    for (sqlite3_int64 at = 0; at < size; at += piece_bytes)
      if (file->pMethods->xWrite(file, bytes.data() + at, static_cast<int>(std::min(piece_bytes, size - at)), at) != SQLITE_OK)
        return failed("write");
    if (file->pMethods->xSync(file, SQLITE_SYNC_FULL) != SQLITE_OK) return failed("sync");
    return Done{};
  }();
  file->pMethods->xClose(file);
  if (!done.ok()) return done.error();
  return bytes;
}

// ---- Real files with faults -----------------------------------------------------------------------------------

struct FaultyStorage::Shim {
  DiskFaults faults;
  std::function<void()> die;
  std::string name = unique_vfs_name("faulty");
  sqlite3_vfs* base = nullptr;
  sqlite3_vfs vfs{};
  sqlite3_io_methods methods{};

  /// What SQLite allocates for an open file: ours, and the real one behind it.
  struct File {
    sqlite3_file ours;
    Shim* shim;
    sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
  };
  static File* file_of(sqlite3_file* file) { return reinterpret_cast<File*>(file); }
  static Shim* shim_of(sqlite3_vfs* vfs) { return static_cast<Shim*>(vfs->pAppData); }

  static int open(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out_flags) {
    auto* shim = shim_of(vfs);
    auto* mine = file_of(file);
    mine->ours.pMethods = nullptr;
    mine->shim = shim;
    const int code = shim->base->xOpen(shim->base, name, mine->real(), flags, out_flags);
    if (code == SQLITE_OK) mine->ours.pMethods = &shim->methods;
    // SQLite closes a file that failed to open only if it has methods.
    else if (mine->real()->pMethods != nullptr) mine->real()->pMethods->xClose(mine->real());
    return code;
  }

  static int write(sqlite3_file* file, const void* bytes, int length, sqlite3_int64 offset) {
    auto* mine = file_of(file);
    auto& faults = mine->shim->faults;
    const auto half = [&] { mine->real()->pMethods->xWrite(mine->real(), bytes, length / 2, offset); };
    if (faults.full) {
      ++faults.fired;
      return SQLITE_FULL;
    }
    if (take(faults.short_writes)) {
      ++faults.fired;
      half();
      return SQLITE_IOERR_WRITE;
    }
    if (faults.torn_write.exchange(false)) {
      ++faults.fired;
      half();
      mine->shim->die();
      return SQLITE_IOERR_WRITE;
    }
    return mine->real()->pMethods->xWrite(mine->real(), bytes, length, offset);
  }

  static int sync(sqlite3_file* file, int flags) {
    auto* mine = file_of(file);
    if (take(mine->shim->faults.failed_syncs)) {
      ++mine->shim->faults.fired;
      return SQLITE_IOERR_FSYNC;
    }
    return mine->real()->pMethods->xSync(mine->real(), flags);
  }

  Shim() {
    sqlite3_initialize();
    base = sqlite3_vfs_find(nullptr);
    ORRERY_CHECK(base != nullptr);
    // Version 1: no shared memory; the journal locks its file exclusively and needs none.
    methods.iVersion = 1;
    methods.xClose = [](sqlite3_file* f) { return file_of(f)->real()->pMethods->xClose(file_of(f)->real()); };
    methods.xRead = [](sqlite3_file* f, void* into, int length, sqlite3_int64 offset) {
      return file_of(f)->real()->pMethods->xRead(file_of(f)->real(), into, length, offset);
    };
    methods.xWrite = write;
    methods.xTruncate = [](sqlite3_file* f, sqlite3_int64 size) {
      return file_of(f)->real()->pMethods->xTruncate(file_of(f)->real(), size);
    };
    methods.xSync = sync;
    methods.xFileSize = [](sqlite3_file* f, sqlite3_int64* size) {
      return file_of(f)->real()->pMethods->xFileSize(file_of(f)->real(), size);
    };
    methods.xLock = [](sqlite3_file* f, int level) { return file_of(f)->real()->pMethods->xLock(file_of(f)->real(), level); };
    methods.xUnlock = [](sqlite3_file* f, int level) {
      return file_of(f)->real()->pMethods->xUnlock(file_of(f)->real(), level);
    };
    methods.xCheckReservedLock = [](sqlite3_file* f, int* out) {
      return file_of(f)->real()->pMethods->xCheckReservedLock(file_of(f)->real(), out);
    };
    methods.xFileControl = [](sqlite3_file* f, int operation, void* argument) {
      return file_of(f)->real()->pMethods->xFileControl(file_of(f)->real(), operation, argument);
    };
    methods.xSectorSize = [](sqlite3_file* f) { return file_of(f)->real()->pMethods->xSectorSize(file_of(f)->real()); };
    methods.xDeviceCharacteristics = [](sqlite3_file* f) {
      return file_of(f)->real()->pMethods->xDeviceCharacteristics(file_of(f)->real());
    };
    vfs.iVersion = 1;
    vfs.szOsFile = static_cast<int>(sizeof(File)) + base->szOsFile;
    vfs.mxPathname = base->mxPathname;
    vfs.zName = name.c_str();
    vfs.pAppData = this;
    vfs.xOpen = open;
    vfs.xDelete = [](sqlite3_vfs* v, const char* path, int sync_folder) {
      return shim_of(v)->base->xDelete(shim_of(v)->base, path, sync_folder);
    };
    vfs.xAccess = [](sqlite3_vfs* v, const char* path, int flags, int* out) {
      return shim_of(v)->base->xAccess(shim_of(v)->base, path, flags, out);
    };
    vfs.xFullPathname = [](sqlite3_vfs* v, const char* path, int length, char* out) {
      return shim_of(v)->base->xFullPathname(shim_of(v)->base, path, length, out);
    };
    vfs.xRandomness = [](sqlite3_vfs* v, int length, char* out) {
      return shim_of(v)->base->xRandomness(shim_of(v)->base, length, out);
    };
    vfs.xSleep = [](sqlite3_vfs* v, int microseconds) { return shim_of(v)->base->xSleep(shim_of(v)->base, microseconds); };
    vfs.xCurrentTime = [](sqlite3_vfs* v, double* out) { return shim_of(v)->base->xCurrentTime(shim_of(v)->base, out); };
    vfs.xGetLastError = [](sqlite3_vfs* v, int length, char* out) {
      return shim_of(v)->base->xGetLastError(shim_of(v)->base, length, out);
    };
    ORRERY_CHECK(sqlite3_vfs_register(&vfs, 0) == SQLITE_OK);
  }
  ~Shim() { sqlite3_vfs_unregister(&vfs); }
};

FaultyStorage::FaultyStorage(std::function<void()> die) : shim_(std::make_unique<Shim>()) {
  shim_->die = die ? std::move(die) : [] { ::kill(::getpid(), SIGKILL); };
}
FaultyStorage::~FaultyStorage() = default;
DiskFaults& FaultyStorage::faults() { return shim_->faults; }
const std::string& FaultyStorage::vfs_name() const { return shim_->name; }
Result<std::unique_ptr<FolderLock>> FaultyStorage::lock_folder(const std::string& folder) { return lock_real_folder(folder); }
Status FaultyStorage::make_file(const std::string& path) { return make_real_file(path); }
std::optional<std::uint64_t> FaultyStorage::file_size(const std::string& path) const { return real_file_size(path); }
std::uint64_t FaultyStorage::random() { return unpredictable(); }

// ---- The disk in memory ---------------------------------------------------------------------------------------

namespace {

constexpr std::uint64_t sector_bytes = 512;

/// A change that the platter has not seen.
struct Change {
  bool truncates = false;  // To `offset`; otherwise `bytes` are written there.
  std::uint64_t offset = 0;
  std::string bytes;
};

void change_bytes(std::string& contents, std::uint64_t offset, std::string_view bytes) {
  if (contents.size() < offset + bytes.size()) contents.resize(offset + bytes.size(), '\0');
  std::copy(bytes.begin(), bytes.end(), contents.begin() + static_cast<std::ptrdiff_t>(offset));
}

void change_bytes(std::string& contents, const Change& change) {
  if (change.truncates)
    contents.resize(change.offset, '\0');
  else
    change_bytes(contents, change.offset, change.bytes);
}

struct DiskFile {
  std::string current;  // What a reader sees.
  std::string durable;  // What is on the platter.
  std::vector<Change> unsynced;

  void change(Change change) {
    change_bytes(current, change);
    unsynced.push_back(std::move(change));
  }
  void sync() {
    for (const auto& change : unsynced) change_bytes(durable, change);
    unsynced.clear();
  }
  /// Linux after a failed fsync: the pages count as clean, and are not on the platter.
  void fail_sync() { unsynced.clear(); }

  void lose_power(Random& random) {
    const auto manner = random.below(4);
    if (manner == 1) sync();
    if (manner == 2) {
      unsynced.resize(random.below(unsynced.size() + 1));
      sync();
    }
    if (manner == 3) {
      std::uint64_t sectors = 0;
      for (const auto& change : unsynced) sectors += change.bytes.size() / sector_bytes + 1;
      const auto torn = random.below(sectors + 1);
      std::uint64_t sector = 0;
      for (const auto& change : unsynced) {
        if (change.truncates) {
          if (random.below(2) == 0) change_bytes(durable, change);
          continue;
        }
        for (std::uint64_t at = 0; at < change.bytes.size(); ++sector) {
          const auto end =
              std::min<std::uint64_t>(change.bytes.size(), at + sector_bytes - (change.offset + at) % sector_bytes);
          auto length = end - at;
          if (sector == torn)
            length = random.below(length + 1);
          else if (random.below(2) == 0)
            length = 0;
          if (length > 0) change_bytes(durable, change.offset + at, std::string_view(change.bytes).substr(at, length));
          at = end;
        }
      }
    }
    unsynced.clear();
    current = durable;
  }
};

using Names = std::map<std::string, std::shared_ptr<DiskFile>>;

}  // namespace

struct SimulatedDisk::State {
  DiskFaults faults;
  Random random;
  std::string name = unique_vfs_name("simulated");
  sqlite3_vfs vfs{};
  sqlite3_io_methods methods{};

  Names names, durable_names;
  std::map<std::string, std::uint64_t> locks;  // Token of the holder, by folder.
  std::uint64_t next_token = 1;
  std::uint64_t life = 0;  // Crashes so far: what was opened before is dead.
  std::uint64_t operations = 0, syncs = 0;
  std::optional<std::uint64_t> halt_at;
  bool halted = false;
  double time = 0;

  /// Placed by SQLite into memory of its own.
  struct File {
    sqlite3_file ours;
    State* disk;
    std::uint64_t life;
    std::shared_ptr<DiskFile>* file;
    std::string* path;  // Empty for a nameless temporary file.
    bool works() const { return !disk->halted && life == disk->life; }
    DiskFile& data() const { return **file; }
  };
  static File& file_of(sqlite3_file* file) { return *reinterpret_cast<File*>(file); }
  static State& state_of(sqlite3_vfs* vfs) { return *static_cast<State*>(vfs->pAppData); }

  /// Before everything that changes the disk; false when the power is gone.
  bool begin_operation() {
    if (halt_at && operations >= *halt_at) halted = true;
    if (halted) return false;
    ++operations;
    return true;
  }

  void sync_folder(const std::string& path) {
    const auto folder = parent_of(path);
    std::erase_if(durable_names, [&](const auto& entry) { return parent_of(entry.first) == folder; });
    for (const auto& [one, file] : names)
      if (parent_of(one) == folder) durable_names[one] = file;
  }

  static int open(sqlite3_vfs* vfs, const char* path, sqlite3_file* file, int flags, int* out_flags) {
    auto& disk = state_of(vfs);
    auto& mine = file_of(file);
    mine.ours.pMethods = nullptr;
    if (disk.halted) return SQLITE_CANTOPEN;
    std::shared_ptr<DiskFile> data;
    if (path == nullptr) {
      data = std::make_shared<DiskFile>();
    } else {
      const auto found = disk.names.find(path);
      if (found == disk.names.end() && (flags & SQLITE_OPEN_CREATE) == 0) return SQLITE_CANTOPEN;
      data = found == disk.names.end() ? disk.names[path] = std::make_shared<DiskFile>() : found->second;
    }
    mine.disk = &disk;
    mine.life = disk.life;
    mine.file = new std::shared_ptr<DiskFile>(std::move(data));
    mine.path = new std::string(path == nullptr ? "" : path);
    mine.ours.pMethods = &disk.methods;
    if (out_flags != nullptr) *out_flags = flags;
    return SQLITE_OK;
  }

  static int close(sqlite3_file* file) {
    delete file_of(file).file;
    delete file_of(file).path;
    file->pMethods = nullptr;
    return SQLITE_OK;
  }

  static int read(sqlite3_file* file, void* into, int length, sqlite3_int64 offset) {
    auto& mine = file_of(file);
    if (!mine.works()) return SQLITE_IOERR_READ;
    const auto& bytes = mine.data().current;
    const auto from = std::min<std::size_t>(bytes.size(), static_cast<std::size_t>(offset));
    const auto there = std::min<std::size_t>(bytes.size() - from, static_cast<std::size_t>(length));
    std::memcpy(into, bytes.data() + from, there);
    if (there == static_cast<std::size_t>(length)) return SQLITE_OK;
    std::memset(static_cast<char*>(into) + there, 0, static_cast<std::size_t>(length) - there);
    return SQLITE_IOERR_SHORT_READ;
  }

  static int write(sqlite3_file* file, const void* bytes, int length, sqlite3_int64 offset) {
    auto& mine = file_of(file);
    if (!mine.works() || !mine.disk->begin_operation()) return SQLITE_IOERR_WRITE;
    auto& faults = mine.disk->faults;
    if (faults.full) {
      ++faults.fired;
      return SQLITE_FULL;
    }
    const bool cut_short = take(faults.short_writes);
    const bool torn = !cut_short && faults.torn_write.exchange(false);
    const auto arrives = static_cast<std::size_t>(cut_short || torn ? length / 2 : length);
    mine.data().change(
        {false, static_cast<std::uint64_t>(offset), std::string(static_cast<const char*>(bytes), arrives)});
    if (!cut_short && !torn) return SQLITE_OK;
    ++faults.fired;
    if (torn) mine.disk->halted = true;
    return SQLITE_IOERR_WRITE;
  }

  static int truncate(sqlite3_file* file, sqlite3_int64 size) {
    auto& mine = file_of(file);
    if (!mine.works() || !mine.disk->begin_operation()) return SQLITE_IOERR_TRUNCATE;
    mine.data().change({true, static_cast<std::uint64_t>(size), {}});
    return SQLITE_OK;
  }

  static int sync(sqlite3_file* file, int) {
    auto& mine = file_of(file);
    if (!mine.works() || !mine.disk->begin_operation()) return SQLITE_IOERR_FSYNC;
    ++mine.disk->syncs;
    if (take(mine.disk->faults.failed_syncs)) {
      ++mine.disk->faults.fired;
      mine.data().fail_sync();
      return SQLITE_IOERR_FSYNC;
    }
    mine.data().sync();
    const auto durable = mine.disk->durable_names.find(*mine.path);
    if (!mine.path->empty() && (durable == mine.disk->durable_names.end() || durable->second != *mine.file))
      mine.disk->sync_folder(*mine.path);
    return SQLITE_OK;
  }

  static int remove(sqlite3_vfs* vfs, const char* path, int sync_folder) {
    auto& disk = state_of(vfs);
    if (!disk.begin_operation()) return SQLITE_IOERR_DELETE;
    if (disk.names.erase(path) == 0) return SQLITE_IOERR_DELETE_NOENT;
    if (sync_folder != 0) disk.sync_folder(path);
    return SQLITE_OK;
  }

  explicit State(std::uint64_t seed) : random(seed) {
    sqlite3_initialize();
    methods.iVersion = 1;
    methods.xClose = close;
    methods.xRead = read;
    methods.xWrite = write;
    methods.xTruncate = truncate;
    methods.xSync = sync;
    methods.xFileSize = [](sqlite3_file* f, sqlite3_int64* size) {
      if (!file_of(f).works()) return SQLITE_IOERR_FSTAT;
      *size = static_cast<sqlite3_int64>(file_of(f).data().current.size());
      return SQLITE_OK;
    };
    // The folder's lock keeps journals apart.
    methods.xLock = [](sqlite3_file* f, int) { return file_of(f).works() ? SQLITE_OK : SQLITE_IOERR_LOCK; };
    methods.xUnlock = [](sqlite3_file*, int) { return SQLITE_OK; };
    methods.xCheckReservedLock = [](sqlite3_file*, int* out) {
      *out = 0;
      return SQLITE_OK;
    };
    methods.xFileControl = [](sqlite3_file*, int, void*) { return SQLITE_NOTFOUND; };
    methods.xSectorSize = [](sqlite3_file*) { return static_cast<int>(sector_bytes); };
    methods.xDeviceCharacteristics = [](sqlite3_file*) { return SQLITE_IOCAP_POWERSAFE_OVERWRITE; };
    vfs.iVersion = 2;
    vfs.szOsFile = static_cast<int>(sizeof(File));
    vfs.mxPathname = 1024;
    vfs.zName = name.c_str();
    vfs.pAppData = this;
    vfs.xOpen = open;
    vfs.xDelete = remove;
    vfs.xAccess = [](sqlite3_vfs* v, const char* path, int, int* out) {
      if (state_of(v).halted) return SQLITE_IOERR_ACCESS;
      const auto found = state_of(v).names.find(path);
      // As SQLite's own: an empty file counts as none.
      *out = found != state_of(v).names.end() && !found->second->current.empty() ? 1 : 0;
      return SQLITE_OK;
    };
    vfs.xFullPathname = [](sqlite3_vfs*, const char* path, int length, char* out) {
      if (std::strlen(path) >= static_cast<std::size_t>(length)) return SQLITE_CANTOPEN;
      std::strcpy(out, path);
      return SQLITE_OK;
    };
    vfs.xRandomness = [](sqlite3_vfs* v, int length, char* out) {
      for (int i = 0; i < length; ++i) out[i] = static_cast<char>(state_of(v).random.next());
      return length;
    };
    vfs.xSleep = [](sqlite3_vfs*, int microseconds) { return microseconds; };
    vfs.xCurrentTime = [](sqlite3_vfs* v, double* out) {
      *out = 2440587.5 + state_of(v).time / 86400;
      return SQLITE_OK;
    };
    vfs.xCurrentTimeInt64 = [](sqlite3_vfs* v, sqlite3_int64* out) {
      *out = sqlite3_int64{210866760000000} + static_cast<sqlite3_int64>(state_of(v).time * 1000);
      return SQLITE_OK;
    };
    vfs.xGetLastError = [](sqlite3_vfs*, int, char*) { return 0; };
    ORRERY_CHECK(sqlite3_vfs_register(&vfs, 0) == SQLITE_OK);
  }
  ~State() { sqlite3_vfs_unregister(&vfs); }
};

namespace {

class SimulatedFolderLock final : public FolderLock {
public:
  SimulatedFolderLock(SimulatedDisk::State& disk, std::string folder, std::uint64_t token)
      : disk_(disk), folder_(std::move(folder)), token_(token) {}
  ~SimulatedFolderLock() override {
    if (held()) disk_.locks.erase(folder_);
  }
  bool held() const override {
    const auto found = disk_.locks.find(folder_);
    return found != disk_.locks.end() && found->second == token_;
  }

private:
  SimulatedDisk::State& disk_;
  std::string folder_;
  std::uint64_t token_;
};

}  // namespace

SimulatedDisk::SimulatedDisk(std::uint64_t seed) : state_(std::make_unique<State>(seed)) {}
SimulatedDisk::~SimulatedDisk() = default;
DiskFaults& SimulatedDisk::faults() { return state_->faults; }

void SimulatedDisk::crash(Random& random) {
  auto& disk = *state_;
  Names survivors = disk.durable_names;
  for (const auto& [path, file] : disk.names) {
    const auto durable = disk.durable_names.find(path);
    if ((durable == disk.durable_names.end() || durable->second != file) && random.below(2) == 0) survivors[path] = file;
  }
  for (const auto& [path, file] : disk.durable_names)
    if (!disk.names.contains(path) && random.below(2) == 0) survivors.erase(path);
  for (auto& [path, file] : survivors) file->lose_power(random);
  disk.names = disk.durable_names = std::move(survivors);
  disk.locks.clear();
  ++disk.life;
  disk.halted = false;
  disk.halt_at.reset();
}

void SimulatedDisk::halt_after(std::uint64_t operations) { state_->halt_at = state_->operations + operations; }
bool SimulatedDisk::halted() const { return state_->halted; }
std::uint64_t SimulatedDisk::operations() const { return state_->operations; }
std::uint64_t SimulatedDisk::syncs() const { return state_->syncs; }
void SimulatedDisk::revoke_locks() { state_->locks.clear(); }
void SimulatedDisk::set_time(double seconds) { state_->time = seconds; }

bool SimulatedDisk::flip_bit(const std::string& path, std::uint64_t bit) {
  const auto found = state_->names.find(path);
  if (found == state_->names.end() || bit / 8 >= found->second->current.size()) return false;
  auto& file = *found->second;
  const auto flip = [&](std::string& bytes) {
    if (bit / 8 < bytes.size()) bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
  };
  flip(file.current);
  flip(file.durable);
  return true;
}

std::optional<std::string> SimulatedDisk::contents(const std::string& path) const {
  const auto found = state_->names.find(path);
  if (found == state_->names.end()) return std::nullopt;
  return found->second->current;
}

void SimulatedDisk::put(const std::string& path, std::string bytes) {
  auto file = std::make_shared<DiskFile>();
  file->current = file->durable = std::move(bytes);
  state_->names[path] = state_->durable_names[path] = std::move(file);
}

std::uint64_t SimulatedDisk::digest() const {
  std::string all;
  for (const auto& [path, file] : state_->names)
    all += path + '\0' + std::to_string(file->current.size()) + '\0' + file->current + file->durable;
  return xxh3_of(std::as_bytes(std::span(all)));
}

const std::string& SimulatedDisk::vfs_name() const { return state_->name; }

Result<std::unique_ptr<FolderLock>> SimulatedDisk::lock_folder(const std::string& folder) {
  auto& disk = *state_;
  if (disk.halted) return Error{ErrorCode::io_failed, "cannot lock " + folder + ": the simulated disk has no power"};
  if (disk.locks.contains(folder))
    return Error{ErrorCode::journal_busy, "another coordinator has the journal in " + folder,
                 "end that one first, or use another state folder"};
  // The log's salts come from SQLite's own generator, which all connections of a process share: it begins anew with
  // each journal that is opened here.
  sqlite3_test_control(SQLITE_TESTCTRL_PRNG_SEED, static_cast<int>((disk.random.next() & 0x3fffffff) + 1),
                       static_cast<sqlite3*>(nullptr));
  const auto token = disk.next_token++;
  disk.locks[folder] = token;
  return std::unique_ptr<FolderLock>(std::make_unique<SimulatedFolderLock>(disk, folder, token));
}

Status SimulatedDisk::make_file(const std::string& path) {
  if (!state_->begin_operation())
    return Error{ErrorCode::io_failed, "cannot open " + path + ": the simulated disk has no power"};
  if (!state_->names.contains(path)) state_->names[path] = std::make_shared<DiskFile>();
  state_->sync_folder(path);
  return Done{};
}

std::optional<std::uint64_t> SimulatedDisk::file_size(const std::string& path) const {
  const auto found = state_->names.find(path);
  if (found == state_->names.end()) return std::nullopt;
  return found->second->current.size();
}

std::uint64_t SimulatedDisk::random() { return state_->random.next(); }

}  // namespace orrery::actors
