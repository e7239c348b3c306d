#include "launch/fault_run.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "actors/client.hpp"
#include "base/digest.hpp"
#include "base/log.hpp"
#include "base/private_folder.hpp"
#include "base/random.hpp"
#include "launch/fault_submit.hpp"
#include "launch/paths.hpp"
#include "launch/processes.hpp"
#include "launch/security.hpp"
#include "launch/state_folder.hpp"

namespace orrery::launch {

using topology::ScenarioAction;
using topology::ScenarioEvent;

namespace {

constexpr Duration look_interval = std::chrono::milliseconds(10);
constexpr Duration status_interval = std::chrono::milliseconds(50);
constexpr double client_away_seconds = 0.5;
/// Nothing moves for so long, and every fault has fired: what has no end of its own is healed.
constexpr double stuck_seconds = 15;

double wall_now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// ---- other processes ----------------------------------------------------------------------------------------

/// The living children of a process whose command line has this word.
std::vector<pid_t> children_of(pid_t parent, const std::string& word) {
  std::vector<pid_t> found;
  std::error_code failed;
  for (std::filesystem::directory_iterator at("/proc", failed), end; !failed && at != end; at.increment(failed)) {
    const auto name = at->path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream stat(at->path() / "stat");
    std::string text((std::istreambuf_iterator<char>(stat)), {});
    // The name in brackets may hold anything; what follows the last one is regular.
    const auto bracket = text.rfind(')');
    if (bracket == std::string::npos) continue;
    std::istringstream rest(text.substr(bracket + 1));
    char state = 0;
    pid_t of = 0;
    rest >> state >> of;
    if (of != parent || state == 'Z') continue;
    std::ifstream line(at->path() / "cmdline", std::ios::binary);
    std::string words((std::istreambuf_iterator<char>(line)), {});
    if (('\0' + words).find('\0' + word + '\0') != std::string::npos) found.push_back(std::stoi(name));
  }
  return found;
}

bool is_stopped(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(stat)), {});
  const auto bracket = text.rfind(')');
  return bracket != std::string::npos && bracket + 2 < text.size() && text[bracket + 2] == 'T';
}

/// Sees the death of processes that are not ours.
class Watched {
public:
  explicit Watched(pid_t pid) : pid_(pid), descriptor_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {}
  ~Watched() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Watched(Watched&& other) noexcept : pid_(other.pid_), descriptor_(std::exchange(other.descriptor_, -1)) {}
  Watched& operator=(Watched&&) = delete;
  pid_t pid() const { return pid_; }
  int descriptor() const { return descriptor_; }
  bool dead() const {
    if (descriptor_ < 0) return true;
    pollfd one{descriptor_, POLLIN, 0};
    return ::poll(&one, 1, 0) == 1;
  }

private:
  pid_t pid_;
  int descriptor_;
};

// ---- the cluster --------------------------------------------------------------------------------------------

/// What the coordinator says, asked for again and again on a thread of its own: an answer may take a second.
class Observer {
public:
  Observer(actors::Control& control, actors::HostPort where) : control_(control), where_(std::move(where)), thread_([this] { run(); }) {}
  ~Observer() {
    ending_ = true;
    thread_.join();
  }

  /// The newest answer, and whether it is of this very moment (the coordinator answers).
  Json status() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }
  std::uint64_t answers() const { return answers_; }
  /// Frames that failed a check, over all nodes and their lives.
  double frames_refused() const {
    const std::lock_guard lock(mutex_);
    double all = 0;
    for (const auto& [life, count] : refused_) all += count;
    return all;
  }
  /// Nodes that are asked which of their faults have fired.
  void ask_faults_of(std::set<std::string> nodes) {
    const std::lock_guard lock(mutex_);
    nodes_ = std::move(nodes);
  }
  /// Wall time at which a fault of a node fired, if it said so.
  std::map<std::string, double> fired() const {
    const std::lock_guard lock(mutex_);
    return fired_;
  }

