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
inline constexpr std::uint32_t control_version = 3;

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

/// Node to coordinator, once connected, and again whenever it lost the coordinator or was told to Rejoin: I am here.
/// Answered by NodeWelcome.
struct NodeHello {
  std::uint32_t version = 0;
  std::uint64_t cluster_id = 0;
  std::string name;
  std::uint64_t session = 0;  // This life of the process: random.
  std::uint64_t epoch = 0;    // Of the plan that it has loaded; 0: none.
  std::string control_host;
  std::uint16_t control_port = 0;
  std::uint32_t peer = 0;    // On the data plane.
  std::string data_address;  // Of its Exchange: "tcp://..." or "ipc://..."
  std::int64_t pid = 0;
  caf::actor node;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, NodeHello& x) {
  return f(x.version, x.cluster_id, x.name, x.session, x.epoch, x.control_host, x.control_port, x.peer, x.data_address, x.pid, x.node);
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
  std::uint32_t peer = 0;
  std::string data_address;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, PeerAddress& x) {
  return f(x.name, x.control_host, x.control_port, x.peer, x.data_address);
}

/// A copy of a tensor that a keeper holds, so that a request can go on after a failure (keeper.hpp).
struct KeptItem {
  std::uint64_t request = 0;
  std::uint32_t edge = 0;    // Edge
  std::uint32_t step = 0;    // Latents: finished steps.
  std::uint32_t rows = 0;    // First extent: of embeddings, the number of tokens.
  std::uint64_t digest = 0;  // xxh3 of the bytes.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, KeptItem& x) {
  return f(x.request, x.edge, x.step, x.rows, x.digest);
}

/// Coordinator to every living node: a new epoch begins, with this plan. Ends all work of former epochs; causes cards to
/// be made, weights that are not on them yet to be read, neighbours to be connected; LoadProgress meanwhile; answered by
/// PlanLoaded. An epoch that is not later than the node's is refused with stale_epoch.
struct LoadPlan {
  std::uint64_t epoch = 0;
  std::string plan;          // topology::Plan as JSON.
  std::string model_folder;  // Absolute; read by each node from its own file system.
  std::string dtype;         // A compiler::Compute by name: "float32", "bfloat16+int8" ...
  std::vector<PeerAddress> peers;  // The living nodes.
  caf::actor coordinator;
  double collective_deadline_seconds = 60;  // Until times were measured (program_runner.hpp).
  std::vector<std::string> guardrail_folders;  // Word lists of the text guardrail.
  std::uint32_t queue_max = 64;                // Requests that may wait at a stage.
  double straggler_factor = 1.5;               // A card that takes so many times its group's median ...
  std::uint32_t straggler_steps = 5;           // ... in so many steps in a row is reported.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, LoadPlan& x) {
  return f(x.epoch, x.plan, x.model_folder, x.dtype, x.peers, x.coordinator, x.collective_deadline_seconds,
           x.guardrail_folders, x.queue_max, x.straggler_factor, x.straggler_steps);
}

struct PlanLoaded {
  Failure failure;
  std::string numerics;  // The numerics class that the node's kernels belong to.
  std::uint64_t bytes_read = 0;    // Weights that were not on the cards yet.
  std::vector<KeptItem> kept = {};  // Restart points that this node holds.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, PlanLoaded& x) {
  return f(x.failure, x.numerics, x.bytes_read, x.kept);
}

/// Coordinator to every node a few times a second: are you there? Answered by a Pong message of its own.
struct Ping {
  std::uint64_t round = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Ping& x) {
  return f(x.round);
}
struct Pong {
  std::string node;
  std::uint64_t session = 0;
  std::uint64_t round = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Pong& x) {
  return f(x.node, x.session, x.round);
}

/// Coordinator to a node that it had given up: your epoch is over; stop what you do and say hello again.
struct Rejoin {
  std::string reason;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Rejoin& x) {
  return f(x.reason);
}

