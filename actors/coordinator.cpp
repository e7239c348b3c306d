#include "actors/coordinator.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "actors/coordinator_actor.hpp"
#include "actors/edges.hpp"
#include "actors/request_check.hpp"
#include "base/fault_point.hpp"
#include "base/log.hpp"
#include "base/trace.hpp"
#include "topology/plan_text.hpp"

namespace orrery::actors {

using topology::StageKind;

namespace {

// A coordinator that comes back plans without the nodes that have not come back by then.
constexpr Duration rejoin_grace = std::chrono::milliseconds(1200);
// A node that loads tells each piece of a weight that it has read.
constexpr Duration load_patience = std::chrono::seconds(10);
// A card or link that failed although its process lives is tried again after this, doubling.
constexpr Duration retry_first = std::chrono::seconds(2);
constexpr Duration retry_max = std::chrono::seconds(60);
// Later steps of a straggler differ a little every time: no new plan for less than this.
constexpr double slowdown_change = 1.3;
constexpr std::size_t incidents_max = 256, consequences_max = 16;

Duration backoff(std::uint32_t times) { return std::min(retry_max, retry_first * (1U << std::min(times, 5U))); }

}  // namespace

caf::behavior coordinator_actor(caf::stateful_actor<CoordinatorState>* self, CoordinatorSetup setup) {
  auto& state = self->state;
  state.start(self, std::move(setup));
  return {
      [&state](const NodeHello& hello) { return state.on_hello(hello); },
      [&state](const LoadProgress& progress) { state.on_load_progress(progress); },
      [&state](const Pong& pong) { state.on_pong(pong); },
      [&state](const LinkSilent& report) { state.on_link_silent(report); },
      [&state](const NodeDied& report) { state.on_node_died(report); },
      [&state](const Straggler& report) { state.on_straggler(report); },
      [&state](const Tick&) { state.on_tick(); },
      [&state](const AskRoutes&) { return state.on_routes(); },
      [&state](const Submit& submit) { return state.on_submit(submit); },
      [&state](const Cancel& cancel) { return state.on_cancel(cancel); },
      [&state](const Fetched& fetched) { return state.on_fetched(fetched); },
      [&state](const RequestEvent& event) { state.on_request_event(event); },
      [&state](const AttemptEnded& attempt) { state.on_attempt_ended(attempt); },
      [&state](const AskStatus&) { return state.on_status(); },
      [&state](const FaultCommand& command) { return state.on_fault(command); },
      [&state](const AskTrace& ask) { return state.on_trace(ask); },
      [&state](const Shutdown& order) { state.on_shutdown(order); },
  };
}

void CoordinatorState::start(caf::stateful_actor<CoordinatorState>* self, CoordinatorSetup setup) {
  self_ = self;
  setup_ = std::move(setup);
  self->set_down_handler([this](const caf::down_msg& down) { on_down(down); });
  for (const auto& node : setup_.options.nodes) nodes_[node];
  cluster_id_ = setup_.journal->cluster_id();
  term_ = setup_.journal->term();
  epoch_ = setup_.journal->epoch();
  was_ready_ = epoch_ > 0;
  started_ = ticked_ = setup_.clock->now();
  auto live = setup_.journal->live_requests();
  if (!live.ok()) return fail(live.error());
  for (auto& journaled : live.value()) {
    auto spec = request_spec_from(journaled.spec);
    if (!spec.ok()) return fail(Error{ErrorCode::journal_damaged, "request " + journaled.id + " in " + setup_.journal->path() + ": " + spec.error().message});
    auto& request = requests_[journaled.number];
    request.id = journaled.id;
    request.number = journaled.number;
    request.spec = std::move(spec).value();
    request.outcome = journaled.outcome;
    request.details = journaled.details;
    request.started = started_;
    if (journaled.deadline_at > 0) {
      const auto left = std::max(0.0, journaled.deadline_at - setup_.wall_seconds());
      request.deadline = started_ + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(left));
    }
    if (journaled.outcome == RequestOutcome::completed) {
      request.state = Request::State::closed;
      request.finished = started_;
    }
  }
  if (!requests_.empty())
    log_event(Level::info, "journal.read", {{"requests", requests_.size()}, {"epoch", epoch_}, {"term", term_}});
  publish();
  self_->send(self_, Tick{});
}

void CoordinatorState::publish() {
  setup_.board->update([&](CoordinatorBoard& board) {
    board.phase = phase_;
    board.failure = failure_;
  });
}

