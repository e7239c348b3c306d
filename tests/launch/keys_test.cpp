// orrery keys: makes what the cluster file needs, never overwrites, lets in and revokes.

#include <sys/stat.h>

#include <catch2/catch.hpp>

#include "base/keys.hpp"
#include "tests/support/program.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

struct Scratch : ScratchFolder {
  std::string cluster = write("cluster.yaml",
                              "apiVersion: orrery/v1\nkind: Cluster\nmetadata: {name: c}\nspec:\n  nodes: [{hosts: \"n[1-2]\"}]\n");
  std::string keys = file("keys");
  CommandResult run(std::vector<std::string> words) const {
    words.insert(words.begin(), {ORRERY_BINARY, "keys"});
    return run_command(*this, words);
  }
};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("keys verb: make gives each node, the coordinator and a client keys that can be used", "[launch][keys]") {
  const Scratch scratch;
  const auto made = scratch.run({"make", scratch.keys, "-f", scratch.cluster});
  INFO(made.err);
  REQUIRE(made.exit_code == 0);
  for (const std::string name : {"n1", "n2", "coordinator", "client"}) {
    const auto ring = read_key_ring(scratch.keys, name);
    if (!ring.ok()) FAIL(ring.error().text());
    CHECK(ring.value().allowed.size() == 4);
  }
  struct stat facts {};
  REQUIRE(::stat(scratch.keys.c_str(), &facts) == 0);
  CHECK((facts.st_mode & 0777) == 0700);
  const auto ring = read_key_ring(scratch.keys, "n1");
  CHECK(ring.value().find("coordinator")->role == KeyRole::coordinator);
  CHECK(ring.value().find("client")->role == KeyRole::client);
}

TEST_CASE("keys verb: make overwrites nothing, and then makes nothing", "[launch][keys]") {
  const Scratch scratch;
  REQUIRE(scratch.run({"make", scratch.keys, "--node", "n2"}).exit_code == 0);
  const auto before = read_key_ring(scratch.keys, "n2").value();
  const auto again = scratch.run({"make", scratch.keys, "-f", scratch.cluster});
  CHECK(again.exit_code == 1);
  CHECK(contains(again.err, "n2 has keys in"));
  CHECK_FALSE(read_key_ring(scratch.keys, "n1").ok());
  CHECK(read_key_ring(scratch.keys, "n2").value().curve_secret == before.curve_secret);
  // More can join.
  REQUIRE(scratch.run({"make", scratch.keys, "--node", "n3", "--client", "anna"}).exit_code == 0);
  CHECK(read_key_ring(scratch.keys, "anna").value().allowed.size() == 3);
  CHECK(scratch.run({"make", scratch.keys}).exit_code == 2);
  CHECK(scratch.run({"make", scratch.keys, "--node", "coordinator"}).exit_code == 2);
  CHECK(scratch.run({"make", scratch.file("a/b/c"), "--node", "n"}).exit_code == 1);
  CHECK(scratch.run({"make", scratch.keys, "--node", "../n"}).exit_code != 0);
}

TEST_CASE("keys verb: a line that show prints can be allowed elsewhere, and revoked", "[launch][keys]") {
  const Scratch scratch;
  REQUIRE(scratch.run({"make", scratch.keys, "--node", "n1"}).exit_code == 0);
  const auto other = scratch.file("other");
  REQUIRE(scratch.run({"make", other, "--client", "anna"}).exit_code == 0);
  const auto shown = scratch.run({"show", other});
  REQUIRE(shown.exit_code == 0);
  CHECK(contains(shown.out, "# secret is here"));
  CHECK_FALSE(contains(shown.out, read_key_ring(other, "anna").value().curve_secret));
  const auto line = shown.out.substr(0, shown.out.find("  #"));
  REQUIRE(scratch.run({"allow", scratch.keys, line}).exit_code == 0);
  CHECK(read_key_ring(scratch.keys, "n1").value().find("anna") != nullptr);
  CHECK(scratch.run({"allow", scratch.keys, line}).exit_code == 2);
  CHECK(scratch.run({"allow", scratch.keys, "anna client x y"}).exit_code == 2);
  const auto misspelt = scratch.run({"revoke", scratch.keys, "ana"});
  CHECK(misspelt.exit_code == 1);
  CHECK(contains(misspelt.err, "did you mean 'anna'"));
  REQUIRE(scratch.run({"revoke", scratch.keys, "anna"}).exit_code == 0);
  CHECK(read_key_ring(scratch.keys, "n1").value().find("anna") == nullptr);
}
