// Feeds every file of the folders given to a fuzz target, without a fuzzer: how tests/run keeps the corpora true.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/fuzz/input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" int LLVMFuzzerInitialize(int* count, char*** words);

int main(int count, char** words) {
  LLVMFuzzerInitialize(&count, &words);
  int files = 0;
  for (int i = 1; i < count; ++i)
    for (const auto& entry : std::filesystem::directory_iterator(words[i])) {
      const auto bytes = orrery::fuzz::contents_of(entry.path());
      // An abort names no file by itself.
      std::fprintf(stderr, "%s\n", entry.path().c_str());
      // A copy of exactly its size, so that a sanitizer sees a read beyond it.
      const std::vector<std::uint8_t> exact(bytes.begin(), bytes.end());
      LLVMFuzzerTestOneInput(exact.data(), exact.size());
      ++files;
    }
  std::printf("%d inputs, no failure\n", files);
  return files > 0 ? 0 : 1;
}
