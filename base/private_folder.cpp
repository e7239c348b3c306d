#include "base/private_folder.hpp"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.hpp"

namespace orrery {
namespace {

namespace fs = std::filesystem;

constexpr const char* prefix = "orrery-";
constexpr std::size_t drawn_letters = 6;

/// Locks the file if it is there (`create`: makes it) and nobody holds it. -1: somebody does, or it went away meanwhile.
int locked(const std::string& path, bool create) {
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0), 0600);
  if (file < 0) return -1;
  struct stat status {};
  if (::flock(file, LOCK_EX | LOCK_NB) == 0 && ::fstat(file, &status) == 0 && status.st_nlink > 0) return file;
  ::close(file);
  return -1;
}

/// Folders like ours whose owner is dead. Errors are nobody's business here: another user's folder, one that a third
/// process removes at the same moment.
void remove_abandoned(const std::string& base) {
  std::error_code ignored;
  for (fs::directory_iterator entry(base, fs::directory_options::skip_permission_denied, ignored), end; !ignored && entry != end; entry.increment(ignored)) {
    const auto name = entry->path().filename().string();
    if (!name.starts_with(prefix) || name.size() != std::string(prefix).size() + drawn_letters ||
        !std::all_of(name.end() - drawn_letters, name.end(), [](unsigned char c) { return std::isalnum(c) != 0; }))
      continue;
    struct stat status {};
    if (::lstat(entry->path().c_str(), &status) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != ::geteuid()) continue;
    const int lock = locked(entry->path().string() + "/lock", false);
    if (lock < 0) continue;
    std::error_code failed;
    fs::remove_all(entry->path(), failed);
    ::close(lock);
  }
}

}  // namespace

Result<PrivateFolder> PrivateFolder::create() {
  const char* named = std::getenv("TMPDIR");
  const std::string base = named != nullptr && *named != '\0' ? named : "/tmp";
  remove_abandoned(base);
  // Again when another process took it for abandoned between the making of folder and lock.
  for (int attempt = 0; attempt < 16; ++attempt) {
    std::string pattern = base + "/" + prefix + std::string(drawn_letters, 'X');
    if (::mkdtemp(pattern.data()) == nullptr)
      return Error{ErrorCode::io_failed, "cannot make a folder like " + pattern + ": " + errno_text(),
                   "set TMPDIR to a folder you may write to"};
    PrivateFolder folder;
    folder.path_ = pattern;
    folder.lock_ = locked(pattern + "/lock", true);
    if (folder.lock_ >= 0) return folder;
  }
  return Error{ErrorCode::io_failed, "no folder in " + base + " could be locked", "set TMPDIR to a folder on a local disk"};
}

PrivateFolder::~PrivateFolder() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
  if (lock_ >= 0) ::close(lock_);
}

}  // namespace orrery
