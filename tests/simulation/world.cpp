#include "world.hpp"

#include <algorithm>
#include <typeinfo>

#include "base/digest.hpp"

namespace orrery::simulation {

using namespace actors;

namespace {

/// The clock's timers are protected; a derived class may name them.
struct Timers : caf::detail::test_actor_clock {
  static const schedule_map& of(const caf::detail::test_actor_clock& clock) { return clock.*(&Timers::schedule_); }
};

const char* type_text(const caf::message& message) {
  if (message.empty()) return "nothing";
  const auto type = message.type(0);
  return type.second != nullptr ? type.second->name() : "builtin";
}

}  // namespace

/// What one process sees of an actor in another.
class Wire final : public caf::actor_proxy {
public:
  Wire(caf::actor_config& config, World& world, ProcessPointer viewer, caf::strong_actor_ptr target, ProcessPointer owner)
      : caf::actor_proxy(config), world_(world), viewer_(std::move(viewer)), target_(std::move(target)), owner_(std::move(owner)) {}

  using caf::abstract_actor::enqueue;
  void enqueue(caf::mailbox_element_ptr what, caf::execution_unit*) override {
    if (!open_) return;
    if (world_.on_control && viewer_->alive && !viewer_->crashing) world_.on_control(*viewer_, *owner_, what->copy_content_to_message());
    auto content = std::make_shared<caf::message>(world_.translate(what->move_content_to_message(), viewer_, owner_));
    const auto mid = what->mid;
    const auto sender = world_.sender_for(what->sender, owner_);
    world_.transmit(viewer_, owner_, [world = &world_, target = target_, owner = owner_, viewer = viewer_, content, mid, sender] {
      world->note(viewer->host);
      world->note(type_text(*content));
      world->trace(viewer->host + " -> " + owner->host + " " + type_text(*content));
      target->get()->enqueue(sender, mid, std::move(*content), nullptr);
    });
  }
  void kill_proxy(caf::execution_unit* context, caf::error reason) override {
    open_ = false;
    target_ = nullptr;
    cleanup(std::move(reason), context);
  }

  const ProcessPointer& viewer() const { return viewer_; }
  const ProcessPointer& owner() const { return owner_; }
  const caf::strong_actor_ptr& target() const { return target_; }
  bool open() const { return open_; }

private:
  World& world_;
  const ProcessPointer viewer_;
  caf::strong_actor_ptr target_;
  const ProcessPointer owner_;
  bool open_ = true;
};

Time VirtualClock::now() const { return world_.now(); }

World::World(std::uint64_t seed) : seed_(seed), random_(seed), clock_(*this) {
  config_.add_message_types<caf::id_block::orrery>();
  config_.set("scheduler.policy", caf::atom("testing"));
  config_.set("logger.verbosity", caf::atom("quiet"));
  system_ = std::make_unique<caf::actor_system>(config_);
  scheduler_ = &dynamic_cast<caf::scheduler::test_coordinator&>(system_->scheduler());
  scheduler_->clock().current_time = caf::actor_clock::time_point(std::chrono::seconds(1000));
}

World::~World() {
  trace_ = {};
  events_.clear();
  const auto all = processes_;
  for (const auto& process : all) kill(process);
  for (auto& [key, proxy] : wires_) {
    auto* wire = dynamic_cast<Wire*>(proxy->get());
    if (wire != nullptr && wire->open()) wire->kill_proxy(nullptr, caf::exit_reason::kill);
  }
  wires_.clear();
  links_.clear();
  connections_.clear();
  events_.clear();
  while (scheduler_->has_job()) scheduler_->run_once();
}

Time World::now() const {
  return std::chrono::time_point_cast<Duration>(static_cast<caf::scheduler::test_coordinator*>(scheduler_)->clock().current_time);
}

Duration World::between(Duration least, Duration most) {
  return least + Duration(static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>((most - least).count()) + 1)));
}

void World::at(Duration delay, std::function<void()> what) { events_.emplace(std::pair{now() + delay, next_event_++}, std::move(what)); }

