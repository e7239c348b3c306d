// What becomes of requests: accepted, attempted, interrupted and attempted again, delivered. See coordinator.hpp.

#include <algorithm>
#include <chrono>
#include <cmath>

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

// An attempt that failed for no known reason: what killed it will have been noticed by then.
constexpr Duration cause_grace = std::chrono::milliseconds(1000);
constexpr std::size_t requests_max = 256;

/// Failures of the request itself: another attempt would end the same way.
bool is_final(ErrorCode code) {
  switch (code) {
    case ErrorCode::usage:
    case ErrorCode::invalid_request:
    case ErrorCode::invalid_model:
    case ErrorCode::unsupported:
    case ErrorCode::refused_by_guardrail:
    case ErrorCode::card_memory_exhausted:
    case ErrorCode::numerics_mismatch: return true;
    default: return false;
  }
}

Duration duration_of(double seconds) { return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)); }

/// Stages and steps as the coordinator hears of them, on the request's own row of a trace. Steps lie within their stage
/// and one after the other, whatever the news took on its way.
void trace_progress(const RequestEvent& event, Time now, Time& stage_began, Time& step_ended) {
  const auto kind = static_cast<EventKind>(event.kind);
  if (kind == EventKind::stage_started) stage_began = step_ended = now;
  const auto before = step_ended;
  if (kind == EventKind::progress) step_ended = now;
  if (!trace::enabled()) return;
  const auto row = trace::track(trace::requests_track);
  trace::Details details;
  details.request = event.request;
  if (kind == EventKind::stage_done) trace::complete(row, trace::Category::stage, event.stage, stage_began, now, details);
  if (kind == EventKind::progress && event.done > 0) {
    details.step = static_cast<std::uint32_t>(event.done - 1);
    const auto begin = std::max(before, now - duration_of(event.seconds > 0 ? event.seconds : seconds_of(now - before)));
    trace::complete(row, trace::Category::step, event.stage + " " + std::to_string(event.done) + "/" + std::to_string(event.total), begin, now, details);
  }
}

std::string cards_text(std::size_t count) { return std::to_string(count) + (count == 1 ? " card" : " cards"); }

}  // namespace

ClusterRoutes CoordinatorState::on_routes() { return routes(); }

ClusterRoutes CoordinatorState::routes() const {
  const auto& options = setup_.options;
  ClusterRoutes routes;
  if (phase_ == Coordinator::Phase::failed) routes.failure = failure_;
  routes.cluster_id = cluster_id_;
  routes.cluster = options.cluster;
  routes.model = options.model_name;
  routes.model_folder = options.model_folder;
  routes.dtype = options.dtype;
  routes.defaults = options.defaults;
  routes.ready = phase_ == Coordinator::Phase::ready;
  if (!routes.ready) return routes;
  routes.epoch = epoch_;
  routes.plan_digest = plan_.digest();
  routes.peers = peers();
  for (const auto& card : plan_.cards) {
    const auto& node = nodes_.at(card.node);
    routes.card_peers.push_back(in_epoch(node) ? node.hello.peer : 0);
  }
  for (const auto& stage : plan_.stages)
    if (stage.kind == StageKind::denoiser)
      for (const auto& group : stage.groups)
        for (const auto& rank : group.ranks) routes.denoiser_cards.push_back(rank.card);
  routes.plan = topology::json_of(plan_).dump();
  for (const auto& [which, node] : nodes_)
    if (in_epoch(node)) routes.numerics = node.numerics;
  return routes;
}

CoordinatorState::Request* CoordinatorState::find_request(const std::string& id) {
  for (auto& [number, request] : requests_)
    if (request.id == id) return &request;
  return nullptr;
}

