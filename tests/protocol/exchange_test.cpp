// The exchange, over a network that the test turns (order of everything is given by the seed), over threads, and
// over real sockets: messages, faults, deadlines, epochs, memory.

#include "protocol/exchange.hpp"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include "base/random.hpp"
#include "protocol/faulty_transport.hpp"
#include "protocol/inproc_transport.hpp"
#include "protocol/loopback_transport.hpp"
#include "protocol/zmq_transport.hpp"

using namespace orrery;
using namespace orrery::protocol;
using namespace std::chrono_literals;

namespace {

std::vector<std::byte> pattern(std::size_t size, std::uint64_t seed) {
  std::vector<std::byte> bytes(size);
  std::uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (auto& byte : bytes) byte = static_cast<std::byte>((state = state * 6364136223846793005ULL + 1442695040888963407ULL) >> 56);
  return bytes;
}

std::vector<std::byte> flat(const Message& message) {
  std::vector<std::byte> bytes(message.bytes());
  message.copy_to(bytes);
  return bytes;
}

// Processes 0, 1, ... under one clock and one loopback network; endpoint e lives in process e / 10.
struct Simulation {
  ManualClock clock;
  LoopbackNetwork network;
  std::vector<FaultyTransport*> faults;
  std::vector<std::unique_ptr<Exchange>> processes;
  ExchangeOptions options{.cluster_id = 5, .chunk_bytes = 1024, .own_timer = false};

