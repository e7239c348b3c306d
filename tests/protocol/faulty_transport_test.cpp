// Faults of one link, set and healed while frames flow: what is lost, what waits, in which order it goes on.

#include "protocol/faulty_transport.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include <catch2/catch.hpp>

#include "protocol/inproc_transport.hpp"

using namespace orrery;
using namespace orrery::protocol;

namespace {

HeaderBytes header_of(std::uint64_t number) { return HeaderBytes(std::as_bytes(std::span(&number, 1))); }

/// Peer 1 behind a faulty transport, peer 2 and 3 beyond.
class World {
public:
  struct Frame {
    PeerId from = 0, at = 0;
    std::vector<std::byte> header, payload;
    std::uint64_t number() const {
      std::uint64_t value = 0;
      std::memcpy(&value, header.data(), std::min(header.size(), sizeof value));
      return value;
    }
  };

  explicit World(std::uint32_t queue_frames = 4096)
      : one(make_inproc_transport(hub_, 1, queue_frames), FaultOptions{}),
        two(make_inproc_transport(hub_, 2, queue_frames)),
        three(make_inproc_transport(hub_, 3, queue_frames)) {
    one.start(handlers(1));
    two->start(handlers(2));
    three->start(handlers(3));
    REQUIRE(one.add_peer(2, two->address()).ok());
    REQUIRE(one.add_peer(3, three->address()).ok());
    REQUIRE(two->add_peer(1, one.address()).ok());
  }
  ~World() {
    one.close();
    two->close();
    three->close();
  }

  void send(PeerId to, std::uint64_t number, std::size_t payload = 0) {
    Status sent = Done{};
    const Shard bytes = Shard::of(std::vector<std::byte>(payload, std::byte{0x5A}));
    do sent = to == 1 ? two->send(1, header_of(number), bytes) : one.send(to, header_of(number), bytes);
    while (!sent.ok() && sent.error().code == ErrorCode::pool_exhausted);
    REQUIRE(sent.ok());
  }
  std::size_t count(PeerId at) {
    const std::lock_guard lock(mutex_);
    std::size_t all = 0;
    for (const auto& frame : frames_) all += frame.at == at;
    return all;
  }
  std::vector<Frame> wait_for(PeerId at, std::size_t many) {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(20), [&] {
      std::size_t all = 0;
      for (const auto& frame : frames_) all += frame.at == at;
      return all >= many;
    }));
    std::vector<Frame> found;
    for (const auto& frame : frames_)
      if (frame.at == at) found.push_back(frame);
    return found;
  }
  std::vector<std::uint64_t> numbers(PeerId at, std::size_t many) {
    std::vector<std::uint64_t> all;
    for (const auto& frame : wait_for(at, many)) all.push_back(frame.number());
    return all;
  }
  std::atomic<int> writable{0};

private:
  TransportHandlers handlers(PeerId at) {
    return {.on_frame =
                [this, at](PeerId from, std::span<const std::byte> header, Shard payload) {
                  const std::lock_guard lock(mutex_);
                  frames_.push_back({from, at, {header.begin(), header.end()}, {payload.bytes().begin(), payload.bytes().end()}});
                  changed_.notify_all();
                },
            .on_hint = [this, at](PeerId, PeerHint hint) { writable += at == 1 && hint == PeerHint::writable; }};
  }

  std::shared_ptr<InprocHub> hub_ = make_inproc_hub();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Frame> frames_;

public:
  FaultyTransport one;
  std::unique_ptr<Transport> two, three;
};

std::vector<std::uint64_t> up_to(std::uint64_t count) {
  std::vector<std::uint64_t> all(count);
  for (std::uint64_t i = 0; i < count; ++i) all[i] = i;
  return all;
}

}  // namespace

