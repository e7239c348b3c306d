// orrery down: ends a running cluster and waits until its processes are gone.

#include <signal.h>

#include <memory>
#include <thread>

#include <CLI/CLI.hpp>

#include "launch/connect.hpp"
#include "launch/registry.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

struct DownArguments {
  std::string name;
  double grace = 30;
  bool force = false;
};

Result<int> run_down(const DownArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(cluster, find_cluster(arguments.name));
  SteadyClock clock;
  const auto gone = [&](double seconds) {
    const auto until = clock.now() + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
    while (clock.now() < until) {
      if (!is_alive(cluster.pid)) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  };
  // By message if it listens; by signal when it does not answer.
  bool told = false;
  if (auto client = connect_to(cluster.address, cluster.security); client.ok()) {
    told = client.value()->shut_down("orrery down").ok();
    // The message leaves with the connection; give it the time to.
    if (told && gone(std::min(arguments.grace, 2.0))) {
      if (!context.quiet()) ORRERY_TRY_DONE(write_out("cluster " + cluster.name + " is down\n"));
      return 0;
    }
  }
  if (!told || !gone(arguments.grace)) {
    ::kill(cluster.pid, arguments.force ? SIGKILL : SIGTERM);
    if (!gone(arguments.grace))
      return Error{ErrorCode::timed_out, "cluster " + cluster.name + ", process " + std::to_string(cluster.pid) + ", did not end within " +
                                             std::to_string(static_cast<long>(arguments.grace)) + " s",
                   "try `orrery down --force`"};
  }
  if (!context.quiet()) ORRERY_TRY_DONE(write_out("cluster " + cluster.name + " is down\n"));
  return 0;
}

}  // namespace

void add_down(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("down", "Ends a running cluster");
  auto arguments = std::make_shared<DownArguments>();
  verb->add_option("name", arguments->name, "The cluster's name; may be left out when only one runs")->type_name("NAME");
  verb->add_option("--grace", arguments->grace, "How long to wait for an orderly end")->type_name("SECONDS")->check(CLI::Range(0.0, 1e6));
  verb->add_flag("--force", arguments->force, "Kill it when it does not answer");
  verb->callback([arguments, &context] { context.run = [arguments, &context] { return run_down(*arguments, context); }; });
  set_examples(*verb, {"orrery down", "orrery down two_nodes"});
}

}  // namespace orrery::launch
