// Which model runs on which cluster, what the planner may decide, and what happens when something is lost.

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
  std::optional<double> request_deadline;  // Seconds from acceptance to delivery; nothing: none.
  double keep_results = 600;               // Seconds that a finished video waits for a client.
};

/// Between coordinator and nodes, in seconds.
struct HeartbeatSpec {
  double interval = 0.1;
  double timeout = 0.9;  // Silence after which a node counts as lost; at least three intervals.
};

/// What becomes of requests when a card is lost.
enum class OnCardLoss : std::uint8_t {
  replan,  // Its slices move to the other cards, and the requests go on.
  fail,    // The requests fail, naming the card.
};

/// A node that dies more than `max` times `within` seconds is not started again.
struct RestartsSpec {
  std::uint32_t max = 5;
  double within = 60;
};

/// A card that needs `factor` times the median of its group in `steps` steps one after the other gets fewer slices.
struct StragglerSpec {
  double factor = 1.5;
  std::uint32_t steps = 5;
};

struct ResilienceSpec {
  HeartbeatSpec heartbeat;
  OnCardLoss on_card_loss = OnCardLoss::replan;
  std::uint32_t spares = 0;  // Cards that the plan leaves out until one is lost.
  RestartsSpec restarts;
  StragglerSpec straggler;
};

/// Where weights are while programs run.
enum class WeightPlacement : std::uint8_t {
  automatic,  // On the cards when they fit there, else streamed.
  resident,   // On the cards, or there is no plan.
  streamed,   // With the hosts; parts are copied in ahead of their use.
};

struct DeploymentSpec {
  std::string name;
  std::string cluster, model;  // Empty: the only one.
  ParallelismSpec parallelism;
  PlacementSpec placement;
  Objective objective = Objective::latency;
  WeightPlacement weights = WeightPlacement::automatic;
  AdmissionSpec admission;
  ResilienceSpec resilience;
};

DeploymentSpec read_deployment(const YamlNode& spec, const std::string& name, YamlReader& reader);

OrderedJson deployment_json_schema();
std::vector<SchemaPage> deployment_pages();
std::vector<std::string> deployment_keys();

}  // namespace orrery::topology
