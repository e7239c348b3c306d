// Child processes: started, watched and stopped, with nothing left behind.
//
// Each child gets a process group of its own, so a Ctrl-C in the terminal reaches the launcher alone, which then
// stops its children in order. A child dies with the thread that started it (PR_SET_PDEATHSIG, SIGKILL), so even
// `kill -9` of the launcher leaves nothing behind; `detached` children are the exception that asks for it.
//
// Death is seen through a pidfd: `descriptor()` becomes readable at once, for any poll loop.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <sys/types.h>

#include "base/clock.hpp"
#include "base/result.hpp"

namespace orrery::launch {

struct ProcessSpec {
  std::string name;                    // For messages: "node n1", "ffmpeg".
  std::vector<std::string> arguments;  // Program first; one without '/' is looked up in PATH.
  /// Added to this process's environment, or replacing what is there.
  std::vector<std::pair<std::string, std::string>> environment = {};
  /// Takes stdout and stderr (appended); empty: the child writes where we write.
  std::string log_file = {};
  /// stdin is a socket that `write_input` feeds; otherwise `input_file`, from its beginning.
  bool with_input = false;
  std::string input_file = {};  // Empty: /dev/null.
  /// Logical processors that it may run on (cores.hpp); empty: as this process.
  std::vector<std::uint32_t> cpus = {};
  /// A session of its own that outlives this process; its destructor leaves it alone.
  bool detached = false;
};

/// How a process ended.
struct ProcessEnd {
  int exit_code = 0;  // 128 + signal when a signal ended it.
  int signal = 0;     // 0: it ended by itself.
  bool ok() const { return exit_code == 0; }
  /// "ended with exit code 3", "was ended by signal 9 (Killed)".
  std::string text() const;
};

/// A running child. The destructor kills and reaps it with its group.
/// Threads: one, which lives as long as the child.
class Process {
public:
  /// Fails with io_failed ("node n1 could not be started: PROGRAM: No such file or directory").
  static Result<Process> start(const ProcessSpec& spec);
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();

  const std::string& name() const { return name_; }
  pid_t id() const { return id_; }
  /// Readable once the child is dead. Owned by this object.
  int descriptor() const { return descriptor_; }

  /// How it ended, if it has. Never waits.
  std::optional<ProcessEnd> ended();
  /// Waits until it ended, at most `limit`.
  std::optional<ProcessEnd> wait(Duration limit);
  /// Sends `signal` to the child's group; nothing happens when it is dead.
  void send_signal(int signal);
  /// SIGTERM, then after `grace` SIGKILL; returns when it is dead.
  ProcessEnd stop(Duration grace);

  /// Writes all bytes to stdin. Fails with io_failed when the child has closed it or died, and with timed_out when
  /// it takes nothing for `limit`.
  Status write_input(std::span<const std::byte> bytes, Duration limit);
  /// End of file for the child.
  void close_input();

private:
  Process() = default;
  void release();
  std::string name_;
  pid_t id_ = -1;
  int descriptor_ = -1;
  int input_ = -1;
  bool detached_ = false;
  std::optional<ProcessEnd> end_;
};

/// SIGTERM to all, one common `grace`, then SIGKILL to the rest; returns when all are dead.
void stop_all(std::span<Process> processes, Duration grace);

/// The command that runs `arguments` on another host without asking for anything:
/// {"ssh", "-o", "BatchMode=yes", ..., "user@host", "'orrery' 'node' ..."}. `user` may be empty.
/// Fails with invalid_config for a host or user that ssh could take for an option or that has odd characters.
Result<std::vector<std::string>> ssh_command(const std::string& user, const std::string& host, std::span<const std::string> arguments);

/// One word for a POSIX shell, in single quotes.
std::string shell_quoted(const std::string& word);

/// The last lines of a log, none from before the byte `begin`, for an error message; empty when it cannot be read. Reads at
/// most 64 KiB.
std::string last_lines(const std::string& path, std::size_t count, std::uint64_t begin = 0);

}  // namespace orrery::launch
