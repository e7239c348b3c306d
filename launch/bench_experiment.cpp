#include "launch/bench_experiment.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <thread>

#include "actors/client.hpp"
#include "actors/demand.hpp"
#include "base/digest.hpp"
#include "base/file.hpp"
#include "base/private_folder.hpp"
#include "base/units.hpp"
#include "launch/config_files.hpp"
#include "launch/local_cluster.hpp"
#include "launch/progress.hpp"
#include "launch/trace_option.hpp"
#include "launch/video_sink.hpp"
#include "topology/planner.hpp"

namespace orrery::launch {
namespace {

using topology::ExperimentClock;
using topology::ScalingGrowth;
using topology::StageKind;

/// Clusters that are up side by side may take this part of the memory that is there.
constexpr double memory_share_max = 0.5;

std::uint64_t memory_available() {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("MemAvailable:")) return std::strtoull(line.c_str() + 13, nullptr, 10) * 1024;
  return 0;
}

/// What one configuration has to do.
struct PointWork {
  topology::ScenarioRequest request;
  std::uint32_t requests = 1;
};

double size_of(const topology::ExperimentSpec& spec, const topology::ExperimentPoint& point) {
  if (!spec.scaling) return 0;
  const auto* value = point.value(spec.scaling->over);
  return value == nullptr ? 0 : std::strtod(value->c_str(), nullptr);
}

PointWork work_of(const topology::ExperimentSpec& spec, const topology::ExperimentPoint& point, std::uint32_t frames_by_default) {
  PointWork work{spec.workload.request, spec.workload.requests};
  if (!spec.scaling || !spec.scaling->grow) return work;
  const auto times = size_of(spec, point) / spec.scaling->baseline;
  if (*spec.scaling->grow == ScalingGrowth::requests) {
    work.requests = std::max(1U, static_cast<std::uint32_t>(std::lround(work.requests * times)));
  } else {
    const auto latent = (work.request.num_frames.value_or(frames_by_default) - 1) / 8 + 1;
    work.request.num_frames = (std::max(1U, static_cast<std::uint32_t>(std::lround(latent * times))) - 1) * 8 + 1;
  }
  return work;
}

/// What the planner is told of it.
PlannedRequest planned_request_of(const topology::ScenarioRequest& request) {
  PlannedRequest planned;
  if (request.size)
    if (const auto size = topology::parse_frame_size(*request.size); size.ok()) planned.size = size.value();
  planned.frames = request.num_frames;
  planned.steps = request.num_inference_steps;
  planned.guidance = request.guidance_scale;
  return planned;
}

actors::RequestSpec request_of(const topology::ScenarioRequest& wanted, const actors::RequestSpec& defaults, std::uint32_t index) {
  auto spec = defaults;
  spec.prompt = wanted.prompt;
  spec.seed = wanted.seed + index;
  if (wanted.negative_prompt) spec.negative_prompt = *wanted.negative_prompt;
  if (wanted.num_inference_steps) spec.steps = *wanted.num_inference_steps;
  if (wanted.num_frames) spec.frames = *wanted.num_frames;
  if (wanted.guidance_scale) spec.guidance = *wanted.guidance_scale;
  if (wanted.size)
    if (const auto size = topology::parse_frame_size(*wanted.size); size.ok()) {
      spec.width = size.value().width;
      spec.height = size.value().height;
    }
  return spec;
}

/// Floating-point operations of one request.
double operations_of(const topology::Demand& demand) {
  double all = 0;
  for (const auto& stage : demand.stages) {
    const auto times = stage.kind == StageKind::denoiser ? static_cast<double>(stage.steps) * stage.branches : 1.0;
    all += (stage.flops_linear + stage.flops_attention) * times;
  }
  return all;
}

/// What a plan says of a configuration.
void describe(const topology::Plan& plan, const topology::ClusterSpec& cluster, const topology::Demand& demand, BenchRow& row) {
  row.nodes = static_cast<std::uint32_t>(cluster.nodes.size());
  row.cards = static_cast<std::uint32_t>(plan.cards.size());
  row.transport = std::string(topology::name_of(cluster.data.transport));
  row.work = operations_of(demand);
  row.steps = plan.steps;
  bool all_of_this_machine = true;
  for (const auto& node : cluster.nodes)
    for (const auto& card : node.cards) all_of_this_machine = all_of_this_machine && cluster.type_of(card).backend == topology::Backend::cpu;
  const auto* denoiser = plan.stage(StageKind::denoiser);
  if (denoiser != nullptr) {
    const auto ranks = static_cast<std::uint32_t>(denoiser->groups.front().ranks.size());
    row.cfg = static_cast<std::uint32_t>(denoiser->groups.size());
    (denoiser->split == topology::Split::tensor ? row.tensor : row.sequence) = ranks;
    row.threads = 0;
    for (const auto& group : denoiser->groups)
      for (const auto& rank : group.ranks) row.threads += plan.cards[rank.card].threads;
  }
  row.oversubscribed = all_of_this_machine && row.threads > row.host_cores;
  if (const auto* step = plan.prediction(StageKind::denoiser)) row.predicted_step_seconds = step->total_seconds();
}

/// A row of the planner's figures.
void predict(const topology::Plan& plan, BenchRow& row) {
  row.clock = "model";
  const auto* denoiser = plan.prediction(StageKind::denoiser);
  const auto* encoder = plan.prediction(StageKind::text_encoder);
  if (denoiser == nullptr) return;
  const auto step = denoiser->total_seconds();
  row.samples["step_seconds"] = {step};
  row.samples["latents_seconds"] = {(encoder != nullptr ? encoder->total_seconds() : 0) + step * plan.steps};
  row.samples["frames_seconds"] = {plan.predicted_video_seconds};
  row.comm_fraction = step > 0 ? denoiser->exchange_seconds / step : 0;
  double bytes = 0;
  for (const auto& link : plan.links) bytes += static_cast<double>(link.bytes_per_step);
  row.bytes_per_step = bytes;
  std::uint64_t peak = 0;
  for (const auto& bill : plan.bills) peak = std::max(peak, row.requests > 1 ? bill.total() : bill.one_video());
  row.peak_card_bytes = peak;
  // Busy time goes with slices, and with how slow the card is.
  double most = 0, sum = 0;
  std::size_t count = 0;
  for (const auto& group : plan.stage(StageKind::denoiser)->groups)
    for (const auto& rank : group.ranks) {
      const auto busy = static_cast<double>(rank.slices.size()) / plan.cards[rank.card].relative_compute;
      most = std::max(most, busy);
      sum += busy;
      ++count;
    }
  if (sum > 0) row.imbalance = most / (sum / static_cast<double>(count));
}

/// What one request's client saw.
struct Seen {
  std::vector<double> steps;
  double latents = 0, frames = 0, video = 0;    // Seconds after the run began.
  std::map<std::string, double> stage_seconds;
  std::string digest;
  Json account = Json::object();
  Status status = Done{};
};

/// One run of a configuration.
struct RunSeen {
  std::vector<Seen> requests;
  double bytes_sent = 0;
  std::uint64_t peak_card_bytes = 0;
};

/// Times of the denoiser, over all requests of a run.
struct DenoiserTimes {
  double compute = 0, exchange = 0, hidden = 0, stall = 0;
};

double number_in(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<double>() : 0;
}

/// One configuration with its cluster.
class PointRun {
public:
  PointRun(PlannedCluster planned, ClusterArguments arguments, PointWork work)
      : planned_(std::move(planned)), arguments_(std::move(arguments)), work_(std::move(work)) {}

