// SHA-256 for what people compare (videos, models, plans), XXH3 for what machines check (frames).

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace orrery {

/// Incremental SHA-256. Threads: one.
class Sha256 {
public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void update(std::span<const std::byte> bytes);
  /// 64 lower-case hex digits; ends this digest.
  std::string finish();

private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_of(std::string_view text);
std::string sha256_of(std::span<const std::byte> bytes);

/// Not cryptographic; about memory speed.
std::uint64_t xxh3_of(std::span<const std::byte> bytes);

}  // namespace orrery
