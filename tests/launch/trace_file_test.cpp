// The file of a trace: golden text with hostile names; rows where spans overlap; arrows with both ends; clocks applied.

#include "launch/trace_file.hpp"

#include <catch2/catch.hpp>

#include "base/json.hpp"
#include "launch/version.hpp"

using namespace orrery;
using namespace orrery::launch;
using actors::TraceRecord;
using actors::TraceSource;

namespace {

trace::Event event(trace::Kind kind, trace::Track track, trace::Category category, const std::string& name, std::int64_t begin, std::int64_t end) {
  trace::Event made;
  made.begin = begin;
  made.end = end;
  made.request = made.flow = made.value = 0;
  made.span = made.text = 0;
  made.step = trace::no_step;
  made.track = track;
  made.kind = kind;
  made.category = category;
  trace::set_name(made, name);
  return made;
}

trace::Event span(trace::Track track, const std::string& name, std::int64_t begin, std::int64_t end, std::uint32_t number,
                  trace::Category category = trace::Category::compute) {
  auto made = event(trace::Kind::span, track, category, name, begin, end);
  made.span = number;
  return made;
}

trace::Event arrow(trace::Kind kind, std::uint64_t id, std::int64_t at, std::uint32_t within) {
  auto made = event(kind, 0, trace::Category::exchange, kind == trace::Kind::flow_out ? "send" : "receive", at, at);
  made.flow = id;
  made.span = within;
  return made;
}

TraceSource source(const std::string& process, std::vector<trace::Event> events) {
  TraceSource made;
  made.process = process;
  made.pid = 77;
  made.tracks = {{0, "data plane"}, {1, "n1:0 compute"}, {2, "requests"}};
  made.events = std::move(events);
  return made;
}

std::string text_of(const TraceRecord& record, TraceCounts* counts = nullptr) {
  std::string text;
  const auto written = write_trace(record, [&](std::string_view piece) -> Status {
    text += piece;
    return Done{};
  });
  REQUIRE(written.ok());
  if (counts != nullptr) *counts = written.value();
  return text;
}

Json json_of(const TraceRecord& record, TraceCounts* counts = nullptr) {
  const auto parsed = parse_json(text_of(record, counts), "trace");
  REQUIRE(parsed.ok());
  return parsed.value();
}

/// The slice of this name.
Json slice(const Json& file, const std::string& name) {
  for (const auto& each : file["traceEvents"])
    if (each["ph"] == "X" && each["name"] == name) return each;
  FAIL("no slice " << name);
  return {};
}

std::string row_of(const Json& file, const Json& slice) {
  for (const auto& each : file["traceEvents"])
    if (each["ph"] == "M" && each["name"] == "thread_name" && each["pid"] == slice["pid"] && each["tid"] == slice["tid"])
      return each["args"]["name"].get<std::string>();
  return "";
}

}  // namespace

