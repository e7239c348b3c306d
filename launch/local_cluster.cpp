#include "launch/local_cluster.hpp"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <mutex>
#include <sstream>
#include <thread>

#include <sys/eventfd.h>
#include <unistd.h>

#include "base/file.hpp"
#include "base/json.hpp"
#include "base/private_folder.hpp"
#include "base/units.hpp"
#include "launch/announcement.hpp"
#include "launch/cores.hpp"
#include "launch/paths.hpp"
#include "launch/processes.hpp"
#include "launch/security.hpp"
#include "launch/supervisor.hpp"

namespace orrery::launch {

namespace {

constexpr std::size_t coordinator_child = 0;

Duration duration_of(double seconds) { return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)); }

/// What a child's log says of its end: its sentences, not its events.
std::string last_words_of(const ChildEnd& end) {
  std::istringstream log(end.log_file.empty() ? std::string() : last_lines(end.log_file, 20, end.log_begin));
  std::string words;
  for (std::string line; std::getline(log, line);)
    if (!line.empty() && line.front() != '{') words += (words.empty() ? "" : "; ") + line;
  return words;
}

/// A death that the coordinator has to hear of.
struct Report {
  std::string node, how;
  pid_t pid = 0;
  bool quarantined = false;
};

/// Of each node process on this machine, how many of its threads compute or copy all the time.
std::vector<std::uint32_t> busy_threads(const PlannedCluster& planned) {
  const auto& cluster = planned.resolved.cluster;
  std::vector<std::uint32_t> threads;
  for (const auto& node : cluster.nodes) {
    threads.push_back(0);
    for (const auto& card : node.cards)
      // One more copies weights.
      if (cluster.type_of(card).backend == topology::Backend::cpu) threads.back() += card.threads + (planned.plan.streamed ? 1 : 0);
  }
  return threads;
}

}  // namespace

// Destroyed from the bottom up, after `~LocalCluster` has ended the children.
struct LocalCluster::State {
  PrivateFolder folder;
  topology::ClusterSpec cluster;
  CoreClaim cores;
  RestartLimits limits;
  std::string program, announcement, input_file, state_folder, logs;
  std::vector<std::string> coordinator_words;
  bool allow_faults = false, end_when_starved = false;
  double grace = 5;
  int bell = -1;
  std::unique_ptr<actors::Control> control;

  mutable std::mutex mutex;  // Guards what follows.
  std::condition_variable woken;
  std::string address;
  std::uint64_t cluster_id = 0;
  bool was_ready = false, ending = false, all_joined = false;
  bool node_quarantined = false;
  std::optional<Status> end;
  std::deque<std::string> news;
  std::deque<Report> reports;
  std::uint32_t coordinator_life = 0;  // Counts its deaths: the reporter's connection belongs to one life.

  std::thread reporter;
  std::vector<std::string> children;  // Node names, by child number; the coordinator's is empty.
  std::unique_ptr<Supervisor> supervisor;

