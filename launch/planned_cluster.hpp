// From a command line to a plan: what `up`, `generate` and `coordinator` share.
//
// The launcher plans to tell mistakes before it starts anything; the coordinator it starts plans again from the same
// arguments (`words_of`), and both must come to the same plan (`Plan::digest`).

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/coordinator.hpp"
#include "actors/request_spec.hpp"
#include "base/result.hpp"
#include "launch/verb.hpp"
#include "topology/config_set.hpp"
#include "topology/demand.hpp"
#include "topology/plan.hpp"

namespace orrery::launch {

/// The request to plan for, where it differs from the model's defaults.
struct PlannedRequest {
  std::optional<topology::FrameSize> size;
  std::optional<std::uint32_t> frames, steps, max_text_tokens;
  std::optional<double> guidance;
};

struct ClusterArguments {
  ConfigArguments config;
  std::string deployment;
  std::string model_folder;  // Overrides the model file's folder.
  std::string dtype;         // "float32" or "bfloat16": overrides the model file's.
  std::string quantisation;  // "none" or "int8": the same.
  PlannedRequest request = {};
  bool allow_faults = false;  // `orrery fault inject` may do harm here.
};

/// -f, --set, --deployment, --model, --dtype, --quantisation, --allow-faults.
void add_cluster_options(CLI::App& verb, ClusterArguments& arguments);
/// --quantisation alone, for verbs that have no cluster.
void add_quantisation_option(CLI::App& verb, std::string& quantisation);

/// The arguments as the words of a command line, for another process of this program in the same folder.
std::vector<std::string> words_of(const ClusterArguments& arguments);

/// A resolved deployment with its plan.
struct PlannedCluster {
  topology::Resolved resolved;
  topology::Demand demand;
  topology::Plan plan;
  std::string model_folder;  // Absolute.
  /// Of a request: the Model document's where it gives any, else the folder's generation_config.json.
  actors::RequestSpec defaults;
  bool allow_faults = false;
  /// What was read from standard input (-f -), to be read again by a child: ProcessSpec::input_file. Empty: nothing.
  std::string input_file;
  std::shared_ptr<const int> input_descriptor;  // Holds it.
};

/// Reads the files, looks at the model folder and plans. Starts nothing.
Result<PlannedCluster> plan_cluster(const ClusterArguments& arguments, const VerbContext& context);

/// What the coordinator is told of it, but for its state folder; where to listen is the cluster's.
Result<actors::CoordinatorOptions> coordinator_options(const PlannedCluster& planned);

/// "00f3a9..." of a plan: 16 hex digits.
std::string digest_text(const topology::Plan& plan);

}  // namespace orrery::launch
