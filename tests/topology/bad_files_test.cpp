// Each file in bad/ gives exactly the findings in its .expected file, all of them in one run.
//
// ORRERY_WRITE_EXPECTED=1 rewrites them; read the difference before committing it.

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include <catch2/catch.hpp>

#include "base/file.hpp"
#include "topology/config_set.hpp"

using namespace orrery;
using namespace orrery::topology;

namespace {

const std::string folder = std::string(ORRERY_SOURCE_DIR) + "/tests/topology/bad/";

/// Findings with the caret lines, paths shortened to the file's name.
std::string findings_of(const std::string& path) {
  const auto set = ConfigSet::read(
      {{path}, {}, std::string(ORRERY_SOURCE_DIR) + "/configs", [](const std::string&) { return std::nullopt; }});
  auto text = text_of(set.findings());
  for (auto at = text.find(folder); at != std::string::npos; at = text.find(folder)) text.erase(at, folder.size());
  return text;
}

}  // namespace

TEST_CASE("bad files: every one gives the findings that are expected of it", "[topology][yaml]") {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".yaml") paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  CHECK(paths.size() >= 100);
  for (const auto& path : paths) {
    INFO(path);
    const auto found = findings_of(path);
    CHECK(found.find(": error: ") != std::string::npos);
    const auto expected_path = path.substr(0, path.size() - 5) + ".expected";
    if (std::getenv("ORRERY_WRITE_EXPECTED") != nullptr) {
      auto file = AtomicFile::create(expected_path);
      REQUIRE(file.ok());
      REQUIRE(file.value().write(found).ok());
      REQUIRE(file.value().commit().ok());
    }
    const auto expected = read_text_file(expected_path, 1 << 20);
    REQUIRE(expected.ok());
    CHECK(found == expected.value());
  }
}

TEST_CASE("bad files: a file larger than 1 MiB, a missing file and an empty folder are findings",
          "[topology][yaml]") {
  Findings findings;
  CHECK(read_yaml("big.yaml", std::string((1 << 20) + 1, ' '), findings).empty());
  REQUIRE(findings.size() == 1);
  CHECK(findings[0].headline() == "big.yaml: error: the file is larger than 1 MiB [E107]");
  const auto missing = ConfigSet::read({{folder + "no_such_file.yaml"}, {}, "", process_environment()});
  REQUIRE(missing.findings().size() == 1);
  CHECK(missing.findings()[0].code == "E100");
  CHECK(missing.resolve().error().code == ErrorCode::invalid_config);
}
