// The recorder: off it keeps nothing; threads keep apart what is theirs; full it drops and counts; nobody's recording ends;
// what is packed comes back, and what is damaged is refused.

#include "base/trace.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include <catch2/catch.hpp>

using namespace orrery;

namespace {

/// Recording, and nothing left of it afterwards.
struct Recording {
  explicit Recording(std::uint64_t bytes_max = trace::bytes_max_default) { trace::record(std::chrono::hours(1), bytes_max); }
  ~Recording() { trace::stop(); }
};

std::vector<trace::Event> everything() { return trace::take(SIZE_MAX).events; }

bool same(const trace::Event& a, const trace::Event& b) {
  return a.begin == b.begin && a.end == b.end && a.request == b.request && a.flow == b.flow && a.value == b.value && a.span == b.span &&
         a.step == b.step && a.text == b.text && a.track == b.track && a.kind == b.kind && a.category == b.category && a.name == b.name;
}

}  // namespace

TEST_CASE("trace: off, nothing is kept", "[base]") {
  REQUIRE_FALSE(trace::enabled());
  {
    const trace::Span span(trace::track("row"), trace::Category::compute, "matrix");
    trace::counter("memory", 7);
    trace::instant(trace::track("row"), trace::Category::incident, "lost");
    trace::flow_out(1, 2);
  }
  CHECK(everything().empty());
}

TEST_CASE("trace: a span that began before the recording is not in it", "[base]") {
  {
    const trace::Span span(trace::track("row"), trace::Category::compute, "early");
    trace::record(std::chrono::hours(1));
  }
  CHECK(everything().empty());
  trace::stop();
}

TEST_CASE("trace: what lies within a span has its step, request and track", "[base]") {
  const Recording on;
  const auto outer_row = trace::track("outer"), inner_row = trace::track("inner");
  {
    const trace::Span outer(outer_row, trace::Category::step, "step", {4, 12, 0, {}});
    trace::flow_out(99, 1000);
    {
      trace::Span inner(inner_row, trace::Category::exchange, "reduce");
      inner.set_bytes(64);
      trace::flow_in(98, 2000);
    }
    trace::flow_out(97, 0);
  }
  trace::flow_out(96, 0);
  const auto events = everything();
  REQUIRE(events.size() == 6);
  const auto find = [&](std::uint64_t flow) { return *std::find_if(events.begin(), events.end(), [&](const auto& e) { return e.flow == flow && e.kind != trace::Kind::span; }); };
  const auto named = [&](std::string_view name) {
    return *std::find_if(events.begin(), events.end(), [&](const auto& e) { return e.kind == trace::Kind::span && trace::name_of(e) == name; });
  };
  const auto outer = named("step"), inner = named("reduce");
  CHECK(inner.request == 4);
  CHECK(inner.step == 12);
  CHECK(inner.value == 64);
  CHECK(inner.track == inner_row);
  CHECK(inner.flow == outer.span);
  CHECK(outer.flow == 0);
  CHECK(outer.begin <= inner.begin);
  CHECK(inner.end <= outer.end);
  CHECK(find(99).span == outer.span);
  CHECK(find(99).track == outer_row);
  CHECK(find(98).span == inner.span);
  CHECK(find(98).track == inner_row);
  CHECK(find(98).value == 2000);
  CHECK(find(97).span == outer.span);
  CHECK(find(96).span == 0);
  CHECK(find(96).step == trace::no_step);
}

TEST_CASE("trace: what is here lies on the track around it", "[base]") {
  const Recording on;
  {
    const trace::Span outer(trace::track("outer"), trace::Category::step, "step");
    const trace::Span wait(trace::here, trace::Category::wait, "wait");
  }
  { const trace::Span alone(trace::here, trace::Category::wait, "alone"); }
  const auto events = everything();
  REQUIRE(events.size() == 3);
  CHECK(events[0].track == trace::track("outer"));
  CHECK(events[2].track == trace::data_plane);
}

TEST_CASE("trace: every thread's events come out, each with its own number", "[base]") {
  const Recording on;
  const auto row = trace::track("row");
  constexpr std::uint32_t thread_count = 4, each = 3000;
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < thread_count; ++t)
    threads.emplace_back([&, t] {
      for (std::uint32_t i = 0; i < each; ++i) const trace::Span span(row, trace::Category::compute, "work", {t + 1, i, 0, {}});
    });
  std::map<std::uint64_t, std::uint32_t> next;  // By thread: the step that is due.
  std::set<std::uint32_t> numbers;
  const auto check = [&](const trace::Batch& batch) {
    for (const auto& event : batch.events) {
      REQUIRE(event.step == next[event.request]++);  // In order.
      REQUIRE(event.end >= event.begin);
      REQUIRE(numbers.insert(event.span).second);
    }
  };
  for (int i = 0; i < 50; ++i) check(trace::take(100));  // While they write.
  for (auto& thread : threads) thread.join();
  for (;;) {
    const auto batch = trace::take(1000);
    check(batch);
    if (!batch.more) break;
  }
  CHECK(numbers.size() == thread_count * each);
  CHECK(trace::take(1).dropped == 0);
}

