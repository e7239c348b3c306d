// orrery coordinator: the process that keeps a cluster's journal and plan. What launchers start; people rarely do.

#include <memory>

#include <unistd.h>

#include <CLI/CLI.hpp>

#include "actors/control.hpp"
#include "actors/coordinator.hpp"
#include "base/log.hpp"
#include "launch/announcement.hpp"
#include "launch/planned_cluster.hpp"
#include "launch/security.hpp"
#include "launch/signals.hpp"
#include "launch/state_folder.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

struct CoordinatorArguments {
  ClusterArguments cluster;
  std::string size, state, listen, announce, plan_digest;
};

Result<int> coordinate(const CoordinatorArguments& arguments, const VerbContext& context, SignalWatch& signals) {
  set_log(context.verbose() ? Level::info : Level::warn, "coordinator");
  auto cluster = arguments.cluster;
  if (!arguments.size.empty()) {
    auto size = topology::parse_frame_size(arguments.size);
    if (!size.ok()) return Error{ErrorCode::usage, "--size " + size.error().message, size.error().hint};
    cluster.request.size = size.value();
  }
  ORRERY_TRY(planned, plan_cluster(cluster, context));
  if (!arguments.plan_digest.empty() && digest_text(planned.plan) != arguments.plan_digest)
    return Error{ErrorCode::invalid_config, "the configuration of cluster " + planned.resolved.cluster.name + " has changed since it was started",
                 "end the cluster and start it anew"};
  ORRERY_TRY(options, coordinator_options(planned));
  if (!arguments.listen.empty()) {
    ORRERY_TRY(listen, actors::parse_address(arguments.listen));
    options.listen_host = listen.host;
    options.listen_port = listen.port;
  }
  options.state_folder = arguments.state;
  if (options.state_folder.empty()) {
    ORRERY_TRY(usual, default_state_folder(options.cluster));
    options.state_folder = usual;
  }
  ORRERY_TRY_DONE(make_state_folder(options.state_folder));
  const auto host = options.listen_host;

  actors::ControlOptions control_options;
  ORRERY_TRY(security, security_of(planned.resolved.cluster.security, "coordinator"));
  control_options.security = security;
  actors::Control control(control_options);
  ORRERY_TRY(coordinator, actors::Coordinator::start(control, std::move(options)));
  const Announcement announcement{host + ":" + std::to_string(coordinator->port()), ::getpid(), coordinator->cluster_id(), coordinator->term()};
  if (arguments.announce.empty()) {
    if (!context.quiet())
      ORRERY_TRY_DONE(write_out("coordinator of cluster " + planned.resolved.cluster.name + " listens at " + announcement.address +
                                "; cluster id " + std::to_string(announcement.cluster_id) + "\n"));
  } else {
    ORRERY_TRY_DONE(announce(arguments.announce, announcement));
  }
  // Whoever asks for the end wakes us at once; a signal waits for the next look.
  while (!coordinator->wait_for_end(std::chrono::milliseconds(50)))
    if (signals.received()) return 0;
  ORRERY_TRY_DONE(coordinator->outcome());
  return 0;
}

Result<int> run_coordinator(const CoordinatorArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(signals, SignalWatch::create());
  auto result = coordinate(arguments, context, signals);
  // Whoever started us passes our words on; an exit code alone would say little.
  if (!result.ok() && !arguments.announce.empty()) (void)announce(arguments.announce, result.error()).ok();
  return result;
}

}  // namespace

void add_coordinator(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("coordinator", "Keeps a cluster's journal and plan; started by `up` and `generate`, or by hand on one host");
  auto arguments = std::make_shared<CoordinatorArguments>();
  auto& a = *arguments;
  add_cluster_options(*verb, a.cluster);
  verb->add_option("--state", a.state, "Where its journal lies, the same folder after a restart; default: ~/.local/state/orrery/CLUSTER")->type_name("FOLDER");
  verb->add_option("--listen", a.listen, "Where to listen; default: control.listen of the cluster file")->type_name("HOST:PORT");
  verb->add_option("--announce", a.announce, "A file that gets the address, or the reason of a failure, as JSON")->type_name("FILE");
  verb->add_option("--plan-digest", a.plan_digest, "Refuse to start when the plan is another one")->type_name("DIGEST");
  auto& request = a.cluster.request;
  verb->add_option("--size", a.size, "Frame size to plan for; default: the model's")->type_name("WIDTHxHEIGHT");
  verb->add_option("--frames", request.frames, "Number of frames to plan for; default: the model's")->type_name("N");
  verb->add_option("--steps", request.steps, "Denoising steps to plan for; default: the model's")->type_name("N");
  verb->add_option("--guidance", request.guidance, "Guidance scale to plan for; default: the model's")->type_name("G");
  verb->add_option("--max-text-tokens", request.max_text_tokens, "Text rows to plan for; default: the model's")->type_name("N");
  verb->callback([arguments, &context] { context.run = [arguments, &context] { return run_coordinator(*arguments, context); }; });
  set_examples(*verb, {"orrery coordinator -f cluster.yaml -f model.yaml --state /var/lib/orrery --listen 10.0.0.1:7700"});
}

}  // namespace orrery::launch
