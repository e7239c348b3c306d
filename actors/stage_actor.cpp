#include "actors/stage_actor.hpp"

#include <algorithm>
#include <utility>

#include "base/json.hpp"
#include "base/trace.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

using topology::StageKind;

caf::behavior stage_actor(caf::stateful_actor<StageState>* self, StageSetup setup) {
  auto& stage = self->state;
  stage.start(self, std::move(setup));
  return {
      [&stage](const StageRun& order) { return stage.on_run(order); },
      [&stage](const CancelStage& order) { stage.on_cancel(order); },
      [&stage](const Tick& tick) { stage.on_tick(tick); },
  };
}

namespace {
// Cards have deadlines of their own for each wait, which name who did not deliver: ours comes after them.
constexpr int deadline_factor = 30;
constexpr Duration deadline_min = std::chrono::seconds(4);
// Reports of cards that waited in vain for the same cause come within this time.
constexpr Duration judge_after = std::chrono::milliseconds(200);
// Differences below this are the machine's noise, not a slow card.
constexpr double straggler_seconds_min = 0.020;
}  // namespace

void StageState::start(caf::stateful_actor<StageState>* self, StageSetup setup) {
  self_ = self;
  setup_ = std::move(setup);
  self->set_down_handler([this](const caf::down_msg& down) { on_card_down(down); });
  for (const auto& group : setup_.cards)
    for (const auto& card : group) self->monitor(card);
}

// ---- the queue ------------------------------------------------------------------------------------------------

caf::response_promise StageState::on_run(const StageRun& order) {
  auto promise = self_->make_response_promise();
  if (queue_.size() >= setup_.queue_max) {
    StageDone refused;
    refused.failure = Error{ErrorCode::pool_exhausted, std::string(topology::name_of(setup_.kind)) + " has " +
                                                           std::to_string(queue_.size()) + " requests waiting",
                            "try again later, or raise admission.max_queue"};
    promise.deliver(refused);
    return promise;
  }
  queue_.push_back({order, promise, {}, {}});
  if (!work_) begin_next();
  return promise;
}

namespace {
template <class Join>
void combine(CardDone& into, const CardDone& from, Join join) {
  join(into.compute_seconds, from.compute_seconds);
  join(into.exchange_seconds, from.exchange_seconds);
  join(into.hidden_exchange_seconds, from.hidden_exchange_seconds);
  join(into.stall_seconds, from.stall_seconds);
  join(into.copied_bytes, from.copied_bytes);
}
}  // namespace

void StageState::begin_next() {
  if (queue_.empty()) return;
  work_ = std::move(queue_.front());
  queue_.pop_front();
  work_->started = setup_.clock->now();
  done_ = {};
  done_.prompt_rows = work_->order.prompt_rows;
  done_.negative_rows = work_->order.negative_rows;
  times_ = round_times_ = {};
  card_seconds_.clear();
  report(EventKind::stage_started, 0, 0, 0);
  if (!lost_.empty()) return fail(Error{ErrorCode::peer_lost, "a card of the " + std::string(topology::name_of(setup_.kind)) + " was lost"});
  switch (setup_.kind) {
    case StageKind::text_guardrail: return run_text_guardrail();
    case StageKind::text_encoder: return run_text_encoder();
    case StageKind::denoiser: return run_denoiser();
    case StageKind::decoder: return run_decoder();
    case StageKind::video_guardrail: return run_video_guardrail();
  }
}

void StageState::finish() {
  done_.failure = work_->failure;
  done_.suspects = work_->suspects;
  done_.seconds = seconds_of(setup_.clock->now() - work_->started);
  OrderedJson details = done_.details.empty() ? OrderedJson::object() : OrderedJson::parse(done_.details);
  details["seconds"] = done_.seconds;
  if (!setup_.cards.empty()) {
    details["compute_seconds"] = times_.compute_seconds;
    for (const auto& [card, seconds] : card_seconds_) details["card_compute_seconds"][setup_.plan.card_name(card)] = seconds;
    details["exchange_seconds"] = times_.exchange_seconds;
    details["hidden_exchange_seconds"] = times_.hidden_exchange_seconds;
    details["stall_seconds"] = times_.stall_seconds;
    details["copied_bytes"] = times_.copied_bytes;
  }
  done_.details = details.dump();
  work_->promise.deliver(done_);
  work_.reset();
  begin_next();
}

