// Every file in configs/ is read; the shipped documents refer to one another.

#include <filesystem>

#include <catch2/catch.hpp>

#include "base/file.hpp"
#include "topology/config_set.hpp"
#include "topology/schema_text.hpp"

using namespace orrery;
using namespace orrery::topology;

namespace {

const std::string configs = std::string(ORRERY_SOURCE_DIR) + "/configs";

ConfigSet read(std::vector<std::string> inputs, std::vector<std::string> overrides = {}) {
  return ConfigSet::read(
      {std::move(inputs), std::move(overrides), configs, [](const std::string&) { return std::nullopt; }});
}

}  // namespace

TEST_CASE("configs: every shipped file is read without a finding", "[topology][configs]") {
  for (const auto* folder : {"cards", "clusters", "models", "deployments"})
    for (const auto& entry : std::filesystem::directory_iterator(configs + "/" + folder)) {
      if (entry.path().extension() != ".yaml") continue;
      const auto set = read({entry.path().string()});
      INFO(text_of(set.findings()));
      CHECK(set.findings().empty());
      CHECK(set.documents().size() >= 1);
    }
}

TEST_CASE("configs: the shipped folders form one set", "[topology][configs]") {
  const auto set = read({configs + "/cards", configs + "/clusters", configs + "/models", configs + "/deployments"});
  INFO(text_of(set.findings()));
  CHECK(set.findings().empty());
  CHECK(set.clusters().size() >= 4);
  CHECK(set.models().size() >= 3);
  CHECK(set.card_types().contains("atom-max"));
  CHECK(set.card_types().at("atom").memory == 16879221473ULL);
}

TEST_CASE("configs: a deployment finds its shipped cluster and model by name", "[topology][configs]") {
  for (const auto* name : {"demo", "tensor", "sequence", "cfg", "uneven", "atom_max_7b"}) {
    const auto set = read({configs + "/deployments/" + name + ".yaml"});
    const auto resolved = set.resolve();
    INFO(text_of(set.findings()));
    REQUIRE(resolved.ok());
    CHECK(resolved.value().deployment.name == name);
    CHECK(resolved.value().cluster.nodes.size() >= 1);
  }
}

TEST_CASE("configs: a cluster and a model are enough; without choice or with too much, the message says so",
          "[topology][configs]") {
  const auto two = read({configs + "/clusters/two_nodes.yaml", configs + "/models/cosmos-tiny.yaml"});
  REQUIRE(two.resolve().ok());
  CHECK(two.resolve().value().cluster.card_count() == 4);
  CHECK(two.resolve().value().deployment.model == "cosmos-tiny");
  CHECK(read({configs + "/clusters/two_nodes.yaml"}).resolve().error().message == "the files hold no Model");
  CHECK(read({configs + "/clusters", configs + "/models/cosmos-tiny.yaml"}).resolve().error().message ==
        "the files hold several Clusters: laptop, rack_of_atom_max, two_nodes, uneven");
}

TEST_CASE("configs: published weights are named by a variable that only their user needs", "[topology][configs]") {
  const auto set = read({configs + "/models/cosmos-predict1-7b.yaml"});
  const auto& model = set.models().at("cosmos-predict1-7b");
  const auto missing = folder_of(model, [](const std::string&) { return std::nullopt; });
  REQUIRE_FALSE(missing.ok());
  CHECK(missing.error().text().find("needs the environment variable ORRERY_COSMOS_7B (the folder of "
                                    "nvidia/Cosmos-1.0-Diffusion-7B-Text2World)") != std::string::npos);
  CHECK(missing.error().text().find("cosmos-predict1-7b.yaml:8: ") != std::string::npos);
  const auto found = folder_of(model, [](const std::string&) { return std::optional<std::string>("/weights/7b"); });
  REQUIRE(found.ok());
  CHECK(found.value() == "/weights/7b");
  CHECK(component_folder_of(model, "vae", [](const std::string&) {
          return std::optional<std::string>("/weights/7b");
        }).value() == "/weights/7b/vae");
  CHECK(folder_of(read({configs + "/models/cosmos-tiny.yaml"}).models().at("cosmos-tiny")).value() ==
        configs + "/models/cosmos-tiny");
}

TEST_CASE("configs: an override reaches the document that owns its key", "[topology][configs]") {
  const auto set = read({configs + "/clusters/two_nodes.yaml", configs + "/models/cosmos-tiny.yaml"},
                        {"spec.parallelism.tensor=4", "nodes[0].cards.count=3", "defaults.num_frames=17"});
  INFO(text_of(set.findings()));
  const auto resolved = set.resolve();
  REQUIRE(resolved.ok());
  CHECK(resolved.value().deployment.parallelism.tensor == 4U);
  CHECK(resolved.value().cluster.card_count() == 6);
  CHECK(resolved.value().model.defaults.num_frames == 17);
}

