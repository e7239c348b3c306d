// Collects a cluster's trace while it works: asks the coordinator, and through it every node, a few times a second.
//
//   this process ── AskTrace ──▶ coordinator ── AskTrace ──▶ node
//                ◀── TracePiece ──            ◀── TracePiece ──
//
// Pieces are collected as they come, so what a process recorded before it died is not lost, but for the last quarter of a
// second. Every exchange is also a round trip for the clocks. A node that is started again records again from the next
// round on. When nobody asks any more (this process died), recording ends by itself.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "actors/control.hpp"
#include "actors/trace_record.hpp"

namespace orrery::actors {

/// Threads: one; a second inside asks. Ends before the Control does.
class TraceCollector {
public:
  /// Begins recording in this process ("client") and, when the call returns, in every process that could be reached; what
  /// could not stands in the record's notes. Never fails: a trace must not stop the work.
  static std::unique_ptr<TraceCollector> start(Control& control, const std::string& host, std::uint16_t port);
  /// Ends recording, if `finish` did not.
  ~TraceCollector();

  /// The last pieces of everybody, then everything. Takes a few seconds at most when somebody does not answer.
  TraceRecord finish();

private:
  struct State;
  explicit TraceCollector(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// The trace of this process alone, for verbs that work without a cluster.
class LocalTrace {
public:
  LocalTrace();
  ~LocalTrace();
  TraceRecord finish();

private:
  TraceRecord record_;
};

}  // namespace orrery::actors