void World::at(const ProcessPointer& process, Duration delay, std::function<void()> what) {
  at(delay, [this, process, what = std::move(what)] {
    if (!process->alive) return;
    if (process->paused) return at(process, std::chrono::milliseconds(10), what);
    const auto before = std::exchange(running_, process);
    process->dirty = process->poll_wanted = true;
    what();
    running_ = before;
    settle(process);
  });
}

// ---- processes ----------------------------------------------------------------------------------------------------

ProcessPointer World::start(const std::string& host) {
  auto process = std::make_shared<Process>();
  process->number = next_process_++;
  process->host = host;
  processes_.push_back(process);
  trace("start " + host);
  return process;
}

void World::adopt(const ProcessPointer& process, caf::actor_id after) {
  if (system_->latest_actor_id() == after) return;
  for (auto* job : scheduler_->jobs) {
    auto* actor = dynamic_cast<caf::scheduled_actor*>(job);
    if (actor == nullptr || actor->id() <= after || owners_.contains(actor->id())) continue;
    owners_[actor->id()] = process;
    process->actors.emplace_back(actor->ctrl());
  }
}

ProcessPointer World::process_of(caf::actor_id actor) const {
  const auto found = owners_.find(actor);
  return found == owners_.end() ? nullptr : found->second.lock();
}

void World::kill(ProcessPointer process) {
  if (!process->alive) return;
  trace("kill " + process->host);
  note("kill");
  note(process->host);
  process->alive = false;
  processes_.erase(std::find(processes_.begin(), processes_.end(), process));
  auto& jobs = scheduler_->jobs;
  for (const auto& pointer : process->actors) {
    auto* actor = dynamic_cast<caf::scheduled_actor*>(pointer->get());
    for (auto job = jobs.begin(); job != jobs.end();)
      if (*job == static_cast<caf::resumable*>(actor)) {
        caf::intrusive_ptr_release(*job);
        job = jobs.erase(job);
      } else {
        ++job;
      }
    if (actor->getf(caf::abstract_actor::is_terminated_flag)) continue;
    actor->on_exit();
    actor->cleanup(caf::make_error(caf::exit_reason::kill), system_->dummy_execution_unit());
  }
  if (process->on_killed) process->on_killed();
  process->on_killed = {};
  process->poll = {};
  process->gate = nullptr;
  process->exchange.reset();
  process->actors.clear();
  for (auto each = wires_.begin(); each != wires_.end();)
    each = each->first.first == process->number ? wires_.erase(each) : std::next(each);
}

void World::pause(const ProcessPointer& process) {
  trace("pause " + process->host);
  process->paused = true;
}

void World::resume(const ProcessPointer& process) {
  if (!process->alive || !process->paused) return;
  trace("resume " + process->host);
  process->paused = false;
  process->dirty = process->poll_wanted = true;
  if (process->gate != nullptr) process->gate->release_held();
}

void World::make_exchange(const ProcessPointer& process, protocol::PeerId self, std::uint64_t cluster_id) {
  protocol::FaultOptions none;
  auto faulty = std::make_unique<protocol::FaultyTransport>(network_.make_transport(self, 1U << 20), none);
  auto gate = std::make_unique<Gate>(*this, process, std::move(faulty));
  process->gate = gate.get();
  protocol::ExchangeOptions options;
  options.cluster_id = cluster_id;
  options.session = random_.next() | 1;
  options.chunk_bytes = 256;  // Small tensors, several chunks.
  options.window_bytes = 16 << 10;
  options.unclaimed_bytes_max = 256 << 10;
  options.own_timer = false;
  auto exchange = protocol::Exchange::create(options, std::move(gate), clock_);
  ORRERY_CHECK(exchange.ok());
  process->exchange = std::move(exchange).value();
}

// ---- wires --------------------------------------------------------------------------------------------------------

