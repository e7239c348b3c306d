// Runs one card's programs: compute commands on the card, exchange commands through the Exchange.
//
// The one place where cards/ and protocol/ meet. Card memory is lent to the Exchange for sending, so a command
// that would overwrite lent bytes first waits until they are let go (Command::reuses). In-order programs with the
// same exchange commands on every rank cannot deadlock that way: the rank that is furthest behind always has, or
// will get, what it waits for, since nobody ahead of it waits for anything it has not passed.
//
// An exchange command is begun at its place (its sends leave, its own part is copied) and ended where its result is first
// needed (Command::after), in the order of their beginnings, so that what the compiler put between the two hides it. Who waits
// for anything has taken before what was sent to it: the argument above still holds. Around an exchange, products go by the
// rows of each rank: after a gather with the rows that are there, then with each rank's as they come; before a reduction with
// each other rank's rows, which leave at once, and last with the own ones. A feed-forward layer is both.
//
// Cards of one node add up for cards of other nodes (ordered_reduce_scatter.hpp): between commands as far as the parts have
// come, and at the latest where the reduction ends, before its own rows are waited for. Such parts are waited for only from
// ranks that have to begin the same exchange, so the argument above holds for them as well.
//
// Plain code, no CAF: a lane worker thread calls it.

#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "actors/fault_switch.hpp"
#include "base/clock.hpp"
#include "base/trace.hpp"
#include "cards/card.hpp"
#include "compiler/layout.hpp"
#include "protocol/collective/ordered_reduce_scatter.hpp"
#include "protocol/collective/transfer.hpp"
#include "protocol/exchange.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

struct RunTimes {
  Duration compute{};
  Duration exchange{};         // Waiting for others, copying in and out: exposed.
  Duration hidden_exchange{};  // From when an exchange was begun to when its last message came, as far as this card computed meanwhile.
  Duration stall{};            // Part of `compute`: waiting for weights.
  std::uint64_t copied_bytes = 0;
};

/// Where this card stands in its stage, and with whom it talks.
struct Seat {
  std::uint8_t stage = 0;
  compiler::Layout layout;
  /// endpoints[group][rank]: the cards' numbers in the plan.
  std::vector<std::vector<protocol::EndpointId>> endpoints;
  /// nodes[group][rank]: alike for cards of one node.
  std::vector<std::vector<std::uint32_t>> nodes;
  protocol::EndpointId self() const { return endpoints[layout.group][layout.rank]; }
};

/// What a plan says of one rank of a stage.
Seat seat_of(const topology::Plan& plan, const topology::PlannedStage& stage, std::uint32_t group, std::uint32_t rank);

/// Where a card's programs ask for injected faults; usually nowhere.
struct FaultProbe {
  FaultSwitch* faults = nullptr;
  std::uint32_t card = 0;  // Within the node.
  bool armed() const { return faults != nullptr && faults->armed(); }
};

/// One request's lane on one card.
///
/// Threads:   one at a time; `cancel` from any.
/// Ownership: card and exchange must outlive it, and the card's memory the exchange's sends. The destructor waits
///            until all lent bytes are let go, two seconds at most: a dead neighbour never lets go, and what it would
///            have been sent no longer matters.
class ProgramRunner {
public:
  ProgramRunner(cards::Card& card, protocol::Exchange& exchange, const Clock& clock, const Seat& seat, std::uint64_t request,
                cards::LaneId lane, std::shared_ptr<const cards::ProgramSet> programs, Duration deadline,
                FaultProbe probe = {});
  ~ProgramRunner();
  ProgramRunner(const ProgramRunner&) = delete;
  ProgramRunner& operator=(const ProgramRunner&) = delete;

  /// Runs a whole program. Each wait for others ends with timed_out: after `deadline` at first, later after a multiple of
  /// what this program took before, so that a card that hangs is noticed in seconds; `cancel` ends it with cancelled.
  /// `runs_left`: how often it will be run again in a row, for the card to copy weights ahead.
  Result<RunTimes> run(std::uint32_t program, std::uint32_t step, const cards::Scalars& scalars, std::uint32_t runs_left = 0);

