// What a trace holds before it is a file: who recorded what, and by whose clock.
//
// Plain values, no CAF. Filled by trace_collector.hpp, written by launch/trace_file.hpp.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/clock_offset.hpp"
#include "base/trace.hpp"

namespace orrery::actors {

/// One life of one process.
struct TraceSource {
  std::string process;  // "client", "coordinator", or a node's name.
  std::int64_t pid = 0;
  std::uint32_t life = 1;  // 2: it was started again while we recorded.

  ClockOffset clock;      // Of its clock against the reader's, as it is applied.
  ClockOffset measured;   // By round trips; 0 of them: this process.
  bool same_clock = false;  // It says that it reads our clock, and the round trips agree: `clock` is exact.

  std::map<trace::Track, std::string> tracks;
  std::vector<std::string> texts = {""};  // Event::text is an index here.
  std::vector<trace::Event> events;       // By its own clock.
  std::uint64_t dropped = 0;              // Found no room there.
};

struct TraceRecord {
  std::vector<TraceSource> sources;
  std::int64_t begin = 0;          // When recording began, by the reader's steady clock.
  double wall_seconds = 0;         // The same moment, since 1970.
  std::vector<std::string> notes;  // What is missing and why, in sentences.
};

/// Takes a batch into a source: events are told apart from those of batches before by nothing but their times.
void add_batch(TraceSource& source, trace::Batch batch);

/// Whether the source's clock is ours, and the offset that follows. `claims_ours`: it gave our clock's name.
void settle_clock(TraceSource& source, const ClockOffsetEstimator& round_trips, bool claims_ours);

}  // namespace orrery::actors
