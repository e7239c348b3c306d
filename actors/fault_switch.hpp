// One process's faults: armed, fired at a site or at once, healed. What `orrery fault` reaches in a node.
//
//   apply(order) ──▶ armed ── site reached ──▶ active ── heal, or its time is over ──▶ healed
//                      └── trigger `now` ────────┘  └─ the process is gone (kill, term, segv, abort)
//
//   ProgramRunner::run, FaultyCard ── reached(site) ─▶ FaultSwitch ─┬─▶ this process   (signals)
//                                                                   ├─▶ FaultyCard     (slow, hang, flip ...)
//                                                                   ├─▶ FaultyTransport (cut, delay, drop ...)
//                                                                   ├─▶ DiskFaults     (of the coordinator)
//                                                                   └─▶ fault points   (base/fault_point.hpp)
//
// How a process is wired (only with --allow-faults; without, there is no switch and `faults` is null everywhere):
//   1. std::unique_ptr<FaultSwitch> faults = make_unique<FaultSwitch>(clock), created first, destroyed last.
//   2. Transport: auto wrapped = make_unique<FaultyTransport>(move(zmq), FaultOptions{});
//      faults->bind_transport(wrapped.get()); hand `wrapped` to Exchange::create. Before the Exchange is destroyed:
//      faults->bind_transport(nullptr). After each plan: faults->set_peers({{"n2", 2}, ...}).
//   3. Each card made: auto wrapped = make_unique<FaultyCard>(move(cpu), clock); faults->bind_card(index in the node,
//      *wrapped). Before it is destroyed: faults->unbind_card(index). Before waiting for a hung card's threads:
//      wrapped->abort(), or they never end.
//   4. CardRuntime takes {faults.get(), index in the node} as its last argument and hands it to its ProgramRunners.
//   5. FaultCommand: inject -> fault_order_from_json(order), then apply; heal -> heal(order); list -> list().dump().
//   6. hang_node: bind_hang([actor](std::string name) { anon_send(actor, HangNode{name}); }), and the actor's handler
//      calls faults->wait_until_healed(name).
//   7. The coordinator: bind_disk(&faulty_storage.faults()), and the same FaultCommands with node "coordinator".
//
// Cost: `reached` is one relaxed load while nothing is armed; while something is, each command of a program is run
// by a call of its own, with the same bits. Requests are counted per order, by first reach after it was armed.

#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "actors/storage.hpp"
#include "base/clock.hpp"
#include "base/json.hpp"
#include "base/random.hpp"
#include "base/result.hpp"
#include "cards/faulty_card.hpp"
#include "protocol/faulty_transport.hpp"

namespace orrery::actors {

enum class FaultAction : std::uint8_t {
  // This process.
  kill,       // SIGKILL.
  term,       // SIGTERM: a clean exit in the middle of things.
  segv,       // SIGSEGV, as a bug in a kernel would.
  abort,      // SIGABRT.
  pause,      // SIGSTOP; SIGCONT comes after `for_seconds`, from a helper process, or from whoever stopped it.
  hang_node,  // The node's actor answers nobody; its cards and sockets go on.
  // A card.
  slow,              // factor
  hang,
  fail,              // times (0: until healed)
  refuse_memory,
  flip_weights,      // bits; at the next load
  flip_activations,  // bits
  crash_loading,     // bytes
  // Links.
  cut,
  stall,
  delay,  // latency, jitter, probability
  rate,   // bytes_per_second
  drop,   // probability, as for all below
  duplicate,
  reorder,
  corrupt,
  truncate,
  // The coordinator's disk.
  disk_full,
  fail_sync,    // times
  short_write,  // times
  torn_write,   // Ends the process in the middle of a write.
  // A fault point by name: point, effect, hit, times, latency.
  point,
};
std::string_view name_of(FaultAction action);
std::optional<FaultAction> fault_action_of(std::string_view name);
const std::vector<std::string>& fault_action_names();

enum class FaultEvent : std::uint8_t {
  now,
  command,     // Before a command of a program; `block` of its label, where it has one.
  step_begin,  // Before and after a denoising step's program.
  step_end,
  encode,  // Before a program of the text encoder.
  decode,  // Before a program of the decoder.
  load,    // A card has read half of a component's weights.
};
std::string_view name_of(FaultEvent event);

/// Where a program is when it asks for faults.
struct FaultSite {
  FaultEvent event = FaultEvent::command;
  std::uint32_t card = 0;  // Within the node.
  std::string_view stage = {};  // "denoiser"; empty while loading.
  std::string_view label = {};  // Of the command: "block3.attn1.q".
  std::uint64_t request = 0;
  std::uint32_t step = 0;  // Of the denoiser, from 1; 0: not in a step.
  std::optional<std::uint32_t> block = {};
};
/// 3 of "block3.attn1.q"; nothing when the label has no block.
std::optional<std::uint32_t> block_of_label(std::string_view label);

struct FaultParameters {
  double factor = 4;
  double latency = 0.05;  // Seconds.
  double jitter = 0;
  double bytes_per_second = 1e6;
  double probability = 1;  // Per frame.
  std::uint64_t bits = 1;
  std::uint64_t bytes = 0;
  std::uint64_t times = 1;
  std::uint64_t hit = 1;
  std::string point;            // "journal.before_fsync"
  std::string effect = "fail";  // crash, fail, delay, hang
};

/// What to do, to what within this process, when, and for how long.
struct FaultOrder {
  std::string name;  // Unique among the armed and active ones of a process.
  FaultAction action = FaultAction::kill;
  FaultParameters parameters;
  std::optional<std::uint32_t> card;  // Nothing: the card at the site; with `now`, all.
  std::string peer;                   // Node at the other end; empty: all.
  protocol::LinkDirection direction = protocol::LinkDirection::both;

