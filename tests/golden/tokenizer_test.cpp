// The tokenizer against the reference ids, and against hostile folders and prompts.

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/file.hpp"
#include "base/json.hpp"
#include "base/random.hpp"
#include "compiler/tokenizer.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

const std::string folder = testing::golden("tokenizer/tokenizer");

Tokenizer tokenizer_of(const std::string& path) {
  auto tokenizer = Tokenizer::open(path);
  INFO((tokenizer.ok() ? std::string() : tokenizer.error().text()));
  REQUIRE(tokenizer.ok());
  return std::move(tokenizer).value();
}

std::vector<std::int32_t> ids_of(const Tokenizer& tokenizer, std::string_view text, std::uint64_t max_length = 512) {
  auto result = tokenizer.encode(text, max_length);
  INFO((result.ok() ? std::string() : result.error().text()));
  REQUIRE(result.ok());
  return result.value().ids;
}

/// A tokenizer folder that can be spoilt, gone at the end.
struct Copy {
  std::filesystem::path path;
  Copy() : path(std::filesystem::temp_directory_path() / ("orrery_tokenizer_" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(path);
    std::filesystem::copy(folder, path);
  }
  ~Copy() { std::filesystem::remove_all(path); }
  void write(const std::string& file, std::string_view text) const {
    std::filesystem::remove(path / file);
    std::ofstream(path / file, std::ios::binary) << text;
  }
};

}  // namespace

