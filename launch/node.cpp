// orrery node: the process that hosts one node's cards. What launchers start; people rarely do.

#include <cstdio>
#include <cstdlib>
#include <memory>

#include <CLI/CLI.hpp>

#include "actors/control.hpp"
#include "actors/node_host.hpp"
#include "base/log.hpp"
#include "launch/security.hpp"
#include "launch/signals.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

struct NodeArguments {
  std::string name, coordinator, listen = "127.0.0.1", data;
  std::uint64_t cluster_id = 0;
  std::uint32_t peer = 0;
  double join_timeout = 60;
  std::string data_advertise;
  bool allow_faults = false;
  bool no_shared_memory = false;
  topology::SecuritySpec security;
};

Result<int> run_node(const NodeArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(signals, SignalWatch::create());
  set_log(context.verbose() ? Level::info : Level::warn, arguments.name);
  ORRERY_TRY(coordinator, actors::parse_address(arguments.coordinator));
  actors::NodeHostOptions options;
  options.name = arguments.name;
  options.coordinator_host = coordinator.host;
  options.coordinator_port = coordinator.port;
  options.cluster_id = arguments.cluster_id;
  options.peer = arguments.peer;
  options.listen_host = arguments.listen;
  options.data_bind = arguments.data;
  ORRERY_TRY(security, security_of(arguments.security, arguments.name));
  options.security = security;
  options.share_memory = !arguments.no_shared_memory;
  options.data_advertise = arguments.data_advertise;
  options.allow_faults = arguments.allow_faults;
  options.join_timeout = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(arguments.join_timeout));
  ORRERY_TRY(node, actors::NodeHost::start(options, [&] { return signals.received().has_value(); }));
  log_event(Level::info, "node.joined", {{"coordinator", arguments.coordinator}});
  // The signal's descriptor would need a second wake-up; half a second of delay at the end is nothing.
  while (!node->wait(std::chrono::milliseconds(500)))
    if (const auto signal = signals.received()) return exit_code_of_signal(*signal);
  const auto outcome = node->outcome();
  if (node->stuck()) {
    // A card hangs: its thread cannot be waited for, so neither can anything be destroyed.
    std::fprintf(stderr, "%s\n", error_line(outcome.ok() ? Error{ErrorCode::peer_lost, "a card hangs"} : outcome.error(), false).c_str());
    std::_Exit(1);
  }
  ORRERY_TRY_DONE(outcome);
  return 0;
}

}  // namespace

void add_node(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("node", "Hosts one node's cards; started by `up` and `generate`, or by hand on each host");
  auto arguments = std::make_shared<NodeArguments>();
  verb->add_option("--name", arguments->name, "This node's host name in the cluster file")->required()->type_name("NAME");
  verb->add_option("--coordinator", arguments->coordinator, "Where the coordinator listens")->required()->type_name("HOST:PORT");
  verb->add_option("--cluster-id", arguments->cluster_id, "The number of this life of the cluster; whoever launches nodes knows it")->required()->type_name("N");
  verb->add_option("--peer", arguments->peer, "1 + this node's place in the cluster file")->required()->type_name("N")->check(CLI::Range(1U, 1'000'000U));
  verb->add_option("--listen", arguments->listen, "Address that other nodes reach this one at")->type_name("HOST")->capture_default_str();
  verb->add_option("--data", arguments->data, "Where the data plane listens; default tcp on the same address, any free port")->type_name("ADDRESS");
  add_security_options(*verb, arguments->security);
  verb->add_option("--join-timeout", arguments->join_timeout, "How long to look for the coordinator, at first and whenever it is lost")->type_name("SECONDS")->check(CLI::Range(0.0, 1e6));
  verb->add_option("--data-advertise", arguments->data_advertise, "Where others reach the data plane, when that is not where it listens")->type_name("ADDRESS");
  verb->add_flag("--no-shared-memory", arguments->no_shared_memory, "Sockets also between processes of one host");
  verb->add_flag("--allow-faults", arguments->allow_faults, "Obey `orrery fault`: for tests, never in production");
  verb->callback([arguments, &context] { context.run = [arguments, &context] { return run_node(*arguments, context); }; });
  set_examples(*verb, {"orrery node --name n1 --coordinator 10.0.0.1:7700 --cluster-id 12345 --peer 1 --listen 10.0.0.2"});
}

}  // namespace orrery::launch
