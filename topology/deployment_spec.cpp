#include "topology/deployment_spec.hpp"

namespace orrery::topology {
namespace {

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
                 "Requests that wait; more are refused.");
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
          .field("admission", &DeploymentSpec::admission, object(admission), "How many requests are taken.",
                 {.standard = "2 in flight, 64 waiting"});
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
  return deployment;
}

OrderedJson deployment_json_schema() { return deployment_schema().json_schema(); }
std::vector<SchemaPage> deployment_pages() { return deployment_schema().pages(); }
std::vector<std::string> deployment_keys() { return deployment_schema().keys(); }

}  // namespace orrery::topology
