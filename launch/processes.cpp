#include "launch/processes.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <fstream>

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.hpp"

extern char** environ;

namespace orrery::launch {
namespace {

/// A descriptor that closes itself.
class Descriptor {
public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { reset(); }
  void reset(int number = -1) {
    if (number_ >= 0) close(number_);
    number_ = number;
  }
  int get() const { return number_; }
  int take() { return std::exchange(number_, -1); }

private:
  int number_;
};

/// NAME=VALUE lines of the child.
std::vector<std::string> environment_of(const ProcessSpec& spec) {
  std::vector<std::string> lines;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string line = *entry;
    const auto name = line.substr(0, line.find('='));
    const bool replaced = std::any_of(spec.environment.begin(), spec.environment.end(), [&](const auto& one) { return one.first == name; });
    if (!replaced) lines.push_back(line);
  }
  for (const auto& [name, value] : spec.environment) lines.push_back(name + "=" + value);
  return lines;
}

std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (auto& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

struct ChildSetup {
  char* const* arguments;
  char* const* environment;
  int input, output;  // output < 0: inherited.
  int failures;       // Takes errno when the program cannot be run.
  pid_t parent;
  bool detached;
  const cpu_set_t* cpus;  // Null: as the parent.
};

/// Between fork and exec: async-signal-safe calls only, because other threads of the parent may have held locks.
[[noreturn]] void become(const ChildSetup& setup) {
  const auto give_up = [&setup] {
    const int reason = errno;
    [[maybe_unused]] const auto written = write(setup.failures, &reason, sizeof reason);
    _exit(127);
  };
  if (setup.detached) {
    setsid();
  } else {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != setup.parent) _exit(127);  // The parent died before prctl.
  }
  // Only quicker: where it is refused, the child runs anywhere.
  if (setup.cpus != nullptr) sched_setaffinity(0, sizeof *setup.cpus, setup.cpus);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  std::signal(SIGPIPE, SIG_DFL);
  if (dup2(setup.input, 0) < 0) give_up();
  if (setup.output >= 0 && (dup2(setup.output, 1) < 0 || dup2(setup.output, 2) < 0)) give_up();
  close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
  execvpe(setup.arguments[0], setup.arguments, setup.environment);
  give_up();
  _exit(127);
}

ProcessEnd end_of(int status) {
  if (WIFSIGNALED(status)) return {128 + WTERMSIG(status), WTERMSIG(status)};
  return {WEXITSTATUS(status), 0};
}

bool is_plain_name(const std::string& text) {
  return !text.empty() && text.size() <= 255 && text.front() != '-' &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || std::strchr(".-_:", c) != nullptr;
         });
}

}  // namespace

std::string ProcessEnd::text() const {
  if (signal == 0) return "ended with exit code " + std::to_string(exit_code);
  return "was ended by signal " + std::to_string(signal) + " (" + strsignal(signal) + ")";
}

