#include "launch/progress.hpp"

#include <catch2/catch.hpp>

#include "base/json.hpp"

namespace orrery::launch {
namespace {

using namespace std::chrono_literals;
using Kind = ProgressEvent::Kind;

const Time start{1'000'000'000ns};

ProgressEvent steps(Kind kind, std::uint64_t completed) { return {kind, "denoise", "", completed, 36, {"steps"}, ""}; }

}  // namespace

TEST_CASE("progress: a step bar shows count, pace and time to go", "[launch]") {
  ProgressBoard board;
  board.apply(steps(Kind::started, 0), start);
  CHECK(board.block(start + 3s) == "denoise  [                ] 0/36 steps\n");
  for (int i = 1; i <= 18; ++i) board.apply(steps(Kind::advanced, static_cast<std::uint64_t>(i)), start + i * 500ms);
  CHECK(board.block(start + 9s) == "denoise  [########        ] 18/36 steps  2.00 it/s  eta 0:09  step p50 500 ms\n");
  // Time that has passed since the last step counts.
  CHECK(board.block(start + 11s).find("eta 0:07") != std::string::npos);
  board.apply(steps(Kind::done, 0), start + 18s);
  CHECK(board.block(start + 60s) == "denoise  done 18.0 s  36 steps\n");
}

TEST_CASE("progress: one slow first step does not spoil the time to go", "[launch]") {
  ProgressBoard board;
  board.apply(steps(Kind::started, 0), start);
  board.apply(steps(Kind::advanced, 1), start + 60s);
  for (int i = 2; i <= 4; ++i) board.apply(steps(Kind::advanced, static_cast<std::uint64_t>(i)), start + 60s + (i - 1) * 1s);
  CHECK(board.block(start + 63s).find("eta 0:32") != std::string::npos);
}

TEST_CASE("progress: bytes are shown with their unit and rate", "[launch]") {
  ProgressBoard board;
  const auto gib = std::uint64_t{1} << 30;
  ProgressEvent load{Kind::started, "load", "transformer", 0, 14 * gib, {"bytes"}, ""};
  board.apply(load, start);
  load.kind = Kind::advanced;
  load.completed = 7 * gib;
  load.text = "4/4 cards";
  board.apply(load, start + 7s);
  CHECK(board.block(start + 7s) == "load     transformer [########        ] 7.00/14.0 GiB  1.00 GiB/s  eta 0:07  4/4 cards\n");
}

TEST_CASE("progress: a narrow terminal cuts lines, never wraps them", "[launch]") {
  ProgressBoard board;
  board.apply(steps(Kind::advanced, 3), start);
  CHECK(board.block(start, 20) == "denoise  [#         \n");
}

TEST_CASE("progress: a pipe gets one line per tenth", "[launch]") {
  ProgressBoard board;
  std::size_t lines = 0;
  const auto tell = [&](const ProgressEvent& event, Time now) {
    board.apply(event, now);
    const auto text = board.plain(event, now);
    lines += static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
  };
  tell(steps(Kind::started, 0), start);
  for (int i = 1; i <= 36; ++i) tell(steps(Kind::advanced, static_cast<std::uint64_t>(i)), start + i * 1s);
  tell(steps(Kind::done, 0), start + 36s);
  CHECK(lines == 1 + 10 + 1);
}

TEST_CASE("progress: a repeated step after a loss moves the bar back and does not count as pace", "[launch]") {
  ProgressBoard board;
  board.apply(steps(Kind::started, 0), start);
  board.apply(steps(Kind::advanced, 5), start + 5s);
  board.apply(steps(Kind::advanced, 4), start + 20s);
  CHECK(board.block(start + 20s).find("4/36 steps  1.00 it/s") != std::string::npos);
}

TEST_CASE("progress: a failed stage says why", "[launch]") {
  ProgressBoard board;
  board.apply(steps(Kind::started, 0), start);
  auto failed = steps(Kind::failed, 0);
  failed.text = "card n1:2 was lost";
  board.apply(failed, start + 2s);
  CHECK(board.block(start + 9s) == "denoise  failed after 2.00 s: card n1:2 was lost\n");
}

TEST_CASE("progress: JSON events are one object a line, whatever the text holds", "[launch]") {
  ProgressBoard board;
  auto event = steps(Kind::advanced, 9);
  event.text = "a\nb \xff";
  board.apply(steps(Kind::started, 0), start);
  board.apply(event, start + 9s);
  const auto line = board.json(event, start + 9s);
  CHECK(std::count(line.begin(), line.end(), '\n') == 1);
  const auto json = Json::parse(line);
  CHECK(json["event"] == "advanced");
  CHECK(json["completed"] == 9);
  CHECK(json["total"] == 36);
  CHECK(json["eta_seconds"] == Approx(27));
}

}  // namespace orrery::launch
