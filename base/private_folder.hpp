// A temporary folder that only this user can enter: for sockets and logs.

#pragma once

#include <string>
#include <utility>

#include "base/result.hpp"

namespace orrery {

/// Removed with everything in it when this object ends; a process that is killed leaves it behind.
class PrivateFolder {
public:
  /// In TMPDIR, else /tmp. Fails with io_failed.
  static Result<PrivateFolder> create();
  PrivateFolder() = default;  // None.
  PrivateFolder(PrivateFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  PrivateFolder& operator=(PrivateFolder&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~PrivateFolder();

  const std::string& path() const { return path_; }

private:
  std::string path_;
};

}  // namespace orrery
