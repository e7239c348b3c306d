// `orrery bench` as people run it: links between real processes, an experiment on a real cluster, a Ctrl-C in the middle, two
// results beside each other. Sizes are small; nothing here depends on how fast the machine is.

#include <catch2/catch.hpp>

#include "tests/support/program.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

const std::string small_experiment = R"(
apiVersion: orrery/v1
kind: Cluster
metadata: {name: small}
spec:
  nodes: [{hosts: "n[1-2]", cards: {type: cpu, count: 1, threads: 1}}]
---
apiVersion: orrery/v1
kind: Experiment
metadata: {name: small}
spec:
  scaling: {kind: strong, over: cards, baseline: 1}
  matrix: {cards: [1, 2], parallelism.cfg: 1}
  workload: {request: {num_frames: 9, num_inference_steps: STEPS, size: 64x64, seed: 3}}
  repeat: {warmup: WARMUP, min_runs: 2}
  assert: ["output_sha256 is constant", "speedup(cards=2) < LIMIT"]
)";

std::string experiment(const ScratchFolder& scratch, const std::string& steps, const std::string& limit = "1000", const std::string& warmup = "1") {
  auto text = small_experiment;
  for (const auto& [word, by] : {std::pair("STEPS", &steps), std::pair("LIMIT", &limit), std::pair("WARMUP", &warmup)}) text.replace(text.find(word), std::string(word).size(), *by);
  return scratch.write("experiment.yaml", text);
}

std::vector<std::string> bench(const ScratchFolder& scratch, const std::string& file, const std::vector<std::string>& more = {}) {
  return verb({"bench", "-f", file, "-f", configs + "/models/cosmos-tiny.yaml", "--dir", scratch.file("run")}) + more;
}

Json result_in(const ScratchFolder& scratch) {
  auto json = read_json_file(scratch.file("run/result.json"));
  REQUIRE(json.ok());
  return json.value();
}

std::string text_of_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {(std::istreambuf_iterator<char>(in)), {}};
}

}  // namespace

