// Who is let in on the data plane, and that nobody else changes anything:
//
// - a key that is not allowed, no key at all, a friend under another friend's number, a recorded conversation
// - a server that is not who the address says
// - addresses that others can reach need keys, or the word `insecure`
// - frames replayed on a network without keys are dropped, and the conversation goes on

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include "base/clock.hpp"
#include "protocol/exchange.hpp"
#include "protocol/frame.hpp"
#include "protocol/zmq_transport.hpp"
#include "tests/support/keys.hpp"

using namespace orrery;
using namespace orrery::protocol;
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

struct Received {
  std::mutex mutex;
  std::vector<std::pair<PeerId, std::string>> frames;
  TransportHandlers handlers() {
    return {.on_frame =
                [this](PeerId from, std::span<const std::byte> header, Shard) {
                  const std::lock_guard lock(mutex);
                  frames.emplace_back(from, std::string(reinterpret_cast<const char*>(header.data()), header.size()));
                },
            .on_hint = {}};
  }
  std::size_t count() {
    const std::lock_guard lock(mutex);
    return frames.size();
  }
};

HeaderBytes header_of(std::string_view text) { return HeaderBytes(std::as_bytes(std::span(text))); }

std::unique_ptr<Transport> open(PeerId self, Security security = {}) {
  ZmqOptions options;
  options.self = self;
  options.security = std::move(security);
  auto made = make_zmq_transport(options);
  if (!made.ok()) FAIL(made.error().text());
  return std::move(made).value();
}

std::string problem_of(const Status& status) { return status.ok() ? "" : status.error().text(); }

int connected_to(std::uint16_t port) {
  const int connection = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(port);
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::connect(connection, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
  return connection;
}

std::uint16_t port_of(const std::string& address) {
  const auto colon = address.rfind(':');
  return static_cast<std::uint16_t>(std::stoul(address.substr(colon + 1)));
}

/// Says what was recorded as the one who said it did: the greeting, and the rest once it was greeted.
void say(int connection, const std::string& speech) {
  constexpr std::size_t greeting_bytes = 64;
  [[maybe_unused]] auto sent = ::send(connection, speech.data(), greeting_bytes, MSG_NOSIGNAL);
  char answer[greeting_bytes];
  [[maybe_unused]] const auto count = ::recv(connection, answer, sizeof answer, MSG_WAITALL);
  sent = ::send(connection, speech.data() + greeting_bytes, speech.size() - greeting_bytes, MSG_NOSIGNAL);
}

/// A wire tap: passes connections on to `target`, one after the other, and keeps what the first caller said.
class Tap {
public:
  explicit Tap(std::uint16_t target) : target_(target) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::bind(listener_, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
    REQUIRE(::listen(listener_, 1) == 0);
    socklen_t size = sizeof name;
    REQUIRE(::getsockname(listener_, reinterpret_cast<sockaddr*>(&name), &size) == 0);
    port_ = ntohs(name.sin_port);
    thread_ = std::thread([this] { pass_on(); });
  }
  ~Tap() {
    stop_ = true;
    thread_.join();
    ::close(listener_);
  }
  std::uint16_t port() const { return port_; }
  std::string said() {
    const std::lock_guard lock(mutex_);
    return said_;
  }

private:
  void pass_on() {
    int caller = -1, target = -1, ended = 0;
    while (!stop_) {
      pollfd waiting[3] = {{caller < 0 ? listener_ : -1, POLLIN, 0}, {caller, POLLIN, 0}, {target, POLLIN, 0}};
      if (::poll(waiting, 3, 20) <= 0) continue;
      if (waiting[0].revents) {
        caller = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
        target = connected_to(target_);
        continue;
      }
      char buffer[4096];
      for (int side = 1; side <= 2; ++side) {
        if (!waiting[side].revents) continue;
        const auto count = ::recv(side == 1 ? caller : target, buffer, sizeof buffer, 0);
        if (count <= 0) {
          ::close(std::exchange(caller, -1));
          ::close(std::exchange(target, -1));
          ++ended;
          break;
        }
        if (side == 1 && ended == 0) {
          const std::lock_guard lock(mutex_);
          said_.append(buffer, static_cast<std::size_t>(count));
        }
        [[maybe_unused]] const auto sent = ::send(side == 1 ? target : caller, buffer, static_cast<std::size_t>(count), MSG_NOSIGNAL);
      }
    }
    if (caller >= 0) ::close(caller);
    if (target >= 0) ::close(target);
  }

  const std::uint16_t target_;
  std::uint16_t port_ = 0;
  int listener_ = -1;
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::string said_;
  std::thread thread_;
};

}  // namespace

