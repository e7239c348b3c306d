// orrery up: brings a cluster up from YAML and keeps it until a signal, `orrery down` or a failure ends it.

#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>

#include "base/file.hpp"
#include "launch/local_cluster.hpp"
#include "launch/paths.hpp"
#include "launch/processes.hpp"
#include "launch/progress.hpp"
#include "launch/registry.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

struct UpArguments {
  ClusterArguments cluster;
  bool detach = false;
};

Result<int> stay_up(const UpArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(signals, SignalWatch::create());
  ORRERY_TRY(planned, plan_cluster(arguments.cluster, context));
  SteadyClock clock;
  ProgressWriter progress(context, clock);
  LocalClusterOptions options;
  options.on_load = [&](std::uint64_t done, std::uint64_t total) {
    progress.on_event(load_event(planned.resolved.model.name, done, total));
  };
  ORRERY_TRY(cluster, LocalCluster::start(planned, options, signals));
  auto registered = Registration::create({planned.resolved.cluster.name, cluster->address(), static_cast<int>(::getpid())});
  if (!registered.ok()) return registered.error();
  progress.finish();
  if (!context.quiet())
    ORRERY_TRY_DONE(write_out("cluster " + planned.resolved.cluster.name + " is up at " + cluster->address() + ": " +
                              std::to_string(planned.resolved.cluster.nodes.size()) + " nodes, " +
                              std::to_string(planned.plan.cards.size()) + " cards, model " + planned.resolved.model.name + "\n"));
  for (;;) {
    if (cluster->coordinator().wait_for_end(std::chrono::milliseconds(500))) {
      ORRERY_TRY_DONE(cluster->coordinator().outcome());
      return 0;
    }
    if (const auto signal = signals.received()) return *signal == SIGTERM ? 0 : exit_code_of_signal(*signal);
    ORRERY_TRY_DONE(cluster->health());
  }
}

Result<int> run_up(const UpArguments& arguments, const VerbContext& context) {
  if (!arguments.detach) return stay_up(arguments, context);
  // The same command in the foreground, in a session of its own; we wait until it is up.
  ORRERY_TRY(planned, plan_cluster(arguments.cluster, context));  // Mistakes show here, not in a log.
  const auto& name = planned.resolved.cluster.name;
  ORRERY_TRY(running, running_clusters());
  for (const auto& other : running)
    if (other.name == name)
      return Error{ErrorCode::invalid_config, "a cluster named '" + name + "' runs already, as process " + std::to_string(other.pid),
                   "end it with `orrery down " + name + "`"};
  ORRERY_TRY(program, program_path());
  ORRERY_TRY(folder, registry_folder());
  ProcessSpec process;
  process.name = "the cluster's process";
  process.arguments = {program, "--progress", "none", "up"};
  const auto words = words_of(arguments.cluster);
  process.arguments.insert(process.arguments.end(), words.begin(), words.end());
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
  verb->add_flag("-d,--detach", arguments->detach, "In the background; `orrery down` ends it");
  verb->callback([arguments, &context] { context.run = [arguments, &context] { return run_up(*arguments, context); }; });
  set_examples(*verb, {"orrery up -f configs/clusters/two_nodes.yaml -f configs/models/cosmos-tiny.yaml",
                       "orrery up -d -f configs/deployments/cfg.yaml", "orrery generate \"a blue square moving up\" -o video.mp4",
                       "orrery down"});
}

}  // namespace orrery::launch