void StageState::fail(const Failure& failure, std::vector<std::uint32_t> suspects) {
  if (!work_->failure.ok()) return;
  work_->failure = failure;
  work_->suspects = std::move(suspects);
  // Nobody waits for a neighbour that gave up.
  for (const auto& group : setup_.cards)
    for (const auto& card : group) self_->send(card, DropRequest{work_->order.request});
  if (outstanding_.empty()) close_lanes([this] { finish(); });
}

void StageState::on_cancel(const CancelStage& order) {
  const Failure cancelled = Error{ErrorCode::cancelled, "request " + std::to_string(order.request) + " was cancelled"};
  if (work_ && work_->order.request == order.request) {
    if (setup_.cards.empty()) return;  // Guardrails are done at once.
    return fail(cancelled);
  }
  const auto found = std::find_if(queue_.begin(), queue_.end(), [&](const Work& each) { return each.order.request == order.request; });
  if (found == queue_.end()) return;
  StageDone done;
  done.failure = cancelled;
  found->promise.deliver(done);
  queue_.erase(found);
}

void StageState::on_card_down(const caf::down_msg& down) {
  const auto lost = down.source;
  lost_.push_back(lost);
  if (!work_) return;
  const auto number = number_of(lost);
  fail(Error{ErrorCode::peer_lost, card_name(number) + " was lost during " + std::string(topology::name_of(setup_.kind))}, {number});
  answered(lost, {});
}

std::uint32_t StageState::number_of(const caf::actor_addr& card) const {
  const auto& groups = stage_of(setup_.kind).groups;
  for (std::size_t group = 0; group < setup_.cards.size(); ++group)
    for (std::size_t rank = 0; rank < setup_.cards[group].size(); ++rank)
      if (setup_.cards[group][rank].address() == card) return groups[group].ranks[rank].card;
  ORRERY_CHECK(!"a card of this stage");
  return 0;
}

void StageState::on_tick(const Tick& tick) {
  if (tick.round == round_ && !reports_.empty()) judge();
}

// The cause is a card that was waited for and did not itself wait for another one.
void StageState::judge() {
  const auto reports = std::exchange(reports_, {});
  std::vector<std::uint32_t> named;
  const Report* first = &reports.front();
  for (const auto& each : reports)
    for (const auto suspect : each.suspects) {
      const bool waited_too = std::any_of(reports.begin(), reports.end(), [&](const Report& other) { return other.card == suspect; });
      if (waited_too || std::find(named.begin(), named.end(), suspect) != named.end()) continue;
      if (named.empty()) first = &each;
      named.push_back(suspect);
    }
  if (named.empty()) named = first->suspects;
  auto failure = first->failure;
  // The data plane numbers cards; people name them.
  for (const auto suspect : first->suspects) {
    const auto numbered = "card " + std::to_string(suspect) + " did not";
    if (const auto at = failure.message.find(numbered); at != std::string::npos)
      failure.message.replace(at, numbered.size(), card_name(suspect) + " did not");
  }
  fail(failure, std::move(named));
}

void StageState::report(EventKind kind, std::uint64_t done, std::uint64_t total, double seconds) {
  RequestEvent event;
  event.request = work_->order.request;
  event.kind = static_cast<std::uint8_t>(kind);
  event.stage = topology::name_of(setup_.kind);
  event.done = done;
  event.total = total;
  event.seconds = seconds;
  self_->send(work_->order.listener, event);
}

// ---- talking to cards -----------------------------------------------------------------------------------------

Duration StageState::deadline_of(const std::string& what) const {
  const auto before = measured_.find(what);
  const auto first = setup_.command_deadline * 3 / 2;
  return before == measured_.end() ? first : std::min(first, std::max(deadline_min, before->second * deadline_factor));
}