TEST_CASE("strangers: a key that is not allowed gets nothing through, and friends go on", "[conformance][fault]") {
  const TestKeys friends({"a", "b"});
  const TestKeys strangers({"a", "c"});
  Received at_a, at_b, at_c;
  auto a = open(1, friends.security("a")), b = open(2, friends.security("b"));
  a->start(at_a.handlers());
  b->start(at_b.handlers());
  REQUIRE(a->add_peer(2, b->address()).ok());
  REQUIRE(b->add_peer(1, a->address()).ok());

  // The stranger knows everything that is public: b's address and key, and a's number.
  auto keys = std::make_shared<KeyRing>(*strangers.security("a").keys);
  keys->allowed.push_back(friends.allowed()[1]);
  auto stranger = open(1, {keys, true, false});
  stranger->start(at_c.handlers());
  REQUIRE(stranger->add_peer(2, b->address()).ok());
  REQUIRE(until([&] { return b->statistics().handshakes_refused > 0; }));
  CHECK_FALSE(stranger->send(2, header_of("stranger"), {}).ok());

  REQUIRE(until([&] { return a->send(2, header_of("friend"), {}).ok(); }));
  REQUIRE(until([&] { return at_b.count() == 1; }));
  CHECK(at_b.frames[0] == std::pair<PeerId, std::string>(1, "friend"));
  CHECK(b->statistics().frames_malformed == 0);
}

TEST_CASE("strangers: without a key nothing gets through", "[conformance][fault]") {
  const TestKeys friends({"a", "b"});
  Received at_a, at_b, at_c;
  auto a = open(1, friends.security("a")), b = open(2, friends.security("b"));
  a->start(at_a.handlers());
  b->start(at_b.handlers());
  REQUIRE(a->add_peer(2, b->address()).ok());
  auto stranger = open(1);
  stranger->start(at_c.handlers());
  const auto plain = b->address().substr(0, b->address().rfind('#'));
  REQUIRE(stranger->add_peer(2, plain).ok());
  REQUIRE(until([&] { return b->statistics().handshakes_refused > 0; }));
  CHECK_FALSE(stranger->send(2, header_of("stranger"), {}).ok());
  REQUIRE(until([&] { return a->send(2, header_of("friend"), {}).ok(); }));
  REQUIRE(until([&] { return at_b.count() == 1; }));
  CHECK(at_b.frames[0].second == "friend");
}

TEST_CASE("strangers: a friend cannot pass for another friend, nor push him out", "[conformance][fault]") {
  const TestKeys friends({"a", "b", "c"});
  Received at_a, at_b, at_c;
  auto a = open(1, friends.security("a")), b = open(2, friends.security("b"));
  a->start(at_a.handlers());
  b->start(at_b.handlers());
  REQUIRE(a->add_peer(2, b->address()).ok());
  REQUIRE(b->add_peer(1, a->address()).ok());
  REQUIRE(until([&] { return a->send(2, header_of("1"), {}).ok(); }));

  auto false_a = open(1, friends.security("c"));
  false_a->start(at_c.handlers());
  REQUIRE(false_a->add_peer(2, b->address()).ok());
  REQUIRE(until([&] { return false_a->send(2, header_of("false"), {}).ok(); }));
  REQUIRE(until([&] { return b->statistics().frames_foreign == 1; }));

  REQUIRE(a->send(2, header_of("2"), {}).ok());  // Still connected.
  REQUIRE(until([&] { return at_b.count() == 2; }));
  CHECK(at_b.frames[0] == std::pair<PeerId, std::string>(1, "1"));
  CHECK(at_b.frames[1] == std::pair<PeerId, std::string>(1, "2"));
}

TEST_CASE("strangers: nothing is sent to a server that does not hold the key of the address", "[conformance][fault]") {
  const TestKeys friends({"a", "b", "c"});
  Received at_a, at_c;
  auto a = open(1, friends.security("a")), b = open(2, friends.security("b")), c = open(3, friends.security("c"));
  a->start(at_a.handlers());
  c->start(at_c.handlers());
  // c listens where b should, so to say: c's port with b's key.
  REQUIRE(a->add_peer(2, c->address().substr(0, c->address().rfind('#')) + b->address().substr(b->address().rfind('#'))).ok());
  REQUIRE(until([&] { return c->statistics().handshakes_refused > 0; }));
  CHECK_FALSE(a->send(2, header_of("secret"), {}).ok());
  CHECK(at_c.count() == 0);
}

TEST_CASE("strangers: a recorded conversation of friends, played again, delivers nothing", "[conformance][fault]") {
  const TestKeys friends({"a", "b"});
  Received at_a, at_b;
  auto a = open(1, friends.security("a")), b = open(2, friends.security("b"));
  a->start(at_a.handlers());
  b->start(at_b.handlers());
  const auto key = b->address().substr(b->address().rfind('#'));
  std::string recorded;
  {
    Tap tap(port_of(b->address()));
    REQUIRE(a->add_peer(2, "tcp://127.0.0.1:" + std::to_string(tap.port()) + key).ok());
    REQUIRE(until([&] { return a->send(2, header_of("pay"), {}).ok(); }));
    REQUIRE(until([&] { return at_b.count() == 1; }));
    recorded = tap.said();
  }
  CHECK(recorded.size() > 300);
  CHECK(recorded.find("pay") == std::string::npos);
  const auto refused = b->statistics().handshakes_refused;
  const int stranger = connected_to(port_of(b->address()));
  say(stranger, recorded);
  CHECK(until([&] { return b->statistics().handshakes_refused > refused; }));
  ::close(stranger);
  CHECK(at_b.count() == 1);
}