void CoordinatorState::fail(Failure failure) {
  if (phase_ == Coordinator::Phase::failed || phase_ == Coordinator::Phase::ended) return;
  phase_ = Coordinator::Phase::failed;
  failure_ = std::move(failure);
  end_attempts();
  for (auto& [number, request] : requests_)
    if (request.state != Request::State::closed) {
      RequestEvent event;
      event.request = number;
      event.kind = static_cast<std::uint8_t>(EventKind::failed);
      event.failure = failure_;
      tell(request, event);
    }
  publish();
}

// ---- the clock --------------------------------------------------------------------------------------------------

void CoordinatorState::on_tick() {
  const auto& resilience = setup_.options.resilience;
  self_->delayed_send(self_, resilience.heartbeat_interval, Tick{});
  const auto now = setup_.clock->now();
  // When this process was itself held up (a suspended laptop, a debugger), nobody else is to blame for the silence.
  const auto gap = now - ticked_;
  ticked_ = now;
  if (gap > 3 * resilience.heartbeat_interval)
    for (auto& [which, node] : nodes_) node.last_heard += gap;
  if (phase_ == Coordinator::Phase::failed || phase_ == Coordinator::Phase::ended) return;
  check_silence(now);
  ++round_;
  for (const auto& [which, node] : nodes_)
    if (node.state == Node::State::up) self_->send(node.hello.node, Ping{round_});
  check_times(now);
  while (!unwritten_.empty()) {
    if (!write(unwritten_.front()).ok()) break;
    unwritten_.pop_front();
  }
  journal_incidents();
  // A card that hangs while it loads: its node lives, and nothing comes of it.
  if (phase_ == Coordinator::Phase::loading && was_ready_)
    for (const auto& [which, node] : nodes_) {
      if (!in_epoch(node) || node.loaded_epoch == epoch_ || now - node.progress_at < load_patience) continue;
      const auto why = "node " + which + " has not gone on with its plan for " + std::to_string(load_patience / std::chrono::seconds(1)) + " s";
      auto& entry = incident(why);
      entry.node = which;
      entry.detected = seconds_of(now - node.progress_at);
      leave_out(which, why);
      replan(why);
      break;
    }
  // After a restart: whoever has not come back by now is not waited for.
  const bool some = std::any_of(nodes_.begin(), nodes_.end(), [](const auto& each) { return each.second.usable(); });
  if (phase_ == Coordinator::Phase::waiting && was_ready_ && some && now - started_ > rejoin_grace) first_epoch();
  if (replan_at_ && now >= *replan_at_) replan(replan_why_);
  if (take_back_ && (phase_ == Coordinator::Phase::starved || (phase_ == Coordinator::Phase::ready && !attempts_running()))) take_back();
}

void CoordinatorState::check_silence(Time now) {
  const auto limit = setup_.options.resilience.heartbeat_timeout;
  std::vector<std::pair<std::string, Duration>> silent;
  for (const auto& [which, node] : nodes_)
    if (node.state == Node::State::up && now - node.last_heard > limit) silent.emplace_back(which, now - node.last_heard);
  for (const auto& [which, silence] : silent)
    node_lost(which, "was silent for " + std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(silence).count()) + " ms",
              seconds_of(silence));
}

void CoordinatorState::check_times(Time now) {
  for (auto& [which, node] : nodes_)
    if (node.retry_at && now >= *node.retry_at) {
      node.retry_at.reset();
      take_back_ = true;
      take_back_why_ = "node " + which + " is tried again";
    }
  for (auto& [card, condition] : cards_)
    if (condition.retry_at && now >= *condition.retry_at) {
      condition.retry_at.reset();
      take_back_ = true;
      take_back_why_ = "card " + setup_.options.plan.card_name(card) + " is tried again";
    }
  for (auto& [card, condition] : cards_)
    if (condition.slowdown > 1 && now >= condition.slow_until) {
      condition.slowdown = 1;
      take_back_ = true;
      take_back_why_ = "card " + setup_.options.plan.card_name(card) + " is given its full share again";
    }
  std::vector<std::uint64_t> overdue, expired;
  for (const auto& [number, request] : requests_) {
    if (request.state != Request::State::closed && request.outcome == RequestOutcome::open && request.deadline && now >= *request.deadline && !request.ending)
      overdue.push_back(number);
    const auto ttl = setup_.options.resilience.result_ttl;
    if (request.outcome == RequestOutcome::completed && !request.client && request.finished && now - *request.finished > ttl) expired.push_back(number);
    // Whose client never came back: finished but for the frames.
    if (request.state == Request::State::parked && request.finished && now - *request.finished > ttl) expired.push_back(number);
  }
  for (const auto number : overdue) {
    auto& request = requests_.at(number);
    end_request(request, Error{ErrorCode::timed_out, "request " + std::to_string(number) + " was not done before its deadline of " +
                                                         std::to_string(static_cast<long>(std::ceil(request.spec.deadline_seconds))) + " s"});
  }
  for (const auto number : expired) {
    auto& request = requests_.at(number);
    const Failure why = Error{ErrorCode::not_found, "nobody fetched the video of request " + std::to_string(number) + " in time", "raise admission.keep_results"};
    if (request.state == Request::State::closed) {
      request.outcome = RequestOutcome::expired;
      const auto wall = setup_.wall_seconds();
      later([number, why, wall](Journal& journal) { return journal.finish(number, RequestOutcome::expired, why.code, why.message, "", wall); });
      drop(number);
    } else {
      finish(request, RequestOutcome::expired, why);
    }
  }
}

