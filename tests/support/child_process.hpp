// This test program once more, as another process that runs one of its hidden test cases until it is killed.

#pragma once

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <map>
#include <string>

#include <catch2/catch.hpp>

namespace orrery::testing {

class Child {
public:
  /// `tag` names the case, e.g. "[.echo-process]"; `environment` is added to this process's own.
  Child(std::string tag, const std::map<std::string, std::string>& environment) {
    for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
    std::string program = "/proc/self/exe";
    char* arguments[] = {program.data(), tag.data(), nullptr};
    REQUIRE(::posix_spawn(&pid_, program.c_str(), nullptr, nullptr, arguments, environ) == 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { kill(); }

  void kill() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  pid_t pid() const { return pid_; }

private:
  pid_t pid_ = 0;
};

}  // namespace orrery::testing