TEST_CASE("tokenizer: ids are those of the reference", "[golden][tokenizer]") {
  const auto tokenizer = tokenizer_of(folder);
  const auto cases = read_json_file(testing::golden("tokenizer/cases.json"));
  REQUIRE(cases.ok());
  REQUIRE_FALSE(cases.value()["cases"].empty());
  for (const auto& each : cases.value()["cases"]) {
    const auto text = each["text"].get<std::string>();
    CAPTURE(text);
    const auto length = each["max_length"].get<std::uint64_t>();
    auto padded = ids_of(tokenizer, text, length);
    const auto count = padded.size();
    padded.resize(length, tokenizer.pad_id());
    CHECK(padded == each["input_ids"].get<std::vector<std::int32_t>>());
    std::uint64_t masked = 0;
    for (const auto& bit : each["attention_mask"]) masked += bit.get<std::uint64_t>();
    CHECK(count == masked);
    const auto whole = each["ids_unpadded_with_eos"].get<std::vector<std::int32_t>>();
    CHECK(ids_of(tokenizer, text, 10'000) == whole);
    CHECK(tokenizer.encode(text, length).value().truncated == (whole.size() > length));
  }
  CHECK(tokenizer.end_id() == 1);
  CHECK(tokenizer.pad_id() == 0);
  CHECK(tokenizer.vocabulary_size() == 160);
  CHECK(tokenizer.recommended_length() == 512);
}

TEST_CASE("tokenizer: special tokens in the text become their ids", "[golden][tokenizer]") {
  const Copy copy;
  copy.write("tokenizer_config.json", R"({"extra_ids": 100, "eos_token": {"content": "</s>"}, "model_max_length": 1e30})");
  const auto tokenizer = tokenizer_of(copy.path);
  CHECK(tokenizer.vocabulary_size() == 260);
  CHECK(tokenizer.recommended_length() > 100'000);
  const auto robot = ids_of(tokenizer, "the camera");
  REQUIRE(robot.size() == 3);
  CHECK(ids_of(tokenizer, "<extra_id_0>") == std::vector<std::int32_t>{259, 1});
  CHECK(ids_of(tokenizer, "<extra_id_99>") == std::vector<std::int32_t>{160, 1});
  CHECK(ids_of(tokenizer, "the camera<extra_id_1>the camera</s> <pad>") == std::vector<std::int32_t>{robot[0], robot[1], 258, robot[0], robot[1], 1, 0, 1});
  CHECK(ids_of(tokenizer, "<unk><unk>", 2) == std::vector<std::int32_t>{2, 1});
  CHECK(ids_of(tokenizer_of(folder), "<extra_id_0>").size() > 2);  // extra_ids is 0 there.
}

TEST_CASE("tokenizer: long prompts keep their beginning and the end token", "[golden][tokenizer][fault]") {
  const auto tokenizer = tokenizer_of(folder);
  std::string words;
  for (int i = 0; i < 10'000; ++i) words += "robot ";
  const auto result = tokenizer.encode(words, 512);
  REQUIRE(result.ok());
  CHECK(result.value().count() == 512);
  CHECK(result.value().truncated);
  CHECK(result.value().ids.back() == 1);
  CHECK(result.value().ids[510] == ids_of(tokenizer, "robot")[0]);
  CHECK(ids_of(tokenizer, words, 1) == std::vector<std::int32_t>{1});
  std::string marks;
  while (marks.size() < 900'000) marks += "<pad>";
  CHECK(ids_of(tokenizer, marks, 512).size() == 512);
  CHECK(ids_of(tokenizer, std::string(1'000'000, 'x'), 512).size() == 512);
  CHECK(tokenizer.encode(std::string((1 << 20) + 1, 'x'), 512).error().code == ErrorCode::invalid_request);
}

TEST_CASE("tokenizer: text that is not UTF-8 is refused with its place", "[golden][tokenizer][fault]") {
  const auto tokenizer = tokenizer_of(folder);
  for (const std::string_view bad : {"robot \xFF", "robot \xC0\x80", "robot \xE2\x80", "robot \xED\xA0\x80", "robot \xF4\x90\x80\x80", "robot \x80", "robot \xF0\x80\x80\x80"}) {
    const auto result = tokenizer.encode(bad, 512);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::invalid_request);
    CHECK(result.error().message.find("byte 6") != std::string::npos);
  }
  CHECK(ids_of(tokenizer, std::string_view("\0\0robot\0", 8)).back() == 1);
  CHECK(ids_of(tokenizer, "\xF0\x9F\xA4\x96\xE2\x80\x8B\xED\x9F\xBF").back() == 1);
}

TEST_CASE("tokenizer: missing and broken folders are refused", "[golden][tokenizer][fault]") {
  const auto code = [](const std::string& path) {
    const auto result = Tokenizer::open(path);
    return result.ok() ? ErrorCode::internal : result.error().code;
  };
  CHECK(code("/nowhere") == ErrorCode::not_found);
  const Copy copy;
  const auto model = read_text_file(folder + "/spiece.model", 1 << 20);
  REQUIRE(model.ok());
  copy.write("spiece.model", "");
  CHECK(code(copy.path) == ErrorCode::invalid_model);
  copy.write("spiece.model", "version https://git-lfs.github.com/spec/v1\n");
  CHECK(code(copy.path) == ErrorCode::invalid_model);
  copy.write("spiece.model", model.value().substr(0, model.value().size() / 2));
  (void)code(copy.path);  // A cut may fall between two pieces; it must not end the process.
  copy.write("spiece.model", model.value());
  for (const char* config : {"[]", "{", R"({"eos_token": "<nope>"})", R"({"eos_token": 3})", R"({"extra_ids": -1})", R"({"extra_ids": 1000000})", R"({"extra_ids": "x"})",
                             R"({"model_max_length": 0})", R"({"added_tokens_decoder": {"x": {"content": "y"}}})", R"({"added_tokens_decoder": {"99999999": {"content": "y"}}})"}) {
    CAPTURE(config);
    copy.write("tokenizer_config.json", config);
    CHECK(code(copy.path) == ErrorCode::invalid_model);
  }
  std::filesystem::remove(copy.path / "tokenizer_config.json");
  CHECK(Tokenizer::open(copy.path).ok());
  std::filesystem::remove(copy.path / "spiece.model");
  CHECK(code(copy.path) == ErrorCode::not_found);
  copy.write("tokenizer.json", "{}");
  CHECK(code(copy.path) == ErrorCode::unsupported);
}

TEST_CASE("tokenizer: a damaged spiece.model never ends the process", "[golden][tokenizer][fault]") {
  const Copy copy;
  const auto model = read_text_file(folder + "/spiece.model", 1 << 20);
  REQUIRE(model.ok());
  Random random(3);
  for (int round = 0; round < 60; ++round) {
    auto damaged = model.value();
    if (round % 3 == 0) damaged.resize(random.below(damaged.size()));
    for (std::uint64_t i = 0; i < 1 + random.below(8) && !damaged.empty(); ++i) damaged[random.below(damaged.size())] = static_cast<char>(random.below(256));
    copy.write("spiece.model", damaged);
    const auto tokenizer = Tokenizer::open(copy.path);
    if (tokenizer.ok()) (void)tokenizer.value().encode("A robot, the camera \xEF\xBC\xB2 \xEF\xAC\x81 and 123", 64);
  }
  SUCCEED();
}

}  // namespace orrery::compiler