template <class Message>
void StageState::ask(const std::string& what, const std::vector<std::pair<caf::actor, Message>>& orders, Next next) {
  if (!work_->failure.ok()) return close_lanes([this] { finish(); });
  next_ = std::move(next);
  ++round_;
  asked_ = what;
  asked_at_ = setup_.clock->now();
  round_seconds_.clear();
  const auto deadline = deadline_of(what);
  for (const auto& [card, message] : orders) outstanding_.push_back(card.address());
  for (const auto& [card, message] : orders) {
    const auto who = card.address();
    self_->request(card, deadline, message)
        .then([this, who](const CardDone& done) { answered(who, done); },
              [this, who, what, deadline](const caf::error& error) {
                CardDone done;
                const auto number = number_of(who);
                if (error == caf::sec::request_timeout) {
                  done.failure = Error{ErrorCode::timed_out, card_name(number) + " did not finish '" + what + "' of " +
                                                                 std::string(topology::name_of(setup_.kind)) + " within " +
                                                                 std::to_string(static_cast<int>(seconds_of(deadline))) + " s"};
                } else {
                  done.failure = error_of(self_->system(), error, card_name(number) + " did not answer");
                  done.failure.code = static_cast<std::uint16_t>(ErrorCode::peer_lost);
                }
                lost_.push_back(who);  // It may hang: it is not waited for again.
                answered(who, done);
              });
  }
}

template <class Message>
void StageState::ask_all(const std::string& what, const Message& message, Next next) {
  std::vector<std::pair<caf::actor, Message>> orders;
  for (std::size_t group = 0; group < active_groups(); ++group)
    for (const auto& card : setup_.cards[group]) orders.emplace_back(card, message);
  ask(what, orders, std::move(next));
}

void StageState::answered(const caf::actor_addr& card, const CardDone& done) {
  const auto found = std::find(outstanding_.begin(), outstanding_.end(), card);
  if (found == outstanding_.end()) return;
  outstanding_.erase(found);
  combine(round_times_, done, [](auto& most, auto one) { most = std::max(most, one); });
  const auto number = number_of(card);
  round_seconds_[number] = done.compute_seconds;
  card_seconds_[number] += done.compute_seconds;
  if (!done.failure.ok() && work_->failure.ok()) {
    if (!done.suspects.empty()) {
      reports_.push_back({number, done.failure, done.suspects});
      if (!outstanding_.empty()) {
        if (reports_.size() == 1) self_->delayed_send(self_, judge_after, Tick{round_});
        return;
      }
      judge();
    } else {
      // Its own failure; unless a deadline of ours passed because its neighbours wait, too.
      fail(done.failure, {number});
    }
    if (outstanding_.empty()) return;  // `fail` has gone on.
  }
  if (!outstanding_.empty()) return;
  if (!reports_.empty() && work_->failure.ok()) return judge();
  combine(times_, round_times_, [](auto& sum, auto one) { sum += one; });
  round_times_ = {};
  if (!work_->failure.ok() && !closing_) return close_lanes([this] { finish(); });
  if (!closing_ && work_->failure.ok()) {
    if (trace::enabled())
      trace::complete(trace::track("stage " + std::string(topology::name_of(setup_.kind))), trace::Category::stage, asked_, asked_at_,
                      setup_.clock->now(), {.request = work_->order.request});
    auto& longest = measured_[asked_];
    longest = std::max(setup_.clock->now() - asked_at_, longest * 7 / 8);
    if (asked_ == "step") watch_stragglers();
  }
  const auto next = std::move(next_);
  next();
}

// Cards with more slices may take longer: what counts is the time per slice.
void StageState::watch_stragglers() {
  std::vector<double> all;
  std::map<std::uint32_t, double> per_slice;
  for (const auto& group : stage_of(setup_.kind).groups)
    for (const auto& rank : group.ranks) {
      const auto found = round_seconds_.find(rank.card);
      if (found == round_seconds_.end()) continue;
      per_slice[rank.card] = found->second / static_cast<double>(rank.slices.size());
      all.push_back(per_slice[rank.card]);
    }
  if (all.size() < 2) return;
  std::sort(all.begin(), all.end());
  const auto median = all[(all.size() - 1) / 2];
  for (const auto& [card, seconds] : per_slice) {
    auto& slow = slow_steps_[card];
    const bool slower = seconds > setup_.straggler_factor * median && round_seconds_[card] - round_seconds_[card] * median / seconds > straggler_seconds_min;
    slow = slower ? slow + 1 : 0;
    if (slow != setup_.straggler_steps) continue;
    slow = 0;
    self_->send(setup_.coordinator, Straggler{setup_.epoch, card, seconds / std::max(median, 1e-9)});
  }
}

