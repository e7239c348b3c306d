// Where a coordinator keeps what it must not forget.

#pragma once

#include <string>

#include "base/result.hpp"

namespace orrery::launch {

/// XDG_STATE_HOME/orrery/CLUSTER, else ~/.local/state/orrery/CLUSTER. Not made. Fails with io_failed when there is no home.
Result<std::string> default_state_folder(const std::string& cluster);

/// Makes the folder, and those above it, for this user only (0700). Fails with io_failed when it cannot be made, or is
/// somebody else's.
Status make_state_folder(const std::string& path);

/// A cluster's name as part of a path: letters, digits, '-' and '_' stay, anything else becomes '_'.
std::string file_name_of(const std::string& cluster);

}  // namespace orrery::launch
