// Shared memory between two real processes, of which one is killed: this program starts itself again as the other end.

#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include "protocol/shm_transport.hpp"
#include "protocol/zmq_transport.hpp"
#include "tests/support/child_process.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace orrery;
using namespace orrery::protocol;
using namespace std::chrono_literals;

extern char** environ;

namespace {

constexpr std::uint64_t pool_bytes = std::uint64_t{8} << 20;
constexpr std::size_t size = 500'000;

std::unique_ptr<Transport> open(const std::string& folder, PeerId self) {
  auto inner = make_zmq_transport({.self = self, .bind = "ipc://" + folder + "/" + std::to_string(self)});
  if (!inner.ok()) FAIL(inner.error().text());
  auto wire = std::move(inner).value();
  auto made = make_shm_transport(wire, {.pool_bytes = pool_bytes});
  if (!made.ok()) FAIL(made.error().text());
  return std::move(made).value();
}

std::vector<std::byte> pattern(std::uint64_t number) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 13 + number * 7);
  return bytes;
}
HeaderBytes header_of(std::uint64_t number) { return HeaderBytes(std::as_bytes(std::span(&number, 1))); }

struct Inbox {
  struct Frame {
    std::uint64_t number = 0;
    Shard payload;
    bool through_memory = false;
  };
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Frame> frames;

  void put(std::span<const std::byte> header, Shard payload, bool through_memory) {
    const std::lock_guard lock(mutex);
    std::uint64_t number = 0;
    if (header.size() == sizeof number) std::memcpy(&number, header.data(), sizeof number);
    frames.push_back({number, std::move(payload), through_memory});
    changed.notify_all();
  }
  TransportHandlers handlers() {
    return {.on_frame = [this](PeerId, std::span<const std::byte> header, Shard payload) { put(header, std::move(payload), false); },
            .on_hint = {},
            .on_memory_frame = [this](PeerId, std::span<const std::byte> header, Shard payload) { put(header, std::move(payload), true); }};
  }
  std::size_t through_memory() {
    const std::lock_guard lock(mutex);
    std::size_t count = 0;
    for (const auto& frame : frames) count += frame.through_memory && frame.payload.size() == size;
    return count;
  }
};

template <class Condition>
bool until(Condition condition) {
  for (int i = 0; i < 20000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

struct Child : testing::Child {
  explicit Child(const std::string& folder) : testing::Child("[.shm-process]", {{"ORRERY_TEST_FOLDER", folder}}) {}
};

}  // namespace

// Not a test of its own: sends without end, and keeps what it gets, until it is killed.
TEST_CASE("shm processes: the other end", "[.shm-process]") {
  const char* folder = ::getenv("ORRERY_TEST_FOLDER");
  REQUIRE(folder);
  Inbox inbox;
  const auto transport = open(folder, 2);
  transport->start(inbox.handlers());
  REQUIRE(transport->add_peer(1, std::string("ipc://") + folder + "/1").ok());
  for (std::uint64_t number = 0; ::getppid() != 1; ++number) {
    (void)transport->send(1, header_of(number), Shard::of(pattern(number)));
    std::this_thread::sleep_for(1ms);
  }
}

TEST_CASE("shm processes: a killed process takes nothing along, and its successor is reached the same way", "[conformance][shm][fault]") {
  const orrery::testing::TemporaryFolder temporary;
  const auto& folder = temporary.path();
  {
    Inbox inbox;
    const auto transport = open(folder, 1);
    transport->start(inbox.handlers());
    REQUIRE(transport->add_peer(2, "ipc://" + folder + "/2").ok());
    for (int life = 0; life < 3; ++life) {
      CAPTURE(life);
      Child child(folder);
      REQUIRE(until([&] { return inbox.through_memory() >= 3 && transport->helps(2); }));
      // It is told of more than the pool has, and lets go of nothing in place.
      const auto before = transport->statistics().memory_bytes_sent;
      std::uint64_t number = 0;
      REQUIRE(until([&] {
        if (transport->send(2, header_of(number), Shard::of(pattern(number))).ok()) ++number;
        return transport->statistics().memory_bytes_sent > before + 2 * pool_bytes;
      }));
      child.kill();
      // What it showed here stays readable.
      std::vector<Inbox::Frame> frames;
      {
        const std::lock_guard lock(inbox.mutex);
        frames.swap(inbox.frames);
      }
      for (const auto& frame : frames) {
        if (frame.payload.size() != size) continue;
        const auto expected = pattern(frame.number);
        REQUIRE(std::equal(expected.begin(), expected.end(), frame.payload.bytes().begin()));
      }
      REQUIRE(until([&] { return !transport->helps(2); }));
    }
  }
}