TEST_CASE("strangers: frames replayed where there are no keys are dropped", "[conformance][fault]") {
  const SteadyClock clock;
  auto transport_a = open(1), transport_b = open(2);
  const auto address_a = transport_a->address(), address_b = transport_b->address();
  ExchangeOptions options;
  options.cluster_id = 7;
  auto exchange_a = Exchange::create(options, std::move(transport_a), clock);
  auto exchange_b = Exchange::create(options, std::move(transport_b), clock);
  REQUIRE((exchange_a.ok() && exchange_b.ok()));
  auto& a = *exchange_a.value();
  auto& b = *exchange_b.value();
  const std::map<EndpointId, PeerId> routes{{1, 1}, {2, 2}};
  Tap tap(port_of(address_b));
  REQUIRE(a.add_peer(2, "tcp://127.0.0.1:" + std::to_string(tap.port())).ok());
  REQUIRE(b.add_peer(1, address_a).ok());
  REQUIRE(a.set_routes(1, 1, routes).ok());
  REQUIRE(b.set_routes(1, 1, routes).ok());
  const auto pass = [&](std::uint64_t request) {
    const MessageKey key{request, 0, 0, 0, 0, 1, 2};
    const std::vector<float> values{1, 2, static_cast<float>(request)};
    REQUIRE(problem_of(a.send(key, DType::f32, {3}, Shard::copy_of(std::as_bytes(std::span(values))))) == "");
    const auto got = b.receive(key, clock.now() + std::chrono::seconds(20));
    REQUIRE(got.ok());
    std::vector<float> back(3);
    got.value().copy_to(std::as_writable_bytes(std::span(back)));
    CHECK(back == values);
  };
  for (std::uint64_t request = 1; request <= 10; ++request) pass(request);

  // All that a said, again, while the conversation goes on; also with a byte changed.
  const auto recorded = tap.said();
  const auto duplicates = b.statistics().peers[1].frames_duplicate;
  std::vector<int> strangers;
  for (int i = 0; i < 4; ++i) {
    auto speech = recorded;
    if (i > 0) {
      // Beside a's own connection instead of in its place, which a takes back after two seconds.
      speech[recorded.find("Identity") + 8 + 4 + 12] ^= static_cast<char>(i);
      speech[speech.size() / 4 * static_cast<std::size_t>(i)] ^= 0x20;
    }
    strangers.push_back(connected_to(port_of(address_b)));
    say(strangers.back(), speech);
    pass(100 + static_cast<std::uint64_t>(i));
  }
  CHECK(until([&] { return b.statistics().peers[1].frames_duplicate > duplicates; }));
  pass(1000);
  for (const int stranger : strangers) ::close(stranger);
  CHECK_FALSE(b.try_receive({5, 0, 0, 0, 0, 1, 2}).has_value());  // Not delivered a second time.
}

TEST_CASE("strangers: an address that others can reach needs keys, or the word insecure", "[conformance]") {
  const TestKeys friends({"a"});
  const auto open_at = [](const std::string& bind, Security security) {
    ZmqOptions options;
    options.self = 1;
    options.bind = bind;
    options.security = std::move(security);
    return make_zmq_transport(options);
  };
  const auto refused = open_at("tcp://0.0.0.0:0", {});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::invalid_config);
  CHECK(refused.error().text().find("orrery keys make") != std::string::npos);
  CHECK(refused.error().text().find("insecure: true") != std::string::npos);
  CHECK(open_at("tcp://0.0.0.0:0", {nullptr, false, true}).ok());
  const auto guarded = open_at("tcp://0.0.0.0:0", friends.security("a", false));
  REQUIRE(guarded.ok());
  CHECK(guarded.value()->address().find('#') != std::string::npos);
  const auto at_home = open_at("tcp://127.0.0.1:0", friends.security("a", false));
  REQUIRE(at_home.ok());
  CHECK(at_home.value()->address().find('#') == std::string::npos);
  CHECK_FALSE(open_at("tcp://127.0.0.1:0", {nullptr, true, false}).ok());

  // Connecting, too.
  const std::string key(64, '1');
  CHECK(problem_of(open(1)->add_peer(2, "tcp://10.0.0.1:1")).find("keys") != std::string::npos);
  CHECK(problem_of(open(1)->add_peer(2, "tcp://10.0.0.1:1#" + key)).find("no keys") != std::string::npos);
  CHECK(problem_of(open(1, friends.security("a"))->add_peer(2, "tcp://127.0.0.1:1")).find("does not encrypt") != std::string::npos);
  CHECK(problem_of(open(1, friends.security("a"))->add_peer(2, "tcp://127.0.0.1:1#" + key)).find("not in the list") != std::string::npos);
  CHECK(problem_of(open(1, friends.security("a"))->add_peer(2, "tcp://127.0.0.1:1#zz")).find("not an address") != std::string::npos);
}
