// units, tensors, digests, JSON, atomic files, the slice tree.
#include <catch2/catch.hpp>

#include <filesystem>
#include <numeric>

#include "base/digest.hpp"
#include "base/file.hpp"
#include "base/json.hpp"
#include "base/slice_tree.hpp"
#include "base/tensor.hpp"
#include "base/units.hpp"

using namespace orrery;

TEST_CASE("units: binary and decimal, bits and bytes are kept apart", "[base]") {
  CHECK(parse_bytes("64GiB").value() == std::uint64_t{64} << 30);
  CHECK(parse_bytes("1.5 GB").value() == 1'500'000'000);
  CHECK(parse_bytes_per_second("200 Gbit/s").value() == Approx(25e9));
  CHECK(parse_flops("64 TFLOP/s").value() == Approx(64e12));
  CHECK(parse_seconds("1.5 us").value() == Approx(1.5e-6));
  for (const char* bad : {"64", "", "GiB", "-1GiB", "nanGiB", "infGiB", "64 GiB/s", "64gib", "1e999B", "0x10B", "64 GiB extra"}) {
    INFO(bad);
    CHECK_FALSE(parse_bytes(bad).ok());
  }
  CHECK(text_of_bytes(9.5e6) == "9.06 MiB");
  CHECK(text_of_seconds(0.0412) == "41.2 ms");
  CHECK(text_of_seconds(380) == "6 min 20 s");
}

TEST_CASE("bf16: rounds to nearest even and keeps NaN", "[base]") {
  CHECK(f32_of_bf16(bf16_of(1.0F)) == 1.0F);
  CHECK(bf16_of(std::bit_cast<float>(0x3f808000U)) == 0x3f80);
  CHECK(bf16_of(std::bit_cast<float>(0x3f818000U)) == 0x3f82);
  CHECK(std::isnan(f32_of_bf16(bf16_of(std::bit_cast<float>(0x7f800001U)))));
}

TEST_CASE("shapes: an overflowing product is noticed", "[base]") {
  CHECK(checked_bytes({1ULL << 40, 1ULL << 40}, DType::f32) == std::nullopt);
  CHECK(checked_bytes({3, 5}, DType::bf16) == 30);
  CHECK(checked_bytes({}, DType::f32) == 4);
  CHECK(text_of(Shape{2, 16}) == "[2, 16]");
}

TEST_CASE("sha-256 and xxh3: known answers", "[base]") {
  CHECK(sha256_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(xxh3_of({}) == 0x2d06800538d394c2ULL);
}

TEST_CASE("json: duplicate keys, depth and syntax are refused with a place", "[base]") {
  CHECK(parse_json(R"({"a": {"a": 1}, "b": [1, 2]})", "x").ok());
  CHECK(parse_json("{\"a\": 1,\n \"a\": 2}", "x.json").error().message == "x.json: key 'a' appears twice");
  CHECK(parse_json("{\n\"a\": }", "x.json").error().message.starts_with("x.json:2:"));
  CHECK_FALSE(parse_json(std::string(100000, '['), "x").ok());
  CHECK_FALSE(parse_json("\"\xff\"", "x").ok());
}

TEST_CASE("atomic file: nothing is left unless committed", "[base]") {
  const auto folder = std::filesystem::temp_directory_path() / ("orrery-base-" + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  const auto path = (folder / "out.txt").string();
  {
    auto file = AtomicFile::create(path);
    REQUIRE(file.ok());
    REQUIRE(file.value().write("half").ok());
  }
  CHECK(std::filesystem::is_empty(folder));
  {
    auto file = AtomicFile::create(path);
    REQUIRE(file.value().write("whole").ok());
    REQUIRE(file.value().commit().ok());
  }
  CHECK(read_text_file(path, 100).value() == "whole");
  CHECK_FALSE(read_text_file(path, 4).ok());
  CHECK(AtomicFile::create((folder / "missing" / "x").string()).error().code == ErrorCode::io_failed);
  std::filesystem::remove_all(folder);
}

TEST_CASE("slice tree: pieces are the maximal complete subtrees", "[base]") {
  CHECK(pieces_of({0, 1, 2, 3, 4, 5, 6, 7}, 8) == std::vector<SliceRange>{{0, 8}});
  CHECK(pieces_of({0, 1, 2}, 8) == std::vector<SliceRange>{{0, 2}, {2, 3}});
  CHECK(pieces_of({3, 4, 5}, 8) == std::vector<SliceRange>{{3, 4}, {4, 6}});
  CHECK(pieces_of({4}, 5) == std::vector<SliceRange>{{4, 5}});
  CHECK(pieces_of({2, 0, 3, 1}, 5) == std::vector<SliceRange>{{0, 4}});
  CHECK(pieces_of({}, 3).empty());
}
