// Key files: what is written is read back; files that others can touch, and lines that are wrong, are refused.

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <catch2/catch.hpp>

#include "base/keys.hpp"
#include "base/private_folder.hpp"

using namespace orrery;

namespace {

const std::string curve_secret(40, 's');

/// A folder with keys of one node.
struct Folder {
  PrivateFolder private_folder = std::move(PrivateFolder::create().value());
  std::string path = private_folder.path();
  IdentityPair identity = make_identity().value();
  PublicKeys keys{"n1", KeyRole::node, std::string(40, 'p'), identity.key};
  Folder() {
    REQUIRE(write_secret(path, "n1", curve_secret, identity.pem).ok());
    REQUIRE(write_allowed(path, {keys}).ok());
  }
  std::string problem() const {
    const auto ring = read_key_ring(path, "n1");
    return ring.ok() ? "" : ring.error().text();
  }
  void write(const std::string& text) const { std::ofstream(path + "/allowed") << text; }
};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("keys: what is written is read back", "[base][keys]") {
  const Folder folder;
  const auto ring = read_key_ring(folder.path, "n1");
  REQUIRE(ring.ok());
  CHECK(ring.value().curve_secret == curve_secret);
  CHECK(ring.value().own().identity == folder.identity.key);
  CHECK(ring.value().find(folder.identity.key)->name == "n1");
  CHECK(ring.value().find("n2") == nullptr);
  const auto parsed = parse_public_keys(text_of(folder.keys));
  REQUIRE(parsed.ok());
  CHECK(parsed.value().curve == folder.keys.curve);
  CHECK(parsed.value().identity == folder.keys.identity);
  struct stat facts {};
  REQUIRE(::stat((folder.path + "/n1.secret").c_str(), &facts) == 0);
  CHECK((facts.st_mode & 0777) == 0600);
}

TEST_CASE("keys: a secret is never overwritten, and names cannot leave the folder", "[base][keys]") {
  const Folder folder;
  const auto again = write_secret(folder.path, "n1", curve_secret, folder.identity.pem);
  REQUIRE_FALSE(again.ok());
  CHECK(contains(again.error().text(), "never overwritten"));
  CHECK(folder.problem().empty());
  for (const std::string& name : {std::string(), std::string("."), std::string(".."), std::string("../n1"), std::string("a/b"), std::string("-x"),
                                  std::string("a b"), std::string(300, 'a')}) {
    CHECK_FALSE(write_secret(folder.path, name, curve_secret, folder.identity.pem).ok());
    CHECK_FALSE(read_key_ring(folder.path, name).ok());
  }
}

TEST_CASE("keys: a secret that others can read and a list that others can write are refused", "[base][keys]") {
  const Folder folder;
  const auto secret = folder.path + "/n1.secret", list = folder.path + "/allowed";
  for (const mode_t mode : {0640, 0604, 0620, 0610}) {
    ::chmod(secret.c_str(), mode);
    CHECK(contains(folder.problem(), "chmod 600 " + secret));
  }
  ::chmod(secret.c_str(), 0400);
  CHECK(folder.problem().empty());
  for (const mode_t mode : {0664, 0646}) {
    ::chmod(list.c_str(), mode);
    CHECK(contains(folder.problem(), "others can write"));
  }
}

TEST_CASE("keys: a wrong line is named by file and line", "[base][keys]") {
  const Folder folder;
  const auto good = text_of(folder.keys);
  const auto curve = " " + std::string(40, 'p') + " ";
  const auto identity = good.substr(good.rfind(' ') + 1);
  folder.write("# friends\n\n" + good + "\r\n");
  CHECK(folder.problem().empty());
  for (const std::string& line :
       {std::string("n2"), "n2 node" + curve, "n2 node" + curve + identity + " more", "n/2 node" + curve + identity, "n2 boss" + curve + identity,
        "n2 node short " + identity, "n2 node " + std::string(40, '"') + " " + identity, "n2 node" + curve + "AAAA", "n2 node" + curve + std::string(44, '!'),
        good, "n2 node " + std::string(40, 'q') + " " + identity}) {
    CAPTURE(line);
    folder.write(good + "\n" + line + "\n");
    CHECK(contains(folder.problem(), "/allowed:2: "));
  }
}

TEST_CASE("keys: who was revoked, or has other keys than the list says, is told so", "[base][keys]") {
  const Folder folder;
  folder.write("");
  CHECK(contains(folder.problem(), "is not in"));
  auto other = folder.keys;
  other.identity = make_identity().value().key;
  REQUIRE(write_allowed(folder.path, {other}).ok());
  CHECK(contains(folder.problem(), "another key of n1"));
  std::filesystem::remove(folder.path + "/allowed");
  CHECK(contains(folder.problem(), "orrery keys make"));
  std::ofstream(folder.path + "/n1.secret") << "nothing";
  CHECK(contains(folder.problem(), "does not hold the two keys"));
}

TEST_CASE("security: addresses of this machine need no keys, others do", "[base][keys]") {
  for (const std::string host : {"127.0.0.1", "127.8.9.10", "localhost", "::1", "[::1]", "::ffff:127.0.0.1"}) {
    CAPTURE(host);
    CHECK(is_loopback(host));
    CHECK_FALSE(Security{}.protects(host).value());
    CHECK_FALSE((Security{nullptr, true, false}).protects(host).ok());
  }
  const auto keys = std::make_shared<KeyRing>();
  for (const std::string host : {"0.0.0.0", "*", "10.0.0.1", "::", "n1", "127.0.0.1.example.org", "localhost.example.org", ""}) {
    CAPTURE(host);
    CHECK_FALSE(is_loopback(host));
    CHECK_FALSE(Security{}.protects(host).ok());
    CHECK_FALSE((Security{nullptr, false, true}).protects(host).value());
    CHECK((Security{keys, false, false}).protects(host).value());
    CHECK((Security{keys, false, true}).protects(host).value());
  }
  CHECK_FALSE((Security{keys, false, false}).protects("127.0.0.1").value());
  CHECK((Security{keys, true, false}).protects("127.0.0.1").value());
}