TEST_CASE("faulty transport: a cut outwards loses what is sent, not what comes, and no other peer's", "[protocol][fault]") {
  World world;
  world.one.set_link(2, LinkDirection::out, {.cut = true});
  for (std::uint64_t i = 0; i < 5; ++i) world.send(2, i);
  world.send(3, 70);
  world.send(1, 71);
  CHECK(world.numbers(3, 1) == std::vector<std::uint64_t>{70});
  CHECK(world.numbers(1, 1) == std::vector<std::uint64_t>{71});
  CHECK(world.one.counts().cut == 5);
  world.one.heal_link(2, LinkDirection::out);
  world.send(2, 9);
  CHECK(world.numbers(2, 1) == std::vector<std::uint64_t>{9});
}

TEST_CASE("faulty transport: a cut inwards loses what comes, not what is sent", "[protocol][fault]") {
  World world;
  world.one.set_link(2, LinkDirection::in, {.cut = true});
  for (std::uint64_t i = 0; i < 5; ++i) world.send(1, i);
  world.send(2, 70);
  CHECK(world.numbers(2, 1) == std::vector<std::uint64_t>{70});
  while (world.one.counts().cut < 5) std::this_thread::yield();
  world.one.heal_all();
  world.send(1, 9);
  CHECK(world.numbers(1, 1) == std::vector<std::uint64_t>{9});
}

TEST_CASE("faulty transport: what stalls goes on in order when it heals, both ways", "[protocol][fault]") {
  World world;
  world.one.set_link(2, LinkDirection::both, {.stall = true});
  for (std::uint64_t i = 0; i < 50; ++i) {
    world.send(2, i);
    world.send(1, i);
  }
  while (world.one.waiting() < 100) std::this_thread::yield();
  CHECK(world.count(1) + world.count(2) == 0);
  world.one.heal_link(2, LinkDirection::both);
  for (std::uint64_t i = 50; i < 100; ++i) {
    world.send(2, i);
    world.send(1, i);
  }
  CHECK(world.numbers(2, 100) == up_to(100));
  CHECK(world.numbers(1, 100) == up_to(100));
  CHECK(world.one.waiting() == 0);
  CHECK(world.one.counts().stalled >= 100);
}

TEST_CASE("faulty transport: a delay is at least what it says, and keeps the order", "[protocol][fault]") {
  World world;
  const auto latency = std::chrono::milliseconds(20);
  world.one.set_link(2, LinkDirection::both, {.delay = latency, .jitter = std::chrono::milliseconds(5)});
  const auto started = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < 20; ++i) {
    world.send(2, i);
    world.send(1, i);
  }
  CHECK(world.numbers(2, 20) == up_to(20));
  CHECK(world.numbers(1, 20) == up_to(20));
  CHECK(std::chrono::steady_clock::now() - started >= latency);
}

TEST_CASE("faulty transport: a rate takes the time that the bytes need", "[protocol][fault]") {
  World world;
  world.one.set_link(2, LinkDirection::out, {.bytes_per_second = 10e6});
  const auto started = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < 10; ++i) world.send(2, i, 50'000);
  CHECK(world.numbers(2, 10) == up_to(10));
  CHECK(std::chrono::steady_clock::now() - started >= std::chrono::milliseconds(49));
}

TEST_CASE("faulty transport: who waits behind a delay goes on at once when it is taken away", "[protocol][fault]") {
  World world;
  world.one.set_link(2, LinkDirection::out, {.delay = std::chrono::hours(1)});
  for (std::uint64_t i = 0; i < 5; ++i) world.send(2, i);
  CHECK(world.one.waiting() == 5);
  world.one.heal_link(2, LinkDirection::out);
  CHECK(world.numbers(2, 5) == up_to(5));
}

TEST_CASE("faulty transport: chance is drawn from the seed", "[protocol][fault]") {
  const auto arrived = [](std::uint64_t seed) {
    World world;
    world.one.set_link(2, LinkDirection::out, {.seed = seed, .drop = 0.3, .duplicate = 0.2});
    for (std::uint64_t i = 0; i < 200; ++i) world.send(2, i);
    const auto counts = world.one.counts();
    CHECK(counts.dropped > 0);
    CHECK(counts.duplicated > 0);
    return world.numbers(2, 200 - counts.dropped + counts.duplicated);
  };
  CHECK(arrived(5) == arrived(5));
  CHECK(arrived(5) != arrived(6));
}

