// One rank of `orrery bench links`: a process that runs collectives with its fellows when its parent says so.
//
// Told and tells JSON lines, stdin and stdout:
//
//   child  {"address": "ipc:///tmp/..."}
//   parent {"peers": ["ipc:...", "ipc:..."]}                    addresses by rank
//   child  {"ready": true}
//   parent {"op": "all_reduce", "bytes": 4096, "iterations": 100, "samples": 5, "warmup": 5}
//   child  {"seconds": [..one per sample, of one iteration..], "wrong": 0, "frames": 900, "memory_frames": 900}
//          or {"error": "...", "code": 41}
//   parent end of file
//
// Traffic goes through protocol::Exchange with the schedules of protocol/collective, as a card's does. Values are small
// whole numbers, so sums are exact and every element of a result can be checked.

#pragma once

#include <cstdint>
#include <string>

#include "base/result.hpp"

namespace orrery::launch {

enum class LinkOp : std::uint8_t { all_reduce, reduce_scatter, all_gather, all_to_all, broadcast, sendrecv };
std::string_view name_of(LinkOp op);
/// Fails with usage.
Result<LinkOp> link_op_of(std::string_view word);
/// What the bus carries for each byte of the result: 2(n-1)/n for all_reduce ... 1 for broadcast and sendrecv.
double bus_factor(LinkOp op, std::uint32_t ranks);
/// The nearest size that the op can have, not above `bytes` unless that is too small.
std::uint64_t link_bytes(std::uint64_t bytes, std::uint32_t ranks);

struct LinkRankArguments {
  std::uint32_t rank = 0, ranks = 1;
  std::string transport;  // "auto", "shm", "ipc" or "tcp".
  std::string folder;     // For sockets.
  std::uint64_t cluster_id = 0;
};

/// Until the parent closes stdin.
Result<int> run_link_rank(const LinkRankArguments& arguments);

}  // namespace orrery::launch
