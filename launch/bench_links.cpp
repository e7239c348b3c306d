#include "launch/bench_links.hpp"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <thread>

#include "base/file.hpp"
#include "base/private_folder.hpp"
#include "base/random.hpp"
#include "launch/cores.hpp"
#include "launch/paths.hpp"
#include "launch/processes.hpp"

namespace orrery::launch {
namespace {

constexpr double sample_seconds = 0.05;
constexpr Duration patience = std::chrono::seconds(60);

/// Both ends of a pipe, closed at the end.
class Pipe {
public:
  static Result<Pipe> create() {
    Pipe made;
    if (::pipe2(made.ends_.data(), O_CLOEXEC) != 0) return Error{ErrorCode::io_failed, "no pipe: " + errno_text()};
    return made;
  }
  Pipe(Pipe&& other) noexcept : ends_(std::exchange(other.ends_, {-1, -1})) {}
  Pipe& operator=(Pipe&&) = delete;
  ~Pipe() {
    for (const int end : ends_)
      if (end >= 0) ::close(end);
  }
  int read_end() const { return ends_[0]; }
  /// A name under which a child can open the other end.
  std::string write_path() const { return "/proc/self/fd/" + std::to_string(ends_[1]); }
  void close_write_end() {
    ::close(std::exchange(ends_[1], -1));
  }

private:
  Pipe() = default;
  std::array<int, 2> ends_{-1, -1};
};

/// One rank's process and what it has said.
struct Child {
  Process process;
  Pipe output;
  std::string unread;
  std::string words;  // Lines that are no JSON: what it says when it gives up.
};

class Group {
public:
  Group(const LinksOptions& options, SignalWatch& signals) : options_(options), signals_(signals) {}

  Status start() {
    ORRERY_TRY(folder, PrivateFolder::create());
    folder_ = std::move(folder);
    ORRERY_TRY(program, program_path());
    cores_ = CoreClaim::take(std::vector<std::uint32_t>(options_.ranks, 1));
    const auto cluster = std::to_string(std::max<std::uint64_t>(1, Random(static_cast<std::uint64_t>(::getpid())).next() >> 1));
    for (std::uint32_t rank = 0; rank < options_.ranks; ++rank) {
      ORRERY_TRY(output, Pipe::create());
      ProcessSpec spec;
      spec.name = "rank " + std::to_string(rank);
      spec.arguments = {program, "bench", "link-rank", "--rank", std::to_string(rank), "--ranks", std::to_string(options_.ranks),
                        "--transport", options_.transport, "--folder", folder_.path(), "--cluster-id", cluster};
      spec.with_input = true;
      spec.cpus = cores_.of(rank);
      spec.log_file = output.write_path();
      ORRERY_TRY(process, Process::start(spec));
      output.close_write_end();
      children_.push_back(Child{std::move(process), std::move(output), {}, {}});
    }
    OrderedJson peers = OrderedJson::array();
    ORRERY_TRY(addresses, answers());
    for (const auto& each : addresses) {
      if (!each.contains("address")) return Error{ErrorCode::internal, "a rank did not say its address"};
      peers.push_back(each["address"].get<std::string>());
    }
    ORRERY_TRY_DONE(tell({{"peers", peers}}));
    if (auto ready = answers(); !ready.ok()) return ready.error();
    return Done{};
  }

