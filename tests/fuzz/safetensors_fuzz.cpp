// Weight files made of any bytes: refused with a reason, or every tensor lies inside the file, apart from all others.

#include "compiler/weight_file.hpp"
#include "tests/fuzz/input.hpp"

namespace {

using namespace orrery;

std::string file_of(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof size) + header + std::string(data_bytes, 'd');
}

void make_corpus(const std::string& folder) {
  fuzz::write_seed(folder, "empty", file_of("{}", 0));
  fuzz::write_seed(folder, "one", file_of(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 24));
  fuzz::write_seed(folder, "two", file_of(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]}})", 16));
  fuzz::write_seed(folder, "kinds", file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"BOOL","shape":[3],"data_offsets":[1,4]},"c":{"dtype":"F16","shape":[0],"data_offsets":[4,4]},"d":{"dtype":"F64","shape":[1,1,1],"data_offsets":[4,12]}})", 12));
  fuzz::write_seed(folder, "padded", file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}      )", 4));
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) { return fuzz::initialize(make_corpus); }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = compiler::TensorFile::open(fuzz::file_with(data, size));
  if (!file.ok()) {
    ORRERY_CHECK(!file.error().message.empty());
    return 0;
  }
  const auto all = file.value().file().bytes();
  std::uint64_t sum = 0;
  for (const auto& [name, tensor] : file.value().tensors()) {
    const auto* from = reinterpret_cast<const std::byte*>(tensor.data);
    ORRERY_CHECK(tensor.bytes() == 0 || (from >= all.data() && from + tensor.bytes() <= all.data() + all.size()));
    if (tensor.bytes() > 0) (void)(*const_cast<const volatile std::byte*>(from) == from[tensor.bytes() - 1]);
    sum += tensor.bytes();
  }
  ORRERY_CHECK(sum <= all.size());
  return 0;
}
