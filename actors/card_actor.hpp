// The card actor: messages in, work for the card's threads out, answers back. Thin glue over CardRuntime.

#pragma once

#include "actors/card_runtime.hpp"
#include "actors/control_state.hpp"

namespace orrery::actors {

/// `runtime` outlives the actor.
caf::behavior card_actor(caf::stateful_actor<struct CardActorState>* self, CardRuntime* runtime);

struct CardActorState {
  static inline const char* name = "card";
  std::map<std::uint64_t, caf::response_promise> waiting;  // By ticket.
  std::uint64_t next_ticket = 1;
};

}  // namespace orrery::actors
