#include "launch/paths.hpp"

#include <cstdlib>
#include <filesystem>

namespace orrery::launch {
namespace {

namespace fs = std::filesystem;

bool is_folder(const fs::path& path) {
  std::error_code failed;
  return fs::is_directory(path, failed);
}

bool is_there(const fs::path& path) {
  std::error_code failed;
  return fs::exists(path, failed);
}

}  // namespace

Result<std::string> program_path() {
  std::error_code failed;
  const auto path = fs::read_symlink("/proc/self/exe", failed);
  if (failed) return Error{ErrorCode::io_failed, "the path of this program could not be read: " + failed.message()};
  return path.string();
}

std::string shipped_configs() {
  if (const char* set = std::getenv("ORRERY_CONFIGS"); set != nullptr && *set != '\0') return set;
  if (const auto program = program_path(); program.ok()) {
    const auto installed = fs::path(program.value()).parent_path().parent_path() / "share/orrery/configs";
    if (is_folder(installed)) return installed.string();
  }
  return is_folder(ORRERY_SOURCE_CONFIGS) ? ORRERY_SOURCE_CONFIGS : "";
}

std::string resolve_config_path(const std::string& path) {
  if (path == "-" || is_there(path) || fs::path(path).is_absolute()) return path;
  const auto shipped = shipped_configs();
  if (shipped.empty()) return path;
  fs::path relative = path;
  if (path.starts_with("configs/")) relative = path.substr(8);
  const auto candidate = fs::path(shipped) / relative;
  return is_there(candidate) ? candidate.string() : path;
}

}  // namespace orrery::launch
