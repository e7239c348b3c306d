#include "actors/trace_collector.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "actors/control_state.hpp"
#include "actors/trace_answer.hpp"

namespace orrery::actors {

namespace {

constexpr Duration round_pause = std::chrono::milliseconds(250);
constexpr double lease_seconds = 10;
constexpr std::uint32_t piece_events = 20'000;
constexpr Duration answer_timeout = std::chrono::seconds(2);
constexpr Duration end_limit = std::chrono::seconds(5);
constexpr int first_pings = 8;
// 96 bytes each in this process's memory, a hundred or more in the file.
constexpr std::size_t events_max = 6'000'000;
constexpr std::size_t notes_max = 32;

double wall_seconds_now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

TraceSource own_source(const std::string& process) {
  TraceSource source;
  source.process = process;
  source.pid = ::getpid();
  source.same_clock = true;
  return source;
}

}  // namespace

struct TraceCollector::State {
  struct Remote {
    TraceSource source;
    std::string clock_name;
    ClockOffsetEstimator clock;
  };

  Control& control;
  const std::string host;
  const std::uint16_t port;
  const std::string own_clock = trace::clock_name();
  const std::uint64_t reader = (std::uint64_t{std::random_device()()} << 32) | std::random_device()();
  TraceRecord record;  // Without the remote sources.
  TraceSource own = own_source("client");
  std::vector<Remote> remotes;
  std::set<std::string> nodes;  // That were up at some time.
  std::size_t events = 0;
  std::uint64_t refused = 0;  // Events beyond events_max.
  caf::actor coordinator;

  std::mutex mutex;
  std::condition_variable changed;
  bool ending = false;  // Guarded by mutex.
  bool begun = false;   // Guarded by mutex.
  std::thread thread;

  State(Control& control_, const std::string& host_, std::uint16_t port_) : control(control_), host(host_), port(port_) {}

  void note(const std::string& text) {
    auto& notes = record.notes;
    if (notes.size() < notes_max && std::find(notes.begin(), notes.end(), text) == notes.end()) notes.push_back(text);
  }

  Remote& remote(const TracePiece& piece) {
    const auto process = piece.node.empty() ? std::string("coordinator") : piece.node;
    std::uint32_t life = 1;
    for (auto& each : remotes) {
      if (each.source.process != process) continue;
      if (each.source.pid == piece.pid) return each;
      ++life;
    }
    Remote fresh;
    fresh.source.process = process;
    fresh.source.pid = piece.pid;
    fresh.source.life = life;
    fresh.clock_name = piece.clock;
    remotes.push_back(std::move(fresh));
    return remotes.back();
  }

  /// One question to one process; false when it gave no answer.
  bool ask(caf::scoped_actor& self, const std::string& node, double lease, std::uint32_t count, bool& more) {
    more = false;
    const auto who = node.empty() ? std::string("the coordinator") : "node " + node;
    if (!coordinator) {
      auto found = connect(control.state().system, host, port, std::chrono::seconds(1));
      if (!found.ok()) return note("the coordinator could not be reached for some time"), false;
      coordinator = std::move(found).value();
    }
    AskTrace question;
    question.reader = reader;
    question.node = node;
    question.lease_seconds = lease;
    question.events_max = count;
    std::optional<TracePiece> piece;
    std::string why;
    const auto sent = trace::now();
    self->request(coordinator, answer_timeout, question)
        .receive([&](TracePiece& answer) { piece = std::move(answer); },
                 [&](const caf::error& error) { why = error_of(control.state().system, error, who + " did not answer").message; });
    const auto received = trace::now();
    if (!piece) {
      coordinator = nullptr;  // It may be another one by now.
      note(why);
      return false;
    }
    if (!piece->failure.ok()) return note(who + ": " + piece->failure.message), false;
    auto& from = remote(*piece);
    from.clock.add({sent, piece->now, received});
    for (const auto& each : piece->nodes) nodes.insert(each);
    more = piece->more;
    if (piece->events.empty()) return true;
    auto batch = trace::unpack(piece->events);
    if (!batch.ok()) return note(who + ": " + batch.error().message), false;
    add(from.source, std::move(batch).value());
    return true;
  }

