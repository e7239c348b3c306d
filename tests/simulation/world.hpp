// A whole cluster in one thread: CAF's test coordinator, a virtual clock, control links and a data network, all turned
// by one seed.
//
//   World ── jobs of actors, in seeded order ──▶ events and timers that are due ──▶ the clock jumps to the next one
//
//   Process   one life of one process: its actors, its Exchange. Pause it, and nothing of it runs; kill it, and all
//             that is volatile is gone.
//   Wire      what an actor of one process sees of an actor in another one: forwards messages (requests and answers
//             too) in order, each after a delay. A cut link holds them; after `break_after` both ends are told that
//             the other is gone.
//   Gate      the data plane's end of a process: the product's FaultyTransport over the product's loopback network,
//             held while the process is paused.
//
// CAF's advance_time moves the clock before it fires timers, so nothing here uses it: timers fire one by one.
// Same seed, same trace hash.

#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include <caf/actor_proxy.hpp>
#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>

#include "actors/messages.hpp"
#include "base/clock.hpp"
#include "base/random.hpp"
#include "protocol/exchange.hpp"
#include "protocol/faulty_transport.hpp"
#include "protocol/loopback_transport.hpp"

namespace orrery::simulation {

class World;
class Gate;

/// One life of a process. Never reused.
struct Process {
  std::uint64_t number = 0;  // Of this life, among all.
  std::string host;          // "coordinator", "n1", "c2": the same in every life.
  bool alive = true;
  bool paused = false;
  bool crashing = false;     // A fault point was reached: nothing leaves any more; killed after the job at hand.
  bool dirty = false;        // Its exchange may have something to do.
  bool poll_wanted = false;  // Somebody may find what it waits for.
  Time exchange_due = Time::max();
  std::unique_ptr<protocol::Exchange> exchange;
  Gate* gate = nullptr;  // Of `exchange`.
  std::function<void()> poll;
  std::function<void()> on_killed;  // Volatile state goes here, after the actors.
  std::vector<caf::strong_actor_ptr> actors;
};
using ProcessPointer = std::shared_ptr<Process>;

/// The virtual clock as product code sees it.
class VirtualClock final : public Clock {
public:
  explicit VirtualClock(const World& world) : world_(world) {}
  Time now() const override;

private:
  const World& world_;
};

class World {
public:
  static constexpr Duration break_after = std::chrono::seconds(5);

  explicit World(std::uint64_t seed);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  caf::actor_system& system() { return *system_; }
  const Clock& clock() const { return clock_; }
  Time now() const;
  Random& random() { return random_; }
  /// Uniform.
  Duration between(Duration least, Duration most);

  /// Runs `what` when the clock has come to now + `delay`.
  void at(Duration delay, std::function<void()> what);
  /// The same, unless the process has died by then; waits while it is paused.
  void at(const ProcessPointer& process, Duration delay, std::function<void()> what);

  ProcessPointer start(const std::string& host);
  /// All of its actors die at once, unheard; then `on_killed`.
  void kill(ProcessPointer process);
  void pause(const ProcessPointer& process);
  void resume(const ProcessPointer& process);
  /// The life whose code runs now; null outside.
  const ProcessPointer& running() const { return running_; }

  /// Spawns an actor in a process.
  template <class... Arguments>
  caf::actor spawn_in(const ProcessPointer& process, Arguments&&... arguments) {
    const auto before = system_->latest_actor_id();
    auto actor = system_->spawn(std::forward<Arguments>(arguments)...);
    adopt(process, before);
    return actor;
  }
  /// How `viewer` sees an actor that lives elsewhere.
  caf::actor wire(const ProcessPointer& viewer, const caf::actor& target);

  /// Makes the process's exchange, over a faulty transport, with a session of its own.
  void make_exchange(const ProcessPointer& process, protocol::PeerId self, std::uint64_t cluster_id);

  /// Control messages from one host to another are held; after break_after the connection breaks.
  void cut(const std::string& from, const std::string& to);
  void heal(const std::string& from, const std::string& to);
  bool is_cut(const std::string& from, const std::string& to) const;

  /// One thing happens. False when nothing ever will.
  bool step();
  void run_until(Time until, const std::function<bool()>& done);