void StageState::fetch_kept(std::uint32_t keeper, Edge edge, std::uint32_t step, std::vector<std::uint32_t> targets, Next next) {
  if (keeper == 0) return next();
  const auto node = setup_.nodes.find(keeper - first_keeper_endpoint);
  if (node == setup_.nodes.end()) return fail(Error{ErrorCode::peer_lost, "the node that keeps a restart point is not known"});
  SendKept order;
  order.request = work_->order.request;
  order.edge = static_cast<std::uint32_t>(edge);
  order.step = step;
  order.targets = std::move(targets);
  const auto request = order.request;
  self_->request(node->second, std::chrono::seconds(10), order)
      .then(
          [this, request, next](const KeptSent& sent) {
            if (!work_ || work_->order.request != request || !work_->failure.ok()) return;
            if (!sent.failure.ok()) return fail(sent.failure);
            next();
          },
          [this, request](const caf::error& error) {
            if (!work_ || work_->order.request != request) return;
            fail(error_of(self_->system(), error, "fetching a restart point"));
          });
}

std::size_t StageState::active_groups() const {
  const bool guided = setup_.kind != StageKind::denoiser || work_->order.negative_rows > 0;
  return guided ? setup_.cards.size() : std::min<std::size_t>(1, setup_.cards.size());
}

void StageState::open_lanes(std::uint32_t prompt_rows, std::uint32_t negative_rows, Next next) {
  OpenLane open;
  open.request = work_->order.request;
  open.stage = static_cast<std::uint8_t>(setup_.kind);
  open.spec = work_->order.spec;
  open.prompt_rows = prompt_rows;
  open.negative_rows = negative_rows;
  open.client_endpoint = work_->order.client_endpoint;
  open.client_data_address = work_->order.client_data_address;
  lanes_open_ = true;
  ask_all("open", open, std::move(next));
}

void StageState::close_lanes(Next next) {
  if (!lanes_open_) return next();
  lanes_open_ = false;
  closing_ = true;
  CloseLane close;
  close.request = work_->order.request;
  close.stage = static_cast<std::uint8_t>(setup_.kind);
  next_ = [this, next = std::move(next)] {
    closing_ = false;
    next();
  };
  std::vector<caf::actor> living;
  for (std::size_t group = 0; group < active_groups(); ++group)
    for (const auto& card : setup_.cards[group])
      if (std::find(lost_.begin(), lost_.end(), card.address()) == lost_.end()) living.push_back(card);
  if (living.empty()) {
    const auto after = std::move(next_);
    return after();
  }
  for (const auto& card : living) outstanding_.push_back(card.address());
  for (const auto& card : living) {
    const auto who = card.address();
    self_->request(card, deadline_of("close"), close)
        .then([this, who](const CardDone& done) { answered(who, done); }, [this, who](const caf::error&) { answered(who, {}); });
  }
}

RunProgram StageState::program(const std::string& which, std::uint32_t step) const {
  RunProgram run;
  run.request = work_->order.request;
  run.stage = static_cast<std::uint8_t>(setup_.kind);
  run.program = which;
  run.step = step;
  return run;
}

ProgramOutput StageState::output(const std::string& slot, Edge edge, std::uint32_t step, std::vector<std::uint32_t> targets) const {
  return {slot, static_cast<std::uint32_t>(edge), step, std::move(targets)};
}

const topology::PlannedStage& StageState::stage_of(StageKind kind) const {
  const auto found = std::find_if(setup_.plan.stages.begin(), setup_.plan.stages.end(), [&](const auto& each) { return each.kind == kind; });
  ORRERY_CHECK(found != setup_.plan.stages.end());
  return *found;
}