Submitted CoordinatorState::on_submit(const Submit& submit) {
  Submitted answer;
  const auto refuse = [&](const Error& error) {
    answer.failure = error;
    return answer;
  };
  if (phase_ == Coordinator::Phase::failed) return refuse(failure_.error());
  if (phase_ == Coordinator::Phase::ended) return refuse({ErrorCode::cancelled, "the cluster is ending"});
  const bool id_ok = submit.id.size() == 32 && submit.id.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!id_ok) return refuse({ErrorCode::invalid_request, "a request's id is 32 hex digits in lower case"});
  auto status = check_request(submit.spec, *setup_.model);
  if (status.ok() && submit.spec.noise_from_client) status = check_noise(submit.noise_shape, submit.spec, *setup_.model);
  if (!status.ok()) return refuse(status.error());
  const auto taken = std::any_of(requests_.begin(), requests_.end(), [&](const auto& each) {
    return each.second.client && each.second.client_endpoint == submit.client_endpoint && each.second.id != submit.id;
  });
  if (submit.client_endpoint < first_client_endpoint || taken)
    return refuse({ErrorCode::invalid_request, "the client's endpoint number is taken or out of range"});
  auto* request = find_request(submit.id);
  if (request == nullptr) {
    const auto open = static_cast<std::uint32_t>(
        std::count_if(requests_.begin(), requests_.end(), [](const auto& each) { return each.second.state != Request::State::closed; }));
    const auto room = setup_.options.max_in_flight + setup_.options.max_queue;
    bool known = false;
    status = write([&](Journal& journal) -> Status {
      ORRERY_TRY(found, journal.find(submit.id));
      known = found.has_value();
      return Done{};
    });
    if (!status.ok()) return refuse(status.error());
    if (open >= room && !known)
      return refuse({ErrorCode::pool_exhausted, std::to_string(open) + " requests are under way already", "try again later, or raise admission.max_queue"});
    const auto now = setup_.wall_seconds();
    auto spec = submit.spec;
    if (spec.deadline_seconds <= 0) spec.deadline_seconds = seconds_of(setup_.options.resilience.request_deadline);
    const auto text = json_of(spec).dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
    std::optional<Journal::Accepted> accepted;
    status = write([&](Journal& journal) -> Status {
      ORRERY_TRY(result, journal.accept(submit.id, text, now, spec.deadline_seconds > 0 ? now + spec.deadline_seconds : 0));
      accepted = std::move(result);
      return Done{};
    });
    if (!status.ok()) return refuse(status.error());
    const auto& journaled = accepted->request;
    request = &requests_[journaled.number];
    request->id = submit.id;
    request->number = journaled.number;
    request->spec = spec;
    request->outcome = journaled.outcome;
    request->details = journaled.details;
    request->started = setup_.clock->now();
    if (spec.deadline_seconds > 0)
      request->deadline = request->started + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(spec.deadline_seconds));
    if (!accepted->is_new && journaled.outcome != RequestOutcome::open) {
      request->state = Request::State::closed;
      request->failure = Error{static_cast<ErrorCode>(journaled.error_code), journaled.reason};
    }
  } else {
    auto same = submit.spec;
    same.deadline_seconds = request->spec.deadline_seconds;
    if (json_of(same) != json_of(request->spec))
      return refuse({ErrorCode::invalid_request, "request " + submit.id + " was submitted before, with other settings", "use another id, or none"});
  }
  if (request->outcome == RequestOutcome::delivered)
    return refuse({ErrorCode::not_found, "request " + submit.id + " was delivered already and is kept no longer", "use another id: the same prompt and seed give the same video"});
  answer.request = request->number;
  attach(*request, submit);
  start_requests();
  return answer;
}

void CoordinatorState::attach(Request& request, const Submit& submit) {
  if (request.client) self_->demonitor(request.client);
  request.client = submit.client;
  request.client_endpoint = submit.client_endpoint;
  request.client_data_address = submit.client_data_address;
  self_->monitor(submit.client);
  if (phase_ == Coordinator::Phase::ready) self_->send(request.client, routes());
  if (request.attempt) self_->send(request.attempt, ClientMoved{request.client_endpoint, request.client_data_address});
  if (request.state != Request::State::closed) {
    if (request.state == Request::State::parked) request.state = Request::State::queued;
    request.finished.reset();
    return;
  }
  if (request.outcome == RequestOutcome::completed) {
    request.state = Request::State::queued;  // Its latents are kept: the frames are made once more.
    return;
  }
  RequestEvent event;
  event.request = request.number;
  event.kind = static_cast<std::uint8_t>(EventKind::failed);
  event.failure = request.failure;
  if (event.failure.ok()) event.failure = Error{ErrorCode::cancelled, "request " + request.id + " was " + std::string(name_of(request.outcome))};
  tell(request, event);
}

