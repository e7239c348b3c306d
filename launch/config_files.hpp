// The configuration files of a command line, read and checked, with everything wrong told on stderr.

#pragma once

#include "base/result.hpp"
#include "launch/verb.hpp"
#include "topology/config_set.hpp"

namespace orrery::launch {

/// Reads what -f and --set name. Warnings go to stderr (unless -q), and so do all errors, with the line and a caret; then
/// fails with invalid_config: "2 errors in the configuration".
Result<topology::ConfigSet> read_configs(const ConfigArguments& arguments, const VerbContext& context);

/// "2 errors in the configuration".
Error summary_of(const Findings& findings);

}  // namespace orrery::launch