  std::uint64_t memory_bytes() const {
    std::uint64_t all = 0;
    for (const auto& bill : planned_.plan.bills) all += bill.total();
    return all;
  }
  bool is_up() const { return cluster_ != nullptr; }

  Status bring_up(SignalWatch& signals, std::string keep_logs) {
    LocalClusterOptions options;
    options.end_when_starved = true;
    options.keep_logs_in = std::move(keep_logs);
    ORRERY_TRY(cluster, LocalCluster::start(planned_, arguments_, options, signals));
    cluster_ = std::move(cluster);
    for (std::uint32_t i = 0; i < work_.requests; ++i) {
      ORRERY_TRY(client, cluster_->connect());
      clients_.push_back(std::move(client));
    }
    return Done{};
  }
  void bring_down() {
    clients_.clear();
    cluster_.reset();
  }

  /// Submits all requests at once and waits for the last.
  Result<RunSeen> run(SignalWatch& signals, const std::string& video_ending, const std::string& scratch) {
    ORRERY_TRY(before, status());
    RunSeen seen;
    seen.requests.resize(work_.requests);
    const auto begun = clock_.now();
    std::atomic<bool> stop{false};
    std::atomic<std::uint32_t> left{work_.requests};
    const auto one = [&](std::uint32_t i, const std::function<bool()>& interrupted) {
      seen.requests[i] = generate(i, begun, interrupted, video_ending.empty() ? "" : scratch + "/video" + std::to_string(i) + video_ending);
      --left;
    };
    const auto watch = [&] {
      if (const auto over = cluster_->ended(); over || signals.received()) stop = true;
      return stop.load();
    };
    if (work_.requests == 1) {
      one(0, watch);
    } else {
      std::vector<std::thread> threads;
      for (std::uint32_t i = 0; i < work_.requests; ++i) threads.emplace_back(one, i, [&] { return stop.load(); });
      // Signals and the cluster are this thread's business.
      while (left > 0) {
        static_cast<void>(watch());
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      for (auto& thread : threads) thread.join();
    }
    if (const auto over = cluster_->ended(); over && !over->ok()) return over->error();
    for (const auto& request : seen.requests) ORRERY_TRY_DONE(request.status);
    ORRERY_TRY(after, status());
    for (const auto& node : after.value("nodes", Json::array())) {
      seen.bytes_sent += number_in(node, "data_bytes_sent");
      for (const auto& card : node.value("cards", Json::array()))
        seen.peak_card_bytes = std::max(seen.peak_card_bytes, static_cast<std::uint64_t>(number_in(card, "bytes_max")));
    }
    for (const auto& node : before.value("nodes", Json::array())) seen.bytes_sent -= number_in(node, "data_bytes_sent");
    return seen;
  }

  actors::Client& client() { return *clients_.front(); }
  const PlannedCluster& planned() const { return planned_; }
  const PointWork& work() const { return work_; }

private:
  Result<Json> status() {
    ORRERY_TRY(text, clients_.front()->status());
    return parse_json(text, "the coordinator's status");
  }

  Seen generate(std::uint32_t index, Time begun, const std::function<bool()>& interrupted, const std::string& video) {
    Seen seen;
    const auto since = [&] { return seconds_of(clock_.now() - begun); };
    auto& client = *clients_[index];
    const auto spec = request_of(work_.request, planned_.defaults, index);
    std::optional<VideoSink> sink;
    if (!video.empty()) {
      VideoShape shape{spec.width, spec.height, spec.fps, spec.frames};
      auto opened = VideoSink::open(video, shape);
      if (!opened.ok()) {
        seen.status = opened.error();
        return seen;
      }
      sink.emplace(std::move(opened).value());
    }
    Sha256 digest;
    const auto frame_bytes = std::uint64_t{spec.width} * spec.height * 3;
    actors::ClientHandlers handlers;
    handlers.on_event = [&](const actors::StageEvent& event) {
      using Kind = actors::StageEvent::Kind;
      if (event.stage == "denoiser" && event.kind == Kind::progress && event.done > 0) seen.steps.push_back(event.seconds);
      if (event.kind != Kind::done) return;
      seen.stage_seconds[event.stage] = event.seconds;
      if (event.stage == "denoiser") seen.latents = since();
    };
    handlers.on_frames = [&](std::span<const std::byte> rgb, std::uint64_t) -> Status {
      seen.frames = since();
      digest.update(rgb);
      for (std::size_t at = 0; sink && at + frame_bytes <= rgb.size(); at += frame_bytes) ORRERY_TRY_DONE(sink->add_frame(rgb.subspan(at, frame_bytes)));
      return Done{};
    };
    handlers.on_tensor = [](const std::string&, std::uint32_t, Tensor) {};
    handlers.interrupted = interrupted;
    auto account = client.generate(actors::new_request_id(), spec, std::nullopt, handlers);
    if (!account.ok()) {
      seen.status = account.error();
      return seen;
    }
    if (sink) {
      auto finished = sink->finish();
      if (!finished.ok()) seen.status = finished.error();
      seen.video = since();
    }
    seen.digest = digest.finish();
    if (auto json = parse_json(account.value(), "account"); json.ok()) seen.account = std::move(json).value();
    return seen;
  }

  PlannedCluster planned_;
  ClusterArguments arguments_;
  PointWork work_;
  SteadyClock clock_;
  // The clients go first.
  std::unique_ptr<LocalCluster> cluster_;
  std::vector<std::unique_ptr<actors::Client>> clients_;
};

class ExperimentRun {
public:
  ExperimentRun(const ExperimentOptions& options, const BenchConfig& config, const BenchFolder& folder, const VerbContext& context, SignalWatch& signals)
      : options_(options), spec_(options.spec), config_(config), folder_(folder), context_(context), signals_(signals), progress_(context, clock_) {}

