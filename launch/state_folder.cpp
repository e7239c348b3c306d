#include "launch/state_folder.hpp"

#include <cctype>
#include <cstdlib>
#include <filesystem>

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.hpp"

namespace orrery::launch {

std::string file_name_of(const std::string& cluster) {
  std::string safe;
  for (const char c : cluster) safe += std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' ? c : '_';
  return safe;
}

Result<std::string> default_state_folder(const std::string& cluster) {
  // Relative ones are to be ignored, says the XDG specification.
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && *state == '/')
    return std::string(state) + "/orrery/" + file_name_of(cluster);
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home != '/') {
    const auto* entry = ::getpwuid(::geteuid());
    home = entry != nullptr ? entry->pw_dir : nullptr;
  }
  if (home == nullptr || *home != '/')
    return Error{ErrorCode::io_failed, "there is no home folder for the journal of cluster " + cluster, "name a folder with --state, or set XDG_STATE_HOME"};
  return std::string(home) + "/.local/state/orrery/" + file_name_of(cluster);
}

Status make_state_folder(const std::string& path) {
  const std::string hint = "name another folder with --state";
  std::error_code failed;
  auto text = std::filesystem::absolute(path, failed).lexically_normal().string();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  std::filesystem::create_directories(std::filesystem::path(text).parent_path(), failed);
  if (::mkdir(text.c_str(), 0700) != 0 && errno != EEXIST)
    return Error{ErrorCode::io_failed, "the state folder " + text + " cannot be made: " + errno_text(), hint};
  struct stat status {};
  if (::stat(text.c_str(), &status) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != ::geteuid())
    return Error{ErrorCode::io_failed, "the state folder " + text + " is not a folder of yours", hint};
  return Done{};
}

}  // namespace orrery::launch
