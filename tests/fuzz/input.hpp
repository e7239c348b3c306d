// What the targets share: taking a fuzzer's bytes apart, and showing them as a file.

#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>

#include "base/result.hpp"

namespace orrery::fuzz {

/// Numbers and runs of bytes, taken from the front; zeros once it is used up.
class Input {
public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(reinterpret_cast<const std::byte*>(data), size) {}
  bool empty() const { return rest_.empty(); }
  std::span<const std::byte> bytes(std::size_t count) {
    const auto taken = rest_.first(std::min(count, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return taken;
  }
  template <class T>
  T number() {
    T value{};
    const auto taken = bytes(sizeof value);
    std::memcpy(&value, taken.data(), taken.size());
    return value;
  }
  std::uint8_t byte() { return number<std::uint8_t>(); }

private:
  std::span<const std::byte> rest_;
};

/// A file in memory whose contents are the input's. One per program; its path stays the same.
inline std::string file_with(const std::uint8_t* data, std::size_t size) {
  static const int file = ::memfd_create("input", MFD_CLOEXEC);
  ORRERY_CHECK(file >= 0 && ::ftruncate(file, static_cast<off_t>(size)) == 0 && ::pwrite(file, data, size, 0) == static_cast<ssize_t>(size));
  return "/proc/self/fd/" + std::to_string(file);
}

inline void write_seed(const std::string& folder, const std::string& name, std::string_view bytes) {
  std::ofstream(folder + "/" + name, std::ios::binary) << bytes;
}

inline std::string contents_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// If the environment asks for seeds, makes them and ends: the body of LLVMFuzzerInitialize.
template <class Make>
int initialize(Make make) {
  if (const char* folder = std::getenv("ORRERY_FUZZ_MAKE_CORPUS")) {
    make(std::string(folder));
    std::exit(0);
  }
  return 0;
}

}  // namespace orrery::fuzz
