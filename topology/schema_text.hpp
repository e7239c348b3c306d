// The configuration's reference, for editors (JSON Schema) and people (markdown), from the declarations.

#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/yaml_schema.hpp"

namespace orrery::topology {

struct Metadata {
  std::string name;
  std::map<std::string, std::string> labels, annotations;
};
std::vector<SchemaPage> metadata_pages();
OrderedJson metadata_json_schema();

/// One kind of document.
struct KindSchema {
  std::string kind;
  OrderedJson spec;               // JSON Schema of `spec`.
  std::vector<SchemaPage> pages;  // The kind's own page first.
};

/// Cluster, CardProfile, Model, Deployment, Scenario, Experiment.
std::vector<KindSchema> topology_kinds();

/// One draft-07 schema for documents of all these kinds, told apart by `kind`.
OrderedJson json_schema_of(std::span<const KindSchema> kinds);

/// The reference page: configs/SCHEMA.md.
std::string markdown_of(std::span<const KindSchema> kinds);

}  // namespace orrery::topology
