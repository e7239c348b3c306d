// Every message of the control plane survives CAF's serialiser: a type that was not announced, or a field that is missing
// in `inspect`, would be noticed only between processes.

#include "actors/control_state.hpp"
#include "actors/edges.hpp"

#include <catch2/catch.hpp>

using namespace orrery::actors;

namespace {

template <class T>
T there_and_back(caf::actor_system& system, const T& message) {
  caf::binary_serializer::container_type bytes;
  caf::scoped_execution_unit context(&system);  // Actor handles need one.
  caf::binary_serializer sink(&context, bytes);
  auto whole = caf::make_message(message);
  REQUIRE_FALSE(sink(whole));
  caf::binary_deserializer source(&context, bytes);
  caf::message copy;
  REQUIRE_FALSE(source(copy));
  INFO(__PRETTY_FUNCTION__);
  REQUIRE(copy.match_elements<T>());
  return copy.get_as<T>(0);
}

}  // namespace

TEST_CASE("messages: what is sent is what arrives", "[actors]") {
  Control control;
  auto& system = control.state().system;
  // Messages that carry an actor always have one; those that may not say so in messages.hpp.
  const auto actor = system.spawn([](caf::event_based_actor*) -> caf::behavior { return {[](int) {}}; });
  const struct Ending {
    caf::actor actor;
    ~Ending() { caf::anon_send_exit(actor, caf::exit_reason::user_shutdown); }
  } ending{actor};

  Failure failure;
  failure.code = 22;
  failure.message = "frames 10 is not 8k+1";
  failure.hint = "use 9";
  CHECK(there_and_back(system, failure).hint == "use 9");

  NodeHello hello;
  hello.version = 3;
  hello.cluster_id = 7;
  hello.name = "n1";
  hello.control_port = 4711;
  hello.data_address = "ipc:///tmp/x";
  hello.pid = 12;
  hello.node = actor;
  const auto hello_copy = there_and_back(system, hello);
  CHECK(hello_copy.cluster_id == 7);
  CHECK(hello_copy.data_address == hello.data_address);
  CHECK(hello_copy.pid == 12);

  LoadPlan load;
  load.epoch = 9;
  load.plan = "{}";
  load.peers = {{"n1", "127.0.0.1", 1, 1, "tcp://a"}, {"n2", "127.0.0.1", 2, 2, "tcp://b"}};
  load.straggler_steps = 7;
  load.guardrail_folders = {"a", "b"};
  load.collective_deadline_seconds = 61.5;
  load.queue_max = 5;
  load.coordinator = actor;
  const auto load_copy = there_and_back(system, load);
  CHECK(load_copy.peers[1].data_address == "tcp://b");
  CHECK(load_copy.guardrail_folders.size() == 2);
  CHECK(load_copy.collective_deadline_seconds == 61.5);
  CHECK(load_copy.queue_max == 5);
  CHECK(load_copy.peers[1].peer == 2);
  CHECK(load_copy.straggler_steps == 7);

  RequestSpec spec;
  spec.prompt = "a red circle";
  spec.seed = 1ULL << 63;
  spec.fps = 8;
  spec.guidance = 1.2;
  spec.noise_from_client = spec.save_tensors = true;
  StageRun run;
  run.request = 4;
  run.spec = spec;
  run.prompt_rows = 6;
  run.negative_rows = 1;
  run.listener = actor;
  run.keepers = {first_keeper_endpoint + 1};
  run.resume_step = 3;
  run.latents_keeper = first_keeper_endpoint + 2;
  const auto run_copy = there_and_back(system, run);
  CHECK(run_copy.spec.seed == spec.seed);
  CHECK(run_copy.spec.save_tensors);
  CHECK(run_copy.negative_rows == 1);
  CHECK(run_copy.resume_step == 3);
  CHECK(run_copy.latents_keeper == first_keeper_endpoint + 2);

  RunProgram program;
  program.request = 4;
  program.program = "step";
  program.scalars = {1, 2, 3};
  ProgramInput input;
  input.slot = "input_ids";
  input.values = {5, -1};
  program.inputs = {input};
  program.outputs = {{"latents", 4, 2, {1, 2}}};
  const auto program_copy = there_and_back(system, program);
  CHECK(program_copy.scalars == program.scalars);
  CHECK(program_copy.inputs[0].values == input.values);
  CHECK(program_copy.outputs[0].targets == std::vector<std::uint32_t>{1, 2});

  ClusterRoutes routes;
  routes.plan_digest = 5;
  routes.card_peers = {0, 1};
  routes.defaults = spec;
  CHECK(there_and_back(system, routes).defaults.prompt == spec.prompt);

  NodeHealth health;
  health.card_budget = {1, 2};
  health.frames_refused = 3;
  CHECK(there_and_back(system, health).frames_refused == 3);

  RequestEvent event;
  event.kind = static_cast<std::uint8_t>(EventKind::failed);
  event.failure = failure;
  event.seconds = 0.5;
  CHECK(there_and_back(system, event).failure.code == 22);

  PlanLoaded loaded;
  loaded.kept = {{4, 9, 12, 1, 99}};
  CHECK(there_and_back(system, loaded).kept[0].step == 12);

  AttemptEnded attempt;
  attempt.suspects = {3};
  attempt.stage = "denoiser";
  CHECK(there_and_back(system, attempt).suspects == attempt.suspects);

  FaultCommand command;
  command.node = "n1";
  command.order = "{}";
  CHECK(there_and_back(system, command).node == "n1");

  AskTrace ask;
  ask.reader = 9;
  ask.node = "n1";
  ask.lease_seconds = 10;
  ask.events_max = 7;
  CHECK(there_and_back(system, ask).events_max == 7);
  CHECK(there_and_back(system, ask).reader == 9);
  TracePiece piece;
  piece.now = -5;
  piece.events = std::string("\0\xFF", 2);
  piece.more = true;
  piece.nodes = {"n1", "n2"};
  const auto piece_copy = there_and_back(system, piece);
  CHECK(piece_copy.now == -5);
  CHECK(piece_copy.events == piece.events);
  CHECK(piece_copy.more);
  CHECK(piece_copy.nodes.size() == 2);

  // The rest: that they are announced at all.
  there_and_back(system, Ping{});
  there_and_back(system, Pong{});
  there_and_back(system, Rejoin{});
  there_and_back(system, LinkSilent{});
  there_and_back(system, NodeDied{});
  there_and_back(system, SendKept{});
  there_and_back(system, KeptSent{});
  there_and_back(system, FaultAnswer{});
  there_and_back(system, DropClient{});
  there_and_back(system, Cancelled{});
  there_and_back(system, Straggler{});
  there_and_back(system, NodeWelcome{});
  there_and_back(system, LoadProgress{});
  there_and_back(system, SpawnStage{});
  there_and_back(system, StageSpawned{});
  there_and_back(system, GetCard{});
  there_and_back(system, CardHandle{});
  there_and_back(system, DropRequest{});
  there_and_back(system, Shutdown{});
  there_and_back(system, AskNodeHealth{});
  there_and_back(system, AskRoutes{});
  Submit submit;
  submit.client = actor;
  there_and_back(system, submit);
  there_and_back(system, Submitted{});
  there_and_back(system, Cancel{});
  there_and_back(system, Fetched{});
  there_and_back(system, AskStatus{});
  there_and_back(system, StatusText{});
  there_and_back(system, StageDone{});
  there_and_back(system, CancelStage{});
  there_and_back(system, OpenLane{});
  there_and_back(system, CloseLane{});
  there_and_back(system, CardDone{});
}
