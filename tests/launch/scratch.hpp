// A folder for one test case; it is removed with what it holds.

#pragma once

#include <filesystem>
#include <string>

#include "tests/support/temporary_folder.hpp"

namespace orrery::launch {

class Scratch {
public:
  std::string path(const std::string& name) const { return folder() + "/" + name; }
  const std::string& folder() const { return folder_.path(); }
  /// Files and folders directly inside.
  std::size_t entry_count() const {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder())) ++count;
    return count;
  }

private:
  testing::TemporaryFolder folder_;
};

}  // namespace orrery::launch
