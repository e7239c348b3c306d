// All documents of one run (-f FILE, -f FOLDER, --set PATH=VALUE), read, checked and resolved.
//
// Reading never stops early: `findings` holds what is wrong in all files together. References are by
// metadata.name; a card type, cluster or model that the files do not hold is looked for among the shipped ones.

#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/yaml_schema.hpp"
#include "topology/cluster_spec.hpp"
#include "topology/deployment_spec.hpp"
#include "topology/experiment_spec.hpp"
#include "topology/model_spec.hpp"
#include "topology/scenario_spec.hpp"

namespace orrery::topology {

struct ConfigOptions {
  std::vector<std::string> inputs;     // Files, folders (all *.yaml inside), or "-" for standard input.
  std::vector<std::string> overrides;  // "spec.parallelism.tensor=4" or "parallelism.tensor=4".
  std::string configs_folder;          // The shipped configs/; empty: none.
  Environment environment = process_environment();
};

/// A checked envelope and the unread rest.
struct Document {
  std::string kind, name;
  std::map<std::string, std::string> labels;
  YamlNode root;
  /// The node under `spec`. A place to point at when there is none.
  const YamlNode& spec() const;
};

/// What `orrery` works on.
struct Resolved {
  ClusterSpec cluster;
  ModelSpec model;
  DeploymentSpec deployment;
};

class ConfigSet {
public:
  static ConfigSet read(const ConfigOptions& options);

  const Findings& findings() const { return findings_; }
  bool ok() const { return !has_errors(findings_); }

  /// In file order, all kinds. Plan is kept as it is, for whoever runs it.
  const std::vector<Document>& documents() const { return documents_; }
  const std::map<std::string, ClusterSpec>& clusters() const { return clusters_; }
  const std::map<std::string, ModelSpec>& models() const { return models_; }
  const std::map<std::string, DeploymentSpec>& deployments() const { return deployments_; }
  const std::map<std::string, ScenarioSpec>& scenarios() const { return scenarios_; }
  const std::map<std::string, ExperimentSpec>& experiments() const { return experiments_; }
  /// Those of the files and the shipped ones.
  const CardTypes& card_types() const { return card_types_; }

  /// The named deployment, or the only one; without any: the only cluster and the only model. A deployment
  /// that names no cluster or model takes the only one.
  /// Fails with invalid_config when there are findings, nothing to choose, or too much.
  Result<Resolved> resolve(const std::string& deployment = "") const;
  /// The same for whoever has a model folder instead: `model` stays empty, and the files need none.
  Result<Resolved> resolve_without_model(const std::string& deployment = "") const;

private:
  class Loader;
  std::vector<Document> documents_;
  std::map<std::string, ClusterSpec> clusters_, shipped_clusters_;
  std::map<std::string, ModelSpec> models_, shipped_models_;
  std::map<std::string, DeploymentSpec> deployments_, shipped_deployments_;  // The latter for scenarios and experiments.
  std::map<std::string, ScenarioSpec> scenarios_;
  std::map<std::string, ExperimentSpec> experiments_;
  CardTypes card_types_;
  Findings findings_;
};

/// Kinds that a document may have.
const std::vector<std::string>& known_kinds();

}  // namespace orrery::topology
