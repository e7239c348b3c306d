// From a cluster file, or flags, to the keys of one process.

#pragma once

#include <string>
#include <vector>

#include "base/keys.hpp"
#include "base/result.hpp"
#include "launch/verb.hpp"
#include "topology/cluster_spec.hpp"

namespace orrery::launch {

/// --keys, --tls, --insecure: what a process is told that reads no cluster file.
void add_security_options(CLI::App& verb, topology::SecuritySpec& security);
/// The same as the words of a command line.
std::vector<std::string> words_of(const topology::SecuritySpec& security);

/// The folder as other working folders name it; empty stays empty.
std::string absolute_keys(const std::string& folder);

/// Reads the keys of `name` ("coordinator", "client", a node's). Fails as read_key_ring does.
Result<Security> security_of(const topology::SecuritySpec& security, const std::string& name);

}  // namespace orrery::launch