std::vector<std::uint32_t> StageState::cards_of(StageKind kind, std::size_t group) const {
  std::vector<std::uint32_t> cards;
  for (const auto& rank : stage_of(kind).groups[group].ranks) cards.push_back(rank.card);
  return cards;
}

// ---- guardrails -------------------------------------------------------------------------------------------------

void StageState::run_text_guardrail() {
  const auto verdict = setup_.guardrail->check(work_->order.spec.prompt);
  OrderedJson details;
  details["guardrail"] = "blocklist";
  details["allowed"] = verdict.allowed;
  details["entries"] = setup_.guardrail->size();
  if (!verdict.allowed) {
    details["rule"] = verdict.rule;
    work_->failure = Error{ErrorCode::refused_by_guardrail,
                           "the prompt was refused by the text guardrail: '" + verdict.matched + "' is on its list (" + verdict.rule + ")",
                           "change the prompt"};
  }
  done_.details = details.dump();
  finish();
}

void StageState::run_video_guardrail() {
  // No model of this project judges frames yet; saying so is the stage's whole duty. Frames go from the decoder to the
  // client, and a request completes only after this stage has spoken.
  OrderedJson details;
  details["guardrail"] = "none";
  details["allowed"] = true;
  details["reason"] = "the model folder brings no video guardrail";
  done_.details = details.dump();
  finish();
}

// ---- text encoder -----------------------------------------------------------------------------------------------

void StageState::run_text_encoder() {
  const auto& spec = work_->order.spec;
  prompt_ids_.clear();
  negative_ids_.clear();
  auto prompt = setup_.tokenizer->encode(spec.prompt, spec.max_text_tokens);
  if (!prompt.ok()) return fail(prompt.error());
  prompt_ids_ = prompt.value().ids;
  bool truncated = prompt.value().truncated;
  if (spec.guidance > 1) {
    auto negative = setup_.tokenizer->encode(spec.negative_prompt, spec.max_text_tokens);
    if (!negative.ok()) return fail(negative.error());
    negative_ids_ = negative.value().ids;
    truncated = truncated || negative.value().truncated;
  }
  const auto vocabulary = static_cast<std::int64_t>(setup_.model->text_encoder->vocabulary);
  for (const auto* ids : {&prompt_ids_, &negative_ids_})
    for (const auto id : *ids)
      if (id < 0 || id >= vocabulary)
        return fail(Error{ErrorCode::invalid_model, "the tokenizer gives id " + std::to_string(id) + ", but the text encoder knows " +
                                                        std::to_string(vocabulary) + " tokens"});
  done_.prompt_rows = static_cast<std::uint32_t>(prompt_ids_.size());
  done_.negative_rows = static_cast<std::uint32_t>(negative_ids_.size());
  OrderedJson details;
  details["prompt_tokens"] = prompt_ids_.size();
  details["negative_prompt_tokens"] = negative_ids_.size();
  details["truncated"] = truncated;
  done_.details = details.dump();
  encode(false);
}

void StageState::encode(bool negative) {
  const auto& ids = negative ? negative_ids_ : prompt_ids_;
  open_lanes(static_cast<std::uint32_t>(ids.size()), 0, [this, negative] {
    const auto& tokens = negative ? negative_ids_ : prompt_ids_;
    const auto edge = negative ? Edge::negative_prompt_embeds : Edge::prompt_embeds;
    // The branch's group; with one group both branches go there.
    auto targets = cards_of(StageKind::denoiser, negative && stage_of(StageKind::denoiser).groups.size() > 1 ? 1 : 0);
    targets.insert(targets.end(), work_->order.keepers.begin(), work_->order.keepers.end());
    if (work_->order.spec.save_tensors && work_->order.client_endpoint != 0) targets.push_back(work_->order.client_endpoint);
    std::vector<std::pair<caf::actor, RunProgram>> orders;
    for (std::size_t rank = 0; rank < setup_.cards[0].size(); ++rank) {
      auto run = program("forward", negative ? 1 : 0);
      ProgramInput input;
      input.slot = "input_ids";
      input.from = static_cast<std::uint8_t>(InputFrom::values);
      input.values = tokens;
      run.inputs.push_back(std::move(input));
      if (rank == 0) run.outputs.push_back(output("last_hidden_state", edge, 0, targets));
      orders.emplace_back(setup_.cards[0][rank], std::move(run));
    }
    ask("forward", orders, [this, negative] {
      close_lanes([this, negative] {
        report(EventKind::progress, negative ? 2 : 1, negative_ids_.empty() ? 1 : 2, 0);
        if (!negative && !negative_ids_.empty()) return encode(true);
        finish();
      });
    });
  });
}