// The request goes on without its client, up to where frames would be sent.
void CoordinatorState::detach(Request& request) {
  request.client = nullptr;
  request.client_endpoint = 0;
  for (const auto& [which, node] : nodes_)
    if (node.usable()) self_->send(node.hello.node, DropClient{request.number});
  if (request.outcome == RequestOutcome::completed) request.finished = setup_.clock->now();
  if (!request.attempt) return;
  self_->send(request.attempt, ClientMoved{});
  // In a decode there is nobody to send to: it is made again when the client is back.
  if (request.stage == topology::name_of(StageKind::decoder)) {
    request.client_left = true;
    self_->send(request.attempt, Cancel{request.number, ""});
  }
}

bool CoordinatorState::attempts_running() const {
  return std::any_of(requests_.begin(), requests_.end(), [](const auto& each) { return each.second.state == Request::State::running; });
}

void CoordinatorState::end_attempts() {
  for (auto& [number, request] : requests_) {
    if (request.attempt) self_->send_exit(request.attempt, caf::exit_reason::kill);
    request.attempt = nullptr;
    // Frames that are on their way end with the epoch: they are made once more.
    if (request.state == Request::State::closed && request.outcome == RequestOutcome::completed && request.client)
      request.state = Request::State::queued;
    if (request.state != Request::State::running) continue;
    request.state = Request::State::queued;
    ++request.interruptions;
    // What was cancelled need not be tried again.
    if (request.ending) finish(request, RequestOutcome::cancelled, *request.ending);
  }
}

void CoordinatorState::start_requests() {
  if (phase_ != Coordinator::Phase::ready || replan_at_) return;
  std::size_t running = 0;
  for (const auto& [number, request] : requests_) running += request.state == Request::State::running ? 1 : 0;
  for (auto& [number, request] : requests_) {
    if (running >= setup_.options.max_in_flight) return;
    if (request.state != Request::State::queued) continue;
    // What keepers have was asked when the epoch began, and the data plane may have forgotten the request.
    if (request.attempt_epoch == epoch_) return replan("the client of request " + std::to_string(number) + " came back");
    start_attempt(request);
    ++running;
  }
}

