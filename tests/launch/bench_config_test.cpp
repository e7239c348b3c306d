// Configurations of an experiment as files: what is written is read again as it was meant.

#include <catch2/catch.hpp>

#include "launch/bench_config.hpp"
#include "launch/bench_links.hpp"
#include "tests/launch/scratch.hpp"

#include <fstream>

using namespace orrery;
using namespace orrery::launch;

namespace {

const std::string configs = std::string(ORRERY_SOURCE_DIR) + "/configs";

topology::ConfigSet read(const std::vector<std::string>& inputs, const std::vector<std::string>& settings = {}) {
  return topology::ConfigSet::read({inputs, settings, configs, [](const std::string&) { return std::nullopt; }});
}

topology::ConfigSet read_text(const Scratch& scratch, const std::string& text) {
  std::ofstream(scratch.path("written.yaml")) << text;
  return read({scratch.path("written.yaml")});
}

topology::ExperimentPoint point(std::vector<std::pair<std::string, std::string>> settings) { return {std::move(settings)}; }

}  // namespace

TEST_CASE("yaml: a document written out is read as the same", "[launch][bench]") {
  Findings findings;
  const auto documents = read_yaml("x", "{a: 1, b: {}, c: [], d: [x, {e: \"quoted: #, 'text'\\n\", f: 64GiB}], \"odd key: \": ~, g: 'true', h: true}", findings);
  REQUIRE(documents.size() == 1);
  const auto text = yaml_of(documents.front());
  const auto again = read_yaml("x", text, findings);
  INFO(text << text_of(findings));
  CHECK(findings.empty());
  REQUIRE(again.size() == 1);
  CHECK(yaml_of(again.front()) == text);
  CHECK(again.front().nearest("d[1].e").text == "quoted: #, 'text'\n");
  CHECK(again.front().find("g")->quoted);
  CHECK_FALSE(again.front().find("h")->quoted);
  CHECK(again.front().find("b")->is_map());
  CHECK(again.front().find("c")->is_sequence());
}

TEST_CASE("bench config: cards are taken node by node, or evenly over so many nodes", "[launch][bench]") {
  const Scratch scratch;
  const auto set = read({configs + "/clusters/uneven.yaml", configs + "/models/cosmos-tiny.yaml"});
  const auto config = BenchConfig::create(set, "", configs);
  REQUIRE(config.ok());
  const auto shape = [&](const topology::ExperimentPoint& one) {
    const auto text = config.value().text_of(one);
    REQUIRE(text.ok());
    const auto again = read_text(scratch, text.value());
    INFO(text.value() << text_of(again.findings()));
    REQUIRE(again.resolve().ok());
    std::string sizes;
    const auto resolved = again.resolve();  // Outlives the loop.
    for (const auto& node : resolved.value().cluster.nodes) sizes += (sizes.empty() ? "" : "+") + std::to_string(node.cards.size());
    return sizes;
  };
  CHECK(shape(point({})) == "1+2+1");
  CHECK(shape(point({{"cards", "2"}})) == "1+1");
  CHECK(shape(point({{"cards", "3"}})) == "1+2");
  CHECK(shape(point({{"nodes", "3"}, {"cards", "3"}})) == "1+1+1");
  CHECK(shape(point({{"nodes", "2"}})) == "1+2");
  CHECK(config.value().text_of(point({{"cards", "5"}})).error().message == "the experiment asks for 5 cards, and cluster 'uneven' has 4");
  CHECK(config.value().text_of(point({{"nodes", "4"}})).error().message == "the experiment asks for 4 nodes, and cluster 'uneven' has 3");
  CHECK(config.value().text_of(point({{"nodes", "1"}, {"cards", "2"}})).error().message == "the experiment asks for 2 cards on 1 nodes, and cluster 'uneven' has 1");
}

TEST_CASE("bench config: what cards are stays with them, and degrees and transport are set", "[launch][bench]") {
  const Scratch scratch;
  const auto set = read({configs + "/clusters/uneven.yaml", configs + "/models/cosmos-tiny.yaml"});
  const auto config = BenchConfig::create(set, "", configs);
  REQUIRE(config.ok());
  const auto text = config.value().text_of(point({{"cards", "4"}, {"parallelism.tensor", "2"}, {"parallelism.cfg", "auto"}, {"transport", "tcp"}}));
  REQUIRE(text.ok());
  const auto again = read_text(scratch, text.value());
  REQUIRE(again.resolve().ok());
  const auto before = set.resolve().value(), after = again.resolve().value();
  CHECK(after.deployment.parallelism.tensor == 2U);
  CHECK(!after.deployment.parallelism.cfg);
  CHECK(after.cluster.data.transport == topology::DataTransport::tcp);
  REQUIRE(after.cluster.nodes.size() == before.cluster.nodes.size());
  for (std::size_t i = 0; i < after.cluster.nodes.size(); ++i) {
    CHECK(after.cluster.nodes[i].name == before.cluster.nodes[i].name);
    for (std::size_t j = 0; j < after.cluster.nodes[i].cards.size(); ++j) {
      CHECK(after.cluster.nodes[i].cards[j].compute_share == before.cluster.nodes[i].cards[j].compute_share);
      CHECK(after.cluster.nodes[i].cards[j].memory == before.cluster.nodes[i].cards[j].memory);
      CHECK(after.cluster.nodes[i].cards[j].threads == before.cluster.nodes[i].cards[j].threads);
    }
  }
  // The model's folder starts where the file was, not where the copy is.
  CHECK(topology::folder_of(after.model).value() == configs + "/models/cosmos-tiny");
}

TEST_CASE("bench config: documents that the files only name are found among the shipped ones", "[launch][bench]") {
  const auto set = read({configs + "/experiments/atom_max_7b.yaml"});
  const auto config = BenchConfig::create(set, "atom_max_7b", configs);
  REQUIRE(config.ok());
  const Scratch scratch;
  const auto text = config.value().text_of(point({{"cards", "16"}}));
  REQUIRE(text.ok());
  const auto again = read_text(scratch, text.value());
  INFO(text_of(again.findings()));
  REQUIRE(again.resolve().ok());
  CHECK(again.resolve().value().cluster.card_count() == 16);
  CHECK(again.resolve().value().model.name == "cosmos-predict1-7b");
}

TEST_CASE("bench links: sizes are what the ranks can share out, each once", "[launch][bench]") {
  LinksOptions options;
  options.bytes_min = 4096;
  options.bytes_max = 32768;
  CHECK(link_sizes(options) == std::vector<std::uint64_t>{4096, 8192, 16384, 32768});
  options.ranks = 3;
  CHECK(link_sizes(options) == std::vector<std::uint64_t>{4032, 8064, 16320, 32640});
  options.bytes_min = 4;
  options.bytes_max = 512;
  CHECK(link_sizes(options) == std::vector<std::uint64_t>{192, 384});
  CHECK(bus_factor(LinkOp::all_reduce, 4) == 1.5);
  CHECK(bus_factor(LinkOp::all_gather, 4) == 0.75);
  CHECK(bus_factor(LinkOp::broadcast, 4) == 1);
}
