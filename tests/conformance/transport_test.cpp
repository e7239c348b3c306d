// What every transport promises (protocol/transport.hpp), run on each of them:
//
// - frames arrive whole, unchanged and, without faults, in order; also empty, one byte and 5 MiB
// - many peers at once, each sender told apart
// - a full queue refuses, says `writable` later, and loses nothing that it took
// - an unknown peer is refused; a peer that starts late or again is reached
// - close lets go of all payloads and ends all calls
//
// and what sockets promise besides: strangers on the port change nothing, a used port is an error.

#include <sys/socket.h>
#include <sys/stat.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include "base/random.hpp"
#include "protocol/faulty_transport.hpp"
#include "protocol/inproc_transport.hpp"
#include "protocol/loopback_transport.hpp"
#include "protocol/shm_transport.hpp"
#include "protocol/zmq_transport.hpp"
#include "tests/support/keys.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace orrery;
using namespace orrery::protocol;
using orrery::testing::TemporaryFolder;
using orrery::testing::TestKeys;

namespace {

// A network of one kind: makes transports, and waits until something is true.
class World {
public:
  explicit World(std::string kind) : kind_(std::move(kind)) {}

  std::unique_ptr<Transport> make(PeerId self, std::uint32_t queue_frames = 16) {
    if (kind_ == "loopback") return loopback_.make_transport(self, queue_frames);
    if (kind_ == "inproc") return make_inproc_transport(hub_, self, queue_frames);
    if (kind_ == "faulty(0)")
      return std::make_unique<FaultyTransport>(make_inproc_transport(hub_, self, queue_frames), FaultOptions{});
    ZmqOptions options{.self = self, .queue_frames = queue_frames};
    if (kind_ == "zmq-ipc" || kind_ == "shm-ipc") options.bind = "ipc://" + folder_.path() + "/" + std::to_string(self);
    if (kind_.ends_with("-curve")) options.security = keys_.security("n" + std::to_string(self));
    auto made = make_zmq_transport(options);
    if (!made.ok()) FAIL(made.error().text());
    if (!kind_.starts_with("shm")) return std::move(made).value();
    auto inner = std::move(made).value();
    auto shared = make_shm_transport(inner, {.pool_bytes = std::uint64_t{32} << 20});
    if (!shared.ok()) FAIL(shared.error().text());
    return std::move(shared).value();
  }

