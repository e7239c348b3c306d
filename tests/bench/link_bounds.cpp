// What no way between processes of this machine can beat: copying, waking a sleeping thread, and bare ZeroMQ.
//
// `tests/bench/collectives` prints these beside Orrery, Open MPI and gloo.
//
//   bench_link_bounds memcpy BYTES...     microseconds of copying so many bytes, warm
//   bench_link_bounds wake                microseconds from a futex's wake to its sleeper's next instruction
//   bench_link_bounds zmq BYTES...        microseconds of a turn between two processes with ZeroMQ over TCP and nothing
//                                         else: each sends BYTES, in messages of up to 1 MiB that it does not copy, and
//                                         takes as many; each process keeps to a core of its own, where there are two
//
// Prints "bytes microseconds" per size.

#include <linux/futex.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <zmq.hpp>

#include "base/clock.hpp"

using namespace orrery;

namespace {

using Sizes = std::vector<std::uint64_t>;

const SteadyClock steady;

double microseconds_since(Time begin) { return seconds_of(steady.now() - begin) * 1e6; }

std::uint64_t iterations_of(std::uint64_t bytes) { return std::clamp<std::uint64_t>((std::uint64_t{128} << 20) / std::max<std::uint64_t>(1, bytes), 8, 1000); }

void print(std::uint64_t bytes, double microseconds) {
  std::printf("%llu %.3f\n", static_cast<unsigned long long>(bytes), microseconds);
  std::fflush(stdout);
}

void run_memcpy(const Sizes& sizes) {
  for (const auto bytes : sizes) {
    std::vector<std::byte> from(bytes, std::byte{1}), to(bytes);
    const auto iterations = iterations_of(bytes) * 4;
    Time begin{};
    for (std::uint64_t i = 0; i < iterations + 2; ++i) {
      if (i == 2) begin = steady.now();
      std::memcpy(to.data(), from.data(), bytes);
      asm volatile("" ::"r"(to.data()) : "memory");
    }
    print(bytes, microseconds_since(begin) / static_cast<double>(iterations));
  }
}

// One way of a ping-pong between two threads that sleep on futexes.
void run_wake() {
  std::atomic<std::uint32_t> words[2]{};
  constexpr std::uint32_t rounds = 3000;
  const auto wait = [](std::atomic<std::uint32_t>& word, std::uint32_t until) {
    for (auto seen = word.load(); seen < until; seen = word.load()) ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr);
  };
  const auto wake = [](std::atomic<std::uint32_t>& word) {
    ++word;
    ::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1);
  };
  std::thread other([&] {
    for (std::uint32_t i = 1; i <= rounds; ++i) {
      wait(words[0], i);
      wake(words[1]);
    }
  });
  const auto begin = steady.now();
  for (std::uint32_t i = 1; i <= rounds; ++i) {
    wake(words[0]);
    wait(words[1], i);
  }
  std::printf("%.2f\n", microseconds_since(begin) / (2.0 * rounds));
  other.join();
}

void keep_to_core(int core) {
  if (std::thread::hardware_concurrency() < 2) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(core), &set);
  ::sched_setaffinity(0, sizeof set, &set);
}

// `channel` tells the other process our address.
void run_zmq(const Sizes& sizes, int self, int channel) {
  keep_to_core(self);
  constexpr std::uint64_t message_bytes = std::uint64_t{1} << 20;
  zmq::context_t context(1);
  zmq::socket_t router(context, zmq::socket_type::router), dealer(context, zmq::socket_type::dealer);
  router.set(zmq::sockopt::linger, 0);
  dealer.set(zmq::sockopt::linger, 0);
  router.bind("tcp://127.0.0.1:*");
  char address[64]{};
  const auto own = router.get(zmq::sockopt::last_endpoint);
  own.copy(address, sizeof address - 1);
  if (::send(channel, address, sizeof address, 0) != sizeof address || ::recv(channel, address, sizeof address, MSG_WAITALL) != sizeof address) std::exit(1);
  dealer.connect(std::string(address));
  std::atomic<int> lent{0};  // Messages whose bytes ZeroMQ still reads.
  for (const auto bytes : sizes) {
    std::vector<std::byte> data(bytes, std::byte{1});
    const auto turn = [&] {
      for (std::uint64_t at = 0; at < bytes; at += message_bytes) {
        ++lent;
        const auto back = [](void*, void* count) { --*static_cast<std::atomic<int>*>(count); };
        dealer.send(zmq::message_t(data.data() + at, std::min(message_bytes, bytes - at), back, &lent), zmq::send_flags::none);
      }
      for (std::uint64_t got = 0; got < bytes;) {
        zmq::message_t id, part;
        (void)router.recv(id);
        (void)router.recv(part);
        got += part.size();
      }
    };
    const auto iterations = iterations_of(bytes);
    for (std::uint64_t i = 0; i < 3 + iterations / 10; ++i) turn();
    const auto begin = steady.now();
    for (std::uint64_t i = 0; i < iterations; ++i) turn();
    if (self == 0) print(bytes, microseconds_since(begin) / static_cast<double>(iterations));
    while (lent > 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  // Nobody leaves before the other has everything.
  char done = 0;
  if (::send(channel, &done, 1, 0) != 1 || ::recv(channel, &done, 1, 0) != 1) std::exit(1);
}

int run_two(const Sizes& sizes) {
  int channel[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel) != 0) return 1;
  const auto child = ::fork();
  if (child < 0) return 1;
  ::close(channel[child == 0 ? 0 : 1]);
  run_zmq(sizes, child == 0 ? 1 : 0, channel[child == 0 ? 1 : 0]);
  if (child == 0) std::exit(0);
  int status = 0;
  ::waitpid(child, &status, 0);
  return status == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
  const std::string what = count > 1 ? words[1] : "";
  Sizes sizes;
  for (int i = 2; i < count; ++i) sizes.push_back(std::strtoull(words[i], nullptr, 10));
  if (what == "memcpy") return run_memcpy(sizes), 0;
  if (what == "wake") return run_wake(), 0;
  if (what == "zmq") return run_two(sizes);
  std::fprintf(stderr, "usage: bench_link_bounds memcpy|zmq BYTES... | wake\n");
  return 2;
}
