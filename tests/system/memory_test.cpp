// A node holds what it owns: resident memory is its cards' memory plus a stated constant, and weights of slices that it
// does not own are not resident. Shown with a synthetic model of more than 1 GB on one node and on four.
// A card takes what `orrery plan` says: at its worst moment at most that, and at least 95 % of it.

#include <catch2/catch.hpp>

#include "base/json.hpp"
#include "tests/support/command.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

/// What a node process needs besides its cards: code, libraries, actors, kernel scratch, buffers in flight.
constexpr std::uint64_t process_bytes = std::uint64_t{160} << 20;

struct Node {
  std::uint64_t resident_max = 0, card_max = 0;
};

/// Brings a cluster up, makes a short video, and asks the nodes what they needed at most.
std::vector<Node> measure(const ScratchFolder& scratch, const std::string& model, const std::string& hosts, const std::string& parallelism,
                          std::string& digest) {
  const auto cluster = scratch.write("memory.yaml", "apiVersion: orrery/v1\nkind: Cluster\nmetadata: {name: memory}\nspec:\n  nodes: [{hosts: \"" + hosts +
                                                        "\", cards: {type: cpu, count: 1, memory: 20GiB}}]\n---\napiVersion: orrery/v1\n"
                                                        "kind: Deployment\nmetadata: {name: d}\nspec: {cluster: memory, model: cosmos-tiny, parallelism: " +
                                                        parallelism + "}\n");
  const auto up = run_command(scratch, {ORRERY_BINARY, "--progress", "none", "up", "-d", "-f", cluster, "--model", model, "--dtype", "bfloat16"});
  INFO(up.err);
  REQUIRE(up.exit_code == 0);
  const auto made = run_command(scratch, {ORRERY_BINARY, "--progress", "none", "generate", "a red circle", "--connect", "memory", "--size", "128x128",
                                          "--frames", "9", "--steps", "3", "-o", scratch.file("v.y4m")});
  INFO(made.err);
  CHECK(made.exit_code == 0);
  const auto status = run_command(scratch, {ORRERY_BINARY, "status", "memory", "-o", "json"});
  const auto down = run_command(scratch, {ORRERY_BINARY, "down", "memory"});
  CHECK(down.exit_code == 0);
  CHECK(processes_of(scratch).empty());
  const auto sidecar = read_json_file(scratch.file("v.y4m.json"));
  REQUIRE(sidecar.ok());
  digest = sidecar.value()["frames_sha256"];
  const auto json = parse_json(status.out, "status");
  REQUIRE(json.ok());
  std::vector<Node> nodes;
  for (const auto& node : json.value()["nodes"]) {
    Node each;
    each.resident_max = node["resident_bytes_max"];
    for (const auto& card : node["cards"]) each.card_max += card["bytes_max"].get<std::uint64_t>();
    nodes.push_back(each);
  }
  return nodes;
}

}  // namespace

