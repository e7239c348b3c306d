// The program itself, as a person runs it: what it prints where, and with which exit code it ends.

#include <filesystem>
#include <fstream>

#include <catch2/catch.hpp>

#include "base/file.hpp"
#include "base/json.hpp"
#include "launch/processes.hpp"
#include "tests/launch/scratch.hpp"

namespace orrery::launch {
namespace {

struct Ran {
  int code = -1;
  std::string out, error;
};

Ran run(std::vector<std::string> arguments) {
  const Scratch scratch;
  std::string script = shell_quoted(ORRERY_BINARY);
  for (const auto& argument : arguments) script += " " + shell_quoted(argument);
  script += " >" + shell_quoted(scratch.path("out")) + " 2>" + shell_quoted(scratch.path("error"));
  ProcessSpec spec{"orrery", {"sh", "-c", script}};
  spec.environment = {{"ORRERY_CONFIGS", std::string(ORRERY_SOURCE_DIR) + "/configs"}};
  auto process = Process::start(spec);
  REQUIRE(process.ok());
  const auto end = process.value().wait(std::chrono::seconds(120));
  REQUIRE(end);
  return {end->exit_code, read_text_file(scratch.path("out"), 1 << 24).value(), read_text_file(scratch.path("error"), 1 << 24).value()};
}

}  // namespace

TEST_CASE("command line: help and version go to stdout and end with 0", "[launch]") {
  const auto help = run({"--help"});
  CHECK(help.code == 0);
  CHECK(help.out.find("Verbs:") != std::string::npos);
  CHECK(help.out.find("Examples:") != std::string::npos);
  CHECK(help.error.empty());
  for (const char* verb : {"check", "plan", "schema", "infer", "synth", "version", "up", "down", "status", "generate", "node", "coordinator", "cancel"}) {
    const auto one = run({verb, "--help"});
    INFO(verb);
    CHECK(one.code == 0);
    CHECK(one.out.find(std::string("orrery ") + verb) != std::string::npos);
  }
  CHECK(Json::parse(run({"version", "-o", "json"}).out).contains("commit"));
}

TEST_CASE("command line: a wrong word ends with 2, one sentence and a hint", "[launch]") {
  const auto verb = run({"plann"});
  CHECK(verb.code == 2);
  CHECK(verb.error == "orrery: error: unknown verb 'plann' (did you mean 'plan'?)\n");
  CHECK(verb.out.empty());
  const auto flag = run({"check", "x.yaml", "--fromat", "json"});
  CHECK(flag.code == 2);
  CHECK(flag.error == "orrery: error: unknown flag '--fromat' of 'orrery check' (did you mean '--format'?)\n");
  CHECK(run({}).code == 2);
  CHECK(run({"version", "-o", "yaml"}).code == 2);
  CHECK(run({"--color", "blue", "version"}).code == 2);
  CHECK(run({"plan", "--frames", "x", "-f", "y"}).code == 2);
}

TEST_CASE("command line: check accepts what is shipped and names what is wrong", "[launch]") {
  CHECK(run({"check", "clusters/two_nodes.yaml"}).code == 0);
  const Scratch scratch;
  std::ofstream(scratch.path("bad.yaml")) << "apiVersion: orrery/v1\nkind: Cluster\nmetadata: {name: x}\nspec:\n  nodes:\n    - {hosts: n1, crads: {type: cpu}}\n";
  const auto bad = run({"check", scratch.path("bad.yaml")});
  CHECK(bad.code == 3);
  CHECK(bad.out.find("bad.yaml:6:") != std::string::npos);
  CHECK(bad.out.find("crads") != std::string::npos);
  const auto json = run({"check", scratch.path("bad.yaml"), "--format", "json"});
  CHECK(json.code == 3);
  CHECK(Json::parse(json.out)["findings"].size() >= 1);
}

TEST_CASE("command line: plan is the same every time, in every form, and says when nothing fits", "[launch]") {
  const std::vector<std::string> plan{"plan", "-f", "clusters/two_nodes.yaml", "-f", "models/cosmos-tiny.yaml"};
  const auto with = [&plan](std::vector<std::string> more) {
    auto all = plan;
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  };
  const auto first = with({"-o", "json"});
  CHECK(first.code == 0);
  CHECK(first.out == with({"-o", "json"}).out);
  const auto json = Json::parse(first.out);
  CHECK(json["cards"].size() == 4);
  CHECK(json["stages"].size() == 5);
  CHECK(with({"-o", "yaml"}).out.find("kind: Plan") != std::string::npos);
  CHECK(with({"--programs"}).out.find("# denoiser, group 0 rank 0, card ") != std::string::npos);
  CHECK(with({"--set", "parallelism.tensor=5"}).code == 4);
  CHECK(with({"--size", "65x64"}).code == 2);
}

TEST_CASE("command line: infer gives the reference's schedule and the tokenizer's ids", "[launch]") {
  const std::string data = std::string(ORRERY_SOURCE_DIR) + "/tests/golden/data";
  const Scratch scratch;
  CHECK(run({"infer", data + "/scheduler/published36", "--steps", "36", "--outputs", scratch.path("s.safetensors")}).code == 0);
  CHECK(std::filesystem::file_size(scratch.path("s.safetensors")) > (37 + 4 * 36) * 4);
  const auto ids = run({"infer", std::string(ORRERY_SOURCE_DIR) + "/configs/models/cosmos-tiny/tokenizer", "--text", "a red circle", "--max-length", "8", "-o", "json"});
  CHECK(ids.code == 0);
  const auto json = Json::parse(ids.out);
  CHECK(json["ids"].back() == 1);
  CHECK(json["input_ids"].size() == 8);
  CHECK(run({"infer", data + "/transformer_a/transformer", "--inputs", data + "/transformer_a/fps30.in.safetensors", "--outputs",
             scratch.path("t.safetensors")}).code == 0);
  CHECK(run({"infer", data + "/transformer_a/transformer", "--inputs", data + "/transformer_a/fps30.in.safetensors", "--outputs", "/nowhere/t"}).code == 1);
}

TEST_CASE("command line: a closed standard output is an error, not a crash", "[launch]") {
  ProcessSpec spec{"orrery", {"sh", "-c", shell_quoted(ORRERY_BINARY) + " version >&-"}};
  const Scratch scratch;
  spec.log_file = scratch.path("log");
  auto process = Process::start(spec);
  REQUIRE(process.ok());
  const auto end = process.value().wait(std::chrono::seconds(120));
  REQUIRE(end);
  CHECK(end->exit_code == 1);
  CHECK(last_lines(scratch.path("log"), 1).find("standard output could not be written") != std::string::npos);
}

}  // namespace orrery::launch