// ---- membership -------------------------------------------------------------------------------------------------

NodeWelcome CoordinatorState::on_hello(const NodeHello& hello) {
  const auto refuse = [&](ErrorCode code, const std::string& why) {
    NodeWelcome answer;
    answer.failure = Error{code, why};
    return answer;
  };
  if (hello.version != control_version)
    return refuse(ErrorCode::version_mismatch, "node " + hello.name + " speaks control version " + std::to_string(hello.version) +
                                                   ", this coordinator " + std::to_string(control_version));
  if (hello.cluster_id != cluster_id_)
    return refuse(ErrorCode::version_mismatch, "node " + hello.name + " belongs to another cluster");
  const auto found = nodes_.find(hello.name);
  if (found == nodes_.end()) return refuse(ErrorCode::invalid_config, "the cluster has no node named " + hello.name);
  const auto number = std::find(setup_.options.nodes.begin(), setup_.options.nodes.end(), hello.name) - setup_.options.nodes.begin() + 1;
  if (hello.peer != static_cast<std::uint32_t>(number))
    return refuse(ErrorCode::invalid_config, "node " + hello.name + " has number " + std::to_string(number) + " on the data plane, not " +
                                                 std::to_string(hello.peer));
  if (phase_ == Coordinator::Phase::failed || phase_ == Coordinator::Phase::ended) return refuse(ErrorCode::cancelled, "the cluster is ending");
  auto& node = found->second;
  if (node.state == Node::State::up) {
    if (node.hello.session == hello.session && node.hello.node == hello.node) {
      node.last_heard = setup_.clock->now();
      if (hello.epoch <= epoch_ && node.loaded_epoch != 0) return {};
    } else {
      node_lost(hello.name, "was started again", 0);
    }
  }
  node.state = Node::State::up;
  node.why.clear();
  node.hello = hello;
  node.loaded_epoch = 0;
  node.last_heard = setup_.clock->now();
  node.bytes_done = node.bytes_total = 0;
  node.kept.clear();
  // A journal that was lost or copied: never reuse an epoch that nodes have seen.
  epoch_ = std::max(epoch_, hello.epoch);
  self_->monitor(hello.node);
  if (phase_ == Coordinator::Phase::waiting) {
    const bool all = std::all_of(nodes_.begin(), nodes_.end(), [](const auto& each) {
      return each.second.usable() || each.second.state == Node::State::quarantined;
    });
    if (all) first_epoch();
  } else {
    take_back_ = true;
    take_back_why_ = "node " + hello.name + " came back";
  }
  publish();
  return {};
}

void CoordinatorState::first_epoch() {
  if (!was_ready_) return replan("the cluster starts");
  auto& entry = incident("the coordinator was started again");
  entry.at = started_;
  entry.detected = 0;
  replan(entry.what);
}

void CoordinatorState::on_pong(const Pong& pong) {
  const auto found = nodes_.find(pong.node);
  if (found == nodes_.end() || found->second.hello.session != pong.session) return;
  auto& node = found->second;
  if (node.state == Node::State::up) node.last_heard = setup_.clock->now();
}

void CoordinatorState::on_down(const caf::down_msg& down) {
  if (phase_ == Coordinator::Phase::ended || phase_ == Coordinator::Phase::failed) return;
  for (auto& [which, node] : nodes_) {
    if (node.state != Node::State::up || node.hello.node.address() != down.source) continue;
    return node_lost(which, "was lost: its connection broke", seconds_of(setup_.clock->now() - node.last_heard));
  }
  for (auto& [number, request] : requests_)
    if (request.client && request.client.address() == down.source) detach(request);
}