void CoordinatorState::start_attempt(Request& request) {
  RequestSetup attempt;
  attempt.epoch = epoch_;
  attempt.coordinator = caf::actor_cast<caf::actor>(self_);
  attempt.timings = request.timings;
  std::size_t denoiser = 0, decoder = 0;
  for (const auto& stage : plan_.stages) {
    if (stage.kind == StageKind::denoiser) denoiser = attempt.stages.size();
    if (stage.kind == StageKind::decoder) decoder = attempt.stages.size();
    attempt.stages.emplace_back(stage.kind, stages_.at(stage.kind));
  }
  auto& run = attempt.run;
  run.request = request.number;
  run.spec = request.spec;
  run.client_endpoint = request.client_endpoint;
  run.client_data_address = request.client_data_address;
  // Two keepers: the node of the card that sends, and the next one.
  const auto& first = plan_.cards[plan_.stage(StageKind::denoiser)->groups[0].ranks[0].card].node;
  const auto living = peers();
  for (std::size_t i = 0; i < living.size(); ++i)
    if (living[i].name == first) {
      run.keepers.push_back(first_keeper_endpoint + living[i].peer);
      if (living.size() > 1) run.keepers.push_back(first_keeper_endpoint + living[(i + 1) % living.size()].peer);
    }
  // Where to go on: the newest latents, and embeddings, that a living keeper has. Two that differ are both refused.
  const auto newest = [&](Edge edge) {
    std::pair<const Node*, KeptItem> best{nullptr, {}};
    for (const auto& [which, node] : nodes_) {
      if (!in_epoch(node)) continue;
      for (const auto& item : node.kept) {
        if (item.request != request.number || item.edge != static_cast<std::uint32_t>(edge)) continue;
        if (best.first != nullptr && item.step == best.second.step && item.digest != best.second.digest) {
          log_event(Level::error, "restart_point.differs", {{"request", request.number}, {"step", item.step}, {"edge", item.edge}});
          return std::pair<const Node*, KeptItem>{nullptr, {}};
        }
        if (best.first == nullptr || item.step > best.second.step) best = {&node, item};
      }
    }
    return best;
  };
  std::uint32_t resume_step = 0;
  // Saved tensors of former steps may not have arrived: all are sent again. The client's own noise comes once an epoch.
  if (!request.spec.save_tensors) {
    const auto prompt = newest(Edge::prompt_embeds), negative = newest(Edge::negative_prompt_embeds), latents = newest(Edge::restart_latents);
    const bool embeds = prompt.first != nullptr && (request.spec.guidance <= 1 || negative.first == prompt.first);
    if (latents.first != nullptr) {
      run.latents_keeper = first_keeper_endpoint + latents.first->hello.peer;
    }
    if (latents.first != nullptr && latents.second.step >= request.spec.steps) {
      attempt.at = decoder;
      resume_step = request.spec.steps;
    } else if (embeds) {
      attempt.at = denoiser;
      run.prompt_rows = prompt.second.rows;
      run.negative_rows = request.spec.guidance > 1 ? negative.second.rows : 0;
      run.embeds_keeper = first_keeper_endpoint + prompt.first->hello.peer;
      if (latents.first != nullptr) resume_step = latents.second.step;
      run.resume_step = resume_step;
    }
    if (attempt.at == 0 || resume_step == 0) {
      run.latents_keeper = 0;
    }
  }
  if (request.interruptions > 0 && !incidents_.empty() && request.outcome == RequestOutcome::open) {
    const auto repeated = request.steps_done > resume_step ? request.steps_done - resume_step : 0;
    request.steps_repeated += repeated;
    incidents_.back().steps_repeated = std::max(incidents_.back().steps_repeated, repeated);
    std::size_t cards = plan_.cards.size() - lost_cards().size();
    RequestEvent notice;
    notice.request = request.number;
    notice.kind = static_cast<std::uint8_t>(EventKind::notice);
    notice.details = incidents_.back().what + "; going on with " + cards_text(cards) +
                     (attempt.at == decoder ? " at the decoder" : resume_step > 0 ? " after step " + std::to_string(resume_step) : " from the start");
    tell(request, notice);
    request.steps_done = resume_step;
  }
  ORRERY_FAULT_POINT("coordinator.before_attempt");
  request.client_left = false;
  request.attempt_epoch = epoch_;
  request.state = Request::State::running;
  if (trace::enabled())
    trace::instant(trace::track(trace::requests_track), trace::Category::request, "attempt",
                   {request.number, trace::no_step, 0,
                    "epoch " + std::to_string(epoch_) + ", from " + (attempt.at == decoder ? "the decoder" : resume_step > 0 ? "step " + std::to_string(resume_step) : "the start")});
  request.attempt = self_->spawn(request_actor, std::move(attempt));
}

void CoordinatorState::on_request_event(const RequestEvent& event) {
  const auto found = requests_.find(event.request);
  if (found == requests_.end() || found->second.state != Request::State::running) return;
  auto& request = found->second;
  const auto kind = static_cast<EventKind>(event.kind);
  const bool denoising = event.stage == topology::name_of(StageKind::denoiser);
  if (!event.stage.empty() && event.stage != request.stage) {
    request.stage = event.stage;
    request.tries = 0;
  }
  request.done = event.done;
  request.total = event.total;
  trace_progress(event, setup_.clock->now(), request.stage_began, request.step_ended);
  // Kept here: an attempt that is interrupted later takes its account of finished stages along.
  if (kind == EventKind::stage_done && !event.details.empty())
    if (auto details = OrderedJson::parse(event.details, nullptr, false); !details.is_discarded()) request.timings[event.stage] = std::move(details);
  if (denoising && kind == EventKind::progress && event.done > request.steps_done) {
    request.steps_done = static_cast<std::uint32_t>(event.done);
    request.tries = 0;
  }
  if (kind == EventKind::progress && !incidents_.empty() && incidents_.back().resumed < 0)
    incidents_.back().resumed = seconds_of(setup_.clock->now() - incidents_.back().at);
  tell(request, event);
  // A step boundary: nothing is lost by a new plan now.
  if (take_back_ && phase_ == Coordinator::Phase::ready && denoising && kind == EventKind::progress) take_back();
}

