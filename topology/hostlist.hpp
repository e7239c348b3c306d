// Host lists as Slurm and ClusterShell write them: "npu[01-04,07]", "rack[1-2]n[1-8]", "a,b[1-3]".
//
// Expansion is bounded before anything is made: at most 4096 names of at most 253 bytes.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace orrery::topology {

inline constexpr std::size_t host_count_max = 4096;

/// The names in order; the last bracket turns fastest; leading zeros keep the width.
/// Fails with invalid_config and a sentence without subject ("has a '[' that is never closed").
Result<std::vector<std::string>> expand_hosts(std::string_view text);

}  // namespace orrery::topology