void CoordinatorState::on_node_died(const NodeDied& report) {
  const auto found = nodes_.find(report.node);
  if (found == nodes_.end()) return;
  auto& node = found->second;
  // The report of a death may come after its successor's greeting.
  if (node.state == Node::State::up && report.pid != 0 && node.hello.pid != report.pid) return;
  if (node.state == Node::State::up) node_lost(report.node, report.how, seconds_of(setup_.clock->now() - node.last_heard));
  if (!node.why.empty() && node.why != report.how) node.why = report.how;
  if (report.quarantined) {
    node.state = Node::State::quarantined;
    node.why = report.how;
    tell_all("node " + report.node + " is used no more: " + report.how);
    const bool all = std::all_of(nodes_.begin(), nodes_.end(), [](const auto& each) {
      return each.second.usable() || each.second.state == Node::State::quarantined;
    });
    if (phase_ == Coordinator::Phase::waiting && was_ready_ && all) replan("node " + report.node + " is used no more");
  }
}

void CoordinatorState::node_lost(const std::string& which, const std::string& why, double detected) {
  auto& node = nodes_.at(which);
  node.state = Node::State::lost;
  node.why = why;
  node.loaded_epoch = 0;
  node.kept.clear();
  self_->demonitor(node.hello.node);
  // If it lives after all (it was stopped, or its link was cut), it hears this when it can hear again.
  self_->send(node.hello.node, Rejoin{"node " + which + " " + why});
  auto& entry = incident("node " + which + " " + why);
  entry.node = which;
  entry.detected = detected;
  log_event(Level::warn, "node.lost", {{"node", which}, {"why", why}, {"epoch", epoch_}});
  if (!was_ready_) {
    // Before the first plan is loaded everybody is waited for.
    phase_ = Coordinator::Phase::waiting;
    return publish();
  }
  if (phase_ != Coordinator::Phase::waiting) replan("node " + which + " " + why);
}

void CoordinatorState::leave_out(const std::string& which, const std::string& why) {
  auto& node = nodes_.at(which);
  node.retry_at = setup_.clock->now() + backoff(node.times_left_out++);
  node.why = why;
}

void CoordinatorState::on_link_silent(const LinkSilent& report) {
  if (report.epoch != epoch_ || phase_ != Coordinator::Phase::ready) return;
  const auto from = nodes_.find(report.node), to = nodes_.find(report.peer);
  if (from == nodes_.end() || to == nodes_.end() || !in_epoch(from->second) || !in_epoch(to->second)) return;
  const auto now = setup_.clock->now();
  // Whoever is silent for us, too, is about to be counted as lost.
  const auto recent = 3 * setup_.options.resilience.heartbeat_interval;
  if (now - from->second.last_heard > recent || now - to->second.last_heard > recent) return;
  // Both live: the link between them does not. The one with fewer cards in the plan has to go.
  const auto used = [&](const std::string& which) {
    std::set<std::uint32_t> cards;
    for (const auto& stage : plan_.stages)
      for (const auto& group : stage.groups)
        for (const auto& rank : group.ranks)
          if (plan_.cards[rank.card].node == which) cards.insert(rank.card);
    return cards.size();
  };
  const auto& victim = used(report.node) < used(report.peer) || (used(report.node) == used(report.peer) && report.node > report.peer) ? report.node : report.peer;
  const auto why = "nodes " + report.node + " and " + report.peer + " do not hear each other: " + report.node + " waited " +
                   std::to_string(static_cast<int>(report.seconds * 1000)) + " ms for " + report.waiting_for;
  auto& entry = incident(why);
  entry.node = victim;
  entry.detected = report.seconds;
  leave_out(victim, why);
  replan(why);
}

bool CoordinatorState::suspect(std::uint32_t card, const std::string& why) {
  if (card >= setup_.options.plan.cards.size()) return false;
  const auto& resilience = setup_.options.resilience;
  auto& condition = cards_[card];
  const auto now = setup_.clock->now();
  condition.failures.push_back(now);
  while (!condition.failures.empty() && now - condition.failures.front() > resilience.restarts_within) condition.failures.pop_front();
  condition.why = why;
  condition.retry_at = now + backoff(static_cast<std::uint32_t>(condition.failures.size()) - 1);
  if (condition.failures.size() > resilience.restarts_max && !condition.quarantined) {
    condition.quarantined = true;
    const auto text = "card " + setup_.options.plan.card_name(card) + " failed " + std::to_string(condition.failures.size()) + " times within " +
                      std::to_string(static_cast<int>(seconds_of(resilience.restarts_within))) + " s and is used no more";
    log_event(Level::error, "card.quarantined", {{"card", setup_.options.plan.card_name(card)}, {"why", why}});
    tell_all(text);
  }
  return true;
}

