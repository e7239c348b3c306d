// Segments, the pool and links below the shared-memory transport, without threads:
//
// - frames of all sizes pass a ring that wraps around many times; a full ring takes nothing more
// - a slot is used again only when everybody has let go of it: this process, readers, or their death
// - whatever lies in another's memory, nothing is read outside of it, and a bad record is told from a good one
// - what a stranger introduces is opened only if it is what it says

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include <catch2/catch.hpp>

#include "base/random.hpp"
#include "protocol/shm_link.hpp"

using namespace orrery;
using namespace orrery::protocol;

namespace {

constexpr std::uint64_t pool_bytes = std::uint64_t{1} << 20;

std::shared_ptr<ShmHome> home_of(std::uint64_t bytes = pool_bytes) {
  auto home = ShmHome::create(bytes);
  if (!home.ok()) FAIL(home.error().text());
  return std::move(home).value();
}

ShmIntroduction introduction_of(const ShmHome& home, const ShmPlace& place) {
  ShmIntroduction introduction;
  introduction.boot = boot_id();
  introduction.pid = static_cast<std::uint32_t>(::getpid());
  introduction.segment_fd = home.segment_fd();
  introduction.bell_fd = home.bell_fd();
  introduction.own = place;
  return introduction;
}

// Two processes, as far as they know.
struct Side {
  std::shared_ptr<ShmHome> home = home_of();
  std::shared_ptr<ShmLanes> lanes = std::make_shared<ShmLanes>(home);
  std::shared_ptr<ShmPool> pool = std::make_shared<ShmPool>(home);
  ShmPlace place = lanes->take().value();
  std::shared_ptr<ShmLink> link;

  void meet(const Side& other) {
    auto neighbour = ShmNeighbour::open(introduction_of(*other.home, other.place));
    if (!neighbour.ok()) FAIL(neighbour.error().text());
    link = std::make_shared<ShmLink>(home, lanes, place, std::move(neighbour).value(), other.place);
  }
};
struct Pair {
  Side a, b;
  Pair() {
    a.meet(b);
    b.meet(a);
  }
};

std::vector<std::byte> pattern(std::size_t size, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random.next());
  return bytes;
}
bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}
HeaderBytes header_of(std::uint64_t number) { return HeaderBytes(std::as_bytes(std::span(&number, 1))); }

// As the transport does it.
ShmLink::Written write(Side& side, std::uint64_t number, const Shard& payload, bool crowded = false) {
  if (payload.size() <= shm_inline_bytes) return side.link->write(header_of(number), payload.bytes(), {}, 0, crowded, *side.pool);
  const auto copy = side.pool->copy_of(payload, true);
  if (!copy) return ShmLink::Written::full;
  return side.link->write(header_of(number), copy->bytes(), side.pool->find(copy->bytes()), 0, crowded, *side.pool);
}

}  // namespace

