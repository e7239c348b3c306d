#include "base/private_folder.hpp"

#include <cstdlib>
#include <filesystem>

#include "base/file.hpp"

namespace orrery {

Result<PrivateFolder> PrivateFolder::create() {
  const char* base = std::getenv("TMPDIR");
  std::string pattern = std::string(base != nullptr && *base != '\0' ? base : "/tmp") + "/orrery-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr)
    return Error{ErrorCode::io_failed, "cannot make a folder like " + pattern + ": " + errno_text(),
                 "set TMPDIR to a folder you may write to"};
  PrivateFolder folder;
  folder.path_ = pattern;
  return folder;
}

PrivateFolder::~PrivateFolder() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

}  // namespace orrery
