#include "launch/config_files.hpp"

#include <algorithm>
#include <cstdio>

#include "launch/paths.hpp"

namespace orrery::launch {

Error summary_of(const Findings& findings) {
  const auto errors = std::count_if(findings.begin(), findings.end(), [](const Finding& one) { return one.severity == Severity::error; });
  return Error{ErrorCode::invalid_config, std::to_string(errors) + (errors == 1 ? " error" : " errors") + " in the configuration"};
}

Result<topology::ConfigSet> read_configs(const ConfigArguments& arguments, const VerbContext& context) {
  topology::ConfigOptions options;
  for (const auto& file : arguments.files) options.inputs.push_back(resolve_config_path(file));
  options.overrides = arguments.settings;
  options.configs_folder = shipped_configs();
  auto set = topology::ConfigSet::read(options);
  if (!set.findings().empty() && !(context.quiet() && set.ok())) std::fputs(text_of(set.findings()).c_str(), stderr);
  if (!set.ok()) return summary_of(set.findings());
  return set;
}

}  // namespace orrery::launch
