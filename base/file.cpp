#include "base/file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <filesystem>

namespace orrery {

std::string errno_text() { return std::strerror(errno); }

struct MappedFile::Mapping {
  std::string path;
  void* address = nullptr;
  std::size_t size = 0;
  ~Mapping() {
    if (address != nullptr) ::munmap(address, size);
  }
};

const std::string& MappedFile::path() const { return mapping_->path; }

Result<MappedFile> MappedFile::open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0)
    return Error{errno == ENOENT ? ErrorCode::not_found : ErrorCode::io_failed, "cannot open " + path + ": " + errno_text()};
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    return Error{ErrorCode::io_failed, path + " is not a regular file"};
  }
  auto mapping = std::make_shared<Mapping>();
  mapping->path = path;
  mapping->size = static_cast<std::size_t>(status.st_size);
  if (mapping->size > 0) {
    void* address = ::mmap(nullptr, mapping->size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (address == MAP_FAILED) {
      const auto why = errno_text();
      ::close(descriptor);
      return Error{ErrorCode::io_failed, "cannot map " + path + ": " + why};
    }
    mapping->address = address;
  }
  ::close(descriptor);
  MappedFile file;
  file.bytes_ = {static_cast<const std::byte*>(mapping->address), mapping->size};
  file.mapping_ = std::move(mapping);
  return file;
}

void MappedFile::release_pages(std::span<const std::byte> range) const {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(range.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(range.data() + range.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

Result<std::string> read_text_file(const std::string& path, std::uint64_t limit) {
  ORRERY_TRY(file, MappedFile::open(path));
  if (file.bytes().size() > limit)
    return Error{ErrorCode::io_failed,
                 path + " has " + std::to_string(file.bytes().size()) + " bytes; at most " + std::to_string(limit) + " are read"};
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  AtomicFile file;
  file.path_ = path;
  file.partial_ = path + ".partial-" + std::to_string(::getpid());
  file.descriptor_ = ::open(file.partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file.descriptor_ < 0) {
    const auto why = errno_text();
    file.partial_.clear();
    return Error{ErrorCode::io_failed, "cannot write " + path + ": " + why, "does the folder exist, and may you write there?"};
  }
  // Where a file system knows no locks, the number in the name has to do.
  (void)::flock(file.descriptor_, LOCK_EX | LOCK_NB);
  return file;
}

void remove_abandoned_partials(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path target(path);
  const auto folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  const auto prefix = target.filename().string() + ".partial-";
  std::error_code ignored;
  for (fs::directory_iterator entry(folder, ignored), end; !ignored && entry != end; entry.increment(ignored)) {
    const auto name = entry->path().filename().string();
    if (!name.starts_with(prefix)) continue;
    int pid = 0;
    const auto* last = name.data() + name.size();
    const auto [rest, wrong] = std::from_chars(name.data() + prefix.size(), last, pid);
    if (wrong != std::errc() || pid <= 0 || (rest != last && *rest != '.')) continue;
    if (::kill(pid, 0) == 0 || errno != ESRCH) continue;
    struct stat status {};
    if (::lstat(entry->path().c_str(), &status) != 0 || status.st_uid != ::geteuid()) continue;
    // The process may live in another container that has the folder too.
    const int file = ::open(entry->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0) continue;
    std::error_code failed;
    if (::flock(file, LOCK_EX | LOCK_NB) == 0) fs::remove_all(entry->path(), failed);
    ::close(file);
  }
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept { *this = std::move(other); }
AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  if (this != &other) {
    drop();
    path_ = std::move(other.path_);
    partial_ = std::exchange(other.partial_, {});
    descriptor_ = std::exchange(other.descriptor_, -1);
  }
  return *this;
}
AtomicFile::~AtomicFile() { drop(); }

void AtomicFile::drop() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!partial_.empty()) ::unlink(partial_.c_str());
  descriptor_ = -1;
  partial_.clear();
}

Status AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Error{ErrorCode::io_failed, "cannot write " + path_ + ": " + errno_text()};
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return Done{};
}

Status AtomicFile::commit() {
  if (::fsync(descriptor_) != 0 || ::rename(partial_.c_str(), path_.c_str()) != 0)
    return Error{ErrorCode::io_failed, "cannot write " + path_ + ": " + errno_text()};
  partial_.clear();
  drop();
  return Done{};
}

}  // namespace orrery