Result<Process> Process::start(const ProcessSpec& spec) {
  const auto failed = [&spec](const std::string& what) {
    return Error{ErrorCode::io_failed, spec.name + " could not be started: " + what};
  };
  ORRERY_CHECK(!spec.arguments.empty());

  Descriptor log, input, fed, heard, told;
  if (!spec.log_file.empty()) {
    log.reset(open(spec.log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (log.get() < 0) return failed("log file " + spec.log_file + ": " + errno_text());
  }
  if (spec.with_input) {
    // A socket and not a pipe: writing to one whose reader died is an error, never a signal.
    std::array<int, 2> pair{};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0) return failed(errno_text());
    input.reset(pair[0]);
    fed.reset(pair[1]);
  } else {
    const std::string file = spec.input_file.empty() ? "/dev/null" : spec.input_file;
    input.reset(open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (input.get() < 0) return failed(file + ": " + errno_text());
  }
  std::array<int, 2> failures{};
  if (pipe2(failures.data(), O_CLOEXEC) != 0) return failed(errno_text());
  heard.reset(failures[0]);
  told.reset(failures[1]);

  auto arguments = spec.arguments;
  auto environment = environment_of(spec);
  const auto argument_pointers = pointers_to(arguments);
  const auto environment_pointers = pointers_to(environment);
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  for (const auto cpu : spec.cpus)
    if (cpu < CPU_SETSIZE) CPU_SET(cpu, &cpus);
  const ChildSetup setup{argument_pointers.data(), environment_pointers.data(), input.get(), log.get(), told.get(), getpid(), spec.detached,
                         spec.cpus.empty() ? nullptr : &cpus};

  const pid_t id = fork();
  if (id < 0) return failed(errno_text());
  if (id == 0) become(setup);

  Process process;
  process.name_ = spec.name;
  process.id_ = id;
  process.input_ = fed.take();
  process.detached_ = spec.detached;
  if (!spec.detached) setpgid(id, id);  // Also here: whichever of the two comes first.
  process.descriptor_ = static_cast<int>(syscall(SYS_pidfd_open, id, 0));
  told.reset();
  int reason = 0;
  ssize_t got = 0;
  do got = read(heard.get(), &reason, sizeof reason);
  while (got < 0 && errno == EINTR);
  const bool unwatched = process.descriptor_ < 0;
  if (got > 0 || unwatched) {
    process.detached_ = false;  // It has to go with this object.
    return got > 0 ? failed(spec.arguments.front() + ": " + std::strerror(reason)) : failed("no process descriptor could be had");
  }
  return process;
}

Process::Process(Process&& other) noexcept
    : name_(std::move(other.name_)),
      id_(std::exchange(other.id_, -1)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      input_(std::exchange(other.input_, -1)),
      detached_(other.detached_),
      end_(other.end_) {}

Process& Process::operator=(Process&& other) noexcept {
  if (this != &other) {
    release();
    name_ = std::move(other.name_);
    id_ = std::exchange(other.id_, -1);
    descriptor_ = std::exchange(other.descriptor_, -1);
    input_ = std::exchange(other.input_, -1);
    detached_ = other.detached_;
    end_ = other.end_;
  }
  return *this;
}

Process::~Process() { release(); }

void Process::release() {
  close_input();
  if (id_ > 0 && !detached_ && !ended()) {
    send_signal(SIGKILL);
    int status = 0;
    while (waitpid(id_, &status, 0) < 0 && errno == EINTR) {
    }
  }
  if (descriptor_ >= 0) close(descriptor_);
  descriptor_ = -1;
  id_ = -1;
}

std::optional<ProcessEnd> Process::ended() {
  int status = 0;
  if (!end_ && id_ > 0 && waitpid(id_, &status, WNOHANG) == id_) {
    end_ = end_of(status);
    // Whatever it started itself goes with it.
    if (!detached_) kill(-id_, SIGKILL);
  }
  return end_;
}

std::optional<ProcessEnd> Process::wait(Duration limit) {
  const SteadyClock clock;
  const auto deadline = clock.now() + limit;
  while (!ended()) {
    const auto left = deadline - clock.now();
    if (left <= Duration::zero()) break;
    pollfd polled{descriptor_, POLLIN, 0};
    poll(&polled, 1, static_cast<int>(std::min<std::int64_t>((left.count() + 999'999) / 1'000'000, 1'000'000)));
  }
  return end_;
}

void Process::send_signal(int signal) {
  if (id_ > 0 && !end_) kill(-id_, signal);
}

ProcessEnd Process::stop(Duration grace) {
  stop_all(std::span(this, 1), grace);
  return end_.value_or(ProcessEnd{});
}

Status Process::write_input(std::span<const std::byte> bytes, Duration limit) {
  while (!bytes.empty()) {
    pollfd polled{input_, POLLOUT, 0};
    const int ready = poll(&polled, 1, static_cast<int>(limit.count() / 1'000'000));
    if (ready == 0)
      return Error{ErrorCode::timed_out, name_ + " has taken no data for " + std::to_string(limit.count() / 1'000'000'000) + " s"};
    if (ready < 0 && errno != EINTR) return Error{ErrorCode::io_failed, "waiting for " + name_ + ": " + errno_text()};
    const auto sent = send(input_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      const auto reason = errno_text();
      const auto end = wait(std::chrono::milliseconds(500));
      return Error{ErrorCode::io_failed, name_ + (end ? " " + end->text() : " takes no more data: " + reason)};
    }
    bytes = bytes.subspan(static_cast<std::size_t>(sent));
  }
  return Done{};
}

void Process::close_input() {
  if (input_ >= 0) close(input_);
  input_ = -1;
}

void stop_all(std::span<Process> processes, Duration grace) {
  const SteadyClock clock;
  const auto deadline = clock.now() + grace;
  for (auto& process : processes) {
    process.send_signal(SIGTERM);
    process.send_signal(SIGCONT);  // A stopped process hears SIGTERM only when it goes on.
  }
  for (auto& process : processes) process.wait(deadline - clock.now());
  for (auto& process : processes)
    if (!process.ended()) process.send_signal(SIGKILL);
  for (auto& process : processes)
    while (process.id() > 0 && !process.wait(std::chrono::seconds(1))) {
    }
}

std::string shell_quoted(const std::string& word) {
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

Result<std::vector<std::string>> ssh_command(const std::string& user, const std::string& host, std::span<const std::string> arguments) {
  if (!is_plain_name(host)) return Error{ErrorCode::invalid_config, "'" + host + "' is not a host name for ssh"};
  if (!user.empty() && !is_plain_name(user)) return Error{ErrorCode::invalid_config, "'" + user + "' is not a user name for ssh"};
  std::string remote;
  for (const auto& argument : arguments) remote += (remote.empty() ? "" : " ") + shell_quoted(argument);
  return std::vector<std::string>{"ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
                                  "-o", "ServerAliveCountMax=3", "-T", user.empty() ? host : user + "@" + host, remote};
}

std::string last_lines(const std::string& path, std::size_t count, std::uint64_t begin) {
  constexpr std::uint64_t most = 64 << 10;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return {};
  const auto size = static_cast<std::uint64_t>(std::max<std::streamoff>(0, file.tellg()));
  file.seekg(static_cast<std::streamoff>(std::min(size, std::max(begin, size - std::min(size, most)))));
  std::string text((std::istreambuf_iterator<char>(file)), {});
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::size_t at = text.size();
  for (std::size_t line = 0; line < count && at != std::string::npos && at > 0; ++line) at = text.rfind('\n', at - 1);
  return at == std::string::npos || at == 0 ? text : text.substr(at + (text[at] == '\n' ? 1 : 0));
}

}  // namespace orrery::launch