private:
  void run() {
    std::unique_ptr<actors::Client> client;
    while (!ending_) {
      if (!client) {
        auto made = actors::Client::connect(control_, where_.host, where_.port);
        if (made.ok()) client = std::move(made).value();
      }
      if (client) {
        auto text = client->status();
        auto json = text.ok() ? parse_json(text.value(), "status") : Result<Json>(text.error());
        if (json.ok()) {
          const std::lock_guard lock(mutex_);
          status_ = std::move(json).value();
          // A node that is busy leaves its counters out of an answer, and a new life begins at 0.
          for (const auto& node : status_.value("nodes", Json::array())) {
            auto& most = refused_[{node.value("name", ""), node.value("pid", pid_t{0})}];
            most = std::max(most, node.value("data_frames_refused", 0.0));
          }
          ++answers_;
        } else {
          client.reset();
        }
      }
      std::set<std::string> nodes;
      {
        const std::lock_guard lock(mutex_);
        nodes = nodes_;
      }
      for (const auto& node : nodes)
        if (client && !ending_) note_faults(*client, node);
      std::this_thread::sleep_for(status_interval);
    }
  }

  void note_faults(actors::Client& client, const std::string& node) {
    auto text = client.list_faults(node);
    if (!text.ok()) return;
    const auto asked = wall_now();
    auto json = parse_json(text.value(), "faults");
    if (json.ok()) note(json.value(), asked);
  }
  /// [{node, faults: [{name, fired, seconds_ago, ...}]}]
  void note(const Json& json, double asked) {
    if (json.is_array()) {
      for (const auto& each : json) note(each, asked);
      return;
    }
    if (json.is_object() && json.contains("faults")) return note(json["faults"], asked);
    if (!json.is_object() || json.value("fired", 0) == 0) return;
    const std::lock_guard lock(mutex_);
    fired_.emplace(json.value("name", ""), asked - json.value("seconds_ago", 0.0));
  }

  actors::Control& control_;
  const actors::HostPort where_;
  std::atomic<bool> ending_{false};
  std::atomic<std::uint64_t> answers_{0};
  mutable std::mutex mutex_;
  Json status_ = Json::object();
  std::set<std::string> nodes_;
  std::map<std::string, double> fired_;
  std::map<std::pair<std::string, pid_t>, double> refused_;  // By node and process.
  std::thread thread_;
};

/// A request's process, and what it has said.
struct Submitted {
  std::optional<Process> process;
  std::string log;
  std::size_t read = 0;
  std::uint32_t starts = 0;
  std::string stage;
  std::uint64_t done = 0;
  std::set<std::string> stages;  // That have begun.
  std::optional<double> restart_at;
  RequestRecord record;
};

class ScenarioRun {
public:
  ScenarioRun(const FaultRunOptions& options, const PlannedCluster& planned, const VerbContext& context, SignalWatch& signals)
      : options_(options), scenario_(options.scenario), planned_(planned), context_(context), signals_(signals) {
    report_.scenario = scenario_.name;
    report_.seed = scenario_.seed;
  }

  Result<FaultReport> run() {
    ORRERY_TRY(faults, draw_faults(scenario_, planned_.plan));
    faults_ = std::move(faults);
    for (const auto& fault : faults_) report_.faults.push_back(record_of(fault));
    ORRERY_TRY(folder, PrivateFolder::create());
    folder_.emplace(std::move(folder));
    auto done = work();
    stop();
    if (!options_.keep_logs.empty()) keep_logs();
    if (!done.ok()) {
      if (done.error().code != ErrorCode::inconclusive) return done.error();
      report_.verdict = Verdict::inconclusive;
      report_.reason = done.error().message;
    }
    return std::move(report_);
  }

private:
  static FaultRecord record_of(const DrawnFault& fault) {
    FaultRecord record;
    record.name = fault.name;
    record.action = std::string(topology::name_of(fault.fault.action));
    record.target = fault.target;
    return record;
  }
  static Error inconclusive(const std::string& why) { return {ErrorCode::inconclusive, why}; }
  void tell(const std::string& what) const {
    if (!context_.quiet()) std::fprintf(stderr, "orrery: %s: %s\n", scenario_.name.c_str(), what.c_str());
  }

