// orrery bench links: how fast ranks, a process each, exchange what cards exchange. The columns are those of nccl-tests.
//
//   parent ──┬─ orrery bench link-rank --rank 0 ... ─┐
//            ├─ orrery bench link-rank --rank 1 ... ─┤ protocol::Exchange, as between node processes
//            └─ ...                                  ─┘
//
// The parent only says what to measure, over pipes (bench_link_rank.hpp), and takes each sample's slowest rank. Ranks die with
// the parent. GB/s are decimal; algbw = bytes / time, busbw = algbw times what the bus carries per byte.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.hpp"
#include "base/result.hpp"
#include "launch/bench_link_rank.hpp"
#include "launch/bench_statistics.hpp"
#include "launch/signals.hpp"

namespace orrery::launch {

struct LinksOptions {
  LinkOp op = LinkOp::all_reduce;
  std::uint64_t bytes_min = 4096, bytes_max = std::uint64_t{64} << 20;
  double factor = 2;
  std::uint32_t ranks = 2;
  std::string transport = "auto";
  std::uint32_t iterations = 0;  // In one sample; 0: as many as take about 50 ms.
  std::uint32_t warmup = 5;      // Iterations.
  std::uint32_t repetitions = 7;  // Samples.
};

struct LinkRow {
  LinkOp op = LinkOp::all_reduce;
  std::uint32_t ranks = 0;
  std::uint64_t bytes = 0;
  std::vector<double> seconds;  // Of one iteration, by sample: the slowest rank's.
  std::uint32_t iterations = 0;
  std::uint64_t wrong = 0;      // Elements, all ranks together.
  std::string transport;        // What the frames took: "shm", "ipc", "tcp".
  std::uint32_t host_cores = 0;

  SampleSummary summary() const { return summary_of(seconds); }
  double algbw_gbps() const { return static_cast<double>(bytes) / summary().median / 1e9; }
  double busbw_gbps() const { return algbw_gbps() * bus_factor(op, ranks); }
  OrderedJson json() const;
};

/// The sizes: from the least by the factor up to the most, as the op can have them, each once.
std::vector<std::uint64_t> link_sizes(const LinksOptions& options);

/// The head of the table, and a line of it; each ends with a line feed.
std::string links_head(const LinksOptions& options, double load_average, std::uint32_t host_cores);
std::string text_of(const LinkRow& row);
std::string links_foot(const std::vector<LinkRow>& rows);

/// Calls `on_row` as each size is done. Fails with cancelled on a signal, and with what a rank says or died of; no process is
/// left then.
Result<std::vector<LinkRow>> run_links(const LinksOptions& options, SignalWatch& signals, const std::function<Status(const LinkRow&)>& on_row);

}  // namespace orrery::launch
