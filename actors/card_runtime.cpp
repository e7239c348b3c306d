#include "actors/card_runtime.hpp"

#include <algorithm>

#include "actors/edges.hpp"
#include "base/random.hpp"
#include "base/trace.hpp"
#include "compiler/models/cosmos_codec.hpp"

namespace orrery::actors {

using topology::StageKind;

CardRuntime::CardRuntime(std::uint32_t number, std::unique_ptr<cards::Card> card, std::vector<StageSeat> seats,
                         std::shared_ptr<const compiler::ModelFolder> model, compiler::Compute compute,
                         protocol::Exchange& exchange, const Clock& clock, Duration deadline, AddClient add_client,
                         FaultProbe probe)
    : number_(number),
      card_(std::move(card)),
      seats_(std::move(seats)),
      model_(std::move(model)),
      compute_(compute),
      exchange_(exchange),
      clock_(clock),
      deadline_(deadline),
      add_client_(std::move(add_client)),
      probe_(probe) {}

namespace {
/// The card's memory as a curve.
void trace_memory(const cards::Card& card) {
  if (!trace::enabled()) return;
  const auto use = card.use();
  trace::counter(card.options().name + " memory", use.weights + use.lanes);
}

CardDone over() {
  CardDone done;
  done.failure = Error{ErrorCode::stale_epoch, "the epoch of this order is over"};
  return done;
}
}  // namespace

CardRuntime::~CardRuntime() {
  cancel_all();
  stop(Duration::max());
}

void CardRuntime::cancel_all() {
  const std::lock_guard lock(mutex_);
  if (ending_) return;
  ending_ = true;
  for (const auto& [key, runner] : lanes_) {
    runner->cancel();
    exchange_.forget(key.first);
  }
}

Duration CardRuntime::patience() const {
  const std::lock_guard lock(mutex_);
  Duration longest{};
  for (const auto& [key, runner] : lanes_) longest = std::max(longest, runner->longest_run());
  return 2 * longest;
}

bool CardRuntime::stop(Duration limit) {
  cancel_all();
  std::map<std::uint8_t, std::unique_ptr<LaneWorker>> workers;
  {
    const std::lock_guard lock(mutex_);
    workers.swap(workers_);
  }
  for (auto& [stage, each] : workers) each->ask_to_end();
  const auto until = clock_.now() + std::min<Duration>(limit, std::chrono::hours(24));
  for (auto& [stage, each] : workers)
    if (!each->ended(until - clock_.now())) {
      for (auto& [other, stuck] : workers) static_cast<void>(stuck.release());  // Cannot be joined; the process has to end.
      return false;
    }
  workers.clear();  // Joins.
  for (auto& [key, runner] : lanes_) {
    const auto id = runner->lane();
    runner.reset();
    card_->close_lane(id);
  }
  lanes_.clear();
  return true;
}

bool CardRuntime::ended() const {
  const std::lock_guard lock(mutex_);
  return ending_;
}

LaneWorker& CardRuntime::worker(std::uint8_t stage) {
  const std::lock_guard lock(mutex_);
  auto& worker = workers_[stage];
  if (!worker) worker = std::make_unique<LaneWorker>();
  return *worker;
}

Result<std::shared_ptr<ProgramRunner>> CardRuntime::lane(std::uint64_t request, std::uint8_t stage) {
  const std::lock_guard lock(mutex_);
  const auto found = lanes_.find({request, stage});
  if (found == lanes_.end())
    return Error{ErrorCode::not_found, card_->options().name + " has no lane for request " + std::to_string(request)};
  return found->second;
}

void CardRuntime::open_lane(const OpenLane& order, Reply reply) {
  if (ended()) return reply(over());
  worker(order.stage).post([this, order, reply = std::move(reply)] {
    CardDone done;
    if (auto status = open_now(order); !status.ok()) done.failure = status.error();
    reply(done);
  });
}

void CardRuntime::run(const RunProgram& order, Reply reply) {
  if (ended()) return reply(over());
  worker(order.stage).post([this, order, reply = std::move(reply)] {
    CardDone done;
    if (auto times = run_now(order, done.suspects); times.ok()) {
      done.compute_seconds = seconds_of(times.value().compute);
      done.exchange_seconds = seconds_of(times.value().exchange);
      done.hidden_exchange_seconds = seconds_of(times.value().hidden_exchange);
      done.stall_seconds = seconds_of(times.value().stall);
      done.copied_bytes = times.value().copied_bytes;
    } else {
      done.failure = times.error();
    }
    reply(done);
  });
}

void CardRuntime::close_lane(const CloseLane& order, Reply reply) {
  if (ended()) return reply(over());
  worker(order.stage).post([this, order, reply = std::move(reply)] {
    std::shared_ptr<ProgramRunner> runner;
    {
      const std::lock_guard lock(mutex_);
      const auto found = lanes_.find({order.request, order.stage});
      if (found != lanes_.end()) {
        runner = std::move(found->second);
        lanes_.erase(found);
      }
    }
    if (runner) {
      const auto id = runner->lane();
      runner.reset();  // Waits for lent memory.
      card_->close_lane(id);
      trace_memory(*card_);
    }
    reply({});
  });
}

void CardRuntime::cancel(std::uint64_t request) {
  const std::lock_guard lock(mutex_);
  for (const auto& [key, runner] : lanes_)
    if (key.first == request) runner->cancel();
  // Once this card's epoch is over, the exchange may be in the next one, where the request goes on.
  if (!ending_) exchange_.forget(request);
}

Result<std::shared_ptr<const cards::ProgramSet>> CardRuntime::compile(const OpenLane& order, const StageSeat& seat,
                                                                        const compiler::Layout& layout) const {
  const auto& spec = order.spec;
  switch (seat.kind) {
    case StageKind::text_encoder:
      return compiler::compile_text_encoder(*model_->text_encoder, seat.weights, layout, compute_, order.prompt_rows, false);
    case StageKind::denoiser: {
      const auto& codec = *model_->codec;
      compiler::DenoiserShape shape;
      shape.frames = (spec.frames - 1) / codec.temporal_ratio + 1;
      shape.height = spec.height / codec.spatial_ratio;
      shape.width = spec.width / codec.spatial_ratio;
      shape.prompt_rows = order.prompt_rows;
      shape.negative_rows = order.negative_rows;
      shape.padded_rows = spec.max_text_tokens;
      shape.fps = spec.fps;
      shape.guidance = order.negative_rows > 0;
      return compiler::compile_denoiser(*model_->transformer, seat.weights, layout, compute_, shape);
    }
    case StageKind::decoder: {
      const auto& codec = *model_->codec;
      compiler::CodecShape shape;
      shape.frames = (spec.frames - 1) / codec.temporal_ratio + 1;
      shape.height = spec.height / codec.spatial_ratio;
      shape.width = spec.width / codec.spatial_ratio;
      return compiler::compile_decoder(codec, seat.weights, compute_, shape, model_->scheduler->sigma_data);
    }
    default: break;
  }
  return Error{ErrorCode::internal, "a " + std::string(topology::name_of(seat.kind)) + " has no programs"};
}

Status CardRuntime::open_now(const OpenLane& order) {
  const auto seat = std::find_if(seats_.begin(), seats_.end(), [&](const auto& each) { return each.seat.stage == order.stage; });
  if (seat == seats_.end())
    return Error{ErrorCode::internal, card_->options().name + " has no seat in stage " + std::to_string(order.stage)};
  ORRERY_TRY_DONE(add_client_(order.request, order.client_endpoint, order.client_data_address));
  // Without guidance there is one branch: the second group has nothing to do.
  Seat taken = seat->seat;
  if (seat->kind == StageKind::denoiser && order.negative_rows == 0) {
    taken.layout.owned.resize(1);
    taken.endpoints.resize(1);
  }
  ORRERY_TRY(programs, compile(order, *seat, taken.layout));
  ORRERY_TRY(id, card_->open_lane(programs));
  trace_memory(*card_);
  auto runner = std::make_shared<ProgramRunner>(*card_, exchange_, clock_, taken, order.request, id, programs, deadline_,
                                                probe_);
  const std::lock_guard lock(mutex_);
  ORRERY_CHECK(lanes_.emplace(LaneKey{order.request, order.stage}, std::move(runner)).second);
  return Done{};
}

Result<RunTimes> CardRuntime::run_now(const RunProgram& order, std::vector<std::uint32_t>& suspects) {
  ORRERY_TRY(runner, lane(order.request, order.stage));
  const struct Note {
    ProgramRunner& runner;
    std::vector<std::uint32_t>& suspects;
    ~Note() { suspects = runner.suspects(); }
  } note{*runner, suspects};
  const auto& programs = runner->programs();
  const auto slot_of = [&](const std::map<std::string, cards::SlotId>& names, const std::string& name) -> Result<cards::SlotId> {
    const auto found = names.find(name);
    if (found == names.end()) return Error{ErrorCode::internal, programs.component + " has no slot '" + name + "'"};
    return found->second;
  };
  RunTimes total;
  const auto started = clock_.now();
  for (const auto& input : order.inputs) {
    ORRERY_TRY(slot, slot_of(programs.inputs, input.slot));
    const auto memory = runner->memory(slot);
    switch (static_cast<InputFrom>(input.from)) {
      case InputFrom::values:
        if (memory.size() != input.values.size() * sizeof(std::int32_t))
          return Error{ErrorCode::internal, "'" + input.slot + "' does not take " + std::to_string(input.values.size()) + " values"};
        std::copy_n(reinterpret_cast<const std::byte*>(input.values.data()), memory.size(), memory.data());
        break;
      case InputFrom::noise:
        fill_normal(input.seed, RandomStream::noise, 0, {reinterpret_cast<float*>(memory.data()), memory.size() / sizeof(float)});
        break;
      case InputFrom::message:
        ORRERY_TRY_DONE(runner->receive_into(slot, input.edge, input.step, input.source));
        break;
    }
  }
  total.exchange += clock_.now() - started;
  if (!order.program.empty()) {
    cards::Scalars scalars{};
    for (std::size_t i = 0; i < scalars.size() && i < order.scalars.size(); ++i) scalars[i] = order.scalars[i];
    ORRERY_TRY(times, runner->run(programs.index_of(order.program), order.step, scalars, order.runs_left));
    const auto around = total.exchange;
    total = times;
    total.exchange += around;
  }
  const auto ended = clock_.now();
  for (const auto& output : order.outputs) {
    ORRERY_TRY(slot, slot_of(programs.outputs, output.slot));
    ORRERY_TRY_DONE(runner->send_from(slot, output.edge, output.step, output.targets));
  }
  total.exchange += clock_.now() - ended;
  trace_memory(*card_);
  return total;
}

}  // namespace orrery::actors