void CoordinatorState::on_straggler(const Straggler& report) {
  if (report.epoch != epoch_ || phase_ != Coordinator::Phase::ready || report.card >= plan_.cards.size()) return;
  auto& condition = cards_[report.card];
  const auto slowdown = condition.slowdown * report.factor;
  if (slowdown < condition.slowdown * slowdown_change) return;
  condition.slowdown = std::min(slowdown, 100.0);
  condition.slow_until = setup_.clock->now() + retry_max;
  auto changed = setup_.options.plan_without(lost_cards(), slow_cards());
  if (!changed.ok() || changed.value().digest() == plan_.digest()) return;
  auto& entry = incident("card " + plan_.card_name(report.card) + " takes " + std::to_string(condition.slowdown).substr(0, 4) + " times as long as the others");
  entry.card = plan_.card_name(report.card);
  entry.node = plan_.cards[report.card].node;
  entry.detected = 0;
  replan(entry.what);
}

std::set<std::uint32_t> CoordinatorState::lost_cards() const {
  std::set<std::uint32_t> lost;
  const auto& cards = setup_.options.plan.cards;
  for (std::uint32_t card = 0; card < cards.size(); ++card) {
    const auto condition = cards_.find(card);
    const bool suspected = condition != cards_.end() && (condition->second.quarantined || condition->second.retry_at);
    if (suspected || !nodes_.at(cards[card].node).usable()) lost.insert(card);
  }
  // As many spares as cards are lost step in, in order; the others stay spares.
  std::size_t needed = 0;
  for (const auto card : lost) needed += setup_.options.spares.contains(card) ? 0 : 1;
  std::set<std::uint32_t> unused = lost;
  for (const auto spare : setup_.options.spares) {
    if (lost.contains(spare)) continue;
    if (needed > 0)
      --needed;
    else
      unused.insert(spare);
  }
  return unused;
}

std::map<std::uint32_t, double> CoordinatorState::slow_cards() const {
  std::map<std::uint32_t, double> slow;
  for (const auto& [card, condition] : cards_)
    if (condition.slowdown > 1) slow[card] = condition.slowdown;
  return slow;
}

std::vector<PeerAddress> CoordinatorState::peers() const {
  std::vector<PeerAddress> all;
  for (const auto& which : setup_.options.nodes) {
    const auto& node = nodes_.at(which);
    if (in_epoch(node)) all.push_back({which, node.hello.control_host, node.hello.control_port, node.hello.peer, node.hello.data_address});
  }
  return all;
}

void CoordinatorState::take_back() {
  take_back_ = false;
  const auto why = take_back_why_;
  auto better = setup_.options.plan_without(lost_cards(), slow_cards());
  if (phase_ == Coordinator::Phase::ready && better.ok() && better.value().digest() == plan_.digest()) {
    // The plan stays; a node that came back empty joins in all the same when it has a part in it.
    bool all_there = true;
    for (const auto& stage : plan_.stages)
      for (const auto& group : stage.groups)
        for (const auto& rank : group.ranks) all_there = all_there && nodes_.at(plan_.cards[rank.card].node).loaded_epoch == epoch_;
    if (all_there) return;
  }
  if (!better.ok() && phase_ == Coordinator::Phase::starved) {
    waiting_for_ = better.error().message;
    return;
  }
  auto& entry = incident(why);
  entry.detected = 0;
  replan(why);
}

// ---- epochs -----------------------------------------------------------------------------------------------------

CoordinatorState::Incident& CoordinatorState::incident(const std::string& what) {
  journal_incidents();
  Incident entry;
  entry.at = setup_.clock->now();
  entry.wall = setup_.wall_seconds();
  entry.what = what;
  trace::instant(trace::track("incidents"), trace::Category::incident, "incident", {0, trace::no_step, 0, what});
  incidents_.push_back(std::move(entry));
  if (incidents_.size() > incidents_max) incidents_.pop_front();
  return incidents_.back();
}

void CoordinatorState::consequence(const std::string& what) {
  if (incidents_.empty()) return;
  auto& all = incidents_.back().consequences;
  if (all.size() < consequences_max) all.push_back(what);
}

