// Writes a trace as Chrome trace JSON: one timeline that ui.perfetto.dev and chrome://tracing open.
//
//   process = a process of the cluster, thread = a row ("n1:0 compute"), slice = a span, arrow = a message from send to
//   receive, curve = a counter. Around the commands of one block stands a slice of its own: "block 17".
//
// All times are by the reader's clock, in microseconds since recording began. How far each process's clock was off, how
// well that is known, what was dropped, and what is missing, stands in `otherData`.
//
// Spans of one row that overlap without nesting go to rows of the same name with a number ("n1:0 exchange (2)"): viewers
// would draw them wrongly. Arrows whose other end is not in the record are left out, and counted.
//
// Memory: the record's events, and 16 bytes more for each. Threads: none.

#pragma once

#include <functional>
#include <string_view>

#include "actors/trace_record.hpp"
#include "base/result.hpp"

namespace orrery::launch {

struct TraceCounts {
  std::uint64_t events = 0;     // Spans, instants and readings of counters.
  std::uint64_t arrows = 0;
  std::uint64_t unmatched = 0;  // Ends of arrows without another end.
  std::uint64_t backwards = 0;  // Arrows that end before they begin: as far as clocks are not known better.
  std::uint64_t dropped = 0;    // By the processes.
};

/// Hands the file's text to `write`, in pieces. Fails with what `write` fails with.
Result<TraceCounts> write_trace(const actors::TraceRecord& record, const std::function<Status(std::string_view)>& write);

}  // namespace orrery::launch