  Result<ExperimentEnd> run() {
    result_.name = spec_.name;
    result_.scaling = spec_.scaling;
    result_.metric = std::string(name_of(spec_.scaling ? spec_.scaling->metric : topology::ExperimentTime::frames));
    result_.environment = machine_facts();
    const bool measures = spec_.clock == ExperimentClock::wall;
    if (!measures && !options_.trace.empty()) warn(context_, "--trace has no effect: with clock `model` nothing runs");
    if (measures) {
      for (auto& doubt : doubts_about_machine()) doubts(std::move(doubt));
      if (spec_.repeat.min_runs < 5)
        doubts("repeat.min_runs is " + std::to_string(spec_.repeat.min_runs) + "; fewer than 5 runs say little about a median [W402]");
    }
    ORRERY_TRY_DONE(folder_.write("config.yaml", config_.text()));
    ORRERY_TRY_DONE(folder_.write("env.json", result_.environment.dump(2) + "\n"));
    ORRERY_TRY_DONE(folder_.add_event({{"event", "began"}, {"configurations", spec_.points.size()}}));
    ORRERY_TRY_DONE(prepare());
    ORRERY_TRY_DONE(save());
    auto done = measures ? measure() : Status(Done{});
    progress_.finish();
    const auto signal = signals_.received();
    if (done.ok() && !signal) result_.state = "complete";
    if (!done.ok() && !(signal && done.error().code == ErrorCode::cancelled)) {
      static_cast<void>(folder_.add_event({{"event", "failed"}, {"message", done.error().text()}}));
      static_cast<void>(save());
      return done.error();
    }
    result_.derive();
    if (result_.state == "complete") result_.check(spec_.assertions);
    ORRERY_TRY_DONE(folder_.add_event({{"event", result_.state}}));
    ORRERY_TRY_DONE(save());
    return ExperimentEnd{std::move(result_), signal};
  }

private:
  void doubts(std::string sentence) {
    warn(context_, sentence);
    result_.warnings.push_back(std::move(sentence));
  }

