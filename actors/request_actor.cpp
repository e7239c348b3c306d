#include <cmath>

#include "actors/coordinator_actor.hpp"

namespace orrery::actors {

using topology::StageKind;

namespace {

void end(caf::stateful_actor<RequestState>* self, EventKind kind, Failure failure) {
  auto& state = self->state;
  if (state.ended) return;
  state.ended = true;
  RequestEvent event;
  event.request = state.setup.request;
  event.kind = static_cast<std::uint8_t>(kind);
  event.failure = std::move(failure);
  SteadyClock clock;
  OrderedJson details;
  details["seconds"] = seconds_of(clock.now() - state.started);
  details["stages"] = state.timings;
  event.details = details.dump();
  self->send(state.setup.client, event);
  self->send(state.setup.coordinator, event);
  self->quit();
}

void advance(caf::stateful_actor<RequestState>* self) {
  auto& state = self->state;
  if (state.at == state.setup.stages.size()) return end(self, EventKind::completed, {});
  const auto& [kind, stage] = state.setup.stages[state.at];
  StageRun run;
  run.request = state.setup.request;
  run.spec = state.setup.spec;
  run.client_endpoint = state.setup.client_endpoint;
  run.client_data_address = state.setup.client_data_address;
  run.prompt_rows = state.prompt_rows;
  run.negative_rows = state.negative_rows;
  run.listener = caf::actor_cast<caf::actor>(self);
  const std::string name(topology::name_of(kind));
  // No deadline: how long a stage takes is the model's business; lost cards and nodes are reported by monitors.
  self->request(stage, caf::infinite, run)
      .then(
          [=](const StageDone& done) {
            auto& now = self->state;
            if (!done.details.empty()) now.timings[name] = OrderedJson::parse(done.details);
            if (!done.failure.ok()) return end(self, EventKind::failed, done.failure);
            now.prompt_rows = done.prompt_rows;
            now.negative_rows = done.negative_rows;
            ++now.at;
            advance(self);
          },
          [=](const caf::error& error) {
            end(self, EventKind::failed, error_of(self->system(), error, "stage " + name + " did not answer"));
          });
}

}  // namespace

caf::behavior request_actor(caf::stateful_actor<RequestState>* self, RequestSetup setup) {
  self->state.setup = std::move(setup);
  SteadyClock clock;
  self->state.started = clock.now();
  advance(self);
  return {
      // A stage says how far it is.
      [=](const RequestEvent& event) {
        self->send(self->state.setup.client, event);
        self->send(self->state.setup.coordinator, event);
      },
      [=](const Cancel&) {
        for (const auto& [kind, stage] : self->state.setup.stages) {
          CancelStage cancel;
          cancel.request = self->state.setup.request;
          self->send(stage, cancel);
        }
      },
      // The coordinator knows that it cannot go on (a node was lost).
      [=](const Failure& failure) { end(self, EventKind::failed, failure); },
  };
}

}  // namespace orrery::actors