/// Node to coordinator: a neighbour that one of my cards waits for has been silent for so long.
struct LinkSilent {
  std::string node, peer;
  std::uint64_t epoch = 0;
  double seconds = 0;
  std::string waiting_for;  // "op 17 of step 12, request 4, from card 3 to card 0"
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, LinkSilent& x) {
  return f(x.node, x.peer, x.epoch, x.seconds, x.waiting_for);
}

/// Launcher to coordinator: this node's process is dead (and whether it will be started again).
struct NodeDied {
  std::string node;
  std::int64_t pid = 0;  // 0: whichever.
  std::string how;       // "was ended by signal 9 (Killed)"
  bool quarantined = false;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, NodeDied& x) {
  return f(x.node, x.pid, x.how, x.quarantined);
}

/// Denoiser or decoder stage to the node of a keeper: send what you keep to these endpoints. Answered by KeptSent.
struct SendKept {
  std::uint64_t request = 0;
  std::uint32_t edge = 0;
  std::uint32_t step = 0;
  std::vector<std::uint32_t> targets;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, SendKept& x) {
  return f(x.request, x.edge, x.step, x.targets);
}
struct KeptSent {
  Failure failure;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, KeptSent& x) {
  return f(x.failure);
}

/// A tool to the coordinator, and the coordinator to a node: fault injection, where it was allowed. `order` is JSON
/// (fault_switch.hpp) for `inject`, a name or nothing for `heal`. Answered by FaultAnswer.
enum class FaultVerb : std::uint8_t { inject, heal, list };
struct FaultCommand {
  std::uint8_t verb = 0;
  std::string node;  // Which node's; empty with heal and list: all.
  std::string order;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, FaultCommand& x) {
  return f(x.verb, x.node, x.order);
}
struct FaultAnswer {
  Failure failure;
  std::string json;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, FaultAnswer& x) {
  return f(x.failure, x.json);
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

/// Coordinator to all nodes: drop everything of this request (lanes, stored messages, waiting receives, what is kept).
/// Stage to its cards: end its programs.
struct DropRequest {
  std::uint64_t request = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, DropRequest& x) {
  return f(x.request);
}

/// Coordinator to all nodes: this request's client went away; nothing can be sent to it.
struct DropClient {
  std::uint64_t request = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, DropClient& x) {
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

/// Client to coordinator: what and where is everybody? Answered by ClusterRoutes, also while there is no plan.
struct AskRoutes {
  std::uint32_t version = control_version;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, AskRoutes& x) {
  return f(x.version);
}
/// Also from coordinator to every client whose request is open, whenever an epoch has become ready.
struct ClusterRoutes {
  Failure failure;  // A client of another version.
  std::uint64_t cluster_id = 0;
  bool ready = false;  // Otherwise nothing below `defaults` is filled in.
  std::string cluster, model, model_folder, dtype;
  RequestSpec defaults;  // What a request of this model gets when it says nothing.
  std::uint64_t epoch = 0, plan_digest = 0;
  std::vector<PeerAddress> peers;
  std::vector<std::uint32_t> card_peers;      // card_peers[c] = peer of the node of card c; 0: it is lost.
  std::vector<std::uint32_t> denoiser_cards;  // Where client noise is to be sent.
  std::string plan;                           // JSON.
  std::string numerics;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, ClusterRoutes& x) {
  return f(x.failure, x.cluster_id, x.ready, x.cluster, x.model, x.model_folder, x.dtype, x.defaults, x.epoch, x.plan_digest, x.peers,
           x.card_peers, x.denoiser_cards, x.plan, x.numerics);
}

/// Client to coordinator. Answered by Submitted, once the request is in the journal; then RequestEvents until one is
/// final. The same id again attaches this client to the request as it is.
struct Submit {
  std::string id;  // Made by the client: 32 hex digits.
  RequestSpec spec;
  std::uint32_t client_endpoint = 0;  // Drawn by the client, from first_client_endpoint on.
  std::string client_data_address;
  std::vector<std::uint64_t> noise_shape;  // Of the noise that will come, when spec.noise_from_client.
  caf::actor client;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Submit& x) {
  return f(x.id, x.spec, x.client_endpoint, x.client_data_address, x.noise_shape, x.client);
}
struct Submitted {
  Failure failure;
  std::uint64_t request = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Submitted& x) {
  return f(x.failure, x.request);
}

/// Anybody to coordinator: stop working on it. Answered by Cancelled. Coordinator to request actor: the same.
struct Cancel {
  std::uint64_t request = 0;  // 0: the one with this id, or prefix of one; "all": all.
  std::string id;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Cancel& x) {
  return f(x.request, x.id);
}
struct Cancelled {
  Failure failure;
  std::uint32_t count = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Cancelled& x) {
  return f(x.failure, x.count);
}

/// Client to coordinator: I have all of it; its traces may go. Answered by Cancelled (count 1), journaled.
struct Fetched {
  std::uint64_t request = 0;
  std::string digest;  // SHA-256 of the raw frames.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Fetched& x) {
  return f(x.request, x.digest);
}

enum class EventKind : std::uint8_t { stage_started, progress, stage_done, completed, failed, notice };

/// Stage to request actor to client: how far it is.
struct RequestEvent {
  std::uint64_t request = 0;
  std::uint8_t kind = 0;   // EventKind
  std::string stage;       // "text_encoder" ...
  std::uint64_t done = 0, total = 0;
  double seconds = 0;      // progress: of the last step; stage_done: of the stage.
  Failure failure;         // failed
  std::string details;     // completed, stage_done: JSON object (timings, verdicts); notice: a sentence.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RequestEvent& x) {
  return f(x.request, x.kind, x.stage, x.done, x.total, x.seconds, x.failure, x.details);
}

/// Request actor to coordinator: this attempt ended so. Whether the request ends with it, the coordinator decides.
struct AttemptEnded {
  std::uint64_t request = 0;
  std::uint64_t epoch = 0;
  Failure failure;
  std::vector<std::uint32_t> suspects;  // Cards that seem to be the cause.
  std::string stage;                    // Where; without a failure: it waits for a client there.
  std::string stages;                   // JSON object: each finished stage's details.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, AttemptEnded& x) {
  return f(x.request, x.epoch, x.failure, x.suspects, x.stage, x.stages);
}

/// Coordinator to request actor (never leaves the process): where its client is now; endpoint 0: nowhere.
struct ClientMoved {
  std::uint32_t endpoint = 0;
  std::string data_address;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, ClientMoved& x) {
  return f(x.endpoint, x.data_address);
}

/// Denoiser stage to coordinator: this card has been slower than its group's median for several steps.
struct Straggler {
  std::uint64_t epoch = 0;
  std::uint32_t card = 0;
  double factor = 1;  // Time per slice, by the median's.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Straggler& x) {
  return f(x.epoch, x.card, x.factor);
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
  std::vector<std::uint32_t> keepers;  // Endpoints that get a copy of embeddings and latents.
  // To go on after a failure: the keeper (endpoint) that has the inputs; 0: they come from the stage before.
  std::uint32_t resume_step = 0;  // Denoiser: steps that are done already.
  std::uint32_t embeds_keeper = 0, latents_keeper = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, StageRun& x) {
  return f(x.request, x.spec, x.client_endpoint, x.client_data_address, x.prompt_rows, x.negative_rows, x.listener, x.keepers,
           x.resume_step, x.embeds_keeper, x.latents_keeper);
}
struct StageDone {
  Failure failure;
  std::vector<std::uint32_t> suspects;  // Cards that seem to be the cause of a failure.
  std::uint32_t prompt_rows = 0, negative_rows = 0;
  double seconds = 0;
  std::string details;  // JSON object.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, StageDone& x) {
  return f(x.failure, x.suspects, x.prompt_rows, x.negative_rows, x.seconds, x.details);
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
  std::uint32_t step = 0;            // ... of which step ...
  std::uint32_t source = 0;          // ... from which endpoint.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, ProgramInput& x) {
  return f(x.slot, x.from, x.values, x.seed, x.edge, x.step, x.source);
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
  std::uint32_t runs_left = 0;  // How often this program will be run again in a row: what the card copies ahead.
  std::vector<double> scalars;  // cards::Scalars
  std::vector<ProgramInput> inputs;
  std::vector<ProgramOutput> outputs;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RunProgram& x) {
  return f(x.request, x.stage, x.program, x.step, x.runs_left, x.scalars, x.inputs, x.outputs);
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
  std::vector<std::uint32_t> suspects;  // Endpoints that did not deliver; empty: the failure is this card's own.
  double compute_seconds = 0;
  double exchange_seconds = 0;         // Waiting for others and copying what came: exposed.
  double hidden_exchange_seconds = 0;  // Exchange that went on while the card computed.
  double stall_seconds = 0;            // Waiting for weights that were still on their way from the host.
  std::uint64_t copied_bytes = 0;      // Weights that came from the host.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, CardDone& x) {
  return f(x.failure, x.suspects, x.compute_seconds, x.exchange_seconds, x.hidden_exchange_seconds, x.stall_seconds, x.copied_bytes);
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
  std::uint64_t epoch = 0;
  PlanLoaded result;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, LoadFinished& x) {
  return f(x.epoch, x.result);
}
struct NodesFound {
  std::uint64_t ticket = 0;
  Failure failure;
  std::vector<caf::actor> nodes;  // In the order in which they were asked for.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, NodesFound& x) {
  return f(x.ticket, x.failure, x.nodes);
}
/// Fault injection to its node actor: hang, until this fault is healed.
struct HangNode {
  std::string fault;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, HangNode& x) {
  return f(x.fault);
}
struct CoordinatorFound {
  Failure failure;
  std::vector<caf::actor> coordinator;  // One, or none after a failure.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, CoordinatorFound& x) {
  return f(x.failure, x.coordinator);
}

/// A client to the coordinator, and the coordinator to a node: go on recording what happens (base/trace.hpp) for this time,
/// and hand over what was recorded. Also one round trip for clock_offset.hpp. Answered by TracePiece; fails with
/// pool_exhausted while another reader's recording goes on.
struct AskTrace {
  std::uint64_t reader = 0;      // Random, of one recording.
  std::string node;              // Which; empty: the coordinator's own process.
  double lease_seconds = 0;      // 0: recording ends with this answer.
  std::uint32_t events_max = 0;  // 0: only the time is asked for.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, AskTrace& x) {
  return f(x.reader, x.node, x.lease_seconds, x.events_max);
}
struct TracePiece {
  Failure failure;
  std::string node;  // Who recorded; empty: the coordinator.
  std::int64_t pid = 0;
  std::int64_t now = 0;     // Nanoseconds of its steady clock, while it answered.
  std::string clock;        // trace::clock_name
  std::string events;       // trace::pack; may be empty.
  bool more = false;        // There is more than was asked for.
  std::vector<std::string> nodes;  // The coordinator's answer: which nodes are up.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, TracePiece& x) {
  return f(x.failure, x.node, x.pid, x.now, x.clock, x.events, x.more, x.nodes);
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
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::NodesFound))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::CoordinatorFound))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::HangNode))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Ping))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Pong))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Rejoin))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::LinkSilent))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::NodeDied))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::SendKept))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::KeptSent))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::FaultCommand))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::FaultAnswer))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::DropClient))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Cancelled))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::AttemptEnded))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Straggler))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::ClientMoved))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::Tick))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::AskTrace))
  CAF_ADD_TYPE_ID(orrery, (orrery::actors::TracePiece))
CAF_END_TYPE_ID_BLOCK(orrery)
