#include "launch/local_cluster.hpp"

#include <atomic>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "actors/demand.hpp"
#include "actors/request_check.hpp"
#include "base/file.hpp"
#include "base/json.hpp"
#include "base/private_folder.hpp"
#include "launch/config_files.hpp"
#include "launch/paths.hpp"
#include "launch/processes.hpp"
#include "launch/state_folder.hpp"
#include "topology/planner.hpp"

using nlohmann::literals::operator""_json_pointer;

namespace orrery::launch {

namespace {

Duration duration_of(double seconds) { return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)); }

}  // namespace

// Destroyed from the bottom up: the coordinator tells the nodes to end, then the processes are waited for.
struct LocalCluster::State {
  PrivateFolder folder;
  double grace = 5;
  std::vector<Process> processes;
  std::vector<std::string> logs;  // Of processes[i]; empty: none.
  actors::Control control;
  std::unique_ptr<actors::Coordinator> coordinator;
  std::string address;

  Json status() const {
    auto json = parse_json(coordinator->status(), "status");
    return json.ok() ? std::move(json).value() : Json::object();
  }
  std::vector<std::string> missing() const { return status().value("missing", std::vector<std::string>{}); }

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
  const bool all_joined = state_->coordinator && state_->missing().empty();
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
  ORRERY_TRY(coordinator, coordinator_options(planned));
  coordinator.state_folder = state->folder.path() + "/state";
  ORRERY_TRY(started, actors::Coordinator::start(state->control, std::move(coordinator)));
  state->coordinator = std::move(started);
  const auto cluster_id = state->coordinator->cluster_id();
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
    if (planned.allow_faults) process.arguments.push_back("--allow-faults");
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
    own.coordinator->wait_for_end(std::chrono::milliseconds(50));
    const auto status = own.status();
    const auto phase = status.value("phase", "");
    const std::uint64_t done = status.value("/load/done"_json_pointer, std::uint64_t{0}), total = status.value("/load/total"_json_pointer, std::uint64_t{0});
    // Nodes report one after the other: all of what is known may be read while the rest is not known yet.
    const bool ready = phase == "ready";
    if (options.on_load && total > 0 && (ready || done < total)) options.on_load(ready ? total : done, total);
    if (ready) return running;
    if (signals.received()) return Error{ErrorCode::cancelled, "interrupted"};
    if (phase == "failed") {
      // A node that died says more than the connection it took along.
      for (std::size_t i = 0; i < own.processes.size(); ++i)
        if (const auto end = own.processes[i].wait(std::chrono::milliseconds(100))) return own.ended(i, *end);
      if (auto outcome = own.coordinator->outcome(); !outcome.ok()) return outcome.error();
    }
    ORRERY_TRY_DONE(running->health());
    const auto missing = own.missing();
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
