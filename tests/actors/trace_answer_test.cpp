// A process's answers to whoever reads its trace: one reader at a time, everything once, and an end.

#include "actors/trace_answer.hpp"

#include <limits>

#include <catch2/catch.hpp>

#include "base/trace.hpp"

using namespace orrery;
using namespace orrery::actors;

namespace {

AskTrace question(std::uint64_t reader, double lease_seconds, std::uint32_t events_max) {
  AskTrace ask;
  ask.reader = reader;
  ask.lease_seconds = lease_seconds;
  ask.events_max = events_max;
  return ask;
}

std::size_t events_in(const TracePiece& piece) {
  if (piece.events.empty()) return 0;
  const auto batch = trace::unpack(piece.events);
  REQUIRE(batch.ok());
  return batch.value().events.size();
}

void work(int count) {
  for (int i = 0; i < count; ++i) const trace::Span span(trace::track("row"), trace::Category::compute, "work");
}

}  // namespace

TEST_CASE("trace answer: what was recorded is handed over once, in pieces, and the last piece ends it", "[actors]") {
  const auto before = trace::now();
  const auto first = answer_trace(question(1, 10, 0), "n1");
  REQUIRE(first.failure.ok());
  CHECK(first.node == "n1");
  CHECK(first.now >= before);
  CHECK(first.events.empty());
  CHECK(trace::enabled());
  work(2000);
  const auto piece = answer_trace(question(1, 10, 600), "n1");
  CHECK(piece.more);
  const auto early_end = answer_trace(question(1, 0, 100), "n1");
  CHECK(early_end.more);
  CHECK(trace::enabled());  // There is more to hand over.
  const auto last = answer_trace(question(1, 0, 100'000), "n1");
  CHECK_FALSE(last.more);
  CHECK_FALSE(trace::enabled());
  CHECK(events_in(piece) + events_in(early_end) + events_in(last) == 2000);
}

TEST_CASE("trace answer: a second reader is refused until the first one has ended or gone", "[actors]") {
  REQUIRE(answer_trace(question(1, 60, 0), "").failure.ok());
  work(10);
  const auto refused = answer_trace(question(2, 60, 100), "");
  CHECK(static_cast<ErrorCode>(refused.failure.code) == ErrorCode::pool_exhausted);
  CHECK(refused.events.empty());
  CHECK(events_in(answer_trace(question(1, 0, 100), "")) == 10);
  CHECK(answer_trace(question(2, 1e-9, 0), "").failure.ok());
  // Gone: its lease is over, and what it left is nobody's.
  CHECK(answer_trace(question(3, 60, 100), "").failure.ok());
  work(3);
  CHECK(events_in(answer_trace(question(3, 0, 100), "")) == 3);
}

TEST_CASE("trace answer: what cannot be is taken for the least harm", "[actors]") {
  CHECK(answer_trace(question(1, std::numeric_limits<double>::quiet_NaN(), 10), "").failure.ok());
  CHECK_FALSE(trace::enabled());
  CHECK(answer_trace(question(1, std::numeric_limits<double>::infinity(), UINT32_MAX), "").failure.ok());
  CHECK(trace::enabled());
  CHECK(answer_trace(question(1, -1, 0), "").failure.ok());
  CHECK_FALSE(trace::enabled());
}
