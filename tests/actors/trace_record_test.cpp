// What comes from other processes is put together: texts keep their meaning over batches, clocks are believed when checked.

#include "actors/trace_record.hpp"

#include <catch2/catch.hpp>

using namespace orrery;
using namespace orrery::actors;

namespace {

trace::Batch batch_with_text(std::uint32_t id, const std::string& text) {
  trace::Batch batch;
  batch.events.resize(1);
  batch.events[0] = {};
  batch.events[0].text = id;
  batch.texts = {{id, text}};
  batch.tracks = {{3, "row"}};
  return batch;
}

ClockOffsetEstimator round_trips(std::int64_t ahead) {
  ClockOffsetEstimator clock;
  for (std::int64_t i = 0; i < 5; ++i) clock.add({i * 1000, i * 1000 + ahead + 40, i * 1000 + 100});
  return clock;
}

}  // namespace

TEST_CASE("trace record: a text's number means its own batch's text", "[actors]") {
  TraceSource source;
  add_batch(source, batch_with_text(1, "before the lease ran out"));
  add_batch(source, batch_with_text(1, "after it was recorded again"));
  add_batch(source, batch_with_text(0, "of nobody"));
  REQUIRE(source.events.size() == 3);
  CHECK(source.texts.at(source.events[0].text) == "before the lease ran out");
  CHECK(source.texts.at(source.events[1].text) == "after it was recorded again");
  CHECK(source.texts.at(source.events[2].text).empty());
  CHECK(source.tracks.at(3) == "row");
}

TEST_CASE("trace record: the same clock is exact, a clock of the same name that reads otherwise is not believed", "[actors]") {
  TraceSource source;
  settle_clock(source, round_trips(0), true);
  CHECK(source.same_clock);
  CHECK(source.clock.error == 0);
  CHECK(source.measured.error == 50);
  CHECK(source.measured.round_trips == 5);
  TraceSource copied;
  settle_clock(copied, round_trips(7'000'000), true);
  CHECK_FALSE(copied.same_clock);
  CHECK(copied.clock.offset == 7'000'000 - 10);
  TraceSource stranger;
  settle_clock(stranger, round_trips(0), false);
  CHECK_FALSE(stranger.same_clock);
  CHECK(stranger.clock.error == 50);
}