  Status work() {
    ORRERY_TRY_DONE(bring_up());
    ORRERY_TRY_DONE(wait_until_steady());
    tell("steady; the run without faults begins");
    ORRERY_TRY_DONE(run_reference());
    ORRERY_TRY_DONE(wait_until_steady());
    ORRERY_TRY_DONE(arm());
    tell("armed; the workload begins");
    ORRERY_TRY_DONE(run_workload());
    heal();
    collect();
    evaluate(scenario_, report_);
    return Done{};
  }

  // ---- up and down ------------------------------------------------------------------------------------------

  Status bring_up() {
    ORRERY_TRY(program, program_path());
    ProcessSpec spec;
    spec.name = "the cluster";
    spec.arguments = {program, "--progress", "none", "up"};
    const auto words = words_of(options_.cluster);
    spec.arguments.insert(spec.arguments.end(), words.begin(), words.end());
    for (const auto* part : {"run", "state", "clients"}) std::filesystem::create_directory(folder_->path() + "/" + part);
    spec.environment = {{"XDG_RUNTIME_DIR", folder_->path() + "/run"}, {"XDG_STATE_HOME", folder_->path() + "/state"}};
    spec.log_file = folder_->path() + "/cluster.log";
    ORRERY_TRY(process, Process::start(spec));
    cluster_.emplace(std::move(process));
    const auto until = clock_.now() + Duration(static_cast<std::int64_t>(scenario_.steady_within * 1e9));
    while (address_.empty()) {
      ORRERY_TRY_DONE(interrupted());
      if (cluster_->ended()) return inconclusive("the cluster did not come up: " + last_lines(spec.log_file, 3));
      if (clock_.now() >= until) return inconclusive("the cluster was not up within " + std::to_string(scenario_.steady_within) + " s");
      std::ifstream log(spec.log_file);
      for (std::string line; std::getline(log, line);) {
        const auto at = line.find(" is up at ");
        if (at == std::string::npos) continue;
        const auto rest = line.substr(at + 10);
        address_ = rest.substr(0, rest.find_first_of(", \n") == std::string::npos ? rest.size() : rest.find_first_of(", \n"));
        while (!address_.empty() && (address_.back() < '0' || address_.back() > '9')) address_.pop_back();
      }
      pause(look_interval);
    }
    ORRERY_TRY(where, actors::parse_address(address_));
    where_ = where;
    actors::ControlOptions control;
    ORRERY_TRY(security, security_of(planned_.resolved.cluster.security, "client"));
    control.security = security;
    control_.emplace(control);
    observer_.emplace(*control_, where_);
    return Done{};
  }

  void stop() {
    for (auto& request : requests_)
      if (request->process) request->process->stop(std::chrono::seconds(2));
    if (observer_) observer_.reset();
    client_.reset();
    for (const auto pid : stopped_) ::kill(pid, SIGCONT);
    if (cluster_) cluster_->stop(std::chrono::seconds(20));
    control_.reset();
  }

  void keep_logs() const {
    std::error_code failed;
    std::filesystem::create_directories(options_.keep_logs, failed);
    std::filesystem::copy(folder_->path(), options_.keep_logs,
                          std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing |
                              std::filesystem::copy_options::skip_symlinks,
                          failed);
    if (failed) warn(context_, "logs could not all be copied to " + options_.keep_logs + ": " + failed.message());
  }

  // ---- before any fault -------------------------------------------------------------------------------------

