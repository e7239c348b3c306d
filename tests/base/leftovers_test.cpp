// What killed processes leave behind, and who removes it. Processes are killed for real.

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "base/file.hpp"
#include "base/private_folder.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace orrery;
using orrery::testing::TemporaryFolder;

namespace {

/// Runs `work` in a process that then kills itself, while it still holds what `work` returned.
template <class Work>
pid_t killed(Work work) {
  const pid_t child = fork();
  if (child == 0) {
    [[maybe_unused]] const auto held = work();
    raise(SIGKILL);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  return child;
}

std::size_t entries(const std::string& folder) {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++count;
  return count;
}

}  // namespace

TEST_CASE("private folder: one that a killed process left is removed by the next; a living one's and a stranger's stay", "[base]") {
  const TemporaryFolder base;
  const char* before = std::getenv("TMPDIR");
  const std::string kept = before != nullptr ? before : "";
  REQUIRE(setenv("TMPDIR", base.path().c_str(), 1) == 0);
  killed([] {
    auto folder = PrivateFolder::create();
    std::ofstream(folder.value().path() + "/socket") << "x";
    return folder;
  });
  CHECK(entries(base.path()) == 1);
  std::filesystem::create_directory(base.path() + "/orrery-nolock");
  std::filesystem::create_directory(base.path() + "/orrery-longer-name");
  std::ofstream(base.path() + "/orrery-longer-name/lock") << "";
  {
    auto first = PrivateFolder::create();
    REQUIRE(first.ok());
    auto second = PrivateFolder::create();
    REQUIRE(second.ok());
    CHECK(std::filesystem::exists(first.value().path() + "/lock"));
    CHECK(entries(base.path()) == 4);
  }
  CHECK(entries(base.path()) == 2);
  if (kept.empty())
    unsetenv("TMPDIR");
  else
    setenv("TMPDIR", kept.c_str(), 1);
}

TEST_CASE("partial files: those of dead processes go, those of living ones and of other targets stay", "[base]") {
  const TemporaryFolder folder;
  const auto target = folder.path() + "/v.mp4";
  const auto dead = killed([&] {
    auto file = AtomicFile::create(target);
    std::ofstream(file.value().partial_path() + ".log") << "x";
    return file;
  });
  const auto partial = target + ".partial-" + std::to_string(dead);
  std::filesystem::create_directory(target + ".partial-" + std::to_string(dead) + ".frames");
  std::ofstream(target + ".partial-" + std::to_string(dead) + "x") << "x";
  std::ofstream(target + ".partial-") << "x";
  std::ofstream(folder.path() + "/w.mp4.partial-" + std::to_string(dead)) << "x";
  auto own = AtomicFile::create(target);
  REQUIRE(own.ok());
  REQUIRE(std::filesystem::exists(partial));
  remove_abandoned_partials(target);
  CHECK_FALSE(std::filesystem::exists(partial));
  CHECK_FALSE(std::filesystem::exists(partial + ".log"));
  CHECK_FALSE(std::filesystem::exists(partial + ".frames"));
  CHECK(std::filesystem::exists(own.value().partial_path()));
  CHECK(entries(folder.path()) == 4);  // Own, another target's, and two that are no process's.
}
