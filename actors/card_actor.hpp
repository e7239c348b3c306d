// The card actor: messages in, orders to the card out, answers back. Thin glue over a CardBackend.

#pragma once

#include "actors/node_backend.hpp"
#include "actors/control_state.hpp"

namespace orrery::actors {

/// `card` outlives the actor.
caf::behavior card_actor(caf::stateful_actor<struct CardActorState>* self, CardBackend* card);

struct CardActorState {
  static inline const char* name = "card";
  std::map<std::uint64_t, caf::response_promise> waiting;  // By ticket.
  std::uint64_t next_ticket = 1;
};

}  // namespace orrery::actors
