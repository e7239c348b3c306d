// orrery check: says everything that is wrong with configuration files, and starts nothing.

#include <memory>
#include <set>

#include <CLI/CLI.hpp>

#include "base/json.hpp"
#include "launch/config_files.hpp"
#include "launch/paths.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

struct CheckArguments {
  std::vector<std::string> files, settings;
  bool json = false;
};

Result<int> run_check(const CheckArguments& arguments, const VerbContext& context) {
  topology::ConfigOptions options;
  for (const auto& file : arguments.files) options.inputs.push_back(resolve_config_path(file));
  options.overrides = arguments.settings;
  options.configs_folder = shipped_configs();
  const auto set = topology::ConfigSet::read(options);

  if (arguments.json) {
    OrderedJson findings = OrderedJson::array();
    for (const auto& finding : set.findings()) findings.push_back(finding.json());
    const OrderedJson document{{"ok", set.ok()}, {"documents", set.documents().size()}, {"findings", findings}};
    ORRERY_TRY_DONE(write_out(document.dump(2) + "\n"));
    return set.ok() ? 0 : exit_code_of(ErrorCode::invalid_config);
  }
  // The findings are this verb's data: stdout, in the form that editors and CI annotators read.
  ORRERY_TRY_DONE(write_out(text_of(set.findings())));
  if (!set.ok()) return summary_of(set.findings());
  if (!context.quiet()) {
    std::string kinds;
    for (const auto& document : set.documents()) kinds += (kinds.empty() ? "" : ", ") + document.kind + " '" + document.name + "'";
    ORRERY_TRY_DONE(write_out("ok: " + (kinds.empty() ? "no documents" : kinds) + "\n"));
  }
  return 0;
}

}  // namespace

void add_check(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("check", "Checks configuration files; exit code 0 or 3");
  auto arguments = std::make_shared<CheckArguments>();
  verb->add_option("files", arguments->files, "Files or folders to check; - reads stdin")->type_name("FILE")->required();
  verb->add_option("--set", arguments->settings, "Change one value, e.g. spec.parallelism.tensor=2; repeatable")
      ->type_name("PATH=VALUE")
      ->allow_extra_args(false);
  verb->add_option_function<std::string>(
          "--format",
          [arguments](const std::string& text) {
            if (text != "text" && text != "json") throw CLI::ValidationError("--format", "'" + text + "' is not one of text|json");
            arguments->json = text == "json";
          },
          "How to print findings; default text")
      ->type_name("text|json");
  set_examples(*verb, {"orrery check configs/clusters/two_nodes.yaml", "orrery check configs --format json"});
  verb->callback([&context, arguments] { context.run = [&context, arguments] { return run_check(*arguments, context); }; });
}

}  // namespace orrery::launch
