// A frame header survives the wire, and nothing else passes for one.

#include "protocol/frame.hpp"

#include <cstdio>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "base/digest.hpp"
#include "base/random.hpp"

using namespace orrery;
using namespace orrery::protocol;

namespace {

std::vector<std::byte> payload_of(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7);
  return bytes;
}

FrameHeader data_header(std::span<const std::byte> payload) {
  return {.kind = FrameKind::data, .cluster_id = 11, .epoch = 3, .plan_digest = 0xfeedULL, .sender = 1, .receiver = 2,
          .session = 99, .receiver_session = 98, .sequence = 7, .acked = 5, .acked_after = 6, .granted = 1 << 20,
          .key = {.request = 4, .step = 12, .stream = 1, .part = 2, .op = 17, .source = 3, .target = 0},
          .dtype = DType::f32, .shape = {2, 16, 64}, .message_bytes = 8192, .chunk_offset = 4096,
          .payload_bytes = payload.size(), .checksum = xxh3_of(payload), .refusal = ErrorCode::internal};
}

// Makes the preamble right again after the body was changed, as a careful attacker would.
void reseal(std::vector<std::byte>& bytes) {
  const auto body = std::span(bytes).subspan(16);
  const auto length = static_cast<std::uint16_t>(body.size());
  const auto checksum = xxh3_of(body);
  std::memcpy(bytes.data() + 6, &length, sizeof length);
  std::memcpy(bytes.data() + 8, &checksum, sizeof checksum);
}

std::vector<std::byte> encoded(const FrameHeader& header) {
  const auto bytes = encode_header(header);
  return {bytes.bytes().begin(), bytes.bytes().end()};
}

ErrorCode code_of(std::span<const std::byte> bytes, std::uint64_t payload_bytes) {
  const auto decoded = decode_header(bytes, payload_bytes);
  return decoded.ok() ? ErrorCode{0} : decoded.error().code;
}

}  // namespace

TEST_CASE("frame: every field survives the wire", "[protocol][frame]") {
  const auto payload = payload_of(4096);
  const auto header = data_header(payload);
  const auto decoded = decode_header(encode_header(header).bytes(), payload.size());
  REQUIRE(decoded.ok());
  CHECK(decoded.value() == header);
  CHECK(check_payload(decoded.value(), payload).ok());

  for (const auto kind : {FrameKind::hello, FrameKind::ack, FrameKind::probe, FrameKind::refusal}) {
    FrameHeader other{.kind = kind, .cluster_id = 11, .epoch = 3, .plan_digest = 1, .sender = 1, .receiver = 2,
                      .session = 99, .receiver_session = 98, .acked = 5, .acked_after = 6, .granted = 77,
                      .key = {}, .shape = {}};
    if (kind == FrameKind::refusal) other.refusal = ErrorCode::version_mismatch;
    const auto again = decode_header(encode_header(other).bytes(), 0);
    REQUIRE(again.ok());
    CHECK(again.value() == other);
  }
}

TEST_CASE("frame: scalars, empty messages and eight extents are messages too", "[protocol][frame]") {
  for (const auto& [shape, bytes] : std::vector<std::pair<Shape, std::uint64_t>>{
           {{}, 4}, {{0}, 0}, {{5, 0, 3}, 0}, {{1, 1, 1, 1, 1, 1, 1, 2}, 8}}) {
    const auto payload = payload_of(bytes);
    auto header = data_header(payload);
    header.shape = shape;
    header.message_bytes = bytes;
    header.chunk_offset = 0;
    const auto decoded = decode_header(encode_header(header).bytes(), bytes);
    REQUIRE(decoded.ok());
    CHECK(decoded.value().shape == shape);
  }
}

TEST_CASE("frame: the bytes of version 1 stay what they are", "[protocol][frame]") {
  // Another digest means that old and new programs no longer understand each other: raise protocol_version.
  const auto payload = payload_of(16);
  CHECK(encoded(data_header(payload)).size() == 216);
  CHECK(sha256_of(encoded(data_header(payload))).substr(0, 16) == "0b78bdfe444b58d3");
}

TEST_CASE("frame: a header that contradicts itself is refused", "[protocol][frame][fault]") {
  const auto payload = payload_of(4096);
  const auto refused = [&](auto change) {
    auto header = data_header(payload);
    change(header);
    return code_of(encode_header(header).bytes(), payload.size());
  };
  CHECK(refused([](FrameHeader&) {}) == ErrorCode{0});
  CHECK(refused([](FrameHeader& h) { h.session = 0; }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.sequence = 0; }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.payload_bytes = 4095; }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.message_bytes = 8196; }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.shape = {2, 16, 65}; }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.chunk_offset = 4097; }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.chunk_offset = ~0ULL - 100; }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.acked_after = 1; }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.dtype = static_cast<DType>(14); }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.dtype = static_cast<DType>(0); }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.kind = static_cast<FrameKind>(6); }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.kind = static_cast<FrameKind>(0); }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.kind = FrameKind::ack; }) == ErrorCode::bad_frame);
  // A product of extents that wraps around to the right number.
  CHECK(refused([](FrameHeader& h) { h.shape = {std::uint64_t{1} << 63, 2, 2048}; }) == ErrorCode::bad_frame);
  CHECK(refused([](FrameHeader& h) { h.shape = {1ULL << 40, 1}; h.message_bytes = 1ULL << 42; }) == ErrorCode::bad_frame);
  const auto good = encode_header(data_header(payload));
  CHECK(code_of(good.bytes(), payload.size() + 1) == ErrorCode::bad_frame);
}

