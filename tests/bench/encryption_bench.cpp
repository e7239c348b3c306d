// What encryption costs: the data plane with and without CURVE, over tcp on loopback.
//
// Why: a cluster over a network that is not trusted pays this on every shard. Both ends share this machine, so a host of
// its own per end does better. A good number: CURVE is one thread's XSalsa20-Poly1305 on each side, about 0.5 GB/s; a
// link of 1 Gbit/s hides it, one of 10 Gbit/s does not. Ratios count, seconds depend on the machine's other work.
//
//   ninja bench_encryption && build/release/tests/bench_encryption [MIB]

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "base/clock.hpp"
#include "protocol/zmq_transport.hpp"
#include "tests/support/keys.hpp"

using namespace orrery;
using namespace orrery::protocol;

namespace {

std::unique_ptr<Transport> open(PeerId self, const Security& security) {
  ZmqOptions options;
  options.self = self;
  options.security = security;
  return make_zmq_transport(options).value();
}

struct Figures {
  double bytes_per_second = 0, round_trip_seconds = 0;
};

/// `total` bytes in frames of `frame_bytes` one way; then small frames there and back.
Figures measure(const Security& left, const Security& right, std::size_t frame_bytes, std::size_t total) {
  auto a = open(1, left), b = open(2, right);
  std::atomic<std::uint64_t> received{0}, echoes{0};
  a->start({.on_frame = [&](PeerId, std::span<const std::byte>, Shard) { ++echoes; }, .on_hint = {}});
  b->start({.on_frame =
                [&](PeerId, std::span<const std::byte> header, Shard payload) {
                  received += payload.size();
                  if (payload.size() == 0) (void)b->send(1, HeaderBytes(header), {});
                },
            .on_hint = {}});
  ORRERY_CHECK(a->add_peer(2, b->address()).ok() && b->add_peer(1, a->address()).ok());
  const std::vector<std::byte> bytes(frame_bytes, std::byte{1});
  const HeaderBytes header{std::as_bytes(std::span("header", 6))};
  while (!a->send(2, header, Shard(std::span(bytes), {})).ok() || !b->send(1, header, {}).ok()) std::this_thread::yield();
  while (received < frame_bytes || echoes < 1) std::this_thread::yield();

  SteadyClock clock;
  Figures figures;
  received = 0;
  auto start = clock.now();
  for (std::size_t sent = 0; sent < total;)
    if (a->send(2, header, Shard(std::span(bytes), {})).ok())
      sent += frame_bytes;
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
  while (received < total) std::this_thread::sleep_for(std::chrono::microseconds(50));
  figures.bytes_per_second = static_cast<double>(total) / seconds_of(clock.now() - start);

  constexpr int trips = 500;
  start = clock.now();
  for (int i = 0; i < trips; ++i) {
    const auto before = echoes.load();
    while (!a->send(2, header, {}).ok()) std::this_thread::yield();
    while (echoes == before) std::this_thread::yield();
  }
  figures.round_trip_seconds = seconds_of(clock.now() - start) / trips;
  return figures;
}

}  // namespace

int main(int count, char** words) {
  const std::size_t total = static_cast<std::size_t>(count > 1 ? std::atol(words[1]) : 512) << 20;
  const testing::TestKeys keys({"a", "b"});
  std::printf("%zu MiB over tcp on loopback, both ends in one process\n", total >> 20);
  std::printf("%-12s %14s %14s %8s %14s %14s\n", "frame", "clear", "CURVE", "ratio", "trip clear", "trip CURVE");
  for (const std::size_t frame : {std::size_t{64} << 10, std::size_t{1} << 20, std::size_t{8} << 20}) {
    const auto clear = measure({}, {}, frame, total);
    const auto curve = measure(keys.security("a"), keys.security("b"), frame, total);
    std::printf("%8zu KiB %9.2f GB/s %9.2f GB/s %8.2f %11.0f us %11.0f us\n", frame >> 10, clear.bytes_per_second * 1e-9, curve.bytes_per_second * 1e-9,
                clear.bytes_per_second / curve.bytes_per_second, clear.round_trip_seconds * 1e6, curve.round_trip_seconds * 1e6);
  }
}
