#include "actors/fault_switch.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "base/fault_point.hpp"
#include "base/log.hpp"
#include "base/trace.hpp"

namespace orrery::actors {
namespace {

constexpr std::size_t healed_max = 256;
constexpr std::size_t entries_max = 1024;

struct ActionRow {
  FaultAction action;
  const char* name;
};
constexpr ActionRow actions[] = {
    {FaultAction::kill, "kill"},
    {FaultAction::term, "term"},
    {FaultAction::segv, "segv"},
    {FaultAction::abort, "abort"},
    {FaultAction::pause, "pause"},
    {FaultAction::hang_node, "hang_node"},
    {FaultAction::slow, "slow"},
    {FaultAction::hang, "hang"},
    {FaultAction::fail, "fail"},
    {FaultAction::refuse_memory, "refuse_memory"},
    {FaultAction::flip_weights, "flip_weights"},
    {FaultAction::flip_activations, "flip_activations"},
    {FaultAction::crash_loading, "crash_loading"},
    {FaultAction::cut, "cut"},
    {FaultAction::stall, "stall"},
    {FaultAction::delay, "delay"},
    {FaultAction::rate, "rate"},
    {FaultAction::drop, "drop"},
    {FaultAction::duplicate, "duplicate"},
    {FaultAction::reorder, "reorder"},
    {FaultAction::corrupt, "corrupt"},
    {FaultAction::truncate, "truncate"},
    {FaultAction::disk_full, "disk_full"},
    {FaultAction::fail_sync, "fail_sync"},
    {FaultAction::short_write, "short_write"},
    {FaultAction::torn_write, "torn_write"},
    {FaultAction::point, "point"},
};

constexpr const char* event_names[] = {"now", "command", "step_begin", "step_end", "encode", "decode", "load"};

bool of_card(FaultAction action) { return action >= FaultAction::slow && action <= FaultAction::crash_loading; }
bool of_link(FaultAction action) { return action >= FaultAction::cut && action <= FaultAction::truncate; }
bool of_disk(FaultAction action) { return action >= FaultAction::disk_full && action <= FaultAction::torn_write; }
bool of_process(FaultAction action) { return action <= FaultAction::pause; }

// ---- reading ------------------------------------------------------------------------------------------------

/// One JSON object, its keys taken one by one; what is left over is unknown.
class Keys {
public:
  Keys(const Json& json, std::string place) : json_(json), place_(std::move(place)) {
    if (!json.is_object()) complain("should be an object");
  }
  ~Keys() = default;

  void text(const char* key, std::string& into, std::size_t most = 128) {
    const auto* value = take(key);
    if (value == nullptr) return;
    if (!value->is_string() || value->get_ref<const std::string&>().size() > most) return complain("should be text", key);
    into = value->get<std::string>();
  }
  void number(const char* key, double& into, double least, double most) {
    const auto* value = take(key);
    if (value == nullptr) return;
    if (!value->is_number()) return complain("should be a number", key);
    const auto read = value->get<double>();
    if (!(read >= least && read <= most)) return complain("is out of range", key);
    into = read;
  }
  template <class T>
  void whole(const char* key, T& into, std::uint64_t least, std::uint64_t most) {
    const auto* value = take(key);
    if (value == nullptr) return;
    if (!value->is_number_unsigned()) return complain("should be a whole number", key);
    const auto read = value->get<std::uint64_t>();
    if (read < least || read > most) return complain("is out of range", key);
    into = static_cast<T>(read);
  }
  template <class T>
  void maybe_whole(const char* key, std::optional<T>& into, std::uint64_t most) {
    if (!json_.is_object() || !json_.contains(key)) return;
    T read{};
    whole(key, read, 0, most);
    into = read;
  }
  const Json* object(const char* key) { return take(key); }
  void complain(const std::string& what, const std::string& key = "") {
    if (error_) return;
    error_ = Error{ErrorCode::usage, (key.empty() ? place_ : place_ + "." + key) + " " + what};
  }
  std::optional<Error> error() {
    if (error_ || !json_.is_object()) return error_;
    for (const auto& [key, value] : json_.items())
      if (!taken_.contains(key)) complain("is not known", key.substr(0, 64));
    return error_;
  }

private:
  const Json* take(const char* key) {
    if (!json_.is_object()) return nullptr;
    taken_.insert(key);
    const auto found = json_.find(key);
    return found == json_.end() ? nullptr : &*found;
  }

