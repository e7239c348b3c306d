// From an Experiment to one set of YAML documents per configuration, which is what planner and cluster are given.
//
// A configuration is the cluster cut down to its first nodes and cards, with the degrees and the transport of the
// matrix set in the deployment and the cluster. Writing it out keeps what was measured reproducible: each file can be given to
// `orrery up` and `orrery plan` as it is.

#pragma once

#include <string>

#include "base/result.hpp"
#include "topology/config_set.hpp"

namespace orrery::launch {

/// A document as text, block style. `node` must come from a parsed file.
std::string yaml_of(const YamlNode& node);

/// The documents that an experiment stands on.
class BenchConfig {
public:
  /// `set` without findings. Shipped documents are read from `configs_folder` where the files only name them. Fails with
  /// invalid_config.
  static Result<BenchConfig> create(const topology::ConfigSet& set, const std::string& deployment, const std::string& configs_folder);

  const topology::Resolved& resolved() const { return resolved_; }
  /// All documents, as given after --set.
  std::string text() const;
  /// Those of one configuration. Fails with invalid_config when the cluster has too few nodes or cards for it.
  Result<std::string> text_of(const topology::ExperimentPoint& point) const;

private:
  topology::Resolved resolved_;
  std::vector<topology::Document> others_;  // Card profiles, the experiment.
  topology::Document cluster_, deployment_, model_;
};

}  // namespace orrery::launch