TEST_CASE("trace file: golden text, hostile names included", "[launch]") {
  TraceRecord record;
  record.begin = 1'000'000;
  record.wall_seconds = 1.5;
  record.notes = {"node \"n2\"\n did not answer"};
  auto inner = span(1, "block3.\"q\"\\\n\x01", 1'001'500, 1'003'000, 8);
  inner.request = 4;
  inner.step = 11;
  inner.value = 64;
  auto lost = event(trace::Kind::instant, 1, trace::Category::incident, "bad \xFF utf8", 1'004'000, 1'004'000);
  lost.text = 1;
  auto memory = event(trace::Kind::counter, 0, trace::Category::control, "n1:0 memory", 1'002'000, 1'002'000);
  memory.value = UINT64_MAX;
  auto n1 = source("n1</script>", {inner, lost, memory});
  n1.texts.push_back("why: \"\\\x7F\xC3\xA9");
  n1.dropped = 3;
  n1.clock = n1.measured = ClockOffset{0, 1500, 0, 0, 9};
  record.sources = {n1};
  auto text = text_of(record);
  const auto program = OrderedJson(version_line()).dump();
  text.replace(text.find(program), program.size(), "\"PROGRAM\"");
  CHECK(text ==
        R"({"displayTimeUnit":"ms","otherData":{"program":"PROGRAM","times":"microseconds since recording began, by the clock of the process that wrote this file","began_unix_seconds":1.5,"processes":[{"name":"n1</script>","pid":1,"system_pid":77,"clock":{"same_clock":false,"ahead_us":0.0,"error_us":1.5,"round_trips":9,"measured_ahead_us":0.0,"measured_error_us":1.5},"events":3,"dropped":3}],"arrows":{"drawn":0,"without_other_end":0,"backwards":0},"notes":["node \"n2\"\n did not answer"]},"traceEvents":[
{"ph":"M","name":"process_name","pid":1,"args":{"name":"n1</script>"}},
{"ph":"M","name":"process_sort_index","pid":1,"args":{"sort_index":1}},
{"ph":"M","name":"thread_name","pid":1,"tid":1,"args":{"name":"n1:0 compute"}},
{"ph":"M","name":"thread_sort_index","pid":1,"tid":1,"args":{"sort_index":1}},
{"ph":"X","name":"block 3","cat":"block","pid":1,"tid":1,"ts":1.500,"dur":1.500},
{"ph":"X","name":"block3.\"q\"\\\n\u0001","cat":"compute","pid":1,"tid":1,"ts":1.500,"dur":1.500,"args":{"request":4,"step":12,"block":3,"bytes":64}},
{"ph":"i","s":"t","name":"bad )" "\xEF\xBF\xBD" R"( utf8","cat":"incident","pid":1,"tid":1,"ts":4.000,"args":{"text":"why: \"\\)" "\x7F\xC3\xA9" R"("}},
{"ph":"C","name":"n1:0 memory","pid":1,"ts":2.000,"args":{"value":18446744073709551615}}
]}
)");
}

