// One prompt and seed give one SHA-256, whatever the cluster: real node processes on this machine.
//
// Shapes: 1 card; 1 node x 2, x 3, x 8; 2 nodes x 2; 3 nodes 1+2+1 with one fast card. Threads: 1 and 2 a card.
// Transports: in one process, ipc, tcp. Splits: tensor, sequence (Ulysses), guidance branches apart.

#include <catch2/catch.hpp>

#include <map>

#include "base/json.hpp"
#include "tests/support/command.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

struct Shape {
  std::string name, nodes, data, parallelism, weights = "auto";
};

std::string digest_of(const ScratchFolder& scratch, const Shape& shape, const std::string& dtype = "float32") {
  const auto cluster = scratch.write("cluster.yaml", "apiVersion: orrery/v1\nkind: Cluster\nmetadata: {name: c}\nspec:\n  nodes: " + shape.nodes +
                                                         "\n  data: {transport: " + shape.data +
                                                         "}\n  launch: {ready_timeout: 120s}\n---\napiVersion: orrery/v1\nkind: Deployment\nmetadata: {name: d}\n"
                                                         "spec:\n  cluster: c\n  model: cosmos-tiny\n  parallelism: " +
                                                         shape.parallelism + "\n  weights: " + shape.weights + "\n");
  const auto video = scratch.file("v.y4m");
  const auto result = run_command(scratch, {ORRERY_BINARY, "--progress", "none", "generate", "a red circle moving right", "-f", cluster, "-f",
                                            ORRERY_SOURCE_DIR "/configs/models/cosmos-tiny.yaml", "--dtype", dtype, "--steps", "5",
                                            "--seed", "11", "-o", video});
  INFO(shape.name << ": " << result.err);
  REQUIRE(result.exit_code == 0);
  const auto json = read_json_file(video + ".json");
  REQUIRE(json.ok());
  CHECK(processes_of(scratch).empty());
  CHECK(scratch.leftovers().empty());
  return json.value()["frames_sha256"].get<std::string>();
}

}  // namespace

TEST_CASE("video: the same bytes on every cluster shape", "[system][slow]") {
  const std::string one = "[{hosts: h1, cards: {type: cpu, count: 1, threads: 1}}]";
  const std::vector<Shape> shapes = {
      {"1 card, 2 threads", "[{hosts: h1, cards: {type: cpu, count: 1, threads: 2}}]", "tcp", "{cfg: 1, tensor: 1}"},
      {"1x2 tensor", "[{hosts: h1, cards: {type: cpu, count: 2, threads: 1}}]", "inproc", "{cfg: 1, tensor: 2}"},
      {"1x2 cfg, 2 threads", "[{hosts: h1, cards: {type: cpu, count: 2, threads: 2}}]", "inproc", "{cfg: 2, tensor: 1}"},
      {"1x3 tensor 3+3+2", "[{hosts: h1, cards: {type: cpu, count: 3, threads: 1}}]", "inproc", "{cfg: 1, tensor: 3}"},
      {"1x3 sequence", "[{hosts: h1, cards: {type: cpu, count: 3, threads: 1}}]", "inproc", "{cfg: 1, sequence: 3}"},
      {"2x2 tensor over ipc", "[{hosts: 'h[1-2]', cards: {type: cpu, count: 2, threads: 1}}]", "ipc", "{cfg: 1, tensor: 4}"},
      {"2x2 tensor over tcp, 2 threads", "[{hosts: 'h[1-2]', cards: {type: cpu, count: 2, threads: 2}}]", "tcp", "{cfg: 1, tensor: 4}"},
      {"2x2 sequence over tcp", "[{hosts: 'h[1-2]', cards: {type: cpu, count: 2, threads: 1}}]", "tcp", "{cfg: 1, sequence: 4}"},
      {"2x2 cfg x tensor over ipc", "[{hosts: 'h[1-2]', cards: {type: cpu, count: 2, threads: 1}}]", "ipc", "{cfg: 2, tensor: 2}"},
      {"2x2 cfg x sequence over tcp", "[{hosts: 'h[1-2]', cards: {type: cpu, count: 2, threads: 1}}]", "tcp", "{cfg: 2, sequence: 2}"},
      {"1+2+1 uneven tensor",
       "[{hosts: h1, cards: {type: cpu, count: 1, compute_share: 3}}, {hosts: h2, cards: {type: cpu, count: 2}}, {hosts: h3, cards: {type: cpu, count: 1}}]",
       "tcp", "{cfg: 1, tensor: 4}"},
      {"1+2+1 uneven sequence",
       "[{hosts: h1, cards: {type: cpu, count: 1, compute_share: 3}}, {hosts: h2, cards: {type: cpu, count: 2}}, {hosts: h3, cards: {type: cpu, count: 1}}]",
       "ipc", "{cfg: 1, sequence: 4}"},
      {"1x8 tensor", "[{hosts: h1, cards: {type: cpu, count: 8, threads: 1}}]", "inproc", "{cfg: 1, tensor: 8}"},
      {"1x8 sequence, 2 threads", "[{hosts: h1, cards: {type: cpu, count: 8, threads: 2}}]", "inproc", "{cfg: 1, sequence: 8}"},
      {"planner's choice", "[{hosts: 'h[1-2]', cards: {type: cpu, count: 2}}]", "auto", "{}"},
      {"2x1 streamed", "[{hosts: 'h[1-2]', cards: {type: cpu, count: 1}}]", "auto", "{}", "streamed"},
      {"1x2 tensor, streamed", "[{hosts: h1, cards: {type: cpu, count: 2}}]", "auto", "{cfg: 1, tensor: 2}", "streamed"},
  };
  ScratchFolder scratch;
  const auto reference = digest_of(scratch, {"1 card", one, "tcp", "{cfg: 1, tensor: 1}"});
  CHECK(reference.size() == 64);
  for (const auto& shape : shapes) {
    INFO(shape.name);
    CHECK(digest_of(scratch, shape) == reference);
  }
}

TEST_CASE("video in bfloat16: the same bytes on every cluster shape, other bytes than float32", "[system][slow]") {
  ScratchFolder scratch;
  const std::string one = "[{hosts: h1, cards: {type: cpu, count: 1, threads: 1}}]";
  const auto reference = digest_of(scratch, {"1 card", one, "tcp", "{cfg: 1, tensor: 1}"}, "bfloat16");
  CHECK(reference != digest_of(scratch, {"1 card f32", one, "tcp", "{cfg: 1, tensor: 1}"}));
  CHECK(reference == digest_of(scratch, {"2x2 cfg", "[{hosts: 'h[1-2]', cards: {type: cpu, count: 2, threads: 2}}]", "ipc", "{cfg: 2, tensor: 2}"}, "bfloat16"));
  CHECK(reference == digest_of(scratch, {"1x3", "[{hosts: h1, cards: {type: cpu, count: 3}}]", "inproc", "{cfg: 1, tensor: 3}"}, "bfloat16"));
  CHECK(reference == digest_of(scratch, {"1x5 sequence", "[{hosts: h1, cards: {type: cpu, count: 5}}]", "inproc", "{cfg: 1, sequence: 5}"}, "bfloat16"));
}