  /// Fills a slot with a message from an edge (see edges.hpp).
  Status receive_into(cards::SlotId slot, std::uint32_t edge, std::uint32_t step, protocol::EndpointId source);
  /// Sends a copy of a slot over an edge; one copy for all targets.
  Status send_from(cards::SlotId slot, std::uint32_t edge, std::uint32_t step, std::span<const protocol::EndpointId> targets);
  /// The longest of the last runs; zero before the first.
  Duration longest_run() const { return Duration(longest_run_.load()); }
  /// Cards that a failed call waited for in vain; empty when the failure was of another kind.
  const std::vector<protocol::EndpointId>& suspects() const { return suspects_; }

  void cancel() { cancelled_ = true; }
  const cards::ProgramSet& programs() const { return *programs_; }
  std::span<std::byte> memory(cards::SlotId slot) { return card_.memory(lane_, slot); }
  cards::LaneId lane() const { return lane_; }

private:
  struct Lent;
  struct Prepared {
    protocol::TransferList transfers;
    std::unique_ptr<protocol::OrderedReduceScatter> reduce;
  };

  /// Only while a fault is armed.
  void reach(FaultEvent event, std::uint32_t program, std::uint32_t step, std::string_view label = {}) const;
  /// An exchange command that was begun and whose messages are not taken yet.
  struct Begun {
    std::uint32_t command = 0;
    Time at{};
    /// By relay: the parts that have come; empty once it was sent on.
    std::vector<std::vector<std::optional<protocol::Message>>> relays = {};
  };
  Begun begin_of(std::uint32_t program, std::uint32_t command, Time at) const;
  /// Adds up and sends on what this card adds for other nodes: all of it, waiting for its parts, or what is there.
  Status relay(std::uint32_t program, Begun& exchange, std::uint32_t step, bool wait);
  Status begin_exchange(std::uint32_t program, std::uint32_t index, std::uint32_t step);
  /// Commands that are run by the rows of each rank: [begin, end), fed by a gather that was begun (or by nothing that is
  /// on its way), and feeding the reduction at `end` (or nothing).
  struct Chain {
    std::uint32_t begin = 0, end = 0;
    std::optional<std::uint32_t> gather;
    bool reduces = false;
    std::vector<RowRange> rows;  // By rank.
  };
  std::optional<Chain> chain_at(std::uint32_t program, std::uint32_t at, const std::vector<Begun>& begun) const;
  Status run_chain(std::uint32_t program, const Chain& chain, std::uint32_t step, const cards::Scalars& scalars, RunTimes& times,
                   std::vector<Begun>& begun);
  Status send_pieces(const Prepared& prepared, const cards::Command& command, protocol::MessageKey key, std::optional<RowRange> rows);
  std::vector<std::span<const float>> own_pieces(const Prepared& prepared, const cards::Command& command);
  /// Memory for `count` values that is free again when nobody shows it.
  std::shared_ptr<std::vector<float>> relay_buffer(std::uint64_t count);
  Result<protocol::Message> receive(const cards::Command& command, protocol::MessageKey key);
  /// Takes what is due; says when the last of it came.
  Result<Time> end_exchange(std::uint32_t program, Begun& exchange, std::uint32_t step);
  protocol::MessageKey key_of(std::uint32_t program, const cards::Command& command, std::uint32_t step) const;
  Result<const Prepared*> prepare(std::uint32_t program, std::uint32_t index);
  Status send_region(cards::SlotId slot, const protocol::MessageKey& key, const protocol::Region& region);
  bool is_lent(cards::SlotId slot) const;
  Status wait_until_unlent(cards::SlotId slot);
  Shard lend(cards::SlotId slot, std::span<const std::byte> bytes);
  void suspect(const Error& error, protocol::EndpointId source);

  cards::Card& card_;
  protocol::Exchange& exchange_;
  const Clock& clock_;
  const Seat seat_;
  const std::uint64_t request_;
  const cards::LaneId lane_;
  const trace::Track step_row_, exchange_row_;
  const std::shared_ptr<const cards::ProgramSet> programs_;
  const Duration deadline_;
  const FaultProbe probe_;
  std::map<std::uint32_t, Duration> measured_;  // By program: the longest of its last runs, slowly forgotten.
  std::atomic<Duration::rep> longest_run_{0};
  Duration wait_limit_;                         // Of the run at hand.
  std::vector<protocol::EndpointId> suspects_;
  std::atomic<bool> cancelled_{false};
  std::shared_ptr<Lent> lent_;
  std::vector<std::shared_ptr<std::vector<float>>> relay_buffers_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Prepared> prepared_;  // By program and command.
};

}  // namespace orrery::actors
