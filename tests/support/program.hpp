// Command lines and checks that the tests of the program share.

#pragma once

#include <catch2/catch.hpp>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "base/json.hpp"
#include "tests/support/command.hpp"

namespace orrery::testing {

inline const std::string configs = ORRERY_SOURCE_DIR "/configs";
inline const std::vector<std::string> tiny_on_two_nodes = {"-f", configs + "/clusters/two_nodes.yaml", "-f", configs + "/models/cosmos-tiny.yaml"};

inline std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// orrery generate PROMPT -o FILE, with plain progress on stderr.
inline std::vector<std::string> generate(const std::string& prompt, const std::string& output, const std::vector<std::string>& more) {
  return std::vector<std::string>{ORRERY_BINARY, "--progress", "plain", "generate", prompt, "-o", output} + more;
}
inline std::vector<std::string> verb(const std::vector<std::string>& arguments) { return std::vector<std::string>{ORRERY_BINARY} + arguments; }

/// Files and folders right below the scratch folder whose names begin like this.
inline std::vector<std::string> files_like(const ScratchFolder& scratch, const std::string& prefix) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(scratch.path()))
    if (entry.path().filename().string().starts_with(prefix)) names.push_back(entry.path().filename().string());
  return names;
}

/// Whether no process of the scratch folder lives any more; waits a second for the kernel to take them away.
inline bool all_gone(const ScratchFolder& scratch) {
  for (int i = 0; i < 100; ++i) {
    if (processes_of(scratch).empty()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

/// Nothing lives, nothing lies about.
inline void check_clean(const ScratchFolder& scratch) {
  CHECK(processes_of(scratch).empty());
  CHECK(scratch.leftovers().empty());
}

inline std::string last_line(const std::string& text) {
  const auto end = text.find_last_not_of('\n');
  if (end == std::string::npos) return {};
  const auto begin = text.rfind('\n', end);
  return text.substr(begin == std::string::npos ? 0 : begin + 1, end - (begin == std::string::npos ? 0 : begin + 1) + 1);
}

/// Ended with this code, one sentence that holds these words, and nothing on stdout.
inline void check_refused(const CommandResult& result, int exit_code, const std::vector<std::string>& words) {
  INFO("stderr: " << result.err);
  CHECK(!result.timed_out);
  CHECK(result.exit_code == exit_code);
  CHECK(result.out.empty());
  const auto line = last_line(result.err);
  CHECK(line.starts_with("orrery: error: "));
  for (const auto& word : words) {
    INFO("expected: " << word);
    CHECK(line.find(word) != std::string::npos);
  }
  std::size_t errors = 0;
  for (std::size_t at = result.err.find("error:"); at != std::string::npos; at = result.err.find("error:", at + 1)) ++errors;
  CHECK(errors == 1);
}

inline std::string frames_digest(const std::string& video) {
  const auto json = read_json_file(video + ".json");
  REQUIRE(json.ok());
  return json.value()["frames_sha256"].get<std::string>();
}

/// The process of this scratch folder whose command line holds `words`; 0 when there is none.
inline int process_with(const ScratchFolder& scratch, const std::string& words) {
  for (const int pid : processes_of(scratch)) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/cmdline", std::ios::binary);
    std::string line((std::istreambuf_iterator<char>(file)), {});
    std::replace(line.begin(), line.end(), '\0', ' ');
    if (line.find(words) != std::string::npos) return pid;
  }
  return 0;
}

}  // namespace orrery::testing
