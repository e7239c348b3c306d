// One pipeline stage: takes requests one after the other and drives its group's cards through them.
//
// Lives on its group's first node. Several stages work at the same time on different requests, so the encoder
// takes the next prompt while the denoiser is busy; each has a bounded queue. During a step cards talk to each
// other directly; the stage hears only that the step is done, or why not. When one card fails, the request is
// dropped on all cards at once, so that none waits for the others until its deadline.
//
// Restart points: embeddings and, after each step, the latents go to keepers (keeper.hpp) as well, without anybody waiting
// for them. A stage belongs to one epoch; after a failure another one goes on from there.
//
// Who is to blame: a card that waited in vain names the card that it waited for. That one may itself have waited. So
// reports are collected for a moment, and the suspects are the named cards that did not report themselves.

#pragma once

#include <deque>
#include <functional>
#include <optional>

#include "actors/control_state.hpp"
#include "actors/denoise_schedule.hpp"
#include "actors/edges.hpp"
#include "actors/node_backend.hpp"
#include "actors/text_guardrail.hpp"
#include "compiler/tokenizer.hpp"

namespace orrery::actors {

struct StageSetup {
  topology::StageKind kind{};
  std::uint64_t epoch = 0;
  const Clock* clock = nullptr;  // Outlives the actor.
  caf::actor coordinator;        // Hears of stragglers.
  /// All nodes of the epoch by their number on the data plane, connected directly: a handle that came through the
  /// coordinator dies with it. Denoiser and decoder ask them for what their keepers have.
  std::map<std::uint32_t, caf::actor> nodes;
  Duration command_deadline = std::chrono::seconds(60);  // Until times were measured.
  double straggler_factor = 1.5;
  std::uint32_t straggler_steps = 5;
  topology::Plan plan;
  std::shared_ptr<const compiler::ModelFolder> model;
  /// cards[group][rank]; empty for guardrails.
  std::vector<std::vector<caf::actor>> cards;
  std::shared_ptr<const compiler::Tokenizer> tokenizer;        // Text encoder.
  std::shared_ptr<const TextGuardrail> guardrail;              // Text guardrail.
  std::size_t queue_max = 64;
};

class StageState {
public:
  static inline const char* name = "stage";

  void start(caf::stateful_actor<StageState>* self, StageSetup setup);
  caf::response_promise on_run(const StageRun& order);
  void on_cancel(const CancelStage& order);
  void on_card_down(const caf::down_msg& down);
  void on_tick(const Tick& tick);

private:
  struct Work {
    StageRun order;
    caf::response_promise promise;
    Time started{};
    Failure failure;  // The first one; its consequences are not reported.
    std::vector<std::uint32_t> suspects = {};
  };
  /// What a card said when it had waited in vain.
  struct Report {
    std::uint32_t card = 0;
    Failure failure;
    std::vector<std::uint32_t> suspects;
  };
  using Next = std::function<void()>;

  void begin_next();
  void finish();
  void fail(const Failure& failure, std::vector<std::uint32_t> suspects = {});
  void judge();
  Duration deadline_of(const std::string& what) const;
  void watch_stragglers();
  void report(EventKind kind, std::uint64_t done, std::uint64_t total, double seconds);

  /// Sends each card its message; when all have answered well, goes on with `next`, else ends the request.
  template <class Message>
  void ask(const std::string& what, const std::vector<std::pair<caf::actor, Message>>& orders, Next next);
  template <class Message>
  void ask_all(const std::string& what, const Message& message, Next next);
  void answered(const caf::actor_addr& card, const CardDone& done);
  /// Asks a keeper's node for what this stage needs to go on, then goes on. No keeper (0): goes on at once.
  void fetch_kept(std::uint32_t keeper, Edge edge, std::uint32_t step, std::vector<std::uint32_t> targets, Next next);
  std::uint32_t number_of(const caf::actor_addr& card) const;
  std::string card_name(std::uint32_t card) const { return "card " + setup_.plan.card_name(card); }
  /// Groups that take part: all, but only the first of a denoiser without guidance.
  std::size_t active_groups() const;
  void open_lanes(std::uint32_t prompt_rows, std::uint32_t negative_rows, Next next);
  void close_lanes(Next next);
  RunProgram program(const std::string& which, std::uint32_t step) const;
  ProgramOutput output(const std::string& slot, Edge edge, std::uint32_t step, std::vector<std::uint32_t> targets) const;

  void run_text_guardrail();
  void run_text_encoder();
  void encode(bool negative);
  void run_denoiser();
  void load_latents();
  void denoise(std::uint32_t step);
  void run_decoder();
  void decode(std::uint32_t frame);
  void run_video_guardrail();

  const topology::PlannedStage& stage_of(topology::StageKind kind) const;
  /// Endpoints of a group's cards, rank order.
  std::vector<std::uint32_t> cards_of(topology::StageKind kind, std::size_t group) const;

  caf::stateful_actor<StageState>* self_ = nullptr;
  StageSetup setup_;
  std::deque<Work> queue_;
  std::optional<Work> work_;
  std::vector<caf::actor_addr> outstanding_;  // Cards that owe an answer.
  std::vector<caf::actor_addr> lost_;         // Cards that died.
  std::vector<Report> reports_;             // Of the round at hand.
  std::uint64_t round_ = 0;                 // Of `ask`, for ticks.
  std::string asked_;                       // What, for deadlines: "prepare", "step" ...
  Time asked_at_{};
  std::map<std::string, Duration> measured_;                // By what was asked: the longest of the last rounds.
  std::map<std::uint32_t, double> round_seconds_;           // Compute time of the round, by card.
  std::map<std::uint32_t, double> card_seconds_;            // Compute time of the request at hand, by card.
  std::map<std::uint32_t, std::uint32_t> slow_steps_;       // In a row, by card.
  Next next_;                               // When none is outstanding.
  bool lanes_open_ = false;
  bool closing_ = false;

  // Of the request at hand.
  StageDone done_;
  CardDone times_;        // Of the slowest card of each round, added up.
  CardDone round_times_;  // The most of any card, of each kind of time.
  std::optional<DenoiseSchedule> schedule_;
  std::vector<std::int32_t> prompt_ids_, negative_ids_;
};

caf::behavior stage_actor(caf::stateful_actor<StageState>* self, StageSetup setup);

}  // namespace orrery::actors
