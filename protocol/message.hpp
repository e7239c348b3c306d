// What travels between endpoints: a named tensor, as the chunks that it came in.

#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.hpp"
#include "base/clock.hpp"
#include "base/tensor.hpp"

namespace orrery::protocol {

/// A process of the data plane. Given out by the coordinator; never reused within a cluster's life, except
/// for the next life of the same process.
using PeerId = std::uint32_t;

/// Who makes or takes messages: a card's number in the plan, or a client's or stage's number beyond them.
/// Several endpoints live in one process.
using EndpointId = std::uint32_t;

/// The name of a message. Both sides know it from the program, so nothing has to be negotiated.
struct MessageKey {
  std::uint64_t request = 0;
  std::uint32_t step = 0;
  std::uint16_t stream = 0;  // Which of a request's parallel flows (guidance branch, stage edge).
  std::uint16_t part = 0;    // Several messages of one op between the same two endpoints.
  std::uint32_t op = 0;
  EndpointId source = 0;
  EndpointId target = 0;
  auto operator<=>(const MessageKey&) const = default;
};

/// "op 17 of step 12, request 4, from card 3 to card 0"; stream and part are named when not 0.
std::string text_of(const MessageKey& key);

/// A run of a message's bytes. `bytes` may be a received network buffer: it is 8-byte aligned at least, no
/// more; letting go of it gives the sender its credit back.
struct Chunk {
  std::uint64_t offset = 0;  // Bytes from the message's start.
  Shard bytes;
};

/// Result of a receive. Chunks ascend, touch each other and cover all bytes; an empty message has none.
/// Chunks begin at multiples of the innermost row's bytes where a chunk can hold a row, else of 64 bytes.
struct Message {
  DType dtype = DType::f32;
  Shape shape;
  std::vector<Chunk> chunks;
  Time arrived{};  // When the last chunk came, on this process's clock.

  std::uint64_t bytes() const;
  /// Copies everything to `target`, which must have bytes() bytes.
  void copy_to(std::span<std::byte> target) const;
};

}  // namespace orrery::protocol