void CoordinatorState::replan(const std::string& why) {
  if (phase_ == Coordinator::Phase::failed || phase_ == Coordinator::Phase::ended) return;
  replan_at_.reset();
  take_back_ = false;
  end_attempts();
  stages_.clear();
  // Fenced when the journal says so: nobody is told of an epoch that a restarted coordinator might use again.
  auto next = epoch_ + 1;
  const auto begin = [&](Journal& journal) {
    next = std::max(next, journal.epoch() + 1);  // After a failed sync: what was refused may be on the disk all the same.
    return journal.begin_epoch(next, why);
  };
  if (auto status = write(begin); !status.ok()) {
    if (status.error().code == ErrorCode::stale_epoch) return fail(status.error());
    phase_ = Coordinator::Phase::starved;
    waiting_for_ = status.error().message;
    replan_at_ = setup_.clock->now() + std::chrono::milliseconds(500);
    replan_why_ = why;
    return publish();
  }
  if (trace::enabled()) trace_epoch();
  epoch_ = next;
  epoch_began_ = setup_.clock->now();
  trace::instant(trace::track("epochs"), trace::Category::epoch, "new epoch", {0, trace::no_step, 0, "epoch " + std::to_string(epoch_) + ": " + why});
  for (auto& [which, node] : nodes_) node.loaded_epoch = 0;
  const auto lap = [&](double Incident::*member) {
    if (!incidents_.empty() && incidents_.back().*member < 0 && incidents_.back().resumed < 0)
      incidents_.back().*member = seconds_of(setup_.clock->now() - incidents_.back().at);
  };
  if (!incidents_.empty() && incidents_.back().epoch == 0) incidents_.back().epoch = epoch_;
  lap(&Incident::fenced);
  auto planned = setup_.options.plan_without(lost_cards(), slow_cards());
  if (!planned.ok()) return starve(planned.error().message);
  plan_ = std::move(planned).value();
  lap(&Incident::planned);
  log_event(Level::info, "epoch.begins", {{"epoch", epoch_}, {"why", why}, {"lost_cards", lost_cards().size()}});
  load_all();
}

void CoordinatorState::starve(const std::string& why) {
  phase_ = Coordinator::Phase::starved;
  waiting_for_ = why;
  log_event(Level::warn, "cluster.waits", {{"epoch", epoch_}, {"why", why}});
  tell_all("waiting for cards: " + why);
  if (!was_ready_) return fail(Error{ErrorCode::no_feasible_plan, why});
  publish();
}

void CoordinatorState::load_all() {
  ORRERY_FAULT_POINT("coordinator.before_load");
  phase_ = Coordinator::Phase::loading;
  waiting_for_.clear();
  const auto& options = setup_.options;
  for (auto& [which, node] : nodes_) node.ordered_epoch = node.usable() ? epoch_ : 0;
  LoadPlan order;
  order.epoch = epoch_;
  order.plan = topology::json_of(plan_).dump();
  order.model_folder = options.model_folder;
  order.dtype = options.dtype;
  order.peers = peers();
  order.coordinator = caf::actor_cast<caf::actor>(self_);
  // A collective waits for the slowest card's compute before it: a multiple of the predicted step, until times were
  // measured. Dead nodes are noticed by their connection long before.
  double step_seconds = 0;
  for (const auto& stage : plan_.predicted) step_seconds = std::max(step_seconds, stage.total_seconds());
  order.collective_deadline_seconds = std::max(10.0, 20 * step_seconds);
  order.guardrail_folders = options.guardrail_folders;
  order.queue_max = options.max_queue;
  order.straggler_factor = options.resilience.straggler_factor;
  order.straggler_steps = options.resilience.straggler_steps;
  for (auto& [node_name, node] : nodes_) {
    if (!in_epoch(node)) continue;
    node.bytes_done = node.bytes_total = 0;
    node.progress_at = setup_.clock->now();
    self_->request(node.hello.node, caf::infinite, order)
        .then([this, which = node_name, epoch = epoch_](const PlanLoaded& loaded) { on_loaded(which, epoch, loaded); },
              [](const caf::error&) {});  // The node is gone; its monitor says so.
  }
  publish();
}

