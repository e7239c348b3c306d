// What a node holds for one of its cards: the card, its seat in each stage, the lanes of running requests, and
// the threads that work on them.
//
// Plain code under the card actor.

#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "actors/lane_worker.hpp"
#include "actors/messages.hpp"
#include "actors/node_backend.hpp"
#include "actors/program_runner.hpp"
#include "compiler/compile.hpp"
#include "topology/plan.hpp"

namespace orrery::actors {

/// What a card needs for one stage.
struct StageSeat {
  topology::StageKind kind{};
  Seat seat;
  std::shared_ptr<const cards::WeightSet> weights;
};

/// Threads: any. Answers come on the stage's worker thread.
class CardRuntime final : public CardBackend {
public:
  /// Makes a request's client reachable for this process.
  using AddClient = std::function<Status(std::uint64_t request, std::uint32_t endpoint, const std::string& address)>;

  CardRuntime(std::uint32_t number, std::unique_ptr<cards::Card> card, std::vector<StageSeat> seats,
              std::shared_ptr<const compiler::ModelFolder> model, compiler::Compute compute, protocol::Exchange& exchange,
              const Clock& clock, Duration deadline, AddClient add_client, FaultProbe probe = {});
  ~CardRuntime() override;

  std::uint32_t number() const { return number_; }
  cards::Card& card() { return *card_; }
  const std::vector<StageSeat>& seats() const { return seats_; }

  void open_lane(const OpenLane& order, Reply reply) override;
  void run(const RunProgram& order, Reply reply) override;
  void close_lane(const CloseLane& order, Reply reply) override;
  void cancel(std::uint64_t request) override;
  /// Tells all lanes to end; does not wait.
  void cancel_all();
  /// How long a command at hand may take: twice the longest run of any lane.
  Duration patience() const;
  /// Waits until all threads have ended, at most `limit`; false: the card hangs in a command. Then closes the lanes;
  /// nothing may be ordered afterwards. Card memory stays.
  bool stop(Duration limit);
  /// The card, for the next plan. After `stop`.
  std::unique_ptr<cards::Card> take_card() { return std::move(card_); }

private:
  using LaneKey = std::pair<std::uint64_t, std::uint8_t>;  // Request, stage.

  Result<std::shared_ptr<const cards::ProgramSet>> compile(const OpenLane& order, const StageSeat& seat,
                                                            const compiler::Layout& layout) const;
  Status open_now(const OpenLane& order);
  Result<RunTimes> run_now(const RunProgram& order, std::vector<std::uint32_t>& suspects);
  Result<std::shared_ptr<ProgramRunner>> lane(std::uint64_t request, std::uint8_t stage);
  LaneWorker& worker(std::uint8_t stage);
  bool ended() const;

  const std::uint32_t number_;
  std::unique_ptr<cards::Card> card_;
  const std::vector<StageSeat> seats_;
  const std::shared_ptr<const compiler::ModelFolder> model_;
  const compiler::Compute compute_;
  protocol::Exchange& exchange_;
  const Clock& clock_;
  const Duration deadline_;
  const AddClient add_client_;
  const FaultProbe probe_;

  mutable std::mutex mutex_;
  bool ending_ = false;                                              // Guarded by mutex_.
  std::map<LaneKey, std::shared_ptr<ProgramRunner>> lanes_;          // Guarded by mutex_.
  std::map<std::uint8_t, std::unique_ptr<LaneWorker>> workers_;      // Guarded by mutex_. Last: joined first.
};

}  // namespace orrery::actors