  Status save() {
    result_.derive();
    return folder_.write_result(result_);
  }

  /// A file and a plan for every configuration.
  Status prepare() {
    std::optional<Error> trouble;
    for (std::size_t i = 0; i < spec_.points.size(); ++i) {
      const auto& point = spec_.points[i];
      BenchRow row;
      row.name = point.name();
      row.settings = point.settings;
      row.clock = std::string(name_of(spec_.clock));
      row.host_cores = core_count();
      row.size = size_of(spec_, point);
      std::unique_ptr<PointRun> run;
      auto made = plan(point, i, row, run);
      if (!made.ok()) {
        if (made.error().code != ErrorCode::no_feasible_plan) return made.error();
        row.note = made.error().text();
        if (!trouble) trouble = made.error();
      }
      result_.rows.push_back(std::move(row));
      runs_.push_back(std::move(run));
    }
    const bool none = std::all_of(result_.rows.begin(), result_.rows.end(), [](const BenchRow& row) { return !row.note.empty(); });
    if (none && trouble) return *trouble;
    return Done{};
  }

  Status plan(const topology::ExperimentPoint& point, std::size_t index, BenchRow& row, std::unique_ptr<PointRun>& run) {
    ORRERY_TRY(text, config_.text_of(point));
    char number[24];
    std::snprintf(number, sizeof number, "%03zu", index);
    const auto file = std::string("configurations/") + number + ".yaml";
    ORRERY_TRY_DONE(folder_.write(file, text));
    ClusterArguments arguments;
    arguments.config.files = {folder_.path() + "/" + file};
    const auto work = work_of(spec_, point, config_.resolved().model.defaults.num_frames);
    arguments.request = planned_request_of(work.request);
    row.requests = work.requests;
    if (spec_.clock == ExperimentClock::wall) {
      ORRERY_TRY(planned, plan_cluster(arguments, context_));
      row.frames = work.request.num_frames.value_or(planned.defaults.frames);
      describe(planned.plan, planned.resolved.cluster, planned.demand, row);
      row.steps = work.request.num_inference_steps.value_or(planned.defaults.steps);
      row.work *= work.requests;
      run = std::make_unique<PointRun>(std::move(planned), std::move(arguments), work);
      return Done{};
    }
    ORRERY_TRY(set, read_configs(arguments.config, context_));
    ORRERY_TRY(resolved, set.resolve());
    auto shape = topology::shape_of(resolved.model.defaults);
    if (arguments.request.size) shape.size = *arguments.request.size;
    if (arguments.request.frames) shape.num_frames = *arguments.request.frames;
    if (arguments.request.steps) shape.num_inference_steps = *arguments.request.steps;
    if (arguments.request.guidance) shape.guided = *arguments.request.guidance > 1;
    row.frames = shape.num_frames;
    ORRERY_TRY(demand, actors::demand_of(resolved.model, shape));
    ORRERY_TRY(made, topology::make_plan(resolved.cluster, resolved.deployment, demand));
    describe(made, resolved.cluster, demand, row);
    predict(made, row);
    return Done{};
  }