  const Json& json_;
  const std::string place_;
  std::set<std::string> taken_;
  std::optional<Error> error_;
};

}  // namespace

std::string_view name_of(FaultAction action) {
  for (const auto& row : actions)
    if (row.action == action) return row.name;
  return "unknown";
}

std::optional<FaultAction> fault_action_of(std::string_view name) {
  for (const auto& row : actions)
    if (name == row.name) return row.action;
  return std::nullopt;
}

const std::vector<std::string>& fault_action_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const auto& row : actions) all.emplace_back(row.name);
    return all;
  }();
  return names;
}

std::string_view name_of(FaultEvent event) { return event_names[static_cast<std::size_t>(event)]; }

std::optional<std::uint32_t> block_of_label(std::string_view label) {
  constexpr std::string_view word = "block";
  const auto at = label.find(word);
  if (at == std::string_view::npos) return std::nullopt;
  std::uint32_t block = 0;
  const auto read = std::from_chars(label.data() + at + word.size(), label.data() + label.size(), block);
  return read.ec == std::errc() ? std::optional(block) : std::nullopt;
}

Result<FaultOrder> fault_order_from_json(std::string_view text) {
  auto parsed = parse_json(text, "fault");
  if (!parsed.ok()) return Error{ErrorCode::usage, parsed.error().message};
  FaultOrder order;
  Keys keys(parsed.value(), "fault");
  keys.text("name", order.name);
  if (order.name.empty()) keys.complain("is missing", "name");
  std::string action;
  keys.text("action", action);
  if (const auto known = fault_action_of(action)) order.action = *known;
  else keys.complain("is not an action", "action");
  keys.maybe_whole("card", order.card, 65'535);
  keys.text("peer", order.peer);
  std::string direction = "both";
  keys.text("direction", direction);
  if (direction == "out") order.direction = protocol::LinkDirection::out;
  else if (direction == "in") order.direction = protocol::LinkDirection::in;
  else if (direction != "both") keys.complain("should be out, in or both", "direction");
  keys.number("for_seconds", order.for_seconds, 0, 86'400);
  keys.whole("seed", order.seed, 0, ~std::uint64_t{0});
  if (const auto* when = keys.object("when")) {
    Keys site(*when, "fault.when");
    std::string event = "now";
    site.text("event", event);
    const auto found = std::find(std::begin(event_names), std::end(event_names), event);
    if (found == std::end(event_names)) site.complain("is not an event", "event");
    else order.event = static_cast<FaultEvent>(found - std::begin(event_names));
    site.whole("request", order.request, 0, 1'000'000);
    site.whole("step", order.step, 0, 1'000'000);
    site.maybe_whole("block", order.block, 1'000'000);
    site.text("stage", order.stage);
    site.number("chance", order.chance, 0, 1);
    if (auto error = site.error()) return *error;
  }
  if (const auto* given = keys.object("parameters")) {
    auto& parameters = order.parameters;
    Keys each(*given, "fault.parameters");
    each.number("factor", parameters.factor, 1, 1e6);
    each.number("latency", parameters.latency, 0, 3600);
    each.number("jitter", parameters.jitter, 0, 3600);
    each.number("bytes_per_second", parameters.bytes_per_second, 1, 1e15);
    each.number("probability", parameters.probability, 0, 1);
    each.whole("bits", parameters.bits, 1, 1'000'000);
    each.whole("bytes", parameters.bytes, 0, std::uint64_t{1} << 50);
    each.whole("times", parameters.times, 0, 1'000'000'000);
    each.whole("hit", parameters.hit, 1, 1'000'000'000);
    each.text("point", parameters.point);
    each.text("effect", parameters.effect);
    static const std::set<std::string> effects = {"crash", "fail", "delay", "hang"};
    if (!effects.contains(parameters.effect)) each.complain("should be crash, fail, delay or hang", "effect");
    if (auto error = each.error()) return *error;
  }
  if (order.action == FaultAction::point && order.parameters.point.empty()) keys.complain("needs parameters.point", "action");
  if (auto error = keys.error()) return *error;
  return order;
}

OrderedJson json_of(const FaultOrder& order) {
  const FaultOrder standard;
  OrderedJson json{{"name", order.name}, {"action", name_of(order.action)}};
  if (order.card) json["card"] = *order.card;
  if (!order.peer.empty()) json["peer"] = order.peer;
  if (order.direction != standard.direction) json["direction"] = order.direction == protocol::LinkDirection::out ? "out" : "in";
  OrderedJson when = OrderedJson::object(), parameters = OrderedJson::object();
  if (order.event != standard.event) when["event"] = name_of(order.event);
  if (order.request != 0) when["request"] = order.request;
  if (order.step != 0) when["step"] = order.step;
  if (order.block) when["block"] = *order.block;
  if (!order.stage.empty()) when["stage"] = order.stage;
  if (order.chance < 1) when["chance"] = order.chance;
  if (!when.empty()) json["when"] = when;
  if (order.for_seconds > 0) json["for_seconds"] = order.for_seconds;
  if (order.seed != standard.seed) json["seed"] = order.seed;
  const auto add = [&](const char* name, const auto& value, const auto& usual) {
    if (value != usual) parameters[name] = value;
  };
  const auto &p = order.parameters, &q = standard.parameters;
  add("factor", p.factor, q.factor);
  add("latency", p.latency, q.latency);
  add("jitter", p.jitter, q.jitter);
  add("bytes_per_second", p.bytes_per_second, q.bytes_per_second);
  add("probability", p.probability, q.probability);
  add("bits", p.bits, q.bits);
  add("bytes", p.bytes, q.bytes);
  add("times", p.times, q.times);
  add("hit", p.hit, q.hit);
  add("point", p.point, q.point);
  add("effect", p.effect, q.effect);
  if (!parameters.empty()) json["parameters"] = parameters;
  return json;
}

// ---- what is bound ------------------------------------------------------------------------------------------

FaultSwitch::~FaultSwitch() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    for (auto& entry : entries_) entry.state = State::healed;
    armed_ = false;
    changed_.notify_all();
  }
  if (timer_.joinable()) timer_.join();
}

void FaultSwitch::bind_card(std::uint32_t index, cards::FaultyCard& card) {
  // Half-way is told once a load; loads of one card come one after the other.
  card.on_load([this, index, told = false](std::uint64_t done, std::uint64_t total) mutable {
    if (done == 0) told = false;
    if (told || done * 2 < total || total == 0) return;
    told = true;
    reached({.event = FaultEvent::load, .card = index});
  });
  const std::lock_guard lock(mutex_);
  cards_[index] = &card;
  for (const auto& entry : entries_)
    if (entry.state == State::active && of_card(entry.order.action) && entry.card.value_or(index) == index) apply_to_card(entry, card);
}

void FaultSwitch::unbind_card(std::uint32_t index) {
  const std::lock_guard lock(mutex_);
  cards_.erase(index);
}

void FaultSwitch::bind_transport(protocol::FaultyTransport* transport) {
  const std::lock_guard lock(mutex_);
  transport_ = transport;
  touched_.clear();
  apply_links();
}

void FaultSwitch::set_peers(std::map<std::string, protocol::PeerId> peers) {
  const std::lock_guard lock(mutex_);
  peers_ = std::move(peers);
  apply_links();
}

void FaultSwitch::bind_disk(DiskFaults* disk) {
  const std::lock_guard lock(mutex_);
  disk_ = disk;
}

void FaultSwitch::bind_hang(std::function<void(std::string)> hang) {
  const std::lock_guard lock(mutex_);
  hang_ = std::move(hang);
}

// ---- orders -------------------------------------------------------------------------------------------------

Status FaultSwitch::apply(FaultOrder order) {
  const std::lock_guard lock(mutex_);
  const auto action = order.action;
  std::size_t healed = 0;
  for (const auto& entry : entries_) {
    healed += entry.state == State::healed;
    if (entry.order.name == order.name && entry.state != State::healed)
      return Error{ErrorCode::usage, "fault '" + order.name + "' is " + (entry.state == State::armed ? "armed" : "active") + " already",
                   "heal it first, or choose another name"};
  }
  if (entries_.size() >= entries_max) return Error{ErrorCode::pool_exhausted, "too many faults are armed", "heal some first"};
  if (of_card(action) && order.card && !cards_.contains(*order.card) && !cards_.empty())
    return Error{ErrorCode::not_found, "this node has no card " + std::to_string(*order.card)};
  if (of_link(action) && transport_ == nullptr) return Error{ErrorCode::not_found, "this process has no links that can fail"};
  if (of_disk(action) && disk_ == nullptr)
    return Error{ErrorCode::not_found, "this process has no disk that can fail", "the coordinator has"};
  if (action == FaultAction::hang_node && !hang_) return Error{ErrorCode::not_found, "this process has no node actor"};
  for (auto each = entries_.begin(); healed > healed_max && each != entries_.end();) {
    if (each->state == State::healed) {
      each = entries_.erase(each);
      --healed;
    } else {
      ++each;
    }
  }
  auto& entry = entries_.emplace_back();
  entry.order = std::move(order);
  entry.random = Random(entry.order.seed);
  log_event(Level::info, "fault.armed", {{"name", entry.order.name}, {"action", std::string(name_of(action))}});
  if (entry.order.event == FaultEvent::now) fire(entry, entry.order.card);
  refresh();
  return Done{};
}

Status FaultSwitch::heal(const std::string& name) {
  const std::lock_guard lock(mutex_);
  bool found = name.empty();
  for (auto& entry : entries_) {
    if (entry.state == State::healed || (!name.empty() && entry.order.name != name)) continue;
    found = true;
    end(entry);
  }
  refresh();
  if (!found) return Error{ErrorCode::not_found, "no fault '" + name + "' is armed or active"};
  return Done{};
}

OrderedJson FaultSwitch::list() const {
  const std::lock_guard lock(mutex_);
  auto all = OrderedJson::array();
  for (const auto& entry : entries_) {
    const char* state = entry.state == State::armed ? "armed" : entry.state == State::active ? "active" : "healed";
    OrderedJson row{{"name", entry.order.name}, {"action", name_of(entry.order.action)}, {"state", state}, {"fired", entry.fired}};
    if (entry.fired > 0) {
      row["seconds_ago"] = seconds_of(clock_.now() - entry.fired_at);
      if (!entry.site.empty()) row["site"] = entry.site;
    }
    row["order"] = json_of(entry.order);
    all.push_back(std::move(row));
  }
  return all;
}

void FaultSwitch::wait_until_healed(const std::string& name) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return std::none_of(entries_.begin(), entries_.end(),
                        [&](const Entry& entry) { return entry.order.name == name && entry.state == State::active; });
  });
}

