#include "protocol/frame.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <string>

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/exception.h>
#include <kj/io.h>

#include <orrery.capnp.h>

#include "base/digest.hpp"

namespace orrery::protocol {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire is little endian");

constexpr std::uint32_t magic = 0x5952524f;
constexpr std::size_t preamble_bytes = 16;
constexpr std::size_t body_bytes_limit = 1024;
constexpr std::size_t body_words_limit = body_bytes_limit / sizeof(capnp::word);

static_assert(static_cast<int>(wire::Kind::HELLO) == static_cast<int>(FrameKind::hello));
static_assert(static_cast<int>(wire::Kind::REFUSAL) == static_cast<int>(FrameKind::refusal));
static_assert(static_cast<int>(wire::DType::F32) == static_cast<int>(DType::f32));
static_assert(static_cast<int>(wire::DType::BOOLEAN) == static_cast<int>(DType::boolean));

template <class T>
T load(std::span<const std::byte> bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

template <class T>
void store(std::span<std::byte> bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

Error bad(const char* what) {
  return Error{ErrorCode::bad_frame, std::string("a frame was dropped: ") + what, "the sender will send it again"};
}

// Copies every field; the accessors of a hostile message may throw, so all of them run inside the guard.
const char* read_fields(wire::FrameHeader::Reader reader, FrameHeader& header) {
  const auto kind = static_cast<std::uint16_t>(reader.getKind());
  if (kind < 1 || kind > 5) return "unknown kind";
  header.kind = static_cast<FrameKind>(kind);
  header.cluster_id = reader.getClusterId();
  header.epoch = reader.getEpoch();
  header.plan_digest = reader.getPlanDigest();
  header.sender = reader.getSender();
  header.receiver = reader.getReceiver();
  header.session = reader.getSession();
  header.receiver_session = reader.getReceiverSession();
  header.sequence = reader.getSequence();
  header.acked = reader.getAcked();
  header.acked_after = reader.getAckedAfter();
  header.granted = reader.getGranted();
  header.payload_bytes = reader.getPayloadBytes();
  header.checksum = reader.getChecksum();
  if (header.kind == FrameKind::refusal) header.refusal = static_cast<ErrorCode>(reader.getRefusal());
  const auto dtype = static_cast<std::uint16_t>(reader.getDtype());
  if (header.kind == FrameKind::data) {
    header.key = {.request = reader.getRequest(), .step = reader.getStep(), .stream = reader.getStream(),
                  .part = reader.getPart(), .op = reader.getOp(), .source = reader.getSource(),
                  .target = reader.getTarget()};
    header.message_bytes = reader.getMessageBytes();
    header.chunk_offset = reader.getChunkOffset();
    if (dtype < 1 || dtype > static_cast<std::uint16_t>(DType::boolean)) return "unknown dtype";
    header.dtype = static_cast<DType>(dtype);
    const auto shape = reader.getShape();
    if (shape.size() > shape_extents_limit) return "more than 8 extents";
    header.shape.reserve(shape.size());
    for (const auto extent : shape) header.shape.push_back(extent);
  }
  return nullptr;
}

const char* check_fields(const FrameHeader& header, std::uint64_t payload_bytes) {
  if (header.session == 0) return "no session";
  if (header.acked_after & 1) return "contradictory acknowledgement";
  if (header.payload_bytes != payload_bytes) return "the payload's length is not that of its header";
  if (payload_bytes > payload_bytes_limit) return "payload too long";
  if (header.kind != FrameKind::data) {
    if (header.sequence != 0) return "sequence outside of data";
    if (header.kind != FrameKind::refusal && payload_bytes != 0) return "payload outside of data";
    return nullptr;
  }
  if (header.sequence == 0) return "data without sequence";
  if (header.message_bytes > message_bytes_limit) return "message too long";
  const auto expected = checked_bytes(header.shape, header.dtype);
  if (!expected || *expected != header.message_bytes) return "the message's length is not that of its shape";
  // Both are below 2^41 here, so the sum cannot wrap.
  if (header.chunk_offset > header.message_bytes || header.chunk_offset + payload_bytes > header.message_bytes)
    return "chunk outside of its message";
  if (payload_bytes == 0 && header.message_bytes != 0) return "empty chunk of a message that is not";
  return nullptr;
}

}  // namespace

HeaderBytes encode_header(const FrameHeader& header) {
  ORRERY_CHECK(header.shape.size() <= shape_extents_limit);
  // The first segment lies on the stack and must be zeroed; the largest header has 30 words.
  std::array<capnp::word, 64> scratch;
  std::memset(scratch.data(), 0, sizeof scratch);
  capnp::MallocMessageBuilder message(kj::arrayPtr(scratch.data(), scratch.size()));
  auto root = message.initRoot<wire::FrameHeader>();
  root.setKind(static_cast<wire::Kind>(header.kind));
  root.setClusterId(header.cluster_id);
  root.setEpoch(header.epoch);
  root.setPlanDigest(header.plan_digest);
  root.setSender(header.sender);
  root.setReceiver(header.receiver);
  root.setSession(header.session);
  root.setReceiverSession(header.receiver_session);
  root.setSequence(header.sequence);
  root.setAcked(header.acked);
  root.setAckedAfter(header.acked_after);
  root.setGranted(header.granted);
  root.setPayloadBytes(header.payload_bytes);
  root.setChecksum(header.checksum);
  if (header.kind == FrameKind::data) {
    root.setRequest(header.key.request);
    root.setStep(header.key.step);
    root.setStream(header.key.stream);
    root.setPart(header.key.part);
    root.setOp(header.key.op);
    root.setSource(header.key.source);
    root.setTarget(header.key.target);
    root.setDtype(static_cast<wire::DType>(header.dtype));
    auto shape = root.initShape(static_cast<unsigned>(header.shape.size()));
    for (unsigned i = 0; i < shape.size(); ++i) shape.set(i, header.shape[i]);
    root.setMessageBytes(header.message_bytes);
    root.setChunkOffset(header.chunk_offset);
  }
  if (header.kind == FrameKind::refusal) root.setRefusal(static_cast<std::uint16_t>(header.refusal));

  const std::size_t body = capnp::computeSerializedSizeInWords(message) * sizeof(capnp::word);
  std::array<std::byte, HeaderBytes::capacity> bytes;
  ORRERY_CHECK(preamble_bytes + body <= bytes.size());
  kj::ArrayOutputStream out(kj::arrayPtr(reinterpret_cast<kj::byte*>(bytes.data()) + preamble_bytes, body));
  capnp::writeMessage(out, message);
  const std::span<std::byte> all(bytes.data(), preamble_bytes + body);
  store(all, 0, magic);
  store(all, 4, protocol_version);
  store(all, 6, static_cast<std::uint16_t>(body));
  store(all, 8, xxh3_of(all.subspan(preamble_bytes)));
  return HeaderBytes(all);
}

Result<FrameHeader> decode_header(std::span<const std::byte> bytes, std::uint64_t payload_bytes) {
  if (bytes.size() < preamble_bytes || load<std::uint32_t>(bytes, 0) != magic) return bad("not one of ours");
  if (const auto version = load<std::uint16_t>(bytes, 4); version != protocol_version)
    return Error{ErrorCode::version_mismatch,
                 "a frame has protocol version " + std::to_string(version) + ", this program speaks " +
                     std::to_string(protocol_version),
                 "run the same release of orrery on all nodes"};
  const auto body = bytes.subspan(preamble_bytes);
  if (load<std::uint16_t>(bytes, 6) != body.size()) return bad("truncated header");
  if (body.empty() || body.size() % sizeof(capnp::word) != 0 || body.size() > body_bytes_limit)
    return bad("impossible header length");
  if (load<std::uint64_t>(bytes, 8) != xxh3_of(body)) return bad("header checksum");

  // A right checksum says that the bytes are what the sender wrote, not that the sender is sane. Frame memory
  // may be misaligned, which this version of Cap'n Proto refuses: read from an aligned copy.
  std::array<capnp::word, body_words_limit> words;
  std::memcpy(words.data(), body.data(), body.size());
  capnp::ReaderOptions limits;
  limits.traversalLimitInWords = 1024;
  limits.nestingLimit = 8;
  FrameHeader header;
  const char* problem = nullptr;
  auto exception = kj::runCatchingExceptions([&] {
    capnp::FlatArrayMessageReader reader(kj::arrayPtr(words.data(), body.size() / sizeof(capnp::word)), limits);
    problem = read_fields(reader.getRoot<wire::FrameHeader>(), header);
  });
  if (exception != nullptr) return bad("malformed header");
  if (!problem) problem = check_fields(header, payload_bytes);
  if (problem) return bad(problem);
  return header;
}

Status check_payload(const FrameHeader& header, std::span<const std::byte> payload) {
  if (payload.size() != header.payload_bytes || xxh3_of(payload) != header.checksum) return bad("payload checksum");
  return Done{};
}

}  // namespace orrery::protocol
