// CAF over TLS: friends talk, monitors notice an end, strangers and clear-text callers are turned away with a reason.

#include <catch2/catch.hpp>

#include "actors/control_state.hpp"
#include "tests/support/keys.hpp"

using namespace orrery;
using namespace orrery::actors;
using orrery::testing::TestKeys;

namespace {

constexpr Duration limit = std::chrono::seconds(20);

ControlOptions options_of(const Security& security) {
  ControlOptions options;
  options.security = security;
  return options;
}

/// Answers every number with its successor.
caf::behavior counting_actor(caf::event_based_actor*) {
  return {[](int number) { return number + 1; }, [](const std::string& text) { return text; }};
}

std::string problem_of(const Result<caf::actor>& result) { return result.ok() ? "" : result.error().text(); }

}  // namespace

TEST_CASE("control: friends talk over TLS, also in large messages, and a death is noticed", "[actors][tls]") {
  const TestKeys keys({"coordinator", "n1"});
  Control client(options_of(keys.security("n1")));
  caf::actor other;
  {
    Control server(options_of(keys.security("coordinator")));
    const auto actor = server.state().system.spawn(counting_actor);
    const auto port = publish(server.state().system, actor, "127.0.0.1", 0);
    REQUIRE(port.ok());
    const auto connected = connect(client.state().system, "127.0.0.1", port.value(), limit);
    REQUIRE(problem_of(connected) == "");
    other = connected.value();
    caf::scoped_actor self{client.state().system};
    self->monitor(other);
    int answer = 0;
    self->request(other, limit, 41).receive([&](int number) { answer = number; }, [](const caf::error&) {});
    CHECK(answer == 42);
    const std::string large(3'000'000, 'x');
    std::string echo;
    self->request(other, limit, large).receive([&](std::string& text) { echo = std::move(text); }, [](const caf::error&) {});
    CHECK(echo == large);
    end_actor(server.state().system, actor);
    bool down = false;
    self->receive([&](const caf::down_msg&) { down = true; }, caf::after(limit) >> [] {});
    CHECK(down);
  }
}

TEST_CASE("control: strangers, and callers in clear text, are told that they are not trusted", "[actors][tls][fault]") {
  const TestKeys keys({"coordinator", "n1"}), others({"coordinator", "n1"});
  Control server(options_of(keys.security("coordinator")));
  const auto actor = server.state().system.spawn(counting_actor);
  const auto port = publish(server.state().system, actor, "127.0.0.1", 0);
  REQUIRE(port.ok());
  {
    Control stranger(options_of(others.security("n1")));
    const auto refused = connect(stranger.state().system, "127.0.0.1", port.value(), limit);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::unreachable);
    CHECK(refused.error().text().find("not in the list of allowed keys") != std::string::npos);
  }
  {
    // It trusts the server, and the server does not trust it.
    auto ring = std::make_shared<KeyRing>(*others.security("n1").keys);
    ring->allowed.push_back(keys.allowed()[0]);
    Control stranger(options_of({ring, true, false}));
    const auto refused = connect(stranger.state().system, "127.0.0.1", port.value(), limit);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().text().find("does not trust us") != std::string::npos);
  }
  {
    Control plain;
    CHECK_FALSE(connect(plain.state().system, "127.0.0.1", port.value(), std::chrono::milliseconds(500)).ok());
  }
  Control friendly(options_of(keys.security("n1")));
  CHECK(problem_of(connect(friendly.state().system, "127.0.0.1", port.value(), limit)) == "");
  end_actor(server.state().system, actor);
}

TEST_CASE("control: an address that others can reach needs keys, or the word insecure", "[actors][tls]") {
  const TestKeys keys({"coordinator"});
  const auto problem = [&](const Security& security, const std::string& host) {
    Control control(options_of(security));
    const auto actor = control.state().system.spawn(counting_actor);
    const auto port = publish(control.state().system, actor, host, 0);
    end_actor(control.state().system, actor);
    return port.ok() ? "" : port.error().text();
  };
  CHECK(problem({}, "127.0.0.1") == "");
  CHECK(problem({}, "0.0.0.0").find("orrery keys make") != std::string::npos);
  CHECK(problem({nullptr, false, true}, "0.0.0.0") == "");
  CHECK(problem(keys.security("coordinator", false), "0.0.0.0") == "");
}
