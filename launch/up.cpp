// orrery up: brings a cluster up from YAML and keeps it up until a signal or `orrery down` ends it.

#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <memory>
#include <span>

#include <CLI/CLI.hpp>

#include "base/file.hpp"
#include "launch/local_cluster.hpp"
#include "launch/paths.hpp"
#include "launch/processes.hpp"
#include "launch/progress.hpp"
#include "launch/registry.hpp"
#include "launch/state_folder.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

struct UpArguments {
  ClusterArguments cluster;
  std::string state;
  bool detach = false;
};

Status refuse_second(const std::string& name) {
  ORRERY_TRY(running, running_clusters());
  for (const auto& other : running)
    if (other.name == name)
      return Error{ErrorCode::invalid_config, "a cluster named '" + name + "' runs already, as process " + std::to_string(other.pid),
                   "end it with `orrery down " + name + "`, or change metadata.name"};
  return Done{};
}

/// Where its journal lies, so that a later `up` of the same cluster goes on with what this one leaves.
Result<std::string> state_of(const UpArguments& arguments, const std::string& cluster) {
  if (!arguments.state.empty()) return arguments.state;
  return default_state_folder(cluster);
}

Result<int> stay_up(const UpArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(signals, SignalWatch::create());
  ORRERY_TRY(planned, plan_cluster(arguments.cluster, context));
  const auto& name = planned.resolved.cluster.name;
  ORRERY_TRY_DONE(refuse_second(name));
  SteadyClock clock;
  ProgressWriter progress(context, clock);
  LocalClusterOptions options;
  ORRERY_TRY(state, state_of(arguments, name));
  options.state_folder = state;
  options.on_load = [&](std::uint64_t done, std::uint64_t total) {
    progress.on_event(load_event(planned.resolved.model.name, done, total));
  };
  ORRERY_TRY(cluster, LocalCluster::start(planned, arguments.cluster, options, signals));
  auto registered = Registration::create({name, cluster->address(), static_cast<int>(::getpid()), planned.resolved.cluster.security});
  if (!registered.ok()) return registered.error();
  progress.finish();
  if (!context.quiet())
    ORRERY_TRY_DONE(write_out("cluster " + name + " is up at " + cluster->address() + ": " +
                              std::to_string(planned.resolved.cluster.nodes.size()) + " nodes, " +
                              std::to_string(planned.plan.cards.size()) + " cards, model " + planned.resolved.model.name + "\n"));
  const int news = cluster->descriptor();
  for (;;) {
    const auto woken = signals.wait_for_signal_or(std::span(&news, 1), std::chrono::hours(1));
    for (const auto& line : cluster->take_news()) warn(context, line);
    if (const auto over = cluster->ended()) {
      ORRERY_TRY_DONE(*over);
      return 0;
    }
    if (woken == SignalWatch::Woken::signal) return signals.received() == SIGTERM ? 0 : exit_code_of_signal(*signals.received());
  }
}

Result<int> run_up(const UpArguments& arguments, const VerbContext& context) {
  if (!arguments.detach) return stay_up(arguments, context);
  // The same command in the foreground, in a session of its own; we wait until it is up.
  ORRERY_TRY(planned, plan_cluster(arguments.cluster, context));  // Mistakes show here, not in a log.
  const auto& name = planned.resolved.cluster.name;
  ORRERY_TRY_DONE(refuse_second(name));
  ORRERY_TRY(state, state_of(arguments, name));
  ORRERY_TRY(program, program_path());
  ORRERY_TRY(folder, registry_folder());
  ProcessSpec process;
  process.name = "the cluster's process";
  process.arguments = {program, "--progress", "none", "up"};
  const auto words = words_of(arguments.cluster);
  process.arguments.insert(process.arguments.end(), words.begin(), words.end());
  process.arguments.insert(process.arguments.end(), {"--state", state});
  process.input_file = planned.input_file;
  process.log_file = folder + "/" + name + ".log";
  process.detached = true;
  std::error_code ignored;
  std::filesystem::remove(process.log_file, ignored);
  ORRERY_TRY(signals, SignalWatch::create());
  ORRERY_TRY(child, Process::start(process));
  for (;;) {
    if (const auto end = child.wait(std::chrono::milliseconds(50)))
      return Error{ErrorCode::peer_lost, "the cluster did not come up", last_lines(process.log_file, 3)};
    if (signals.received()) {
      child.stop(std::chrono::seconds(10));
      return Error{ErrorCode::cancelled, "interrupted"};
    }
    ORRERY_TRY(clusters, running_clusters());
    for (const auto& cluster : clusters)
      if (cluster.name == name) {
        ORRERY_TRY_DONE(write_out("cluster " + name + " is up at " + cluster.address + ", process " + std::to_string(cluster.pid) + ", log " +
                                  process.log_file + "\n"));
        return 0;
      }
  }
}

}  // namespace

void add_up(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("up", "Brings a cluster up from YAML");
  auto arguments = std::make_shared<UpArguments>();
  add_cluster_options(*verb, arguments->cluster);
  verb->add_option("--state", arguments->state, "Where its journal lies; default: ~/.local/state/orrery/CLUSTER. Unfinished requests in it go on")
      ->type_name("FOLDER");
  verb->add_flag("-d,--detach", arguments->detach, "In the background; `orrery down` ends it");
  verb->callback([arguments, &context] { context.run = [arguments, &context] { return run_up(*arguments, context); }; });
  set_examples(*verb, {"orrery up -f configs/clusters/two_nodes.yaml -f configs/models/cosmos-tiny.yaml",
                       "orrery up -d -f configs/deployments/cfg.yaml", "orrery generate \"a blue square moving up\" -o video.mp4",
                       "orrery down"});
}

}  // namespace orrery::launch