// ---- denoiser ---------------------------------------------------------------------------------------------------

namespace {

ProgramInput from_message(const std::string& slot, Edge edge, std::uint32_t step, std::uint32_t source) {
  ProgramInput input;
  input.slot = slot;
  input.from = static_cast<std::uint8_t>(InputFrom::message);
  input.edge = static_cast<std::uint32_t>(edge);
  input.step = step;
  input.source = source;
  return input;
}

}  // namespace

void StageState::run_denoiser() {
  const auto& order = work_->order;
  auto schedule = make_schedule(*setup_.model->scheduler, order.spec.steps);
  if (!schedule.ok()) return fail(schedule.error());
  schedule_ = std::move(schedule).value();
  OrderedJson details;
  details["steps"] = schedule_->count();
  details["steps_computed"] = schedule_->working_count();
  if (order.resume_step > 0) details["resumed_from_step"] = order.resume_step;
  done_.details = details.dump();
  open_lanes(order.prompt_rows, order.negative_rows, [this] {
    const auto& request = work_->order;
    const bool split = active_groups() > 1;
    const auto kept = [this](Edge edge, std::size_t group, Next next) {
      fetch_kept(work_->order.embeds_keeper, edge, 0, cards_of(StageKind::denoiser, group), std::move(next));
    };
    const auto prepare = [this, split] {
      const auto& now = work_->order;
      const auto embeds = now.embeds_keeper != 0 ? now.embeds_keeper : cards_of(StageKind::text_encoder, 0)[0];
      std::vector<std::pair<caf::actor, RunProgram>> orders;
      for (std::size_t group = 0; group < active_groups(); ++group)
        for (const auto& card : setup_.cards[group]) {
          auto run = program("prepare", 0);
          run.scalars.assign(static_cast<std::size_t>(cards::Scalar::count), 0);
          run.scalars[static_cast<std::size_t>(cards::Scalar::sigma_max)] = schedule_->sigma_max;
          ProgramInput noise;
          noise.slot = "noise";
          noise.from = static_cast<std::uint8_t>(InputFrom::noise);
          noise.seed = now.spec.seed;
          const bool from_client = now.spec.noise_from_client && now.resume_step == 0;
          run.inputs.push_back(from_client ? from_message("noise", Edge::noise, 0, now.client_endpoint) : noise);
          if (!split || group == 0) run.inputs.push_back(from_message("text_prompt", Edge::prompt_embeds, 0, embeds));
          if (now.negative_rows > 0 && (!split || group == 1))
            run.inputs.push_back(from_message("text_negative", Edge::negative_prompt_embeds, 0, embeds));
          orders.emplace_back(card, std::move(run));
        }
      ask("prepare", orders, [this] { load_latents(); });
    };
    if (request.embeds_keeper == 0) return prepare();
    kept(Edge::prompt_embeds, 0, [=, this] {
      if (work_->order.negative_rows == 0) return prepare();
      kept(Edge::negative_prompt_embeds, split ? 1 : 0, prepare);
    });
  });
}

void StageState::load_latents() {
  const auto& order = work_->order;
  if (order.resume_step == 0) return denoise(0);
  std::vector<std::uint32_t> targets;
  for (std::size_t group = 0; group < active_groups(); ++group)
    for (const auto card : cards_of(StageKind::denoiser, group)) targets.push_back(card);
  fetch_kept(order.latents_keeper, Edge::restart_latents, order.resume_step, targets, [this] {
    const auto& now = work_->order;
    auto run = program("", 0);  // Only fills the slot, which is that of the noise.
    run.inputs.push_back(from_message("noise", Edge::restart_latents, now.resume_step, now.latents_keeper));
    ask_all("resume", run, [this] { denoise(work_->order.resume_step); });
  });
}