  Status measure() {
    ORRERY_TRY_DONE(open_traces());
    std::uint64_t memory = 0;
    std::size_t count = 0;
    for (const auto& run : runs_)
      if (run) memory += run->memory_bytes(), ++count;
    const auto available = memory_available();
    keep_up_ = count > 0 && static_cast<double>(memory) <= memory_share_max * static_cast<double>(available);
    if (!options_.video_ending.empty()) {
      ORRERY_TRY(scratch, PrivateFolder::create());
      scratch_ = std::move(scratch);
    }
    if (keep_up_)
      for (std::size_t i = 0; i < runs_.size(); ++i)
        if (runs_[i]) ORRERY_TRY_DONE(up(i));
    const auto& repeat = spec_.repeat;
    const auto total = count * (keep_up_ ? repeat.warmup + repeat.max_runs : (repeat.warmup + 1) * repeat.max_runs);
    std::size_t done = 0;
    // Warm-ups of a cluster that stays up come once, in turn too.
    for (std::uint32_t round = 0; keep_up_ && round < repeat.warmup; ++round)
      for (std::size_t i = 0; i < runs_.size(); ++i)
        if (runs_[i]) ORRERY_TRY_DONE(once(i, 0, ++done, total));
    for (std::uint32_t round = 1; round <= repeat.max_runs; ++round) {
      for (std::size_t i = 0; i < runs_.size(); ++i) {
        if (!runs_[i]) continue;
        if (!keep_up_) {
          ORRERY_TRY_DONE(up(i));
          for (std::uint32_t warm = 0; warm < repeat.warmup; ++warm) ORRERY_TRY_DONE(once(i, 0, ++done, total));
        }
        ORRERY_TRY_DONE(once(i, round, ++done, total));
        if (!keep_up_) runs_[i]->bring_down();
      }
      if (round >= repeat.min_runs && sure_enough()) break;
    }
    for (auto& [index, trace] : traces_) ORRERY_TRY_DONE(traced(index, trace));
    return Done{};
  }

  /// What cannot be written is told before anything is measured.
  Status open_traces() {
    if (options_.trace.empty()) return Done{};
    const auto count = std::count_if(runs_.begin(), runs_.end(), [](const auto& run) { return run != nullptr; });
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      if (!runs_[i]) continue;
      std::filesystem::path path(options_.trace);
      if (count > 1) path.replace_filename(path.stem().string() + "-" + std::to_string(i) + path.extension().string());
      ORRERY_TRY(trace, TraceSession::open(path.string()));
      traces_.emplace_back(i, std::move(trace));
    }
    return Done{};
  }

