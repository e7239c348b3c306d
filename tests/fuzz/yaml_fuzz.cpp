// Configuration files made of any bytes: read whole, or complained about with places; what is accepted can be used.

#include "tests/fuzz/input.hpp"
#include "topology/config_set.hpp"

namespace {

using namespace orrery;

void make_corpus(const std::string& folder) {
  // Every shipped file, and every file that is wrong in one way.
  for (const std::string from : {"configs/clusters", "configs/cards", "configs/models", "configs/deployments", "configs/scenarios", "tests/topology/bad"}) {
    const auto path = std::filesystem::path(ORRERY_SOURCE_DIR) / from;
    if (!std::filesystem::is_directory(path)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.path().extension() == ".yaml" && entry.file_size() < 4096) fuzz::write_seed(folder, entry.path().filename().string(), fuzz::contents_of(entry.path()));
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) { return fuzz::initialize(make_corpus); }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto set = topology::ConfigSet::read({{fuzz::file_with(data, size)}, {}, "", [](const std::string&) { return std::nullopt; }});
  const auto text = text_of(set.findings());
  ORRERY_CHECK(set.ok() || !text.empty());
  // Complaints go to terminals: no control characters but line ends.
  for (const char c : text) ORRERY_CHECK(c == '\n' || static_cast<unsigned char>(c) >= 0x20);
  for (const auto& finding : set.findings()) (void)finding.json().dump();
  if (!set.ok()) return 0;
  for (const auto& [name, cluster] : set.clusters()) ORRERY_CHECK(!cluster.nodes.empty() && cluster.card_count() <= topology::card_count_max);
  (void)set.resolve();
  return 0;
}
