// Experiments: what is read, which configurations follow, and that mistakes are told with their places.

#include <filesystem>

#include <catch2/catch.hpp>

#include "topology/config_set.hpp"
#include "topology/experiment_spec.hpp"

using namespace orrery;
using namespace orrery::topology;

namespace {

const std::string configs = std::string(ORRERY_SOURCE_DIR) + "/configs";

struct Read {
  ExperimentSpec spec;
  Findings findings;
  std::string text() const {
    std::string all;
    for (const auto& finding : findings) all += finding.headline() + "\n";
    return all;
  }
};

Read read(const std::string& yaml) {
  Read made;
  const auto documents = read_yaml("e.yaml", yaml, made.findings);
  REQUIRE(documents.size() == 1);
  YamlReader reader(made.findings, process_environment());
  made.spec = read_experiment(documents.front(), "e", reader);
  return made;
}

std::vector<std::string> names_of(const ExperimentSpec& spec) {
  std::vector<std::string> names;
  for (const auto& point : spec.points) names.push_back(point.name());
  return names;
}

std::string wrong_with(const std::string& yaml) { return read(yaml).text(); }

}  // namespace

TEST_CASE("experiment: the matrix without what is excluded, the last axis fastest", "[topology][bench]") {
  const auto made = read("{matrix: {cards: [1, 2], parallelism.tensor: [auto, 2], transport: tcp}, exclude: [{cards: 1, parallelism.tensor: 2}]}");
  INFO(made.text());
  CHECK(made.findings.empty());
  CHECK(names_of(made.spec) == std::vector<std::string>{"cards=1 parallelism.tensor=auto transport=tcp", "cards=2 parallelism.tensor=auto transport=tcp",
                                                        "cards=2 parallelism.tensor=2 transport=tcp"});
  REQUIRE(made.spec.points.back().value("cards") != nullptr);
  CHECK(*made.spec.points.back().value("cards") == "2");
  CHECK(made.spec.points.back().value("nodes") == nullptr);
}

TEST_CASE("experiment: silence means one configuration, five runs and the wall clock", "[topology][bench]") {
  const auto made = read("{}");
  CHECK(made.findings.empty());
  CHECK(names_of(made.spec) == std::vector<std::string>{"as given"});
  CHECK(made.spec.clock == ExperimentClock::wall);
  CHECK(!made.spec.scaling);
  CHECK(made.spec.repeat.warmup == 1);
  CHECK(made.spec.repeat.min_runs == 5);
  CHECK(made.spec.repeat.max_runs == 5);
  CHECK(made.spec.report.dir == "runs/{name}/{timestamp}");
  CHECK(read("{repeat: {min_runs: 3, until: {rel_ci95: 0.1}}}").spec.repeat.max_runs == 12);
}

TEST_CASE("experiment: a whole file is read", "[topology][bench]") {
  const auto made = read(R"(
scaling: {kind: weak, over: parallelism.sequence, baseline: 2, grow: num_frames, metric: step_seconds}
clock: model
matrix: {parallelism.sequence: [2, 4], nodes: 2}
workload: {request: {prompt: "x", size: 64x64, num_frames: 9, num_inference_steps: 3, seed: 5, guidance_scale: 2.5}}
repeat: {warmup: 0, min_runs: 2, max_runs: 7, until: {metric: step_seconds, rel_ci95: 0.05}}
assert: ["efficiency(sequence=4) >= 0.5 and speedup(sequence=4) > 1", "comm_fraction < 0.9", "imbalance is constant"]
report: {dir: "there/{name}"})");
  INFO(made.text());
  CHECK(made.findings.empty());
  const auto& spec = made.spec;
  REQUIRE(spec.scaling);
  CHECK(spec.scaling->kind == ScalingKind::weak);
  CHECK(spec.scaling->grow == ScalingGrowth::num_frames);
  CHECK(spec.scaling->metric == ExperimentTime::step);
  CHECK(spec.workload.request.num_inference_steps == 3U);
  CHECK(spec.repeat.max_runs == 7);
  REQUIRE(spec.repeat.until);
  CHECK(spec.repeat.until->rel_ci95 == 0.05);
  REQUIRE(spec.assertions.size() == 3);
  REQUIRE(spec.assertions[0].calls().size() == 2);
  CHECK(spec.assertions[0].calls()[0].metric == "efficiency");
  CHECK(spec.assertions[0].calls()[0].where == std::vector<std::pair<std::string, std::string>>{{"parallelism.sequence", "4"}});
  CHECK(spec.assertions[0].plain_names().empty());
  CHECK(spec.assertions[1].plain_names() == std::vector<std::string>{"comm_fraction"});
  CHECK(spec.assertions[2].constant() == "imbalance");
}

