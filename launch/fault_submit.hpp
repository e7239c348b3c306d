// One request of a scenario, in a process of its own: `orrery fault submit`, which `fault run` starts.
//
// Writes a JSON line to stdout for all that happens:
//   {"event": "progress", "stage": "denoiser", "done": 3, "total": 16}
//   {"event": "refused", "code": "io_failed", "message": "..."}          and tries again with the same id
//   {"event": "done", "frames": 9, "surplus_frames": 0, "sha256": "...", "account": {...}}
//   {"event": "failed", "code": "timed_out", "message": "..."}

#pragma once

#include <string>

#include "base/result.hpp"
#include "topology/cluster_spec.hpp"
#include "topology/scenario_spec.hpp"

namespace orrery::launch {

struct SubmitArguments {
  std::string address, id;
  std::string request;  // submit_request_json
  double patience_seconds = 60;
  topology::SecuritySpec security = {};
};

/// What is asked for, as one word of a command line.
std::string submit_request_json(const topology::ScenarioRequest& request, std::uint64_t seed);

/// 0 when the result came whole, 1 when it did not.
Result<int> run_submit(const SubmitArguments& arguments);

}  // namespace orrery::launch
