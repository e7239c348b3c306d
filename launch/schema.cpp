// orrery schema: the reference of the configuration files, for editors (JSON Schema) and people (markdown).

#include <memory>

#include <CLI/CLI.hpp>

#include "base/yaml.hpp"
#include "launch/verb.hpp"
#include "topology/schema_text.hpp"

namespace orrery::launch {
namespace {

struct SchemaArguments {
  std::string kind;
  bool markdown = false;
};

Result<int> run_schema(const SchemaArguments& arguments) {
  auto kinds = topology::topology_kinds();
  if (!arguments.kind.empty()) {
    std::vector<std::string> known;
    for (const auto& kind : kinds) known.push_back(kind.kind);
    std::erase_if(kinds, [&](const topology::KindSchema& one) { return one.kind != arguments.kind; });
    if (kinds.empty())
      return Error{ErrorCode::usage, "there is no kind '" + shown(arguments.kind) + "'", suggestion(arguments.kind, known)};
  }
  ORRERY_TRY_DONE(write_out(arguments.markdown ? topology::markdown_of(kinds) : topology::json_schema_of(kinds).dump(2) + "\n"));
  return 0;
}

}  // namespace

void add_schema(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("schema", "Prints the JSON Schema of the configuration files, or the reference page");
  auto arguments = std::make_shared<SchemaArguments>();
  verb->add_option("--kind", arguments->kind, "One kind only: Cluster, Model ...")->type_name("KIND");
  verb->add_flag("--markdown", arguments->markdown, "The reference page (configs/SCHEMA.md) instead");
  set_examples(*verb, {"orrery schema > orrery.schema.json", "orrery schema --kind Cluster", "orrery schema --markdown > configs/SCHEMA.md"});
  verb->callback([&context, arguments] { context.run = [arguments] { return run_schema(*arguments); }; });
}

}  // namespace orrery::launch
