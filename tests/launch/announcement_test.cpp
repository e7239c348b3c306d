#include "launch/announcement.hpp"

#include <fstream>

#include <catch2/catch.hpp>

#include "tests/launch/scratch.hpp"

namespace orrery::launch {

TEST_CASE("announcement: what a coordinator writes is what its launcher reads", "[launch]") {
  const Scratch scratch;
  const auto path = scratch.path("announce.json");
  const auto nothing = read_announcement(path);
  REQUIRE(nothing.ok());
  CHECK_FALSE(nothing.value().has_value());

  REQUIRE(announce(path, Announcement{"127.0.0.1:4711", 12, 0xffffffffffffffffU, 3}).ok());
  const auto read = read_announcement(path);
  REQUIRE(read.ok());
  REQUIRE(read.value().has_value());
  CHECK(read.value()->address == "127.0.0.1:4711");
  CHECK(read.value()->pid == 12);
  CHECK(read.value()->cluster_id == 0xffffffffffffffffU);
  CHECK(read.value()->term == 3);
  CHECK(scratch.entry_count() == 1);
}

TEST_CASE("announcement: a failure arrives with its code, its sentence and its hint", "[launch]") {
  const Scratch scratch;
  const auto path = scratch.path("announce.json");
  REQUIRE(announce(path, Error{ErrorCode::port_in_use, "listening is not possible", "take another port"}).ok());
  const auto read = read_announcement(path);
  REQUIRE_FALSE(read.ok());
  CHECK(read.error().code == ErrorCode::port_in_use);
  CHECK(read.error().text() == "listening is not possible (take another port)");
}

TEST_CASE("announcement: anything else in the file is refused", "[launch]") {
  const Scratch scratch;
  const auto path = scratch.path("announce.json");
  for (const char* text : {"", "{", "[]", "{}", "{\"address\": 5, \"cluster_id\": \"1\"}", "{\"address\": \"a:1\", \"cluster_id\": \"1x\"}",
                           "{\"address\": \"a:1\", \"cluster_id\": \"99999999999999999999999\"}", "{\"failure\": {}}", "{\"failure\": 7}"}) {
    std::ofstream(path) << text;
    INFO(text);
    const auto read = read_announcement(path);
    REQUIRE_FALSE(read.ok());
    CHECK(read.error().code == ErrorCode::io_failed);
  }
}

TEST_CASE("error of json: the code by number or by name, and a sentence there must be", "[launch]") {
  CHECK(error_of_json(R"({"code": "peer_lost", "message": "m"})")->code == ErrorCode::peer_lost);
  CHECK(error_of_json(R"({"code": 6, "message": "m", "hint": "h"})")->code == ErrorCode::timed_out);
  CHECK(error_of_json(R"({"code": 99999, "message": "m"})")->code == ErrorCode::internal);
  CHECK_FALSE(error_of_json(R"({"code": 6})"));
  CHECK_FALSE(error_of_json("null"));
}

}  // namespace orrery::launch
