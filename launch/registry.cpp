#include "launch/registry.hpp"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/file.hpp"
#include "base/json.hpp"
#include "launch/security.hpp"
#include "launch/state_folder.hpp"

namespace orrery::launch {

namespace {

// Cluster names come from YAML; a file name must not lead elsewhere.
std::string file_of(const std::string& folder, const std::string& name) { return folder + "/" + file_name_of(name) + ".json"; }

}  // namespace

bool is_alive(int pid) {
  if (pid <= 0 || (::kill(pid, 0) != 0 && errno != EPERM)) return false;
  // One that is dead, but not yet collected by its parent, can still be sent signals.
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text, '\0');
  const auto name_end = text.rfind(") ");
  return name_end == std::string::npos || name_end + 2 >= text.size() || (text[name_end + 2] != 'Z' && text[name_end + 2] != 'X');
}

Result<std::string> registry_folder() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  const std::string folder = runtime != nullptr && *runtime != '\0' ? std::string(runtime) + "/orrery" : "/tmp/orrery-" + std::to_string(::getuid());
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return Error{ErrorCode::io_failed, "cannot make " + folder + ": " + errno_text()};
  struct stat status {};
  if (::lstat(folder.c_str(), &status) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != ::getuid())
    return Error{ErrorCode::io_failed, folder + " is not a folder of yours", "remove it, or set XDG_RUNTIME_DIR"};
  return folder;
}

Result<std::vector<RunningCluster>> running_clusters() {
  ORRERY_TRY(folder, registry_folder());
  std::vector<RunningCluster> clusters;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.path().extension() != ".json") continue;
    const auto json = read_json_file(entry.path().string());
    RunningCluster cluster;
    if (json.ok() && json.value().is_object()) {
      cluster.name = json.value().value("name", "");
      cluster.address = json.value().value("address", "");
      cluster.pid = json.value().value("pid", 0);
      cluster.security.keys = json.value().value("keys", "");
      cluster.security.tls = json.value().value("tls", "") == "always" ? topology::TlsUse::always : topology::TlsUse::automatic;
      cluster.security.insecure = json.value().value("insecure", false);
    }
    if (is_alive(cluster.pid))
      clusters.push_back(std::move(cluster));
    else
      std::filesystem::remove(entry.path(), ignored);
  }
  std::sort(clusters.begin(), clusters.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return clusters;
}

Result<RunningCluster> find_cluster(const std::string& name) {
  ORRERY_TRY(clusters, running_clusters());
  std::string names;
  for (const auto& cluster : clusters) names += (names.empty() ? "" : ", ") + cluster.name;
  if (name.empty() && clusters.size() == 1) return clusters.front();
  for (const auto& cluster : clusters)
    if (cluster.name == name) return cluster;
  if (clusters.empty())
    return Error{ErrorCode::unreachable, name.empty() ? "no cluster is running here" : "no cluster named '" + name + "' is running here",
                 "start one with `orrery up -f FILE`"};
  if (name.empty()) return Error{ErrorCode::usage, "several clusters are running: " + names, "say which"};
  return Error{ErrorCode::unreachable, "no cluster named '" + name + "' is running here", "running: " + names};
}

Result<Registration> Registration::create(const RunningCluster& cluster) {
  ORRERY_TRY(clusters, running_clusters());
  for (const auto& other : clusters)
    if (other.name == cluster.name)
      return Error{ErrorCode::invalid_config, "a cluster named '" + cluster.name + "' runs already, as process " + std::to_string(other.pid),
                   "end it with `orrery down " + cluster.name + "`, or change metadata.name"};
  ORRERY_TRY(folder, registry_folder());
  const auto path = file_of(folder, cluster.name);
  OrderedJson json;
  json["name"] = cluster.name;
  json["address"] = cluster.address;
  json["pid"] = cluster.pid;
  json["keys"] = absolute_keys(cluster.security.keys);  // Others look from other folders.
  json["tls"] = cluster.security.tls == topology::TlsUse::always ? "always" : "auto";
  json["insecure"] = cluster.security.insecure;
  ORRERY_TRY(file, AtomicFile::create(path));
  ORRERY_TRY_DONE(file.write(json.dump() + "\n"));
  ORRERY_TRY_DONE(file.commit());
  return Registration(path);
}

Registration::Registration(Registration&& other) noexcept : path_(std::exchange(other.path_, {})) {}
Registration::~Registration() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

}  // namespace orrery::launch
