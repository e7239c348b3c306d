#include "launch/local_cluster.hpp"

#include <sys/random.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "actors/demand.hpp"
#include "actors/request_check.hpp"
#include "base/file.hpp"
#include "base/private_folder.hpp"
#include "launch/config_files.hpp"
#include "launch/paths.hpp"
#include "launch/processes.hpp"
#include "topology/planner.hpp"

namespace orrery::launch {

namespace {

std::uint64_t random_id() {
  std::uint64_t id = 0;
  ORRERY_CHECK(::getrandom(&id, sizeof id, 0) == sizeof id);
  return id | 1;
}

Duration duration_of(double seconds) { return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)); }

}  // namespace

Result<PlannedCluster> plan_cluster(const ClusterArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(set, read_configs(arguments.config, context));
  PlannedCluster planned;
  // With --model FOLDER the cluster's file may come alone; the weights are then used as float32 unless --dtype says otherwise.
  const bool folder_alone = !arguments.model_folder.empty() && set.models().empty();
  ORRERY_TRY(resolved, folder_alone ? set.resolve_without_model(arguments.deployment) : set.resolve(arguments.deployment));
  planned.resolved = std::move(resolved);
  auto& model = planned.resolved.model;
  if (folder_alone) model.dtype = DType::f32;
  if (!arguments.dtype.empty()) model.dtype = arguments.dtype == "bfloat16" ? DType::bf16 : DType::f32;
  if (!arguments.model_folder.empty()) {
    planned.model_folder = arguments.model_folder;
    // Its own files say what it is; the YAML's geometry was another's.
    model.folder = std::filesystem::absolute(arguments.model_folder).lexically_normal().string();
    model.name = std::filesystem::path(model.folder).filename().string();
    model.geometry.reset();
  } else {
    ORRERY_TRY(folder, topology::folder_of(model));
    planned.model_folder = folder;
  }
  std::error_code ignored;
  planned.model_folder = std::filesystem::absolute(planned.model_folder, ignored).lexically_normal().string();
  auto opened = compiler::open_model_folder(planned.model_folder);
  if (!opened.ok()) return actors::model_error(opened.error());
  const auto& folder = opened.value();
  planned.defaults = actors::defaults_of(folder);
  auto& requested = planned.defaults;
  auto& written = model.defaults;
  if (arguments.model_folder.empty() && !(written == topology::RequestDefaults{})) {
    requested.width = written.size.width;
    requested.height = written.size.height;
    requested.frames = written.num_frames;
    requested.steps = written.num_inference_steps;
    requested.fps = written.fps;
    requested.guidance = written.guidance_scale;
    requested.max_text_tokens = written.max_text_tokens;
    if (!written.negative_prompt.empty()) requested.negative_prompt = written.negative_prompt;
  } else {
    written.size = {requested.width, requested.height};
    written.num_frames = requested.frames;
    written.num_inference_steps = requested.steps;
    written.guidance_scale = requested.guidance;
    written.max_text_tokens = requested.max_text_tokens;
  }
  const auto& request = arguments.request;
  if (request.size) model.defaults.size = *request.size;
  if (request.frames) model.defaults.num_frames = *request.frames;
  if (request.steps) model.defaults.num_inference_steps = *request.steps;
  if (request.guidance) model.defaults.guidance_scale = *request.guidance;
  if (request.max_text_tokens) model.defaults.max_text_tokens = *request.max_text_tokens;
  ORRERY_TRY(demand, actors::demand_of_folder(folder, model, topology::shape_of(model.defaults)));
  ORRERY_TRY(plan, topology::make_plan(planned.resolved.cluster, planned.resolved.deployment, demand));
  planned.plan = std::move(plan);
  return planned;
}

// Destroyed from the bottom up: the coordinator tells the nodes to end, then the processes are waited for.
struct LocalCluster::State {
  PrivateFolder folder;
  double grace = 5;
  std::vector<Process> processes;
  std::vector<std::string> logs;  // Of processes[i]; empty: none.
  actors::Control control;
  std::unique_ptr<actors::Coordinator> coordinator;
  std::string address;
  std::atomic<std::uint64_t> bytes_done{0}, bytes_total{0};

  Error ended(std::size_t index, const ProcessEnd& end) const {
    Error error{ErrorCode::peer_lost, processes[index].name() + " " + end.text()};
    // Its sentences, not its events.
    std::istringstream log(last_lines(logs[index], 20));
    std::string words;
    for (std::string line; std::getline(log, line);)
      if (!line.empty() && line.front() != '{') words += (words.empty() ? "" : "; ") + line;
    if (!words.empty()) error.hint = "it said: " + words;
    return error;
  }
};

LocalCluster::LocalCluster(std::unique_ptr<State> state) : state_(std::move(state)) {}

LocalCluster::~LocalCluster() {
  const bool all_joined = state_->coordinator && state_->coordinator->missing().empty();
  state_->coordinator.reset();  // Shutdown goes to the nodes; one that never joined does not hear it.
  SteadyClock clock;
  const auto until = clock.now() + (all_joined ? std::chrono::seconds(2) : std::chrono::seconds(0));
  for (auto& process : state_->processes) process.wait(std::max(Duration{}, until - clock.now()));
  stop_all(state_->processes, duration_of(std::min(state_->grace, 5.0)));
}

actors::Control& LocalCluster::control() { return state_->control; }
actors::Coordinator& LocalCluster::coordinator() { return *state_->coordinator; }
std::string LocalCluster::address() const { return state_->address; }

Status LocalCluster::health() {
  for (std::size_t i = 0; i < state_->processes.size(); ++i)
    if (const auto end = state_->processes[i].ended()) return state_->ended(i, *end);
  return Done{};
}

