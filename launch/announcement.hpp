// The file by which a coordinator tells its launcher where it listens, or why it does not.
//
//   {"address": "127.0.0.1:41234", "pid": 4711, "cluster_id": "1234", "term": 1}
//   {"failure": {"code": 25, "message": "...", "hint": "..."}}
//
// Written whole or not at all.

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.hpp"

namespace orrery::launch {

struct Announcement {
  std::string address;
  std::int64_t pid = 0;
  std::uint64_t cluster_id = 0;  // Nodes must know it.
  std::uint64_t term = 0;        // How often this coordinator's journal was opened; 0: it has none.
};

Status announce(const std::string& path, const Announcement& announcement);
Status announce(const std::string& path, const Error& failure);

/// Nothing while there is no file. An error: the coordinator's own, or io_failed for a file that says something else.
Result<std::optional<Announcement>> read_announcement(const std::string& path);

/// An error as JSON carries it.
std::optional<Error> error_of_json(const std::string& json);

}  // namespace orrery::launch