  // Turns the network, or waits for its threads; ten seconds mean "never".
  template <class Condition>
  bool until(Condition condition) {
    for (int i = 0; i < 10000; ++i) {
      if (condition()) return true;
      if (kind_ == "loopback") {
        if (!loopback_.deliver_one() && !condition()) return false;
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
    return condition();
  }
  // Sends as soon as the peer is connected.
  void send(Transport& from, PeerId to, const HeaderBytes& header, const Shard& payload = {}) {
    REQUIRE(until([&] { return from.send(to, header, payload).ok(); }));
  }
  bool has_sockets() const { return kind_.starts_with("zmq"); }
  std::string kind() const { return kind_; }

private:
  std::string kind_;
  LoopbackNetwork loopback_;
  std::shared_ptr<InprocHub> hub_ = make_inproc_hub();
  TemporaryFolder folder_;
  TestKeys keys_{{"n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7"}};
};

struct Inbox {
  struct Frame {
    PeerId from;
    std::vector<std::byte> header;
    Shard payload;
  };
  std::mutex mutex;
  std::vector<Frame> frames;
  std::map<PeerId, int> up, down, writable;

  TransportHandlers handlers() {
    return {.on_frame =
                [this](PeerId from, std::span<const std::byte> header, Shard payload) {
                  const std::lock_guard lock(mutex);
                  frames.push_back({from, {header.begin(), header.end()}, std::move(payload)});
                },
            .on_hint =
                [this](PeerId peer, PeerHint hint) {
                  const std::lock_guard lock(mutex);
                  ++(hint == PeerHint::up ? up : hint == PeerHint::down ? down : writable)[peer];
                }};
  }
  std::size_t count() {
    const std::lock_guard lock(mutex);
    return frames.size();
  }
  int ups(PeerId peer) {
    const std::lock_guard lock(mutex);
    return up[peer];
  }
  int writables(PeerId peer) {
    const std::lock_guard lock(mutex);
    return writable[peer];
  }
};

HeaderBytes header_of(std::uint64_t number) { return HeaderBytes(std::as_bytes(std::span(&number, 1))); }
std::uint64_t number_of(const Inbox::Frame& frame) {
  std::uint64_t number = 0;
  REQUIRE(frame.header.size() == sizeof number);
  std::memcpy(&number, frame.header.data(), sizeof number);
  return number;
}

std::vector<std::byte> pattern(std::size_t size, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random.next());
  return bytes;
}

bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

// A payload that tells when it was let go.
Shard counted(const std::vector<std::byte>& bytes, std::atomic<int>& released) {
  return Shard(std::span(bytes), [&released] { ++released; });
}

#define EACH_TRANSPORT GENERATE(as<std::string>{}, "loopback", "inproc", "faulty(0)", "zmq-ipc", "zmq-tcp", "zmq-curve", "shm-ipc", "shm-tcp", "shm-curve")

}  // namespace

TEST_CASE("transport: frames of any size arrive whole, unchanged and in order", "[conformance]") {
  World world(EACH_TRANSPORT);
  CAPTURE(world.kind());
  Inbox inbox_a, inbox_b;
  auto a = world.make(1), b = world.make(2);
  a->start(inbox_a.handlers());
  b->start(inbox_b.handlers());
  REQUIRE(a->add_peer(2, b->address()).ok());
  REQUIRE(b->add_peer(1, a->address()).ok());
  REQUIRE(world.until([&] { return inbox_a.ups(2) > 0 && inbox_b.ups(1) > 0; }));

  const std::size_t sizes[] = {0, 1, 33, 34, 8191, 8192, 8193, 65536, std::size_t{5} << 20, 0, 7};
  std::vector<std::vector<std::byte>> sent;
  for (std::size_t i = 0; i < std::size(sizes); ++i) {
    sent.push_back(pattern(sizes[i], i));
    REQUIRE(a->send(2, header_of(i), Shard::copy_of(sent.back())).ok());
  }
  REQUIRE(world.until([&] { return inbox_b.count() == sent.size(); }));
  for (std::size_t i = 0; i < sent.size(); ++i) {
    CHECK(inbox_b.frames[i].from == 1);
    CHECK(number_of(inbox_b.frames[i]) == i);
    CHECK(equal(inbox_b.frames[i].payload.bytes(), sent[i]));
    CHECK(reinterpret_cast<std::uintptr_t>(inbox_b.frames[i].payload.bytes().data()) % 4 == 0);
  }
  REQUIRE(b->send(1, header_of(77), {}).ok());
  REQUIRE(world.until([&] { return inbox_a.count() == 1; }));
  CHECK(number_of(inbox_a.frames[0]) == 77);
  CHECK(a->statistics().frames_sent == sent.size());
  CHECK(b->statistics().frames_received == sent.size());
}

TEST_CASE("transport: a received payload outlives its transport", "[conformance]") {
  World world(EACH_TRANSPORT);
  CAPTURE(world.kind());
  const auto bytes = pattern(100'000, 3);
  Shard kept;
  {
    Inbox inbox_a, inbox_b;
    auto a = world.make(1), b = world.make(2);
    a->start(inbox_a.handlers());
    b->start(inbox_b.handlers());
    REQUIRE(a->add_peer(2, b->address()).ok());
    world.send(*a, 2, header_of(1), Shard::copy_of(bytes));
    REQUIRE(world.until([&] { return inbox_b.count() == 1; }));
    kept = inbox_b.frames[0].payload;
  }
  CHECK(equal(kept.bytes(), bytes));
}

TEST_CASE("transport: eight peers all talk to each other", "[conformance]") {
  World world(EACH_TRANSPORT);
  CAPTURE(world.kind());
  constexpr PeerId count = 8;
  std::vector<Inbox> inboxes(count);
  std::vector<std::unique_ptr<Transport>> peers;
  for (PeerId i = 0; i < count; ++i) {
    peers.push_back(world.make(i));
    peers.back()->start(inboxes[i].handlers());
  }
  for (PeerId i = 0; i < count; ++i)
    for (PeerId j = 0; j < count; ++j)
      if (i != j) REQUIRE(peers[i]->add_peer(j, peers[j]->address()).ok());
  for (std::uint64_t round = 0; round < 4; ++round)
    for (PeerId i = 0; i < count; ++i)
      for (PeerId j = 0; j < count; ++j)
        if (i != j) world.send(*peers[i], j, header_of(round * 100 + i), Shard::copy_of(pattern(1000, i)));
  for (PeerId j = 0; j < count; ++j) {
    REQUIRE(world.until([&] { return inboxes[j].count() == 4 * (count - 1); }));
    std::map<PeerId, std::uint64_t> rounds;
    for (const auto& frame : inboxes[j].frames) {
      CHECK(number_of(frame) == rounds[frame.from]++ * 100 + frame.from);
      CHECK(equal(frame.payload.bytes(), pattern(1000, frame.from)));
    }
  }
}

TEST_CASE("transport: a full queue refuses, loses nothing it took, and says when there is room", "[conformance]") {
  World world(EACH_TRANSPORT);
  CAPTURE(world.kind());
  Inbox inbox_a, inbox_b;
  std::mutex gate;
  auto a = world.make(1, 4), b = world.make(2, 4);
  a->start(inbox_a.handlers());
  auto handlers = inbox_b.handlers();
  auto inner = handlers.on_frame;
  handlers.on_frame = [&](PeerId from, std::span<const std::byte> header, Shard payload) {
    const std::lock_guard lock(gate);
    inner(from, header, std::move(payload));
  };
  b->start(handlers);
  REQUIRE(a->add_peer(2, b->address()).ok());
  REQUIRE(b->add_peer(1, a->address()).ok());
  REQUIRE(world.until([&] { return inbox_a.ups(2) > 0 && inbox_b.ups(1) > 0; }));

  const auto bytes = pattern(1 << 20, 1);
  std::uint64_t taken = 0;
  {
    // The receiver stands still, so the queues between must fill up at some point: far below 1,000 x 1 MiB.
    std::unique_lock lock(gate, std::defer_lock);
    if (world.kind() != "loopback") lock.lock();
    bool refused = false;
    while (!refused && taken < 1000) {
      const auto status = a->send(2, header_of(taken), Shard(std::span(bytes), {}));
      if (status.ok()) {
        ++taken;
      } else {
        CHECK(status.error().code == ErrorCode::pool_exhausted);
        // ZeroMQ's thread may be about to take more: full means full for a while.
        if (world.has_sockets()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
        refused = !world.has_sockets() || !a->send(2, header_of(taken), Shard(std::span(bytes), {})).ok() || (++taken, false);
      }
    }
    CHECK(taken < 1000);
    CHECK(refused);
  }
  REQUIRE(world.until([&] { return inbox_b.count() == taken; }));
  REQUIRE(world.until([&] { return inbox_a.writables(2) > 0; }));
  for (std::uint64_t i = 0; i < taken; ++i) CHECK(number_of(inbox_b.frames[i]) == i);
  CHECK(a->send(2, header_of(taken), {}).ok());
  CHECK(world.until([&] { return inbox_b.count() == taken + 1; }));
}

TEST_CASE("transport: an unknown or removed peer is refused", "[conformance]") {
  World world(EACH_TRANSPORT);
  CAPTURE(world.kind());
  Inbox inbox;
  auto a = world.make(1);
  auto b = world.make(2);
  a->start(inbox.handlers());
  b->start({});
  const auto status = a->send(2, header_of(1), {});
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::unreachable);
  REQUIRE(a->add_peer(2, b->address()).ok());
  world.send(*a, 2, header_of(1));
  a->remove_peer(2);
  a->remove_peer(3);
  CHECK_FALSE(a->send(2, header_of(1), {}).ok());
}

TEST_CASE("transport: a peer that starts again is reached again, and takes its own place", "[conformance]") {
  World world(EACH_TRANSPORT);
  CAPTURE(world.kind());
  Inbox inbox_a, first, second;
  auto a = world.make(1);
  auto b = world.make(2);
  a->start(inbox_a.handlers());
  b->start(first.handlers());
  REQUIRE(a->add_peer(2, b->address()).ok());
  REQUIRE(b->add_peer(1, a->address()).ok());
  world.send(*a, 2, header_of(1));
  REQUIRE(world.until([&] { return first.count() == 1; }));
  b->close();
  b.reset();
  REQUIRE(world.until([&] {
    const std::lock_guard lock(inbox_a.mutex);
    return inbox_a.down[2] > 0;
  }));

  b = world.make(2);
  b->start(second.handlers());
  REQUIRE(b->add_peer(1, a->address()).ok());
  REQUIRE(a->add_peer(2, b->address()).ok());
  // The transport may lose frames while it reconnects; it must get through in the end, in both directions.
  std::uint64_t number = 10;
  REQUIRE(world.until([&] {
    (void)a->send(2, header_of(number++), {});
    return second.count() > 0;
  }));
  REQUIRE(world.until([&] {
    (void)b->send(1, header_of(number++), {});
    return inbox_a.count() > 0;
  }));
  CHECK(first.count() == 1);
  CHECK(inbox_a.frames[0].from == 2);
}

TEST_CASE("transport: close lets go of every payload and ends all calls", "[conformance]") {
  World world(EACH_TRANSPORT);
  CAPTURE(world.kind());
  const auto bytes = pattern(200'000, 9);
  std::atomic<int> released{0}, calls{0};
  int taken = 0;
  {
    auto a = world.make(1, 8), b = world.make(2, 8), c = world.make(3, 8);
    a->start({.on_frame = [](PeerId, std::span<const std::byte>, Shard) {}, .on_hint = [](PeerId, PeerHint) {}});
    b->start({.on_frame = [&](PeerId, std::span<const std::byte>, Shard) { ++calls; }, .on_hint = [](PeerId, PeerHint) {}});
    // c is known, but never started.
    REQUIRE(a->add_peer(2, b->address()).ok());
    REQUIRE(a->add_peer(3, c->address()).ok());
    world.send(*a, 2, header_of(0));
    for (int i = 0; i < 20; ++i) {
      taken += a->send(2, header_of(1), counted(bytes, released)).ok();
      taken += a->send(3, header_of(1), counted(bytes, released)).ok();
    }
    b->close();
    const int seen = calls;
    a->close();
    a->close();
    CHECK(calls == seen);
    CHECK_FALSE(a->send(2, header_of(1), {}).ok());
  }
  // Those that were refused were let go of at once.
  CHECK(taken > 0);
  CHECK(released == 40);
}

TEST_CASE("transport: nothing stays borrowed for a peer that is gone", "[conformance][fault]") {
  World world(EACH_TRANSPORT);
  CAPTURE(world.kind());
  const auto bytes = pattern(200'000, 4);
  std::atomic<int> released{0};
  Inbox inbox_a, inbox_b;
  auto a = world.make(1, 8), b = world.make(2, 8);
  a->start(inbox_a.handlers());
  b->start(inbox_b.handlers());
  REQUIRE(a->add_peer(2, b->address()).ok());
  world.send(*a, 2, header_of(0));
  REQUIRE(world.until([&] { return inbox_b.count() == 1; }));
  b.reset();
  for (int i = 0; i < 20; ++i) (void)a->send(2, header_of(1), counted(bytes, released));
  CHECK(world.until([&] { return released == 20; }));
}

TEST_CASE("zmq transport: strangers on the port change nothing", "[conformance][fault]") {
  World world("zmq-tcp");
  Inbox inbox_a, inbox_b;
  auto a = world.make(1), b = world.make(2);
  a->start(inbox_a.handlers());
  b->start(inbox_b.handlers());
  const auto address = b->address();
  const auto port = static_cast<std::uint16_t>(std::stoul(address.substr(address.rfind(':') + 1)));
  REQUIRE(a->add_peer(2, address).ok());

  // Random bytes, the beginnings of ZeroMQ's own greeting, HTTP, and nothing at all.
  const auto noise = pattern(100'000, 5);
  const std::string greeting("\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL", 16);
  const std::string http = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
  for (int round = 0; round < 8; ++round) {
    const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_port = htons(port);
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::connect(socket, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
    const auto write = [&](const void* data, std::size_t size) {
      (void)!::send(socket, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    };
    if (round % 4 == 0) write(noise.data(), noise.size());
    if (round % 4 == 1) write(greeting.data(), greeting.size());
    if (round % 4 == 1) write(noise.data(), 1000);
    if (round % 4 == 2) write(http.data(), http.size());
    ::close(socket);
  }
  for (std::uint64_t i = 0; i < 10; ++i) world.send(*a, 2, header_of(i), Shard::copy_of(noise));
  REQUIRE(world.until([&] { return inbox_b.count() == 10; }));
  for (std::uint64_t i = 0; i < 10; ++i) {
    CHECK(number_of(inbox_b.frames[i]) == i);
    CHECK(inbox_b.frames[i].from == 1);
  }
}

TEST_CASE("zmq transport: a used port or socket is a clear error", "[conformance][fault]") {
  auto first = make_zmq_transport({.self = 1});
  REQUIRE(first.ok());
  const auto second = make_zmq_transport({.self = 2, .bind = first.value()->address()});
  REQUIRE_FALSE(second.ok());
  CHECK(second.error().code == ErrorCode::port_in_use);
  CHECK_THAT(second.error().message, Catch::Contains(first.value()->address()));

  TemporaryFolder folder;
  const auto path = "ipc://" + folder.path() + "/socket";
  {
    auto third = make_zmq_transport({.self = 1, .bind = path});
    REQUIRE(third.ok());
    CHECK(third.value()->address() == path);
    const auto fourth = make_zmq_transport({.self = 2, .bind = path});
    REQUIRE_FALSE(fourth.ok());
    CHECK(fourth.error().code == ErrorCode::port_in_use);
  }
  CHECK_FALSE(std::filesystem::exists(folder.path() + "/socket"));
}

TEST_CASE("zmq transport: addresses are checked before they are used", "[conformance]") {
  for (const auto* bad : {"", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:x", "ipc://",
                          "ipc://relative", "udp://127.0.0.1:1", "127.0.0.1:5000"}) {
    CAPTURE(bad);
    const auto made = make_zmq_transport({.self = 1, .bind = bad});
    REQUIRE_FALSE(made.ok());
    CHECK(made.error().code == ErrorCode::invalid_config);
  }
  auto good = make_zmq_transport({.self = 1});
  REQUIRE(good.ok());
  CHECK_FALSE(good.value()->add_peer(2, "tcp://127.0.0.1:0").ok());
  CHECK_FALSE(good.value()->add_peer(2, "nonsense").ok());
  CHECK_FALSE(make_zmq_transport({.self = 1, .bind = "ipc:///" + std::string(200, 'x')}).ok());

  TemporaryFolder folder;
  ::chmod(folder.path().c_str(), 0755);
  const auto open = make_zmq_transport({.self = 1, .bind = "ipc://" + folder.path() + "/socket"});
  REQUIRE_FALSE(open.ok());
  CHECK_THAT(open.error().hint, Catch::Contains("chmod 700"));

  auto named = make_zmq_transport({.self = 1, .bind = "tcp://127.0.0.1:0", .advertise = "tcp://localhost"});
  REQUIRE(named.ok());
  CHECK_THAT(named.value()->address(), Catch::StartsWith("tcp://localhost:"));
}
