#include "simulation.hpp"

#include <algorithm>
#include <tuple>

#include "actors/demand.hpp"
#include "actors/edges.hpp"
#include "actors/request_check.hpp"
#include "actors/storage.hpp"
#include "base/fault_point.hpp"

namespace orrery::simulation {

using namespace actors;

namespace {

constexpr Duration liveness = std::chrono::seconds(180);
constexpr Duration result_ttl = std::chrono::seconds(40);
constexpr double wall_start = 1'700'000'000;

std::string node_name(std::size_t index) { return "n" + std::to_string(index + 1); }

/// Places in product code where a run may end a process.
const std::vector<std::string>& crash_points() {
  static const std::vector<std::string> points = {
      "journal.before_accept", "journal.after_accept",      "journal.before_epoch",  "journal.after_epoch",
      "journal.before_finish", "journal.after_finish",      "coordinator.before_load", "coordinator.before_fetched",
      "coordinator.before_attempt", "keeper.before_keep",   "keeper.after_keep",     "node.before_load",
      "node.after_load",       "node.before_stage",
  };
  return points;
}

}  // namespace

const char* name_of(Kind kind) {
  static constexpr const char* names[] = {"node_crash",  "node_pause",       "coordinator_crash", "coordinator_pause", "control_cut",
                                          "control_cut_one_way", "data_cut", "data_cut_one_way",  "frame_drop",        "frame_duplicate",
                                          "frame_reorder", "frame_corrupt",  "card_hang",         "card_failure",      "card_slow",
                                          "disk_full",   "failed_sync",      "client_crash",      "cancel",            "deadline",
                                          "fault_point", "stale_plan"};
  return names[static_cast<std::size_t>(kind)];
}

// ---- ground ---------------------------------------------------------------------------------------------------------

Ground::Ground(const std::string& source_folder) : model_folder(source_folder + "/configs/models/cosmos-tiny") {
  auto opened = compiler::open_model_folder(model_folder);
  ORRERY_CHECK(opened.ok());
  model = std::make_shared<const compiler::ModelFolder>(std::move(opened).value());
  guardrail_folders = {source_folder + "/configs/guardrail"};
  topology::ModelSpec spec;
  spec.name = "cosmos-tiny";
  spec.folder = model_folder;
  topology::RequestShape shape;
  shape.size = {64, 64};
  shape.num_frames = 9;
  shape.num_inference_steps = 6;
  shape.max_text_tokens = 64;
  auto demand = demand_of_folder(*model, spec, shape);
  if (!demand.ok()) std::fprintf(stderr, "%s\n", demand.error().text().c_str());
  ORRERY_CHECK(demand.ok());
  demand_ = std::move(demand).value();
  // As much work as makes sharing worth while: what is simulated is a large model, whose step takes one card 0.2 s.
  for (const auto& stage : demand_.stages)
    if (stage.kind == topology::StageKind::denoiser) card_rate_ = 5 * stage.branches * (stage.flops_linear + stage.flops_attention);
  RunOptions quiet;
  quiet.faults = false;
  quiet.cards = std::vector<std::uint32_t>{1};
  quiet.requests = request_kinds;
  expected_.assign(request_kinds, "");
  const auto result = run_simulation(*this, quiet);
  if (!result.violation.empty()) std::fprintf(stderr, "the reference run failed: %s\n", result.violation.c_str());
  ORRERY_CHECK(result.digests.size() == request_kinds);
  expected_ = result.digests;
}

RequestSpec Ground::spec(std::uint32_t kind) const {
  auto spec = defaults_of(*model);
  static constexpr const char* prompts[] = {"a red ball rolls over green grass", "a blue ball", "a green square moves", "a red square"};
  spec.prompt = prompts[kind % request_kinds];
  spec.width = spec.height = 64;
  spec.frames = kind % 2 == 0 ? 9 : 17;
  spec.steps = 4 + kind;
  spec.guidance = kind == 1 ? 1 : 1.5;
  spec.seed = 40 + kind;
  spec.max_text_tokens = 64;
  return spec;
}

Result<topology::Plan> Ground::plan(const std::vector<std::uint32_t>& cards, bool split_branches, const std::set<std::uint32_t>& lost,
                                    const std::map<std::uint32_t, double>& slowdown) const {
  const PlanKey key{cards, split_branches, lost, slowdown};
  if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
  topology::ClusterSpec cluster;
  cluster.name = "simulated";
  auto& type = cluster.card_types["sim"];
  type.name = "sim";
  type.compute = {{"float32", card_rate_}};
  type.memory_bandwidth = 1e12;
  for (std::size_t i = 0; i < cards.size(); ++i) {
    topology::ClusterNode node;
    node.name = node.address = node_name(i);
    for (std::uint32_t card = 0; card < cards[i]; ++card) node.cards.push_back({"sim", std::uint64_t{1} << 34, 1, 1});
    cluster.nodes.push_back(std::move(node));
  }
  topology::DeploymentSpec deployment;
  if (split_branches) deployment.parallelism.cfg = 2;
  auto plan = topology::make_plan(cluster, deployment, demand_, {lost, slowdown});
  if (plans_.size() > 20'000) plans_.clear();
  plans_.emplace(key, plan);
  return plan;
}

// ---- one run ----------------------------------------------------------------------------------------------------------

namespace {

class Simulation final : public Observer {
public:
  Simulation(const Ground& ground, const RunOptions& options);
  ~Simulation() override;
  RunResult run();

  void violated(const std::string& invariant, const std::string& what) override {
    if (!result_.violation.empty()) return;
    result_.invariant = invariant;
    result_.violation = what;
    world_.trace("VIOLATED " + invariant + ": " + what);
  }
  void plan_loaded(const Process& process, std::uint64_t epoch, std::uint64_t digest) override {
    world_.note(epoch);
    world_.note(digest);
    world_.trace(process.host + " is in epoch " + std::to_string(epoch));
    result_.epochs = std::max(result_.epochs, epoch);
    const auto [plan, is_new] = plan_of_epoch_.emplace(epoch, digest);
    if (!is_new && plan->second != digest) violated("one plan per epoch", "epoch " + std::to_string(epoch) + " has two plans");
    auto& last = epoch_of_host_[process.host];
    if (epoch <= last) violated("epochs go on", process.host + " went from epoch " + std::to_string(last) + " to " + std::to_string(epoch));
    last = epoch;
  }

private:
  struct Host {
    std::string name;
    std::uint32_t peer = 0;
    ProcessPointer process;
    std::unique_ptr<SimulatedNode> node;
    std::map<std::uint32_t, CardFaults> cards;
  };
  struct Client {
    std::string host;
    std::uint32_t kind = 0;
    ClientHistory history;
    ProcessPointer process;
    std::unique_ptr<SimulatedClient> client;
  };

  void start_coordinator();
  void crash_coordinator();
  void start_node(Host& host);
  void start_client(Client& client);
  void end_client(Client& client);
  Duration soon(std::int64_t least_ms, std::int64_t most_ms) {
    return world_.between(std::chrono::milliseconds(least_ms), std::chrono::milliseconds(most_ms));
  }
  bool ready() const { return board_ && board_->get().phase == Coordinator::Phase::ready; }
  Host& any_host() { return *hosts_[world_.random().below(hosts_.size())]; }
  std::string any_place() { return world_.random().below(hosts_.size() + 1) == 0 ? "coordinator" : any_host().name; }
  void count(Kind kind) {
    ++result_.faults[name_of(kind)];
    world_.trace(std::string("fault ") + name_of(kind));
    world_.note(name_of(kind));
  }

  void watch_silence(const ProcessPointer& process);
  void plan_faults();
  void inject(Kind kind);
  void plan_scenario(const topology::ScenarioSpec& scenario);
  void data_cut(const std::string& from, const std::string& to, bool on);
  void heal();
  void check_bounds();
  void check_rest();
  void check_journal();
  std::string status();

  const Ground& ground_;
  const RunOptions options_;
  RunResult result_;
  World world_;
  std::unique_ptr<SimulatedDisk> disk_;
  std::uint64_t cluster_id_ = 0;
  bool split_branches_ = false;
  std::vector<std::uint32_t> cards_;
  std::shared_ptr<Board<CoordinatorBoard>> board_;
  std::vector<std::shared_ptr<Board<CoordinatorBoard>>> boards_;  // Of former lives.
  ProcessPointer coordinator_;
  caf::actor coordinator_actor_;
  ProcessPointer launcher_;
  std::vector<std::unique_ptr<Host>> hosts_;
  std::vector<std::unique_ptr<Client>> clients_;
  protocol::FaultOptions frames_;  // For new exchanges, too.
  std::map<std::uint64_t, std::uint64_t> plan_of_epoch_;
  std::map<std::string, std::uint64_t> epoch_of_host_;
  std::set<const Client*> client_ends_;
  std::map<std::string, Time> pinged_, given_up_;  // By host: when the coordinator last did.
  std::uint32_t coordinator_pauses_ = 0;
  std::map<std::string, std::uint32_t> node_pauses_;
  std::map<std::string, std::vector<LoadPlan>> plans_told_;  // By host; for a coordinator that is behind the times.
  bool ending_ = false, healed_ = false;
};

Simulation::Simulation(const Ground& ground, const RunOptions& options) : ground_(ground), options_(options), world_(options.seed) {
  if (options.trace) world_.set_trace(options.trace);
  disk_ = std::make_unique<SimulatedDisk>(world_.random().next());
  disk_->set_time(wall_start);
  static const std::vector<std::vector<std::uint32_t>> shapes = {{2, 2}, {1, 1}, {1, 1, 1}, {2, 1, 1}, {1, 2}, {3, 2}, {2, 2, 1}};
  cards_ = options.cards ? *options.cards : shapes[world_.random().below(shapes.size())];
  split_branches_ = !options.cards && world_.random().below(4) == 0;
  launcher_ = world_.start("launcher");
  world_.on_control = [this](const Process& from, const Process& to, const caf::message& message) {
    if (from.host != "coordinator") return;
    if (message.match_elements<Ping>()) pinged_[to.host] = world_.now();
    if (message.match_elements<LoadPlan>()) plans_told_[to.host].push_back(message.get_as<LoadPlan>(0));
    if (message.match_elements<Rejoin>()) given_up_[to.host] = world_.now();
  };
}

Simulation::~Simulation() {
  ending_ = true;
  disarm_fault_points();
  if (!disk_->halted()) disk_->halt_after(0);
  for (auto& client : clients_) {
    if (client->process) world_.kill(client->process);
    client->client.reset();
  }
  for (auto& host : hosts_)
    if (host->process) world_.kill(host->process);
  if (coordinator_) world_.kill(coordinator_);
  coordinator_actor_ = nullptr;
  plans_told_.clear();
  world_.kill(launcher_);
}

// ---- lives ------------------------------------------------------------------------------------------------------------

void Simulation::start_coordinator() {
  if (ending_) return;
  JournalOptions journal_options;
  journal_options.folder = "state";
  journal_options.storage = disk_.get();
  auto journal = Journal::open(journal_options);
  if (!journal.ok()) {
    const auto code = journal.error().code;
    if (code == ErrorCode::journal_damaged || code == ErrorCode::version_mismatch) return violated("journal opens", journal.error().text());
    return world_.at(std::chrono::milliseconds(300), [this] { start_coordinator(); });
  }
  if (cluster_id_ == 0) cluster_id_ = journal.value()->cluster_id();
  else if (cluster_id_ != journal.value()->cluster_id()) violated("journal opens", "the journal has another cluster id");
  coordinator_ = world_.start("coordinator");
  pinged_.clear();  // What a former life watched, this one does not yet.
  board_ = std::make_shared<Board<CoordinatorBoard>>();
  boards_.push_back(board_);
  CoordinatorSetup setup;
  auto& o = setup.options;
  o.cluster = "simulated";
  o.state_folder = "state";
  for (std::size_t i = 0; i < cards_.size(); ++i) o.nodes.push_back(node_name(i));
  o.plan_without = [this](const std::set<std::uint32_t>& lost, const std::map<std::uint32_t, double>& slowdown) {
    return ground_.plan(cards_, split_branches_, lost, slowdown);
  };
  auto plan = o.plan_without({}, {});
  ORRERY_CHECK(plan.ok());
  o.plan = std::move(plan).value();
  o.model_name = "cosmos-tiny";
  o.model_folder = ground_.model_folder;
  o.dtype = "float32";
  o.guardrail_folders = ground_.guardrail_folders;
  o.resilience.result_ttl = result_ttl;
  o.resilience.restarts_max = 1000;  // Quarantine would end the run's cards one after the other.
  setup.model = ground_.model;
  setup.board = board_.get();
  setup.clock = &world_.clock();
  setup.wall_seconds = [this] { return wall_start + seconds_of(world_.now().time_since_epoch()); };
  setup.journal = std::move(journal).value();
  setup.open_journal = [journal_options]() -> Result<std::unique_ptr<Journal>> { return Journal::open(journal_options); };
  coordinator_actor_ = world_.spawn_in(coordinator_, coordinator_actor, std::move(setup));
  coordinator_->on_killed = [this] {
    coordinator_actor_ = nullptr;
    coordinator_ = nullptr;
    if (ending_) return;
    disk_->crash(world_.random());
    world_.at(soon(50, 1500), [this] { start_coordinator(); });
  };
}

void Simulation::crash_coordinator() {
  if (!coordinator_ || !coordinator_->alive) return;
  if (!disk_->halted()) disk_->halt_after(0);
  const auto process = coordinator_;
  world_.kill(process);
}

void Simulation::start_node(Host& host) {
  if (ending_) return;
  host.process = world_.start(host.name);
  host.cards.clear();
  NodeOptions options;
  options.name = host.name;
  options.peer = host.peer;
  options.cluster_id = cluster_id_;
  options.model = ground_.model;
  options.coordinator = [this]() -> std::optional<caf::actor> {
    if (!coordinator_ || !coordinator_->alive || coordinator_->paused) return std::nullopt;
    return coordinator_actor_;
  };
  options.node_named = [this](const std::string& name) -> std::optional<caf::actor> {
    for (const auto& each : hosts_)
      if (each->name == name && each->process && each->process->alive && !each->process->paused && each->node) return each->node->actor();
    return std::nullopt;
  };
  options.faults = &host.cards;
  host.node = std::make_unique<SimulatedNode>(world_, host.process, std::move(options), *this);
  host.process->gate->faults().set_faults(frames_);
  host.process->on_killed = [this, &host] {
    const auto pid = static_cast<std::int64_t>(host.process->number);
    host.node.reset();
    host.process = nullptr;
    if (ending_) return;
    world_.at(soon(1, 50), [this, &host, pid] {
      if (coordinator_ && coordinator_->alive) caf::anon_send(world_.wire(launcher_, coordinator_actor_), NodeDied{host.name, pid, "was ended by signal 9 (Killed)", false});
    });
    world_.at(soon(100, 2500), [this, &host] { start_node(host); });
  };
  host.node->join();
}

void Simulation::start_client(Client& client) {
  if (ending_) return;
  client.process = world_.start(client.host);
  ClientOptions options;
  options.cluster_id = cluster_id_;
  options.coordinator = [this]() -> std::optional<caf::actor> {
    if (!coordinator_ || !coordinator_->alive || coordinator_->paused) return std::nullopt;
    return coordinator_actor_;
  };
  options.come_back = [this, &client](const std::string&) {
    world_.at(std::chrono::milliseconds(1), [this, &client] {
      end_client(client);
      world_.at(soon(100, 1000), [this, &client] {
        if (!client.history.over() && !client.process) start_client(client);
      });
    });
  };
  client.client = std::make_unique<SimulatedClient>(world_, client.process, client.history, std::move(options), *this);
  client.process->gate->faults().set_faults(frames_);
  client.process->on_killed = [&client] {
    client.client.reset();
    client.process = nullptr;
  };
  client.client->start();
}

void Simulation::end_client(Client& client) {
  if (!client.process) return;
  const auto process = client.process;
  world_.kill(process);
}

// ---- faults -------------------------------------------------------------------------------------------------------------

void Simulation::data_cut(const std::string& from, const std::string& to, bool on) {
  std::uint32_t peer = 0;
  ProcessPointer process;
  for (const auto& host : hosts_) {
    if (host->name == to) peer = host->peer;
    if (host->name == from) process = host->process;
  }
  if (!process || !process->alive || peer == 0) return;
  if (on) process->gate->faults().cut(peer);
  else process->gate->faults().heal(peer);
}

void Simulation::inject(Kind kind) {
  if (healed_ || ending_) return;
  auto& random = world_.random();
  const auto duration = random.below(3) == 0 ? soon(3000, 7000) : soon(50, 2500);
  switch (kind) {
    case Kind::node_crash: {
      auto& host = any_host();
      if (!host.process) return;
      count(kind);
      const auto process = host.process;
      world_.kill(process);
      break;
    }
    case Kind::node_pause: {
      const auto process = any_host().process;
      if (!process || process->paused) return;
      count(kind);
      world_.pause(process);
      world_.at(duration, [this, process] { world_.resume(process); });
      watch_silence(process);
      break;
    }
    case Kind::coordinator_crash:
      if (!coordinator_) return;
      count(kind);
      crash_coordinator();
      break;
    case Kind::coordinator_pause: {
      const auto process = coordinator_;
      if (!process || process->paused) return;
      count(kind);
      ++coordinator_pauses_;
      world_.pause(process);
      world_.at(duration, [this, process] { world_.resume(process); });
      break;
    }
    case Kind::control_cut:
    case Kind::control_cut_one_way: {
      auto from = any_place(), to = any_place();
      if (random.below(4) == 0 && !clients_.empty()) from = clients_[random.below(clients_.size())]->host, to = "coordinator";
      if (from == to) to = from == "coordinator" ? any_host().name : "coordinator";
      const bool both = kind == Kind::control_cut;
      count(kind);
      world_.cut(from, to);
      if (both) world_.cut(to, from);
      world_.at(duration, [this, from, to] {
        world_.heal(from, to);
        world_.heal(to, from);
      });
      break;
    }
    case Kind::data_cut:
    case Kind::data_cut_one_way: {
      const auto from = any_host().name, to = any_host().name;
      if (from == to) return;
      const bool both = kind == Kind::data_cut;
      count(kind);
      data_cut(from, to, true);
      if (both) data_cut(to, from, true);
      world_.at(duration, [this, from, to] {
        data_cut(from, to, false);
        data_cut(to, from, false);
      });
      break;
    }
    case Kind::frame_drop:
    case Kind::frame_duplicate:
    case Kind::frame_reorder:
    case Kind::frame_corrupt: {
      count(kind);
      const auto share = random.below(4) == 0 ? 0.3 : 0.05;
      if (kind == Kind::frame_drop) frames_.drop = share;
      if (kind == Kind::frame_duplicate) frames_.duplicate = share;
      if (kind == Kind::frame_reorder) frames_.delay = share;
      if (kind == Kind::frame_corrupt) frames_.corrupt = share;
      frames_.seed = random.next();
      for (const auto& host : hosts_)
        if (host->process) host->process->gate->faults().set_faults(frames_);
      for (const auto& client : clients_)
        if (client->process) client->process->gate->faults().set_faults(frames_);
      break;
    }
    case Kind::card_hang:
    case Kind::card_failure:
    case Kind::card_slow: {
      auto& host = any_host();
      if (!host.process) return;
      count(kind);
      auto& card = host.cards[static_cast<std::uint32_t>(random.below(cards_[host.peer - 1]))];
      if (kind == Kind::card_hang) card.hang = true;
      if (kind == Kind::card_failure) card.fail = 1;
      if (kind == Kind::card_slow) card.slow = 2 + static_cast<double>(random.below(8));
      break;
    }
    case Kind::disk_full:
      count(kind);
      disk_->faults().full = true;
      world_.at(duration, [this] { disk_->faults().full = false; });
      break;
    case Kind::failed_sync:
      count(kind);
      disk_->faults().failed_syncs = static_cast<std::uint32_t>(1 + random.below(3));
      break;
    case Kind::client_crash: {
      auto& client = *clients_[random.below(clients_.size())];
      if (!client.process || client.history.over()) return;
      count(kind);
      end_client(client);
      world_.at(soon(100, 6000), [this, &client] {
        if (!client.history.over() && !client.process) start_client(client);
      });
      break;
    }
    case Kind::cancel: {
      auto& client = *clients_[random.below(clients_.size())];
      if (!client.client || client.history.over()) return;
      count(kind);
      client.client->cancel();
      break;
    }
    case Kind::fault_point: {
      count(kind);
      ArmedFaultPoint order;
      order.point = crash_points()[random.below(crash_points().size())];
      order.action = FaultPointAction::call;
      order.hit = 1 + random.below(4);
      order.call = [this, point = order.point]() -> Status {
        const auto& process = world_.running();
        if (!process || healed_) return Done{};
        world_.trace("fault point " + point + " ends " + process->host);
        ++result_.fault_points[point];
        process->crashing = true;
        if (process->host == "coordinator" && !disk_->halted()) disk_->halt_after(0);
        return Done{};
      };
      arm_fault_point(std::move(order));
      break;
    }
    case Kind::stale_plan: {
      // A coordinator that was taken for dead tells a node of the epoch that it still believes in.
      auto& host = any_host();
      const auto known = plans_told_.find(host.name);
      if (!host.node || host.process->paused || known == plans_told_.end() || known->second.size() < 2) return;
      auto order = known->second[random.below(known->second.size() - 1)];
      // A node that was started again knows of no epoch yet.
      if (!coordinator_ || order.epoch >= host.node->epoch()) return;
      count(kind);
      order.coordinator = coordinator_actor_;
      caf::anon_send(world_.wire(launcher_, host.node->actor()), order);
      break;
    }
    case Kind::deadline:
    case Kind::count: break;
  }
}

// A node that stands still, while the coordinator does not, is given up within the promised time.
void Simulation::watch_silence(const ProcessPointer& process) {
  const auto since = world_.now();
  const auto watcher = coordinator_;
  const auto pinged = pinged_[process->host];
  ++node_pauses_[process->host];
  if (!watcher || watcher->paused || since - pinged > std::chrono::milliseconds(150) || given_up_[process->host] >= pinged) return;
  const auto pauses = coordinator_pauses_, number = node_pauses_[process->host];
  world_.at(std::chrono::milliseconds(1500), [this, process, watcher, since, pauses, number] {
    if (node_pauses_[process->host] != number) return;
    if (!process->alive || !process->paused || !watcher->alive || watcher->paused || coordinator_pauses_ != pauses || healed_) return;
    if (board_->get().phase == Coordinator::Phase::waiting || given_up_[process->host] >= since) return;
    violated("silence is noticed", process->host + " has stood still for 1500 ms, and the coordinator has not given it up");
  });
}

void Simulation::plan_faults() {
  auto& random = world_.random();
  std::vector<Kind> enabled;
  for (std::uint8_t kind = 0; kind < static_cast<std::uint8_t>(Kind::count); ++kind)
    if (random.below(4) == 0) enabled.push_back(static_cast<Kind>(kind));
  if (enabled.empty()) enabled.push_back(static_cast<Kind>(random.below(static_cast<std::uint64_t>(Kind::count))));
  for (const auto kind : enabled) {
    if (kind == Kind::deadline) {
      auto& client = *clients_[random.below(clients_.size())];
      client.history.spec.deadline_seconds = 0.2 + static_cast<double>(random.below(60)) / 10;
      count(kind);
      continue;
    }
    const auto times = 1 + random.below(kind == Kind::stale_plan ? 8 : 3);
    for (std::uint64_t i = 0; i < times; ++i) world_.at(soon(0, 5000), [this, kind] { inject(kind); });
  }
}

void Simulation::plan_scenario(const topology::ScenarioSpec& scenario) {
  // The file's faults, as far as they are kinds of ours; what it leaves open is drawn from the seed.
  using topology::ScenarioAction;
  using topology::TargetKind;
  for (const auto& fault : scenario.faults) {
    std::optional<Kind> kind;
    const auto target = fault.target.kind;
    switch (fault.action) {
      case ScenarioAction::kill:
      case ScenarioAction::term:
      case ScenarioAction::segv:
      case ScenarioAction::abort:
      case ScenarioAction::crash_loading:
        kind = target == TargetKind::coordinator ? Kind::coordinator_crash : target == TargetKind::client ? Kind::client_crash : Kind::node_crash;
        break;
      case ScenarioAction::pause:
      case ScenarioAction::hang_node:
        kind = target == TargetKind::coordinator ? Kind::coordinator_pause : Kind::node_pause;
        break;
      case ScenarioAction::slow: kind = Kind::card_slow; break;
      case ScenarioAction::hang: kind = Kind::card_hang; break;
      case ScenarioAction::fail:
      case ScenarioAction::refuse_memory: kind = Kind::card_failure; break;
      case ScenarioAction::cut:
      case ScenarioAction::stall: {
        const bool control = fault.target.from == "coordinator" || fault.target.to == "coordinator";
        const bool both = fault.target.direction == topology::ScenarioDirection::both;
        kind = control ? (both ? Kind::control_cut : Kind::control_cut_one_way) : (both ? Kind::data_cut : Kind::data_cut_one_way);
        break;
      }
      case ScenarioAction::drop:
      case ScenarioAction::delay:
      case ScenarioAction::rate: kind = Kind::frame_drop; break;
      case ScenarioAction::duplicate: kind = Kind::frame_duplicate; break;
      case ScenarioAction::reorder: kind = Kind::frame_reorder; break;
      case ScenarioAction::corrupt:
      case ScenarioAction::truncate: kind = Kind::frame_corrupt; break;
      case ScenarioAction::disk_full: kind = Kind::disk_full; break;
      case ScenarioAction::fail_sync:
      case ScenarioAction::short_write: kind = Kind::failed_sync; break;
      case ScenarioAction::torn_write: kind = Kind::coordinator_crash; break;
      case ScenarioAction::point: kind = Kind::fault_point; break;
      case ScenarioAction::second_coordinator: kind = Kind::stale_plan; break;
      case ScenarioAction::flip_weights:
      case ScenarioAction::flip_activations: break;
    }
    if (!kind) {
      world_.trace("fault " + fault.name + " has no counterpart here");
      continue;
    }
    const auto delay = fault.at ? std::chrono::duration_cast<Duration>(std::chrono::duration<double>(*fault.at)) : soon(50, 3000);
    world_.at(delay, [this, kind = *kind] { inject(kind); });
  }
}

void Simulation::heal() {
  healed_ = true;
  world_.trace("heal");
  disarm_fault_points();
  frames_ = {};
  disk_->faults().full = false;
  disk_->faults().failed_syncs = 0;
  std::vector<std::string> places{"coordinator"};
  for (const auto& host : hosts_) places.push_back(host->name);
  for (const auto& client : clients_) places.push_back(client->host);
  for (const auto& from : places)
    for (const auto& to : places)
      if (from != to) world_.heal(from, to);
  if (coordinator_) world_.resume(coordinator_);
  for (const auto& host : hosts_) {
    host->cards.clear();
    if (!host->process) continue;
    for (const auto& other : hosts_) host->process->gate->faults().heal(other->peer);
    host->process->gate->faults().set_faults(frames_);
    world_.resume(host->process);
  }
  for (const auto& client : clients_) {
    if (client->process) client->process->gate->faults().set_faults(frames_);
    else if (!client->history.over()) start_client(*client);
  }
}

// ---- invariants -----------------------------------------------------------------------------------------------------------

void Simulation::check_bounds() {
  for (const auto& host : hosts_)
    if (host->node)
      if (const auto over = host->node->over_bounds(); !over.empty()) violated("bounded memory", host->name + ": " + over);
  if (world_.mailbox_high() > 2000) violated("bounded mailboxes", std::to_string(world_.mailbox_high()) + " messages lay in a mailbox");
  if (board_ && coordinator_ && board_->get().phase == Coordinator::Phase::failed)
    violated("the coordinator works", board_->get().failure.message);
}

void Simulation::check_rest() {
  for (const auto& host : hosts_) {
    if (!host->node) return violated("nothing is left", host->name + " is not there");
    if (const auto left = host->node->names_left(); !left.empty()) violated("nothing is left", host->name + ": " + left);
  }
}

void Simulation::check_journal() {
  crash_coordinator();
  ending_ = true;
  if (disk_->halted()) disk_->crash(world_.random());
  JournalOptions options;
  options.folder = "state";
  options.storage = disk_.get();
  auto opened = Journal::open(options);
  if (!opened.ok()) return violated("journal opens", opened.error().text());
  const auto& journal = *opened.value();
  for (const auto& client : clients_) {
    const auto& history = client->history;
    const auto found = journal.find(history.id);
    if (!found.ok()) return violated("journal agrees", found.error().text());
    if (!found.value()) {
      if (history.accepted || history.over()) violated("accepted is journaled", "request " + history.id + " is not in the journal");
      continue;
    }
    const auto& entry = *found.value();
    ++result_.ends[std::string(actors::name_of(entry.outcome))];
    const auto wrong = [&](const std::string& what) {
      violated("journal agrees", "request " + history.id + " is " + std::string(actors::name_of(entry.outcome)) + " in the journal, but " + what);
    };
    if (history.accepted && entry.number != *history.accepted) wrong("has another number");
    switch (entry.outcome) {
      case RequestOutcome::open: wrong("all is over"); break;
      case RequestOutcome::completed: wrong("nobody can fetch it any more"); break;
      case RequestOutcome::delivered:
        if (!history.delivered) wrong("its client has not had it");
        if (entry.digest != history.digest) wrong("its digest is " + entry.digest.substr(0, 16));
        break;
      case RequestOutcome::expired:
        if (history.fetched) wrong("its client was told that it was delivered");
        break;
      case RequestOutcome::failed:
      case RequestOutcome::cancelled:
        if (history.delivered) wrong("its client had it");
        if (entry.reason.empty()) wrong("there is no reason");
        break;
    }
  }
}

RunResult Simulation::run() {
  auto& random = world_.random();
  start_coordinator();
  for (std::size_t i = 0; i < cards_.size(); ++i) {
    auto host = std::make_unique<Host>();
    host->name = node_name(i);
    host->peer = static_cast<std::uint32_t>(i + 1);
    hosts_.push_back(std::move(host));
    start_node(*hosts_.back());
  }
  const auto bad = [this] { return !result_.violation.empty(); };
  world_.run_until(world_.now() + std::chrono::seconds(30), [&] { return bad() || ready(); });
  if (!ready()) violated("liveness", "the cluster was not ready within 30 s");

  const auto requests = options_.requests > 0 ? options_.requests : static_cast<std::uint32_t>(1 + random.below(4));
  for (std::uint32_t i = 0; i < requests; ++i) {
    auto client = std::make_unique<Client>();
    client->host = "c" + std::to_string(i + 1);
    client->kind = options_.requests > 0 ? i % Ground::request_kinds : static_cast<std::uint32_t>(random.below(Ground::request_kinds));
    client->history.spec = ground_.spec(client->kind);
    client->history.expected = ground_.expected(client->kind);
    char id[40];
    std::snprintf(id, sizeof id, "%016llx%016llx", static_cast<unsigned long long>(random.next()), static_cast<unsigned long long>(random.next()));
    client->history.id = id;
    clients_.push_back(std::move(client));
  }
  if (options_.faults) {
    if (options_.scenario) plan_scenario(*options_.scenario);
    else plan_faults();
  }
  for (const auto& client : clients_)
    world_.at(soon(0, 3500), [this, each = client.get()] {
      if (!each->process) start_client(*each);
    });

  const auto over = [this] { return std::all_of(clients_.begin(), clients_.end(), [](const auto& each) { return each->history.over(); }); };
  const auto nodes_end = [this] {
    for (const auto& host : hosts_) {
      if (!host->node || !host->node->board().ended) continue;
      world_.trace(host->name + " ends: " + host->node->board().reason + " " + host->node->board().failure.message);
      const auto process = host->process;
      world_.kill(process);
    }
    for (const auto& client : clients_)
      if (client->history.over() && client->process && !client->process->paused && !client_ends_.contains(client.get())) {
        client_ends_.insert(client.get());
        world_.at(std::chrono::seconds(6), [this, each = client.get()] { end_client(*each); });
      }
  };
  const auto run_for = [&](Duration time, bool stop_when_over) {
    const auto until = world_.now() + time;
    std::uint64_t steps = 0;
    while (world_.now() < until && !bad() && !(stop_when_over && over())) {
      if (!world_.step()) break;
      if (++steps % 64 == 0) {
        nodes_end();
        check_bounds();
      }
    }
  };
  if (options_.faults) run_for(std::chrono::milliseconds(6000), false);
  heal();
  run_for(liveness, true);
  if (!bad() && !over())
    for (const auto& client : clients_)
      if (!client->history.over())
        violated("liveness", "request " + client->history.id + " is not over " + std::to_string(static_cast<int>(seconds_of(liveness))) +
                                 " s after everything was healed; coordinator: " + status());
  // Until what nobody fetched has expired, and then a moment of rest.
  run_for(result_ttl + std::chrono::seconds(15), false);
  if (!bad()) check_rest();
  result_.virtual_seconds = seconds_of(world_.now() - Time(std::chrono::seconds(1000)));
  result_.hash = world_.hash();
  result_.steps = world_.steps();
  for (const auto& client : clients_) result_.digests.push_back(client->history.digest);
  check_journal();
  return result_;
}

std::string Simulation::status() {
  if (!coordinator_) return "not there";
  auto text = std::make_shared<std::string>("no answer");
  const auto target = world_.wire(launcher_, coordinator_actor_);
  world_.spawn_in(launcher_, [text, target](caf::event_based_actor* self) {
    self->request(target, std::chrono::seconds(3), AskStatus{})
        .then([text](const StatusText& status) { *text = status.json; }, [](const caf::error&) {});
  });
  world_.run_until(world_.now() + std::chrono::seconds(4), [] { return false; });
  return *text;
}

}  // namespace

RunResult run_simulation(const Ground& ground, const RunOptions& options) {
  Simulation simulation(ground, options);
  return simulation.run();
}

}  // namespace orrery::simulation
