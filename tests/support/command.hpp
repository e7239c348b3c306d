// Runs the `orrery` program (or another) as a user would, and says what it printed and how it ended.
//
// Each command gets a scratch folder of its own for state (XDG_RUNTIME_DIR, TMPDIR), so that tests can see what it
// leaves behind: processes of its session, sockets, temporary files. What it keeps on purpose, journals, lies beside it
// (XDG_STATE_HOME).

#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/temporary_folder.hpp"

namespace orrery::testing {

struct CommandResult {
  int exit_code = -1;
  bool timed_out = false;
  std::string out, err;
};

/// A folder that goes away with this object.
class ScratchFolder {
public:
  ScratchFolder() { std::filesystem::create_directory(file("state")); }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::permissions(path(), std::filesystem::perms::owner_all, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::string& path() const { return folder_.path(); }
  std::string file(const std::string& name) const { return path() + "/" + name; }
  std::string write(const std::string& name, const std::string& text) const { return folder_.write(name, text); }
  /// What commands left in their state folder, besides nothing.
  std::vector<std::string> leftovers() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(file("state")))
      if (!entry.is_directory() || entry.path().filename().string().starts_with("orrery-")) names.push_back(entry.path().string());
    return names;
  }

private:
  TemporaryFolder folder_;
};

/// Pids of living processes whose environment names the scratch folder: what a command left running.
inline std::vector<int> processes_of(const ScratchFolder& scratch) {
  std::vector<int> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const auto name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream environment(entry.path() / "environ", std::ios::binary);
    std::stringstream text;
    text << environment.rdbuf();
    if (text.str().find("XDG_RUNTIME_DIR=" + scratch.path() + "/state") != std::string::npos) found.push_back(std::stoi(name));
  }
  return found;
}

/// Runs a command to its end. `meanwhile(pid, out so far, err so far)` is called every 10 ms.
inline CommandResult run_command(const ScratchFolder& scratch, std::vector<std::string> arguments,
                                 std::chrono::milliseconds limit = std::chrono::minutes(3),
                                 const std::function<void(int, const std::string&, const std::string&)>& meanwhile = {},
                                 const std::vector<std::string>& environment = {}) {
  int out[2], err[2];
  if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) std::abort();
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const int pid = ::fork();
  if (pid == 0) {
    ::dup2(out[1], 1);
    ::dup2(err[1], 2);
    const int null = ::open("/dev/null", O_RDONLY);
    ::dup2(null, 0);
    ::setpgid(0, 0);
    ::setenv("XDG_RUNTIME_DIR", (scratch.path() + "/state").c_str(), 1);
    ::setenv("TMPDIR", (scratch.path() + "/state").c_str(), 1);
    ::setenv("XDG_STATE_HOME", (scratch.path() + "/journals").c_str(), 1);
    for (const auto& each : environment) ::putenv(const_cast<char*>(each.c_str()));
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  ::close(out[1]);
  ::close(err[1]);
  CommandResult result;
  const auto until = std::chrono::steady_clock::now() + limit;
  bool out_open = true, err_open = true, dead = false;
  int status = 0;
  while (out_open || err_open || !dead) {
    const bool was_dead = dead;  // What it wrote last may come after this poll.
    pollfd waiting[2] = {{out_open ? out[0] : -1, POLLIN, 0}, {err_open ? err[0] : -1, POLLIN, 0}};
    ::poll(waiting, 2, 10);
    char buffer[65536];
    const auto read_some = [&](const pollfd& from, bool& open, std::string& into) {
      if ((from.revents & (POLLIN | POLLHUP)) == 0) return;
      const auto count = ::read(from.fd, buffer, sizeof buffer);
      if (count > 0)
        into.append(buffer, static_cast<std::size_t>(count));
      else
        open = false;
    };
    read_some(waiting[0], out_open, result.out);
    read_some(waiting[1], err_open, result.err);
    if (!dead && ::waitpid(pid, &status, WNOHANG) == pid) dead = true;
    // A child that outlives the command would hold the pipes open: it is not waited for.
    if (was_dead && waiting[0].revents == 0 && waiting[1].revents == 0) break;
    if (!dead && meanwhile) meanwhile(pid, result.out, result.err);
    if (!dead && std::chrono::steady_clock::now() > until) {
      result.timed_out = true;
      ::kill(-pid, SIGKILL);
      ::kill(pid, SIGKILL);
    }
  }
  ::close(out[0]);
  ::close(err[0]);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace orrery::testing
