#include "actors/card_actor.hpp"

namespace orrery::actors {

caf::behavior card_actor(caf::stateful_actor<CardActorState>* self, CardBackend* card) {
  // Hands an order to the card; its answer comes back as WorkDone, from whichever thread.
  const auto start = [self](auto call) {
    auto promise = self->make_response_promise();
    const auto ticket = self->state.next_ticket++;
    self->state.waiting.emplace(ticket, promise);
    const auto address = caf::actor_cast<caf::actor>(self);
    call([address, ticket](CardDone done) { caf::anon_send(address, WorkDone{ticket, std::move(done)}); });
    return promise;
  };
  return {
      [=](const OpenLane& order) { return start([&](auto reply) { card->open_lane(order, reply); }); },
      [=](const RunProgram& order) { return start([&](auto reply) { card->run(order, reply); }); },
      [=](const CloseLane& order) { return start([&](auto reply) { card->close_lane(order, reply); }); },
      [=](const DropRequest& drop) { card->cancel(drop.request); },
      [=](const WorkDone& done) {
        const auto found = self->state.waiting.find(done.ticket);
        if (found == self->state.waiting.end()) return;
        found->second.deliver(done.result);
        self->state.waiting.erase(found);
      },
  };
}

}  // namespace orrery::actors