  /// The samples: of each the slowest rank's.
  Result<LinkRow> measure(std::uint64_t bytes, std::uint32_t iterations, std::uint32_t samples, std::uint32_t warmup) {
    ORRERY_TRY_DONE(tell({{"op", name_of(options_.op)}, {"bytes", bytes}, {"iterations", iterations}, {"samples", samples}, {"warmup", warmup}}));
    ORRERY_TRY(all, answers());
    LinkRow row;
    row.op = options_.op;
    row.ranks = options_.ranks;
    row.bytes = bytes;
    row.iterations = iterations;
    row.host_cores = std::max(1U, std::thread::hardware_concurrency());
    row.seconds.assign(samples, 0);
    std::uint64_t frames = 0, memory_frames = 0;
    for (const auto& each : all) {
      const auto seconds = each.value("seconds", Json::array());
      if (seconds.size() != samples) return Error{ErrorCode::internal, "a rank gave " + std::to_string(seconds.size()) + " samples"};
      for (std::size_t i = 0; i < samples; ++i) row.seconds[i] = std::max(row.seconds[i], seconds[i].get<double>());
      row.wrong += each.value("wrong", std::uint64_t{0});
      frames += each.value("frames", std::uint64_t{0});
      memory_frames += each.value("memory_frames", std::uint64_t{0});
    }
    const auto wire = options_.transport == "ipc" ? "ipc" : "tcp";
    row.transport = 2 * memory_frames >= frames && memory_frames > 0 ? "shm" : wire;
    return row;
  }

private:
  Status tell(const OrderedJson& order) {
    const auto line = order.dump() + "\n";
    for (auto& child : children_) ORRERY_TRY_DONE(child.process.write_input(std::as_bytes(std::span(line)), std::chrono::seconds(10)));
    return Done{};
  }

  /// One JSON line of every rank.
  Result<std::vector<Json>> answers() {
    std::vector<Json> all(children_.size());
    std::vector<bool> answered(children_.size(), false);
    const auto until = clock_.now() + patience;
    while (std::find(answered.begin(), answered.end(), false) != answered.end()) {
      std::vector<int> descriptors;
      for (const auto& child : children_) descriptors.push_back(child.output.read_end());
      if (signals_.received() || signals_.wait_for_signal_or(descriptors, std::chrono::milliseconds(500)) == SignalWatch::Woken::signal)
        return Error{ErrorCode::cancelled, "interrupted"};
      for (std::size_t i = 0; i < children_.size(); ++i) {
        ORRERY_TRY(line, next_line(children_[i]));
        if (!line) continue;
        if (answered[i]) return Error{ErrorCode::internal, children_[i].process.name() + " spoke out of turn"};
        if (line->contains("error")) return Error{static_cast<ErrorCode>(line->value("code", 1)), children_[i].process.name() + ": " + line->value("error", "")};
        all[i] = std::move(*line);
        answered[i] = true;
      }
      if (clock_.now() >= until) return Error{ErrorCode::timed_out, "the ranks did not answer within " + std::to_string(static_cast<int>(seconds_of(patience))) + " s"};
    }
    return all;
  }

  /// A line that is there already. Fails when the rank is gone.
  Result<std::optional<Json>> next_line(Child& child) {
    for (;;) {
      const auto end = child.unread.find('\n');
      if (end != std::string::npos) {
        const auto line = child.unread.substr(0, end);
        child.unread.erase(0, end + 1);
        auto json = parse_json(line, child.process.name());
        if (json.ok() && json.value().is_object() && !json.value().contains("event")) return std::optional(std::move(json).value());
        child.words += (child.words.empty() ? "" : "; ") + line.substr(0, 300);
        continue;
      }
      pollfd one{child.output.read_end(), POLLIN, 0};
      if (::poll(&one, 1, 0) != 1) return std::optional<Json>();
      std::array<char, 65536> buffer;
      const auto got = ::read(child.output.read_end(), buffer.data(), buffer.size());
      if (got > 0) {
        child.unread.append(buffer.data(), static_cast<std::size_t>(got));
        continue;
      }
      const auto ended = child.process.wait(std::chrono::seconds(2));
      return Error{ErrorCode::peer_lost, child.process.name() + " " + (ended ? ended->text() : "closed its output"), child.words};
    }
  }

  CoreClaim cores_;  // Until the ranks are gone.
  const LinksOptions& options_;
  SignalWatch& signals_;
  SteadyClock clock_;
  PrivateFolder folder_;
  std::vector<Child> children_;
};

std::string printed_time(double seconds) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), seconds < 1e-2 ? "%.2f" : "%.0f", seconds * 1e6);
  return text.data();
}

}  // namespace

