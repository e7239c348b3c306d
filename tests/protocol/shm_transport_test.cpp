// The shared-memory transport over an inner one that needs no sockets; what all transports promise is in
// tests/conformance.
//
// - frames change over to memory by themselves; who shares none keeps the inner transport
// - strangers' introductions change nothing
// - a receiver that lets go of nothing still gets all that comes, and the pool stays bounded
// - an exchange over it leaves out checksums, but not where frames can be damaged

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

#include <catch2/catch.hpp>

#include "base/random.hpp"
#include "protocol/exchange.hpp"
#include "protocol/faulty_transport.hpp"
#include "protocol/inproc_transport.hpp"
#include "protocol/shm_segment.hpp"
#include "protocol/shm_transport.hpp"

using namespace orrery;
using namespace orrery::protocol;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t mebibyte = std::uint64_t{1} << 20;

std::unique_ptr<Transport> shared(const std::shared_ptr<InprocHub>& hub, PeerId self, std::uint64_t pool_bytes = 8 * mebibyte) {
  auto inner = make_inproc_transport(hub, self, 64);
  auto made = make_shm_transport(inner, {.pool_bytes = pool_bytes});
  if (!made.ok()) FAIL(made.error().text());
  return std::move(made).value();
}

struct Inbox {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Shard> payloads;
  std::vector<std::uint64_t> numbers;
  bool keep = true;
  int writable = 0;

  TransportHandlers handlers() {
    return {.on_frame =
                [this](PeerId, std::span<const std::byte> header, Shard payload) {
                  const std::lock_guard lock(mutex);
                  std::uint64_t number = 0;
                  if (header.size() == sizeof number) std::memcpy(&number, header.data(), sizeof number);
                  numbers.push_back(number);
                  if (keep) payloads.push_back(std::move(payload));
                  changed.notify_all();
                },
            .on_hint =
                [this](PeerId, PeerHint hint) {
                  const std::lock_guard lock(mutex);
                  writable += hint == PeerHint::writable;
                  changed.notify_all();
                }};
  }
  std::size_t count() {
    const std::lock_guard lock(mutex);
    return numbers.size();
  }
  bool wait_for(std::size_t wanted) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, 20s, [&] { return numbers.size() >= wanted; });
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

HeaderBytes header_of(std::uint64_t number) { return HeaderBytes(std::as_bytes(std::span(&number, 1))); }
std::vector<std::byte> pattern(std::size_t size, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random.next());
  return bytes;
}
bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

// Sends until the peers share memory; returns how many frames that took.
std::uint64_t change_over(Transport& from, PeerId to) {
  std::uint64_t sent = 0;
  REQUIRE(until([&] {
    sent += from.send(to, header_of(sent), {}).ok();
    return from.helps(to);
  }));
  return sent;
}

}  // namespace