Result<std::unique_ptr<LocalCluster>> LocalCluster::start(const PlannedCluster& planned, const LocalClusterOptions& options,
                                                          SignalWatch& signals) {
  const auto& cluster = planned.resolved.cluster;
  const bool over_ssh = cluster.launch.via == topology::LaunchVia::ssh;
  if (cluster.data.transport == topology::DataTransport::inproc && cluster.nodes.size() > 1)
    return Error{ErrorCode::invalid_config, "data.transport inproc needs a cluster of one node, but " + cluster.name + " has " +
                                                std::to_string(cluster.nodes.size()),
                 "use ipc or tcp"};
  if (cluster.data.transport == topology::DataTransport::ipc && over_ssh)
    return Error{ErrorCode::invalid_config, "data.transport ipc works on one machine only, but the nodes start over ssh", "use tcp"};
  ORRERY_TRY(program, program_path());
  ORRERY_TRY(listen, actors::parse_address(cluster.control.listen));
  ORRERY_TRY(folder, PrivateFolder::create());

  auto state = std::make_unique<State>();
  state->folder = std::move(folder);
  state->grace = cluster.launch.stop_grace;
  actors::CoordinatorOptions coordinator;
  coordinator.cluster = cluster.name;
  coordinator.cluster_id = random_id();
  coordinator.listen_host = listen.host;
  coordinator.listen_port = listen.port;
  coordinator.plan = planned.plan;
  for (const auto& node : cluster.nodes) coordinator.nodes.push_back(node.name);
  coordinator.model_name = planned.resolved.model.name;
  coordinator.model_folder = planned.model_folder;
  coordinator.dtype = planned.resolved.model.dtype_name();
  coordinator.defaults = planned.defaults;
  if (const auto configs = shipped_configs(); !configs.empty()) coordinator.guardrail_folders.push_back(configs + "/guardrail");
  coordinator.max_in_flight = planned.resolved.deployment.admission.max_in_flight;
  coordinator.max_queue = planned.resolved.deployment.admission.max_queue;
  coordinator.on_load = [&state = *state](std::uint64_t done, std::uint64_t total) {
    state.bytes_done = done;
    state.bytes_total = total;
  };
  const auto cluster_id = coordinator.cluster_id;
  ORRERY_TRY(started, actors::Coordinator::start(state->control, std::move(coordinator)));
  state->coordinator = std::move(started);
  state->address = listen.host + ":" + std::to_string(state->coordinator->port());

  std::unique_ptr<LocalCluster> running(new LocalCluster(std::move(state)));
  auto& own = *running->state_;
  for (std::size_t i = 0; i < cluster.nodes.size(); ++i) {
    const auto& node = cluster.nodes[i];
    ProcessSpec process;
    process.name = "node " + node.name;
    const bool ipc = !over_ssh && cluster.data.transport != topology::DataTransport::tcp;
    process.arguments = {over_ssh ? cluster.launch.program : program,
                         "node",
                         "--name",
                         node.name,
                         "--coordinator",
                         own.address,
                         "--cluster-id",
                         std::to_string(cluster_id),
                         "--peer",
                         std::to_string(i + 1),
                         "--listen",
                         over_ssh ? node.address : "127.0.0.1",
                         "--join-timeout",
                         std::to_string(cluster.launch.ready_timeout)};
    if (ipc) {
      process.arguments.push_back("--data");
      process.arguments.push_back("ipc://" + own.folder.path() + "/n" + std::to_string(i));
    }
    if (over_ssh) {
      ORRERY_TRY(command, ssh_command(cluster.launch.user, node.address, process.arguments));
      process.arguments = std::move(command);
    }
    if (!options.log_nodes_here)
      process.log_file = (options.keep_logs_in.empty() ? own.folder.path() : options.keep_logs_in) + "/" + node.name + ".log";
    own.logs.push_back(process.log_file);
    ORRERY_TRY(child, Process::start(process));
    own.processes.push_back(std::move(child));
  }

  SteadyClock clock;
  const auto until = clock.now() + duration_of(cluster.launch.ready_timeout);
  for (;;) {
    const auto phase = own.coordinator->wait(std::chrono::milliseconds(50));
    // Nodes report one after the other: all of what is known may be read while the rest is not known yet.
    const bool ready = phase == actors::Coordinator::Phase::ready;
    const std::uint64_t done = own.bytes_done, total = own.bytes_total;
    if (options.on_load && total > 0 && (ready || done < total)) options.on_load(ready ? total : done, total);
    if (phase == actors::Coordinator::Phase::ready) return running;
    if (signals.received()) return Error{ErrorCode::cancelled, "interrupted"};
    if (phase == actors::Coordinator::Phase::failed) {
      // A node that died says more than the connection it took along.
      for (std::size_t i = 0; i < own.processes.size(); ++i)
        if (const auto end = own.processes[i].wait(std::chrono::milliseconds(100))) return own.ended(i, *end);
      if (auto outcome = own.coordinator->outcome(); !outcome.ok()) return outcome.error();
    }
    ORRERY_TRY_DONE(running->health());
    const auto missing = own.coordinator->missing();
    if (clock.now() >= until && !missing.empty()) {
      std::string names;
      for (const auto& name : missing) names += (names.empty() ? "" : ", ") + name;
      return Error{ErrorCode::timed_out,
                   std::string(missing.size() == 1 ? "node " : "nodes ") + names + " did not come up within " +
                       std::to_string(static_cast<long>(cluster.launch.ready_timeout)) + " s",
                   over_ssh ? "does `ssh " + missing.front() + " " + cluster.launch.program + " version` work?" : "raise launch.ready_timeout if the machine is slow"};
    }
  }
}

}  // namespace orrery::launch
