#include "actors/coordinator_actor.hpp"

namespace orrery::actors {

using topology::StageKind;

namespace {

void end(caf::stateful_actor<RequestState>* self, Failure failure, std::vector<std::uint32_t> suspects, const std::string& stage) {
  auto& setup = self->state.setup;
  AttemptEnded ended;
  ended.request = setup.run.request;
  ended.epoch = setup.epoch;
  ended.failure = std::move(failure);
  ended.suspects = std::move(suspects);
  ended.stage = stage;
  ended.stages = setup.timings.dump();
  self->send(setup.coordinator, ended);
  self->quit();
}

void advance(caf::stateful_actor<RequestState>* self) {
  auto& state = self->state;
  auto& setup = state.setup;
  if (setup.at == setup.stages.size()) return end(self, {}, {}, "");
  const auto& [kind, stage] = setup.stages[setup.at];
  const std::string name(topology::name_of(kind));
  if (state.cancelled) return end(self, Error{ErrorCode::cancelled, "request " + std::to_string(setup.run.request) + " was cancelled"}, {}, name);
  // Frames are made when there is somebody to send them to; until then the latents wait with their keepers.
  if (kind == StageKind::decoder && setup.run.client_endpoint == 0) return end(self, {}, {}, name);
  auto run = setup.run;
  run.listener = caf::actor_cast<caf::actor>(self);
  // No deadline of ours: the stage has one for each of its commands, and lost nodes end the epoch.
  self->request(stage, caf::infinite, run)
      .then(
          [=](const StageDone& done) {
            auto& now = self->state.setup;
            if (!done.details.empty()) now.timings[name] = OrderedJson::parse(done.details);
            if (!done.failure.ok()) return end(self, done.failure, done.suspects, name);
            RequestEvent event;
            event.request = now.run.request;
            event.kind = static_cast<std::uint8_t>(EventKind::stage_done);
            event.stage = name;
            event.seconds = done.seconds;
            event.details = done.details;
            self->send(now.coordinator, event);
            now.run.prompt_rows = done.prompt_rows;
            now.run.negative_rows = done.negative_rows;
            // Only the first stage of an attempt goes on from a keeper.
            now.run.resume_step = now.run.embeds_keeper = now.run.latents_keeper = 0;
            ++now.at;
            advance(self);
          },
          [=](const caf::error& error) {
            Failure failure = error_of(self->system(), error, "stage " + name + " did not answer");
            failure.code = static_cast<std::uint16_t>(ErrorCode::peer_lost);
            end(self, failure, {}, name);
          });
}

}  // namespace

caf::behavior request_actor(caf::stateful_actor<RequestState>* self, RequestSetup setup) {
  self->state.setup = std::move(setup);
  advance(self);
  return {
      // A stage says how far it is.
      [=](const RequestEvent& event) { self->send(self->state.setup.coordinator, event); },
      [=](const ClientMoved& client) {
        auto& state = self->state;
        state.setup.run.client_endpoint = client.endpoint;
        state.setup.run.client_data_address = client.data_address;
      },
      [=](const Cancel&) {
        auto& state = self->state;
        state.cancelled = true;
        CancelStage cancel;
        cancel.request = state.setup.run.request;
        self->send(state.setup.stages[state.setup.at].second, cancel);
      },
  };
}

}  // namespace orrery::actors