caf::actor World::wire(const ProcessPointer& viewer, const caf::actor& target) {
  const auto owner = process_of(target.id());
  if (!owner || owner == viewer) return target;
  auto& slot = wires_[{viewer->number, target.id()}];
  if (slot) {
    if (static_cast<Wire*>(slot->get())->open()) return caf::actor_cast<caf::actor>(slot);
    slot = nullptr;
  }
  caf::actor_config config;
  const auto pointer = caf::actor_cast<caf::strong_actor_ptr>(target);
  slot = caf::make_actor<Wire, caf::strong_actor_ptr>(system_->next_actor_id(), system_->node(), system_.get(), config, *this, viewer, pointer, owner);
  const auto weak = caf::actor_cast<caf::weak_actor_ptr>(slot);
  // When the actor is no more, whoever sees it hears of that, in order with what it said.
  target->attach_functor([this, weak, viewer, owner](const caf::error& reason) {
    auto told = reason;
    carry(owner, viewer, [weak, viewer, told] {
      if (!viewer->alive) return;
      const auto strong = weak.lock();
      if (!strong) return;
      auto* proxy = static_cast<Wire*>(strong->get());
      if (proxy->open()) proxy->kill_proxy(nullptr, told);
    });
  });
  return caf::actor_cast<caf::actor>(slot);
}

caf::actor World::seen_by(const ProcessPointer& from, const ProcessPointer& to, const caf::actor& actor) {
  if (!actor) return actor;
  if (auto* proxy = dynamic_cast<Wire*>(caf::actor_cast<caf::abstract_actor*>(actor))) {
    if (!proxy->target()) return actor;
    if (proxy->owner() == to) return caf::actor_cast<caf::actor>(proxy->target());
    return wire(to, caf::actor_cast<caf::actor>(proxy->target()));
  }
  static_cast<void>(from);
  return wire(to, actor);
}

caf::strong_actor_ptr World::sender_for(const caf::strong_actor_ptr& sender, const ProcessPointer& to) {
  if (!sender) return sender;
  return caf::actor_cast<caf::strong_actor_ptr>(wire(to, caf::actor_cast<caf::actor>(sender)));
}

caf::message World::translate(caf::message message, const ProcessPointer& from, const ProcessPointer& to) {
  const auto map = [&](caf::actor& actor) { actor = seen_by(from, to, actor); };
  const auto map_all = [&](std::vector<caf::actor>& all) {
    for (auto& each : all) map(each);
  };
  if (message.match_elements<NodeHello>()) {
    auto copy = message.get_as<NodeHello>(0);
    map(copy.node);
    return caf::make_message(copy);
  }
  if (message.match_elements<LoadPlan>()) {
    auto copy = message.get_as<LoadPlan>(0);
    map(copy.coordinator);
    return caf::make_message(copy);
  }
  if (message.match_elements<StageSpawned>()) {
    auto copy = message.get_as<StageSpawned>(0);
    map_all(copy.stage);
    return caf::make_message(copy);
  }
  if (message.match_elements<CardHandle>()) {
    auto copy = message.get_as<CardHandle>(0);
    map_all(copy.card);
    return caf::make_message(copy);
  }
  if (message.match_elements<Submit>()) {
    auto copy = message.get_as<Submit>(0);
    map(copy.client);
    return caf::make_message(copy);
  }
  if (message.match_elements<StageRun>()) {
    auto copy = message.get_as<StageRun>(0);
    map(copy.listener);
    return caf::make_message(copy);
  }
  return message;
}

World::Connection& World::connection(const ProcessPointer& from, const ProcessPointer& to) {
  auto& found = connections_[{from->number, to->number}];
  found.link = {from->host, to->host};
  return found;
}

void World::carry(const ProcessPointer& from, const ProcessPointer& to, std::function<void()> deliver) {
  auto& way = connection(from, to);
  const auto& link = links_[way.link];
  auto arrive = [this, to, key = way.link, broken = link.broken, deliver = std::move(deliver)] {
    // Bytes that were on the way when the connection broke are lost.
    if (to->alive && links_[key].broken == broken) deliver();
  };
  if (link.cut) {
    way.held.push_back(std::move(arrive));
    return;
  }
  way.last = std::max(way.last, now() + between(std::chrono::microseconds(50), std::chrono::microseconds(800)));
  events_.emplace(std::pair{way.last, next_event_++}, std::move(arrive));
}

void World::transmit(const ProcessPointer& from, const ProcessPointer& to, std::function<void()> deliver) {
  if (!from->alive || from->crashing || !to->alive) return;
  carry(from, to, std::move(deliver));
}