TEST_CASE("shm transport: frames change over to shared memory, in order", "[protocol][shm]") {
  const auto hub = make_inproc_hub();
  Inbox inbox_a, inbox_b;
  const auto a = shared(hub, 1), b = shared(hub, 2);
  a->start(inbox_a.handlers());
  b->start(inbox_b.handlers());
  REQUIRE(a->add_peer(2, b->address()).ok());
  REQUIRE(b->add_peer(1, a->address()).ok());
  auto sent = change_over(*a, 2);
  const auto bytes = pattern(100'000, 1);
  for (int i = 0; i < 20; ++i) REQUIRE(a->send(2, header_of(sent++), Shard::copy_of(bytes)).ok());
  REQUIRE(inbox_b.wait_for(sent));
  for (std::uint64_t i = 0; i < sent; ++i) CHECK(inbox_b.numbers[i] == i);
  CHECK(equal(inbox_b.payloads.back().bytes(), bytes));
  CHECK(a->statistics().memory_frames_sent >= 20);
  CHECK(a->statistics().frames_sent == sent);
  CHECK(b->statistics().memory_bytes_received == 20 * bytes.size());
}

TEST_CASE("shm transport: who shares no memory is reached over the inner transport", "[protocol][shm]") {
  const auto hub = make_inproc_hub();
  Inbox inbox_a, inbox_b;
  const auto a = shared(hub, 1);
  const auto b = make_inproc_transport(hub, 2);
  a->start(inbox_a.handlers());
  b->start(inbox_b.handlers());
  REQUIRE(a->add_peer(2, "").ok());
  REQUIRE(b->add_peer(1, "").ok());
  const auto bytes = pattern(100'000, 1);
  for (std::uint64_t i = 0; i < 20; ++i) {
    REQUIRE(until([&] { return a->send(2, header_of(1), Shard::copy_of(bytes)).ok(); }));
    REQUIRE(b->send(1, header_of(1), Shard::copy_of(bytes)).ok());
  }
  CHECK(inbox_a.wait_for(20));
  CHECK(inbox_b.wait_for(20));
  CHECK(a->statistics().memory_frames_sent == 0);
  CHECK_FALSE(a->stage(2, Shard::copy_of(bytes)));
  CHECK_FALSE(a->unchecked(2));
  const auto status = a->send_hinted(2, header_of(1), {}, {.quiet = false, .memory_only = true});
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::unreachable);
}

TEST_CASE("shm transport: introductions of strangers change nothing", "[protocol][shm][fault]") {
  const auto hub = make_inproc_hub();
  Inbox inbox_a, inbox_b;
  const auto a = shared(hub, 1);
  const auto wild = make_inproc_transport(hub, 2);
  a->start(inbox_a.handlers());
  wild->start(inbox_b.handlers());
  REQUIRE(a->add_peer(2, "").ok());
  REQUIRE(wild->add_peer(1, "").ok());
  const auto real = ShmHome::create(mebibyte).value();
  Random random(99);
  for (int i = 0; i < 500; ++i) {
    ShmIntroduction introduction;
    introduction.boot = boot_id();
    introduction.pid = static_cast<std::uint32_t>(::getpid());
    introduction.segment_fd = real->segment_fd();
    introduction.bell_fd = real->bell_fd();
    introduction.own = {.token = real->head().token, .life = 1 + random.next() % 3, .lane = static_cast<std::uint32_t>(random.next() % 4)};
    introduction.known = {.token = {random.next(), random.next()}, .life = 1, .lane = 0};
    auto bytes = HeaderBytes(std::as_bytes(std::span(&introduction, 1)));
    if (i % 2 == 0) bytes.bytes()[8 + random.next() % (sizeof introduction - 8)] ^= static_cast<std::byte>(1 + random.next() % 255);
    REQUIRE(until([&] { return wild->send(1, bytes, {}).ok(); }));
  }
  // They claim to read lanes that they do not know of, so nothing was sent there; all goes on.
  const auto before = inbox_a.count();
  REQUIRE(until([&] { return wild->send(1, header_of(7), {}).ok(); }));
  REQUIRE(until([&] {
    const std::lock_guard lock(inbox_a.mutex);
    return inbox_a.numbers.size() > before && inbox_a.numbers.back() == 7;
  }));
  CHECK(a->statistics().memory_frames_sent == 0);
  REQUIRE(until([&] { return a->send(2, header_of(8), {}).ok(); }));
  REQUIRE(until([&] {
    const std::lock_guard lock(inbox_b.mutex);
    return !inbox_b.numbers.empty() && inbox_b.numbers.back() == 8;
  }));
}

TEST_CASE("shm transport: records that make no sense end the use of a lane, not the connection", "[protocol][shm][fault]") {
  // A peer that introduces itself properly and then writes nonsense.
  const auto hub = make_inproc_hub();
  Inbox inbox_a, inbox_wild;
  const auto a = shared(hub, 1);
  const auto wild = make_inproc_transport(hub, 2);
  a->start(inbox_a.handlers());
  wild->start(inbox_wild.handlers());
  REQUIRE(a->add_peer(2, "").ok());
  REQUIRE(wild->add_peer(1, "").ok());
  const auto home = ShmHome::create(mebibyte).value();
  auto& lane = home->head().lanes[0];
  lane.life = 1;
  ShmIntroduction introduction;
  introduction.boot = boot_id();
  introduction.pid = static_cast<std::uint32_t>(::getpid());
  introduction.segment_fd = home->segment_fd();
  introduction.bell_fd = home->bell_fd();
  introduction.own = {.token = home->head().token, .life = 1, .lane = 0};
  REQUIRE(until([&] { return wild->send(1, HeaderBytes(std::as_bytes(std::span(&introduction, 1))), {}).ok(); }));
  for (auto& byte : lane.ring) byte = std::byte{0x5a};
  lane.written = 640;
  REQUIRE(until([&] {
    home->bell().ring(3);
    // Also what wakes up a reader in the middle of something else.
    (void)wild->send(1, header_of(1), {});
    return a->statistics().frames_malformed == 1;
  }));
  const auto before = inbox_a.count();
  REQUIRE(until([&] { return wild->send(1, header_of(2), {}).ok(); }));
  CHECK(inbox_a.wait_for(before + 1));
}

TEST_CASE("shm transport: a receiver that lets go of nothing still gets what comes", "[protocol][shm][fault]") {
  // Four times the pool, all of it kept.
  const auto hub = make_inproc_hub();
  Inbox inbox_a, inbox_b;
  const auto a = shared(hub, 1, 4 * mebibyte), b = shared(hub, 2, 4 * mebibyte);
  a->start(inbox_a.handlers());
  b->start(inbox_b.handlers());
  REQUIRE(a->add_peer(2, b->address()).ok());
  REQUIRE(b->add_peer(1, a->address()).ok());
  auto sent = change_over(*a, 2);
  const auto first = sent;
  for (std::uint64_t i = 0; i < 64; ++i) {
    const auto bytes = pattern(mebibyte / 4, i);
    REQUIRE(until([&] { return a->send(2, header_of(sent), Shard::copy_of(bytes)).ok(); }));
    ++sent;
  }
  REQUIRE(inbox_b.wait_for(sent));
  for (std::uint64_t i = 0; i < 64; ++i) CHECK(equal(inbox_b.payloads[first + i].bytes(), pattern(mebibyte / 4, i)));
  CHECK(a->statistics().memory_frames_sent >= 64);
}

TEST_CASE("shm transport: a full pool refuses and says when there is room", "[protocol][shm][fault]") {
  const auto hub = make_inproc_hub();
  Inbox inbox_a, inbox_b;
  const auto a = shared(hub, 1, 4 * mebibyte), b = shared(hub, 2, 4 * mebibyte);
  std::mutex gate;
  auto handlers = inbox_b.handlers();
  const auto inner = handlers.on_frame;
  handlers.on_frame = [&](PeerId from, std::span<const std::byte> header, Shard payload) {
    const std::lock_guard lock(gate);
    inner(from, header, std::move(payload));
  };
  inbox_b.keep = false;
  a->start(inbox_a.handlers());
  b->start(handlers);
  REQUIRE(a->add_peer(2, b->address()).ok());
  REQUIRE(b->add_peer(1, a->address()).ok());
  auto sent = change_over(*a, 2);
  {
    const std::lock_guard lock(gate);
    const auto bytes = pattern(mebibyte / 4, 5);
    Status status = Done{};
    while (status.ok()) {
      status = a->send(2, header_of(sent), Shard::copy_of(bytes));
      sent += status.ok();
      REQUIRE(sent < 10'000);
    }
    CHECK(status.error().code == ErrorCode::pool_exhausted);
    CHECK(a->statistics().memory_bytes_sent <= 4 * mebibyte);
  }
  REQUIRE(inbox_b.wait_for(sent));
  REQUIRE(until([&] {
    const std::lock_guard lock(inbox_a.mutex);
    return inbox_a.writable > 0;
  }));
  CHECK(a->send(2, header_of(sent), {}).ok());
}

TEST_CASE("shm transport: a helper gets frames itself, and is woken by whoever wants it", "[protocol][shm]") {
  const auto hub = make_inproc_hub();
  Inbox inbox_a, inbox_b;
  const auto a = shared(hub, 1), b = shared(hub, 2);
  a->start(inbox_a.handlers());
  b->start(inbox_b.handlers());
  REQUIRE(a->add_peer(2, b->address()).ok());
  REQUIRE(b->add_peer(1, a->address()).ok());
  auto sent = change_over(*a, 2);
  REQUIRE(inbox_b.wait_for(sent));
  std::atomic<bool> done{false};
  std::thread helper([&] {
    while (!done) b->help(60s);
  });
  for (int i = 0; i < 200; ++i) {
    REQUIRE(a->send_hinted(2, header_of(sent++), {}, {.quiet = i % 3 == 0, .memory_only = false}).ok());
    REQUIRE(inbox_b.wait_for(sent));
  }
  done = true;
  b->wake_helper();
  helper.join();
}

namespace {

// Two exchanges that share memory, with or without a faulty link between them.
struct Exchanges {
  SteadyClock clock;
  std::shared_ptr<InprocHub> hub = make_inproc_hub();
  std::vector<Transport*> transports;
  std::vector<std::unique_ptr<Exchange>> exchanges;

  explicit Exchanges(const FaultOptions* faults) {
    for (PeerId self = 0; self < 2; ++self) {
      auto transport = shared(hub, self);
      transports.push_back(transport.get());
      if (faults) transport = std::make_unique<FaultyTransport>(std::move(transport), *faults);
      auto made = Exchange::create({.cluster_id = 5, .session = self + 1, .chunk_bytes = 64 << 10, .resend_after = 20ms}, std::move(transport), clock);
      if (!made.ok()) FAIL(made.error().text());
      exchanges.push_back(std::move(made).value());
    }
    for (PeerId self = 0; self < 2; ++self) {
      if (!exchanges[self]->add_peer(1 - self, "").ok()) FAIL("address");
      if (!exchanges[self]->set_routes(1, 1, {{0, 0}, {1, 1}}).ok()) FAIL("routes");
    }
    if (!until([&] { return transports[0]->helps(1) && transports[1]->helps(0); })) FAIL("no memory is shared");
  }
  static MessageKey key(std::uint32_t op, EndpointId source) { return {.request = 1, .op = op, .source = source, .target = 1 - source}; }
  void send(std::uint32_t op, EndpointId source, const std::vector<std::byte>& bytes) {
    const auto status = exchanges[source]->send(key(op, source), DType::u8, {bytes.size()}, Shard::copy_of(bytes));
    if (!status.ok()) FAIL(status.error().text());
  }
  void receive(std::uint32_t op, EndpointId source, const std::vector<std::byte>& expected) {
    const auto message = exchanges[1 - source]->receive(key(op, source), clock.now() + 20s);
    if (!message.ok()) FAIL(message.error().text());
    std::vector<std::byte> bytes(message.value().bytes());
    message.value().copy_to(bytes);
    CHECK(bytes == expected);
  }
};

}  // namespace

TEST_CASE("shm transport: exchanges carry messages of any size both ways", "[protocol][shm]") {
  Exchanges world(nullptr);
  std::thread other([&] {
    for (std::uint32_t op = 0; op < 60; ++op) {
      world.receive(op, 0, pattern(op * 4001, op));
      world.send(op, 1, pattern(op * 3001, op + 100));
    }
  });
  for (std::uint32_t op = 0; op < 60; ++op) {
    world.send(op, 0, pattern(op * 4001, op));
    world.receive(op, 1, pattern(op * 3001, op + 100));
  }
  other.join();
  CHECK(world.transports[0]->statistics().memory_bytes_sent > 4 * mebibyte);
  CHECK(world.exchanges[0]->statistics().peers.at(1).frames_bad == 0);
  CHECK(world.exchanges[0]->statistics().peers.at(1).frames_resent == 0);
}

TEST_CASE("shm transport: many messages that nobody lets go of arrive, beyond the pool", "[protocol][shm][fault]") {
  Exchanges world(nullptr);
  for (std::uint32_t op = 0; op < 40; ++op) world.send(op, 0, pattern(mebibyte / 2, op));
  std::vector<Message> kept;
  for (std::uint32_t op = 0; op < 40; ++op) {
    auto message = world.exchanges[1]->receive(Exchanges::key(op, 0), world.clock.now() + 20s);
    REQUIRE(message.ok());
    kept.push_back(std::move(message).value());
  }
  for (std::uint32_t op = 0; op < 40; ++op) {
    std::vector<std::byte> bytes(kept[op].bytes());
    kept[op].copy_to(bytes);
    CHECK(bytes == pattern(mebibyte / 2, op));
  }
}

TEST_CASE("shm transport: a message of another epoch or of a waiter that gave up blocks nobody", "[protocol][shm][fault]") {
  Exchanges world(nullptr);
  const auto late = world.exchanges[1]->receive(Exchanges::key(9, 0), world.clock.now() + 5ms);
  REQUIRE_FALSE(late.ok());
  CHECK(late.error().code == ErrorCode::timed_out);
  std::thread waiter([&] {
    const auto ended = world.exchanges[1]->receive(Exchanges::key(10, 0), world.clock.now() + 60s);
    CHECK_FALSE(ended.ok());
  });
  REQUIRE(until([&] { return world.exchanges[1]->statistics().receives_waiting == 1; }));
  world.exchanges[1]->forget(1);
  waiter.join();
}

TEST_CASE("shm transport: several threads of a process wait at once, and each gets its own", "[protocol][shm]") {
  Exchanges world(nullptr);
  std::vector<std::thread> threads;
  for (std::uint32_t thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      for (std::uint32_t op = thread; op < 200; op += 4) {
        world.receive(op, 0, pattern(20'000, op));
        world.send(op, 1, pattern(100, op));
      }
    });
  for (std::uint32_t op = 0; op < 200; ++op) {
    world.send(op, 0, pattern(20'000, op));
    world.receive(op, 1, pattern(100, op));
  }
  for (auto& thread : threads) thread.join();
}

TEST_CASE("shm transport: a faulty link over it is checked, and bad frames are sent again", "[protocol][shm][fault]") {
  const FaultOptions faults{.seed = 3, .drop = 0.05, .duplicate = 0.05, .corrupt = 0.1};
  Exchanges world(&faults);
  CHECK_FALSE(world.transports[0]->unchecked(1));
  for (std::uint32_t op = 0; op < 40; ++op) {
    world.send(op, 0, pattern(200'000, op));
    world.receive(op, 0, pattern(200'000, op));
  }
  CHECK(world.exchanges[1]->statistics().peers.at(0).frames_bad > 0);
  CHECK(world.exchanges[0]->statistics().peers.at(1).frames_resent > 0);
}
