// The CAF side of the coordinator, also for simulation. Internal to actors/.

#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>

#include "actors/board.hpp"
#include "actors/control_state.hpp"
#include "actors/coordinator.hpp"
#include "actors/fault_switch.hpp"
#include "actors/journal.hpp"
#include "base/clock.hpp"
#include "base/json.hpp"
#include "compiler/model_folder.hpp"

namespace orrery::actors {

struct CoordinatorBoard {
  Coordinator::Phase phase = Coordinator::Phase::waiting;
  bool end_asked = false;
  std::string end_reason;
  Failure failure;
};

struct CoordinatorSetup {
  CoordinatorOptions options;
  std::shared_ptr<const compiler::ModelFolder> model;
  Board<CoordinatorBoard>* board = nullptr;         // Outlives the actor.
  const Clock* clock = nullptr;                     // Outlives the actor.
  std::function<double()> wall_seconds;             // Since 1970, for the journal.
  std::shared_ptr<Journal> journal;  // Shared because CAF copies what an actor is made from.
  FaultSwitch* faults = nullptr;     // Outlives the actor; null: this process obeys no faults.
  /// Opens the journal again after a failed sync.
  std::function<Result<std::unique_ptr<Journal>>()> open_journal;
};

/// One attempt at a request, within one epoch: through the stages that are left. Spawned by the coordinator, which hears
/// how far it is and how it ends.
struct RequestSetup {
  std::uint64_t epoch = 0;
  StageRun run;  // What each stage is told; request, spec, client, keepers, where to go on.
  caf::actor coordinator;
  std::vector<std::pair<topology::StageKind, caf::actor>> stages;  // Pipeline order; those before `at` are done.
  std::size_t at = 0;
  OrderedJson timings = OrderedJson::object();  // Of the stages before.
};
struct RequestState {
  static inline const char* name = "request";
  RequestSetup setup;
  bool cancelled = false;
};
caf::behavior request_actor(caf::stateful_actor<RequestState>* self, RequestSetup setup);

// Attempts without a single further step, each in an epoch of its own.
inline constexpr std::uint32_t tries_max = 6;

class CoordinatorState {
public:
  static inline const char* name = "coordinator";

  void start(caf::stateful_actor<CoordinatorState>* self, CoordinatorSetup setup);
  NodeWelcome on_hello(const NodeHello& hello);
  void on_load_progress(const LoadProgress& progress);
  void on_pong(const Pong& pong);
  void on_link_silent(const LinkSilent& report);
  void on_node_died(const NodeDied& report);
  void on_straggler(const Straggler& report);
  void on_tick();
  ClusterRoutes on_routes();
  Submitted on_submit(const Submit& submit);
  Cancelled on_cancel(const Cancel& cancel);
  Cancelled on_fetched(const Fetched& fetched);
  void on_request_event(const RequestEvent& event);
  void on_attempt_ended(const AttemptEnded& attempt);
  void on_shutdown(const Shutdown& order);
  void on_down(const caf::down_msg& down);
  caf::response_promise on_status();
  caf::response_promise on_fault(const FaultCommand& command);
  caf::response_promise on_trace(const AskTrace& ask);

private:
  struct Node {
    enum class State : std::uint8_t { missing, up, lost, quarantined } state = State::missing;
    NodeHello hello;  // Of its latest life.
    std::string why;  // Lost, quarantined.
    Time last_heard{};
    std::uint64_t ordered_epoch = 0, loaded_epoch = 0;
    std::uint64_t bytes_done = 0, bytes_total = 0;
    Time progress_at{};  // While it loads: when it last told of a byte.
    std::string numerics;
    std::vector<KeptItem> kept;
    // Lives, but a neighbour does not hear it, or it cannot load: planned with again from `retry_at` on.
    std::optional<Time> retry_at;
    std::uint32_t times_left_out = 0;
    bool usable() const { return state == State::up && !retry_at; }
  };
  struct CardCondition {
    std::optional<Time> retry_at;  // Suspected until then.
    std::deque<Time> failures;     // Within restarts_within.
    bool quarantined = false;
    double slowdown = 1;
    Time slow_until{};  // Then it is tried at its full share again.
    std::string why;
  };
  struct Request {
    enum class State : std::uint8_t { queued, running, parked, closed } state = State::queued;
    std::string id;
    std::uint64_t number = 0;
    RequestSpec spec;
    RequestOutcome outcome = RequestOutcome::open;
    Failure failure;
    std::string details;  // The account given to the client.
    caf::actor attempt, client;
    std::uint32_t client_endpoint = 0;
    std::string client_data_address;
    std::optional<Time> deadline;
    std::optional<Failure> ending;  // Cancelled or past its deadline: what the attempt's end means.
    bool client_left = false;       // While it decoded: the attempt was cancelled for that.
    std::uint64_t attempt_epoch = 0;  // Of the latest attempt.
    std::string stage;
    std::uint64_t done = 0, total = 0;
    std::uint32_t steps_done = 0;  // Newest reported.
    std::uint32_t tries = 0;       // Without progress.
    std::uint32_t interruptions = 0, steps_repeated = 0;
    OrderedJson timings = OrderedJson::object();
    Time started{};
    Time stage_began{}, step_ended{};  // As this coordinator heard of it; for traces.
    std::optional<Time> finished;      // In this coordinator's life.
  };
  /// A failure and what was done about it. Times are seconds since `at`; negative: not yet.
  struct Incident {
    Time at{};
    double wall = 0;
    std::uint64_t epoch = 0;  // That it led to.
    std::string what, node, card;
    double detected = -1;  // Seconds from the last sign of life to `at`.
    double fenced = -1, planned = -1, loaded = -1, resumed = -1;
    std::uint64_t bytes_read = 0;
    std::uint32_t steps_repeated = 0;
    std::vector<std::string> consequences;
    bool journaled = false;
  };

