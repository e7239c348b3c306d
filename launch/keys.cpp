// orrery keys: makes and edits the key files of a cluster (base/keys.hpp says what is in them).

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>

#include <CLI/CLI.hpp>

#include "base/file.hpp"
#include "base/keys.hpp"
#include "base/yaml.hpp"
#include "launch/config_files.hpp"
#include "launch/verb.hpp"
#include "protocol/curve.hpp"

namespace orrery::launch {
namespace {

const std::string coordinator_name = "coordinator";
const std::string client_name = "client";

struct KeysArguments {
  std::string folder, name, line;
  ConfigArguments config;
  std::vector<std::string> nodes, clients;
};

/// The list, or none when the folder is new.
Result<std::vector<PublicKeys>> allowed_or_none(const std::string& folder) {
  auto allowed = read_allowed(folder);
  if (!allowed.ok() && allowed.error().code == ErrorCode::not_found) return std::vector<PublicKeys>{};
  return allowed;
}

bool is_allowed(const std::vector<PublicKeys>& allowed, const std::string& name) {
  return std::any_of(allowed.begin(), allowed.end(), [&](const PublicKeys& one) { return one.name == name; });
}

Result<int> make_keys(const KeysArguments& arguments, const VerbContext& context) {
  std::vector<std::pair<std::string, KeyRole>> wanted;
  if (!arguments.config.files.empty()) {
    ORRERY_TRY(set, read_configs(arguments.config, context));
    if (set.clusters().size() != 1)
      return Error{ErrorCode::usage, "keys are made for one cluster, and the files hold " + std::to_string(set.clusters().size()), "name one cluster file"};
    for (const auto& node : set.clusters().begin()->second.nodes) wanted.emplace_back(node.name, KeyRole::node);
    wanted.emplace_back(coordinator_name, KeyRole::coordinator);
    wanted.emplace_back(client_name, KeyRole::client);
  }
  for (const auto& name : arguments.nodes) wanted.emplace_back(name, KeyRole::node);
  for (const auto& name : arguments.clients) wanted.emplace_back(name, KeyRole::client);
  if (wanted.empty())
    return Error{ErrorCode::usage, "nobody is named to make keys for", "name the cluster file with -f, or --node NAME, or --client NAME"};

  std::error_code failed;
  const bool fresh = std::filesystem::create_directory(arguments.folder, failed);
  if (failed) return Error{ErrorCode::io_failed, "cannot make " + arguments.folder + ": " + failed.message(), "does the folder above exist?"};
  if (fresh) ::chmod(arguments.folder.c_str(), 0700);
  ORRERY_TRY(allowed, allowed_or_none(arguments.folder));
  // All or nothing: everything that could be in the way is looked for before the first file is written.
  std::set<std::string> names;
  for (const auto& [name, role] : wanted) {
    if ((name == coordinator_name && role != KeyRole::coordinator) || (name == client_name && role == KeyRole::node) || !names.insert(name).second)
      return Error{ErrorCode::usage, "two of those who get keys are called " + shown(name), "names of nodes, coordinator and clients should differ"};
    if (is_allowed(allowed, name) || std::filesystem::exists(arguments.folder + "/" + name + ".secret"))
      return Error{ErrorCode::io_failed, name + " has keys in " + arguments.folder + " already",
                   "keys are never overwritten: take another folder, or `orrery keys revoke` and remove the file first"};
  }
  for (const auto& [name, role] : wanted) {
    ORRERY_TRY(curve, protocol::make_curve_pair());
    ORRERY_TRY(identity, make_identity());
    ORRERY_TRY_DONE(write_secret(arguments.folder, name, curve.secret_key, identity.pem));
    allowed.push_back({name, role, curve.public_key, identity.key});
  }
  ORRERY_TRY_DONE(write_allowed(arguments.folder, allowed));
  if (!context.quiet())
    ORRERY_TRY_DONE(write_out("keys of " + std::to_string(wanted.size()) + " made in " + arguments.folder +
                              "; bring NAME.secret to the host of NAME, and the file `allowed` to every host\n"));
  return 0;
}

Result<int> show_keys(const KeysArguments& arguments, const VerbContext&) {
  ORRERY_TRY(allowed, read_allowed(arguments.folder));
  std::string text;
  for (const auto& one : allowed) {
    text += text_of(one);
    // Whether this host could be it; the reason if its secret is there but no good.
    if (std::filesystem::exists(arguments.folder + "/" + one.name + ".secret")) {
      const auto ring = read_key_ring(arguments.folder, one.name);
      text += ring.ok() ? "  # secret is here" : "  # " + ring.error().message;
    }
    text += "\n";
  }
  ORRERY_TRY_DONE(write_out(text));
  return 0;
}

Result<int> allow_key(const KeysArguments& arguments, const VerbContext& context) {
  const auto keys = parse_public_keys(arguments.line);
  if (!keys.ok()) return Error{ErrorCode::usage, "the line " + keys.error().message, "`orrery keys show` on the other host prints it; give it as one argument, in quotes"};
  ORRERY_TRY(allowed, allowed_or_none(arguments.folder));
  for (const auto& one : allowed)
    if (one.name == keys.value().name || one.curve == keys.value().curve || one.identity == keys.value().identity)
      return Error{ErrorCode::usage, one.name + " has that name, or one of these keys, already", "`orrery keys revoke` it first"};
  allowed.push_back(keys.value());
  ORRERY_TRY_DONE(write_allowed(arguments.folder, allowed));
  if (!context.quiet()) ORRERY_TRY_DONE(write_out(keys.value().name + " is allowed; it counts for processes that start from now on\n"));
  return 0;
}

Result<int> revoke_key(const KeysArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(allowed, read_allowed(arguments.folder));
  if (!is_allowed(allowed, arguments.name)) {
    std::vector<std::string> names;
    for (const auto& one : allowed) names.push_back(one.name);
    const auto near = nearest_word(arguments.name, names);
    return Error{ErrorCode::not_found, shown(arguments.name) + " is not in " + arguments.folder + "/allowed", near.empty() ? "" : "did you mean '" + near + "'?"};
  }
  std::erase_if(allowed, [&](const PublicKeys& one) { return one.name == arguments.name; });
  ORRERY_TRY_DONE(write_allowed(arguments.folder, allowed));
  if (!context.quiet())
    ORRERY_TRY_DONE(write_out(arguments.name + " is revoked here; bring the file `allowed` to every host, it counts for processes that start from then on\n"));
  return 0;
}

}  // namespace

void add_keys(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("keys", "Makes and edits the keys that a cluster's processes know each other by");
  auto arguments = std::make_shared<KeysArguments>();
  auto& a = *arguments;
  const auto add = [&](const std::string& name, const std::string& what, Result<int> (*work)(const KeysArguments&, const VerbContext&)) {
    auto* action = verb->add_subcommand(name, what);
    action->add_option("folder", a.folder, "The folder with the key files")->required()->type_name("FOLDER");
    action->callback([arguments, &context, work] { context.run = [arguments, &context, work] { return work(*arguments, context); }; });
    return action;
  };
  auto* make = add("make", "Makes keys: for each node of a cluster, its coordinator and one client", make_keys);
  add_config_options(*make, a.config, false);
  make->add_option("--node", a.nodes, "Make keys for a node; repeatable")->type_name("NAME")->allow_extra_args(false);
  make->add_option("--client", a.clients, "Make keys for a client; repeatable")->type_name("NAME")->allow_extra_args(false);
  set_examples(*make, {"orrery keys make keys -f cluster.yaml", "orrery keys make keys --node npu7 --client anna"});

  add("show", "Prints whom the cluster lets in, one line each: name, role, public keys", show_keys);

  auto* allow = add("allow", "Lets somebody in whose keys were made elsewhere", allow_key);
  allow->add_option("line", a.line, "Its line of `orrery keys show`: name, role and two public keys, in quotes")->required()->type_name("LINE");
  set_examples(*allow, {"orrery keys allow keys 'anna client rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7 A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg='"});

  auto* revoke = add("revoke", "Lets somebody in no more", revoke_key);
  revoke->add_option("name", a.name, "Its name")->required()->type_name("NAME");
  verb->require_subcommand(1);
  set_examples(*verb, {"orrery keys make keys -f cluster.yaml", "orrery keys show keys", "orrery keys revoke keys npu3"});
}

}  // namespace orrery::launch
