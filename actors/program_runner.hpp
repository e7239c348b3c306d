// Runs one card's programs: compute commands on the card, exchange commands through the Exchange.
//
// The one place where cards/ and protocol/ meet. Card memory is lent to the Exchange for sending, so a command
// that would overwrite lent bytes first waits until they are let go (Command::reuses). In-order programs with the
// same exchange commands on every rank cannot deadlock that way: the rank that is furthest behind always has, or
// will get, what it waits for, since nobody ahead of it waits for anything it has not passed.
//
// Plain code, no CAF: a lane worker thread calls it.

#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "cards/card.hpp"
#include "compiler/layout.hpp"
#include "protocol/collective/ordered_reduce_scatter.hpp"
#include "protocol/collective/transfer.hpp"
#include "protocol/exchange.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

struct RunTimes {
  Duration compute{};
  Duration exchange{};  // Waiting for others, copying in and out.
};

/// Where this card stands in its stage, and with whom it talks.
struct Seat {
  std::uint8_t stage = 0;
  compiler::Layout layout;
  /// endpoints[group][rank]: the cards' numbers in the plan.
  std::vector<std::vector<protocol::EndpointId>> endpoints;
  protocol::EndpointId self() const { return endpoints[layout.group][layout.rank]; }
};

/// What a plan says of one rank of a stage.
Seat seat_of(const topology::PlannedStage& stage, std::uint32_t group, std::uint32_t rank);

/// One request's lane on one card.
///
/// Threads:   one at a time; `cancel` from any.
/// Ownership: card and exchange must outlive it, and the card's memory the exchange's sends. The destructor waits
///            until all lent bytes are let go, two seconds at most: a dead neighbour never lets go, and what it would
///            have been sent no longer matters.
class ProgramRunner {
public:
  ProgramRunner(cards::Card& card, protocol::Exchange& exchange, const Clock& clock, const Seat& seat, std::uint64_t request,
                cards::LaneId lane, std::shared_ptr<const cards::ProgramSet> programs, Duration deadline);
  ~ProgramRunner();
  ProgramRunner(const ProgramRunner&) = delete;
  ProgramRunner& operator=(const ProgramRunner&) = delete;

  /// Runs a whole program. Each wait for others ends after the deadline with timed_out; `cancel` ends it with cancelled.
  Result<RunTimes> run(std::uint32_t program, std::uint32_t step, const cards::Scalars& scalars);

  /// Fills a slot with a message from an edge (see edges.hpp).
  Status receive_into(cards::SlotId slot, std::uint32_t edge, std::uint32_t step, protocol::EndpointId source);
  /// Sends a copy of a slot over an edge.
  Status send_from(cards::SlotId slot, std::uint32_t edge, std::uint32_t step, protocol::EndpointId target);

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

  Status exchange(std::uint32_t program, std::uint32_t index, std::uint32_t step);
  Result<const Prepared*> prepare(std::uint32_t program, std::uint32_t index);
  Status send_region(cards::SlotId slot, const protocol::MessageKey& key, const protocol::Region& region);
  Status wait_until_unlent(cards::SlotId slot);
  Shard lend(cards::SlotId slot, std::span<const std::byte> bytes);

  cards::Card& card_;
  protocol::Exchange& exchange_;
  const Clock& clock_;
  const Seat seat_;
  const std::uint64_t request_;
  const cards::LaneId lane_;
  const std::shared_ptr<const cards::ProgramSet> programs_;
  const Duration deadline_;
  std::atomic<bool> cancelled_{false};
  std::shared_ptr<Lent> lent_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Prepared> prepared_;  // By program and command.
};

}  // namespace orrery::actors
