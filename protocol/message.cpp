#include "protocol/message.hpp"

#include <cstring>

#include "base/result.hpp"

namespace orrery::protocol {

std::string text_of(const MessageKey& key) {
  std::string text = "op " + std::to_string(key.op);
  if (key.part != 0) text += " part " + std::to_string(key.part);
  text += " of step " + std::to_string(key.step) + ", request " + std::to_string(key.request);
  if (key.stream != 0) text += " stream " + std::to_string(key.stream);
  return text + ", from card " + std::to_string(key.source) + " to card " + std::to_string(key.target);
}

std::uint64_t Message::bytes() const {
  return chunks.empty() ? 0 : chunks.back().offset + chunks.back().bytes.size();
}

void Message::copy_to(std::span<std::byte> target) const {
  ORRERY_CHECK(target.size() == bytes());
  for (const auto& chunk : chunks) {
    const auto from = chunk.bytes.bytes();
    if (!from.empty()) std::memcpy(target.data() + chunk.offset, from.data(), from.size());
  }
}

}  // namespace orrery::protocol