TEST_CASE("bench links: every collective is right between two and three processes, over every transport", "[system][bench]") {
  for (const std::string transport : {"ipc", "tcp", "auto"})
    for (const std::string op : {"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "sendrecv"}) {
      ScratchFolder scratch;
      const std::string ranks = op == "all_to_all" || op == "all_reduce" ? "3" : "2";
      const bool large = op == "all_reduce";  // More than one block.
      const auto result = run_command(scratch, verb({"bench", "links", "--op", op, "--ranks", ranks, "--transport", transport, "--min", large ? "5KiB" : "1KiB",
                                                     "--max", large ? "5MiB" : "64KiB", "--factor", large ? "1024" : "64", "--iterations", "3", "--repetitions", "2", "--warmup", "1", "-o", "json"}),
                                      std::chrono::minutes(1));
      INFO(op << " over " << transport << ": " << result.err);
      REQUIRE(result.exit_code == 0);
      const auto rows = Json::parse(result.out);
      REQUIRE(rows.size() == 2);
      for (const auto& row : rows) {
        CHECK(row["op"] == op);
        CHECK(row["wrong"] == 0);
        CHECK(row["ranks"] == std::stoi(ranks));
        CHECK(row["clock"] == "wall");
        CHECK(row["oversubscribed"].is_boolean());
        CHECK(row["time_us"].get<double>() > 0);
        CHECK(row["busbw_gbps"].get<double>() > 0);
        CHECK(row["algbw_gbps"].get<double>() > 0);
        if (transport != "auto") CHECK(row["transport"] == transport);
      }
      check_clean(scratch);
    }
}

TEST_CASE("bench links: Ctrl-C ends all ranks", "[system][bench]") {
  ScratchFolder scratch;
  bool acted = false;
  const auto result = run_command(scratch, verb({"bench", "links", "--min", "1KiB", "--max", "1KiB", "--iterations", "1000000", "--repetitions", "1000"}), std::chrono::minutes(1),
                                  [&](int pid, const std::string&, const std::string&) {
                                    if (!acted && process_with(scratch, "link-rank --rank 1") != 0) acted = ::kill(pid, SIGINT) == 0;
                                  });
  CHECK(acted);
  CHECK(result.exit_code == 130);
  CHECK(all_gone(scratch));
  check_clean(scratch);
}

TEST_CASE("bench: an experiment leaves rows, plots and the same bytes from one card and from two", "[system][bench]") {
  ScratchFolder scratch;
  const auto result = run_command(scratch, bench(scratch, experiment(scratch, "2"), {"-o", "json"}));
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const auto json = result_in(scratch);
  CHECK(Json::parse(result.out) == json);
  CHECK(json["state"] == "complete");
  REQUIRE(json["rows"].size() == 2);
  for (const auto& row : json["rows"]) {
    CHECK(row["clock"] == "wall");
    CHECK(row["warmup_runs"] == 1);
    CHECK(row["samples"]["frames_seconds"].size() == 2);
    CHECK(row["samples"]["latents_seconds"].size() == 2);
    CHECK(row["step_samples"].size() == 2);  // The schedule's last step has no work.
    CHECK(row["peak_card_bytes"].get<std::uint64_t>() > 0);
    CHECK(row["speedup"].get<double>() > 0);
  }
  CHECK(json["rows"][0]["output_sha256"] == json["rows"][1]["output_sha256"]);
  CHECK(json["rows"][0]["cards"] == 1);
  CHECK(json["rows"][1]["cards"] == 2);
  CHECK(json["rows"][1]["bytes_per_step"].get<double>() > 0);
  CHECK(json["rows"][1]["comm_fraction"].get<double>() > 0);
  for (const auto* file : {"config.yaml", "env.json", "events.jsonl", "table.csv", "report.md", "plots/speedup.svg", "configurations/000.yaml"})
    CHECK(std::filesystem::exists(scratch.file(std::string("run/") + file)));
  CHECK(text_of_file(scratch.file("run/plots/speedup.svg")).starts_with("<svg "));
  // What was run can be planned and checked again as it stands.
  CHECK(run_command(scratch, verb({"check", scratch.file("run/config.yaml")})).exit_code == 0);
  CHECK(run_command(scratch, verb({"plan", "-f", scratch.file("run/configurations/001.yaml")})).exit_code == 0);
  check_clean(scratch);

  // A run is never worse than itself, and twice the time is a regression.
  CHECK(run_command(scratch, verb({"bench", "compare", scratch.file("run"), scratch.file("run/result.json"), "--threshold", "1%"})).exit_code == 0);
  auto slower = json;
  for (auto& row : slower["rows"])
    for (auto& sample : row["samples"]["frames_seconds"]) sample = sample.get<double>() * 2;
  const auto worse = run_command(scratch, verb({"bench", "compare", scratch.file("run"), scratch.write("slower.json", slower.dump())}));
  CHECK(worse.exit_code == 7);
  CHECK(worse.out.find("WORSE") != std::string::npos);
  CHECK(run_command(scratch, verb({"bench", "compare", scratch.write("slower.json", slower.dump()), scratch.file("run")})).exit_code == 0);
}

TEST_CASE("bench: what is asserted and not so is exit code 7", "[system][bench]") {
  ScratchFolder scratch;
  const auto result = run_command(scratch, bench(scratch, experiment(scratch, "1", "0.001", "0")));
  INFO(result.err);
  CHECK(result.exit_code == 7);
  CHECK(result.out.find("FAILS speedup(cards=2) < 0.001") != std::string::npos);
  CHECK(result.out.find("ok    output_sha256 is constant") != std::string::npos);
}

TEST_CASE("bench: Ctrl-C leaves a result that says so, and no processes", "[system][bench]") {
  ScratchFolder scratch;
  bool acted = false;
  const auto result = run_command(scratch, bench(scratch, experiment(scratch, "1000", "1000", "0"), {"--progress", "plain"}), std::chrono::minutes(2),
                                  [&](int pid, const std::string&, const std::string&) {
                                    if (!acted && process_with(scratch, "node --name n2") != 0) acted = ::kill(pid, SIGINT) == 0;
                                  });
  INFO(result.err);
  CHECK(acted);
  CHECK(result.exit_code == 130);
  CHECK(result_in(scratch)["state"] == "interrupted");
  CHECK(std::filesystem::exists(scratch.file("run/env.json")));
  CHECK(all_gone(scratch));
  check_clean(scratch);
}

TEST_CASE("bench: a prediction needs no weights and says its clock", "[system][bench]") {
  ScratchFolder scratch;
  const auto result = run_command(scratch, verb({"bench", "-f", configs + "/experiments/atom_max_7b.yaml", "--dir", scratch.file("run")}));
  INFO(result.err);
  CHECK(result.exit_code == 0);
  const auto json = result_in(scratch);
  for (const auto& row : json["rows"]) {
    CHECK(row["clock"] == "model");
    CHECK(row["oversubscribed"] == false);
  }
  CHECK(text_of_file(scratch.file("run/plots/speedup.svg")).find("hollow: predicted") != std::string::npos);
  check_clean(scratch);
}

TEST_CASE("bench: wrong words are refused before anything starts", "[system][bench]") {
  ScratchFolder scratch;
  check_refused(run_command(scratch, verb({"bench"})), 2, {"needs an Experiment"});
  check_refused(run_command(scratch, verb({"bench", "links", "--min", "4"})), 2, {"--min '4'", "unit"});
  check_refused(run_command(scratch, verb({"bench", "links", "--min", "1MiB", "--max", "1KiB"})), 2, {"--min 1MiB is more than --max 1KiB"});
  check_refused(run_command(scratch, verb({"bench", "links", "--op", "gossip"})), 2, {"gossip"});
  check_refused(run_command(scratch, verb({"bench", "compare", scratch.file("a"), scratch.file("b")})), 3, {scratch.file("a")});
  check_refused(run_command(scratch, verb({"bench", "compare", scratch.write("a", "{}"), scratch.file("a")})), 3, {"is not a benchmark's result"});
  check_refused(run_command(scratch, verb({"bench", "-f", configs + "/clusters/laptop.yaml"})), 3, {"hold no Experiment"});
  check_refused(run_command(scratch, bench(scratch, experiment(scratch, "1"), {"--set", "matrix.cards=[1, 2, 3]"})), 3, {"3 cards", "has 2"});
  CHECK(processes_of(scratch).empty());
}