  /// Told of each control message as it leaves: from, to, its type.
  std::function<void(const Process& from, const Process& to, const caf::message& message)> on_control;

  /// Part of the run's identity.
  void note(std::uint64_t value);
  void note(std::string_view text);
  std::uint64_t hash() const { return hash_; }
  std::uint64_t steps() const { return steps_; }
  std::size_t mailbox_high() const { return mailbox_high_; }
  /// Lines for people, when switched on.
  void trace(const std::string& line);
  void set_trace(std::function<void(const std::string&)> sink) { trace_ = std::move(sink); }

private:
  friend class Wire;
  friend class Gate;
  /// Between two hosts, one direction.
  struct Link {
    bool cut = false;
    std::uint64_t broken = 0;  // So often.
  };
  using LinkKey = std::pair<std::string, std::string>;
  /// Between two lives: in order. What a dead process has sent still arrives.
  struct Connection {
    LinkKey link;
    Time last{};
    std::deque<std::function<void()>> held;  // While the link is cut.
  };
  Connection& connection(const ProcessPointer& from, const ProcessPointer& to);
  void carry(const ProcessPointer& from, const ProcessPointer& to, std::function<void()> deliver);

  void adopt(const ProcessPointer& process, caf::actor_id after);
  ProcessPointer process_of(caf::actor_id actor) const;
  caf::message translate(caf::message message, const ProcessPointer& from, const ProcessPointer& to);
  caf::actor seen_by(const ProcessPointer& from, const ProcessPointer& to, const caf::actor& actor);
  caf::strong_actor_ptr sender_for(const caf::strong_actor_ptr& sender, const ProcessPointer& to);
  void transmit(const ProcessPointer& from, const ProcessPointer& to, std::function<void()> deliver);
  void break_link(const std::string& a, const std::string& b);
  bool run_job();
  void settle(const ProcessPointer& process);
  void pump();
  void want_pump();
  Time next_caf_timer() const;

  std::uint64_t seed_;
  Random random_;
  caf::actor_system_config config_;
  std::unique_ptr<caf::actor_system> system_;
  caf::scheduler::test_coordinator* scheduler_ = nullptr;
  VirtualClock clock_;
  protocol::LoopbackNetwork network_;
  std::map<std::pair<Time, std::uint64_t>, std::function<void()>> events_;
  std::uint64_t next_event_ = 0, next_process_ = 1;
  std::vector<ProcessPointer> processes_;  // Living.
  std::unordered_map<caf::actor_id, std::weak_ptr<Process>> owners_;
  std::map<std::pair<std::uint64_t, caf::actor_id>, caf::strong_actor_ptr> wires_;  // By viewer and target.
  std::map<LinkKey, Link> links_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, Connection> connections_;
  ProcessPointer running_;
  bool pump_scheduled_ = false;
  std::uint64_t hash_ = 0xcbf29ce484222325ULL;
  std::uint64_t steps_ = 0;
  std::size_t mailbox_high_ = 0;
  std::function<void(const std::string&)> trace_;
};

/// See the top of this file. Threads: one.
class Gate final : public protocol::Transport {
public:
  Gate(World& world, ProcessPointer process, std::unique_ptr<protocol::FaultyTransport> inner);

  protocol::FaultyTransport& faults() { return *inner_; }
  void release_held();

  void start(protocol::TransportHandlers handlers) override;
  void close() override { inner_->close(); }
  protocol::PeerId self() const override { return inner_->self(); }
  std::string address() const override { return inner_->address(); }
  Status add_peer(protocol::PeerId peer, const std::string& address) override { return inner_->add_peer(peer, address); }
  void remove_peer(protocol::PeerId peer) override { inner_->remove_peer(peer); }
  Status send(protocol::PeerId peer, const protocol::HeaderBytes& header, Shard payload) override;
  protocol::TransportStatistics statistics() const override { return inner_->statistics(); }

private:
  struct Held {
    protocol::PeerId from = 0;
    std::vector<std::byte> header;
    Shard payload;
  };
  World& world_;
  std::weak_ptr<Process> process_;
  std::unique_ptr<protocol::FaultyTransport> inner_;
  protocol::TransportHandlers handlers_;
  std::deque<Held> held_;
};

}  // namespace orrery::simulation