  ~State() {
    if (bell >= 0) close(bell);
  }
  bool over_ssh() const { return cluster.launch.via == topology::LaunchVia::ssh; }
  std::string log_of(const std::string& name) const { return logs.empty() ? "" : logs + "/" + name + ".log"; }
  void ring() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = write(bell, &one, sizeof one);
  }

  /// On the supervisor's thread.
  ProcessSpec coordinator_command() {
    ProcessSpec process;
    process.name = "the coordinator";
    process.arguments = {program, "coordinator"};
    process.arguments.insert(process.arguments.end(), coordinator_words.begin(), coordinator_words.end());
    process.input_file = input_file;
    process.log_file = log_of("coordinator");
    // What a former life announced is not so any more.
    ::unlink(announcement.c_str());
    const std::lock_guard lock(mutex);
    if (!address.empty()) process.arguments.insert(process.arguments.end(), {"--listen", address});
    return process;
  }

  /// On the supervisor's thread.
  ProcessSpec node_command(std::size_t index, std::uint32_t life) {
    const auto& node = cluster.nodes[index];
    ProcessSpec process;
    process.name = "node " + node.name;
    process.log_file = log_of(node.name);
    process.cpus = cores.of(index);
    const std::lock_guard lock(mutex);
    process.arguments = {over_ssh() ? cluster.launch.program : program,
                         "node",
                         "--name",
                         node.name,
                         "--coordinator",
                         address,
                         "--cluster-id",
                         std::to_string(cluster_id),
                         "--peer",
                         std::to_string(index + 1),
                         "--listen",
                         over_ssh() ? node.address : "127.0.0.1",
                         "--join-timeout",
                         std::to_string(cluster.launch.ready_timeout)};
    // A socket of its own for each life: a neighbour's old connection must not meet the new process.
    if (!over_ssh() && cluster.data.transport != topology::DataTransport::tcp)
      process.arguments.insert(process.arguments.end(),
                               {"--data", "ipc://" + folder.path() + "/n" + std::to_string(index) + "-" + std::to_string(life)});
    if (allow_faults) process.arguments.push_back("--allow-faults");
    if (cluster.data.transport == topology::DataTransport::ipc || cluster.data.transport == topology::DataTransport::tcp)
      process.arguments.push_back("--no-shared-memory");
    const auto keys = words_of(cluster.security);
    process.arguments.insert(process.arguments.end(), keys.begin(), keys.end());
    if (over_ssh())
      // Host and user were checked when the first life was started.
      if (auto command = ssh_command(cluster.launch.user, node.address, process.arguments); command.ok())
        process.arguments = std::move(command).value();
    return process;
  }

  /// On the supervisor's thread.
  void on_end(const ChildEnd& gone) {
    const auto words = last_words_of(gone);
    const std::lock_guard lock(mutex);
    if (ending) return;
    if (gone.child == coordinator_child) {
      ++coordinator_life;
      Error error{ErrorCode::peer_lost, "the coordinator " + gone.how, words.empty() ? "" : "it said: " + words};
      // One that gives up by itself leaves the reason as an error of its own.
      if (auto announced = read_announcement(announcement); !announced.ok()) error = announced.error();
      const bool gave_up = gone.end.signal == 0 && !was_ready;
      if (gone.finished)
        end = Status(Done{});
      else if (!gone.restarts_in || gave_up)
        end = Status(std::move(error));
      else
        news.push_back("the coordinator " + gone.how + "; it is started again");
    } else {
      const auto& name = children[gone.child];
      const std::string said = words.empty() ? "" : "; it said: " + words;
      if (!was_ready && !gone.finished && (gone.end.signal == 0 || gone.quarantined))
        end = Status(Error{ErrorCode::peer_lost, "node " + name + " " + gone.how, words.empty() ? "" : "it said: " + words});
      Report report{name, gone.how, over_ssh() ? 0 : gone.pid, gone.quarantined};
      if (gone.quarantined) {
        node_quarantined = true;
        report.how = "it died more than " + std::to_string(limits.max) + " times within " + text_of_seconds(seconds_of(limits.within)) +
                     "; at last it " + gone.how;
        news.push_back("node " + name + " is not started again: " + report.how + said);
      } else if (!gone.finished) {
        news.push_back("node " + name + " " + gone.how + "; it is started again" + said);
      }
      reports.push_back(std::move(report));
    }
    woken.notify_all();
    ring();
  }

  /// The reporter's thread: hands deaths to the coordinator, over a connection that is there before they happen.
  void report() {
    std::unique_ptr<actors::Client> client;
    std::uint32_t client_life = 0;
    std::unique_lock lock(mutex);
    while (!ending) {
      if (!client || client_life != coordinator_life) {
        client_life = coordinator_life;
        lock.unlock();
        client.reset();
        if (auto connected = connect(); connected.ok()) client = std::move(connected).value();
        lock.lock();
        if (!client) {
          // Not there yet. Its next life knows nothing of nodes that have not greeted it: but they may have.
          woken.wait_for(lock, std::chrono::milliseconds(20), [this] { return ending; });
          continue;
        }
      }
      const auto has_work = [&] { return ending || !reports.empty() || client_life != coordinator_life; };
      if (node_quarantined && end_when_starved) {
        if (!woken.wait_for(lock, std::chrono::milliseconds(250), has_work)) {
          lock.unlock();
          const auto text = client->status();
          const auto status = text.ok() ? Json::parse(text.value(), nullptr, false) : Json();
          lock.lock();
          if (status.is_object() && status.value("phase", "") == "waiting for cards" && !end) {
            end = Status(Error{ErrorCode::peer_lost, "the cluster has too few cards left: " + status.value("waiting_for", "")});
            ring();
          }
          continue;
        }
      } else {
        woken.wait(lock, has_work);
      }
      if (ending || client_life != coordinator_life || reports.empty()) continue;
      const auto report = reports.front();
      lock.unlock();
      const auto told = report.quarantined ? client->node_quarantined(report.node, report.how) : client->node_died(report.node, report.pid, report.how);
      lock.lock();
      if (told.ok() && client_life == coordinator_life) reports.pop_front();
    }
  }

  Result<std::unique_ptr<actors::Client>> connect() {
    std::string where;
    {
      const std::lock_guard lock(mutex);
      where = address;
    }
    ORRERY_TRY(place, actors::parse_address(where));
    return actors::Client::connect(*control, place.host, place.port);
  }
};