void CoordinatorState::on_attempt_ended(const AttemptEnded& attempt) {
  const auto found = requests_.find(attempt.request);
  if (found == requests_.end()) return;
  auto& request = found->second;
  if (attempt.epoch != epoch_ || request.state != Request::State::running) {
    if (!attempt.failure.ok()) consequence(attempt.failure.message);
    return;
  }
  request.attempt = nullptr;
  auto stages = parse_json(attempt.stages, "stages");
  if (stages.ok())
    for (const auto& [stage, details] : stages.value().items()) request.timings[stage] = OrderedJson::parse(details.dump());
  const auto park = [&] {
    request.state = request.client ? Request::State::queued : Request::State::parked;
    request.finished = setup_.clock->now();
  };
  if (attempt.failure.ok() && !attempt.stage.empty()) {
    park();
  } else if (attempt.failure.ok()) {
    finish(request, RequestOutcome::completed, {});
  } else if (request.ending) {
    finish(request, RequestOutcome::cancelled, *request.ending);
  } else if (request.client_left) {
    park();
  } else if (is_final(static_cast<ErrorCode>(attempt.failure.code))) {
    finish(request, RequestOutcome::failed, attempt.failure);
  } else {
    interrupted(request, attempt.failure, attempt.suspects);
    return;
  }
  start_requests();
}

void CoordinatorState::interrupted(Request& request, const Failure& failure, const std::vector<std::uint32_t>& suspects) {
  request.state = Request::State::queued;
  ++request.interruptions;
  log_event(Level::warn, "request.interrupted", {{"request", request.number}, {"why", failure.message}});
  if (trace::enabled())
    trace::instant(trace::track(trace::requests_track), trace::Category::incident, "interrupted", {request.number, trace::no_step, 0, failure.message});
  if (++request.tries > tries_max)
    return finish(request, RequestOutcome::failed,
                  Error{static_cast<ErrorCode>(failure.code), "given up after " + std::to_string(tries_max) + " attempts without progress: " + failure.message,
                        failure.hint});
  if (!setup_.options.resilience.replan_on_loss) {
    finish(request, RequestOutcome::failed, failure);
  }
  bool known = false;
  std::string card, node;
  for (const auto each : suspects)
    if (suspect(each, failure.message)) {
      known = true;
      card = plan_.card_name(each);
      node = plan_.cards[each].node;
    }
  if (!known) {
    // Whatever it was will be found by its connection or its silence; else the same cards try again.
    if (!replan_at_) {
      replan_at_ = setup_.clock->now() + cause_grace;
      replan_why_ = failure.message;
    }
    return;
  }
  auto& entry = incident(failure.message);
  entry.card = card;
  entry.node = node;
  entry.detected = 0;
  replan(failure.message);
}

void CoordinatorState::finish(Request& request, RequestOutcome outcome, const Failure& failure) {
  const auto number = request.number;
  const bool again = request.outcome == RequestOutcome::completed;  // Its frames were made once more.
  if (again && outcome != RequestOutcome::completed) outcome = RequestOutcome::expired;  // What was completed can fail no more.
  request.state = Request::State::closed;
  request.attempt = nullptr;
  request.failure = failure;
  request.finished = setup_.clock->now();
  if (trace::enabled())
    trace::complete(trace::track(trace::requests_track), trace::Category::request, "request " + std::to_string(number), request.started, *request.finished,
                    {number, trace::no_step, 0, failure.ok() ? std::string(name_of(outcome)) : failure.message});
  OrderedJson details;
  details["seconds"] = seconds_of(setup_.clock->now() - request.started);
  details["stages"] = request.timings;
  if (request.interruptions > 0) {
    details["interruptions"] = request.interruptions;
    details["steps_repeated"] = request.steps_repeated;
  }
  RequestEvent event;
  event.request = number;
  event.kind = static_cast<std::uint8_t>(outcome == RequestOutcome::completed ? EventKind::completed : EventKind::failed);
  event.failure = failure;
  event.details = details.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  request.details = event.details;
  // Told once it is written, in order; a disk that is full holds the answer back, not the work.
  if (!again || outcome != RequestOutcome::completed) {
    request.outcome = outcome;
    const auto wall = setup_.wall_seconds();
    later([=, this](Journal& journal) -> Status {
      if (auto status = journal.finish(number, outcome, failure.code, failure.message, event.details, wall);
          !status.ok() && status.error().code != ErrorCode::out_of_step)
        return status;
      if (const auto found = requests_.find(number); found != requests_.end()) tell(found->second, event);
      return Done{};
    });
  } else {
    tell(request, event);
  }
  if (outcome != RequestOutcome::completed) drop(number);
  // Only the latest are kept here; the journal knows them all.
  for (auto each = requests_.begin(); requests_.size() > requests_max && each != requests_.end();) {
    const bool needed = each->second.state != Request::State::closed || each->second.outcome == RequestOutcome::completed || each->first == number;
    each = needed ? std::next(each) : requests_.erase(each);
  }
}