TEST_CASE("frame: another version, a cut header and a misaligned one", "[protocol][frame][fault]") {
  const auto payload = payload_of(64);
  const auto bytes = encoded(data_header(payload));
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    CAPTURE(size);
    CHECK(code_of(std::span(bytes).first(size), payload.size()) == ErrorCode::bad_frame);
  }
  auto other = bytes;
  other[4] = std::byte{2};
  const auto decoded = decode_header(other, payload.size());
  REQUIRE_FALSE(decoded.ok());
  CHECK(decoded.error().code == ErrorCode::version_mismatch);
  CHECK_THAT(decoded.error().message, Catch::Contains("version 2"));

  std::vector<std::byte> shifted(bytes.size() + 8);
  for (std::size_t shift = 0; shift < 8; ++shift) {
    std::memcpy(shifted.data() + shift, bytes.data(), bytes.size());
    CHECK(decode_header(std::span(shifted).subspan(shift, bytes.size()), payload.size()).ok());
  }
  std::vector<std::byte> longer(2048, std::byte{0});
  std::memcpy(longer.data(), bytes.data(), bytes.size());
  reseal(longer);
  CHECK(code_of(longer, payload.size()) == ErrorCode::bad_frame);
}

TEST_CASE("frame: one flipped bit anywhere is noticed", "[protocol][frame][fault]") {
  auto payload = payload_of(1000);
  auto header = data_header(payload);
  header.shape = {250};
  header.message_bytes = 1000;
  header.chunk_offset = 0;
  auto bytes = encoded(header);
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    CHECK_FALSE(decode_header(bytes, payload.size()).ok());
    bytes[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
  }
  for (std::size_t bit = 0; bit < payload.size() * 8; ++bit) {
    payload[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    CHECK_FALSE(check_payload(header, payload).ok());
    payload[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
  }
}

TEST_CASE("frame: mutated headers with right checksums never break anything", "[protocol][frame][fault]") {
  const auto payload = payload_of(4096);
  const auto good = encoded(data_header(payload));
  Random random(20261124);
  std::size_t accepted = 0, refused = 0;
  for (int round = 0; round < 200'000; ++round) {
    auto bytes = good;
    const auto changes = 1 + random.below(8);
    for (std::uint64_t i = 0; i < changes; ++i) {
      const auto at = 16 + random.below(bytes.size() - 16);
      // Pointers and lengths are more interesting than values: half of all changes hit whole words.
      if (random.below(2) == 0) {
        bytes[at] = static_cast<std::byte>(random.next());
      } else {
        const std::uint64_t word = random.below(4) == 0 ? ~0ULL : random.next() >> random.below(64);
        std::memcpy(bytes.data() + at / 8 * 8, &word, sizeof word);
      }
    }
    if (random.below(4) == 0) bytes.resize(16 + random.below((bytes.size() - 16) / 8 + 1) * 8);
    reseal(bytes);
    const auto decoded = decode_header(bytes, payload.size());
    if (!decoded.ok()) {
      ++refused;
      continue;
    }
    ++accepted;
    const auto& header = decoded.value();
    // Whatever is accepted keeps the promises that the exchange relies on.
    const bool sound = header.session != 0 && header.shape.size() <= shape_extents_limit &&
                       header.payload_bytes == payload.size() &&
                       (header.kind != FrameKind::data ||
                        (header.sequence != 0 && checked_bytes(header.shape, header.dtype) == header.message_bytes &&
                         header.chunk_offset + header.payload_bytes <= header.message_bytes));
    if (!sound) FAIL("an unsound header was accepted in round " << round);
    // It can be sent on: encoding what was decoded gives the same meaning again.
    const auto again = decode_header(encode_header(header).bytes(), payload.size());
    if (!again.ok() || !(again.value() == header)) FAIL("round " << round << " does not survive the wire");
  }
  CHECK(accepted > 1000);
  CHECK(refused > 1000);
}

TEST_CASE("frame: random bytes are not frames", "[protocol][frame][fault]") {
  Random random(7);
  for (int round = 0; round < 20'000; ++round) {
    std::vector<std::byte> bytes(random.below(400));
    for (auto& byte : bytes) byte = static_cast<std::byte>(random.next());
    CHECK_FALSE(decode_header(bytes, 0).ok());
  }
}