  FaultEvent event = FaultEvent::now;
  std::uint64_t request = 0;  // Its number in order of first reach, from 1; 0: any.
  std::uint32_t step = 0;     // From 1; 0: any.
  std::optional<std::uint32_t> block;
  std::string stage;          // Empty: any.
  double chance = 1;          // At each matching site, by the seed.

  double for_seconds = 0;  // 0: until healed.
  std::uint64_t seed = 1;
};

/// Strict: unknown keys, wrong types and numbers out of range are refused with `usage` and the key's name.
///   {"name": "slow-one", "action": "slow", "card": 1, "when": {"event": "step_end", "request": 1, "step": 5},
///    "for_seconds": 5, "parameters": {"factor": 4}}
Result<FaultOrder> fault_order_from_json(std::string_view text);
/// The same, with what differs from the defaults.
OrderedJson json_of(const FaultOrder& order);

/// Threads:   any. `reached` may end or stop the process, and hangs are hangs of the card that is called next.
/// Ownership: borrows what is bound to it until it is unbound.
class FaultSwitch {
public:
  explicit FaultSwitch(const Clock& clock) : clock_(clock) {}
  ~FaultSwitch();
  FaultSwitch(const FaultSwitch&) = delete;
  FaultSwitch& operator=(const FaultSwitch&) = delete;

  void bind_card(std::uint32_t index, cards::FaultyCard& card);
  void unbind_card(std::uint32_t index);
  void bind_transport(protocol::FaultyTransport* transport);
  /// Nodes by name, this one's own left out.
  void set_peers(std::map<std::string, protocol::PeerId> peers);
  void bind_disk(DiskFaults* disk);
  void bind_hang(std::function<void(std::string name)> hang);

  /// Arms, or with `now` fires at once. Fails with usage for a name that is armed or active, and with not_found when
  /// this process has no such card, transport or disk.
  Status apply(FaultOrder order);
  /// Ends one by name, or with "" all, also those that still wait for their site. Fails with not_found.
  Status heal(const std::string& name);
  /// [{name, action, state: armed|active|healed, fired, seconds_ago, site: {...}, order: {...}}], in order of arming.
  OrderedJson list() const;
  /// Blocks until the fault of this name is not active.
  void wait_until_healed(const std::string& name);

  /// True while something waits for a site.
  bool armed() const { return armed_.load(std::memory_order_relaxed); }
  void reached(const FaultSite& site) {
    if (armed()) look(site);
  }

private:
  enum class State : std::uint8_t { armed, active, healed };
  struct Entry {
    FaultOrder order;
    Random random{1};
    State state = State::armed;
    std::map<std::uint64_t, std::uint64_t> requests;  // Number -> order of first reach.
    std::uint64_t fired = 0;
    Time fired_at{}, ends_at{};
    OrderedJson site;
    std::optional<std::uint32_t> card;  // That it was fired at.
  };

  void look(const FaultSite& site);
  bool matches(Entry& entry, const FaultSite& site);
  // All below under the mutex.
  void fire(Entry& entry, std::optional<std::uint32_t> card);
  void end(Entry& entry);
  void signal_self(const Entry& entry);
  void apply_to_card(const Entry& entry, cards::FaultyCard& card);
  void apply_links();
  void refresh();
  void watch_time();

  const Clock& clock_;
  std::atomic<bool> armed_{false};
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Entry> entries_;  // Healed ones stay in the list for people, the last 256.
  std::map<std::uint32_t, cards::FaultyCard*> cards_;
  protocol::FaultyTransport* transport_ = nullptr;
  std::map<std::string, protocol::PeerId> peers_;
  std::map<std::pair<protocol::PeerId, bool>, bool> touched_;  // Links that carry faults of ours; bool: incoming.
  DiskFaults* disk_ = nullptr;
  std::function<void(std::string)> hang_;
  std::thread timer_;  // Runs while something active has an end.
  bool closing_ = false;
};

}  // namespace orrery::actors
