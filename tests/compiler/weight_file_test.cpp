// Safetensors: what is written is read back; whatever is wrong is refused by name.

#include "base/random.hpp"
#include "compiler/weight_file.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

using testing::TemporaryFolder;

std::string file_of(std::uint64_t header_bytes, std::string_view header, std::string_view data) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &header_bytes, 8);
  return bytes.append(header).append(data);
}
std::string file_of(std::string_view header, std::string_view data) { return file_of(header.size(), header, data); }

}  // namespace

TEST_CASE("weight file: what was written is read back", "[compiler]") {
  TemporaryFolder folder;
  Tensor a(DType::f32, {2, 3}), b(DType::bf16, {5}), c(DType::i64, {}), d(DType::u8, {0, 4});
  a.as<float>()[4] = 2.5F;
  b.as<std::uint16_t>()[3] = 0x3f80;
  c.as<std::int64_t>()[0] = -7;
  const auto path = folder.path() + "/x.safetensors";
  REQUIRE(write_safetensors(path, {{"a", a.view()}, {"b", b.view()}, {"c", c.view()}, {"d", d.view()}}, {{"made", "here"}}).ok());
  const auto tensors = testing::tensors_of(path);
  REQUIRE(tensors.size() == 4);
  CHECK(tensors.at("a").shape() == Shape{2, 3});
  CHECK(tensors.at("a").as<float>()[4] == 2.5F);
  CHECK(tensors.at("b").as<std::uint16_t>()[3] == 0x3f80);
  CHECK(tensors.at("c").as<std::int64_t>()[0] == -7);
  CHECK(tensors.at("d").shape() == Shape{0, 4});
  auto weights = WeightFiles::open_file(path);
  REQUIRE(weights.ok());
  CHECK(weights.value()->bytes() == 24 + 10 + 8);
  CHECK(weights.value()->tensor("e").error().code == ErrorCode::invalid_model);
}

