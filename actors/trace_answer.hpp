// A process's answer to AskTrace. The same for nodes and the coordinator.
//
// Internal to actors/: this header includes CAF.

#pragma once

#include "actors/messages.hpp"

namespace orrery::actors {

// Whoever asks comes back well before; a reader that died costs nothing after that.
inline constexpr double trace_lease_seconds_max = 60;
// Some 25 bytes each: far below what a control connection takes (control.cpp).
inline constexpr std::uint32_t trace_piece_events_max = 100'000;

/// Goes on recording or ends it, and takes what was asked for. `process`: a node's name; empty: the coordinator.
TracePiece answer_trace(const AskTrace& ask, const std::string& process);

}  // namespace orrery::actors