TEST_CASE("faulty transport: corruption and truncation change every frame, never the sender's bytes", "[protocol][fault]") {
  World world;
  const std::vector<std::byte> right(1000, std::byte{0x5A});
  const Shard payload = Shard::of(right);
  world.one.set_link(2, LinkDirection::out, {.corrupt = 1});
  for (std::uint64_t i = 0; i < 20; ++i) REQUIRE(world.one.send(2, header_of(i), payload).ok());
  std::uint64_t number = 0;
  for (const auto& frame : world.wait_for(2, 20)) CHECK((frame.payload != right) != (frame.number() != number++));
  CHECK(std::equal(right.begin(), right.end(), payload.bytes().begin()));

  world.one.set_link(3, LinkDirection::out, {.truncate = 1});
  for (std::uint64_t i = 0; i < 10; ++i) REQUIRE(world.one.send(3, header_of(i), payload).ok());
  REQUIRE(world.one.send(3, header_of(10), {}).ok());
  const auto frames = world.wait_for(3, 11);
  for (std::size_t i = 0; i < 10; ++i) CHECK(frames[i].payload.size() < right.size());
  CHECK(frames[10].header.size() < sizeof(std::uint64_t));
  CHECK(world.one.counts().truncated == 11);
}

TEST_CASE("faulty transport: a reordered frame is passed by later ones and is not lost", "[protocol][fault]") {
  World world;
  world.one.set_link(2, LinkDirection::out, {.reorder = 1, .reorder_hold = std::chrono::hours(1)});
  world.send(2, 0);
  world.one.set_link(2, LinkDirection::out, {.reorder = 0.3, .reorder_hold = std::chrono::milliseconds(1)});
  for (std::uint64_t i = 1; i < 40; ++i) world.send(2, i);
  const auto first = world.numbers(2, 39);
  CHECK(std::find(first.begin(), first.end(), 0) == first.end());
  CHECK(std::set<std::uint64_t>(first.begin(), first.end()).size() == 39);
  CHECK(world.one.waiting() == 1);
}

TEST_CASE("faulty transport: a full stall refuses, and says when there is room", "[protocol][fault]") {
  World world;
  world.one.set_link(2, LinkDirection::out, {.stall = true});
  std::uint64_t taken = 0;
  while (world.one.send(2, header_of(taken), {}).ok()) ++taken;
  CHECK(taken == FaultyTransport::waiting_frames_max);
  CHECK(world.one.send(2, header_of(taken), {}).error().code == ErrorCode::pool_exhausted);
  CHECK(world.writable == 0);
  world.one.heal_all();
  CHECK(world.numbers(2, taken) == up_to(taken));
  while (world.writable == 0) std::this_thread::yield();
}

TEST_CASE("faulty transport: frames that wait find room in a small inner queue", "[protocol][fault]") {
  World world(4);
  world.one.set_link(2, LinkDirection::out, {.stall = true});
  for (std::uint64_t i = 0; i < 200; ++i) world.send(2, i);
  world.one.heal_all();
  CHECK(world.numbers(2, 200) == up_to(200));
}

TEST_CASE("faulty transport: close lets go of what waits, and a cut too", "[protocol][fault]") {
  std::atomic<int> released{0};
  const std::vector<std::byte> bytes(100);
  {
    World world;
    world.one.set_link(2, LinkDirection::out, {.stall = true});
    world.one.set_link(3, LinkDirection::out, {.delay = std::chrono::hours(1)});
    for (int i = 0; i < 4; ++i) {
      REQUIRE(world.one.send(2, header_of(1), Shard(std::span(bytes), [&] { ++released; })).ok());
      REQUIRE(world.one.send(3, header_of(1), Shard(std::span(bytes), [&] { ++released; })).ok());
    }
    CHECK(released == 0);
    world.one.set_link(2, LinkDirection::out, {.cut = true});
    CHECK(released == 4);
    world.one.close();
    CHECK(released == 8);
    CHECK_FALSE(world.one.send(2, header_of(1), {}).ok());
  }
}
