// Every message of the control plane, one struct each: who sends it, and what it causes.
//
// Plain values; they travel through CAF's serialiser between processes of the same version (the greeting
// refuses others). Tensors never do: they go over the data plane (protocol/). A reply that can fail carries a
// Failure; its `code` is 0 when all went well.
//
// Internal to actors/: this header includes CAF.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <caf/all.hpp>

#include "actors/request_spec.hpp"
#include "base/result.hpp"

namespace orrery::actors {

/// The control plane's version; a greeting with another one is refused.
inline constexpr std::uint32_t control_version = 1;

/// An Error on the wire.
struct Failure {
  std::uint16_t code = 0;
  std::string message;
  std::string hint;

  Failure() = default;
  Failure(const Error& error) : code(static_cast<std::uint16_t>(error.code)), message(error.message), hint(error.hint) {}
  bool ok() const { return code == 0; }
  Error error() const { return {static_cast<ErrorCode>(code), message, hint}; }
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Failure& x) {
  return f(x.code, x.message, x.hint);
}

// ---- node and coordinator ---------------------------------------------------------------------------------

/// Node to coordinator, once connected: I am here. Answered by NodeWelcome.
struct NodeHello {
  std::uint32_t version = 0;
  std::uint64_t cluster_id = 0;
  std::string name;
  std::string control_host;
  std::uint16_t control_port = 0;
  std::string data_address;  // Of its Exchange: "tcp://..." or "ipc://..."
  std::int64_t pid = 0;
  caf::actor node;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, NodeHello& x) {
  return f(x.version, x.cluster_id, x.name, x.control_host, x.control_port, x.data_address, x.pid, x.node);
}

struct NodeWelcome {
  Failure failure;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, NodeWelcome& x) {
  return f(x.failure);
}

/// One node as the others need to know it.
struct PeerAddress {
  std::string name;
  std::string control_host;
  std::uint16_t control_port = 0;
  std::string data_address;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, PeerAddress& x) {
  return f(x.name, x.control_host, x.control_port, x.data_address);
}

/// Coordinator to every node: your part of the plan. Causes cards to be made, weights to be read, neighbours to be
/// connected; LoadProgress meanwhile; answered by PlanLoaded.
struct LoadPlan {
  std::uint64_t epoch = 0;
  std::string plan;          // topology::Plan as JSON.
  std::string model_folder;  // Absolute; read by each node from its own file system.
  std::string dtype;         // "float32" or "bfloat16"
  std::vector<PeerAddress> peers;
  caf::actor coordinator;
  double collective_deadline_seconds = 60;
  std::vector<std::string> guardrail_folders;  // Word lists of the text guardrail.
  std::uint32_t queue_max = 64;                // Requests that may wait at a stage.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, LoadPlan& x) {
  return f(x.epoch, x.plan, x.model_folder, x.dtype, x.peers, x.coordinator, x.collective_deadline_seconds,
           x.guardrail_folders, x.queue_max);
}

struct PlanLoaded {
  Failure failure;
  std::string numerics;  // The numerics class that the node's kernels belong to.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, PlanLoaded& x) {
  return f(x.failure, x.numerics);
}

/// Node to coordinator while weights are read, at most a few times a second.
struct LoadProgress {
  std::string node;
  std::uint64_t bytes_done = 0, bytes_total = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, LoadProgress& x) {
  return f(x.node, x.bytes_done, x.bytes_total);
}

/// Coordinator to the first node of a stage's group. Answered by StageSpawned.
struct SpawnStage {
  std::uint8_t stage = 0;  // topology::StageKind
  std::uint64_t epoch = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, SpawnStage& x) {
  return f(x.stage, x.epoch);
}

struct StageSpawned {
  Failure failure;
  std::vector<caf::actor> stage;  // One, or none after a failure: CAF 0.17 loses a message that holds a null handle.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, StageSpawned& x) {
  return f(x.failure, x.stage);
}

/// Node to node: your card actor number `card` (plan numbering), please. Answered by CardHandle.
struct GetCard {
  std::uint64_t epoch = 0;
  std::uint32_t card = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, GetCard& x) {
  return f(x.epoch, x.card);
}
struct CardHandle {
  Failure failure;
  std::vector<caf::actor> card;  // One, or none after a failure.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, CardHandle& x) {
  return f(x.failure, x.card);
}

/// Coordinator to all nodes: drop everything of this request (lanes, stored messages, waiting receives).
struct DropRequest {
  std::uint64_t request = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, DropRequest& x) {
  return f(x.request);
}

/// Coordinator to nodes: end this process in good order. Client to coordinator: end the cluster.
struct Shutdown {
  std::string reason;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Shutdown& x) {
  return f(x.reason);
}

/// Coordinator to node, periodically, and back: how much memory and CPU the process uses.
struct AskNodeHealth {
  std::uint64_t round = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, AskNodeHealth& x) {
  return f(x.round);
}
struct NodeHealth {
  std::string name;
  std::uint64_t resident_bytes = 0, resident_bytes_max = 0;
  double cpu_seconds = 0;
  std::vector<std::uint64_t> card_bytes, card_bytes_max, card_budget;  // Per card of the node.
  std::uint64_t bytes_sent = 0, bytes_received = 0, frames_resent = 0, frames_refused = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, NodeHealth& x) {
  return f(x.name, x.resident_bytes, x.resident_bytes_max, x.cpu_seconds, x.card_bytes, x.card_bytes_max, x.card_budget,
           x.bytes_sent, x.bytes_received, x.frames_resent, x.frames_refused);
}

// ---- requests -----------------------------------------------------------------------------------------------

/// Client to coordinator: where is everybody? Answered by ClusterRoutes.
struct AskRoutes {
  std::uint32_t version = control_version;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, AskRoutes& x) {
  return f(x.version);
}
struct ClusterRoutes {
  Failure failure;
  std::uint64_t cluster_id = 0, epoch = 0, plan_digest = 0;
  std::vector<PeerAddress> peers;
  std::vector<std::uint32_t> card_peers;      // card_peers[c] = index in `peers` of the node of card c.
  std::vector<std::uint32_t> denoiser_cards;  // Where client noise is to be sent.
  std::uint32_t decoder_card = 0;             // Where frames come from.
  std::string plan;                           // JSON.
  std::string cluster, model, model_folder, dtype, numerics;
  RequestSpec defaults;                       // What a request of this model gets when it says nothing.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, ClusterRoutes& x) {
  return f(x.failure, x.cluster_id, x.epoch, x.plan_digest, x.peers, x.card_peers, x.denoiser_cards, x.decoder_card, x.plan,
           x.cluster, x.model, x.model_folder, x.dtype, x.numerics, x.defaults);
}

/// Client to coordinator. Answered by Submitted; then RequestEvents until one is final.
struct Submit {
  RequestSpec spec;
  std::uint32_t client_endpoint = 0;  // Drawn by the client, from first_client_endpoint on.
  std::string client_data_address;
  std::vector<std::uint64_t> noise_shape;  // Of the noise that will come, when spec.noise_from_client.
  caf::actor client;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Submit& x) {
  return f(x.spec, x.client_endpoint, x.client_data_address, x.noise_shape, x.client);
}
struct Submitted {
  Failure failure;
  std::uint64_t request = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Submitted& x) {
  return f(x.failure, x.request);
}

/// Client to coordinator: stop working on it.
struct Cancel {
  std::uint64_t request = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Cancel& x) {
  return f(x.request);
}

/// Client to coordinator: I have all of it (or want none of it); its traces may go.
struct Fetched {
  std::uint64_t request = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Fetched& x) {
  return f(x.request);
}

enum class EventKind : std::uint8_t { queued, stage_started, progress, stage_done, completed, failed, load };

/// Stage to request actor to client: how far it is.
struct RequestEvent {
  std::uint64_t request = 0;
  std::uint8_t kind = 0;   // EventKind
  std::string stage;       // "text_encoder" ...
  std::uint64_t done = 0, total = 0;
  double seconds = 0;      // progress: of the last step; stage_done: of the stage.
  Failure failure;         // failed
  std::string details;     // completed, stage_done: JSON object (timings, verdicts).
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RequestEvent& x) {
  return f(x.request, x.kind, x.stage, x.done, x.total, x.seconds, x.failure, x.details);
}

/// Client to coordinator: state of everything, as JSON. Answered by StatusText.
struct AskStatus {
  std::uint32_t version = control_version;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, AskStatus& x) {
  return f(x.version);
}
struct StatusText {
  std::string json;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, StatusText& x) {
  return f(x.json);
}

// ---- request actor and stages ---------------------------------------------------------------------------------

/// Request actor to stage actor: your turn. Answered by StageDone; the stage sends RequestEvents to `listener`.
struct StageRun {
  std::uint64_t request = 0;
  RequestSpec spec;
  std::uint32_t client_endpoint = 0;
  std::string client_data_address;
  std::uint32_t prompt_rows = 0, negative_rows = 0;  // Known after the text encoder.
  caf::actor listener;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, StageRun& x) {
  return f(x.request, x.spec, x.client_endpoint, x.client_data_address, x.prompt_rows, x.negative_rows, x.listener);
}
struct StageDone {
  Failure failure;
  std::uint32_t prompt_rows = 0, negative_rows = 0;
  double seconds = 0;
  std::string details;  // JSON object.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, StageDone& x) {
  return f(x.failure, x.prompt_rows, x.negative_rows, x.seconds, x.details);
}

/// Request actor to stage: forget this request, now.
struct CancelStage {
  std::uint64_t request = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, CancelStage& x) {
  return f(x.request);
}

// ---- stage and card -------------------------------------------------------------------------------------------

/// Stage to each of its cards: compile for this shape and reserve memory. Answered by CardDone.
struct OpenLane {
  std::uint64_t request = 0;
  std::uint8_t stage = 0;
  RequestSpec spec;
  std::uint32_t prompt_rows = 0, negative_rows = 0;
  std::uint32_t client_endpoint = 0;
  std::string client_data_address;  // Route for frames and saved tensors.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, OpenLane& x) {
  return f(x.request, x.stage, x.spec, x.prompt_rows, x.negative_rows, x.client_endpoint, x.client_data_address);
}

/// How an input slot is filled before a program runs.
enum class InputFrom : std::uint8_t { values, noise, message };
struct ProgramInput {
  std::string slot;
  std::uint8_t from = 0;             // InputFrom
  std::vector<std::int32_t> values;  // Token ids.
  std::uint64_t seed = 0;            // noise
  std::uint32_t edge = 0;            // message: which (Edge) ...
  std::uint32_t source = 0;          // ... from which endpoint.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, ProgramInput& x) {
  return f(x.slot, x.from, x.values, x.seed, x.edge, x.source);
}
/// Where an output slot goes after a program ran.
struct ProgramOutput {
  std::string slot;
  std::uint32_t edge = 0;
  std::uint32_t step = 0;
  std::vector<std::uint32_t> targets;  // Endpoints.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, ProgramOutput& x) {
  return f(x.slot, x.edge, x.step, x.targets);
}

/// Stage to each of its cards: run one program in the request's lane. Answered by CardDone.
struct RunProgram {
  std::uint64_t request = 0;
  std::uint8_t stage = 0;
  std::string program;
  std::uint32_t step = 0;
  std::vector<double> scalars;  // cards::Scalars
  std::vector<ProgramInput> inputs;
  std::vector<ProgramOutput> outputs;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RunProgram& x) {
  return f(x.request, x.stage, x.program, x.step, x.scalars, x.inputs, x.outputs);
}

struct CloseLane {
  std::uint64_t request = 0;
  std::uint8_t stage = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, CloseLane& x) {
  return f(x.request, x.stage);
}

struct CardDone {
  Failure failure;
  double compute_seconds = 0, exchange_seconds = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, CardDone& x) {
  return f(x.failure, x.compute_seconds, x.exchange_seconds);
}

/// Worker thread to its card actor (never leaves the process): work item `ticket` is done.
struct WorkDone {
  std::uint64_t ticket = 0;
  CardDone result;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, WorkDone& x) {
  return f(x.ticket, x.result);
}

/// Background thread to its node actor (never leaves the process).
struct LoadFinished {
  PlanLoaded result;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, LoadFinished& x) {
  return f(x.result.failure, x.result.numerics);
}
struct CardsFound {
  std::uint64_t ticket = 0;
  Failure failure;
  std::vector<caf::actor> cards;  // In the order of the plan's groups and ranks.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, CardsFound& x) {
  return f(x.ticket, x.failure, x.cards);
}

/// An actor to itself.
struct Tick {
  std::uint64_t round = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Tick& x) {
  return f(x.round);
}

}  // namespace orrery::actors

CAF_BEGIN_TYPE_ID_BLOCK(orrery, caf::first_custom_type_id)
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Failure))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::NodeHello))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::NodeWelcome))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::LoadPlan))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::PlanLoaded))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::LoadProgress))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::SpawnStage))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::StageSpawned))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::GetCard))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::CardHandle))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::DropRequest))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Shutdown))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::AskNodeHealth))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::NodeHealth))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::RequestSpec))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::AskRoutes))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::ClusterRoutes))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Submit))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Submitted))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Cancel))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Fetched))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::RequestEvent))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::AskStatus))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::StatusText))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::StageRun))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::StageDone))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::CancelStage))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::OpenLane))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::RunProgram))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::CloseLane))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::CardDone))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::WorkDone))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::LoadFinished))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::CardsFound))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Tick))
CAF_END_TYPE_ID_BLOCK(orrery)
