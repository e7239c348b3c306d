// Progress of long work on stderr: a block redrawn on a terminal, plain lines on a pipe, or JSON events.
//
//   load     transformer  [######          ] 9.13/14.0 GiB  1.81 GiB/s  eta 0:02
//   encode   prompt       done 310 ms
//   denoise               [#########       ] 14/36 steps    2.21 it/s   eta 0:10  step p50 452 ms
//   decode                [                ] 0/16 chunks
//
// ProgressBoard is pure: it is told events and the time and gives back text. ProgressWriter puts the text where it
// belongs, at most ten times a second. The rate and the time to go come from the median of the last steps, not
// from the mean since the start: the first step is always slow.

#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {

/// What is counted: bytes are shown as GiB, anything else by its word.
struct ProgressUnit {
  std::string word;  // "steps", "chunks", "frames", "cards"; "bytes" is special.
  bool is_bytes() const { return word == "bytes"; }
};

/// One stage's news. The first event of a (stage, detail) makes its line; the order of first events is kept.
struct ProgressEvent {
  enum class Kind : std::uint8_t { started, advanced, done, failed, note };
  Kind kind = Kind::advanced;
  std::string stage;        // "load", "encode", "denoise", "decode".
  std::string detail = {};  // "transformer"; may be empty.
  std::uint64_t completed = 0;
  std::uint64_t total = 0;  // 0: not known.
  ProgressUnit unit = {};
  std::string text = {};    // note, failed: what to say. Else an addition to the line ("4/4 cards").
};

/// The state of all lines. Threads: one.
class ProgressBoard {
public:
  void apply(const ProgressEvent& event, Time now);

  /// All lines at `now`, each with a line feed; `width` columns at most (0: no limit).
  std::string block(Time now, std::size_t width = 0) const;
  std::size_t line_count() const { return lines_.size(); }

  /// What a pipe gets for this event, after `apply`: a line when a stage starts, ends, has news or passes
  /// another tenth; else nothing.
  std::string plain(const ProgressEvent& event, Time now);

  /// One JSON object and a line feed: {"event","stage","detail","completed","total","unit","text","seconds","eta_seconds"}.
  std::string json(const ProgressEvent& event, Time now) const;

private:
  struct Line {
    std::string stage, detail, text;
    ProgressEvent::Kind kind = ProgressEvent::Kind::started;
    std::uint64_t completed = 0, total = 0;
    ProgressUnit unit;
    Time started, changed;
    Duration took{};
    std::deque<double> seconds_per_unit;  // Of the last advances, newest last.
    std::uint64_t tenths_told = 0;
    /// Median of what was measured.
    std::optional<double> pace() const;
    std::optional<double> seconds_left() const;
  };
  Line& line_of(const ProgressEvent& event, Time now);
  const Line* find(const ProgressEvent& event) const;
  std::string text_of(const Line& line, Time now) const;
  std::vector<Line> lines_;
};

/// Writes to stderr in the mode that the flags and the terminal ask for. Threads: one.
class ProgressWriter {
public:
  /// `clock` must outlive the writer. -q means none.
  ProgressWriter(const VerbContext& context, const Clock& clock);
  ~ProgressWriter();
  ProgressWriter(const ProgressWriter&) = delete;
  ProgressWriter& operator=(const ProgressWriter&) = delete;

  void on_event(const ProgressEvent& event);
  /// Redraws a block whose times have moved on; call now and then while waiting.
  void refresh();
  /// A line of its own above the block.
  void say(std::string_view text);
  /// Draws the last state and lets go of the terminal; what is written afterwards starts below the block.
  void finish();

private:
  enum class Mode : std::uint8_t { block, plain, json, none };
  void draw(bool now);
  Mode mode_;
  const Clock& clock_;
  ProgressBoard board_;
  Time drawn_{};
  std::size_t lines_on_screen_ = 0;
  bool waiting_ = false;  // Something changed that was not drawn yet.
};

/// The line of a model's weights being read: bytes over all nodes.
ProgressEvent load_event(const std::string& model, std::uint64_t done, std::uint64_t total);

}  // namespace orrery::launch
