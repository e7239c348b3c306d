// A temporary folder that only this user can enter: for sockets and logs.
//
// Its owner holds a lock on the file `lock` inside for as long as it lives. So a folder whose lock can be had was left
// by a process that was killed, whatever became of its number since.

#pragma once

#include <string>
#include <utility>

#include "base/result.hpp"

namespace orrery {

/// Removed with everything in it when this object ends; a process that is killed leaves it behind, until the next
/// `create` of the same user in the same place.
class PrivateFolder {
public:
  /// "orrery-XXXXXX" in TMPDIR, else in /tmp. First removes what dead processes of this user left there. Fails with
  /// io_failed.
  static Result<PrivateFolder> create();
  PrivateFolder() = default;  // None.
  PrivateFolder(PrivateFolder&& other) noexcept
      : path_(std::exchange(other.path_, {})), lock_(std::exchange(other.lock_, -1)) {}
  PrivateFolder& operator=(PrivateFolder&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(lock_, other.lock_);
    return *this;
  }
  ~PrivateFolder();

  const std::string& path() const { return path_; }

private:
  std::string path_;
  int lock_ = -1;
};

}  // namespace orrery
