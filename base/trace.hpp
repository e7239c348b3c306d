// Records what this process does and when, for one timeline over all nodes and cards.
//
//   threads ── Span, counter, flow ──▶ their own buffers ── take ──▶ pack ──▶ control plane ──▶ launch/trace_file.hpp
//
//   const trace::Span span(compute_row, trace::Category::compute, command.label);       // Until the end of the scope.
//   trace::flow_out(id, bytes);   // An arrow begins here, in the span around this line ...
//   trace::flow_in(id, bytes);    // ... and ends there, in another process. protocol::Exchange does both for messages.
//
// Off, which it is until `record` is called, each of these costs one relaxed load. On, a span costs two readings of the
// clock and one copy into a buffer of its own thread: no allocation but one of 48 KiB for every 512 events, and never
// more than `bytes_max` in all; what finds no room is dropped and counted. Recording ends by itself when nobody has asked
// for it to go on for some time, so a reader that died costs nothing for long.
//
// Times are those of the steady clock, also where everything else runs under a virtual one: what really happened when is
// what a trace is for. How far apart two machines' clocks are is not known here: see clock_offset.hpp.
//
// A *track* is a row of the timeline ("n1:0 compute"). Spans of one track need not nest; the writer of the file gives
// those that overlap rows of their own. Names longer than 39 bytes are cut.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"

namespace orrery::trace {

/// What an event is about; the colour, and what can be filtered for.
enum class Category : std::uint8_t { compute, copy, exchange, wait, step, stage, request, epoch, incident, control };
inline constexpr std::size_t category_count = 10;
std::string_view name_of(Category category);

enum class Kind : std::uint8_t { span, instant, counter, flow_out, flow_in };
inline constexpr std::size_t kind_count = 5;

using Track = std::uint16_t;
inline constexpr Track data_plane = 0;      // "data plane": what no card does.
inline constexpr Track here = UINT16_MAX;  // That of the span around, on the same thread.
/// The coordinator's track of requests, their stages and steps; the writer of the file gives each request a row of its own.
inline constexpr std::string_view requests_track = "requests";
inline constexpr std::uint32_t no_step = UINT32_MAX;

/// Plain bytes, 96 of them; without initial values, so that a Span that records nothing writes nothing.
struct Event {
  std::int64_t begin;     // Nanoseconds of this machine's steady clock.
  std::int64_t end;       // As `begin`, but for spans.
  std::uint64_t request;  // 0: none.
  std::uint64_t flow;     // Flows: their id. Spans: the number of the span around; 0: none.
  std::uint64_t value;    // Counters: the value; else bytes, 0: none.
  std::uint32_t span;     // Spans: own number, within the process; else that of the span around it; 0: none.
  std::uint32_t step;     // no_step: none.
  std::uint32_t text;     // Longer text (Batch::texts); 0: none.
  Track track;
  Kind kind;
  Category category;
  std::array<char, 40> name;  // Ends with a zero byte.
};
static_assert(sizeof(Event) == 96);

/// What an event says besides its name. What is left out is taken from the span around it on the same thread.
struct Details {
  std::uint64_t request = 0;
  std::uint32_t step = no_step;
  std::uint64_t bytes = 0;
  std::string_view text = {};  // Kept once each, at most 4096 of them: for what is rare.
};

namespace detail {
inline std::atomic<bool> recording{false};
}

/// Whether anything is recorded. Threads: any, as for all calls here.
inline bool enabled() { return detail::recording.load(std::memory_order_relaxed); }

/// The row of this name; the same name is the same row, for the life of the process. For callers that keep it.
Track track(std::string_view name);

/// From its making to its end, on `track`. Everything on the same thread meanwhile lies within it.
class Span {
public:
  Span(Track track, Category category, std::string_view name, const Details& details = {}) {
    if (enabled()) begin(track, category, name, details);
  }
  ~Span() {
    if (active_) end();
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

  /// Known only at the end.
  void set_bytes(std::uint64_t bytes) {
    if (active_) event_.value = bytes;
  }

private:
  struct Context {
    std::uint32_t span;
    std::uint32_t step;
    std::uint64_t request;
    Track track;
  };
  void begin(Track track, Category category, std::string_view name, const Details& details);
  void end();

  bool active_ = false;
  Event event_;
  Context around_;  // Of the thread, before.
};

/// A span that is over, when nobody's scope was its life.
void complete(Track track, Category category, std::string_view name, Time begin, Time end, const Details& details = {});
void instant(Track track, Category category, std::string_view name, const Details& details = {});
/// `name` is a curve of its own within the process: "n1:0 memory". Drawn as steps.
void counter(std::string_view name, std::uint64_t value);

/// The arrow `flow` begins, or ends, within the span around this call on the same thread; without one, on the track
/// `data_plane`. Its id has to be the same on both sides, and another one for each arrow.
void flow_out(std::uint64_t flow, std::uint64_t bytes);
void flow_in(std::uint64_t flow, std::uint64_t bytes);
/// An id from what names the arrow.
std::uint64_t flow_id(std::initializer_list<std::uint64_t> words);

// ---- the recorder ---------------------------------------------------------------------------------------------------

inline constexpr std::uint64_t bytes_max_default = std::uint64_t{64} << 20;

/// Records from now on, until nobody has called this for `lease`.
void record(Duration lease, std::uint64_t bytes_max = bytes_max_default);
/// Ends it and forgets what was not taken.
void stop();

/// A reading of the clock that events are timed with.
std::int64_t now();
/// Names the clock: processes whose clocks have the same name read the same one, unless machines were cloned. Empty where
/// that cannot be known.
std::string clock_name();

struct Batch {
  std::vector<Event> events;  // Each thread's in order of their ends.
  std::vector<std::pair<Track, std::string>> tracks;         // Names of those that `events` lie on.
  std::vector<std::pair<std::uint32_t, std::string>> texts;  // What Event::text means.
  std::uint64_t dropped = 0;  // Since the recording began: found no room.
  bool more = false;          // There is more than was asked for.
};

/// Takes what was recorded, at most about `events_max`.
Batch take(std::size_t events_max);

/// A batch as bytes, some 25 an event. Not for files: both sides are of the same version.
std::string pack(const Batch& batch);
/// Whatever the bytes are: a batch whose every reference and name is good, or bad_frame.
Result<Batch> unpack(std::string_view bytes);

/// The name within its 40 bytes; never half a character of UTF-8.
void set_name(Event& event, std::string_view name);
inline std::string_view name_of(const Event& event) { return event.name.data(); }

}  // namespace orrery::trace