TEST_CASE("trace file: spans that overlap without nesting get rows of their own, children stay with their parents", "[launch]") {
  TraceRecord record;
  auto child = span(1, "child", 6'000, 7'000, 3, trace::Category::wait);
  child.flow = 2;  // Within "second", though it would fit into "first".
  record.sources = {source("n1", {span(1, "first", 0, 10'000, 1, trace::Category::exchange), child,
                                  span(1, "second", 5'000, 15'000, 2, trace::Category::exchange),
                                  span(1, "third", 20'000, 21'000, 4, trace::Category::exchange)})};
  const auto file = json_of(record);
  CHECK(row_of(file, slice(file, "first")) == "n1:0 compute");
  CHECK(row_of(file, slice(file, "second")) == "n1:0 compute (2)");
  CHECK(row_of(file, slice(file, "child")) == "n1:0 compute (2)");
  CHECK(row_of(file, slice(file, "third")) == "n1:0 compute");
}

TEST_CASE("trace file: commands of one block and step lie in one slice", "[launch]") {
  TraceRecord record;
  auto other_step = span(1, "block1.a", 50, 60, 5);
  other_step.step = 1;
  record.sources = {source("n1", {span(1, "rope", 0, 10, 1), span(1, "block0.a", 10, 20, 2), span(1, "block0.b", 20, 30, 3),
                                  span(1, "block1.b", 35, 45, 4), other_step})};
  const auto file = json_of(record);
  std::vector<std::string> blocks;
  for (const auto& each : file["traceEvents"])
    if (each.value("cat", "") == "block") blocks.push_back(each["name"].get<std::string>() + " " + each["ts"].dump() + " " + each["dur"].dump());
  CHECK(blocks == std::vector<std::string>{"block 0 0.01 0.02", "block 1 0.035 0.01", "block 1 0.05 0.01"});
}

TEST_CASE("trace file: each request has its own row", "[launch]") {
  TraceRecord record;
  auto four = span(2, "request 4", 0, 100, 1, trace::Category::request), stage = span(2, "denoiser", 50, 90, 2, trace::Category::stage),
       five = span(2, "request 5", 10, 95, 3, trace::Category::request);
  four.request = stage.request = 4;
  five.request = 5;
  record.sources = {source("coordinator", {four, stage, five})};
  const auto file = json_of(record);
  CHECK(row_of(file, slice(file, "denoiser")) == "request 4");
  CHECK(row_of(file, slice(file, "request 5")) == "request 5");
}

TEST_CASE("trace file: arrows go from span to span by the reader's clock; those without another end are counted", "[launch]") {
  TraceRecord record;
  constexpr std::int64_t ahead = 5'000'000'000;
  auto n1 = source("n1", {span(1, "sends", 1'000, 3'000, 1), arrow(trace::Kind::flow_out, 99, 2'000, 1), arrow(trace::Kind::flow_out, 98, 2'500, 1),
                          arrow(trace::Kind::flow_out, 97, 9'000, 0)});
  auto n2 = source("n2", {span(1, "receives", ahead + 3'500, ahead + 6'000, 1), arrow(trace::Kind::flow_in, 99, ahead + 4'000, 1),
                          arrow(trace::Kind::flow_in, 97, ahead + 8'000, 12345)});
  n2.clock.offset = ahead;
  record.sources = {n2, n1};
  TraceCounts counts;
  const auto file = json_of(record, &counts);
  CHECK(counts.arrows == 2);
  CHECK(counts.unmatched == 1);
  CHECK(counts.backwards == 1);  // 97 arrives a microsecond before it is sent.
  const auto sends = slice(file, "sends"), receives = slice(file, "receives");
  CHECK(receives["ts"] == 3.5);
  std::vector<Json> begins, ends;
  for (const auto& each : file["traceEvents"]) {
    if (each["ph"] == "s") begins.push_back(each);
    if (each["ph"] == "f") ends.push_back(each);
  }
  REQUIRE(begins.size() == 2);
  CHECK(begins[0]["ts"] == 2.0);
  CHECK(begins[0]["pid"] == sends["pid"]);
  CHECK(begins[0]["tid"] == sends["tid"]);
  CHECK(ends[0]["id"] == begins[0]["id"]);
  CHECK(ends[0]["ts"] == 4.0);
  CHECK(ends[0]["tid"] == receives["tid"]);
  CHECK(ends[0]["bp"] == "e");
  // Without a span around it, an arrow's end has a slice of its own.
  CHECK(slice(file, "send")["ts"] == begins[1]["ts"]);
  CHECK(row_of(file, slice(file, "receive")) == "data plane");
}

TEST_CASE("trace file: what began before the recording is cut off there, and nothing has a negative duration", "[launch]") {
  TraceRecord record;
  record.begin = 10'000;
  auto drifting = source("n1", {span(1, "early", 0, 12'000, 1), span(1, "earlier", 0, 5'000, 2), span(1, "short", 12'000, 12'001, 3)});
  drifting.clock.drift = 0.3;
  drifting.clock.at = 1'000'000;
  record.sources = {drifting};
  const auto file = json_of(record);
  for (const auto& each : file["traceEvents"]) {
    if (each["ph"] != "X") continue;
    CHECK(each["ts"].get<double>() >= 0);
    CHECK(each["dur"].get<double>() >= 0);
  }
}

TEST_CASE("trace file: a second life of a node is a process of its own; processes stand in order", "[launch]") {
  TraceRecord record;
  auto again = source("n2", {});
  again.life = 2;
  record.sources = {again, source("n10", {}), source("n2", {}), source("coordinator", {}), source("client", {})};
  const auto file = json_of(record);
  std::vector<std::string> names;
  for (const auto& each : file["otherData"]["processes"]) names.push_back(each["name"]);
  CHECK(names == std::vector<std::string>{"client", "coordinator", "n2", "n2 (life 2)", "n10"});
}

TEST_CASE("trace file: what the disk refuses is the error", "[launch]") {
  TraceRecord record;
  const auto written = write_trace(record, [](std::string_view) -> Status { return Error{ErrorCode::io_failed, "No space left on device"}; });
  REQUIRE_FALSE(written.ok());
  CHECK(written.error().message == "No space left on device");
}
