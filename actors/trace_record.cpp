#include "actors/trace_record.hpp"

#include <cstdlib>

namespace orrery::actors {

void add_batch(TraceSource& source, trace::Batch batch) {
  for (auto& [id, name] : batch.tracks) source.tracks[id] = std::move(name);
  // Numbers of texts begin anew with each recording of a process.
  std::map<std::uint32_t, std::uint32_t> places;
  for (auto& [id, text] : batch.texts) {
    places[id] = static_cast<std::uint32_t>(source.texts.size());
    source.texts.push_back(std::move(text));
  }
  source.dropped = std::max(source.dropped, batch.dropped);
  source.events.reserve(source.events.size() + batch.events.size());
  for (auto& event : batch.events) {
    if (event.text != 0) event.text = places[event.text];
    source.events.push_back(event);
  }
}

void settle_clock(TraceSource& source, const ClockOffsetEstimator& round_trips, bool claims_ours) {
  const auto estimate = round_trips.estimate();
  if (!estimate) return;
  source.measured = source.clock = *estimate;
  // Machines that are copies of one another have clocks of the same name; their round trips give them away.
  source.same_clock = claims_ours && estimate->drift == 0 && std::abs(estimate->offset) <= estimate->error;
  if (source.same_clock) source.clock = {};
}

}  // namespace orrery::actors