void CoordinatorState::on_loaded(const std::string& which, std::uint64_t epoch, const PlanLoaded& loaded) {
  if (epoch != epoch_ || phase_ != Coordinator::Phase::loading) return;
  auto& node = nodes_.at(which);
  if (!in_epoch(node)) return;
  if (!loaded.failure.ok()) {
    auto failure = loaded.failure;
    failure.message = "node " + which + ": " + failure.message;
    if (!was_ready_ && static_cast<ErrorCode>(failure.code) != ErrorCode::peer_lost) return fail(failure);
    auto& entry = incident(failure.message);
    entry.node = which;
    entry.detected = 0;
    leave_out(which, failure.message);
    return replan(failure.message);
  }
  node.loaded_epoch = epoch;
  node.numerics = loaded.numerics;
  node.kept = loaded.kept;
  if (!incidents_.empty() && incidents_.back().resumed < 0) incidents_.back().bytes_read += loaded.bytes_read;
  for (const auto& [other, state] : nodes_)
    if (in_epoch(state) && state.loaded_epoch == epoch_ && state.numerics != node.numerics)
      return fail(Error{ErrorCode::numerics_mismatch,
                        "nodes " + which + " (" + node.numerics + ") and " + other + " (" + state.numerics +
                            ") belong to different numerics classes, so a video's bytes would depend on the placement",
                        "use hosts with the same instruction set and libraries in one cluster"});
  const bool all = std::all_of(nodes_.begin(), nodes_.end(),
                               [&](const auto& each) { return !in_epoch(each.second) || each.second.loaded_epoch == epoch_; });
  if (!all) return;
  if (!incidents_.empty() && incidents_.back().loaded < 0)
    incidents_.back().loaded = seconds_of(setup_.clock->now() - incidents_.back().at);
  spawn_stages();
}

void CoordinatorState::on_load_progress(const LoadProgress& progress) {
  const auto found = nodes_.find(progress.node);
  if (found == nodes_.end()) return;
  if (progress.bytes_done != found->second.bytes_done) found->second.progress_at = setup_.clock->now();
  found->second.bytes_done = progress.bytes_done;
  found->second.bytes_total = progress.bytes_total;
}

void CoordinatorState::spawn_stages() {
  for (const auto& stage : plan_.stages) {
    const auto& first = plan_.cards[stage.groups[0].ranks[0].card];
    SpawnStage order;
    order.stage = static_cast<std::uint8_t>(stage.kind);
    order.epoch = epoch_;
    const auto failed = [this, epoch = epoch_](const Failure& failure) {
      if (epoch != epoch_ || phase_ != Coordinator::Phase::loading) return;
      if (!was_ready_ || ++spawn_failures_ > tries_max) return fail(failure);
      auto& entry = incident(failure.message);
      entry.detected = 0;
      replan_at_ = setup_.clock->now() + std::chrono::milliseconds(300);
      replan_why_ = failure.message;
    };
    self_->request(nodes_.at(first.node).hello.node, std::chrono::seconds(15), order)
        .then(
            [this, failed, kind = stage.kind, epoch = epoch_](const StageSpawned& spawned) {
              if (epoch != epoch_ || phase_ != Coordinator::Phase::loading) return;
              if (!spawned.failure.ok()) return failed(spawned.failure);
              if (spawned.stage.empty()) return failed(Error{ErrorCode::internal, "a node answered without a stage"});
              stages_[kind] = spawned.stage.front();
              if (stages_.size() == plan_.stages.size()) become_ready();
            },
            [this, failed, kind = stage.kind](const caf::error& error) {
              failed(error_of(self_->system(), error, "stage " + std::string(topology::name_of(kind)) + " did not start"));
            });
  }
}

void CoordinatorState::become_ready() {
  phase_ = Coordinator::Phase::ready;
  was_ready_ = true;
  spawn_failures_ = 0;
  log_event(Level::info, "cluster.ready", {{"epoch", epoch_}});
  if (trace::enabled() && epoch_began_ != Time{})
    trace::complete(trace::track("epochs"), trace::Category::epoch, "plan and load", epoch_began_, setup_.clock->now());
  // What nobody will ask for any more.
  std::set<std::uint64_t> stale;
  for (const auto& [which, node] : nodes_)
    for (const auto& item : node.kept) {
      const auto request = requests_.find(item.request);
      const bool wanted = request != requests_.end() && (request->second.state != Request::State::closed || request->second.outcome == RequestOutcome::completed);
      if (!wanted) stale.insert(item.request);
    }
  for (const auto number : stale) drop(number);
  const auto where = routes();
  for (auto& [number, request] : requests_)
    if (request.client) self_->send(request.client, where);
  publish();
  start_requests();
  if (!attempts_running() && !incidents_.empty() && incidents_.back().resumed < 0)
    incidents_.back().resumed = seconds_of(setup_.clock->now() - incidents_.back().at);
}

// ---- the journal ------------------------------------------------------------------------------------------------

