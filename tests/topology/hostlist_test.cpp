#include <catch2/catch.hpp>

#include "topology/hostlist.hpp"

using orrery::topology::expand_hosts;

namespace {

std::string joined(const std::string& text) {
  const auto hosts = expand_hosts(text);
  if (!hosts.ok()) return "error: " + hosts.error().text();
  std::string all;
  for (const auto& host : hosts.value()) all += (all.empty() ? "" : " ") + host;
  return all;
}

}  // namespace

TEST_CASE("host list: names expand as Slurm and ClusterShell expand them", "[topology][hostlist]") {
  CHECK(joined("npu1") == "npu1");
  CHECK(joined("npu[01-04,07]") == "npu01 npu02 npu03 npu04 npu07");
  CHECK(joined("rack[1-2]n[1-3]") == "rack1n1 rack1n2 rack1n3 rack2n1 rack2n2 rack2n3");
  CHECK(joined("a,b[1-2],c.example.org") == "a b1 b2 c.example.org");
  CHECK(joined("n[8-11]") == "n8 n9 n10 n11");
  CHECK(joined("n[098-101]") == "n098 n099 n100 n101");
  CHECK(joined("[1-2]x") == "1x 2x");
}

TEST_CASE("host list: what is malformed or too large is refused before anything is made", "[topology][hostlist]") {
  CHECK(joined("") == "error: has an empty host name (write e.g. npu[01-04,07])");
  CHECK(joined("a,,b") == "error: has an empty host name (write e.g. npu[01-04,07])");
  CHECK(joined("n[1-") == "error: has a '[' that is never closed (write e.g. npu[01-04,07])");
  CHECK(joined("n]1") == "error: has the character ']' in a host name (letters, digits, '-', '.', '_')");
  CHECK(joined("n[4-1]") == "error: has the range '4-1', which runs backward (write e.g. npu[01-04,07])");
  CHECK(joined("n[01-100]") ==
        "error: has the range '01-100', whose ends have different widths (pad both with zeros)");
  CHECK(joined("n[x]") == "error: has 'x' in brackets, which is no number or range (write e.g. npu[01-04,07])");
  CHECK(joined("n[]") == "error: has '' in brackets, which is no number or range (write e.g. npu[01-04,07])");
  CHECK(joined("n[1-999999999]") == "error: names more than 4096 hosts");
  CHECK(joined("n[1-99999999999999999999]") ==
        "error: has '1-99999999999999999999' in brackets, which is no number or range (write e.g. npu[01-04,07])");
  CHECK(joined("a[1-64]b[1-64]c[1-64]") == "error: names more than 4096 hosts");
  CHECK(joined("a[1-2]b[1-2]c[1-2]d[1-2]e[1-2]f[1-2]g[1-2]h[1-2]i[1-2]j[1-2]") ==
        "error: has more than 8 brackets");
  CHECK(joined("n1,n[1-3]") == "error: names host 'n1' twice");
  CHECK(joined("n 1") == "error: has the character ' ' in a host name (letters, digits, '-', '.', '_')");
  CHECK(expand_hosts("n[1-4096]").ok());
  CHECK_FALSE(expand_hosts("n[1-4097]").ok());
}
