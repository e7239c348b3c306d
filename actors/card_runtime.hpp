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
class CardRuntime {
public:
  using Reply = std::function<void(CardDone)>;
  /// Makes a request's client reachable for this process.
  using AddClient = std::function<Status(std::uint64_t request, std::uint32_t endpoint, const std::string& address)>;

  CardRuntime(std::uint32_t number, std::unique_ptr<cards::Card> card, std::vector<StageSeat> seats,
              std::shared_ptr<const compiler::ModelFolder> model, compiler::Compute compute, protocol::Exchange& exchange,
              const Clock& clock, Duration deadline, AddClient add_client);
  ~CardRuntime();

  std::uint32_t number() const { return number_; }
  cards::Card& card() { return *card_; }
  const std::vector<StageSeat>& seats() const { return seats_; }

  void open_lane(const OpenLane& order, Reply reply);
  void run(const RunProgram& order, Reply reply);
  void close_lane(const CloseLane& order, Reply reply);
  /// Ends all lanes and threads; nothing may be ordered afterwards. Card memory stays until the destructor.
  void stop();
  /// The request's programs end with `cancelled` as soon as they notice: within one command.
  void cancel(std::uint64_t request);

private:
  using LaneKey = std::pair<std::uint64_t, std::uint8_t>;  // Request, stage.

  Result<std::shared_ptr<const cards::ProgramSet>> compile(const OpenLane& order, const StageSeat& seat,
                                                            const compiler::Layout& layout) const;
  Status open_now(const OpenLane& order);
  Result<RunTimes> run_now(const RunProgram& order);
  Result<std::shared_ptr<ProgramRunner>> lane(std::uint64_t request, std::uint8_t stage);
  LaneWorker& worker(std::uint8_t stage);

  const std::uint32_t number_;
  const std::unique_ptr<cards::Card> card_;
  const std::vector<StageSeat> seats_;
  const std::shared_ptr<const compiler::ModelFolder> model_;
  const compiler::Compute compute_;
  protocol::Exchange& exchange_;
  const Clock& clock_;
  const Duration deadline_;
  const AddClient add_client_;

  std::mutex mutex_;
  std::map<LaneKey, std::shared_ptr<ProgramRunner>> lanes_;          // Guarded by mutex_.
  std::map<std::uint8_t, std::unique_ptr<LaneWorker>> workers_;      // Guarded by mutex_. Last: joined first.
};

}  // namespace orrery::actors