Status CoordinatorState::write(const std::function<Status(Journal&)>& change) {
  const auto attempt = [&]() -> Status {
    if (!setup_.journal) {
      ORRERY_TRY(again, setup_.open_journal());
      setup_.journal = std::move(again);
    }
    return change(*setup_.journal);
  };
  auto status = attempt();
  if (!status.ok() && status.error().code == ErrorCode::journal_failed) {
    // After a failed sync nobody knows what is on the disk: only reading it again helps.
    setup_.journal.reset();
    status = attempt();
  }
  journal_trouble_ = status.ok() ? "" : status.error().message;
  return status;
}

void CoordinatorState::later(std::function<Status(Journal&)> change) {
  if (unwritten_.empty() && write(change).ok()) return;
  unwritten_.push_back(std::move(change));
}

void CoordinatorState::journal_incidents() {
  for (auto& entry : incidents_) {
    if (entry.journaled || entry.resumed < 0) continue;
    entry.journaled = true;
    const auto resumed = entry.at + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(entry.resumed));
    trace::complete(trace::track("incidents"), trace::Category::incident, "until work goes on", entry.at, resumed, {0, trace::no_step, 0, entry.what});
    OrderedJson json{{"at", entry.wall}, {"epoch", entry.epoch}, {"what", entry.what}, {"resumed_ms", entry.resumed * 1000}};
    // For people, later; a full disk must not stop the cluster for it.
    if (setup_.journal)
      static_cast<void>(setup_.journal->note_incident(json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace), entry.wall));
  }
}

// ---- outside ----------------------------------------------------------------------------------------------------

Coordinator::Coordinator(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<Coordinator>> Coordinator::start(Control& control, CoordinatorOptions options) {
  ORRERY_TRY(model, compiler::open_model_folder(options.model_folder));
  ORRERY_TRY_DONE(check_whole(model));
  std::error_code failed;
  std::filesystem::create_directories(options.state_folder, failed);
  if (failed) return Error{ErrorCode::io_failed, "cannot make " + options.state_folder + ": " + failed.message()};
  JournalOptions journal_options;
  journal_options.folder = options.state_folder;
  auto state = std::make_unique<State>();
  if (options.allow_faults) {
    state->disk = std::make_unique<FaultyStorage>();
    state->faults = std::make_unique<FaultSwitch>(state->clock);
    state->faults->bind_disk(&state->disk->faults());
    journal_options.storage = state->disk.get();
  }
  ORRERY_TRY(journal, Journal::open(journal_options));
  state->control = &control;
  state->cluster_id = journal->cluster_id();
  state->term = journal->term();
  CoordinatorSetup setup;
  setup.model = std::make_shared<const compiler::ModelFolder>(std::move(model));
  setup.board = &state->board;
  setup.faults = state->faults.get();
  setup.clock = &state->clock;
  setup.wall_seconds = [] { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); };
  setup.journal = std::move(journal);
  setup.open_journal = [journal_options]() -> Result<std::unique_ptr<Journal>> { return Journal::open(journal_options); };
  const auto host = options.listen_host;
  const auto wanted_port = options.listen_port;
  setup.options = std::move(options);
  state->actor = control.state().system.spawn(coordinator_actor, std::move(setup));
  std::unique_ptr<Coordinator> coordinator(new Coordinator(std::move(state)));
  ORRERY_TRY(port, publish(control.state().system, coordinator->state_->actor, host, wanted_port));
  coordinator->state_->port = port;
  return coordinator;
}

Coordinator::~Coordinator() {
  if (!state_->actor) return;
  caf::anon_send(state_->actor, Shutdown{"the coordinator ends"});
  end_actor(state_->control->state().system, std::exchange(state_->actor, nullptr));  // The board it writes to is ours.
}

std::uint16_t Coordinator::port() const { return state_->port; }
std::uint64_t Coordinator::cluster_id() const { return state_->cluster_id; }
std::uint64_t Coordinator::term() const { return state_->term; }

bool Coordinator::wait_for_end(Duration limit) {
  return state_->board.wait_for(limit, [](const CoordinatorBoard& board) { return board.end_asked || board.phase >= Phase::failed; });
}
Status Coordinator::outcome() const {
  const auto board = state_->board.get();
  if (!board.failure.ok()) return board.failure.error();
  return Done{};
}

std::string Coordinator::status() const {
  std::string text;
  caf::scoped_actor self{state_->control->state().system};
  self->request(state_->actor, std::chrono::seconds(5), AskStatus{})
      .receive([&](const StatusText& status) { text = status.json; }, [](const caf::error&) {});
  return text;
}

}  // namespace orrery::actors
