// A cluster with keys, where even connections on one machine are encrypted: the same video as without, for those who are
// let in, and a clear answer for those who are not.

#include <catch2/catch.hpp>

#include "tests/support/program.hpp"

using namespace orrery;
using namespace orrery::testing;

TEST_CASE("keys: with TLS and CURVE on every connection the video is the same, and strangers are refused", "[system][keys]") {
  const ScratchFolder scratch;
  const auto model = std::vector<std::string>{"-f", configs + "/models/cosmos-tiny.yaml"};
  const auto spec = "apiVersion: orrery/v1\nkind: Cluster\nmetadata: {name: c}\nspec:\n"
                    "  nodes:\n    - {hosts: \"n[1-2]\", cards: {type: cpu, count: 2}}\n";
  const auto plain_file = scratch.write("plain.yaml", spec);
  // A path from the working folder: the registry has to hold it whole.
  const auto keys_file = scratch.write("keys.yaml", spec + std::string("  data: {transport: tcp}\n  security: {keys: keys, tls: always}\n"));
  const auto run = [&](const std::vector<std::string>& words, const std::string& folder = {}) {
    auto command = std::vector<std::string>{ORRERY_BINARY} + words;
    if (!folder.empty()) command = std::vector<std::string>{"/usr/bin/env", "-C", folder} + command;
    const auto result = run_command(scratch, command);
    INFO(words.front() << ": " << result.err);
    CHECK(result.exit_code == 0);
    return result;
  };
  const std::vector<std::string> small = {"--steps", "3", "--frames", "9"};
  const auto folder = scratch.path();

  run(std::vector<std::string>{"generate", "a red circle", "-o", scratch.file("plain.y4m"), "-f", plain_file} + model + small);
  run({"keys", "make", scratch.file("keys"), "-f", plain_file});
  run({"keys", "make", scratch.file("strange"), "-f", plain_file});
  const auto up = run(std::vector<std::string>{"up", "-d", "-f", keys_file} + model, folder);
  const auto at = up.out.find("127.0.0.1:");
  REQUIRE(at != std::string::npos);
  const auto address = up.out.substr(at, up.out.find(',', at) - at);

  // By name the registry knows the keys; by address, flags say which.
  CHECK(run({"status", "c"}).out.find("cluster c: ready") != std::string::npos);
  CHECK(run({"status", address, "--keys", scratch.file("keys"), "--tls", "always"}).out.find("cluster c: ready") != std::string::npos);
  run(std::vector<std::string>{"generate", "a red circle", "--connect", "c", "-o", scratch.file("keys.y4m")} + small);
  CHECK(frames_digest(scratch.file("keys.y4m")) == frames_digest(scratch.file("plain.y4m")));

  check_refused(run_command(scratch, verb({"status", address, "--keys", scratch.file("strange"), "--tls", "always"})), 5, {address, "cannot be trusted, or does not trust us"});
  check_refused(run_command(scratch, verb({"status", address})), 5, {address});

  run({"down", "c"});
  CHECK(all_gone(scratch));
  CHECK(scratch.leftovers().size() == 1);  // The log of `up -d`.
}
