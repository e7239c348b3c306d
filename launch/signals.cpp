#include "launch/signals.hpp"

#include <csignal>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/file.hpp"

namespace orrery::launch {
namespace {

sigset_t watched() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

Result<SignalWatch> SignalWatch::create() {
  const auto set = watched();
  if (pthread_sigmask(SIG_BLOCK, &set, nullptr) != 0)
    return Error{ErrorCode::io_failed, "the signals of this process could not be blocked"};
  const int descriptor = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (descriptor < 0) return Error{ErrorCode::io_failed, "a signal descriptor could not be made: " + errno_text()};
  return SignalWatch(descriptor);
}

SignalWatch::SignalWatch(SignalWatch&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), received_(other.received_) {}

SignalWatch::~SignalWatch() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  const auto set = watched();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

std::optional<int> SignalWatch::received() {
  signalfd_siginfo info{};
  if (!received_ && read(descriptor_, &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    received_ = static_cast<int>(info.ssi_signo);
    // This thread takes the next one by its default action: the process ends.
    const auto set = watched();
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  }
  return received_;
}

SignalWatch::Woken SignalWatch::wait_for_signal_or(std::span<const int> descriptors, Duration limit) {
  const SteadyClock clock;
  const auto deadline = clock.now() + limit;
  std::vector<pollfd> polled{{descriptor_, POLLIN, 0}};
  for (const int descriptor : descriptors) polled.push_back({descriptor, POLLIN, 0});
  for (;;) {
    if (received()) return Woken::signal;
    const auto left = std::max(deadline - clock.now(), Duration::zero());
    // Rounded up: a wait never ends before its time.
    const auto milliseconds = (left.count() + 999'999) / 1'000'000;
    const int ready = poll(polled.data(), polled.size(), static_cast<int>(std::min<std::int64_t>(milliseconds, 1'000'000)));
    if (received()) return Woken::signal;
    if (ready > 0) return Woken::readable;
    if (clock.now() >= deadline) return Woken::timed_out;
  }
}

}  // namespace orrery::launch