void World::cut(const std::string& from, const std::string& to) {
  auto& link = links_[{from, to}];
  if (link.cut) return;
  trace("cut " + from + " -> " + to);
  link.cut = true;
  at(break_after, [this, from, to, broken = link.broken] {
    const auto& now_link = links_[{from, to}];
    if (now_link.cut && now_link.broken == broken) break_link(from, to);
  });
}

void World::heal(const std::string& from, const std::string& to) {
  auto& link = links_[{from, to}];
  if (!link.cut) return;
  trace("heal " + from + " -> " + to);
  link.cut = false;
  for (auto& [lives, way] : connections_) {
    if (way.link != LinkKey{from, to}) continue;
    while (!way.held.empty()) {
      way.last = std::max(way.last, now() + between(std::chrono::microseconds(50), std::chrono::milliseconds(20)));
      events_.emplace(std::pair{way.last, next_event_++}, std::move(way.held.front()));
      way.held.pop_front();
    }
  }
}

bool World::is_cut(const std::string& from, const std::string& to) const {
  const auto found = links_.find({from, to});
  return found != links_.end() && found->second.cut;
}

void World::break_link(const std::string& a, const std::string& b) {
  trace("break " + a + " - " + b);
  for (const auto& key : {LinkKey{a, b}, LinkKey{b, a}}) {
    ++links_[key].broken;
    for (auto& [lives, way] : connections_)
      if (way.link == key) way.held.clear();
  }
  std::vector<caf::strong_actor_ptr> broken;
  for (const auto& [key, pointer] : wires_) {
    const auto* proxy = static_cast<const Wire*>(pointer->get());
    const auto &from = proxy->viewer()->host, &to = proxy->owner()->host;
    if (proxy->open() && ((from == a && to == b) || (from == b && to == a))) broken.push_back(pointer);
  }
  for (const auto& pointer : broken) static_cast<Wire*>(pointer->get())->kill_proxy(nullptr, caf::exit_reason::remote_link_unreachable);
}

// ---- the loop -----------------------------------------------------------------------------------------------------

bool World::run_job() {
  auto& jobs = scheduler_->jobs;
  if (jobs.empty()) return false;
  std::vector<std::size_t> ready;
  std::vector<ProcessPointer> owners;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    auto* actor = dynamic_cast<caf::scheduled_actor*>(jobs[i]);
    auto owner = actor == nullptr ? nullptr : process_of(actor->id());
    if (owner && owner->paused) continue;
    ready.push_back(i);
    owners.push_back(std::move(owner));
  }
  if (ready.empty()) return false;
  const auto chosen = random_.below(ready.size());
  const auto index = static_cast<std::ptrdiff_t>(ready[chosen]);
  std::rotate(jobs.begin(), jobs.begin() + index, jobs.begin() + index + 1);
  if (auto* actor = dynamic_cast<caf::scheduled_actor*>(jobs.front())) {
    mailbox_high_ = std::max(mailbox_high_, static_cast<std::size_t>(actor->mailbox().size()));
    note(actor->id());
  }
  const auto before = system_->latest_actor_id();
  running_ = owners[chosen];
  if (running_) running_->dirty = running_->poll_wanted = true;
  scheduler_->run_once();
  const auto process = std::exchange(running_, nullptr);
  if (!process) return true;
  adopt(process, before);
  std::erase_if(process->actors, [](const caf::strong_actor_ptr& each) { return each->get()->getf(caf::abstract_actor::is_terminated_flag); });
  settle(process);
  return true;
}

// A fault point ended the process in the middle of what it did.
void World::settle(const ProcessPointer& process) {
  if (process->crashing && process->alive) kill(process);
  want_pump();
}

void World::want_pump() {
  if (pump_scheduled_) return;
  pump_scheduled_ = true;
  at(between(std::chrono::microseconds(20), std::chrono::microseconds(400)), [this] { pump(); });
}

void World::pump() {
  pump_scheduled_ = false;
  const auto count = 1 + random_.below(6);
  for (std::uint64_t i = 0; i < count; ++i)
    if (!network_.deliver_one()) return;
  const auto all = processes_;
  for (const auto& process : all)
    if (process->crashing) kill(process);
  want_pump();
}