  std::unique_ptr<Exchange> start(PeerId id, std::uint64_t session) {
    auto transport = std::make_unique<FaultyTransport>(network.make_transport(id), FaultOptions{.seed = id + 1});
    if (faults.size() <= id) faults.resize(id + 1);
    faults[id] = transport.get();
    auto with_session = options;
    with_session.session = session;
    auto made = Exchange::create(with_session, std::move(transport), clock);
    REQUIRE(made.ok());
    return std::move(made).value();
  }
  std::map<EndpointId, PeerId> routes() const {
    std::map<EndpointId, PeerId> all;
    for (PeerId id = 0; id < processes.size(); ++id)
      for (EndpointId e = 0; e < 10; ++e) all[id * 10 + e] = id;
    return all;
  }
  void introduce(PeerId id) {
    for (PeerId other = 0; other < processes.size(); ++other)
      if (other != id) REQUIRE(processes[id]->add_peer(other, "").ok());
  }
  void open(PeerId count, std::uint64_t epoch = 1) {
    for (PeerId id = 0; id < count; ++id) processes.push_back(start(id, 100 + id));
    for (PeerId id = 0; id < count; ++id) introduce(id);
    begin(epoch);
  }
  void begin(std::uint64_t epoch) {
    for (auto& process : processes) REQUIRE(process->set_routes(epoch, 9, routes()).ok());
    settle();
  }
  // Delivers what can be delivered now.
  void settle() {
    do
      for (auto& process : processes)
        if (process) process->tick();
    while (network.deliver_all() > 0);
  }
  // Lets time pass in small steps.
  void run(Duration duration, Duration step = 1ms) {
    for (auto end = clock.now() + duration; clock.now() < end; clock.advance(step)) settle();
    settle();
  }
};

MessageKey key_of(EndpointId source, EndpointId target, std::uint32_t op = 1, std::uint64_t request = 1) {
  return {.request = request, .step = 12, .op = op, .source = source, .target = target};
}

Status send(Exchange& exchange, const MessageKey& key, std::size_t size) {
  return exchange.send(key, DType::u8, {size}, Shard::of(pattern(size, key.op)));
}

template <class Condition>
bool eventually(Condition condition) {
  for (int i = 0; i < 20'000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

}  // namespace

#define WAIT_FOR_WAITER(exchange) REQUIRE(eventually([&] { return (exchange).statistics().receives_waiting == 1; }))

TEST_CASE("exchange: messages of any size arrive, locally and between processes", "[protocol][exchange]") {
  Simulation world;
  world.open(2);
  std::uint32_t op = 0;
  for (const EndpointId target : {1U, 10U}) {
    for (const std::size_t size : {0, 1, 1023, 1024, 1025, 5000, 300'000}) {
      const auto key = key_of(0, target, ++op);
      REQUIRE(send(*world.processes[0], key, size).ok());
      world.settle();
      auto& receiver = *world.processes[target / 10];
      const auto message = receiver.try_receive(key);
      REQUIRE(message);
      CHECK(message->shape == Shape{size});
      CHECK(message->dtype == DType::u8);
      CHECK(flat(*message) == pattern(size, op));
      CHECK_FALSE(receiver.try_receive(key));  // Once.
    }
  }
  CHECK(world.processes[0]->statistics().messages_local == 7);
}

TEST_CASE("exchange: chunks begin at rows", "[protocol][exchange]") {
  Simulation world;
  world.open(2);
  const auto key = key_of(0, 10);
  // Rows of 300 bytes: three to a chunk of at most 1024.
  REQUIRE(world.processes[0]->send(key, DType::f32, {10, 75}, Shard::of(pattern(3000, 1))).ok());
  world.settle();
  const auto message = world.processes[1]->try_receive(key);
  REQUIRE(message);
  REQUIRE(message->chunks.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) CHECK(message->chunks[i].offset == i * 900);
}

TEST_CASE("exchange: bytes inside a process are handed over, not copied", "[protocol][exchange]") {
  Simulation world;
  world.open(1);
  const auto bytes = pattern(5000, 1);
  bool released = false;
  REQUIRE(world.processes[0]->send(key_of(0, 1), DType::u8, {5000}, Shard(std::span(bytes), [&] { released = true; })).ok());
  {
    const auto message = world.processes[0]->try_receive(key_of(0, 1));
    REQUIRE(message);
    CHECK(message->chunks.at(0).bytes.bytes().data() == bytes.data());
    CHECK_FALSE(released);
  }
  CHECK(released);
}

TEST_CASE("exchange: bytes sent away are borrowed until they are acked", "[protocol][exchange]") {
  Simulation world;
  world.open(2);
  world.faults[0]->cut(1);
  const auto bytes = pattern(10'000, 1);
  bool released = false;
  REQUIRE(world.processes[0]->send(key_of(0, 10), DType::u8, {10'000}, Shard(std::span(bytes), [&] { released = true; })).ok());
  world.run(300ms);
  CHECK_FALSE(released);
  world.faults[0]->heal(1);
  world.run(2s, 10ms);
  // The loopback hands the same memory on, so the receiver must let go as well.
  CHECK_FALSE(released);
  CHECK(world.processes[0]->statistics().peers.at(1).unacked_bytes == 0);
  REQUIRE(world.processes[1]->try_receive(key_of(0, 10)));
  CHECK(released);

  // Small ones are copied: nobody waits for their memory.
  released = false;
  world.faults[0]->cut(1);
  REQUIRE(world.processes[0]->send(key_of(0, 10, 2), DType::u8, {100}, Shard(std::span(bytes).first(100), [&] { released = true; })).ok());
  CHECK(released);
}

TEST_CASE("exchange: under loss, repetition, reorder and corruption everything arrives once and whole",
          "[protocol][exchange][fault]") {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    Simulation world;
    world.options.window_bytes = 8'000 + random.below(100'000);
    world.open(3);
    for (auto* faults : world.faults)
      faults->set_faults({.seed = seed, .drop = random.uniform() * 0.3, .duplicate = random.uniform() * 0.3,
                          .corrupt = random.uniform() * 0.3, .delay = random.uniform() * 0.5, .delay_frames_max = 10});
    std::vector<std::pair<MessageKey, std::size_t>> due;
    for (std::uint32_t op = 0; op < 40; ++op) {
      const auto source = static_cast<EndpointId>(random.below(3) * 10), target = static_cast<EndpointId>(random.below(3) * 10 + 1);
      const auto size = random.below(6) == 0 ? random.below(60'000) : random.below(3000);
      due.emplace_back(key_of(source, target, op), size);
      REQUIRE(send(*world.processes[source / 10], due.back().first, size).ok());
    }
    for (int turn = 0; turn < 20'000 && !due.empty(); ++turn) {
      world.settle();
      world.clock.advance(5ms);
      std::erase_if(due, [&](const auto& entry) {
        const auto message = world.processes[entry.first.target / 10]->try_receive(entry.first);
        if (message) CHECK(flat(*message) == pattern(entry.second, entry.first.op));
        return message.has_value();
      });
    }
    CHECK(due.empty());
    for (auto* faults : world.faults) faults->set_faults({});
    world.run(3s, 50ms);
    for (const auto& process : world.processes)
      for (const auto& [peer, statistics] : process->statistics().peers) {
        CHECK(statistics.unclaimed_bytes == 0);
        CHECK(statistics.unacked_bytes == 0);
      }
  }
}

TEST_CASE("exchange: the same seed gives the same run", "[protocol][exchange]") {
  const auto run = [](std::uint64_t seed) {
    Simulation world;
    world.open(2);
    for (auto* faults : world.faults) faults->set_faults({.seed = seed, .drop = 0.2, .duplicate = 0.2, .corrupt = 0.1, .delay = 0.3});
    for (std::uint32_t op = 0; op < 20; ++op) REQUIRE(send(*world.processes[0], key_of(0, 10, op), 3000).ok());
    world.run(2s, 5ms);
    const auto s = world.processes[0]->statistics().peers.at(1);
    const auto r = world.processes[1]->statistics().peers.at(0);
    return std::vector{s.frames_sent, s.frames_resent, s.frames_bad, r.frames_received, r.frames_duplicate, r.frames_bad};
  };
  CHECK(run(1) == run(1));
  CHECK(run(1) != run(2));
}

TEST_CASE("exchange: a message nobody sends is named when its deadline passes", "[protocol][exchange][fault]") {
  Simulation world;
  world.open(2);
  std::optional<Result<Message>> outcome;
  const auto deadline = world.clock.now() + 500ms;
  std::thread waiter([&] { outcome.emplace(world.processes[1]->receive(key_of(3, 12, 17, 4), deadline)); });
  WAIT_FOR_WAITER(*world.processes[1]);
  // The peer answers probes, so it was heard of lately; then it is cut off.
  world.run(200ms);
  world.faults[0]->cut(1);
  world.run(400ms);
  waiter.join();
  REQUIRE_FALSE(outcome->ok());
  CHECK(outcome->error().code == ErrorCode::timed_out);
  CHECK_THAT(outcome->error().message, Catch::StartsWith("card 3 did not deliver op 17 of step 12, request 4; last heard "));
}

TEST_CASE("exchange: deadlines in the past and endpoints without place fail at once", "[protocol][exchange][fault]") {
  Simulation world;
  world.open(1);
  auto& exchange = *world.processes[0];
  CHECK(exchange.receive(key_of(0, 1), world.clock.now()).error().code == ErrorCode::timed_out);
  CHECK(exchange.receive(key_of(77, 1), Time::max()).error().code == ErrorCode::not_found);
  CHECK(send(exchange, key_of(0, 77), 1).error().code == ErrorCode::not_found);
  CHECK(exchange.send(key_of(0, 1), DType::f32, {3}, Shard::of(pattern(11, 1))).error().code == ErrorCode::usage);
  CHECK(exchange.send(key_of(0, 1), DType::u8, Shape(9, 1), Shard::of(pattern(1, 1))).error().code == ErrorCode::usage);
  REQUIRE(send(exchange, key_of(0, 1), 5).ok());
  CHECK(send(exchange, key_of(0, 1), 5).error().code == ErrorCode::out_of_step);
}

TEST_CASE("exchange: a new epoch drops the old one and fails its waiters", "[protocol][exchange][fault]") {
  Simulation world;
  world.open(2);
  REQUIRE(send(*world.processes[0], key_of(0, 10, 1), 3000).ok());
  world.settle();
  std::optional<Result<Message>> outcome;
  std::thread waiter([&] { outcome.emplace(world.processes[1]->receive(key_of(0, 10, 2), Time::max())); });
  WAIT_FOR_WAITER(*world.processes[1]);
  world.processes[1]->fail(4, Error{ErrorCode::peer_lost, "gone"});
  REQUIRE(world.processes[1]->set_routes(2, 10, world.routes()).ok());
  waiter.join();
  REQUIRE_FALSE(outcome->ok());
  CHECK(outcome->error().code == ErrorCode::stale_epoch);
  CHECK_FALSE(world.processes[1]->try_receive(key_of(0, 10, 1)));

  // Frames of the old epoch are counted and unused; the sender's bytes come back when it moves on too.
  REQUIRE(send(*world.processes[0], key_of(0, 10, 3), 3000).ok());
  world.run(300ms);
  CHECK_FALSE(world.processes[1]->try_receive(key_of(0, 10, 3)));
  CHECK(world.processes[1]->statistics().peers.at(0).frames_stale > 0);
  REQUIRE(world.processes[0]->set_routes(2, 10, world.routes()).ok());
  world.settle();
  REQUIRE(send(*world.processes[0], key_of(0, 10, 3), 3000).ok());
  REQUIRE(send(*world.processes[1], key_of(10, 4, 4), 10).ok());
  world.settle();
  CHECK(world.processes[1]->try_receive(key_of(0, 10, 3)));
  CHECK(world.processes[0]->try_receive(key_of(10, 4, 4)));

  CHECK(world.processes[0]->set_routes(1, 9, world.routes()).error().code == ErrorCode::stale_epoch);
  CHECK(world.processes[0]->set_routes(2, 11, world.routes()).error().code == ErrorCode::version_mismatch);
  CHECK(world.processes[0]->epoch() == 2);
}

TEST_CASE("exchange: the same epoch may gain routes and keeps its messages", "[protocol][exchange]") {
  Simulation world;
  world.open(2);
  REQUIRE(send(*world.processes[0], key_of(0, 10), 100).ok());
  world.settle();
  auto routes = world.routes();
  routes[500] = 1;
  for (auto& process : world.processes) REQUIRE(process->set_routes(1, 9, routes).ok());
  CHECK(world.processes[1]->try_receive(key_of(0, 10)));
  REQUIRE(send(*world.processes[0], key_of(0, 500), 100).ok());
  world.settle();
  CHECK(world.processes[1]->try_receive(key_of(0, 500)));
}

TEST_CASE("exchange: a cancelled request leaves nothing behind", "[protocol][exchange]") {
  Simulation world;
  world.open(2);
  REQUIRE(send(*world.processes[0], key_of(0, 10, 1, 7), 3000).ok());
  REQUIRE(send(*world.processes[0], key_of(0, 10, 2, 8), 3000).ok());
  world.settle();
  world.processes[1]->forget(7);
  CHECK_FALSE(world.processes[1]->try_receive(key_of(0, 10, 1, 7)));
  CHECK(world.processes[1]->receive(key_of(0, 10, 3, 7), Time::max()).error().code == ErrorCode::cancelled);
  REQUIRE(send(*world.processes[0], key_of(0, 10, 4, 7), 3000).ok());
  world.settle();
  CHECK(world.processes[1]->try_receive(key_of(0, 10, 2, 8)));
  CHECK(world.processes[1]->statistics().peers.at(0).unclaimed_bytes == 0);
}

TEST_CASE("exchange: a failed endpoint's error reaches who waits and who sends, until the next epoch",
          "[protocol][exchange][fault]") {
  Simulation world;
  world.open(2);
  REQUIRE(send(*world.processes[0], key_of(0, 10, 1), 100).ok());
  world.settle();
  world.processes[1]->fail(0, Error{ErrorCode::peer_lost, "node a is gone"});
  CHECK(world.processes[1]->receive(key_of(0, 10, 2), Time::max()).error().message == "node a is gone");
  CHECK(send(*world.processes[1], key_of(10, 0), 1).error().code == ErrorCode::peer_lost);
  CHECK(world.processes[1]->try_receive(key_of(0, 10, 1)));  // It came before.
  world.begin(2);
  CHECK(send(*world.processes[1], key_of(10, 0), 1).ok());
}

TEST_CASE("exchange: a process that comes back fails what its former life owed", "[protocol][exchange][fault]") {
  Simulation world;
  world.open(2);
  REQUIRE(send(*world.processes[0], key_of(0, 10), 100).ok());
  world.settle();
  world.processes[0].reset();
  world.processes[0] = world.start(0, 777);
  world.introduce(0);
  REQUIRE(world.processes[0]->set_routes(1, 9, world.routes()).ok());
  world.run(200ms);
  const auto outcome = world.processes[1]->receive(key_of(3, 10, 9), Time::max());
  REQUIRE_FALSE(outcome.ok());
  CHECK(outcome.error().code == ErrorCode::peer_lost);
  world.begin(2);
  REQUIRE(send(*world.processes[0], key_of(0, 10, 5), 100).ok());
  world.settle();
  CHECK(world.processes[1]->try_receive(key_of(0, 10, 5)));
}

TEST_CASE("exchange: another cluster is refused with a reason, and waits for nobody", "[protocol][exchange][fault]") {
  Simulation world;
  world.processes.push_back(world.start(0, 100));
  world.options.cluster_id = 6;
  world.processes.push_back(world.start(1, 101));
  world.introduce(0);
  world.introduce(1);
  world.begin(1);
  world.run(200ms);
  const auto outcome = world.processes[0]->receive(key_of(10, 0), Time::max());
  REQUIRE_FALSE(outcome.ok());
  CHECK(outcome.error().code == ErrorCode::version_mismatch);
  CHECK_THAT(outcome.error().message, Catch::Contains("cluster 6"));
}

TEST_CASE("exchange: subscribers get messages that came before and after", "[protocol][exchange]") {
  Simulation world;
  world.options.window_bytes = 4096;
  world.open(2);
  REQUIRE(send(*world.processes[0], key_of(0, 10, 1), 100).ok());
  world.settle();
  std::vector<std::uint32_t> ops;
  std::uint64_t bytes = 0;
  world.processes[1]->subscribe(10, [&](const MessageKey& key, Message message) {
    ops.push_back(key.op);
    bytes += message.bytes();
  });
  REQUIRE(send(*world.processes[0], key_of(0, 10, 2), 200).ok());
  REQUIRE(send(*world.processes[0], key_of(0, 10, 3), 100'000).ok());  // Far beyond the window.
  REQUIRE(send(*world.processes[1], key_of(11, 10, 4), 50).ok());      // Local.
  world.run(50ms);
  std::sort(ops.begin(), ops.end());
  CHECK(ops == std::vector<std::uint32_t>{1, 2, 3, 4});
  CHECK(bytes == 100 + 200 + 100'000 + 50);
  world.processes[1]->subscribe(10, {});
  REQUIRE(send(*world.processes[0], key_of(0, 10, 5), 10).ok());
  world.settle();
  CHECK(ops.size() == 4);
  CHECK(world.processes[1]->try_receive(key_of(0, 10, 5)));
}

TEST_CASE("exchange: unclaimed messages never block the one that someone waits for", "[protocol][exchange]") {
  Simulation world;
  world.options.window_bytes = 8 << 10;
  world.options.unclaimed_bytes_max = 1 << 20;
  world.open(2);
  // A hundred messages that nobody asks for fill the window; the one that is due stands behind them.
  for (std::uint32_t op = 0; op < 100; ++op) REQUIRE(send(*world.processes[0], key_of(0, 10, op), 2000).ok());
  REQUIRE(send(*world.processes[0], key_of(0, 10, 1000), 2000).ok());
  world.run(300ms);
  CHECK(world.processes[1]->statistics().peers.at(0).unclaimed_bytes <= (8U << 10) + 1024 + 256);
  CHECK_FALSE(world.processes[1]->try_receive(key_of(0, 10, 1000)));

  std::optional<Result<Message>> outcome;
  std::atomic<bool> done{false};
  std::thread waiter([&] {
    outcome.emplace(world.processes[1]->receive(key_of(0, 10, 1000), world.clock.now() + 1h));
    done = true;
  });
  while (!done) {
    world.settle();
    std::this_thread::yield();
  }
  waiter.join();
  REQUIRE(outcome->ok());
  for (std::uint32_t op = 0; op < 100; ++op) CHECK(world.processes[1]->try_receive(key_of(0, 10, op)));
  CHECK(world.processes[1]->statistics().peers.at(0).unclaimed_bytes <= 2000 + 2 * 256);
}

TEST_CASE("exchange: at the hard limit the error names the bytes that are held", "[protocol][exchange][fault]") {
  Simulation world;
  world.options.window_bytes = 8 << 10;
  world.options.unclaimed_bytes_max = 32 << 10;
  world.open(2);
  for (std::uint32_t op = 0; op < 100; ++op) REQUIRE(send(*world.processes[0], key_of(0, 10, op), 2000).ok());
  std::optional<Result<Message>> outcome;
  const auto deadline = world.clock.now() + 500ms;
  std::thread waiter([&] { outcome.emplace(world.processes[1]->receive(key_of(0, 10, 1000), deadline)); });
  WAIT_FOR_WAITER(*world.processes[1]);
  world.run(100ms);
  std::atomic<bool> done{false};
  std::thread cranker([&] {
    while (!done) {
      world.settle();
      world.clock.advance(1ms);
      std::this_thread::yield();
    }
  });
  waiter.join();
  done = true;
  cranker.join();
  REQUIRE_FALSE(outcome->ok());
  CHECK(outcome->error().code == ErrorCode::pool_exhausted);
  CHECK_THAT(outcome->error().message, Catch::Contains("unclaimed"));
  CHECK(world.processes[1]->statistics().peers.at(0).unclaimed_bytes <= (32U << 10) + 1024 + 256);
}

TEST_CASE("exchange: the sender's queue has a limit", "[protocol][exchange][fault]") {
  Simulation world;
  world.options.send_bytes_max = 10'000;
  world.open(2);
  world.faults[0]->cut(1);
  CHECK(send(*world.processes[0], key_of(0, 10, 1), 20'000).ok());  // One always fits.
  bool released = false;
  const auto bytes = pattern(100, 1);
  const auto status = world.processes[0]->send(key_of(0, 10, 2), DType::u8, {100}, Shard(std::span(bytes), [&] { released = true; }));
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::pool_exhausted);
  CHECK(released);
}

TEST_CASE("exchange: options out of range are refused", "[protocol][exchange]") {
  LoopbackNetwork network;
  ManualClock clock;
  CHECK_FALSE(Exchange::create({.chunk_bytes = 1}, network.make_transport(1), clock).ok());
  CHECK_FALSE(Exchange::create({.chunk_bytes = 1 << 30}, network.make_transport(1), clock).ok());
  CHECK_FALSE(Exchange::create({.window_bytes = 10}, network.make_transport(1), clock).ok());
  CHECK_FALSE(Exchange::create({.resend_after = 0ms}, network.make_transport(1), clock).ok());
}

namespace {

// P processes on threads: each step everyone sends to everyone and waits for everyone, as a collective does.
void all_to_all(std::vector<std::unique_ptr<Exchange>>& processes, std::uint32_t steps, std::size_t size) {
  const auto count = static_cast<EndpointId>(processes.size());
  std::atomic<std::uint32_t> wrong{0}, failed{0};
  std::vector<std::thread> cards;
  for (EndpointId self = 0; self < count; ++self)
    cards.emplace_back([&, self] {
      SteadyClock clock;
      for (std::uint32_t op = 0; op < steps; ++op) {
        for (EndpointId other = 0; other < count; ++other)
          if (!processes[self]
                   ->send({.request = 1, .op = op, .source = self, .target = other}, DType::u8, {size},
                          Shard::of(pattern(size, op * 100 + self)))
                   .ok())
            ++failed;
        for (EndpointId other = 0; other < count; ++other) {
          const auto message = processes[self]->receive({.request = 1, .op = op, .source = other, .target = self}, clock.now() + 60s);
          if (!message.ok()) {
            ++failed;
            std::fprintf(stderr, "%s\n", message.error().message.c_str());
          } else if (flat(message.value()) != pattern(size, op * 100 + other)) {
            ++wrong;
          }
        }
      }
    });
  for (auto& card : cards) card.join();
  CHECK(wrong == 0);
  CHECK(failed == 0);
}

}  // namespace

TEST_CASE("exchange: cards on threads exchange over every transport, with and without faults",
          "[protocol][exchange][fault]") {
  const auto kind = GENERATE(as<std::string>{}, "inproc", "zmq");
  const auto faults = GENERATE(false, true);
  CAPTURE(kind, faults);
  SteadyClock clock;
  const auto hub = make_inproc_hub();
  std::vector<std::unique_ptr<Exchange>> processes;
  std::map<EndpointId, PeerId> routes;
  for (PeerId id = 0; id < 3; ++id) {
    std::unique_ptr<Transport> transport;
    if (kind == "inproc") {
      transport = make_inproc_transport(hub, id);
    } else {
      auto made = make_zmq_transport({.self = id});
      REQUIRE(made.ok());
      transport = std::move(made).value();
    }
    FaultOptions options{.seed = id + 3};
    if (faults) options = {.seed = id + 3, .drop = 0.03, .duplicate = 0.03, .corrupt = 0.03, .delay = 0.1};
    auto exchange = Exchange::create(
        {.cluster_id = 1, .chunk_bytes = 64 << 10, .window_bytes = 256 << 10, .resend_after = 10ms, .resend_after_max = 50ms},
        std::make_unique<FaultyTransport>(std::move(transport), options), clock);
    REQUIRE(exchange.ok());
    processes.push_back(std::move(exchange).value());
    routes[id] = id;
  }
  for (auto& a : processes)
    for (auto& b : processes) REQUIRE(a->add_peer(b->self(), b->address()).ok());
  for (auto& process : processes) REQUIRE(process->set_routes(1, 1, routes).ok());
  all_to_all(processes, 20, 200'000);
  // Nothing stays borrowed.
  for (auto& process : processes)
    CHECK(eventually([&] {
      for (const auto& [peer, statistics] : process->statistics().peers)
        if (statistics.unclaimed_bytes + statistics.unacked_bytes > 0) return false;
      return true;
    }));
}

TEST_CASE("exchange: destruction ends waiters", "[protocol][exchange]") {
  SteadyClock clock;
  auto made = Exchange::create({}, make_inproc_transport(make_inproc_hub(), 0), clock);
  REQUIRE(made.ok());
  auto exchange = std::move(made).value();
  REQUIRE(exchange->set_routes(1, 1, {{0, 0}}).ok());
  std::optional<Result<Message>> outcome;
  std::thread waiter([&, waited = exchange.get()] { outcome.emplace(waited->receive(key_of(0, 0), Time::max())); });
  WAIT_FOR_WAITER(*exchange);
  exchange.reset();
  waiter.join();
  CHECK(outcome->error().code == ErrorCode::cancelled);
}
