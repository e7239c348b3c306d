#include "launch/bench_kernels.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <thread>

#include "base/clock.hpp"
#include "cards/card.hpp"
#include "cards/kernel_bench.hpp"

namespace orrery::launch {
namespace {

constexpr double sample_seconds = 0.02;

/// Seconds of one run, of as many as take a glance of the clock for certain.
double seconds_of_run(const cards::KernelCase& work, std::uint32_t times) {
  const SteadyClock clock;
  const auto begun = clock.now();
  for (std::uint32_t i = 0; i < times; ++i) work.run();
  return seconds_of(clock.now() - begun) / times;
}

std::uint32_t times_of(const cards::KernelCase& work) {
  const auto once = std::max(1e-7, seconds_of_run(work, 1));
  return static_cast<std::uint32_t>(std::clamp(std::ceil(sample_seconds / once), 1.0, 10'000.0));
}

}  // namespace

OrderedJson KernelRow::json() const {
  const auto all = summary();
  return {{"name", name},
          {"dtype", dtype},
          {"threads", threads},
          {"time_us", all.median * 1e6},
          {"time_us_min", all.min * 1e6},
          {"time_us_p90", all.p90 * 1e6},
          {"time_us_ci95", {all.ci95.low * 1e6, all.ci95.high * 1e6}},
          {"repetitions", all.count},
          {"gflops", operations > 0 ? OrderedJson(gflops()) : OrderedJson(nullptr)},
          {"gbps", gbps()},
          {"bound", bound},
          {operations > 0 ? "bound_gflops" : "bound_gbps", bound_rate / 1e9},
          {"percent_of_bound", share * 100},
          {"clock", "wall"},
          {"oversubscribed", threads > host_cores},
          {"host_cores", host_cores}};
}

std::string kernels_head(const KernelsOptions& options, double load_average, std::uint32_t host_cores) {
  std::array<char, 512> text{};
  std::snprintf(text.data(), text.size(),
                "# orrery bench kernels: cpu card, %u thread%s, %u cores, load average %.2f%s, medians of %u, clock wall\n"
                "%-46s %5s %12s %9s %9s %9s %8s  %s\n",
                options.threads, options.threads == 1 ? "" : "s", host_cores, load_average, options.threads > host_cores ? ", oversubscribed" : "",
                options.repetitions, "operation", "dtype", "time(us)", "ci95(%)", "GFLOP/s", "GB/s", "%bound", "bound");
  return text.data();
}

std::string text_of(const KernelRow& row) {
  std::array<char, 256> text{};
  std::array<char, 32> rate{};
  if (row.operations > 0) std::snprintf(rate.data(), rate.size(), "%.1f", row.gflops());
  else std::snprintf(rate.data(), rate.size(), "-");
  const auto all = row.summary();
  std::snprintf(text.data(), text.size(), "%-46s %5s %12.1f %9.1f %9s %9.2f %8.1f  %s, %.1f %s\n", row.name.c_str(), row.dtype.c_str(), all.median * 1e6,
                all.relative_ci() * 100, rate.data(), row.gbps(), row.share * 100, row.bound.c_str(), row.bound_rate / 1e9,
                row.operations > 0 ? "GFLOP/s" : "GB/s");
  return text.data();
}

Result<std::vector<KernelRow>> run_kernels(const KernelsOptions& options, SignalWatch& signals, const std::function<Status(const KernelRow&)>& on_row) {
  if (const auto numerics = cards::check_numerics(); !numerics.ok()) return numerics.error();
  std::vector<KernelRow> rows;
  const auto memory = cards::memory_bound(options.threads);
  memory.run();
  const auto memory_times = times_of(memory);
  for (const auto dtype : options.dtypes) {
    const auto product = cards::packed_product_bound(dtype, options.threads);
    product.run();
    for (const auto& [name, make] : cards::kernel_cases(dtype, options.threads)) {
      if (name.find(options.only) == std::string::npos) continue;
      const auto work = make();
      work.run();
      const auto times = times_of(work);
      const bool computes = work.operations > 0;
      const auto& limit = computes ? product : memory;
      KernelRow row;
      row.name = name;
      row.dtype = std::string(orrery::name_of(dtype));
      row.bound = computes ? "packed product" : "memcpy";
      row.threads = options.threads;
      row.host_cores = std::max(1U, std::thread::hardware_concurrency());
      row.operations = work.operations;
      row.bytes = work.bytes;
      std::vector<double> bounds, shares;
      for (std::uint32_t i = 0; i < options.repetitions; ++i) {
        if (signals.received()) return Error{ErrorCode::cancelled, "interrupted"};
        const auto limit_seconds = seconds_of_run(limit, computes ? 1 : memory_times);
        bounds.push_back((computes ? limit.operations : limit.bytes) / limit_seconds);
        row.seconds.push_back(seconds_of_run(work, times));
        shares.push_back((computes ? work.operations : work.bytes) / row.seconds.back() / bounds.back());
      }
      row.bound_rate = quantile_of(bounds, 0.5);
      row.share = quantile_of(shares, 0.5);
      ORRERY_TRY_DONE(on_row(row));
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

}  // namespace orrery::launch