OrderedJson LinkRow::json() const {
  const auto all = summary();
  return {{"op", name_of(op)},
          {"ranks", ranks},
          {"bytes", bytes},
          {"time_us", all.median * 1e6},
          {"time_us_min", all.min * 1e6},
          {"time_us_p90", all.p90 * 1e6},
          {"time_us_ci95", {all.ci95.low * 1e6, all.ci95.high * 1e6}},
          {"algbw_gbps", algbw_gbps()},
          {"busbw_gbps", busbw_gbps()},
          {"wrong", wrong},
          {"transport", transport},
          {"clock", "wall"},
          {"oversubscribed", ranks > host_cores},
          {"host_cores", host_cores},
          {"iterations", iterations},
          {"repetitions", seconds.size()}};
}

std::vector<std::uint64_t> link_sizes(const LinksOptions& options) {
  std::vector<std::uint64_t> sizes;
  for (auto at = static_cast<double>(options.bytes_min); at <= static_cast<double>(options.bytes_max) * (1 + 1e-9); at *= options.factor) {
    const auto bytes = link_bytes(static_cast<std::uint64_t>(at), options.ranks);
    if (sizes.empty() || bytes > sizes.back()) sizes.push_back(bytes);
  }
  return sizes;
}

std::string links_head(const LinksOptions& options, double load_average, std::uint32_t host_cores) {
  std::array<char, 512> text{};
  std::snprintf(text.data(), text.size(),
                "# orrery bench links: %s, %u ranks (a process each), transport %s, %u cores, load average %.2f%s\n"
                "# times are medians of %u samples of many iterations, of the slowest rank; GB/s are decimal; clock wall\n"
                "%12s %12s %8s %6s %5s %12s %9s %12s %12s %7s %9s\n",
                std::string(name_of(options.op)).c_str(), options.ranks, options.transport.c_str(), host_cores, load_average,
                options.ranks > host_cores ? ", oversubscribed" : "", options.repetitions, "size(B)", "count", "type", "redop", "root", "time(us)",
                "ci95(%)", "algbw(GB/s)", "busbw(GB/s)", "#wrong", "transport");
  return text.data();
}

std::string text_of(const LinkRow& row) {
  std::array<char, 256> text{};
  const bool reduces = row.op == LinkOp::all_reduce || row.op == LinkOp::reduce_scatter;
  const auto all = row.summary();
  std::snprintf(text.data(), text.size(), "%12llu %12llu %8s %6s %5s %12s %9.1f %12.3f %12.3f %7llu %9s\n", static_cast<unsigned long long>(row.bytes),
                static_cast<unsigned long long>(row.bytes / sizeof(float)), "float", reduces ? "sum" : "none", row.op == LinkOp::broadcast ? "0" : "-1",
                printed_time(all.median).c_str(), all.relative_ci() * 100, row.algbw_gbps(), row.busbw_gbps(), static_cast<unsigned long long>(row.wrong),
                row.transport.c_str());
  return text.data();
}

std::string links_foot(const std::vector<LinkRow>& rows) {
  double sum = 0;
  std::uint64_t wrong = 0;
  for (const auto& row : rows) {
    sum += row.busbw_gbps();
    wrong += row.wrong;
  }
  std::array<char, 256> text{};
  std::snprintf(text.data(), text.size(), "# Out of bounds values : %llu %s\n# Avg bus bandwidth    : %.3f\n", static_cast<unsigned long long>(wrong),
                wrong == 0 ? "OK" : "FAILED", rows.empty() ? 0.0 : sum / static_cast<double>(rows.size()));
  return text.data();
}

Result<std::vector<LinkRow>> run_links(const LinksOptions& options, SignalWatch& signals, const std::function<Status(const LinkRow&)>& on_row) {
  Group group(options, signals);
  ORRERY_TRY_DONE(group.start());
  std::vector<LinkRow> rows;
  for (const auto bytes : link_sizes(options)) {
    auto iterations = options.iterations;
    if (iterations == 0) {
      // The first ones also warm up.
      ORRERY_TRY(trial, group.measure(bytes, 4, 3, 2));
      const auto one = std::max(1e-7, *std::min_element(trial.seconds.begin(), trial.seconds.end()));
      iterations = static_cast<std::uint32_t>(std::clamp(std::ceil(sample_seconds / one), 3.0, 2000.0));
    }
    ORRERY_TRY(row, group.measure(bytes, iterations, options.repetitions, options.warmup));
    ORRERY_TRY_DONE(on_row(row));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace orrery::launch
