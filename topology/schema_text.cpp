#include "topology/schema_text.hpp"

#include "topology/card_profile.hpp"
#include "topology/cluster_spec.hpp"
#include "topology/deployment_spec.hpp"
#include "topology/experiment_spec.hpp"
#include "topology/model_spec.hpp"
#include "topology/scenario_spec.hpp"

namespace orrery::topology {

std::vector<KindSchema> topology_kinds() {
  return {{"Cluster", cluster_json_schema(), cluster_pages()},
          {"CardProfile", card_profile_schema().json_schema(), card_profile_schema().pages()},
          {"Model", model_json_schema(), model_pages()},
          {"Deployment", deployment_json_schema(), deployment_pages()},
          {"Scenario", scenario_json_schema(), scenario_pages()},
          {"Experiment", experiment_json_schema(), experiment_pages()}};
}

OrderedJson json_schema_of(std::span<const KindSchema> kinds) {
  OrderedJson names = OrderedJson::array(), rules = OrderedJson::array();
  for (const auto& kind : kinds) {
    names.push_back(kind.kind);
    rules.push_back({{"if", {{"properties", {{"kind", {{"const", kind.kind}}}}}}},
                     {"then", {{"properties", {{"spec", kind.spec}}}}}});
  }
  return {{"$schema", "http://json-schema.org/draft-07/schema#"},
          {"title", "Orrery configuration"},
          {"type", "object"},
          {"properties",
           {{"apiVersion", {{"const", "orrery/v1"}}},
            {"kind", {{"enum", names}}},
            {"metadata", metadata_json_schema()},
            {"spec", {{"type", "object"}}}}},
          {"required", {"apiVersion", "kind", "metadata", "spec"}},
          {"patternProperties", {{"^x-", OrderedJson::object()}}},
          {"additionalProperties", false},
          {"allOf", rules}};
}

std::string markdown_of(std::span<const KindSchema> kinds) {
  std::string page =
      "# Configuration reference\n\n"
      "Written by `orrery schema --markdown`; a test compares it with the program.\n\n"
      "Every document has `apiVersion: orrery/v1`, a `kind`, `metadata` and a `spec`. A file may hold several, "
      "separated by `---`.\n"
      "Unknown and duplicate keys, missing units and bad references are errors, all reported in one run. Keys that "
      "begin with `x-` are\n"
      "ignored. Text may contain `${VAR}`, `${VAR:-default}` and `${VAR:?message}`. Booleans are `true` and "
      "`false`; whole numbers are\n"
      "decimal. There are no anchors, aliases, merge keys or tags.\n\n";
  page += orrery::markdown_of(metadata_pages());
  for (const auto& kind : kinds) page += "## kind: " + kind.kind + "\n\n" + orrery::markdown_of(kind.pages);
  while (page.ends_with("\n\n")) page.pop_back();
  return page;
}

}  // namespace orrery::topology