  /// One more run, for its trace: not counted, as recording costs a little; its frames are compared all the same.
  Status traced(std::size_t index, TraceSession& trace) {
    if (!keep_up_) {
      ORRERY_TRY_DONE(up(index));
      for (std::uint32_t warm = 0; warm < spec_.repeat.warmup; ++warm) ORRERY_TRY_DONE(once(index, 0, 1, 1));
    }
    trace.follow(runs_[index]->client());
    auto done = once(index, 0, 1, 1);
    progress_.finish();
    auto written = trace.finish(context_, done.ok() ? Result<int>(0) : Result<int>(done.error()));
    if (!keep_up_) runs_[index]->bring_down();
    if (!written.ok()) return written.error();
    return Done{};
  }

  bool sure_enough() const {
    if (!spec_.repeat.until) return true;
    const std::string metric(name_of(spec_.repeat.until->metric));
    return std::all_of(result_.rows.begin(), result_.rows.end(), [&](const BenchRow& row) {
      const auto found = row.summaries.find(metric);
      return found == row.summaries.end() || found->second.relative_ci() <= spec_.repeat.until->rel_ci95;
    });
  }

  Status up(std::size_t index) {
    if (signals_.received()) return Error{ErrorCode::cancelled, "interrupted"};
    show(index, 0, 0, "starts its cluster");
    auto done = runs_[index]->bring_up(signals_, "");
    if (!done.ok()) return Error{done.error().code, result_.rows[index].name + ": " + done.error().message, done.error().hint};
    return Done{};
  }

  void show(std::size_t index, std::size_t done, std::size_t total, const std::string& text) {
    ProgressEvent event;
    event.kind = total > 0 ? ProgressEvent::Kind::advanced : ProgressEvent::Kind::note;
    event.stage = "bench";
    event.completed = done;
    event.total = total;
    event.unit = {"runs"};
    event.text = result_.rows[index].name + " " + text;
    progress_.on_event(event);
    progress_.refresh();
  }

  /// One run; `round` 0: a warm-up.
  Status once(std::size_t index, std::uint32_t round, std::size_t done, std::size_t total) {
    if (signals_.received()) return Error{ErrorCode::cancelled, "interrupted"};
    auto& row = result_.rows[index];
    const auto load = load_average();
    auto seen = runs_[index]->run(signals_, options_.video_ending, scratch_.path());
    if (!seen.ok()) return Error{seen.error().code, row.name + ": " + seen.error().message, seen.error().hint};
    const auto event = round == 0 ? warm(row, seen.value()) : add(row, seen.value());
    OrderedJson line{{"event", "run"}, {"configuration", row.name}, {"round", round}, {"counted", round > 0}, {"load_average", load}};
    line.update(event);
    ORRERY_TRY_DONE(folder_.add_event(line));
    show(index, done, total, "T " + text_of_seconds(event.value("frames_seconds", 0.0)));
    return save();
  }

  /// What is the same in every run has to be the same in warm-ups, too.
  void compare_digests(BenchRow& row, const RunSeen& seen) {
    std::vector<std::string> digests;
    for (const auto& request : seen.requests) digests.push_back(request.digest);
    if (row.digests.empty()) row.digests = digests;
    row.digests_differ = row.digests_differ || row.digests != digests;
  }

  OrderedJson warm(BenchRow& row, const RunSeen& seen) {
    ++row.warmup_runs;
    compare_digests(row, seen);
    return {{"frames_seconds", last(seen, &Seen::frames)}};
  }

  static double last(const RunSeen& seen, double Seen::*moment) {
    double most = 0;
    for (const auto& request : seen.requests) most = std::max(most, request.*moment);
    return most;
  }