LocalCluster::LocalCluster(std::unique_ptr<State> state) : state_(std::move(state)) {}

LocalCluster::~LocalCluster() {
  auto& own = *state_;
  bool all_joined = false;
  {
    const std::lock_guard lock(own.mutex);
    own.ending = true;
    all_joined = own.all_joined;
    own.woken.notify_all();
  }
  if (own.reporter.joinable()) own.reporter.join();
  if (!own.supervisor) return;
  const auto grace = duration_of(std::min(own.grace, 5.0));
  own.supervisor->let_end();
  own.supervisor->stop({coordinator_child}, grace);  // It tells the nodes; one that never joined does not hear it.
  std::vector<std::size_t> nodes;
  for (std::size_t i = 1; i < own.children.size(); ++i) nodes.push_back(i);
  own.supervisor->wait(nodes, all_joined ? std::chrono::seconds(2) : std::chrono::seconds(0));
  own.supervisor->stop(nodes, grace);
  own.supervisor.reset();
}

actors::Control& LocalCluster::control() { return *state_->control; }
std::string LocalCluster::address() const {
  const std::lock_guard lock(state_->mutex);
  return state_->address;
}
Result<std::unique_ptr<actors::Client>> LocalCluster::connect() {
  // The coordinator may have died just now; then it is started again.
  SteadyClock clock;
  const auto until = clock.now() + std::chrono::seconds(10);
  for (;;) {
    auto connected = state_->connect();
    if (connected.ok() || clock.now() >= until || ended()) return connected;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

int LocalCluster::descriptor() const { return state_->bell; }

std::vector<std::string> LocalCluster::take_news() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = read(state_->bell, &count, sizeof count);
  const std::lock_guard lock(state_->mutex);
  std::vector<std::string> news(state_->news.begin(), state_->news.end());
  state_->news.clear();
  return news;
}

std::optional<Status> LocalCluster::ended() {
  const std::lock_guard lock(state_->mutex);
  return state_->end;
}

namespace {

/// Waits until the coordinator has announced itself.
Result<Announcement> wait_for_announcement(const std::string& path, LocalCluster& cluster, SignalWatch& signals, Time until) {
  SteadyClock clock;
  const int news = cluster.descriptor();
  for (;;) {
    if (auto over = cluster.ended()) return over->ok() ? Error{ErrorCode::cancelled, "the coordinator was told to end"} : over->error();
    // Its own failure comes with its death, which is told first.
    if (auto announced = read_announcement(path); announced.ok() && announced.value()) return *announced.value();
    if (clock.now() >= until) return Error{ErrorCode::timed_out, "the coordinator did not come up in time", "raise launch.ready_timeout if the machine is slow"};
    if (signals.wait_for_signal_or(std::span(&news, 1), std::chrono::milliseconds(3)) == SignalWatch::Woken::signal)
      return Error{ErrorCode::cancelled, "interrupted"};
    (void)cluster.take_news();
  }
}

}  // namespace

Result<std::unique_ptr<LocalCluster>> LocalCluster::start(const PlannedCluster& planned, const ClusterArguments& arguments,
                                                          const LocalClusterOptions& options, SignalWatch& signals) {
  const auto& cluster = planned.resolved.cluster;
  const bool over_ssh = cluster.launch.via == topology::LaunchVia::ssh;
  if (cluster.data.transport == topology::DataTransport::inproc && cluster.nodes.size() > 1)
    return Error{ErrorCode::invalid_config, "data.transport inproc needs a cluster of one node, but " + cluster.name + " has " +
                                                std::to_string(cluster.nodes.size()),
                 "use ipc or tcp"};
  if (cluster.data.transport == topology::DataTransport::ipc && over_ssh)
    return Error{ErrorCode::invalid_config, "data.transport ipc works on one machine only, but the nodes start over ssh", "use tcp"};
  if (over_ssh)
    for (const auto& node : cluster.nodes)
      if (auto command = ssh_command(cluster.launch.user, node.address, {}); !command.ok()) return command.error();
  ORRERY_TRY(program, program_path());
  ORRERY_TRY(folder, PrivateFolder::create());

  std::unique_ptr<LocalCluster> running(new LocalCluster(std::make_unique<State>()));
  auto& own = *running->state_;
  own.folder = std::move(folder);
  own.cluster = cluster;
  if (!over_ssh) own.cores = CoreClaim::take(busy_threads(planned));
  const auto& restarts = planned.resolved.deployment.resilience.restarts;
  own.limits.max = restarts.max;
  own.limits.within = duration_of(restarts.within);
  own.program = program;
  own.announcement = own.folder.path() + "/announcement.json";
  own.input_file = planned.input_file;
  own.grace = cluster.launch.stop_grace;
  own.allow_faults = planned.allow_faults;
  own.end_when_starved = options.end_when_starved;
  if (!options.log_nodes_here) own.logs = options.keep_logs_in.empty() ? own.folder.path() : options.keep_logs_in;
  own.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (own.bell < 0) return Error{ErrorCode::io_failed, "an event descriptor could not be made: " + errno_text()};
  own.coordinator_words = words_of(arguments);
  own.coordinator_words.insert(own.coordinator_words.end(),
                               {"--announce", own.announcement, "--plan-digest", digest_text(planned.plan), "--state",
                                options.state_folder.empty() ? own.folder.path() + "/state" : options.state_folder});
  actors::ControlOptions control;
  ORRERY_TRY(security, security_of(cluster.security, "client"));
  control.security = security;
  own.control = std::make_unique<actors::Control>(control);

  SteadyClock clock;
  const auto until = clock.now() + duration_of(cluster.launch.ready_timeout);
  ORRERY_TRY(supervisor, Supervisor::create([&own](const ChildEnd& end) { own.on_end(end); }));
  own.supervisor = std::move(supervisor);
  own.children.emplace_back();
  ORRERY_TRY(coordinator, own.supervisor->add({"the coordinator", [&own](std::uint32_t) { return own.coordinator_command(); }, own.limits}));
  ORRERY_CHECK(coordinator == coordinator_child);
  ORRERY_TRY(announced, wait_for_announcement(own.announcement, *running, signals, until));
  {
    const std::lock_guard lock(own.mutex);
    own.address = announced.address;
    own.cluster_id = announced.cluster_id;
    for (const auto& node : cluster.nodes) own.children.push_back(node.name);
  }
  for (std::size_t i = 0; i < cluster.nodes.size(); ++i) {
    ORRERY_TRY(child, own.supervisor->add({"node " + cluster.nodes[i].name, [&own, i](std::uint32_t life) { return own.node_command(i, life); }, own.limits}));
    ORRERY_CHECK(child == i + 1);
  }
  own.reporter = std::thread([&own] { own.report(); });

  std::unique_ptr<actors::Client> client;
  std::vector<std::string> missing;
  const int news = running->descriptor();
  for (;;) {
    if (!client)
      if (auto connected = own.connect(); connected.ok()) client = std::move(connected).value();
    Json status;
    if (client) {
      if (const auto text = client->status(); text.ok())
        status = Json::parse(text.value(), nullptr, false);
      else
        client.reset();  // It died, or is about to.
    }
    if (status.is_object()) {
      const auto phase = status.value("phase", "");
      const bool ready = phase == "ready";
      missing = status.value("missing", std::vector<std::string>{});
      {
        const std::lock_guard lock(own.mutex);
        own.all_joined = missing.empty();
        own.was_ready = ready;
      }
      const auto done = status.value(Json::json_pointer("/load/done"), std::uint64_t{0});
      const auto total = status.value(Json::json_pointer("/load/total"), std::uint64_t{0});
      // Nodes report one after the other: all of what is known may be read while the rest is not known yet.
      if (options.on_load && total > 0 && (ready || done < total)) options.on_load(ready ? total : done, total);
      if (ready) return running;
      if (phase == "failed") {
        auto failure = error_of_json(status.value("failure", Json::object()).dump());
        return failure ? *failure : Error{ErrorCode::peer_lost, "the cluster failed while it started"};
      }
    }
    if (signals.wait_for_signal_or(std::span(&news, 1), std::chrono::milliseconds(10)) == SignalWatch::Woken::signal)
      return Error{ErrorCode::cancelled, "interrupted"};
    // Whoever gave up has said why.
    if (auto over = running->ended()) return over->ok() ? Error{ErrorCode::cancelled, "the cluster was told to end"} : over->error();
    if (clock.now() < until) continue;
    if (missing.empty()) {
      if (status.is_object() && status.contains("waiting_for"))
        return Error{ErrorCode::timed_out, "the cluster is not ready: " + status.value("waiting_for", "")};
      if (status.is_object()) continue;  // Loading takes what it takes.
      return Error{ErrorCode::timed_out, "the coordinator did not answer in time", "raise launch.ready_timeout if the machine is slow"};
    }
    std::string names;
    for (const auto& name : missing) names += (names.empty() ? "" : ", ") + name;
    return Error{ErrorCode::timed_out,
                 std::string(missing.size() == 1 ? "node " : "nodes ") + names + " did not come up within " +
                     std::to_string(static_cast<long>(cluster.launch.ready_timeout)) + " s",
                 over_ssh ? "does `ssh " + missing.front() + " " + cluster.launch.program + " version` work?" : "raise launch.ready_timeout if the machine is slow"};
  }
}

}  // namespace orrery::launch