TEST_CASE("experiment: mistakes are told with their places", "[topology][bench]") {
  const auto holds = [](const std::string& yaml, const std::string& expected) {
    const auto text = wrong_with(yaml);
    INFO(text);
    CHECK(text.find(expected) != std::string::npos);
  };
  holds("{matrix: {crads: [1]}}", "e.yaml:1:11: error: unknown key 'crads' in spec.matrix (did you mean 'cards'?) [E102]");
  holds("{matrix: {cards: [0]}}", "spec.matrix.cards[0] should be from 1 to 65536");
  holds("{matrix: {cards: [1, 1]}}", "spec.matrix names the configuration 'cards=1' twice");
  holds("{matrix: {cards: 1}, exclude: [{cards: 1}]}", "spec.exclude leaves no configuration");
  holds("{scaling: {over: cards}}", "spec.scaling.over names 'cards', which the matrix does not have (add it to the matrix) [E201]");
  holds("{scaling: {over: transport}, matrix: {transport: tcp}}", "spec.scaling.over should be an axis that is a number");
  holds("{scaling: {over: nodes, baseline: 3}, matrix: {nodes: [1, 2]}}", "spec.scaling.baseline is not among the values of 'nodes'");
  holds("{scaling: {over: parallelism.tensor}, matrix: {parallelism.tensor: [auto, 1]}}", "has auto for 'parallelism.tensor', which is the size");
  holds("{scaling: {kind: weak}, matrix: {cards: 1}}", "spec.scaling needs 'grow' for weak scaling");
  holds("{scaling: {grow: requests}, matrix: {cards: 1}}", "spec.scaling.grow is for weak scaling");
  holds("{clock: model, scaling: {kind: weak, grow: requests}, matrix: {cards: 1}}", "spec.scaling.grow should not be requests with clock model");
  holds("{clock: model, workload: {requests: 2}}", "spec.workload.requests should be 1 with clock model");
  holds("{repeat: {min_runs: 5, max_runs: 3}}", "spec.repeat.max_runs should not be less than min_runs");
  holds("{repeat: {min_runs: 5, max_runs: 9}}", "spec.repeat.max_runs needs 'until'");
  holds("{workload: {request: {size: big}}}", "spec.workload.request.size");
  holds("{assert: [\"efficiency > 0.5\"]}", "spec.assert[0] asks for efficiency, but there is no 'scaling'");
  holds("{assert: [\"step_secnds > 0.5\"]}", "spec.assert[0] asks for the unknown 'step_secnds' (did you mean 'step_seconds'?)");
  holds("{clock: model, assert: [\"output_sha256 is constant\"]}", "spec.assert[0] asks for output_sha256, but nothing is made with clock model");
  holds("{matrix: {cards: [1, 2]}, assert: [\"step_seconds(cards=3) > 0\"]}", "spec.assert[0] asks for a configuration that the matrix does not have");
  std::string many = "{matrix: {cards: [";
  for (int i = 1; i <= 64; ++i) many += std::to_string(i) + ", ";
  holds(many + "65], nodes: [1, 2, 3, 4]}}", "has 65 items; at most 64 are allowed");
  many = many.substr(0, many.size() - 2);
  holds(many + "], nodes: [1, 2, 3, 4, 5]}}", "spec.matrix makes more than 256 configurations");
}

TEST_CASE("assertion: places in messages are those of the text", "[topology][bench]") {
  const auto message = [](const std::string& text) {
    const auto parsed = ExperimentAssertion::parse(text);
    return parsed.ok() ? std::string("good") : parsed.error().message;
  };
  CHECK(message("efficiency(cards=2) >= 0.9") == "good");
  CHECK(message("efficiency(cards=2, tensor=2) >= 0.9 and comm_fraction < 0.5") == "good");
  CHECK(message("efficiency(cards=2 >= 0.9") == "is wrong at character 11: the bracket is not closed");
  CHECK(message("(cards=2) >= 0.9") == "is wrong at character 1: a metric should stand before the bracket");
  CHECK(message("efficiency() >= 0.9") == "is wrong at character 11: should be AXIS=VALUE");
  CHECK(message("efficiency(cards) >= 0.9") == "is wrong at character 12: should be AXIS=VALUE");
  CHECK(message("efficiency(legs=4) >= 0.9") == "is wrong at character 12: 'legs' is no axis");
  CHECK(message("efficiency(cards=2) = 0.9") == "is wrong at character 21: should be ==, !=, <, <=, > or >=");
  CHECK(message(std::string(401, 'x') + " > 1") == "is longer than 400 characters");
}

TEST_CASE("experiment: every shipped file is read, and finds what it names", "[topology][configs][bench]") {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(configs + "/experiments")) {
    const auto set = ConfigSet::read({{entry.path().string()}, {}, configs, [](const std::string&) { return std::nullopt; }});
    INFO(entry.path().string() << "\n" << text_of(set.findings()));
    CHECK(set.findings().empty());
    REQUIRE(set.experiments().size() == 1);
    CHECK(set.resolve(set.experiments().begin()->second.deployment).ok());
    ++count;
  }
  CHECK(count >= 3);
}

TEST_CASE("experiment: --set reaches it, also beside the keys of a Scenario", "[topology][bench]") {
  const auto set = ConfigSet::read({{configs + "/experiments/strong_cards.yaml"},
                                    {"workload.request.num_inference_steps=2", "matrix.cards=[1, 2, 4]", "repeat.warmup=0"},
                                    configs,
                                    [](const std::string&) { return std::nullopt; }});
  INFO(text_of(set.findings()));
  CHECK(set.findings().empty());
  const auto& spec = set.experiments().begin()->second;
  CHECK(spec.workload.request.num_inference_steps == 2U);
  CHECK(spec.repeat.warmup == 0);
  CHECK(std::any_of(spec.points.begin(), spec.points.end(), [](const auto& point) { return *point.value("cards") == "4"; }));
}

TEST_CASE("experiment: an unknown deployment is a finding", "[topology][bench]") {
  Findings none;
  const auto set = ConfigSet::read({{configs + "/experiments/atom_max_7b.yaml"}, {"deployment=atom_max_8b"}, configs, [](const std::string&) { return std::nullopt; }});
  REQUIRE(set.findings().size() == 1);
  CHECK(set.findings().front().message.find("names the unknown deployment 'atom_max_8b'") != std::string::npos);
}