  OrderedJson add(BenchRow& row, const RunSeen& seen) {
    OrderedJson event;
    const auto sample = [&](const std::string& metric, double value) {
      row.samples[metric].push_back(value);
      event[metric] = value;
    };
    std::vector<double> steps;
    DenoiserTimes times;
    std::map<std::string, double> stages;
    std::map<std::string, double> busy;  // By card.
    for (const auto& request : seen.requests) {
      // Some schedules have steps without any work; they are no steps to anybody who waits for one.
      auto computed = request.steps;
      std::sort(computed.rbegin(), computed.rend());
      const auto count = request.account.value(Json::json_pointer("/stages/denoiser/steps_computed"), computed.size());
      computed.resize(std::min(computed.size(), count));
      steps.insert(steps.end(), computed.begin(), computed.end());
      for (const auto& [stage, seconds] : request.stage_seconds) stages[stage] = std::max(stages[stage], seconds);
      const auto denoiser = request.account.value(Json::json_pointer("/stages/denoiser"), Json::object());
      times.compute += number_in(denoiser, "compute_seconds");
      times.exchange += number_in(denoiser, "exchange_seconds");
      times.hidden += number_in(denoiser, "hidden_exchange_seconds");
      times.stall += number_in(denoiser, "stall_seconds");
      const auto by_card = denoiser.value("card_compute_seconds", Json::object());
      for (const auto& [card, seconds] : by_card.items())
        if (seconds.is_number()) busy[card] += seconds.get<double>();
    }
    if (!steps.empty()) sample("step_seconds", quantile_of(steps, 0.5));
    row.step_seconds.insert(row.step_seconds.end(), steps.begin(), steps.end());
    sample("latents_seconds", last(seen, &Seen::latents));
    sample("frames_seconds", last(seen, &Seen::frames));
    if (!options_.video_ending.empty()) sample("video_seconds", last(seen, &Seen::video));
    for (const auto& [stage, seconds] : stages) sample(stage + "_seconds", seconds);
    const auto median_of = [&](const char* name, double value) {
      extras_[&row - result_.rows.data()][name].push_back(value);
      event[name] = value;
      return quantile_of(extras_[&row - result_.rows.data()][name], 0.5);
    };
    if (times.compute + times.exchange > 0) row.comm_fraction = median_of("comm_fraction", times.exchange / (times.compute + times.exchange));
    if (times.exchange + times.hidden > 0) row.hidden_fraction = median_of("hidden_fraction", times.hidden / (times.exchange + times.hidden));
    if (times.compute + times.exchange + times.stall > 0)
      row.stall_fraction = median_of("stall_fraction", times.stall / (times.compute + times.exchange + times.stall));
    if (!busy.empty()) {
      double most = 0, sum = 0;
      for (const auto& [card, seconds] : busy) {
        most = std::max(most, seconds);
        sum += seconds;
      }
      if (sum > 0) row.imbalance = median_of("imbalance", most * static_cast<double>(busy.size()) / sum);
    }
    const auto step_count = static_cast<double>(std::max<std::size_t>(1, steps.size()));
    row.bytes_per_step = median_of("bytes_per_step", std::max(0.0, seen.bytes_sent) / step_count);
    row.peak_card_bytes = std::max(row.peak_card_bytes.value_or(0), seen.peak_card_bytes);
    compare_digests(row, seen);
    event["output_sha256"] = row.digests_differ ? OrderedJson("differs") : OrderedJson(row.digests);
    return event;
  }

  const ExperimentOptions& options_;
  const topology::ExperimentSpec& spec_;
  const BenchConfig& config_;
  const BenchFolder& folder_;
  const VerbContext& context_;
  SignalWatch& signals_;
  SteadyClock clock_;
  ProgressWriter progress_;
  BenchResult result_;
  std::map<std::ptrdiff_t, std::map<std::string, std::vector<double>>> extras_;  // By row, by name: of every run.
  PrivateFolder scratch_;
  std::vector<std::unique_ptr<PointRun>> runs_;  // By row; null when it has no plan.
  std::vector<std::pair<std::size_t, TraceSession>> traces_;  // By row. End before the clusters do.
  bool keep_up_ = false;
};

}  // namespace

Result<ExperimentEnd> run_experiment(const ExperimentOptions& options, const BenchConfig& config, const BenchFolder& folder, const VerbContext& context,
                                     SignalWatch& signals) {
  return ExperimentRun(options, config, folder, context, signals).run();
}

}  // namespace orrery::launch
