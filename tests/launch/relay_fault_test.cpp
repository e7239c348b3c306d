// The relay between two sockets of this test: bytes as they were, and each fault as it says.

#include "launch/relay.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <thread>

#include <catch2/catch.hpp>

using namespace orrery;
using namespace orrery::launch;

namespace {

int loopback_socket() {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval limit{20, 0};  // "Never", for a test that fails.
  ::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  return socket;
}

/// A target that listens, the relay before it, and one connection through it.
struct World {
  int listener = loopback_socket(), near = -1, far = -1;
  std::unique_ptr<Relay> relay;

  World() {
    sockaddr_in own{};
    own.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof own;
    REQUIRE(::bind(listener, reinterpret_cast<const sockaddr*>(&own), sizeof own) == 0);
    REQUIRE(::listen(listener, 8) == 0);
    REQUIRE(::getsockname(listener, reinterpret_cast<sockaddr*>(&own), &size) == 0);
    auto made = Relay::start("127.0.0.1:" + std::to_string(ntohs(own.sin_port)));
    REQUIRE(made.ok());
    relay = std::move(made).value();
  }
  ~World() {
    for (const int each : {listener, near, far})
      if (each >= 0) ::close(each);
  }
  int dial() const {
    const int socket = loopback_socket();
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(relay->port());
    REQUIRE(::connect(socket, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
    return socket;
  }
  void connect() {
    near = dial();
    far = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    REQUIRE(far >= 0);
    const timeval limit{20, 0};
    ::setsockopt(far, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
};

void put(int socket, const std::string& text) { REQUIRE(::send(socket, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size())); }

/// So many bytes, or up to the end: "...|end", "...|reset".
std::string take(int socket, std::size_t count) {
  std::string text;
  while (text.size() < count) {
    char buffer[65536];
    const auto got = ::recv(socket, buffer, std::min(sizeof buffer, count - text.size()), 0);
    if (got == 0) return text + "|end";
    if (got < 0) return text + (errno == ECONNRESET ? "|reset" : "|nothing");
    text.append(buffer, static_cast<std::size_t>(got));
  }
  return text;
}

bool silent(int socket) {
  char byte = 0;
  return ::recv(socket, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

}  // namespace

TEST_CASE("relay: without faults both directions carry every byte, also many and at once", "[launch][fault]") {
  World world;
  world.connect();
  std::string big(8 << 20, '\0');
  for (std::size_t i = 0; i < big.size(); ++i) big[i] = static_cast<char>(i * 31 + i / 4093);
  std::thread writer([&] { put(world.near, big); });
  put(world.far, "pong");
  CHECK(take(world.far, big.size()) == big);
  writer.join();
  CHECK(take(world.near, 4) == "pong");
  ::shutdown(world.near, SHUT_WR);
  CHECK(take(world.far, 1) == "|end");
  put(world.far, "after");  // Half-closed is not closed.
  CHECK(take(world.near, 5) == "after");
  CHECK(world.relay->counts().bytes_forward == big.size());
}

TEST_CASE("relay: a stall holds bytes and end of file, and lets go in order", "[launch][fault]") {
  World world;
  world.connect();
  world.relay->set(RelayDirection::forward, {.stall = true});
  put(world.near, "one");
  ::shutdown(world.near, SHUT_WR);
  put(world.far, "back");
  CHECK(take(world.near, 4) == "back");
  CHECK(silent(world.far));
  world.relay->heal();
  CHECK(take(world.far, 4) == "one|end");
}

TEST_CASE("relay: a delay and a rate take their time, and keep the order", "[launch][fault]") {
  World world;
  world.connect();
  world.relay->set(RelayDirection::forward, {.delay = std::chrono::milliseconds(20), .jitter = std::chrono::milliseconds(5)});
  auto started = std::chrono::steady_clock::now();
  put(world.near, "abc");
  CHECK(take(world.far, 3) == "abc");
  CHECK(std::chrono::steady_clock::now() - started >= std::chrono::milliseconds(20));
  world.relay->set(RelayDirection::forward, {.bytes_per_second = 1e6});
  started = std::chrono::steady_clock::now();
  put(world.near, std::string(40'000, 'x'));
  CHECK(take(world.far, 40'000).size() == 40'000);
  CHECK(std::chrono::steady_clock::now() - started >= std::chrono::milliseconds(39));
}

TEST_CASE("relay: one byte is wrong, a piece comes twice, the rest is missing, each at its place", "[launch][fault]") {
  {
    World world;
    world.connect();
    world.relay->set(RelayDirection::forward, {.corrupt_at = 5});
    put(world.near, "0123");
    CHECK(take(world.far, 4) == "0123");
    put(world.near, "4567");
    CHECK(take(world.far, 4) == std::string("4") + static_cast<char>('5' ^ 0x10) + "67");
  }
  {
    World world;
    world.connect();
    world.relay->set(RelayDirection::backward, {.duplicate_at = 3});
    put(world.far, "0123456");
    CHECK(take(world.near, 11) == "01230123456");
  }
  {
    World world;
    world.connect();
    world.relay->set(RelayDirection::forward, {.truncate_at = 6});
    put(world.near, "0123456789");
    CHECK(take(world.far, 10) == "012345|end");
    put(world.far, "still");
    CHECK(take(world.near, 5) == "still");
  }
}

TEST_CASE("relay: connections end, are reset, or are not taken", "[launch][fault]") {
  World world;
  world.connect();
  world.relay->half_close(RelayDirection::backward);
  CHECK(take(world.near, 1) == "|end");
  put(world.near, "forward");
  CHECK(take(world.far, 7) == "forward");
  world.relay->drop_connections();
  CHECK(take(world.far, 1) == "|end");
  ::close(world.near);
  ::close(world.far);

  world.connect();
  put(world.near, "x");
  CHECK(take(world.far, 1) == "x");
  world.relay->reset_connections();
  CHECK(take(world.near, 1) == "|reset");
  CHECK(take(world.far, 1) == "|reset");
  CHECK(world.relay->counts().reset == 1);

  world.relay->refuse_connections(true);
  const int refused = world.dial();
  CHECK(take(refused, 1) == "|reset");
  ::close(refused);
  CHECK(world.relay->counts().refused == 1);
  CHECK(world.relay->counts().open == 0);
}

TEST_CASE("relay: a target that is gone is a reset, and another one may take its place", "[launch][fault]") {
  World world, other;
  ::close(world.listener);
  world.listener = -1;
  const int lost = world.dial();
  CHECK(take(lost, 1) == "|reset");
  ::close(lost);
  // A relay may stand before a relay.
  REQUIRE(world.relay->retarget(other.relay->address()).ok());
  const int found = world.dial();
  const int far = ::accept(other.listener, nullptr, nullptr);
  put(found, "hello");
  CHECK(take(far, 5) == "hello");
  ::close(found);
  ::close(far);
}

TEST_CASE("relay: an address that is none is refused", "[launch][fault]") {
  for (const auto* bad : {"", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999", "localhost:1", "::1:5"}) {
    CAPTURE(bad);
    const auto made = Relay::start(bad);
    REQUIRE_FALSE(made.ok());
    CHECK(made.error().code == ErrorCode::invalid_config);
  }
}
