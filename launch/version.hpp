// What this program is: version and commit, fixed when it was built.

#pragma once

#include <string>

namespace orrery::launch {

/// "0.1.0".
std::string version();
/// Twelve hex digits, or empty when built outside a checkout.
std::string commit();
/// "orrery 0.1.0 (3c9afc7a1b2c)".
std::string version_line();

}  // namespace orrery::launch
