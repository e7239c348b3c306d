#include "actors/stage_actor.hpp"

#include <algorithm>

#include "base/json.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

using topology::StageKind;

caf::behavior stage_actor(caf::stateful_actor<StageState>* self, StageSetup setup) {
  auto& stage = self->state;
  stage.start(self, std::move(setup));
  return {
      [&stage](const StageRun& order) { return stage.on_run(order); },
      [&stage](const CancelStage& order) { stage.on_cancel(order); },
  };
}

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

void StageState::begin_next() {
  if (queue_.empty()) return;
  work_ = std::move(queue_.front());
  queue_.pop_front();
  work_->started = clock_.now();
  done_ = {};
  done_.prompt_rows = work_->order.prompt_rows;
  done_.negative_rows = work_->order.negative_rows;
  compute_seconds_ = exchange_seconds_ = round_compute_ = round_exchange_ = 0;
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
  done_.seconds = seconds_of(clock_.now() - work_->started);
  OrderedJson details = done_.details.empty() ? OrderedJson::object() : OrderedJson::parse(done_.details);
  details["seconds"] = done_.seconds;
  if (!setup_.cards.empty()) {
    details["compute_seconds"] = compute_seconds_;
    details["exchange_seconds"] = exchange_seconds_;
  }
  done_.details = details.dump();
  if (done_.failure.ok()) report(EventKind::stage_done, 0, 0, done_.seconds);
  work_->promise.deliver(done_);
  work_.reset();
  begin_next();
}

void StageState::fail(const Failure& failure) {
  if (!work_->failure.ok()) return;
  work_->failure = failure;
  // Nobody waits for a neighbour that gave up.
  for (const auto& group : setup_.cards)
    for (const auto& card : group) self_->send(card, DropRequest{work_->order.request});
  if (outstanding_.empty()) close_lanes([this] { finish(); });
}

void StageState::on_cancel(const CancelStage& order) {
  const Failure cancelled = Error{ErrorCode::cancelled, "request " + std::to_string(order.request) + " was cancelled"};
  if (work_ && work_->order.request == order.request) return fail(cancelled);
  const auto found = std::find_if(queue_.begin(), queue_.end(), [&](const Work& each) { return each.order.request == order.request; });
  if (found == queue_.end()) return;
  StageDone done;
  done.failure = cancelled;
  found->promise.deliver(done);
  queue_.erase(found);
}

void StageState::on_card_down(const caf::down_msg& down) {
  const auto lost = down.source.id();
  lost_.push_back(lost);
  if (!work_) return;
  std::string which = "a card";
  const auto& groups = stage_of(setup_.kind).groups;
  for (std::size_t group = 0; group < setup_.cards.size(); ++group)
    for (std::size_t rank = 0; rank < setup_.cards[group].size(); ++rank)
      if (setup_.cards[group][rank].address() == down.source) {
        const auto& card = setup_.plan.cards[groups[group].ranks[rank].card];
        which = "card " + card.node + ":" + std::to_string(card.index);
      }
  fail(Error{ErrorCode::peer_lost, which + " was lost during " + std::string(topology::name_of(setup_.kind))});
  answered(lost, {});
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

template <class Message>
void StageState::ask(const std::vector<std::pair<caf::actor, Message>>& orders, Next next) {
  if (!work_->failure.ok()) return close_lanes([this] { finish(); });
  next_ = std::move(next);
  for (const auto& [card, message] : orders) outstanding_.push_back(card.id());
  for (const auto& [card, message] : orders) {
    const auto id = card.id();
    // No deadline here: the cards' own waits have one, and a dead card is reported by its monitor.
    self_->request(card, caf::infinite, message)
        .then([this, id](const CardDone& done) { answered(id, done); },
              [this, id](const caf::error& error) {
                CardDone done;
                done.failure = error_of(self_->system(), error, "a card did not answer");
                answered(id, done);
              });
  }
}

template <class Message>
void StageState::ask_all(const Message& message, Next next) {
  std::vector<std::pair<caf::actor, Message>> orders;
  for (std::size_t group = 0; group < active_groups(); ++group)
    for (const auto& card : setup_.cards[group]) orders.emplace_back(card, message);
  ask(orders, std::move(next));
}

void StageState::answered(caf::actor_id card, const CardDone& done) {
  const auto found = std::find(outstanding_.begin(), outstanding_.end(), card);
  if (found == outstanding_.end()) return;
  outstanding_.erase(found);
  round_compute_ = std::max(round_compute_, done.compute_seconds);
  round_exchange_ = std::max(round_exchange_, done.exchange_seconds);
  if (!done.failure.ok() && work_->failure.ok()) {
    // Cancellations are consequences: `fail` keeps the first cause.
    fail(done.failure);
    if (outstanding_.empty()) return;  // `fail` has gone on.
  }
  if (!outstanding_.empty()) return;
  compute_seconds_ += round_compute_;
  exchange_seconds_ += round_exchange_;
  round_compute_ = round_exchange_ = 0;
  if (!work_->failure.ok() && !closing_) return close_lanes([this] { finish(); });
  const auto next = std::move(next_);
  next();
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
  ask_all(open, std::move(next));
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
      if (std::find(lost_.begin(), lost_.end(), card.id()) == lost_.end()) living.push_back(card);
  if (living.empty()) {
    const auto after = std::move(next_);
    return after();
  }
  for (const auto& card : living) outstanding_.push_back(card.id());
  for (const auto& card : living) {
    const auto id = card.id();
    self_->request(card, caf::infinite, close)
        .then([this, id](const CardDone& done) { answered(id, done); }, [this, id](const caf::error&) { answered(id, {}); });
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
    if (work_->order.spec.save_tensors) targets.push_back(work_->order.client_endpoint);
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
    ask(orders, [this, negative] {
      close_lanes([this, negative] {
        report(EventKind::progress, negative ? 2 : 1, negative_ids_.empty() ? 1 : 2, 0);
        if (!negative && !negative_ids_.empty()) return encode(true);
        finish();
      });
    });
  });
}