TEST_CASE("shm link: frames of any size pass, in order, through a ring that wraps around", "[protocol][shm]") {
  Pair pair;
  const std::size_t sizes[] = {0, 1, 63, 64, 65, 4095, 8191, 8192, 8193, 100'000, 0, 3};
  for (std::uint64_t round = 0; round < 300; ++round) {
    const auto bytes = pattern(sizes[round % std::size(sizes)], round);
    REQUIRE(write(pair.a, round, Shard::copy_of(bytes)) == ShmLink::Written::yes);
    REQUIRE(pair.b.link->waiting());
    ShmArrival arrival;
    REQUIRE(pair.b.link->read(0, arrival) == ShmLink::Read::frame);
    CHECK(equal(arrival.header.bytes(), header_of(round).bytes()));
    CHECK(equal(arrival.payload.bytes(), bytes));
    CHECK_FALSE(pair.b.link->waiting());
  }
  pair.a.pool->reclaim();
  CHECK(pair.a.pool->used_bytes() == 0);
  CHECK(pair.a.link->held_bytes() == 0);
}

TEST_CASE("shm link: a full ring takes nothing more until it is read", "[protocol][shm]") {
  Pair pair;
  const auto bytes = pattern(5000, 1);
  std::uint64_t taken = 0;
  while (write(pair.a, taken, Shard::copy_of(bytes)) == ShmLink::Written::yes) REQUIRE(++taken < 100);
  CHECK(taken == shm_ring_bytes / 5120);
  CHECK_FALSE(pair.a.link->writable());
  ShmArrival arrival;
  for (std::uint64_t i = 0; i < taken; ++i) {
    REQUIRE(pair.b.link->read(0, arrival) == ShmLink::Read::frame);
    CHECK(equal(arrival.header.bytes(), header_of(i).bytes()));
  }
  CHECK(pair.b.link->read(0, arrival) == ShmLink::Read::nothing);
  CHECK(pair.a.link->writable());
}

TEST_CASE("shm link: frames wait for those of the other way that were sent before", "[protocol][shm]") {
  Pair pair;
  REQUIRE(pair.a.link->write(header_of(1), {}, {}, 3, false, *pair.a.pool) == ShmLink::Written::yes);
  ShmArrival arrival;
  CHECK(pair.b.link->read(2, arrival) == ShmLink::Read::held);
  CHECK(pair.b.link->read(3, arrival) == ShmLink::Read::frame);
}

TEST_CASE("shm pool: memory is used again only when nobody shows it", "[protocol][shm]") {
  Pair pair;
  const auto bytes = pattern(pool_bytes / 2 + 1, 1);
  ShmArrival arrival;
  {
    const auto copy = pair.a.pool->copy_of(Shard::copy_of(bytes), false);
    REQUIRE(copy);
    CHECK_FALSE(pair.a.pool->copy_of(Shard::copy_of(bytes), false));
    for (std::uint64_t i = 0; i < 2; ++i)
      REQUIRE(pair.a.link->write(header_of(i), copy->bytes(), pair.a.pool->find(copy->bytes()), 0, false, *pair.a.pool) ==
              ShmLink::Written::yes);
  }
  // Nobody here shows it, but the peer was told of it twice.
  CHECK_FALSE(pair.a.pool->copy_of(Shard::copy_of(bytes), false));
  REQUIRE(pair.b.link->read(0, arrival) == ShmLink::Read::frame);
  auto first = arrival.payload;
  REQUIRE(pair.b.link->read(0, arrival) == ShmLink::Read::frame);
  first = {};
  CHECK_FALSE(pair.a.pool->copy_of(Shard::copy_of(bytes), false));
  CHECK(equal(arrival.payload.bytes(), bytes));
  arrival.payload = {};
  CHECK(pair.a.pool->copy_of(Shard::copy_of(bytes), false));
}

TEST_CASE("shm pool: what goes to several peers is copied once, as long as it is shown", "[protocol][shm]") {
  const Side side;
  const auto bytes = pattern(50'000, 2);
  bool released = false;
  {
    const Shard original(std::span<const std::byte>(bytes), [&] { released = true; });
    const auto one = side.pool->copy_of(original, true), two = side.pool->copy_of(original, true);
    REQUIRE(one);
    REQUIRE(two);
    CHECK(one->bytes().data() == two->bytes().data());
    side.pool->forget();
    const auto three = side.pool->copy_of(original, false), four = side.pool->copy_of(original, true);
    REQUIRE(three);
    REQUIRE(four);
    CHECK(one->bytes().data() != three->bytes().data());
    CHECK(three->bytes().data() != four->bytes().data());
  }
  // A copy that is shown no more is not remembered either.
  CHECK(released);
  CHECK(side.pool->used_bytes() == 0);
}

TEST_CASE("shm link: a crowded sender's payload is copied and let go of at once", "[protocol][shm]") {
  Pair pair;
  const auto bytes = pattern(100'000, 3);
  REQUIRE(write(pair.a, 1, Shard::copy_of(bytes), true) == ShmLink::Written::yes);
  ShmArrival arrival;
  REQUIRE(pair.b.link->read(0, arrival) == ShmLink::Read::frame);
  pair.a.pool->reclaim();
  CHECK(pair.a.pool->used_bytes() == 0);
  CHECK(equal(arrival.payload.bytes(), bytes));
}

TEST_CASE("shm link: what a peer never took is free again when it reads no more; what it shows is not", "[protocol][shm][fault]") {
  Pair pair;
  const auto bytes = pattern(100'000, 3);
  ShmArrival arrival;
  REQUIRE(write(pair.a, 1, Shard::copy_of(bytes)) == ShmLink::Written::yes);
  REQUIRE(pair.b.link->read(0, arrival) == ShmLink::Read::frame);
  REQUIRE(write(pair.a, 2, Shard::copy_of(bytes)) == ShmLink::Written::yes);
  const auto both = pair.a.pool->used_bytes();
  pair.b.link->detach();
  CHECK(write(pair.a, 3, Shard::copy_of(bytes)) == ShmLink::Written::gone);
  pair.a.pool->reclaim();
  CHECK(pair.a.pool->used_bytes() == both / 2);
  CHECK(equal(arrival.payload.bytes(), bytes));
  // The lane of the other side lives as long as what it shows.
  pair.b.link.reset();
  pair.a.pool->reclaim();
  CHECK(pair.a.pool->used_bytes() == both / 2);
  arrival.payload = {};
  pair.a.pool->reclaim();
  CHECK(pair.a.pool->used_bytes() == 0);
}

TEST_CASE("shm link: a received payload stays readable when its sender is gone", "[protocol][shm][fault]") {
  const auto bytes = pattern(100'000, 7);
  ShmArrival arrival;
  {
    Pair pair;
    REQUIRE(write(pair.a, 1, Shard::copy_of(bytes)) == ShmLink::Written::yes);
    REQUIRE(pair.b.link->read(0, arrival) == ShmLink::Read::frame);
  }
  CHECK(equal(arrival.payload.bytes(), bytes));
}

TEST_CASE("shm link: torn and invented records are refused, and read nothing outside", "[protocol][shm][fault]") {
  Random random(4711);
  std::uint64_t refused = 0;
  for (int round = 0; round < 2000; ++round) {
    Pair pair;
    auto& lane = pair.a.home->head().lanes[pair.a.place.lane];
    const auto bytes = pattern(round % 2 == 0 ? 300 : 20'000, 5);
    REQUIRE(write(pair.a, 1, Shard::copy_of(bytes)) == ShmLink::Written::yes);
    ShmRecord record;
    std::memcpy(&record, lane.ring.data(), sizeof record);
    const auto before = record;
    auto* words = reinterpret_cast<std::byte*>(&record);
    const auto kind = random.next() % 3;
    if (kind == 0) {  // Torn: some bytes are not what was written, and the check shows it.
      words[random.next() % sizeof record] ^= static_cast<std::byte>(1 + random.next() % 255);
    } else {  // Wild: one who can make the check right.
      const auto wild = [&](std::uint64_t small) { return random.next() % 2 == 0 ? random.next() : random.next() % small; };
      switch (random.next() % 7) {
        case 0: record.record_bytes = static_cast<std::uint32_t>(wild(2 * shm_ring_bytes)); break;
        case 1: record.header_bytes = static_cast<std::uint16_t>(wild(2000)); break;
        case 2: record.kind = static_cast<std::uint16_t>(wild(5)); break;
        case 3: record.slot = static_cast<std::uint32_t>(wild(2 * shm_slots)); break;
        case 4: record.offset = wild(2 * pool_bytes); break;
        case 5: record.payload_bytes = wild(2 * pool_bytes); break;
        case 6: record.position = wild(2 * shm_ring_bytes); break;
      }
      record.check = check_of(record, pair.a.place.token, pair.a.place.life);
    }
    std::memcpy(lane.ring.data(), &record, sizeof record);
    if (kind == 2) lane.written = random.next() % 2 == 0 ? random.next() : random.next() % (4 * shm_ring_bytes);
    ShmArrival arrival;
    const auto read = pair.b.link->read(~std::uint64_t{0}, arrival);
    if (kind == 0) {
      // Bytes behind the record's fields are padding.
      const bool changed = !(before == record);
      CHECK((read == ShmLink::Read::broken) == changed);
    }
    refused += read == ShmLink::Read::broken;
    if (read != ShmLink::Read::frame) continue;
    std::uint64_t sum = 0;  // All of it can be read.
    for (const auto byte : arrival.payload.bytes()) sum += static_cast<std::uint64_t>(byte);
    CHECK(sum + 1 > 0);
  }
  CHECK(refused > 500);
}

TEST_CASE("shm link: counts that a wild peer writes free only its own share", "[protocol][shm][fault]") {
  Side a, b, c;
  a.meet(b);
  b.meet(a);
  Side second{.home = a.home, .lanes = a.lanes, .pool = a.pool, .place = a.lanes->take().value(), .link = nullptr};
  second.meet(c);
  c.meet(second);
  const auto bytes = pattern(100'000, 8);
  const auto copy = a.pool->copy_of(Shard::copy_of(bytes), false);
  const auto place = a.pool->find(copy->bytes());
  REQUIRE(a.link->write(header_of(1), copy->bytes(), place, 0, false, *a.pool) == ShmLink::Written::yes);
  REQUIRE(second.link->write(header_of(1), copy->bytes(), place, 0, false, *a.pool) == ShmLink::Written::yes);
  const auto used = a.pool->used_bytes();
  // b says that it let go of what it never read, and reads beyond what was written.
  b.home->head().lanes[b.place.lane].released[place->slot] = 1;
  b.home->head().lanes[b.place.lane].read = 1 << 30;
  a.pool->reclaim();
  CHECK(a.pool->used_bytes() == used);
  CHECK(write(a, 2, Shard::copy_of(pattern(10, 1))) == ShmLink::Written::gone);
  ShmArrival arrival;
  REQUIRE(c.link->read(0, arrival) == ShmLink::Read::frame);
  CHECK(equal(arrival.payload.bytes(), bytes));
}

TEST_CASE("shm segment: nobody but its owner can write or shrink it", "[protocol][shm][fault]") {
  const auto home = home_of();
  const auto path = "/proc/self/fd/" + std::to_string(home->segment_fd());
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  REQUIRE(fd >= 0);
  CHECK(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
  CHECK(::pwrite(fd, "x", 1, 0) < 0);
  CHECK(::ftruncate(fd, 4096) < 0);
  ::close(fd);
}

TEST_CASE("shm segment: what is introduced must be what it says", "[protocol][shm][fault]") {
  const Side side;
  const auto good = introduction_of(*side.home, side.place);
  REQUIRE(ShmNeighbour::open(good).ok());
  const auto code_of = [](ShmIntroduction introduction) {
    const auto opened = ShmNeighbour::open(introduction);
    return opened.ok() ? ErrorCode::internal : opened.error().code;
  };
  auto other = good;
  other.boot[0] ^= 1;
  CHECK(code_of(other) == ErrorCode::unreachable);
  other = good;
  other.boot = {};
  CHECK(code_of(other) == ErrorCode::unreachable);
  other = good;
  other.own.token[1] ^= 1;
  CHECK(code_of(other) == ErrorCode::bad_frame);
  other = good;
  other.own.lane = shm_lanes;
  CHECK(code_of(other) == ErrorCode::bad_frame);
  other = good;
  other.segment_fd = other.bell_fd;
  CHECK(code_of(other) == ErrorCode::bad_frame);
  other = good;
  other.segment_fd = 1'000'000;
  CHECK(code_of(other) == ErrorCode::unreachable);
  other = good;
  other.pid = 1U << 30;
  CHECK(code_of(other) == ErrorCode::unreachable);

  // A file that its owner could cut off under us, one that is too short, and what is no file at all.
  const int open_file = ::memfd_create("test", MFD_CLOEXEC), null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  REQUIRE(::ftruncate(open_file, sizeof(ShmHead) + pool_bytes) == 0);
  const int shorter = ::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  REQUIRE(::ftruncate(shorter, 4096) == 0);
  REQUIRE(::fcntl(shorter, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
  other = good;
  for (const int fd : {open_file, shorter}) {
    other.segment_fd = fd;
    CHECK(code_of(other) == ErrorCode::bad_frame);
  }
  other.segment_fd = null;
  CHECK(code_of(other) == ErrorCode::unreachable);
  for (const int fd : {open_file, shorter, null}) ::close(fd);
}

TEST_CASE("shm segment: an introduction is told from the header of a frame", "[protocol][shm]") {
  const Side side;
  const auto good = introduction_of(*side.home, side.place);
  const auto bytes = std::as_bytes(std::span(&good, 1));
  CHECK(parse_introduction(bytes));
  CHECK_FALSE(parse_introduction(bytes.first(bytes.size() - 1)));
  CHECK_FALSE(parse_introduction(header_of(5).bytes()));
  auto changed = good;
  ++changed.magic;
  CHECK_FALSE(parse_introduction(std::as_bytes(std::span(&changed, 1))));
}