TEST_CASE("weight file: hostile files are refused with file and reason", "[compiler][hostile]") {
  struct Case {
    const char* what;
    std::string bytes;
    const char* says;
  };
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const std::string data(8, 'x');
  const auto one = [&](const char* entry) { return file_of(std::string(R"({"a":)") + entry + "}", data); };
  const std::vector<Case> cases = {
      {"empty", "", "too short"},
      {"seven bytes", "1234567", "too short"},
      {"no header after its length", file_of(10, "", ""), "claims 10 bytes"},
      {"header longer than the file", file_of(1000, good, data), "claims 1000 bytes"},
      {"header of 100 MB and more", file_of(100'000'001, good, data), "more than 100 MB"},
      {"header of 2^64 - 1", file_of(UINT64_MAX, good, data), "more than 100 MB"},
      {"header of nothing", file_of("", data), "does not start with '{'"},
      {"header that is no object", file_of("[1]", data), "does not start with '{'"},
      {"header with a space first", file_of(" {}", ""), "does not start with '{'"},
      {"header cut short", file_of(good.substr(0, 30), data), "not valid JSON"},
      {"header with rubbish behind", file_of(good + "}", data), "not valid JSON"},
      {"header nested deeply", file_of("{\"a\":" + std::string(5000, '['), data), ""},
      {"name twice", file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", data), "twice"},
      {"empty name", file_of(R"({"":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", data), "empty name"},
      {"entry is a number", one("3"), "not described by an object"},
      {"no dtype", one(R"({"shape":[2],"data_offsets":[0,8]})"), "has no dtype"},
      {"no shape", one(R"({"dtype":"F32","data_offsets":[0,8]})"), "has no shape"},
      {"no offsets", one(R"({"dtype":"F32","shape":[2]})"), "has no data_offsets"},
      {"dtype is a number", one(R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})"), "dtype that is not text"},
      {"unknown dtype", one(R"({"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]})"), "cannot be read"},
      {"shape is text", one(R"({"dtype":"F32","shape":"2","data_offsets":[0,8]})"), "no valid shape"},
      {"negative extent", one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), "whole numbers"},
      {"fraction in shape", one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"), "whole numbers"},
      {"shape that overflows", one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})"), "overflows"},
      {"shape with 17 dimensions", one(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})"), "no valid shape"},
      {"shape larger than its bytes", one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), "needs 12"},
      {"shape smaller than its bytes", one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})"), "needs 4"},
      {"one offset", one(R"({"dtype":"F32","shape":[2],"data_offsets":[8]})"), "two whole numbers"},
      {"negative offset", one(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})"), "two whole numbers"},
      {"ends before it begins", one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), "ends before it begins"},
      {"data cut short", file_of(good, "1234"), "has only 4"},
      {"offset of 2^63", one(R"({"dtype":"F32","shape":[2],"data_offsets":[9223372036854775808,9223372036854775816]})"), "has only 8"},
      {"overlap", file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", data), "overlaps"},
      {"gap", file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", data), "gap"},
      {"bytes of nobody", file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", data), "belong to no tensor"},
      {"metadata is a list", file_of(R"({"__metadata__":[]})", ""), "not an object"},
      {"metadata with a number", file_of(R"({"__metadata__":{"k":1}})", ""), "not text"},
      {"invalid UTF-8 in a name", file_of("{\"a\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", data), "not valid JSON"},
  };
  CHECK(cases.size() >= 20);
  TemporaryFolder folder;
  for (const auto& one_case : cases) {
    INFO(one_case.what);
    const auto path = folder.write("x.safetensors", one_case.bytes);
    const auto file = TensorFile::open(path);
    REQUIRE(!file.ok());
    INFO(file.error().text());
    CHECK((file.error().code == ErrorCode::invalid_model || file.error().code == ErrorCode::unsupported));
    CHECK(file.error().message.find(path) != std::string::npos);
    CHECK(file.error().text().find(one_case.says) != std::string::npos);
  }
  CHECK(TensorFile::open(folder.path() + "/none").error().code == ErrorCode::not_found);
  CHECK(!TensorFile::open(folder.path()).ok());
  // The same bytes without a mistake are fine.
  CHECK(TensorFile::open(folder.write("x.safetensors", file_of(good, data))).ok());
  CHECK(TensorFile::open(folder.write("x.safetensors", file_of(good + "     ", data))).ok());
}

TEST_CASE("weight file: no single changed byte of a header breaks the reader", "[compiler][hostile]") {
  TemporaryFolder folder;
  Tensor a(DType::f32, {2, 2}), b(DType::bf16, {4});
  const auto path = folder.path() + "/x.safetensors";
  REQUIRE(write_safetensors(path, {{"a", a.view()}, {"b", b.view()}}).ok());
  auto text = read_text_file(path, 1 << 20);
  REQUIRE(text.ok());
  Random random(7);
  const auto header = text.value().size() - a.bytes() - b.bytes();
  for (std::size_t i = 0; i < header; ++i) {
    auto changed = text.value();
    changed[i] = static_cast<char>(changed[i] ^ (1U << random.below(8)));
    const auto file = TensorFile::open(folder.write("y.safetensors", changed));
    if (file.ok())
      for (const auto& [name, view] : file.value().tensors()) {
        const auto whole = file.value().file().bytes();
        CHECK((view.data >= whole.data() && view.data + view.bytes() <= whole.data() + whole.size()));
      }
  }
}

TEST_CASE("weight file: an index that does not fit its files is refused", "[compiler][hostile]") {
  TemporaryFolder folder;
  Tensor a(DType::f32, {2}), b(DType::f32, {3});
  REQUIRE(write_safetensors(folder.path() + "/one.safetensors", {{"a", a.view()}}).ok());
  REQUIRE(write_safetensors(folder.path() + "/two.safetensors", {{"b", b.view()}}).ok());
  const auto open_with = [&](const std::string& index) {
    folder.write("diffusion_pytorch_model.safetensors.index.json", index);
    return WeightFiles::open_folder(folder.path());
  };
  const auto good = open_with(R"({"metadata":{"total_size":20},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  REQUIRE(good.ok());
  CHECK(good.value()->tensor("b").value().shape == Shape{3});
  CHECK(good.value()->bytes() == 20);

  struct Case {
    const char* index;
    const char* says;
  };
  for (const auto& [index, says] : {Case{"{", "not valid JSON"}, Case{"[]", "no weight_map"}, Case{R"({"weight_map":[]})", "no weight_map"},
                                    Case{R"({"weight_map":{"a":3}})", "no file name"}, Case{R"({"weight_map":{"a":"none.safetensors"}})", "missing"},
                                    Case{R"({"weight_map":{"c":"one.safetensors"}})", "is not in one.safetensors"},
                                    Case{R"({"weight_map":{"a":"../one.safetensors"}})", "not in this folder"},
                                    Case{R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})", "twice"}}) {
    const auto weights = open_with(index);
    INFO(index);
    REQUIRE(!weights.ok());
    INFO(weights.error().text());
    CHECK(weights.error().text().find(says) != std::string::npos);
  }
  REQUIRE(write_safetensors(folder.path() + "/two.safetensors", {{"a", a.view()}, {"b", b.view()}}).ok());
  CHECK(!open_with(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})").ok());
  TemporaryFolder nothing;
  CHECK(WeightFiles::open_folder(nothing.path()).error().code == ErrorCode::not_found);
}

}  // namespace orrery::compiler
