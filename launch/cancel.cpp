// orrery cancel: ends requests of a running cluster before they are done.

#include <memory>

#include <CLI/CLI.hpp>

#include "actors/client.hpp"
#include "launch/connect.hpp"
#include "launch/security.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

struct CancelArguments {
  std::string request;
  ConnectArguments connect;
};

Result<int> run_cancel(const CancelArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(client, connect_to(arguments.connect));
  ORRERY_TRY(count, client->cancel(arguments.request));
  if (!context.quiet()) ORRERY_TRY_DONE(write_out(std::to_string(count) + (count == 1 ? " request" : " requests") + " cancelled\n"));
  return 0;
}

}  // namespace

void add_cancel(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("cancel", "Ends a request of a running cluster");
  auto arguments = std::make_shared<CancelArguments>();
  verb->add_option("request", arguments->request, "Its id, or the beginning of it (`orrery status` lists them), or `all`")->required()->type_name("ID|all");
  verb->add_option("--connect", arguments->connect.cluster, "The cluster: HOST:PORT or a name; may be left out when only one runs here")->type_name("CLUSTER");
  add_security_options(*verb, arguments->connect.security);
  verb->callback([arguments, &context] { context.run = [arguments, &context] { return run_cancel(*arguments, context); }; });
  set_examples(*verb, {"orrery cancel 3f9a", "orrery cancel all --connect two_nodes"});
}

}  // namespace orrery::launch