TEST_CASE("node: its resident memory is what its cards own plus a constant", "[system][slow]") {
  ScratchFolder scratch;
  const auto model = scratch.file("model");
  const auto made = run_command(scratch, {ORRERY_BINARY, "-q", "--progress", "none", "synth", model, "--like", "published-7b", "--layers", "2", "--text-layers",
                                          "1", "--text-feed-forward", "8192", "--seed", "3"});
  INFO(made.err);
  REQUIRE(made.exit_code == 0);
  std::uint64_t denoiser_bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(model + "/transformer")) denoiser_bytes += entry.file_size();
  REQUIRE(denoiser_bytes > std::uint64_t{1'000'000'000});

  std::string one_digest, four_digest;
  const auto one = measure(scratch, model, "h1", "{tensor: 1, cfg: 1}", one_digest);
  const auto four = measure(scratch, model, "h[1-4]", "{tensor: 4, cfg: 1}", four_digest);
  CHECK(one_digest == four_digest);
  REQUIRE(one.size() == 1);
  REQUIRE(four.size() == 4);
  for (const auto* nodes : {&one, &four})
    for (const auto& node : *nodes) {
      WARN("resident " << (node.resident_max >> 20) << " MiB, cards " << (node.card_max >> 20) << " MiB");
      CHECK(node.resident_max <= node.card_max + process_bytes);
    }
  // Replicated parts (modulation, embeddings of time and position) stay whole; the sliced rest is a quarter.
  for (const auto& node : four) CHECK(node.card_max < one[0].card_max / 2);
}

TEST_CASE("card: its peak is what the plan says, within 5 %", "[system][slow]") {
  struct Shape {
    const char* model;  // "tiny", or what was made below.
    std::uint32_t slices;
    const char* hosts;
    std::uint32_t cards;
    const char* parallelism;
    const char* dtype = "float32";
    const char* quantisation = "none";
    const char* size = "64x64";
  };
  ScratchFolder scratch;
  const auto synth = [&](const std::string& name, std::vector<std::string> how) {
    how.insert(how.begin(), {ORRERY_BINARY, "-q", "--progress", "none", "synth", scratch.file(name), "--like", "tiny", "--seed", "3"});
    const auto made = run_command(scratch, how);
    INFO(made.err);
    REQUIRE(made.exit_code == 0);
  };
  // Weights outweigh all else; and slices of one head, narrower than any kernel's panel.
  synth("wide", {"--layers", "4", "--heads", "32", "--head-dim", "32", "--text-layers", "2", "--text-heads", "8"});
  synth("narrow", {"--layers", "4", "--heads", "32", "--head-dim", "16", "--text-layers", "2", "--text-heads", "32", "--text-feed-forward", "512"});
  std::string prompt = "a red circle";  // Cut off at the model's limit, so that all text rows are there.
  for (int i = 0; i < 40; ++i) prompt += " moving up";

  for (const auto& shape : {Shape{"tiny", 8, "h1", 1, "{tensor: 1, cfg: 1}"},
                            Shape{"tiny", 8, "h1", 2, "{tensor: 2, cfg: 1}"},
                            Shape{"tiny", 8, "h[1-2]", 2, "{tensor: 4, cfg: 1}", "bfloat16"},
                            Shape{"tiny", 8, "h1", 3, "{tensor: 3, cfg: 1}", "float32", "none", "128x128"},
                            Shape{"tiny", 8, "h1", 4, "{tensor: 2, cfg: 2}"},
                            Shape{"tiny", 8, "h1", 3, "{sequence: 3, cfg: 1}", "bfloat16", "none", "128x128"},
                            Shape{"tiny", 8, "h1", 2, "{tensor: 2, cfg: 1}", "bfloat16", "int8"},
                            Shape{"tiny", 8, "h1", 8, "{tensor: 8, cfg: 1}"},
                            Shape{"wide", 8, "h[1-2]", 2, "{tensor: 4, cfg: 1}", "bfloat16"},
                            Shape{"wide", 8, "h1", 1, "{tensor: 1, cfg: 1}", "bfloat16", "int8"},
                            Shape{"narrow", 16, "h[1-2]", 8, "{tensor: 16, cfg: 1}", "bfloat16"},
                            Shape{"narrow", 32, "h1", 8, "{tensor: 8, cfg: 1}"}}) {
    const auto folder = std::string(shape.model) == "tiny" ? std::string(ORRERY_SOURCE_DIR "/configs/models/cosmos-tiny") : scratch.file(shape.model);
    const auto file = scratch.write(
        "peak.yaml", std::string("apiVersion: orrery/v1\nkind: Cluster\nmetadata: {name: peak}\nspec:\n  nodes: [{hosts: \"") + shape.hosts +
                         "\", cards: {type: cpu, count: " + std::to_string(shape.cards) + ", memory: 4GiB}}]\n---\napiVersion: orrery/v1\n"
                         "kind: Model\nmetadata: {name: m}\nspec: {pipeline: cosmos-text2world, folder: " + folder + ", slices: " + std::to_string(shape.slices) +
                         ", dtype: " + shape.dtype + ", quantisation: " + shape.quantisation +
                         ",\n  defaults: {size: " + shape.size + ", num_frames: 9, fps: 8, num_inference_steps: 2, guidance_scale: 1.2, max_text_tokens: 64}}\n---\n"
                         "apiVersion: orrery/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {cluster: peak, model: m, parallelism: " + shape.parallelism + "}\n");
    INFO(shape.model << " " << shape.slices << " " << shape.hosts << " " << shape.parallelism << " " << shape.dtype << " " << shape.quantisation);
    const auto planned = run_command(scratch, {ORRERY_BINARY, "plan", "-f", file, "-o", "json"});
    INFO(planned.err);
    REQUIRE(planned.exit_code == 0);
    const auto up = run_command(scratch, {ORRERY_BINARY, "--progress", "none", "up", "-d", "-f", file});
    INFO(up.err);
    REQUIRE(up.exit_code == 0);
    const auto made = run_command(scratch, {ORRERY_BINARY, "--progress", "none", "generate", prompt, "--negative-prompt", prompt, "--connect", "peak", "-o", scratch.file("v.y4m")});
    INFO(made.err);
    CHECK(made.exit_code == 0);
    const auto status = run_command(scratch, {ORRERY_BINARY, "status", "peak", "-o", "json"});
    CHECK(run_command(scratch, {ORRERY_BINARY, "down", "peak"}).exit_code == 0);
    const auto plan = parse_json(planned.out, "plan"), seen = parse_json(status.out, "status");
    REQUIRE(plan.ok());
    REQUIRE(seen.ok());
    std::size_t number = 0;
    for (const auto& node : seen.value()["nodes"])
      for (const auto& card : node["cards"]) {
        const auto& bill = plan.value()["bills"].at(number++);
        const auto peak = card["bytes_max"].get<std::uint64_t>();
        const auto expected = bill["weights"].get<std::uint64_t>() + bill["activations"].get<std::uint64_t>();
        CAPTURE(number, peak, expected);
        CHECK(peak <= expected);
        CHECK(20 * peak >= 19 * expected);
      }
    CHECK(number == plan.value()["cards"].size());
  }
}