  void add(TraceSource& source, trace::Batch batch) {
    const auto room = events_max - events;
    if (batch.events.size() > room) {
      refused += batch.events.size() - room;
      batch.events.resize(room);
    }
    events += batch.events.size();
    add_batch(source, std::move(batch));
  }

  void take_own() {
    trace::record(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(lease_seconds)));
    add(own, trace::take(SIZE_MAX));
  }

  /// What everybody has; at most `pieces_max` from each, and not for longer than `end_limit`.
  void ask_all(caf::scoped_actor& self, double lease, int pieces_max) {
    const auto until = trace::now() + end_limit.count();
    std::vector<std::string> all{""};
    for (std::size_t i = 0; i < all.size(); ++i) {
      bool more = true;
      for (int pieces = 0; more && pieces < pieces_max; ++pieces) {
        if (trace::now() > until) return note("not everything was handed over in time");
        if (!ask(self, all[i], lease, piece_events, more)) break;
      }
      if (i == 0) all.insert(all.end(), nodes.begin(), nodes.end());
    }
  }

  void run() {
    caf::scoped_actor self{control.state().system};
    trace::record(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(lease_seconds)));
    ask_all(self, lease_seconds, 4);
    for (const auto& node : nodes) ping(self, node);
    ping(self, "");
    {
      const std::lock_guard lock(mutex);
      begun = true;
    }
    changed.notify_all();
    for (;;) {
      {
        std::unique_lock lock(mutex);
        changed.wait_for(lock, round_pause, [&] { return ending; });
        if (ending) break;
      }
      take_own();
      ask_all(self, lease_seconds, 4);
    }
    ask_all(self, 0, INT_MAX);
    add(own, trace::take(SIZE_MAX));
    trace::stop();
  }

  void ping(caf::scoped_actor& self, const std::string& node) {
    bool more = false;
    for (int i = 0; i < first_pings; ++i)
      if (!ask(self, node, lease_seconds, 0, more)) return;
  }

  void end() {
    {
      const std::lock_guard lock(mutex);
      ending = true;
    }
    changed.notify_all();
    if (thread.joinable()) thread.join();
  }
};

TraceCollector::TraceCollector(std::unique_ptr<State> state) : state_(std::move(state)) {}
TraceCollector::~TraceCollector() { state_->end(); }

std::unique_ptr<TraceCollector> TraceCollector::start(Control& control, const std::string& host, std::uint16_t port) {
  auto state = std::make_unique<State>(control, host, port);
  state->record.begin = trace::now();
  state->record.wall_seconds = wall_seconds_now();
  state->thread = std::thread([own = state.get()] { own->run(); });
  {
    std::unique_lock lock(state->mutex);
    state->changed.wait(lock, [&] { return state->begun; });
  }
  return std::unique_ptr<TraceCollector>(new TraceCollector(std::move(state)));
}

TraceRecord TraceCollector::finish() {
  auto& state = *state_;
  state.end();
  auto record = std::move(state.record);
  record.sources.push_back(std::move(state.own));
  for (auto& each : state.remotes) {
    settle_clock(each.source, each.clock, !state.own_clock.empty() && each.clock_name == state.own_clock);
    record.sources.push_back(std::move(each.source));
  }
  if (state.refused > 0)
    record.notes.push_back(std::to_string(state.refused) + " events beyond the first " + std::to_string(events_max) + " were left out");
  return record;
}

LocalTrace::LocalTrace() {
  record_.begin = trace::now();
  record_.wall_seconds = wall_seconds_now();
  trace::record(std::chrono::hours(24), std::uint64_t{512} << 20);
}
LocalTrace::~LocalTrace() { trace::stop(); }

TraceRecord LocalTrace::finish() {
  auto source = own_source("this process");
  add_batch(source, trace::take(SIZE_MAX));
  trace::stop();
  record_.sources.push_back(std::move(source));
  return std::move(record_);
}

}  // namespace orrery::actors
