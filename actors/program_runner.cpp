#include "actors/program_runner.hpp"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "actors/edges.hpp"

namespace orrery::actors {

using cards::Attr;
using cards::Op;
using protocol::MessageKey;

Seat seat_of(const topology::Plan& plan, const topology::PlannedStage& stage, std::uint32_t group, std::uint32_t rank) {
  Seat seat;
  seat.stage = static_cast<std::uint8_t>(stage.kind);
  seat.layout.slice_count = stage.slices;
  seat.layout.split = stage.split == topology::Split::tensor ? compiler::Split::tensor : compiler::Split::sequence;
  seat.layout.owned.clear();
  std::map<std::string, std::uint32_t> nodes;
  for (const auto& each : stage.groups) {
    seat.layout.owned.emplace_back();
    seat.endpoints.emplace_back();
    seat.nodes.emplace_back();
    for (const auto& member : each.ranks) {
      seat.layout.owned.back().push_back(member.slices);
      seat.endpoints.back().push_back(member.card);
      seat.nodes.back().push_back(nodes.emplace(plan.cards[member.card].node, nodes.size()).first->second);
    }
  }
  seat.layout.group = group;
  seat.layout.rank = rank;
  return seat;
}

/// How many sends still read each slot.
struct ProgramRunner::Lent {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::uint32_t> count;  // By slot.
};

ProgramRunner::ProgramRunner(cards::Card& card, protocol::Exchange& exchange, const Clock& clock, const Seat& seat,
                             std::uint64_t request, cards::LaneId lane, std::shared_ptr<const cards::ProgramSet> programs,
                             Duration deadline, FaultProbe probe)
    : card_(card),
      exchange_(exchange),
      clock_(clock),
      seat_(seat),
      request_(request),
      lane_(lane),
      step_row_(trace::track(card.options().name + " steps")),
      exchange_row_(trace::track(card.options().name + " exchange")),
      programs_(std::move(programs)),
      deadline_(deadline),
      probe_(probe),
      wait_limit_(deadline),
      lent_(std::make_shared<Lent>()) {
  lent_->count.resize(programs_->slots.size());
}

ProgramRunner::~ProgramRunner() {
  std::unique_lock lock(lent_->mutex);
  lent_->changed.wait_for(lock, std::chrono::seconds(2), [&] {
    for (const auto count : lent_->count)
      if (count > 0) return false;
    return true;
  });
}

namespace {
// A wait lasts as long as the slowest neighbour's work before it, at most one run; the rest is for a busy machine.
constexpr int deadline_factor = 20;
constexpr Duration deadline_min = std::chrono::seconds(3);

constexpr std::uint32_t no_command = UINT32_MAX;

// A part of a chain: two tiles of the cpu card.
constexpr std::uint64_t rows_min = 128;

Error named(const cards::Command& command, const Error& error) {
  return {error.code, command.label + ": " + error.message, error.hint};
}
}  // namespace

void ProgramRunner::suspect(const Error& error, protocol::EndpointId source) {
  const bool in_vain = error.code == ErrorCode::timed_out || error.code == ErrorCode::peer_lost || error.code == ErrorCode::pool_exhausted;
  if (in_vain && source < first_keeper_endpoint) suspects_.push_back(source);
}

void ProgramRunner::reach(FaultEvent event, std::uint32_t program, std::uint32_t step, std::string_view label) const {
  if (!probe_.armed()) return;
  FaultSite site;
  site.event = event;
  site.card = probe_.card;
  site.stage = topology::name_of(static_cast<topology::StageKind>(seat_.stage));
  site.label = label;
  site.request = request_;
  const bool denoises = static_cast<topology::StageKind>(seat_.stage) == topology::StageKind::denoiser;
  if (denoises && programs_->programs[program].name == "step") site.step = step + 1;
  site.block = block_of_label(label);
  // Programs that are no step have no begin and end of one.
  if ((event == FaultEvent::step_begin || event == FaultEvent::step_end) && site.step == 0) return;
  probe_.faults->reached(site);
}

Result<RunTimes> ProgramRunner::run(std::uint32_t program, std::uint32_t step, const cards::Scalars& scalars, std::uint32_t runs_left) {
  RunTimes times;
  card_.expect(lane_, program, runs_left);
  suspects_.clear();
  const auto before = measured_.find(program);
  wait_limit_ = before == measured_.end() ? deadline_ : std::min(deadline_, std::max(deadline_min, before->second * deadline_factor));
  const auto begun = clock_.now();
  // Command::reuses speaks of sends of the same run only; those of the run before must be through.
  for (cards::SlotId slot = 0; slot < programs_->slots.size(); ++slot) ORRERY_TRY_DONE(wait_until_unlent(slot));
  const auto& commands = programs_->programs[program].commands;
  const trace::Span whole(step_row_, trace::Category::step, programs_->programs[program].name, {.request = request_, .step = step});
  reach(FaultEvent::step_begin, program, step);
  if (static_cast<topology::StageKind>(seat_.stage) == topology::StageKind::text_encoder) reach(FaultEvent::encode, program, step);
  if (static_cast<topology::StageKind>(seat_.stage) == topology::StageKind::decoder) reach(FaultEvent::decode, program, step);
  auto mark = clock_.now();
  const auto lap = [&](Duration& into) {
    const auto now = clock_.now();
    into += now - mark;
    mark = now;
  };
  std::vector<Begun> exchanges;  // In the programs' order.
  // In the order in which they were begun: who blocks has taken all that was sent to it before.
  const auto end_through = [&](std::uint32_t last) -> Status {
    while (!exchanges.empty()) {
      auto& first = exchanges.front();
      const auto waited_from = clock_.now();
      ORRERY_TRY(arrived, end_exchange(program, first, step));
      times.hidden_exchange += std::max<Duration>(Duration::zero(), std::min(arrived, waited_from) - first.at);
      const bool done = first.command == last;
      exchanges.erase(exchanges.begin());
      if (done) break;
    }
    return Done{};
  };
  const auto reclaim = [&](const std::vector<cards::SlotId>& slots) -> Status {
    for (const auto slot : slots) {
      // What was lent comes back when the others have taken it, and they may be waiting for us to do the same.
      if (is_lent(slot)) ORRERY_TRY_DONE(end_through(no_command));
      ORRERY_TRY_DONE(wait_until_unlent(slot));
    }
    return Done{};
  };
  const auto waits_for = [&](const cards::Command& command) {
    return std::find_if(exchanges.begin(), exchanges.end(), [&](const Begun& each) {
      return std::find(command.after.begin(), command.after.end(), each.command) != command.after.end();
    });
  };
  const auto copied_before = card_.use().stream.copied_bytes;
  const auto stalled_before = card_.stalled(lane_);
  for (std::uint32_t at = 0; at < commands.size();) {
    if (cancelled_) return Error{ErrorCode::cancelled, "request " + std::to_string(request_) + " was cancelled"};
    reach(FaultEvent::command, program, step, commands[at].label);
    for (auto& each : exchanges) ORRERY_TRY_DONE(relay(program, each, step, false));
    // A chain keeps its gather open, so it cannot wait for what is lent.
    const bool reusing = std::any_of(commands[at].reuses.begin(), commands[at].reuses.end(), [&](cards::SlotId slot) { return is_lent(slot); });
    if (const auto chain = reusing ? std::nullopt : chain_at(program, at, exchanges)) {
      const auto gather = std::find_if(exchanges.begin(), exchanges.end(), [&](const Begun& each) { return each.command == chain->gather; });
      if (chain->gather && gather != exchanges.begin()) ORRERY_TRY_DONE(end_through(std::prev(gather)->command));
      lap(times.exchange);
      ORRERY_TRY_DONE(run_chain(program, *chain, step, scalars, times, exchanges));
      mark = clock_.now();
      at = chain->end + (chain->reduces ? 1 : 0);
      continue;
    }
    for (auto each = waits_for(commands[at]); each != exchanges.end(); each = waits_for(commands[at])) ORRERY_TRY_DONE(end_through(each->command));
    ORRERY_TRY_DONE(reclaim(commands[at].reuses));
    if (commands[at].queue == cards::Queue::exchange) {
      ORRERY_TRY_DONE(begin_exchange(program, at, step));
      exchanges.push_back(begin_of(program, at, clock_.now()));
      ++at;
      lap(times.exchange);
      continue;
    }
    lap(times.exchange);
    // As many compute commands as possible in one call to the card: up to the next exchange, reuse, or wait.
    auto end = at + 1;
    // One by one while a fault waits for its command.
    while (!probe_.armed() && end < commands.size() && commands[end].queue != cards::Queue::exchange && commands[end].reuses.empty() &&
           waits_for(commands[end]) == exchanges.end() && !chain_at(program, end, exchanges))
      ++end;
    ORRERY_TRY_DONE(card_.run(lane_, program, at, end, scalars));
    at = end;
    lap(times.compute);
  }
  ORRERY_TRY_DONE(end_through(no_command));
  lap(times.exchange);
  times.stall = card_.stalled(lane_) - stalled_before;
  times.copied_bytes = card_.use().stream.copied_bytes - copied_before;
  auto& longest = measured_[program];
  longest = std::max(clock_.now() - begun, longest * 7 / 8);
  longest_run_ = std::max(longest_run_.load(), longest.count());
  reach(FaultEvent::step_end, program, step);
  return times;
}

Result<const ProgramRunner::Prepared*> ProgramRunner::prepare(std::uint32_t program, std::uint32_t index) {
  const auto key = std::pair(program, index);
  if (const auto found = prepared_.find(key); found != prepared_.end()) return &found->second;
  const auto& command = programs_->programs[program].commands[index];
  const auto& layout = seat_.layout;
  const auto& endpoints = seat_.endpoints;
  const auto row_bytes = [&](const cards::Slot& slot) { return slot.bytes() / std::max<std::uint64_t>(1, slot.shape[0]); };

  const auto holders = [&](std::uint32_t group, std::uint64_t rows) {
    std::vector<protocol::RowHolder> all;
    const auto ranges = layout.rows_of_group(group, rows);
    for (std::size_t rank = 0; rank < ranges.size(); ++rank) all.push_back({endpoints[group][rank], ranges[rank]});
    return all;
  };
  const auto slice_holders = [&](std::uint64_t rows) {
    std::vector<protocol::SliceRowHolder> all;
    const auto ranges = layout.rows_of_group(layout.group, rows);
    for (std::size_t rank = 0; rank < ranges.size(); ++rank)
      all.push_back({endpoints[layout.group][rank], layout.owned[layout.group][rank], ranges[rank]});
    return all;
  };

  Prepared prepared;
  const auto& output = programs_->slots[command.outputs[0]];
  switch (command.op) {
    case Op::all_gather_rows: {
      const auto source = command.attr(Attr::source_group, -1);
      const auto rows = output.shape[0];
      if (source < 0) {
        prepared.transfers = protocol::all_gather_rows(holders(layout.group, rows), rows, seat_.self(), row_bytes(output));
      } else {
        std::vector<protocol::RowHolder> everyone;
        for (const auto& group : endpoints)
          for (const auto endpoint : group) everyone.push_back({endpoint, {0, rows}});
        prepared.transfers = protocol::move_rows(holders(static_cast<std::uint32_t>(source), rows), everyone, seat_.self(),
                                                 row_bytes(output));
      }
      break;
    }
    case Op::reduce_scatter: {
      const auto& pieces = programs_->slots[command.inputs[0]];
      const auto rows = pieces.shape[1];
      std::vector<protocol::ReduceRank> group;
      for (const auto& holder : slice_holders(rows))
        group.push_back({holder.endpoint, holder.slices, holder.rows, seat_.nodes[layout.group][group.size()]});
      ORRERY_TRY(reduce, protocol::OrderedReduceScatter::create(layout.slice_count, std::move(group), seat_.self(), pieces.shape[2]));
      prepared.reduce = std::make_unique<protocol::OrderedReduceScatter>(std::move(reduce));
      break;
    }
    case Op::to_heads:
      prepared.transfers = protocol::tokens_to_heads(slice_holders(output.shape[1]), output.shape[1], seat_.self(),
                                                     output.shape[2] * size_of(output.dtype));
      break;
    case Op::to_tokens: {
      const auto& input = programs_->slots[command.inputs[0]];
      prepared.transfers = protocol::heads_to_tokens(slice_holders(input.shape[1]), input.shape[1], seat_.self(),
                                                     output.shape[2] * size_of(output.dtype));
      break;
    }
    default: ORRERY_CHECK(!"an exchange command");
  }
  return &prepared_.emplace(key, std::move(prepared)).first->second;
}

MessageKey ProgramRunner::key_of(std::uint32_t program, const cards::Command& command, std::uint32_t step) const {
  MessageKey key;
  key.request = request_;
  key.step = step;
  key.stream = static_cast<std::uint16_t>((seat_.stage << 8) | program);
  key.op = static_cast<std::uint32_t>(command.count(Attr::exchange));
  return key;
}

Result<protocol::Message> ProgramRunner::receive(const cards::Command& command, MessageKey key) {
  const trace::Span wait(exchange_row_, trace::Category::wait, command.label);
  auto message = exchange_.receive(key, clock_.now() + wait_limit_);
  if (message.ok()) return message;
  suspect(message.error(), key.source);
  return named(command, message.error());
}

Status ProgramRunner::send_pieces(const Prepared& prepared, const cards::Command& command, MessageKey key,
                                  std::optional<RowRange> rows) {
  const auto& reduce = *prepared.reduce;
  const auto pieces = command.inputs[0];
  const auto piece_bytes = reduce.pieces().empty() ? 0 : card_.memory(lane_, pieces).size() / reduce.pieces().size();
  for (const auto& due : reduce.sends()) {
    if (rows && due.rows != *rows) continue;
    key.target = due.target;
    key.part = due.part;
    auto sent = send_region(pieces, key, {due.piece * piece_bytes + due.offset, 1, due.bytes, due.bytes});
    if (!sent.ok()) return named(command, sent.error());
  }
  return Done{};
}

std::optional<ProgramRunner::Chain> ProgramRunner::chain_at(std::uint32_t program, std::uint32_t at, const std::vector<Begun>& begun) const {
  const auto& layout = seat_.layout;
  if (probe_.armed() || layout.split != compiler::Split::tensor || layout.rank_count() < 2) return std::nullopt;
  const auto& commands = programs_->programs[program].commands;
  const auto& slots = programs_->slots;
  if (!card_.runs_rows(commands[at].op)) return std::nullopt;
  const auto pending = [&](std::uint32_t index) {
    return std::any_of(begun.begin(), begun.end(), [&](const Begun& each) { return each.command == index; });
  };
  Chain chain;
  chain.begin = chain.end = at;
  for (const auto need : commands[at].after)
    if (pending(need)) {
      const auto& gather = commands[need];
      const bool own = gather.op == Op::all_gather_rows && gather.attr(Attr::source_group, -1) < 0;
      if (chain.gather || !own || gather.outputs[0] != commands[at].inputs[0]) return std::nullopt;
      chain.gather = need;
    }
  const auto rows_in = [&](const cards::Command& command) {
    const auto& shape = slots[command.inputs[0]].shape;
    return shape.size() == 2 ? shape[0] : shape[1];
  };
  const auto count = rows_in(commands[at]);
  chain.rows = layout.rows_of_group(layout.group, count);
  // Small parts would pay more for tiles that are not full than waiting costs.
  if (std::any_of(chain.rows.begin(), chain.rows.end(), [](const RowRange& rows) { return rows.count() < rows_min; })) return std::nullopt;

  const auto overlap = [&](cards::SlotId a, cards::SlotId b) {
    return a != b && slots[a].offset < slots[b].offset + slots[b].bytes() && slots[b].offset < slots[a].offset + slots[a].bytes();
  };
  const auto waits_for_others = [&](const cards::Command& command) {
    return std::any_of(command.after.begin(), command.after.end(), [&](std::uint32_t need) { return pending(need) && need != chain.gather; });
  };
  std::vector<cards::SlotId> used = {commands[at].inputs[0]}, touched;
  const auto uses = [&](cards::SlotId slot) { return std::find(used.begin(), used.end(), slot) != used.end(); };
  for (bool last = false; !last && chain.end < commands.size(); ++chain.end) {
    const auto& command = commands[chain.end];
    const auto output = command.outputs.empty() ? command.inputs[0] : command.outputs[0];
    if (command.queue == cards::Queue::exchange || !card_.runs_rows(command.op) || rows_in(command) != count || !uses(command.inputs[0])) break;
    // The first one's reuses are waited for before the chain.
    if (waits_for_others(command) || (chain.end > at && !command.reuses.empty())) break;
    // What a later row still reads must not lie where an earlier row is written.
    touched.insert(touched.end(), command.inputs.begin(), command.inputs.end());
    if (std::any_of(touched.begin(), touched.end(), [&](cards::SlotId each) { return overlap(each, output); })) break;
    touched.push_back(output);
    if (!uses(output)) used.push_back(output);
    last = command.op == Op::linear_from_slices;
  }
  if (chain.end == chain.begin) return std::nullopt;
  const auto& tail = commands[chain.end - 1];
  if (tail.op == Op::linear_from_slices && chain.end < commands.size()) {
    const auto& next = commands[chain.end];
    chain.reduces = next.op == Op::reduce_scatter && next.inputs[0] == tail.outputs[0] && next.reuses.empty() && !waits_for_others(next) &&
                    std::none_of(touched.begin(), touched.end(), [&](cards::SlotId each) { return overlap(each, next.outputs[0]); });
  }
  // Otherwise there is nothing to hide.
  if (!chain.gather && !chain.reduces) return std::nullopt;
  return chain;
}

Status ProgramRunner::run_chain(std::uint32_t program, const Chain& chain, std::uint32_t step, const cards::Scalars& scalars, RunTimes& times,
                                std::vector<Begun>& begun) {
  const auto& commands = programs_->programs[program].commands;
  const auto& layout = seat_.layout;
  const auto& endpoints = seat_.endpoints[layout.group];
  auto mark = clock_.now();
  const auto lap = [&](Duration& into) {
    const auto now = clock_.now();
    into += now - mark;
    mark = now;
  };
  const auto compute = [&](std::uint32_t begin, std::uint32_t end, std::uint32_t rank) -> Status {
    for (auto index = begin; index < end; ++index) ORRERY_TRY_DONE(card_.run_rows(lane_, program, index, chain.rows[rank], scalars));
    lap(times.compute);
    return Done{};
  };
  const Prepared *gather = nullptr, *reduce = nullptr;
  auto waiting = begun.end();
  if (chain.gather) {
    ORRERY_TRY(found, prepare(program, *chain.gather));
    gather = found;
    waiting = std::find_if(begun.begin(), begun.end(), [&](const Begun& one) { return one.command == *chain.gather; });
  }
  if (chain.reduces) {
    ORRERY_TRY(found, prepare(program, chain.end));
    reduce = found;
  }
  // The own rows wait for nobody; of the last product, those that leave come before those that stay.
  ORRERY_TRY_DONE(compute(chain.begin, chain.reduces ? chain.end - 1 : chain.end, layout.rank));
  const auto ranks = static_cast<std::uint32_t>(endpoints.size());
  const auto first_send = clock_.now();
  for (std::uint32_t turn = 1; turn < ranks; ++turn) {
    if (cancelled_) return Error{ErrorCode::cancelled, "request " + std::to_string(request_) + " was cancelled"};
    // No two ranks serve the same one at the same turn.
    const auto rank = (layout.rank + turn) % ranks;
    if (gather != nullptr) {
      const auto& command = commands[*chain.gather];
      const auto waited_from = clock_.now();
      Time arrived{};
      auto key = key_of(program, command, step);
      key.target = seat_.self();
      key.source = endpoints[rank];
      for (const auto& due : gather->transfers.receives) {
        if (due.source != endpoints[rank]) continue;
        key.part = due.part;
        ORRERY_TRY(message, receive(command, key));
        arrived = std::max(arrived, message.arrived);
        ORRERY_TRY_DONE(protocol::copy_in(message, due.region, card_.memory(lane_, command.outputs[0])));
      }
      times.hidden_exchange += std::max<Duration>(Duration::zero(), std::min(arrived, waited_from) - waiting->at) / (ranks - 1);
      lap(times.exchange);
    }
    ORRERY_TRY_DONE(compute(chain.begin, chain.end, rank));
    if (reduce == nullptr) continue;
    const trace::Span span(exchange_row_, trace::Category::exchange, commands[chain.end].label);
    auto key = key_of(program, commands[chain.end], step);
    key.source = seat_.self();
    ORRERY_TRY_DONE(send_pieces(*reduce, commands[chain.end], key, chain.rows[rank]));
    lap(times.exchange);
  }
  if (chain.gather) begun.erase(waiting);
  if (reduce == nullptr) return Done{};
  ORRERY_TRY_DONE(compute(chain.end - 1, chain.end, layout.rank));
  begun.push_back(begin_of(program, chain.end, first_send));
  return Done{};
}

Status ProgramRunner::begin_exchange(std::uint32_t program, std::uint32_t index, std::uint32_t step) {
  ORRERY_TRY(prepared, prepare(program, index));
  const auto& command = programs_->programs[program].commands[index];
  const trace::Span span(exchange_row_, trace::Category::exchange, command.label);
  auto key = key_of(program, command, step);
  key.source = seat_.self();
  const auto send = [&](cards::SlotId slot, protocol::EndpointId target, std::uint16_t part, const protocol::Region& region) -> Status {
    key.target = target;
    key.part = part;
    auto sent = send_region(slot, key, region);
    if (!sent.ok()) return named(command, sent.error());
    return Done{};
  };
  if (prepared->reduce) return send_pieces(*prepared, command, key, std::nullopt);
  // What this rank contributes; none when only another group sends.
  for (const auto& due : prepared->transfers.sends) ORRERY_TRY_DONE(send(command.inputs[0], due.target, due.part, due.region));
  const auto out = card_.memory(lane_, command.outputs[0]);
  for (const auto& copy : prepared->transfers.copies)
    protocol::copy_region(card_.memory(lane_, command.inputs[0]), copy.source, out, copy.target);
  return Done{};
}

ProgramRunner::Begun ProgramRunner::begin_of(std::uint32_t program, std::uint32_t command, Time at) const {
  Begun exchange{.command = command, .at = at};
  const auto found = prepared_.find({program, command});
  if (found == prepared_.end() || !found->second.reduce) return exchange;
  for (const auto& due : found->second.reduce->relays()) exchange.relays.emplace_back(due.receives.size());
  return exchange;
}

std::vector<std::span<const float>> ProgramRunner::own_pieces(const Prepared& prepared, const cards::Command& command) {
  const auto memory = card_.memory(lane_, command.inputs[0]);
  const auto count = prepared.reduce->pieces().size();
  std::vector<std::span<const float>> own;
  for (std::size_t i = 0; i < count; ++i) {
    const auto piece = memory.subspan(i * (memory.size() / count), memory.size() / count);
    own.push_back({reinterpret_cast<const float*>(piece.data()), piece.size() / sizeof(float)});
  }
  return own;
}

std::shared_ptr<std::vector<float>> ProgramRunner::relay_buffer(std::uint64_t count) {
  for (const auto& each : relay_buffers_)
    if (each.use_count() == 1) {
      // Whoever showed it last has read it before it let go.
      std::atomic_thread_fence(std::memory_order_acquire);
      each->resize(count);
      return each;
    }
  return relay_buffers_.emplace_back(std::make_shared<std::vector<float>>(count));
}

Status ProgramRunner::relay(std::uint32_t program, Begun& exchange, std::uint32_t step, bool wait) {
  if (exchange.relays.empty()) return Done{};
  ORRERY_TRY(prepared, prepare(program, exchange.command));
  const auto& reduce = *prepared->reduce;
  const auto& command = programs_->programs[program].commands[exchange.command];
  bool all_done = true;
  for (std::size_t i = 0; i < exchange.relays.size(); ++i) {
    auto& parts = exchange.relays[i];
    const auto& due = reduce.relays()[i];
    if (parts.empty()) continue;
    auto key = key_of(program, command, step);
    key.target = seat_.self();
    bool complete = true;
    for (std::size_t part = 0; part < parts.size(); ++part) {
      if (parts[part]) continue;
      key.source = due.receives[part].source;
      key.part = due.receives[part].part;
      if (wait) {
        ORRERY_TRY(message, receive(command, key));
        parts[part] = std::move(message);
      } else {
        parts[part] = exchange_.try_receive(key);
      }
      complete = complete && parts[part];
    }
    all_done = all_done && complete;
    if (!complete) continue;
    const trace::Span span(exchange_row_, trace::Category::exchange, command.label);
    std::vector<protocol::Message> received;
    for (auto& part : parts) received.push_back(std::move(*part));
    parts.clear();
    const auto sum = relay_buffer(due.rows.count() * reduce.width());
    ORRERY_TRY_DONE(reduce.relay(i, own_pieces(*prepared, command), received, *sum));
    key.source = seat_.self();
    key.target = due.target;
    key.part = due.part;
    if (auto sent = exchange_.send(key, DType::f32, {due.rows.count(), reduce.width()}, Shard(sum, std::as_bytes(std::span(*sum)))); !sent.ok())
      return named(command, sent.error());
  }
  if (all_done) exchange.relays.clear();
  return Done{};
}

Result<Time> ProgramRunner::end_exchange(std::uint32_t program, Begun& exchange, std::uint32_t step) {
  ORRERY_TRY(prepared, prepare(program, exchange.command));
  const auto& command = programs_->programs[program].commands[exchange.command];
  ORRERY_TRY_DONE(relay(program, exchange, step, true));
  const trace::Span span(exchange_row_, trace::Category::exchange, command.label);
  auto key = key_of(program, command, step);
  key.target = seat_.self();
  Time arrived{};
  const auto take = [&](protocol::EndpointId source, std::uint16_t part) -> Result<protocol::Message> {
    key.source = source;
    key.part = part;
    ORRERY_TRY(message, receive(command, key));
    arrived = std::max(arrived, message.arrived);
    return std::move(message);
  };
  const auto out = card_.memory(lane_, command.outputs[0]);
  if (prepared->reduce) {
    const auto& reduce = *prepared->reduce;
    std::vector<protocol::Message> received;
    received.reserve(reduce.receives().size());
    for (const auto& due : reduce.receives()) {
      ORRERY_TRY(message, take(due.source, due.part));
      received.push_back(std::move(message));
    }
    ORRERY_TRY_DONE(reduce.combine(own_pieces(*prepared, command), received, {reinterpret_cast<float*>(out.data()), out.size() / sizeof(float)}));
    return arrived;
  }
  for (const auto& due : prepared->transfers.receives) {
    ORRERY_TRY(message, take(due.source, due.part));
    ORRERY_TRY_DONE(protocol::copy_in(message, due.region, out));
  }
  return arrived;
}

Shard ProgramRunner::lend(cards::SlotId slot, std::span<const std::byte> bytes) {
  {
    const std::lock_guard lock(lent_->mutex);
    ++lent_->count[slot];
  }
  return {bytes, [lent = lent_, slot] {
            {
              const std::lock_guard lock(lent->mutex);
              --lent->count[slot];
            }
            lent->changed.notify_all();
          }};
}

Status ProgramRunner::send_region(cards::SlotId slot, const MessageKey& key, const protocol::Region& region) {
  const auto memory = card_.memory(lane_, slot);
  const auto dtype = programs_->slots[slot].dtype;
  const Shape shape = {region.runs, region.run_bytes / size_of(dtype)};
  if (region.contiguous())
    return exchange_.send(key, dtype, shape, lend(slot, memory.subspan(region.offset, region.bytes())));
  std::vector<std::byte> packed(region.bytes());
  protocol::copy_out(memory, region, packed);
  return exchange_.send(key, dtype, shape, Shard::of(std::move(packed)));
}

bool ProgramRunner::is_lent(cards::SlotId slot) const {
  const std::lock_guard lock(lent_->mutex);
  return lent_->count[slot] > 0;
}

Status ProgramRunner::wait_until_unlent(cards::SlotId slot) {
  std::unique_lock lock(lent_->mutex);
  const bool freed = lent_->changed.wait_for(lock, wait_limit_, [&] { return lent_->count[slot] == 0 || cancelled_; });
  if (cancelled_) return Error{ErrorCode::cancelled, "request " + std::to_string(request_) + " was cancelled"};
  if (!freed)
    return Error{ErrorCode::timed_out, "a neighbour of " + card_.options().name + " did not take '" + programs_->slots[slot].name +
                                           "' within " + std::to_string(seconds_of(deadline_)) + " s"};
  return Done{};
}

Status ProgramRunner::receive_into(cards::SlotId slot, std::uint32_t edge, std::uint32_t step, protocol::EndpointId source) {
  const trace::Span span(exchange_row_, trace::Category::exchange, programs_->slots[slot].name, {.request = request_, .step = step});
  MessageKey key{request_, step, edge_stream, 0, edge, source, seat_.self()};
  auto received = exchange_.receive(key, clock_.now() + deadline_);
  if (!received.ok()) {
    suspects_.clear();
    suspect(received.error(), source);
    return received.error();
  }
  const auto message = std::move(received).value();
  const auto memory = card_.memory(lane_, slot);
  if (message.bytes() != memory.size() || message.dtype != programs_->slots[slot].dtype)
    return Error{ErrorCode::bad_frame, "'" + programs_->slots[slot].name + "' needs " + std::to_string(memory.size()) +
                                           " bytes of " + std::string(name_of(programs_->slots[slot].dtype)) + ", but " +
                                           std::to_string(message.bytes()) + " bytes of " + std::string(name_of(message.dtype)) + " came"};
  message.copy_to(memory);
  return Done{};
}

Status ProgramRunner::send_from(cards::SlotId slot, std::uint32_t edge, std::uint32_t step,
                                std::span<const protocol::EndpointId> targets) {
  const auto& description = programs_->slots[slot];
  const trace::Span span(exchange_row_, trace::Category::exchange, description.name, {.request = request_, .step = step});
  // Copied, not lent: the next stage may be busy for long, and this lane must not wait for it.
  const auto copy = Shard::copy_of(card_.memory(lane_, slot));
  for (const auto target : targets) {
    const MessageKey key{request_, step, edge_stream, 0, edge, seat_.self(), target};
    ORRERY_TRY_DONE(exchange_.send(key, description.dtype, description.shape, copy));
  }
  return Done{};
}

}  // namespace orrery::actors