Time World::next_caf_timer() const {
  const auto& timers = Timers::of(scheduler_->clock());
  return timers.empty() ? Time::max() : std::chrono::time_point_cast<Duration>(timers.begin()->first);
}

bool World::step() {
  ++steps_;
  if (run_job()) return true;
  const auto all = processes_;
  bool polled = false;
  for (const auto& process : all) {
    if (process->paused || !process->alive) continue;
    if (process->poll_wanted) {
      process->poll_wanted = false;
      running_ = process;
      if (process->poll) process->poll();
      running_ = nullptr;
      process->dirty = true;
      polled = true;
      settle(process);
    }
    if (process->alive && process->exchange && process->dirty) {
      process->dirty = false;
      process->exchange_due = process->exchange->tick();
      want_pump();
    }
  }
  if (polled) return true;
  const auto timer = next_caf_timer();
  const auto event = events_.empty() ? Time::max() : events_.begin()->first.first;
  auto exchange = Time::max();
  ProcessPointer ticking;
  for (const auto& process : processes_)
    if (!process->paused && process->exchange && process->exchange_due < exchange) {
      exchange = process->exchange_due;
      ticking = process;
    }
  const auto next = std::min({timer, event, exchange});
  if (next == Time::max()) return false;
  auto& clock = scheduler_->clock();
  if (next > now()) clock.current_time = next;
  if (event == next) {
    auto what = std::move(events_.begin()->second);
    events_.erase(events_.begin());
    note(static_cast<std::uint64_t>(now().time_since_epoch().count()));
    what();
  } else if (timer == next) {
    clock.trigger_timeout();
  } else {
    ticking->exchange_due = ticking->exchange->tick();
    // Due at once, and still not done: a refused send asks again later.
    if (ticking->exchange_due <= now()) ticking->exchange_due = now() + std::chrono::milliseconds(1);
    want_pump();
  }
  return true;
}

void World::run_until(Time until, const std::function<bool()>& done) {
  while (now() < until && !done())
    if (!step()) return;
}

void World::note(std::uint64_t value) {
  for (int i = 0; i < 8; ++i) hash_ = (hash_ ^ ((value >> (8 * i)) & 0xff)) * 0x100000001b3ULL;
}
void World::note(std::string_view text) { note(xxh3_of(std::as_bytes(std::span(text.data(), text.size())))); }

void World::trace(const std::string& line) {
  if (!trace_) return;
  char time[32];
  std::snprintf(time, sizeof time, "%10.6f ", seconds_of(now() - Time(std::chrono::seconds(1000))));
  trace_(time + line);
}

// ---- the data plane -----------------------------------------------------------------------------------------------

Gate::Gate(World& world, ProcessPointer process, std::unique_ptr<protocol::FaultyTransport> inner)
    : world_(world), process_(process), inner_(std::move(inner)) {}

void Gate::start(protocol::TransportHandlers handlers) {
  handlers_ = std::move(handlers);
  inner_->start({.on_frame =
                     [this](protocol::PeerId from, std::span<const std::byte> header, Shard payload) {
                       const auto process = process_.lock();
                       if (!process || !process->alive || process->crashing) return;
                       if (process->paused) {
                         held_.push_back({from, {header.begin(), header.end()}, std::move(payload)});
                         return;
                       }
                       world_.note(xxh3_of(header));
                       const auto before = std::exchange(world_.running_, process);
                       process->dirty = process->poll_wanted = true;
                       handlers_.on_frame(from, header, std::move(payload));
                       world_.running_ = before;
                     },
                 .on_hint =
                     [this](protocol::PeerId peer, protocol::PeerHint hint) {
                       const auto process = process_.lock();
                       if (process && process->alive && !process->crashing && !process->paused) {
                         process->dirty = true;
                         handlers_.on_hint(peer, hint);
                       }
                     }});
}

Status Gate::send(protocol::PeerId peer, const protocol::HeaderBytes& header, Shard payload) {
  const auto process = process_.lock();
  if (!process || process->crashing) return Done{};
  return inner_->send(peer, header, std::move(payload));
}

void Gate::release_held() {
  auto held = std::move(held_);
  held_.clear();
  for (auto& each : held) handlers_.on_frame(each.from, each.header, std::move(each.payload));
}

}  // namespace orrery::simulation