  // Membership.
  /// Whether the node has a part in the present epoch.
  bool in_epoch(const Node& node) const { return node.usable() && node.ordered_epoch == epoch_; }
  void first_epoch();
  void node_lost(const std::string& which, const std::string& why, double detected);
  void leave_out(const std::string& which, const std::string& why);
  bool suspect(std::uint32_t card, const std::string& why);
  std::set<std::uint32_t> lost_cards() const;
  std::map<std::uint32_t, double> slow_cards() const;
  std::vector<PeerAddress> peers() const;
  void check_silence(Time now);
  void take_back();
  // Epochs.
  Incident& incident(const std::string& what);
  void consequence(const std::string& what);
  void replan(const std::string& why);
  void load_all();
  void on_loaded(const std::string& which, std::uint64_t epoch, const PlanLoaded& loaded);
  void spawn_stages();
  void become_ready();
  void starve(const std::string& why);
  void fail(Failure failure);
  void publish();
  // Requests.
  void start_requests();
  void start_attempt(Request& request);
  void end_attempts();
  void attach(Request& request, const Submit& submit);
  void detach(Request& request);
  void interrupted(Request& request, const Failure& failure, const std::vector<std::uint32_t>& suspects);
  void finish(Request& request, RequestOutcome outcome, const Failure& failure);
  void end_request(Request& request, const Failure& failure);
  void tell(const Request& request, const RequestEvent& event);
  void tell_all(const std::string& notice);
  void drop(std::uint64_t request);
  Request* find_request(const std::string& id);
  bool attempts_running() const;
  void check_times(Time now);
  Status write(const std::function<Status(Journal&)>& change);
  void later(std::function<Status(Journal&)> change);
  void journal_incidents();
  void trace_epoch() const;
  ClusterRoutes routes() const;

  caf::stateful_actor<CoordinatorState>* self_ = nullptr;
  CoordinatorSetup setup_;
  topology::Plan plan_;
  std::uint64_t cluster_id_ = 0, term_ = 0;
  std::uint64_t epoch_ = 0;
  Coordinator::Phase phase_ = Coordinator::Phase::waiting;
  bool was_ready_ = false;  // Once, in this life or a former one: a missing node is then not waited for.
  Failure failure_;
  std::string waiting_for_;
  std::map<std::string, Node> nodes_;  // By name: all of the cluster file.
  std::map<std::uint32_t, CardCondition> cards_;
  std::map<topology::StageKind, caf::actor> stages_;
  std::map<std::uint64_t, Request> requests_;
  std::deque<Incident> incidents_;
  std::optional<Time> replan_at_;   // A failure without a known cause: something will be found to be dead until then.
  std::string replan_why_;
  bool take_back_ = false;          // Cards have come back: at the next step boundary.
  std::string take_back_why_;
  std::uint32_t spawn_failures_ = 0;
  std::uint64_t round_ = 0;
  Time ticked_{}, started_{};
  std::deque<std::function<Status(Journal&)>> unwritten_;  // What the disk did not take.
  std::string journal_trouble_;
  Time epoch_began_{};  // In this life; for traces.
};

caf::behavior coordinator_actor(caf::stateful_actor<CoordinatorState>* self, CoordinatorSetup setup);

struct Coordinator::State {
  Control* control = nullptr;
  Board<CoordinatorBoard> board;
  SteadyClock clock;
  std::unique_ptr<FaultyStorage> disk;  // With allow_faults; below the journal.
  std::unique_ptr<FaultSwitch> faults;
  caf::actor actor;
  std::uint64_t cluster_id = 0, term = 0;
  std::uint16_t port = 0;
};

}  // namespace orrery::actors