// ---- sites --------------------------------------------------------------------------------------------------

bool FaultSwitch::matches(Entry& entry, const FaultSite& site) {
  const auto& order = entry.order;
  std::uint64_t number = 0;
  if (site.request != 0) number = entry.requests.emplace(site.request, entry.requests.size() + 1).first->second;
  if (order.event != site.event) return false;
  if (order.card && *order.card != site.card) return false;
  if (order.request != 0 && order.request != number) return false;
  if (order.step != 0 && order.step != site.step) return false;
  if (order.block && order.block != site.block) return false;
  if (!order.stage.empty() && order.stage != site.stage) return false;
  return order.chance >= 1 || entry.random.uniform() < order.chance;
}

void FaultSwitch::look(const FaultSite& site) {
  const std::lock_guard lock(mutex_);
  bool any = false;
  for (auto& entry : entries_) {
    if (entry.state != State::armed || !matches(entry, site)) continue;
    any = true;
    entry.site = OrderedJson{{"event", name_of(site.event)}, {"card", site.card}};
    if (!site.stage.empty()) entry.site["stage"] = site.stage;
    if (!site.label.empty()) entry.site["label"] = site.label;
    if (site.request != 0) entry.site["request"] = site.request;
    if (site.step != 0) entry.site["step"] = site.step;
    // The process's own and its links have no card.
    fire(entry, of_card(entry.order.action) ? std::optional(entry.order.card.value_or(site.card)) : std::nullopt);
  }
  if (any) refresh();
}

