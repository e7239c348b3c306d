#include <catch2/catch.hpp>

#include "topology/config_set.hpp"
#include "topology/model_demand.hpp"
#include "topology/plan_text.hpp"
#include "topology/planner.hpp"

using namespace orrery;
using namespace orrery::topology;

namespace {

const std::string configs = std::string(ORRERY_SOURCE_DIR) + "/configs";

Plan plan_of(const std::string& deployment) {
  const auto set =
      ConfigSet::read({{configs + "/deployments/" + deployment + ".yaml"}, {}, configs, [](const std::string&) {
                         return std::nullopt;
                       }});
  const auto resolved = set.resolve().value();
  return make_plan(resolved.cluster, resolved.deployment,
                   demand_of(resolved.model, shape_of(resolved.model.defaults)).value())
      .value();
}

}  // namespace

TEST_CASE("plan text: JSON gives the plan back, with every figure and the same digest", "[topology][plan]") {
  for (const auto* name : {"demo", "tensor", "sequence", "cfg", "atom_max_7b"}) {
    const auto plan = plan_of(name);
    const auto written = json_of(plan).dump();
    const auto read = plan_from_json(parse_json(written, "plan").value());
    REQUIRE(read.ok());
    CHECK(json_of(read.value()).dump() == written);
    CHECK(read.value().digest() == plan.digest());
    CHECK(read.value().canonical() == plan.canonical());
  }
}

TEST_CASE("plan text: the digest follows the placement, not the prediction", "[topology][plan]") {
  auto plan = plan_of("tensor");
  const auto digest = plan.digest();
  plan.predicted_video_seconds *= 2;
  plan.rejected.clear();
  CHECK(plan.digest() == digest);
  std::swap(plan.stages[1].groups[0].ranks[0].slices, plan.stages[1].groups[0].ranks[1].slices);
  CHECK(plan.digest() != digest);
}

TEST_CASE("plan text: YAML is a Plan document that the strict reader takes", "[topology][plan]") {
  for (const auto* name : {"demo", "atom_max_7b"}) {
    Findings findings;
    const auto documents = read_yaml("plan.yaml", yaml_of(plan_of(name)), findings);
    INFO(text_of(findings));
    REQUIRE(findings.empty());
    REQUIRE(documents.size() == 1);
    CHECK(documents[0].nearest("kind").text == "Plan");
    CHECK(documents[0].nearest("spec.stages[0].kind").text == "text_encoder");
    CHECK(documents[0].nearest("spec.cards").items.size() == plan_of(name).cards.size());
  }
}

TEST_CASE("plan text: the table shows placement, memory, links and times", "[topology][plan]") {
  const auto text = text_of(plan_of("tensor"), true);
  for (const auto* line :
       {"plan of model cosmos-tiny on cluster two_nodes, 4 cards", "STAGE         GROUP  CARD  TYPE  SLICES",
        "denoiser      -      n1:0  cpu   0-1 of 8", "              -      n2:1  cpu   6-7 of 8", "decoder       -",
        "BYTES/STEP", "between-nodes  n1    n2 ", "denoiser, one step  4 cards, tensor split",
        "for one video of 16 steps", "every placement was compared"})
    CHECK(text.find(line) != std::string::npos);
  CHECK(text_of(plan_of("demo"), true).find("denoiser tensor=2 cfg=1") != std::string::npos);
  CHECK(text_of(plan_of("demo"), false).find("rejected") == std::string::npos);
  CHECK(text_of(plan_of("atom_max_7b"), false).find("npu1:0 - npu4:7  atom-max  0-31 of 32, 1 each") !=
        std::string::npos);
}

TEST_CASE("plan text: a plan from another process is checked before it is used", "[topology][plan]") {
  const auto good = Json::parse(json_of(plan_of("tensor")).dump());
  const auto said = [&](const auto& change) {
    auto json = good;
    change(json);
    const auto read = plan_from_json(json);
    return read.ok() ? std::string("a plan") : read.error().message;
  };
  CHECK(said([](Json&) {}) == "a plan");
  CHECK(said([](Json& j) { j = Json::array(); }) == "plan:  should be an object");
  CHECK(said([](Json& j) { j.erase("stages"); }) == "plan: stages is missing");
  CHECK(said([](Json& j) { j["cards"] = Json::array(); }) == "plan: cards should be 1 to 65536 cards");
  CHECK(said([](Json& j) { j["model"] = 7; }) == "plan: model should be text");
  CHECK(said([](Json& j) { j["cards"][0]["memory_bytes"] = -1; }) ==
        "plan: cards[0].memory_bytes should be a whole number, at most 4611686018427387904");
  CHECK(said([](Json& j) { j["cards"][0]["index"] = 1.5; }) ==
        "plan: cards[0].index should be a whole number, at most 65535");
  CHECK(said([](Json& j) { j["stages"][1]["kind"] = "upscaler"; }) ==
        "plan: stages[1].kind is no stage: 'upscaler'");
  CHECK(said([](Json& j) { j["stages"][1]["split"] = "ring"; }) ==
        "plan: stages[1].split should be tensor or sequence");
  CHECK(said([](Json& j) { j["stages"][1]["slices"] = 0; }) == "plan: stages[1].slices should be at least 1");
  CHECK(said([](Json& j) { j["stages"][1]["slices"] = 4000000000U; }) ==
        "plan: stages[1].slices should be a whole number, at most 4096");
  CHECK(said([](Json& j) { j["stages"][1]["groups"][0]["ranks"][0]["card"] = 4; }) ==
        "plan: stages[1].groups[0].ranks[0].card should be a whole number, at most 3");
  CHECK(said([](Json& j) { j["stages"][1]["groups"][0]["ranks"][1]["card"] = 0; }) ==
        "plan: stages[1].groups[0].ranks[1].card has a place in this stage already");
  CHECK(said([](Json& j) {
          j["stages"][1]["groups"][0]["ranks"][0]["slices"] = {0, 8};
        }) == "plan: stages[1].groups[0].ranks[0].slices should be below 8");
  CHECK(said([](Json& j) {
          j["stages"][1]["groups"][0]["ranks"][0]["slices"] = {1, 0};
        }) == "plan: stages[1].groups[0].ranks[0].slices should be ascending and owned once");
  CHECK(said([](Json& j) { j["stages"][1]["groups"][0]["ranks"][0]["slices"] = Json::array(); }) ==
        "plan: stages[1].groups[0].ranks[0].slices should not be empty");
  CHECK(said([](Json& j) { j["stages"][1]["groups"][0]["ranks"].erase(3); }) ==
        "plan: stages[1].groups[0].ranks should own every slice");
  CHECK(said([](Json& j) { j["stages"][1]["groups"] = Json::array(); }) ==
        "plan: stages[1].groups should be one, or two for the denoiser");
  CHECK(said([](Json& j) { std::swap(j["stages"][0], j["stages"][1]); }) ==
        "plan: stages should be in pipeline order");
  CHECK(said([](Json& j) { j["predicted"][0]["compute_seconds"] = -1; }) ==
        "plan: predicted[0].compute_seconds should be a number, not negative");
  CHECK(said([](Json& j) { j["exhaustive"] = 1; }) == "plan: exhaustive should be true or false");
}
