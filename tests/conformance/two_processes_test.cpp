// The exchange between two real processes: this program starts itself again as the other end, and kills it.

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include "protocol/exchange.hpp"
#include "protocol/zmq_transport.hpp"
#include "tests/support/child_process.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace orrery;
using namespace orrery::protocol;
using namespace std::chrono_literals;

extern char** environ;

namespace {

constexpr std::size_t size = 300'000;
constexpr std::uint32_t op_count = 30;
const std::map<EndpointId, PeerId> routes{{0, 0}, {1, 1}};

std::vector<std::byte> pattern(std::uint32_t op) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + op * 7);
  return bytes;
}

MessageKey key_of(std::uint32_t op, EndpointId source) {
  return {.request = 1, .op = op, .source = source, .target = 1 - source};
}

std::unique_ptr<Exchange> open(const std::string& folder, PeerId self, const Clock& clock) {
  auto transport = make_zmq_transport({.self = self, .bind = "ipc://" + folder + "/" + std::to_string(self)});
  if (!transport.ok()) FAIL(transport.error().text());
  auto exchange = Exchange::create({.cluster_id = 3, .chunk_bytes = 64 << 10}, std::move(transport).value(), clock);
  if (!exchange.ok()) FAIL(exchange.error().text());
  if (!exchange.value()->add_peer(1 - self, "ipc://" + folder + "/" + std::to_string(1 - self)).ok()) FAIL("address");
  return std::move(exchange).value();
}

std::string problem_of(const Status& status) { return status.ok() ? "" : status.error().message; }

/// The other process, for an epoch.
struct Child : testing::Child {
  Child(const std::string& folder, std::uint64_t epoch)
      : testing::Child("[.echo-process]", {{"ORRERY_TEST_FOLDER", folder}, {"ORRERY_TEST_EPOCH", std::to_string(epoch)}}) {}
};

}  // namespace

// Not a test of its own: what the other process does. Sends every message back until it is killed.
TEST_CASE("two processes: the other end", "[.echo-process]") {
  const char* folder = ::getenv("ORRERY_TEST_FOLDER");
  const char* epoch = ::getenv("ORRERY_TEST_EPOCH");
  REQUIRE(folder);
  REQUIRE(epoch);
  const SteadyClock clock;
  const auto exchange = open(folder, 1, clock);
  REQUIRE(exchange->set_routes(std::stoull(epoch), 1, routes).ok());
  for (std::uint32_t op = 0;; ++op) {
    const auto message = exchange->receive(key_of(op, 0), clock.now() + 20s);
    if (!message.ok()) FAIL(message.error().text());
    std::vector<std::byte> bytes(message.value().bytes());
    message.value().copy_to(bytes);
    if (const auto sent = exchange->send(key_of(op, 1), DType::u8, {size}, Shard::of(std::move(bytes))); !sent.ok())
      FAIL(sent.error().text());
  }
}

TEST_CASE("two processes: messages come back; a killed process is replaced in a new epoch", "[conformance][fault]") {
  const orrery::testing::TemporaryFolder temporary;
  const auto& folder = temporary.path();
  {
    const SteadyClock clock;
    auto exchange = open(folder, 0, clock);
    const auto echo = [&](std::uint32_t op) {
      if (const auto sent = exchange->send(key_of(op, 0), DType::u8, {size}, Shard::of(pattern(op))); !sent.ok()) return sent;
      const auto message = exchange->receive(key_of(op, 1), clock.now() + 20s);
      if (!message.ok()) return Status(message.error());
      std::vector<std::byte> bytes(message.value().bytes());
      message.value().copy_to(bytes);
      CHECK(bytes == pattern(op));
      return Status(Done{});
    };

    REQUIRE(exchange->set_routes(1, 1, routes).ok());
    Child first(folder, 1);
    for (std::uint32_t op = 0; op < op_count; ++op) REQUIRE(problem_of(echo(op)) == "");
    first.kill();

    // Its successor comes up in the same epoch: what the first one owed is lost, and said to be.
    Child second(folder, 1);
    const auto lost = echo(op_count);
    REQUIRE_FALSE(lost.ok());
    CHECK(lost.error().code == ErrorCode::peer_lost);
    second.kill();

    REQUIRE(exchange->set_routes(2, 1, routes).ok());
    Child third(folder, 2);
    for (std::uint32_t op = 0; op < op_count; ++op) REQUIRE(problem_of(echo(op)) == "");
  }
}