  std::map<std::string, topology::Measured> steady_counters(const Json& status) const {
    double up = 0;
    for (const auto& node : status.value("nodes", Json::array())) up += node.value("state", "") == "up" ? 1 : 0;
    return {{"cards", static_cast<double>(planned_.plan.cards.size())},
            {"nodes", up},
            {"ready", status.value("phase", "") == "ready" ? 1.0 : 0.0},
            {"requests", static_cast<double>(scenario_.workload.requests)}};
  }

  Status wait_until_steady() {
    const auto until = clock_.now() + Duration(static_cast<std::int64_t>(scenario_.steady_within * 1e9));
    std::string missing;
    for (;;) {
      ORRERY_TRY_DONE(interrupted());
      const auto status = observer_->status();
      const auto counters = steady_counters(status);
      missing = std::get<double>(counters.at("ready")) == 1 ? "" : "the cluster is '" + status.value("phase", "silent") + "'";
      // Faults are armed in nodes that work: none may be left out because it was slow to answer.
      if (missing.empty() && std::get<double>(counters.at("nodes")) < static_cast<double>(planned_.resolved.cluster.nodes.size()))
        missing = "not all nodes are up";
      for (const auto& each : scenario_.steady_state) {
        const auto held = each.evaluate(counters);
        if (!held.ok() || !held.value()) missing = "'" + each.text() + "' does not hold (" + each.shown_values(counters) + ")";
      }
      if (missing.empty()) return Done{};
      if (clock_.now() >= until) return inconclusive("the steady state was not reached: " + missing);
      pause(look_interval);
    }
  }

