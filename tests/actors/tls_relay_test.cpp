// Control connections under TLS: bytes arrive unchanged in both directions, ends are passed on, strangers get nothing,
// and a slow reader stops the sender instead of filling memory. Then the same below CAF.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include <catch2/catch.hpp>

#include "actors/tls_relay.hpp"
#include "base/random.hpp"
#include "tests/support/keys.hpp"

using namespace orrery;
using namespace orrery::actors;
using orrery::testing::TestKeys;

namespace {

template <class Condition>
bool until(Condition condition) {
  for (int i = 0; i < 10000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

/// A descriptor that is closed.
struct Socket {
  int number = -1;
  explicit Socket(int n) : number(n) {}
  Socket(Socket&& other) noexcept : number(std::exchange(other.number, -1)) {}
  ~Socket() { close(); }
  void close() {
    if (number >= 0) ::close(std::exchange(number, -1));
  }
};

/// Two ends of a TCP connection over loopback.
std::pair<int, int> tcp_pair() {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof name;
  REQUIRE(::bind(listener, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
  REQUIRE(::listen(listener, 1) == 0);
  REQUIRE(::getsockname(listener, reinterpret_cast<sockaddr*>(&name), &size) == 0);
  const int caller = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  REQUIRE(::connect(caller, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
  const int called = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  REQUIRE(called >= 0);
  ::close(listener);
  return {caller, called};
}

std::unique_ptr<TlsRelay> relay_of(const Security& security, Duration handshake_timeout = std::chrono::seconds(30)) {
  auto made = TlsRelay::create(security.keys, handshake_timeout);
  if (!made.ok()) FAIL(made.error().text());
  return std::move(made).value();
}

Socket wrapped(TlsRelay& relay, int socket, bool server, std::shared_ptr<TlsOutcome> outcome = nullptr) {
  auto made = relay.wrap(socket, server, std::move(outcome));
  if (!made.ok()) FAIL(made.error().text());
  // Blocking is simpler for tests.
  ::fcntl(made.value(), F_SETFL, ::fcntl(made.value(), F_GETFL) & ~O_NONBLOCK);
  return Socket(made.value());
}

void say(const Socket& socket, std::string_view text) {
  while (!text.empty()) {
    const auto count = ::send(socket.number, text.data(), text.size(), MSG_NOSIGNAL);
    if (count <= 0) return;
    text.remove_prefix(static_cast<std::size_t>(count));
  }
}

/// Until so many bytes came, or the end.
std::string hear(const Socket& socket, std::size_t size = ~std::size_t{0}) {
  std::string text;
  char buffer[65536];
  while (text.size() < size) {
    const auto count = ::recv(socket.number, buffer, std::min(sizeof buffer, size - text.size()), 0);
    if (count <= 0) break;
    text.append(buffer, static_cast<std::size_t>(count));
  }
  return text;
}

/// What a moment brings; empty when nothing.
bool is_ended(const Socket& socket) {
  char byte;
  return ::recv(socket.number, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

std::string noise(std::size_t size, std::uint64_t seed) {
  Random random(seed);
  std::string text(size, '\0');
  for (auto& byte : text) byte = static_cast<char>(random.next());
  return text;
}

double processor_seconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  return static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

}  // namespace

TEST_CASE("tls relay: bytes arrive unchanged in both directions at once, and an end is passed on after them", "[actors][tls]") {
  const TestKeys keys({"a", "b"});
  auto relay_a = relay_of(keys.security("a")), relay_b = relay_of(keys.security("b"));
  const auto [caller, called] = tcp_pair();
  auto a = wrapped(*relay_a, caller, false), b = wrapped(*relay_b, called, true);
  const auto there = noise(5'000'001, 1), back = noise(3'333'333, 2);
  std::string got_there, got_back;
  {
    std::thread one([&] { say(a, there); }), two([&] { say(b, back); }), three([&] { got_back = hear(a, back.size()); });
    got_there = hear(b, there.size());
    one.join();
    two.join();
    three.join();
  }
  CHECK(got_there == there);
  CHECK(got_back == back);
  CHECK(relay_a->statistics().connected == 1);
  CHECK(relay_b->statistics().accepted == 1);

  say(a, "the last words");
  a.close();
  CHECK(hear(b) == "the last words");
  b.close();
  CHECK(until([&] { return relay_a->statistics().open == 0 && relay_b->statistics().open == 0; }));
}

TEST_CASE("tls relay: on the wire nothing can be read", "[actors][tls]") {
  const TestKeys keys({"a", "b"});
  auto relay_a = relay_of(keys.security("a")), relay_b = relay_of(keys.security("b"));
  const auto [caller, tapped_in] = tcp_pair();
  const auto [tapped_out, called] = tcp_pair();
  auto a = wrapped(*relay_a, caller, false), b = wrapped(*relay_b, called, true);
  std::string wire;
  std::thread tap([&, in = tapped_in, out = tapped_out] {
    char buffer[4096];
    for (bool open = true; open;) {
      pollfd both[2] = {{in, POLLIN, 0}, {out, POLLIN, 0}};
      ::poll(both, 2, -1);
      for (int side = 0; side < 2; ++side) {
        if (!both[side].revents) continue;
        const auto count = ::recv(both[side].fd, buffer, sizeof buffer, 0);
        if (count <= 0) {
          open = false;
          break;
        }
        wire.append(buffer, static_cast<std::size_t>(count));
        [[maybe_unused]] const auto sent = ::send(side == 0 ? out : in, buffer, static_cast<std::size_t>(count), MSG_NOSIGNAL);
      }
    }
    ::close(in);
    ::close(out);
  });
  say(a, "attack at dawn");
  CHECK(hear(b, 14) == "attack at dawn");
  a.close();
  b.close();
  tap.join();
  CHECK(wire.size() > 500);
  CHECK(wire.find("attack") == std::string::npos);
}

TEST_CASE("tls relay: a stranger is not let in, as a caller or as the one who is called", "[actors][tls][fault]") {
  const TestKeys friends({"a", "b"}), strangers({"a", "b"});
  auto friendly = relay_of(friends.security("b"));
  // The stranger would take anybody.
  auto keys = std::make_shared<KeyRing>(*strangers.security("a").keys);
  for (auto one : friends.allowed()) {
    one.name += "-friend";
    keys->allowed.push_back(one);
  }
  auto strange = relay_of({keys, true, false});
  {
    const auto [caller, called] = tcp_pair();
    const auto outcome = std::make_shared<TlsOutcome>();
    auto a = wrapped(*strange, caller, false, outcome), b = wrapped(*friendly, called, true);
    say(a, "let me in");
    CHECK(hear(b).empty());
    CHECK(hear(a).empty());
    CHECK(friendly->statistics().refused == 1);
    CHECK(friendly->statistics().accepted == 0);
    CHECK(until([&] { return outcome->failure().has_value(); }));
  }
  {
    const auto [caller, called] = tcp_pair();
    const auto outcome = std::make_shared<TlsOutcome>();
    auto a = wrapped(*friendly, caller, false, outcome), b = wrapped(*strange, called, true);
    say(a, "a secret");
    CHECK(hear(b).empty());
    CHECK(hear(a).empty());
    CHECK(outcome->failure().value_or("").find("not in the list") != std::string::npos);
  }
  CHECK(until([&] { return friendly->statistics().open == 0; }));
}

TEST_CASE("tls relay: a client's key cannot pose as a coordinator", "[actors][tls][fault]") {
  TestKeys keys({"a", "b"});
  keys.set_role("b", KeyRole::client);
  auto relay_a = relay_of(keys.security("a")), relay_b = relay_of(keys.security("b"));
  {
    const auto [caller, called] = tcp_pair();
    const auto outcome = std::make_shared<TlsOutcome>();
    auto a = wrapped(*relay_a, caller, false, outcome), b = wrapped(*relay_b, called, true);
    CHECK(hear(a).empty());
    CHECK(outcome->failure().value_or("").find("key of a client") != std::string::npos);
  }
  const auto [caller, called] = tcp_pair();
  auto b = wrapped(*relay_b, caller, false), a = wrapped(*relay_a, called, true);
  say(b, "hello");
  CHECK(hear(a, 5) == "hello");
}

TEST_CASE("tls relay: garbage, silence, older TLS and a plain caller change nothing for friends", "[actors][tls][fault]") {
  const TestKeys keys({"a", "b"});
  auto relay_a = relay_of(keys.security("a")), relay_b = relay_of(keys.security("b"), std::chrono::seconds(2));
  std::vector<Socket> silent;
  // A ClientHello of TLS 1.2, in as far as it matters: record 3.1, handshake 1, version 3.3, no extensions.
  std::string old_hello("\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03", 11);
  old_hello += std::string(32, 'r') + std::string("\x00\x00\x02\xc0\x2f\x01\x00", 7) + std::string("\0\0", 2);
  old_hello.resize(5 + 0x2d);
  for (int i = 0; i < 12; ++i) {
    const auto [caller, called] = tcp_pair();
    auto clear = wrapped(*relay_b, called, true);
    Socket stranger(caller);
    if (i % 4 == 0) say(stranger, noise(100 + 300 * static_cast<std::size_t>(i), static_cast<std::uint64_t>(i)));
    if (i % 4 == 1) say(stranger, old_hello);
    if (i % 4 == 2) say(stranger, "GET / HTTP/1.1\r\n\r\n");
    if (i % 4 == 3) {
      silent.push_back(std::move(stranger));
      silent.push_back(std::move(clear));
    } else {
      CHECK(hear(clear).empty());
    }
  }
  CHECK(relay_b->statistics().refused == 9);
  const auto [caller, called] = tcp_pair();
  auto a = wrapped(*relay_a, caller, false), b = wrapped(*relay_b, called, true);
  say(a, "hello");
  CHECK(hear(b, 5) == "hello");
  // Who is silent is shown the door.
  CHECK(until([&] { return relay_b->statistics().refused == 12; }));
  CHECK(is_ended(silent[1]));
}

TEST_CASE("tls relay: a reader that stands still stops the sender, and costs no processor time", "[actors][tls]") {
  const TestKeys keys({"a", "b"});
  auto relay_a = relay_of(keys.security("a")), relay_b = relay_of(keys.security("b"));
  const auto [caller, called] = tcp_pair();
  auto a = wrapped(*relay_a, caller, false), b = wrapped(*relay_b, called, true);
  const auto block = noise(1 << 16, 3);
  std::size_t taken = 0;
  // Sockets hold some MiB; without back-pressure this would never stop.
  for (int idle = 0; idle < 50 && taken < (std::size_t{256} << 20);) {
    const auto count = ::send(a.number, block.data(), block.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0) {
      taken += static_cast<std::size_t>(count);
      idle = 0;
    } else {
      ++idle;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  CHECK(taken < (std::size_t{64} << 20));
  const auto before = processor_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(processor_seconds() - before < 0.1);
  CHECK(hear(b, taken).size() == taken);
}

TEST_CASE("tls relay: a connection that breaks off ends at the clear side, whoever breaks it", "[actors][tls][fault]") {
  const TestKeys keys({"a", "b"});
  auto relay_b = relay_of(keys.security("b"));
  {
    auto relay_a = relay_of(keys.security("a"));
    const auto [caller, called] = tcp_pair();
    auto a = wrapped(*relay_a, caller, false), b = wrapped(*relay_b, called, true);
    say(a, "hello");
    CHECK(hear(b, 5) == "hello");
    relay_a.reset();  // As if its process ended; the relay is gone before CAF's end is.
    CHECK(hear(b).empty());
    CHECK(hear(a).empty());
  }
  CHECK(until([&] { return relay_b->statistics().open == 0; }));
}
