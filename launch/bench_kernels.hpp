// orrery bench kernels: the cpu card's operations beside what this machine can do in the same moment.
//
// Each sample of an operation comes right after one of its bound (oneDNN's packed product, or memcpy), so a noisy machine moves
// both; the percentage is the median of these pairs.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.hpp"
#include "base/result.hpp"
#include "base/tensor.hpp"
#include "launch/bench_statistics.hpp"
#include "launch/signals.hpp"

namespace orrery::launch {

struct KernelsOptions {
  std::vector<DType> dtypes = {DType::f32, DType::bf16};
  std::uint32_t threads = 1;
  std::uint32_t repetitions = 7;
  std::string only;  // Part of a name; empty: all.
};

struct KernelRow {
  std::string name, dtype, bound;  // "packed product", "memcpy"
  std::uint32_t threads = 0, host_cores = 0;
  std::vector<double> seconds;     // Of one run, by sample.
  double operations = 0, bytes = 0;
  double bound_rate = 0;           // Median, FLOP/s or B/s.
  double share = 0;                // Median of the pairs' rates by their bounds'.

  SampleSummary summary() const { return summary_of(seconds); }
  double gflops() const { return operations / summary().median / 1e9; }
  double gbps() const { return bytes / summary().median / 1e9; }
  OrderedJson json() const;
};

std::string kernels_head(const KernelsOptions& options, double load_average, std::uint32_t host_cores);
std::string text_of(const KernelRow& row);

/// Calls `on_row` as each is done. Fails with cancelled on a signal, and with unsupported where the machine's kernels do not
/// keep the promise of equal bits.
Result<std::vector<KernelRow>> run_kernels(const KernelsOptions& options, SignalWatch& signals, const std::function<Status(const KernelRow&)>& on_row);

}  // namespace orrery::launch
