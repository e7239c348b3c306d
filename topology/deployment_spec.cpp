#include "topology/deployment_spec.hpp"

#include "base/units.hpp"

namespace orrery::topology {
namespace {

std::string positive(const double& seconds) { return seconds > 0 ? "" : "should be more than 0"; }

/// From `least` to `most` seconds; the words say what they are.
Schema<HeartbeatSpec>::Options<double> between(double least, double most) {
  return {.check = [least, most](const double& seconds) {
    return seconds >= least && seconds <= most ? std::string() : "should be from " + text_of_seconds(least) + " to " + text_of_seconds(most);
  }};
}

const Schema<ResilienceSpec>& resilience_schema() {
  static const Schema<HeartbeatSpec> heartbeat =
      Schema<HeartbeatSpec>("heartbeat", "Signs of life between coordinator and nodes.")
          .field("interval", &HeartbeatSpec::interval, seconds(), "Between two of them; `10 ms` to `10 s`.", between(0.01, 10))
          .field("timeout", &HeartbeatSpec::timeout, seconds(), "Silence after which a node counts as lost; at least three intervals.",
                 between(0.03, 600));
  static const Schema<RestartsSpec> restarts =
      Schema<RestartsSpec>("restarts", "How often a node's process may die before it is left alone.")
          .field("max", &RestartsSpec::max, whole<std::uint32_t>(0, 1000), "Restarts; the node is quarantined at the next death.")
          .field("within", &RestartsSpec::within, seconds(), "The time in which they are counted.", {.check = positive});
  static const Schema<StragglerSpec> straggler =
      Schema<StragglerSpec>("straggler", "A card that is slower than the others of its group gets fewer slices.")
          .field("factor", &StragglerSpec::factor, number(1.05, 1000), "Its step's time over the group's median.")
          .field("steps", &StragglerSpec::steps, whole<std::uint32_t>(1, 1000), "Steps in a row that it has to be that slow.");
  static const Schema<ResilienceSpec> schema =
      Schema<ResilienceSpec>("resilience", "What happens when a card, a node or the coordinator is lost.")
          .field("heartbeat", &ResilienceSpec::heartbeat, object(heartbeat), "Signs of life.", {.standard = "every 100 ms, lost after 900 ms"})
          .field("on_card_loss", &ResilienceSpec::on_card_loss, choice<OnCardLoss>({{"replan", OnCardLoss::replan}, {"fail", OnCardLoss::fail}}),
                 "`replan`: its slices move to the other cards and requests go on. `fail`: running requests fail, naming the card.")
          .field("spares", &ResilienceSpec::spares, whole<std::uint32_t>(0, 65'536), "Cards that are kept free until one is lost.")
          .field("restarts", &ResilienceSpec::restarts, object(restarts), "How often a node's process may die.", {.standard = "5 within 1 min"})
          .field("straggler", &ResilienceSpec::straggler, object(straggler), "When a slow card gets less work.",
                 {.standard = "1.5 times the median, 5 steps"});
  return schema;
}

const Schema<DeploymentSpec>& deployment_schema() {
  const auto degree = auto_or(whole<std::uint32_t>(1, 256));
  static const Schema<ParallelismSpec> parallelism =
      Schema<ParallelismSpec>("parallelism", "How the denoiser is shared out. `auto`: the planner chooses.")
          .field("tensor", &ParallelismSpec::tensor, degree, "Cards in a tensor group: they share every matrix.")
          .field("sequence", &ParallelismSpec::sequence, degree,
                 "Cards in a sequence group: they share the tokens. Not together with `tensor` above 1.")
          .field("cfg", &ParallelismSpec::cfg, auto_or(whole<std::uint32_t>(1, 2)),
                 "2: prompt and negative prompt on different cards.");
  const auto cards = list_of(text(), 256);
  static const Schema<PlacementSpec> placement =
      Schema<PlacementSpec>("placement", "Cards that a stage may use, as `host`, `host:CARD` or host lists.")
          .field("text_encoder", &PlacementSpec::text_encoder, cards, "The text encoder.",
                 {.example = "[\"npu01:0\"]", .standard = "any"})
          .field("denoiser", &PlacementSpec::denoiser, cards, "The denoiser.",
                 {.example = "[\"npu[01-02]\"]", .standard = "any"})
          .field("decoder", &PlacementSpec::decoder, cards, "The decoder.", {.standard = "any"})
          .field("guardrails", &PlacementSpec::guardrails, cards, "The guardrails.", {.standard = "any"});
  static const Schema<AdmissionSpec> admission =
      Schema<AdmissionSpec>("admission", "How many requests are taken.")
          .field("max_in_flight", &AdmissionSpec::max_in_flight, whole<std::uint32_t>(1, 64),
                 "Requests in the pipeline at once.")
          .field("max_queue", &AdmissionSpec::max_queue, whole<std::uint32_t>(0, 100'000),
                 "Requests that wait; more are refused.")
          .field("request_deadline", &AdmissionSpec::request_deadline, word_or("none", seconds()),
                 "A request that takes longer fails.",
                 {.example = "10 min", .check = [](const std::optional<double>& one) { return one ? positive(*one) : std::string(); }})
          .field("keep_results", &AdmissionSpec::keep_results, seconds(),
                 "How long a finished video waits for a client that went away.");
  static const Schema<DeploymentSpec> schema =
      Schema<DeploymentSpec>("Deployment", "A model on a cluster. The keys of `spec`:")
          .field("cluster", &DeploymentSpec::cluster, text(), "Name of a Cluster.", {.standard = "the only one"})
          .field("model", &DeploymentSpec::model, text(), "Name of a Model.", {.standard = "the only one"})
          .field("parallelism", &DeploymentSpec::parallelism, object(parallelism),
                 "How the denoiser is shared out.", {.standard = "all auto"})
          .field("placement", &DeploymentSpec::placement, object(placement), "Cards that a stage may use.",
                 {.standard = "any"})
          .field("objective", &DeploymentSpec::objective, choice<Objective>({{"latency", Objective::latency}}),
                 "What the planner makes small: the time to one video.")
          .field("weights", &DeploymentSpec::weights,
                 choice<WeightPlacement>({{"auto", WeightPlacement::automatic}, {"resident", WeightPlacement::resident}, {"streamed", WeightPlacement::streamed}}),
                 "`resident`: on the cards. `streamed`: with the hosts, copied in ahead of their use. `auto`: streamed when they do not fit.")
          .field("admission", &DeploymentSpec::admission, object(admission), "How many requests are taken.",
                 {.standard = "2 in flight, 64 waiting"})
          .field("resilience", &DeploymentSpec::resilience, object(resilience_schema()),
                 "What happens when a card, a node or the coordinator is lost.", {.standard = "re-plan and go on"});
  return schema;
}

}  // namespace

DeploymentSpec read_deployment(const YamlNode& spec, const std::string& name, YamlReader& reader) {
  DeploymentSpec deployment;
  deployment_schema().read(spec, "spec", deployment, reader);
  deployment.name = name;
  const auto& wanted = deployment.parallelism;
  if (wanted.tensor.value_or(1) > 1 && wanted.sequence.value_or(1) > 1)
    reader.complain(spec.nearest("parallelism.sequence"), "E112", "spec.parallelism.sequence",
                    "should be 1 or auto beside a tensor split: the two are not combined", "choose one of them");
  const auto& heartbeat = deployment.resilience.heartbeat;
  // 0.3 is less than three times 0.1.
  if (heartbeat.timeout >= 0.03 && heartbeat.timeout < 3 * heartbeat.interval * (1 - 1e-9))
    reader.complain(spec.nearest("resilience.heartbeat.timeout"), "E112", "spec.resilience.heartbeat.timeout",
                    "should be at least three intervals, " + text_of_seconds(3 * heartbeat.interval) + ", not " + text_of_seconds(heartbeat.timeout),
                    "one late message is no death");
  return deployment;
}

OrderedJson deployment_json_schema() { return deployment_schema().json_schema(); }
std::vector<SchemaPage> deployment_pages() { return deployment_schema().pages(); }
std::vector<std::string> deployment_keys() { return deployment_schema().keys(); }

}  // namespace orrery::topology
