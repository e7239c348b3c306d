#include "actors/trace_answer.hpp"

#include <unistd.h>

#include <algorithm>
#include <mutex>

#include "base/trace.hpp"

namespace orrery::actors {

namespace {
/// Events are handed over once: two readers would have half of them each.
struct Reader {
  std::mutex mutex;
  std::uint64_t number = 0;
  std::int64_t until = 0;
} reader;
}  // namespace

TracePiece answer_trace(const AskTrace& ask, const std::string& process) {
  TracePiece piece;
  piece.node = process;
  const std::lock_guard lock(reader.mutex);
  if (reader.number != ask.reader && trace::enabled() && trace::now() < reader.until) {
    piece.failure = Error{ErrorCode::pool_exhausted, "somebody else records a trace of this cluster", "wait until that has ended"};
    return piece;
  }
  piece.pid = ::getpid();
  piece.clock = trace::clock_name();
  const bool goes_on = ask.lease_seconds > 0;  // Not so for what is no number.
  if (goes_on) {
    const auto seconds = std::chrono::duration<double>(std::min(ask.lease_seconds, trace_lease_seconds_max));
    const auto lease = std::chrono::duration_cast<Duration>(seconds);
    if (reader.number != ask.reader) trace::stop();  // What a former reader left.
    reader.number = ask.reader;
    reader.until = trace::now() + lease.count();
    trace::record(lease);
  }
  if (ask.events_max > 0) {
    const auto batch = trace::take(std::min(ask.events_max, trace_piece_events_max));
    piece.events = trace::pack(batch);
    piece.more = batch.more;
  }
  if (!goes_on && !piece.more) trace::stop();
  piece.now = trace::now();
  return piece;
}

}  // namespace orrery::actors