  /// 128 bits from the scenario's seed; the journal is a new one in each run.
  std::string id_of(std::uint64_t run, std::uint64_t number) const {
    Random random(scenario_.seed * 1'000'003 + run);
    std::uint64_t high = 0, low = 0;
    for (std::uint64_t i = 0; i <= number; ++i) {
      high = random.next();
      low = random.next();
    }
    char text[33];
    std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(high), static_cast<unsigned long long>(low));
    return text;
  }

  void make_requests(std::uint64_t run) {
    requests_.clear();
    for (std::uint64_t i = 0; i < scenario_.workload.requests; ++i) {
      auto& request = requests_.emplace_back(std::make_unique<Submitted>());
      request->record.id = id_of(run, i);
      request->log = folder_->path() + "/clients/" + (run == 0 ? "reference-" : "request-") + std::to_string(i + 1) + ".jsonl";
    }
  }

  Status start(Submitted& request, std::size_t index) {
    ORRERY_TRY(program, program_path());
    ProcessSpec spec;
    spec.name = "client " + std::to_string(index + 1);
    spec.arguments = {program, "fault", "submit", "--connect", address_, "--id", request.record.id, "--request",
                      submit_request_json(scenario_.workload.request, scenario_.workload.request.seed + index), "--patience",
                      std::to_string(scenario_.timeout)};
    const auto keys = words_of(planned_.resolved.cluster.security);
    spec.arguments.insert(spec.arguments.end(), keys.begin(), keys.end());
    spec.log_file = request.log;
    ORRERY_TRY(process, Process::start(spec));
    request.process.emplace(std::move(process));
    ++request.starts;
    request.record.attempts = request.starts;
    return Done{};
  }

  /// Starts what may start, reads what was said, notes who has ended.
  Status look_at_requests() {
    std::size_t running = 0;
    for (const auto& request : requests_) running += (request->process || request->restart_at) && !request->record.ended;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      auto& request = *requests_[i];
      if (!request.process && !request.record.ended && !request.restart_at && running < scenario_.workload.concurrency) {
        ORRERY_TRY_DONE(start(request, i));
        ++running;
      }
      if (request.restart_at && elapsed() >= *request.restart_at) {
        request.restart_at.reset();
        ORRERY_TRY_DONE(start(request, i));
      }
      const bool over = request.process && request.process->ended();
      read_lines(request);
      if (over && !request.record.ended && !request.restart_at) {
        // A client that ended without a word: not by us.
        request.record.ended = true;
        request.record.failure = "its client " + request.process->ended()->text();
      }
    }
    return Done{};
  }

  void read_lines(Submitted& request) {
    std::ifstream log(request.log, std::ios::binary);
    log.seekg(static_cast<std::streamoff>(request.read));
    std::string text((std::istreambuf_iterator<char>(log)), {});
    const auto whole = text.rfind('\n');
    if (whole == std::string::npos) return;
    request.read += whole + 1;
    std::istringstream lines(text.substr(0, whole));
    for (std::string line; std::getline(lines, line);) {
      const auto json = parse_json(line, "client");
      if (!json.ok() || !json.value().is_object()) continue;
      note_line(request, json.value());
    }
  }

  void note_line(Submitted& request, const Json& line) {
    const auto event = line.value("event", "");
    auto& record = request.record;
    moved_at_ = elapsed();
    if (event == "started" || event == "progress") {
      record.accepted = true;
      request.stage = line.value("stage", "");
      request.done = line.value("done", std::uint64_t{0});
      request.stages.insert(request.stage);
    } else if (event == "refused") {
      ++record.refusals;
    } else if (event == "done") {
      record.ended = true;
      record.sha256 = line.value("sha256", "");
      record.frames = line.value("frames", std::uint64_t{0});
      record.surplus_frames = line.value("surplus_frames", std::uint64_t{0});
      record.completed = record.frames == line.value("expected_frames", std::uint64_t{0});
      if (!record.completed) record.failure = "only " + std::to_string(record.frames) + " frames came";
    } else if (event == "failed") {
      record.ended = true;
      record.failure = line.value("message", "");
    }
  }

  bool all_ended() const {
    return std::all_of(requests_.begin(), requests_.end(), [](const auto& request) { return request->record.ended; });
  }
  std::string digest_of_all() const {
    Sha256 digest;
    for (const auto& request : requests_) digest.update(std::as_bytes(std::span(request->record.sha256)));
    return digest.finish();
  }

  Status run_reference() {
    make_requests(0);
    begin_ = clock_.now();
    while (!all_ended()) {
      ORRERY_TRY_DONE(interrupted());
      if (cluster_->ended()) return inconclusive("the cluster ended in the run without faults: " + last_lines(folder_->path() + "/cluster.log", 3));
      if (elapsed() > scenario_.timeout) return inconclusive("the run without faults took longer than " + std::to_string(scenario_.timeout) + " s");
      ORRERY_TRY_DONE(look_at_requests());
      pause(look_interval);
    }
    for (const auto& request : requests_)
      if (!request->record.completed) return inconclusive("the run without faults failed: " + request->record.failure);
    report_.counters["reference"] = digest_of_all();
    for (const auto& request : requests_) reference_.push_back(request->record.sha256);
    return Done{};
  }

  // ---- faults -----------------------------------------------------------------------------------------------

  /// A client for orders, made again after the coordinator's death.
  Result<actors::Client*> client() {
    if (!client_) {
      ORRERY_TRY(made, actors::Client::connect(*control_, where_.host, where_.port));
      client_ = std::move(made);
    }
    return client_.get();
  }

  Status inject(const DrawnFault& fault, bool at_once) {
    auto order = fault.order;
    if (at_once) order.event = actors::FaultEvent::now;
    ORRERY_TRY(told, client());
    auto answer = told->inject_fault(fault.place == FaultPlace::coordinator ? "coordinator" : fault.node, actors::json_of(order).dump());
    if (!answer.ok()) {
      client_.reset();
      return answer.error();
    }
    return Done{};
  }

  Status arm() {
    const auto status = observer_->status();
    for (const auto& node : status.value("nodes", Json::array())) watch(node.value("name", ""), node.value("pid", pid_t{0}));
    for (const auto pid : children_of(cluster_->id(), "coordinator")) coordinator_.emplace(pid);
    std::set<std::string> asked;
    for (const auto& fault : faults_) {
      if (fault.place == FaultPlace::node) asked.insert(fault.node);
      if (!fault.armed) continue;
      if (auto done = inject(fault, false); !done.ok()) return inconclusive("fault '" + fault.name + "' could not be armed: " + done.error().text());
    }
    observer_->ask_faults_of(std::move(asked));
    epoch_ = status.value("epoch", std::uint64_t{0});
    refused_before_ = observer_->frames_refused();
    return Done{};
  }

  void watch(const std::string& node, pid_t pid) {
    if (pid <= 0) return;
    const auto found = nodes_.find(node);
    if (found != nodes_.end() && found->second.pid() == pid) return;
    if (found != nodes_.end()) {
      ++restarts_;
      nodes_.erase(found);
    }
    nodes_.emplace(node, Watched(pid));
  }

  FaultRecord& record(const DrawnFault& fault) {
    return *std::find_if(report_.faults.begin(), report_.faults.end(), [&](const auto& each) { return each.name == fault.name; });
  }

  /// Whether what the launcher has to wait for has come.
  bool is_due(const DrawnFault& fault) {
    const auto& spec = fault.fault;
    if (spec.at) return elapsed() >= *spec.at;
    if (!spec.after.empty()) {
      const auto found = std::find_if(report_.faults.begin(), report_.faults.end(), [&](const auto& each) { return each.name == spec.after; });
      return found != report_.faults.end() && found->fired;
    }
    if (!spec.when) return false;
    const auto& when = *spec.when;
    switch (when.event) {
      case ScenarioEvent::start: return true;
      case ScenarioEvent::idle: return all_ended();
      case ScenarioEvent::recovery: return recovering();
      default: break;
    }
    // A moment inside a program, seen from outside: as soon as the client has heard of it.
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (when.request != 0 && when.request != i + 1) continue;
      const auto& request = *requests_[i];
      if (when.event == ScenarioEvent::encode && request.stages.contains("text_encoder")) return true;
      if (when.event == ScenarioEvent::decode && request.stages.contains("decoder")) return true;
      const std::uint64_t step = std::max<std::uint32_t>(1, when.step);
      const auto done = when.event == ScenarioEvent::step_end ? step : step - 1;
      if (request.stage == "denoiser" && request.done >= done && when.event != ScenarioEvent::encode && when.event != ScenarioEvent::decode)
        return true;
    }
    return false;
  }

  bool recovering() const {
    const auto status = observer_->status();
    const auto phase = status.value("phase", "ready");
    if (phase == "loading" || phase == "waiting for cards" || phase == "waiting for nodes") return true;
    for (const auto& incident : status.value("incidents", Json::array()))
      if (incident.value("at", 0.0) >= began_wall_) return true;
    return false;
  }

  void fire_from_here(const DrawnFault& fault) {
    auto& noted = record(fault);
    if (fault.place != FaultPlace::launcher) {
      if (auto done = inject(fault, true); done.ok()) noted.fired = elapsed();
      else noted.note = done.error().text();
      attempted_.insert(fault.name);
      return;
    }
    attempted_.insert(fault.name);
    const auto action = fault.fault.action;
    if (action == ScenarioAction::second_coordinator) {
      start_second();
      noted.fired = elapsed();
      return;
    }
    if (fault.fault.target.kind == topology::TargetKind::client) {
      for (auto& request : requests_) {
        if (!request->process || request->record.ended || request->process->ended()) continue;
        request->process->send_signal(SIGKILL);
        request->process->wait(std::chrono::seconds(5));
        read_lines(*request);
        if (request->record.ended) continue;  // It had just finished.
        request->process.reset();
        request->restart_at = elapsed() + fault.fault.duration.value_or(client_away_seconds);
        noted.fired = elapsed();
        return;
      }
      noted.note = "no client was waiting";
      return;
    }
    if (!coordinator_ || coordinator_->dead()) {
      noted.note = "the coordinator was not running";
      return;
    }
    const int signal = action == ScenarioAction::kill ? SIGKILL : action == ScenarioAction::term ? SIGTERM : SIGSTOP;
    noted.fired = elapsed();
    ::kill(coordinator_->pid(), signal);
    if (signal == SIGSTOP) {
      stopped_.insert(coordinator_->pid());
      if (fault.fault.duration) continue_at_ = elapsed() + *fault.fault.duration;
    }
  }

  /// Another coordinator on the same journal has to be refused.
  void start_second() {
    auto program = program_path();
    if (!program.ok()) return;
    ProcessSpec spec;
    spec.name = "a second coordinator";
    spec.arguments = {program.value(), "coordinator"};
    const auto words = words_of(options_.cluster);
    spec.arguments.insert(spec.arguments.end(), words.begin(), words.end());
    for (const auto& word : {std::string("--state"), folder_->path() + "/state/orrery/" + file_name_of(planned_.resolved.cluster.name),
                             std::string("--listen"), std::string("127.0.0.1:0")})
      spec.arguments.push_back(word);
    spec.log_file = folder_->path() + "/second-coordinator.log";
    auto started = Process::start(spec);
    if (!started.ok()) return;
    const auto end = started.value().wait(std::chrono::seconds(10));
    if (end && !end->ok()) other_refusals_ += 1;
  }

  /// Faults that nodes fire themselves: seen through their processes, or told by them.
  void look_at_faults() {
    const auto told = observer_->fired();
    for (const auto& fault : faults_) {
      auto& noted = record(fault);
      if (noted.fired) continue;
      if (!fault.armed && !attempted_.contains(fault.name)) {
        if (is_due(fault)) fire_from_here(fault);
        continue;
      }
      if (!fault.armed) continue;
      if (const auto found = told.find(fault.name); found != told.end()) {
        noted.fired = std::max(0.0, found->second - began_wall_);
        continue;
      }
      const auto action = fault.order.action;
      const auto process = nodes_.find(fault.node);
      if (process == nodes_.end()) continue;
      const bool ends = action <= actors::FaultAction::abort || action == actors::FaultAction::crash_loading;
      if (ends && process->second.dead() && !claimed_.contains(process->second.pid())) {
        claimed_.insert(process->second.pid());
        noted.fired = elapsed();
      }
      if (action == actors::FaultAction::pause && is_stopped(process->second.pid())) {
        noted.fired = elapsed();
        if (fault.order.for_seconds <= 0) stopped_.insert(process->second.pid());
      }
    }
  }

  void look_at_processes() {
    if (const auto answers = observer_->answers(); answers != answers_) {
      answers_ = answers;
      const auto status = observer_->status();
      for (const auto& node : status.value("nodes", Json::array()))
        if (const auto pid = node.value("pid", pid_t{0}); pid > 0 && node.value("state", "") != "lost") watch(node.value("name", ""), pid);
    }
    if (coordinator_ && coordinator_->dead()) {
      for (const auto pid : children_of(cluster_->id(), "coordinator")) {
        if (pid == coordinator_->pid()) continue;
        coordinator_.emplace(pid);
        client_.reset();
        ++restarts_;
        break;
      }
    }
    if (continue_at_ && elapsed() >= *continue_at_) {
      for (const auto pid : stopped_) ::kill(pid, SIGCONT);
      stopped_.clear();
      continue_at_.reset();
    }
  }

  Status run_workload() {
    make_requests(1);
    begin_ = clock_.now();
    began_wall_ = wall_now();
    moved_at_ = 0;
    bool healed = false;
    for (;;) {
      ORRERY_TRY_DONE(interrupted());
      ORRERY_TRY_DONE(look_at_requests());
      look_at_processes();
      look_at_faults();
      const bool waits_for_idle = std::any_of(faults_.begin(), faults_.end(), [&](const auto& fault) {
        return fault.fault.when && fault.fault.when->event == ScenarioEvent::idle && !attempted_.contains(fault.name);
      });
      if (all_ended() && !waits_for_idle) break;
      if (cluster_->ended()) break;  // What did not end is lost.
      if (elapsed() > scenario_.timeout) break;
      if (scenario_.heal && !healed && elapsed() - moved_at_ > stuck_seconds) {
        healed = true;
        tell("nothing moves; what has no end of its own is healed");
        heal();
      }
      wait();
    }
    report_.counters["seconds"] = elapsed();
    return Done{};
  }

  void heal() {
    for (const auto pid : stopped_) ::kill(pid, SIGCONT);
    stopped_.clear();
    if (auto told = client(); told.ok())
      if (!told.value()->heal_faults("", "").ok()) client_.reset();
  }

  void collect() {
    // An incident is complete once work has gone on; the newest answer may be older than that.
    const auto until = clock_.now() + std::chrono::seconds(3);
    for (const auto seen = observer_->answers(); clock_.now() < until && observer_->answers() < seen + 2;) {
      look_at_processes();
      look_at_faults();
      pause(look_interval);
    }
    const auto status = observer_->status();
    match_incidents(status.value("incidents", Json::array()), began_wall_, report_);
    for (const auto& request : requests_) report_.requests.push_back(request->record);
    auto& counters = report_.counters;
    for (const auto& [name, value] : steady_counters(status)) counters[name] = value;
    counters["frames_sha256"] = digest_of_all();
    counters["restarts"] = static_cast<double>(restarts_);
    counters["epochs"] = static_cast<double>(status.value("epoch", epoch_) - epoch_);
    counters["refusals"] = static_cast<double>(other_refusals_);
    double wrong = 0;
    for (std::size_t i = 0; i < requests_.size(); ++i) wrong += requests_[i]->record.completed && requests_[i]->record.sha256 != reference_[i];
    counters["wrong"] = wrong;
    counters["frames_refused"] = observer_->frames_refused() - refused_before_;
  }

  // ---- time -------------------------------------------------------------------------------------------------

  double elapsed() const { return seconds_of(clock_.now() - begin_); }
  Status interrupted() {
    if (signals_.received()) return Error{ErrorCode::cancelled, "interrupted"};
    return Done{};
  }
  void pause(Duration limit) { signals_.wait_for_signal_or({}, limit); }
  /// A moment, or until a watched process dies.
  void wait() {
    std::vector<int> descriptors;
    for (const auto& [name, process] : nodes_)
      if (!process.dead()) descriptors.push_back(process.descriptor());
    signals_.wait_for_signal_or(descriptors, look_interval);
  }

  const FaultRunOptions& options_;
  const topology::ScenarioSpec& scenario_;
  const PlannedCluster& planned_;
  const VerbContext& context_;
  SignalWatch& signals_;
  const SteadyClock clock_;
  FaultReport report_;
  std::vector<DrawnFault> faults_;
  std::optional<PrivateFolder> folder_;
  std::optional<Process> cluster_;
  std::string address_;
  actors::HostPort where_;
  std::optional<actors::Control> control_;
  std::optional<Observer> observer_;
  std::unique_ptr<actors::Client> client_;
  std::vector<std::unique_ptr<Submitted>> requests_;
  std::vector<std::string> reference_;
  double refused_before_ = 0;
  Time begin_{};
  double began_wall_ = 0, moved_at_ = 0;
  std::map<std::string, Watched> nodes_;
  std::optional<Watched> coordinator_;
  std::set<std::string> attempted_;  // Faults that the launcher has tried to fire.
  std::set<pid_t> claimed_;          // Deaths that have their fault.
  std::set<pid_t> stopped_;          // Processes that wait for our SIGCONT.
  std::optional<double> continue_at_;
  std::uint64_t answers_ = 0, epoch_ = 0;
  std::uint32_t restarts_ = 0, other_refusals_ = 0;
};

}  // namespace

Result<FaultReport> run_scenario(const FaultRunOptions& options, const PlannedCluster& planned, const VerbContext& context, SignalWatch& signals) {
  return ScenarioRun(options, planned, context, signals).run();
}

}  // namespace orrery::launch
