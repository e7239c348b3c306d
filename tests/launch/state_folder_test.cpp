#include "launch/state_folder.hpp"

#include <cstdlib>
#include <fstream>

#include <sys/stat.h>

#include <catch2/catch.hpp>

#include "tests/launch/scratch.hpp"

namespace orrery::launch {
namespace {

/// Sets a variable of the environment until it goes.
class Setting {
public:
  Setting(const char* name, const char* value) : name_(name) {
    const char* before = std::getenv(name);
    had_ = before != nullptr;
    before_ = had_ ? before : "";
    if (value != nullptr)
      setenv(name, value, 1);
    else
      unsetenv(name);
  }
  ~Setting() {
    if (had_)
      setenv(name_, before_.c_str(), 1);
    else
      unsetenv(name_);
  }

private:
  const char* name_;
  bool had_;
  std::string before_;
};

}  // namespace

TEST_CASE("state folder: where the environment says, and a cluster's name leads nowhere else", "[launch]") {
  const Setting home("HOME", "/home/me");
  {
    const Setting state("XDG_STATE_HOME", "/var/state");
    CHECK(default_state_folder("two_nodes").value() == "/var/state/orrery/two_nodes");
    CHECK(default_state_folder("../../etc").value() == "/var/state/orrery/______etc");
  }
  const Setting relative("XDG_STATE_HOME", "state");
  CHECK(default_state_folder("c").value() == "/home/me/.local/state/orrery/c");
}

TEST_CASE("state folder: made with those above it, for this user only; again is fine", "[launch]") {
  const Scratch scratch;
  const auto path = scratch.path("a/b/c");
  REQUIRE(make_state_folder(path + "/").ok());
  REQUIRE(make_state_folder(path).ok());
  struct stat status {};
  REQUIRE(stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0700);
  std::ofstream(scratch.path("file")) << "x";
  CHECK_FALSE(make_state_folder(scratch.path("file")).ok());
  CHECK_FALSE(make_state_folder(scratch.path("file/below")).ok());
}

}  // namespace orrery::launch