void CoordinatorState::end_request(Request& request, const Failure& failure) {
  request.ending = failure;
  if (request.state == Request::State::running && request.attempt) {
    self_->send(request.attempt, Cancel{request.number, ""});
    return;
  }
  if (request.state != Request::State::closed) finish(request, RequestOutcome::cancelled, failure);
}

Cancelled CoordinatorState::on_cancel(const Cancel& cancel) {
  Cancelled answer;
  std::vector<std::uint64_t> chosen;
  for (const auto& [number, request] : requests_) {
    if (request.state == Request::State::closed) continue;
    const bool wanted = cancel.request != 0 ? number == cancel.request
                                            : cancel.id == "all" || (!cancel.id.empty() && request.id.starts_with(cancel.id));
    if (wanted) chosen.push_back(number);
  }
  if (cancel.request == 0 && cancel.id != "all") {
    if (chosen.empty())
      answer.failure = Error{ErrorCode::not_found, "no open request has an id that begins with '" + cancel.id + "'", "see `orrery status`"};
    if (chosen.size() > 1)
      answer.failure = Error{ErrorCode::usage, std::to_string(chosen.size()) + " open requests have ids that begin with '" + cancel.id + "'", "give more digits"};
    if (!answer.failure.ok()) return answer;
  }
  for (const auto number : chosen)
    end_request(requests_.at(number), Error{ErrorCode::cancelled, "request " + std::to_string(number) + " was cancelled"});
  answer.count = static_cast<std::uint32_t>(chosen.size());
  return answer;
}

Cancelled CoordinatorState::on_fetched(const Fetched& fetched) {
  Cancelled answer;
  const auto found = requests_.find(fetched.request);
  if (found == requests_.end()) {
    answer.failure = Error{ErrorCode::not_found, "there is no request " + std::to_string(fetched.request)};
    return answer;
  }
  auto& request = found->second;
  if (request.outcome == RequestOutcome::delivered) return answer;
  ORRERY_FAULT_POINT("coordinator.before_fetched");
  const auto wall = setup_.wall_seconds();
  // One digest per request: a second delivery with other bytes would be a broken promise, and is refused.
  const auto status = write([&](Journal& journal) -> Status {
    if (!fetched.digest.empty()) ORRERY_TRY_DONE(journal.set_digest(fetched.request, fetched.digest));
    return journal.finish(fetched.request, RequestOutcome::delivered, 0, "", request.details, wall);
  });
  if (!status.ok()) {
    answer.failure = status.error();
    return answer;
  }
  request.outcome = RequestOutcome::delivered;
  answer.count = 1;
  // A client that came back while its frames were on the way has them by now: they need not be made once more.
  if (request.attempt) self_->send(request.attempt, Cancel{request.number, ""});
  request.attempt = nullptr;
  request.state = Request::State::closed;
  request.finished = setup_.clock->now();
  drop(fetched.request);
  start_requests();
  return answer;
}

void CoordinatorState::tell(const Request& request, const RequestEvent& event) {
  if (request.client) self_->send(request.client, event);
}

void CoordinatorState::tell_all(const std::string& notice) {
  for (const auto& [number, request] : requests_) {
    if (request.state == Request::State::closed) continue;
    RequestEvent event;
    event.request = number;
    event.kind = static_cast<std::uint8_t>(EventKind::notice);
    event.details = notice;
    tell(request, event);
  }
}

void CoordinatorState::drop(std::uint64_t request) {
  for (const auto& [which, node] : nodes_)
    if (node.state == Node::State::up) self_->send(node.hello.node, DropRequest{request});
}

void CoordinatorState::on_shutdown(const Shutdown& order) {
  for (const auto& [which, node] : nodes_)
    if (node.state == Node::State::up || node.state == Node::State::lost) self_->send(node.hello.node, order);
  end_attempts();
  phase_ = Coordinator::Phase::ended;
  setup_.board->update([&](CoordinatorBoard& board) {
    board.end_asked = true;
    board.end_reason = order.reason;
    board.phase = phase_;
  });
}

}  // namespace orrery::actors