// ---- denoiser ---------------------------------------------------------------------------------------------------

void StageState::run_denoiser() {
  const auto& order = work_->order;
  auto schedule = make_schedule(*setup_.model->scheduler, order.spec.steps);
  if (!schedule.ok()) return fail(schedule.error());
  schedule_ = std::move(schedule).value();
  OrderedJson details;
  details["steps"] = schedule_->count();
  details["steps_computed"] = schedule_->working_count();
  done_.details = details.dump();
  open_lanes(order.prompt_rows, order.negative_rows, [this] {
    const auto& request = work_->order;
    const auto encoder = cards_of(StageKind::text_encoder, 0)[0];
    const auto message = [](const std::string& slot, Edge edge, std::uint32_t source) {
      ProgramInput input;
      input.slot = slot;
      input.from = static_cast<std::uint8_t>(InputFrom::message);
      input.edge = static_cast<std::uint32_t>(edge);
      input.source = source;
      return input;
    };
    std::vector<std::pair<caf::actor, RunProgram>> orders;
    for (std::size_t group = 0; group < active_groups(); ++group)
      for (const auto& card : setup_.cards[group]) {
        auto run = program("prepare", 0);
        run.scalars.assign(static_cast<std::size_t>(cards::Scalar::count), 0);
        run.scalars[static_cast<std::size_t>(cards::Scalar::sigma_max)] = schedule_->sigma_max;
        ProgramInput noise;
        noise.slot = "noise";
        noise.from = static_cast<std::uint8_t>(InputFrom::noise);
        noise.seed = request.spec.seed;
        run.inputs.push_back(request.spec.noise_from_client ? message("noise", Edge::noise, request.client_endpoint) : noise);
        const bool split = active_groups() > 1;
        if (!split || group == 0) run.inputs.push_back(message("text_prompt", Edge::prompt_embeds, encoder));
        if (request.negative_rows > 0 && (!split || group == 1))
          run.inputs.push_back(message("text_negative", Edge::negative_prompt_embeds, encoder));
        orders.emplace_back(card, std::move(run));
      }
    ask(orders, [this] { denoise(0); });
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
      const auto scalars = schedule_->scalars(step, work_->order.spec.guidance);
      run.scalars.assign(scalars.begin(), scalars.end());
      // Every rank holds the whole latents; one of them hands them on.
      if (group == 0 && rank == 0) {
        if (work_->order.spec.save_tensors)
          run.outputs.push_back(output("latents", Edge::step_latents, step, {work_->order.client_endpoint}));
        if (last) run.outputs.push_back(output("latents", Edge::latents, 0, {cards_of(StageKind::decoder, 0)[0]}));
      }
      if (computed || !run.outputs.empty()) orders.emplace_back(setup_.cards[group][rank], std::move(run));
    }
  const auto started = clock_.now();
  const auto next = [this, step, count, started] {
    report(EventKind::progress, step + 1, count, seconds_of(clock_.now() - started));
    denoise(step + 1);
  };
  if (orders.empty()) return next();
  ask(orders, next);
}

// ---- decoder ----------------------------------------------------------------------------------------------------

void StageState::run_decoder() {
  open_lanes(0, 0, [this] {
    auto run = program("prepare", 0);
    ProgramInput latents;
    latents.slot = "latents";
    latents.from = static_cast<std::uint8_t>(InputFrom::message);
    latents.edge = static_cast<std::uint32_t>(Edge::latents);
    latents.source = cards_of(StageKind::denoiser, 0)[0];
    run.inputs.push_back(latents);
    if (work_->order.spec.save_tensors)
      run.outputs.push_back(output("vae_input", Edge::vae_input, 0, {work_->order.client_endpoint}));
    ask_all(run, [this] { decode(0); });
  });
}

void StageState::decode(std::uint32_t frame) {
  const auto ratio = static_cast<std::uint32_t>(setup_.model->codec->temporal_ratio);
  const auto count = (work_->order.spec.frames - 1) / ratio + 1;
  if (frame == count) return close_lanes([this] { finish(); });
  const std::string which = frame == 0 ? "first" : "next";
  auto run = program(which, frame);
  run.scalars.assign(static_cast<std::size_t>(cards::Scalar::count), 0);
  run.scalars[static_cast<std::size_t>(cards::Scalar::latent_frame)] = frame;
  run.outputs.push_back(output(which + ".frames", Edge::frames, frame, {work_->order.client_endpoint}));
  if (work_->order.spec.save_tensors)
    run.outputs.push_back(output(which + ".video", Edge::video_raw, frame, {work_->order.client_endpoint}));
  const auto started = clock_.now();
  ask_all(run, [this, frame, count, started] {
    report(EventKind::progress, frame + 1, count, seconds_of(clock_.now() - started));
    decode(frame + 1);
  });
}

}  // namespace orrery::actors