void StageState::denoise(std::uint32_t step) {
  const auto count = schedule_->count();
  if (step == count) return close_lanes([this] { finish(); });
  const bool computed = !schedule_->steps[step].is_no_op();
  const bool last = step + 1 == count;
  std::vector<std::pair<caf::actor, RunProgram>> orders;
  for (std::size_t group = 0; group < active_groups(); ++group)
    for (std::size_t rank = 0; rank < setup_.cards[group].size(); ++rank) {
      auto run = program(computed ? "step" : "", step);
      run.runs_left = static_cast<std::uint32_t>(count - step - 1);
      const auto scalars = schedule_->scalars(step, work_->order.spec.guidance);
      run.scalars.assign(scalars.begin(), scalars.end());
      // Every rank holds the whole latents; one of them hands them on.
      if (group == 0 && rank == 0) {
        if (!work_->order.keepers.empty())
          run.outputs.push_back(output("latents", Edge::restart_latents, step + 1, work_->order.keepers));
        if (work_->order.spec.save_tensors && work_->order.client_endpoint != 0)
          run.outputs.push_back(output("latents", Edge::step_latents, step, {work_->order.client_endpoint}));
        if (last) run.outputs.push_back(output("latents", Edge::latents, 0, {cards_of(StageKind::decoder, 0)[0]}));
      }
      if (computed || !run.outputs.empty()) orders.emplace_back(setup_.cards[group][rank], std::move(run));
    }
  const auto started = setup_.clock->now();
  const auto next = [this, step, count, started] {
    report(EventKind::progress, step + 1, count, seconds_of(setup_.clock->now() - started));
    denoise(step + 1);
  };
  if (orders.empty()) return next();
  ask(computed ? "step" : "pass", orders, next);
}

// ---- decoder ----------------------------------------------------------------------------------------------------

void StageState::run_decoder() {
  open_lanes(0, 0, [this] {
    const auto& order = work_->order;
    const bool kept = order.latents_keeper != 0;
    // What a keeper has are the latents after the last step.
    const auto edge = kept ? Edge::restart_latents : Edge::latents;
    const auto step = kept ? order.spec.steps : 0;
    fetch_kept(order.latents_keeper, edge, step, cards_of(StageKind::decoder, 0), [this, kept, edge, step] {
      const auto& now = work_->order;
      auto run = program("prepare", 0);
      run.inputs.push_back(from_message("latents", edge, step, kept ? now.latents_keeper : cards_of(StageKind::denoiser, 0)[0]));
      if (now.spec.save_tensors) run.outputs.push_back(output("vae_input", Edge::vae_input, 0, {now.client_endpoint}));
      ask_all("prepare", run, [this] { decode(0); });
    });
  });
}

void StageState::decode(std::uint32_t frame) {
  const auto ratio = static_cast<std::uint32_t>(setup_.model->codec->temporal_ratio);
  const auto count = (work_->order.spec.frames - 1) / ratio + 1;
  if (frame == count) return close_lanes([this] { finish(); });
  const std::string which = frame == 0 ? "first" : "next";
  auto run = program(which, frame);
  run.runs_left = frame == 0 ? 0 : static_cast<std::uint32_t>(count - frame - 1);
  run.scalars.assign(static_cast<std::size_t>(cards::Scalar::count), 0);
  run.scalars[static_cast<std::size_t>(cards::Scalar::latent_frame)] = frame;
  run.outputs.push_back(output(which + ".frames", Edge::frames, frame, {work_->order.client_endpoint}));
  if (work_->order.spec.save_tensors)
    run.outputs.push_back(output(which + ".video", Edge::video_raw, frame, {work_->order.client_endpoint}));
  const auto started = setup_.clock->now();
  ask_all(which, run, [this, frame, count, started] {
    report(EventKind::progress, frame + 1, count, seconds_of(setup_.clock->now() - started));
    decode(frame + 1);
  });
}

}  // namespace orrery::actors