TEST_CASE("configs: a folder in a file starts at the file, one from the command line where the user stands",
          "[topology][configs]") {
  const auto set = read({configs + "/models/cosmos-tiny.yaml"}, {"folder=here/model"});
  CHECK(folder_of(set.models().at("cosmos-tiny")).value() ==
        (std::filesystem::current_path() / "here/model").string());
}

TEST_CASE("configs: a wrong override is a finding that names it", "[topology][configs]") {
  const auto headline = [](const std::string& override_text) {
    const auto set = read({configs + "/clusters/two_nodes.yaml"}, {override_text});
    return set.findings().empty() ? std::string() : set.findings().front().headline();
  };
  CHECK(headline("parallelism.tensro=4") ==
        "--set parallelism.tensro=4: error: unknown key 'tensro' in spec.parallelism (did you mean 'tensor'?) "
        "[E102]");
  CHECK(headline("paralelism.tensor=4") ==
        "--set paralelism.tensor=4: error: no document has the key 'paralelism' in its spec (did you mean "
        "'parallelism'?) [E205]");
  CHECK(headline("nodes[7].hosts=x") ==
        "--set nodes[7].hosts=x: error: cannot set 'spec.nodes[7].hosts': the list has 1 items; the first is [0] "
        "[E205]");
  CHECK(headline("parallelism.tensor=zwei") ==
        "--set parallelism.tensor=zwei: error: spec.parallelism.tensor should be a whole number in decimal, not "
        "'zwei' [E111]");
  CHECK(headline("slices=4") == "--set slices=4: error: there is no Model document to set it in [E205]");
  CHECK(headline("nothing") ==
        "--set nothing: error: an override is written PATH=VALUE (e.g. parallelism.tensor=4) [E205]");
}

TEST_CASE("configs: SCHEMA.md is what the declarations say", "[topology][configs]") {
  const auto page = read_text_file(configs + "/SCHEMA.md", 1 << 20);
  REQUIRE(page.ok());
  const auto kinds = topology_kinds();
  if (const char* write = std::getenv("ORRERY_WRITE_SCHEMA"); write != nullptr) {
    auto file = AtomicFile::create(configs + "/SCHEMA.md");
    REQUIRE(file.ok());
    REQUIRE(file.value().write(markdown_of(kinds)).ok());
    REQUIRE(file.value().commit().ok());
  }
  CHECK(page.value() == markdown_of(kinds));
}

TEST_CASE("configs: what a deployment says about losses and deadlines is read, and silence means the defaults", "[topology][configs]") {
  const auto deployment_of = [](const std::string& spec) {
    Findings findings;
    const auto documents = read_yaml("d.yaml", spec, findings);
    REQUIRE(documents.size() == 1);
    YamlReader reader(findings, process_environment());
    auto deployment = read_deployment(documents.front(), "d", reader);
    INFO(text_of(findings));
    CHECK(findings.empty());
    return deployment;
  };
  const auto silent = deployment_of("{}");
  CHECK(silent.resilience.heartbeat.timeout == 0.9);
  CHECK(silent.resilience.on_card_loss == OnCardLoss::replan);
  CHECK(silent.resilience.restarts.max == 5);
  CHECK(!silent.admission.request_deadline);
  CHECK(silent.admission.keep_results == 600);
  const auto told = deployment_of(
      "{admission: {request_deadline: 90 s, keep_results: 1 h},\n"
      " resilience: {heartbeat: {interval: 100 ms, timeout: 300 ms}, on_card_loss: fail, spares: 1,\n"
      "  restarts: {max: 0, within: 5 s}, straggler: {factor: 2, steps: 3}}}");
  CHECK(told.admission.request_deadline == 90.0);
  CHECK(told.admission.keep_results == 3600);
  CHECK(told.resilience.heartbeat.interval == 0.1);
  CHECK(told.resilience.heartbeat.timeout == 0.3);
  CHECK(told.resilience.on_card_loss == OnCardLoss::fail);
  CHECK(told.resilience.spares == 1);
  CHECK(told.resilience.restarts.max == 0);
  CHECK(told.resilience.restarts.within == 5);
  CHECK(told.resilience.straggler.factor == 2);
  CHECK(told.resilience.straggler.steps == 3);
  CHECK(!deployment_of("{admission: {request_deadline: none}}").admission.request_deadline);
}
