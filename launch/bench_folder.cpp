#include "launch/bench_folder.hpp"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/file.hpp"
#include "launch/version.hpp"

namespace orrery::launch {
namespace {

std::string now_text() {
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", &utc);
  return text;
}

std::string replaced(std::string text, const std::string& word, const std::string& by) {
  for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + by.size())) text.replace(at, word.size(), by);
  return text;
}

/// The rest of the first line of a /proc file that begins so.
std::string value_in(const char* file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key)) {
      const auto colon = line.find(':');
      const auto begin = colon == std::string::npos ? std::string::npos : line.find_first_not_of(" \t", colon + 1);
      return begin == std::string::npos ? "" : line.substr(begin);
    }
  return "";
}

std::string governor() {
  std::ifstream in("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  std::string word;
  in >> word;
  return word;
}

}  // namespace

std::uint32_t core_count() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<std::uint32_t>(std::max(1, CPU_COUNT(&set)));
  return 1;
}

double load_average() {
  double load = 0;
  return ::getloadavg(&load, 1) == 1 ? load : 0;
}

OrderedJson machine_facts() {
  OrderedJson facts;
  facts["orrery"] = version_line();
  facts["began"] = now_text();
  facts["cpu"] = value_in("/proc/cpuinfo", "model name");
  facts["cores"] = core_count();
  utsname system{};
  if (::uname(&system) == 0) facts["kernel"] = std::string(system.sysname) + " " + system.release + " " + system.machine;
  facts["memory"] = value_in("/proc/meminfo", "MemTotal");
  double loads[3] = {0, 0, 0};
  if (::getloadavg(loads, 3) == 3) facts["load_average"] = {loads[0], loads[1], loads[2]};
  if (const auto word = governor(); !word.empty()) facts["governor"] = word;
  return facts;
}

std::vector<std::string> doubts_about_machine() {
  std::vector<std::string> doubts;
  const auto load = load_average();
  const auto per_core = load / core_count();
  if (per_core > 0.3) {
    char text[160];
    std::snprintf(text, sizeof text, "the machine is busy: load average %.2f on %u cores, above 0.3 per core; times may be too long [W401]", load, core_count());
    doubts.emplace_back(text);
  }
  if (const auto word = governor(); word == "powersave" || word == "ondemand" || word == "conservative")
    doubts.push_back("the frequency governor is '" + word + "', which makes times depend on what ran before [W403]");
  return doubts;
}

Result<BenchFolder> BenchFolder::create(const std::string& pattern, const std::string& name) {
  BenchFolder folder;
  folder.path_ = replaced(replaced(pattern, "{name}", name), "{timestamp}", now_text());
  const auto failed = [&](const std::string& why) { return Error{ErrorCode::io_failed, "the run's folder " + folder.path_ + " " + why}; };
  std::error_code error;
  const auto wanted = folder.path_;
  // Two runs within a second.
  for (int i = 2; pattern.find("{timestamp}") != std::string::npos && std::filesystem::exists(folder.path_, error) && i < 100; ++i)
    folder.path_ = wanted + "-" + std::to_string(i);
  if (std::filesystem::exists(folder.path_, error) && !std::filesystem::is_empty(folder.path_, error)) return failed("exists and is not empty");
  std::filesystem::create_directories(folder.path_ + "/plots", error);
  if (!error) std::filesystem::create_directories(folder.path_ + "/configurations", error);
  if (error) return failed("cannot be made: " + error.message());
  return folder;
}

Status BenchFolder::write(const std::string& name, const std::string& text) const {
  ORRERY_TRY(file, AtomicFile::create(path_ + "/" + name));
  ORRERY_TRY_DONE(file.write(text));
  return file.commit();
}

Status BenchFolder::add_event(const OrderedJson& event) const {
  std::ofstream file(path_ + "/events.jsonl", std::ios::app | std::ios::binary);
  file << event.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) << "\n";
  file.flush();
  if (!file.good()) return Error{ErrorCode::io_failed, path_ + "/events.jsonl cannot be written"};
  return Done{};
}

Status BenchFolder::write_result(const BenchResult& result) const {
  ORRERY_TRY_DONE(write("result.json", result.json().dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n"));
  ORRERY_TRY_DONE(write("table.csv", result.csv()));
  std::vector<std::string> names;
  for (const auto& [name, svg] : result.plots()) {
    ORRERY_TRY_DONE(write("plots/" + name, svg));
    names.push_back(name);
  }
  return write("report.md", result.markdown(names));
}

}  // namespace orrery::launch