TEST_CASE("trace: a full recorder drops, counts, and goes on once there is room", "[base]") {
  const Recording on(100'000);  // Two blocks of 512 events.
  const auto row = trace::track("row");
  for (std::uint32_t i = 0; i < 5000; ++i) trace::complete(row, trace::Category::copy, "copy", Time{}, Time{}, {0, i, 0, {}});
  auto batch = trace::take(SIZE_MAX);
  CHECK(batch.events.size() == 1024);
  CHECK(batch.dropped == 5000 - 1024);
  trace::instant(row, trace::Category::copy, "again");
  batch = trace::take(SIZE_MAX);
  REQUIRE(batch.events.size() == 1);
  CHECK(batch.dropped == 5000 - 1024);
}

TEST_CASE("trace: a recording that nobody asks for any more ends by itself", "[base]") {
  trace::record(Duration{});
  CHECK(trace::enabled());
  trace::instant(trace::track("row"), trace::Category::control, "late");
  CHECK_FALSE(trace::enabled());
  CHECK(everything().empty());
}

TEST_CASE("trace: a long name is cut between characters", "[base]") {
  trace::Event event;
  trace::set_name(event, std::string(38, 'a') + "\xC3\xA9");  // Its second byte would be the 40th.
  CHECK(trace::name_of(event) == std::string(38, 'a'));
  trace::set_name(event, std::string(37, 'a') + "\xC3\xA9");
  CHECK(trace::name_of(event) == std::string(37, 'a') + "\xC3\xA9");
  trace::set_name(event, std::string(1000, 'b'));
  CHECK(trace::name_of(event) == std::string(39, 'b'));
}

TEST_CASE("trace: what is packed comes back", "[base]") {
  const Recording on;
  const auto a = trace::track("n1:0 compute"), b = trace::track("\"row\"\n");
  {
    const trace::Span outer(a, trace::Category::step, "step 3", {UINT64_MAX, 0, 0, {}});
    for (std::uint32_t i = 0; i < 2000; ++i) {
      const trace::Span inner(b, trace::Category::compute, i % 2 ? "odd" : "even", {0, i, i * 1000ULL, {}});
      trace::flow_out(trace::flow_id({i}), i);
    }
    trace::counter("n1:0 memory", UINT64_MAX);
    trace::instant(a, trace::Category::incident, "lost", {0, trace::no_step, 0, "node n1 was silent for 912 ms"});
    trace::complete(a, trace::Category::epoch, "epoch", Time(Duration(-5)), Time(Duration(1)));
  }
  const auto batch = trace::take(SIZE_MAX);
  REQUIRE(batch.events.size() == 4004);
  const auto bytes = trace::pack(batch);
  CHECK(bytes.size() < 4004 * 30);
  const auto copy = trace::unpack(bytes);
  REQUIRE(copy.ok());
  CHECK(copy.value().tracks == batch.tracks);
  CHECK(copy.value().texts == batch.texts);
  REQUIRE(batch.texts.size() == 1);
  CHECK(batch.texts[0].second == "node n1 was silent for 912 ms");
  REQUIRE(copy.value().events.size() == batch.events.size());
  for (std::size_t i = 0; i < batch.events.size(); ++i) REQUIRE(same(copy.value().events[i], batch.events[i]));
}

TEST_CASE("trace: a damaged piece is refused or harmless", "[base]") {
  const Recording on;
  const auto row = trace::track("row");
  for (std::uint32_t i = 0; i < 20; ++i) trace::complete(row, trace::Category::copy, "copy", Time{}, Time(Duration(i)), {i, i, i, "text"});
  const auto bytes = trace::pack(trace::take(SIZE_MAX));
  REQUIRE(trace::unpack(bytes).ok());
  for (std::size_t size = 0; size < bytes.size(); ++size) CHECK_FALSE(trace::unpack(bytes.substr(0, size)).ok());
  CHECK_FALSE(trace::unpack(bytes + "x").ok());
  CHECK_FALSE(trace::unpack(std::string(64, '\xFF')).ok());
  for (std::size_t at = 0; at < bytes.size(); ++at)
    for (const int bit : {0, 3, 6, 7}) {
      auto damaged = bytes;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      const auto batch = trace::unpack(damaged);
      if (!batch.ok()) continue;
      for (const auto& event : batch.value().events) {
        REQUIRE(static_cast<std::size_t>(event.kind) < trace::kind_count);
        REQUIRE(static_cast<std::size_t>(event.category) < trace::category_count);
        REQUIRE(event.end >= event.begin);
        REQUIRE(event.name.back() == '\0');
      }
    }
}

TEST_CASE("trace: an arrow's id depends on every word and on their order", "[base]") {
  std::set<std::uint64_t> ids;
  for (std::uint64_t a = 0; a < 30; ++a)
    for (std::uint64_t b = 0; b < 30; ++b) ids.insert(trace::flow_id({a, b}));
  CHECK(ids.size() == 900);
  CHECK(trace::flow_id({1, 2}) == trace::flow_id({1, 2}));
  CHECK(trace::flow_id({1}) != trace::flow_id({1, 0}));
}
