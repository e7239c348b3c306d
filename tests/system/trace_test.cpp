// --trace on two nodes with two cards each: one file, in which every card, every step and both ends of every message are
// found, by clocks that agree; and the video is the one that is made without.

#include <cmath>
#include <map>
#include <set>

#include "tests/support/program.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

const std::vector<std::string> small = {"--steps", "4", "--frames", "9", "--seed", "3"};

struct Row {
  std::string process, name;
  auto operator<=>(const Row&) const = default;
};

struct Timeline {
  Json file;
  std::map<std::pair<int, int>, Row> rows;
  explicit Timeline(const std::string& path) {
    auto parsed = read_json_file(path);
    REQUIRE(parsed.ok());
    file = std::move(parsed).value();
    std::map<int, std::string> processes;
    for (const auto& each : events("M"))
      if (each["name"] == "process_name") processes[each["pid"]] = each["args"]["name"];
    for (const auto& each : events("M"))
      if (each["name"] == "thread_name") rows[{each["pid"], each["tid"]}] = {processes[each["pid"]], each["args"]["name"]};
  }
  std::vector<Json> events(const std::string& phase) const {
    std::vector<Json> found;
    for (const auto& each : file["traceEvents"])
      if (each["ph"] == phase) found.push_back(each);
    return found;
  }
  Row row_of(const Json& event) const { return rows.at({event["pid"], event["tid"]}); }
};

}  // namespace

TEST_CASE("generate --trace: every card, every step and both ends of every message stand in the file", "[system]") {
  ScratchFolder scratch;
  const auto cluster = scratch.write("cluster.yaml",
                                     "apiVersion: orrery/v1\nkind: Cluster\nmetadata: {name: c}\nspec:\n  nodes: [{hosts: 'n[1-2]', cards: {type: cpu, count: 2, threads: 1}}]\n"
                                     "  data: {transport: tcp}\n  launch: {ready_timeout: 120s}\n---\napiVersion: orrery/v1\nkind: Deployment\nmetadata: {name: d}\n"
                                     "spec:\n  cluster: c\n  model: cosmos-tiny\n  parallelism: {cfg: 1, tensor: 4}\n");
  const std::vector<std::string> on_four = {"-f", cluster, "-f", configs + "/models/cosmos-tiny.yaml"};
  const auto path = scratch.file("t.json");
  const auto traced = run_command(scratch, generate("a red circle", scratch.file("traced.y4m"), on_four + small + std::vector<std::string>{"--trace", path}));
  INFO(traced.err);
  REQUIRE(traced.exit_code == 0);
  CHECK(traced.err.find("t.json: ") != std::string::npos);
  CHECK(traced.err.find("warning") == std::string::npos);
  check_clean(scratch);

  const Timeline timeline(path);
  std::map<Row, std::set<int>> steps;  // That commands of the denoiser were computed in, by row.
  std::map<Row, std::vector<std::pair<double, double>>> slices;
  std::set<std::string> categories;
  for (const auto& each : timeline.events("X")) {
    REQUIRE(each["ts"].get<double>() >= 0);
    REQUIRE(each["dur"].get<double>() >= 0);
    const auto row = timeline.row_of(each);
    categories.insert(each["cat"]);
    slices[row].emplace_back(each["ts"], each["ts"].get<double>() + each["dur"].get<double>());
    if (each["cat"] == "compute" && each["args"].contains("block") && each["args"].contains("step")) steps[row].insert(each["args"]["step"].get<int>());
  }
  for (const char* category : {"compute", "exchange", "wait", "step", "stage", "request", "epoch", "block"}) {
    INFO(category);
    CHECK(categories.contains(category));
  }
  for (const auto& [node, card] : {std::pair("n1", "n1:0"), std::pair("n1", "n1:1"), std::pair("n2", "n2:0"), std::pair("n2", "n2:1")}) {
    INFO(card);
    const auto computed = steps[{node, std::string(card) + " compute"}];
    CHECK(computed == std::set<int>{1, 2, 3});  // The last step of the schedule changes nothing: it is not computed.
  }
  // Slices of a row nest or follow one another: else viewers draw them wrongly.
  for (auto& [row, all] : slices) {
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first != b.first ? a.first < b.first : a.second > b.second; });
    std::vector<double> open;
    for (const auto& [begin, end] : all) {
      while (!open.empty() && open.back() <= begin + 1e-4) open.pop_back();
      INFO(row.process << " " << row.name << " " << begin);
      if (!open.empty()) REQUIRE(end <= open.back() + 1e-4);
      open.push_back(end);
    }
  }
  // Arrows: each begins once and ends once, later, elsewhere; some go from node to node.
  std::map<int, Json> begins;
  for (const auto& each : timeline.events("s")) CHECK(begins.emplace(each["id"].get<int>(), each).second);
  std::set<int> ended;
  std::size_t between_nodes = 0;
  for (const auto& each : timeline.events("f")) {
    const auto begin = begins.find(each["id"].get<int>());
    REQUIRE(begin != begins.end());
    REQUIRE(ended.insert(begin->first).second);
    REQUIRE(each["ts"].get<double>() >= begin->second["ts"].get<double>());
    between_nodes += each["pid"] != begin->second["pid"] ? 1 : 0;
  }
  CHECK(ended.size() == begins.size());
  CHECK(between_nodes > 100);
  const auto& about = timeline.file["otherData"];
  CHECK(about["arrows"]["backwards"] == 0);
  // A message may be under way when recording ends, no more.
  CHECK(about["arrows"]["without_other_end"].get<std::size_t>() <= 8);
  CHECK(about["notes"].empty());
  // All clocks are this machine's: whatever round trips say has to agree with that.
  REQUIRE(about["processes"].size() == 4);
  for (const auto& process : about["processes"]) {
    INFO(process.dump());
    CHECK(process["dropped"] == 0);
    CHECK(process["events"].get<int>() > 0);
    if (process["name"] == "client") continue;
    const auto& clock = process["clock"];
    CHECK(clock["round_trips"].get<int>() >= 8);
    CHECK(std::abs(clock["measured_ahead_us"].get<double>()) <= clock["measured_error_us"].get<double>() + 0.002);
  }

  const auto plain = run_command(scratch, generate("a red circle", scratch.file("plain.y4m"), on_four + small));
  REQUIRE(plain.exit_code == 0);
  CHECK(frames_digest(scratch.file("plain.y4m")) == frames_digest(scratch.file("traced.y4m")));
}

TEST_CASE("generate --trace: a file that cannot be written is told before any work", "[system]") {
  ScratchFolder scratch;
  const auto missing = run_command(scratch, generate("a red circle", scratch.file("v.y4m"), small + std::vector<std::string>{"--trace", scratch.file("no/t.json")}));
  check_refused(missing, 1, {"the trace cannot be written", "no/t.json"});
  const auto folder = run_command(scratch, generate("a red circle", scratch.file("v.y4m"), small + std::vector<std::string>{"--trace", scratch.path()}));
  check_refused(folder, 2, {"names a folder"});
  CHECK_FALSE(std::filesystem::exists(scratch.file("v.y4m")));
  CHECK(files_like(scratch, "t.json").empty());
  check_clean(scratch);
}
