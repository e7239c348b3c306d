// Which model runs on which cluster, and what the planner may decide.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/yaml_schema.hpp"

namespace orrery::topology {

/// Nothing means `auto`: the planner chooses.
struct ParallelismSpec {
  std::optional<std::uint32_t> tensor;    // Cards of the denoiser that share every matrix.
  std::optional<std::uint32_t> sequence;  // Cards of the denoiser that share the tokens.
  std::optional<std::uint32_t> cfg;       // 2: guidance branches on different cards.
};

/// Cards that a stage may use ("host", "host:0", "host[1-4]:1"); empty: any.
struct PlacementSpec {
  std::vector<std::string> text_encoder, denoiser, decoder, guardrails;
};

enum class Objective : std::uint8_t { latency };

struct AdmissionSpec {
  std::uint32_t max_in_flight = 2;
  std::uint32_t max_queue = 64;
};

struct DeploymentSpec {
  std::string name;
  std::string cluster, model;  // Empty: the only one.
  ParallelismSpec parallelism;
  PlacementSpec placement;
  Objective objective = Objective::latency;
  AdmissionSpec admission;
};

DeploymentSpec read_deployment(const YamlNode& spec, const std::string& name, YamlReader& reader);

OrderedJson deployment_json_schema();
std::vector<SchemaPage> deployment_pages();
std::vector<std::string> deployment_keys();

}  // namespace orrery::topology
