// Where things are: this program, the YAML files that come with it, and what a path on the command line means.

#pragma once

#include <string>

#include "base/result.hpp"

namespace orrery::launch {

/// The running program's own file, for starting further processes of it. Fails with io_failed.
Result<std::string> program_path();

/// The folder of shipped YAML files: ORRERY_CONFIGS if set, else PREFIX/share/orrery/configs beside an installed
/// program, else `configs` of the source tree it was built from. Empty when none of them exists.
std::string shipped_configs();

/// A configuration file as named by a person: the path itself if it exists; else, for a relative one, the file of
/// that name in `shipped_configs()` (a leading "configs/" is dropped); else the path unchanged.
std::string resolve_config_path(const std::string& path);

}  // namespace orrery::launch