void FaultSwitch::fire(Entry& entry, std::optional<std::uint32_t> card) {
  const auto action = entry.order.action;
  entry.state = State::active;
  entry.card = card;
  entry.fired_at = clock_.now();
  ++entry.fired;
  const bool timed = entry.order.for_seconds > 0;
  if (timed) entry.ends_at = entry.fired_at + Duration(static_cast<std::int64_t>(entry.order.for_seconds * 1e9));
  trace::instant(trace::track("faults"), trace::Category::incident, "fault fired",
                 {0, trace::no_step, 0, entry.order.name + ": " + std::string(name_of(action))});
  log_event(Level::info, "fault.fired", {{"name", entry.order.name}, {"action", std::string(name_of(action))}});
  const auto& parameters = entry.order.parameters;
  if (of_process(action)) {
    signal_self(entry);
    entry.state = State::healed;  // Whoever reads this is alive and running.
    return;
  }
  if (of_card(action)) {
    for (auto& [index, each] : cards_)
      if (card.value_or(index) == index) apply_to_card(entry, *each);
  }
  if (of_link(action)) apply_links();
  if (of_disk(action) && disk_ != nullptr) {
    const auto times = static_cast<std::uint32_t>(parameters.times == 0 ? 1'000'000'000 : parameters.times);
    if (action == FaultAction::disk_full) disk_->full = true;
    if (action == FaultAction::fail_sync) disk_->failed_syncs = times;
    if (action == FaultAction::short_write) disk_->short_writes = times;
    if (action == FaultAction::torn_write) disk_->torn_write = true;
  }
  if (action == FaultAction::hang_node && hang_) hang_(entry.order.name);
  if (action == FaultAction::point) {
    ArmedFaultPoint point;
    point.point = parameters.point;
    point.action = parameters.effect == "crash"   ? FaultPointAction::crash
                   : parameters.effect == "delay" ? FaultPointAction::delay
                   : parameters.effect == "hang"  ? FaultPointAction::hang
                                                  : FaultPointAction::fail;
    point.hit = parameters.hit;
    point.times = parameters.times;
    point.delay = Duration(static_cast<std::int64_t>(parameters.latency * 1e9));
    arm_fault_point(std::move(point));
  }
  if (timed) {
    if (!timer_.joinable()) timer_ = std::thread([this] { watch_time(); });
    changed_.notify_all();
  }
}

void FaultSwitch::signal_self(const Entry& entry) {
  switch (entry.order.action) {
    case FaultAction::term: ::kill(::getpid(), SIGTERM); return;
    case FaultAction::segv:
      ::signal(SIGSEGV, SIG_DFL);
      ::raise(SIGSEGV);
      return;
    case FaultAction::abort:
      ::signal(SIGABRT, SIG_DFL);
      ::raise(SIGABRT);
      return;
    case FaultAction::pause: break;
    default: ::kill(::getpid(), SIGKILL); return;
  }
  if (entry.order.for_seconds > 0) {
    // Who is stopped cannot wake itself: a grandchild does, so that nobody has to wait for it. It keeps no
    // file open, and between fork and its end calls only what is safe beside other threads.
    const auto self = ::getpid();
    timespec rest{static_cast<time_t>(entry.order.for_seconds),
                  static_cast<long>(std::fmod(entry.order.for_seconds, 1.0) * 1e9)};
    const auto child = ::fork();
    if (child == 0) {
      ::close_range(0, ~0U, 0);
      if (::fork() != 0) ::_exit(0);
      while (::nanosleep(&rest, &rest) != 0) {
      }
      ::kill(self, SIGCONT);
      ::_exit(0);
    }
    if (child < 0) return;  // Nobody would wake us.
    ::waitpid(child, nullptr, 0);
  }
  ::kill(::getpid(), SIGSTOP);
}

void FaultSwitch::apply_to_card(const Entry& entry, cards::FaultyCard& card) {
  const auto& parameters = entry.order.parameters;
  switch (entry.order.action) {
    case FaultAction::slow: card.slow(parameters.factor); break;
    case FaultAction::hang: card.hang(); break;
    case FaultAction::fail:
      card.fail({ErrorCode::internal, "card " + card.options().name + " failed: an injected fault"}, parameters.times);
      break;
    case FaultAction::refuse_memory: card.refuse_memory(); break;
    case FaultAction::flip_weights: card.flip_weights(parameters.bits, entry.order.seed); break;
    case FaultAction::flip_activations: card.flip_activations(parameters.bits, entry.order.seed); break;
    case FaultAction::crash_loading: card.crash_while_loading(parameters.bytes); break;
    default: break;
  }
}

void FaultSwitch::apply_links() {
  if (transport_ == nullptr) return;
  const auto seconds = [](double value) { return Duration(static_cast<std::int64_t>(value * 1e9)); };
  for (const auto& [name, peer] : peers_) {
    for (const bool incoming : {false, true}) {
      protocol::LinkFaults faults;
      bool any = false;
      for (const auto& entry : entries_) {
        const auto& order = entry.order;
        if (entry.state != State::active || !of_link(order.action)) continue;
        if (!order.peer.empty() && order.peer != name) continue;
        if (order.direction == (incoming ? protocol::LinkDirection::out : protocol::LinkDirection::in)) continue;
        any = true;
        const auto& parameters = order.parameters;
        faults.seed = order.seed;
        switch (order.action) {
          case FaultAction::cut: faults.cut = true; break;
          case FaultAction::stall: faults.stall = true; break;
          case FaultAction::delay:
            faults.delay = seconds(parameters.latency);
            faults.jitter = seconds(parameters.jitter);
            faults.delay_share = parameters.probability;
            break;
          case FaultAction::rate: faults.bytes_per_second = parameters.bytes_per_second; break;
          case FaultAction::drop: faults.drop = parameters.probability; break;
          case FaultAction::duplicate: faults.duplicate = parameters.probability; break;
          case FaultAction::reorder: faults.reorder = parameters.probability; break;
          case FaultAction::corrupt: faults.corrupt = parameters.probability; break;
          default: faults.truncate = parameters.probability; break;
        }
      }
      auto& touched = touched_[{peer, incoming}];
      if (!any && !touched) continue;
      touched = any;
      transport_->set_link(peer, incoming ? protocol::LinkDirection::in : protocol::LinkDirection::out, faults);
    }
  }
}

void FaultSwitch::end(Entry& entry) {
  const bool was_active = entry.state == State::active;
  entry.state = State::healed;
  changed_.notify_all();
  if (!was_active) return;
  const auto action = entry.order.action;
  log_event(Level::info, "fault.healed", {{"name", entry.order.name}, {"action", std::string(name_of(action))}});
  if (of_card(action)) {
    for (auto& [index, card] : cards_) {
      if (entry.card.value_or(index) != index) continue;
      card->heal();
      for (const auto& other : entries_)
        if (other.state == State::active && of_card(other.order.action) && other.card.value_or(index) == index)
          apply_to_card(other, *card);
    }
  }
  if (of_link(action)) apply_links();
  if (of_disk(action) && disk_ != nullptr) {
    if (action == FaultAction::disk_full) disk_->full = false;
    if (action == FaultAction::fail_sync) disk_->failed_syncs = 0;
    if (action == FaultAction::short_write) disk_->short_writes = 0;
    if (action == FaultAction::torn_write) disk_->torn_write = false;
  }
  if (action == FaultAction::point) disarm_fault_point(entry.order.parameters.point);
}

void FaultSwitch::refresh() {
  armed_ = std::any_of(entries_.begin(), entries_.end(), [](const Entry& entry) { return entry.state == State::armed; });
}

void FaultSwitch::watch_time() {
  std::unique_lock lock(mutex_);
  while (!closing_) {
    const auto now = clock_.now();
    std::optional<Time> next;
    bool ended = false;
    for (auto& entry : entries_) {
      if (entry.state != State::active || entry.order.for_seconds <= 0) continue;
      if (entry.ends_at <= now) {
        end(entry);
        ended = true;
      } else {
        next = next ? std::min(*next, entry.ends_at) : entry.ends_at;
      }
    }
    if (ended) refresh();
    if (next) changed_.wait_for(lock, std::min<Duration>(*next - now, std::chrono::seconds(1)));
    else changed_.wait(lock);
  }
}

}  // namespace orrery::actors
