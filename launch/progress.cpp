#include "launch/progress.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/ioctl.h>
#include <unistd.h>

#include "base/json.hpp"
#include "base/units.hpp"

namespace orrery::launch {
namespace {

constexpr std::size_t bar_width = 16;
constexpr std::size_t paces_kept = 9;
constexpr Duration redraw_interval = std::chrono::milliseconds(100);

std::string padded(std::string text, std::size_t width) {
  if (text.size() < width) text.append(width - text.size(), ' ');
  return text;
}

/// "0:07", "12:05", "1:02:03".
std::string clock_text(double seconds) {
  const auto whole = static_cast<std::uint64_t>(std::ceil(std::clamp(seconds, 0.0, 359999.0)));
  char text[32];
  if (whole >= 3600)
    std::snprintf(text, sizeof text, "%llu:%02llu:%02llu", static_cast<unsigned long long>(whole / 3600),
                  static_cast<unsigned long long>(whole / 60 % 60), static_cast<unsigned long long>(whole % 60));
  else
    std::snprintf(text, sizeof text, "%llu:%02llu", static_cast<unsigned long long>(whole / 60), static_cast<unsigned long long>(whole % 60));
  return text;
}

/// "9.13/14.0 GiB" with the unit once, "14/36 steps", "512 MiB" when the total is not known.
std::string amount_text(std::uint64_t completed, std::uint64_t total, const ProgressUnit& unit) {
  if (!unit.is_bytes())
    return std::to_string(completed) + (total > 0 ? "/" + std::to_string(total) : "") + (unit.word.empty() ? "" : " " + unit.word);
  const auto now = text_of_bytes(static_cast<double>(completed));
  if (total == 0) return now;
  const auto all = text_of_bytes(static_cast<double>(total));
  const auto now_space = now.find(' '), all_space = all.find(' ');
  const bool same_unit = now_space != std::string::npos && all_space != std::string::npos && now.substr(now_space) == all.substr(all_space);
  return (same_unit ? now.substr(0, now_space) : now) + "/" + all;
}

std::string rate_text(double seconds_per_unit, const ProgressUnit& unit) {
  if (unit.is_bytes()) return text_of_bytes(1 / seconds_per_unit) + "/s";
  char text[48];
  if (seconds_per_unit > 1)
    std::snprintf(text, sizeof text, "%.2f s/it", seconds_per_unit);
  else
    std::snprintf(text, sizeof text, "%.2f it/s", 1 / seconds_per_unit);
  return text;
}

std::string_view name_of(ProgressEvent::Kind kind) {
  switch (kind) {
    case ProgressEvent::Kind::started: return "started";
    case ProgressEvent::Kind::advanced: return "advanced";
    case ProgressEvent::Kind::done: return "done";
    case ProgressEvent::Kind::failed: return "failed";
    case ProgressEvent::Kind::note: return "note";
  }
  return "unknown";
}

}  // namespace

std::optional<double> ProgressBoard::Line::pace() const {
  if (seconds_per_unit.empty()) return {};
  std::vector<double> sorted(seconds_per_unit.begin(), seconds_per_unit.end());
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle > 0 ? std::optional(*middle) : std::nullopt;
}

std::optional<double> ProgressBoard::Line::seconds_left() const {
  const auto each = pace();
  if (!each || total == 0 || completed > total) return {};
  return *each * static_cast<double>(total - completed);
}

const ProgressBoard::Line* ProgressBoard::find(const ProgressEvent& event) const {
  const auto found = std::find_if(lines_.begin(), lines_.end(), [&](const Line& line) { return line.stage == event.stage && line.detail == event.detail; });
  return found == lines_.end() ? nullptr : &*found;
}

ProgressBoard::Line& ProgressBoard::line_of(const ProgressEvent& event, Time now) {
  if (const auto* found = find(event)) return lines_[static_cast<std::size_t>(found - lines_.data())];
  Line line;
  line.stage = event.stage;
  line.detail = event.detail;
  line.started = line.changed = now;
  return lines_.emplace_back(std::move(line));
}

void ProgressBoard::apply(const ProgressEvent& event, Time now) {
  if (event.kind == ProgressEvent::Kind::note) return;
  auto& line = line_of(event, now);
  if (event.kind == ProgressEvent::Kind::started) {
    // Also a restart, after a failure.
    line.started = line.changed = now;
    line.completed = 0;
    line.seconds_per_unit.clear();
    line.tenths_told = 0;
  }
  if (event.total > 0) line.total = event.total;
  if (!event.unit.word.empty()) line.unit = event.unit;
  line.text = event.text;
  line.kind = event.kind;
  if (event.kind == ProgressEvent::Kind::advanced) {
    if (event.completed > line.completed) {
      const double seconds = seconds_of(now - line.changed) / static_cast<double>(event.completed - line.completed);
      line.seconds_per_unit.push_back(seconds);
      if (line.seconds_per_unit.size() > paces_kept) line.seconds_per_unit.pop_front();
      line.changed = now;
    } else if (event.completed < line.completed) {
      line.changed = now;  // Work that is done again after a loss.
    }
    line.completed = event.completed;
  }
  if (event.kind == ProgressEvent::Kind::done || event.kind == ProgressEvent::Kind::failed) line.took = now - line.started;
}

std::string ProgressBoard::text_of(const Line& line, Time now) const {
  std::size_t stage_width = 8, detail_width = 0;
  for (const auto& one : lines_) {
    stage_width = std::max(stage_width, one.stage.size());
    detail_width = std::max(detail_width, one.detail.size());
  }
  std::string text = padded(line.stage, stage_width) + " " + padded(line.detail, detail_width) + (detail_width > 0 ? " " : "");
  if (line.kind == ProgressEvent::Kind::failed) return text + "failed after " + text_of_seconds(seconds_of(line.took)) + (line.text.empty() ? "" : ": " + line.text);
  if (line.kind == ProgressEvent::Kind::done) {
    text += "done " + text_of_seconds(seconds_of(line.took));
    if (line.total > 0 && !line.unit.word.empty()) text += "  " + amount_text(line.total, 0, line.unit);
    return text + (line.text.empty() ? "" : "  " + line.text);
  }
  if (line.total > 0) {
    const auto filled = std::min<std::uint64_t>(bar_width, line.completed * bar_width / line.total);
    text += "[" + std::string(filled, '#') + std::string(bar_width - filled, ' ') + "] " + amount_text(line.completed, line.total, line.unit);
  } else if (line.completed > 0) {
    text += amount_text(line.completed, 0, line.unit);
  } else {
    text += "running " + text_of_seconds(seconds_of(now - line.started));
  }
  if (const auto each = line.pace()) text += "  " + rate_text(*each, line.unit);
  if (const auto left = line.seconds_left()) {
    // What has passed since the last step counts, but never below zero.
    text += "  eta " + clock_text(std::max(0.0, *left - seconds_of(now - line.changed)));
    if (line.unit.word == "steps") text += "  step p50 " + text_of_seconds(*line.pace());
  }
  return text + (line.text.empty() ? "" : "  " + line.text);
}

std::string ProgressBoard::block(Time now, std::size_t width) const {
  std::string text;
  for (const auto& line : lines_) {
    auto one = text_of(line, now);
    if (width > 0 && one.size() > width) one.resize(width);
    text += one + "\n";
  }
  return text;
}

std::string ProgressBoard::plain(const ProgressEvent& event, Time now) {
  if (event.kind == ProgressEvent::Kind::note) return event.text + "\n";
  const auto* found = find(event);
  if (found == nullptr) return {};
  auto& line = lines_[static_cast<std::size_t>(found - lines_.data())];
  if (event.kind == ProgressEvent::Kind::advanced) {
    const auto tenths = line.total > 0 ? line.completed * 10 / line.total : 0;
    if (tenths <= line.tenths_told) return {};
    line.tenths_told = tenths;
  }
  return text_of(line, now) + "\n";
}

std::string ProgressBoard::json(const ProgressEvent& event, Time now) const {
  OrderedJson object{{"event", name_of(event.kind)}, {"stage", event.stage}, {"detail", event.detail}};
  const auto* line = find(event);
  if (line != nullptr) {
    object["completed"] = line->completed;
    object["total"] = line->total;
    object["unit"] = line->unit.word;
    object["seconds"] = seconds_of(now - line->started);
    if (const auto left = line->seconds_left()) object["eta_seconds"] = *left;
  }
  object["text"] = event.text;
  return object.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

ProgressWriter::ProgressWriter(const VerbContext& context, const Clock& clock) : mode_(Mode::none), clock_(clock) {
  if (context.quiet() || context.progress == ProgressMode::none) return;
  const char* terminal = std::getenv("TERM");
  const bool redraws = isatty(2) == 1 && (terminal == nullptr || std::strcmp(terminal, "dumb") != 0);
  mode_ = context.progress == ProgressMode::json                   ? Mode::json
          : context.progress == ProgressMode::plain || !redraws ? Mode::plain
                                                                   : Mode::block;
}

ProgressWriter::~ProgressWriter() { finish(); }

void ProgressWriter::on_event(const ProgressEvent& event) {
  const auto now = clock_.now();
  board_.apply(event, now);
  switch (mode_) {
    case Mode::none: return;
    case Mode::json: std::fputs(board_.json(event, now).c_str(), stderr); return;
    case Mode::plain: std::fputs(board_.plain(event, now).c_str(), stderr); return;
    case Mode::block:
      if (event.kind == ProgressEvent::Kind::note) return say(event.text);
      waiting_ = true;
      draw(event.kind != ProgressEvent::Kind::advanced);
  }
}

void ProgressWriter::refresh() {
  if (mode_ == Mode::block && board_.line_count() > 0) draw(false);
}

void ProgressWriter::draw(bool now) {
  const auto time = clock_.now();
  if (!now && time - drawn_ < redraw_interval) return;
  winsize window{};
  const std::size_t width = ioctl(2, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 ? window.ws_col - 1U : 0;
  std::string text;
  if (lines_on_screen_ > 0) text = "\033[" + std::to_string(lines_on_screen_) + "A";
  // Each line is cleared to its end as it is drawn, so nothing flickers.
  const auto block = board_.block(time, width);
  for (std::size_t begin = 0; begin < block.size();) {
    const auto end = block.find('\n', begin);
    text += block.substr(begin, end - begin) + "\033[K\n";
    begin = end + 1;
  }
  std::fputs(text.c_str(), stderr);
  lines_on_screen_ = board_.line_count();
  drawn_ = time;
  waiting_ = false;
}

void ProgressWriter::say(std::string_view text) {
  if (mode_ == Mode::none) return;
  if (mode_ == Mode::json) {
    ProgressEvent note;
    note.kind = ProgressEvent::Kind::note;
    note.text = text;
    std::fputs(board_.json(note, clock_.now()).c_str(), stderr);
    return;
  }
  std::string line;
  if (lines_on_screen_ > 0) line = "\033[" + std::to_string(lines_on_screen_) + "A";
  line += std::string(text) + (mode_ == Mode::block ? "\033[K\n" : "\n");
  std::fputs(line.c_str(), stderr);
  if (mode_ == Mode::block && board_.line_count() > 0) {
    lines_on_screen_ = 0;  // The cursor stands where the block's first line was or below it.
    draw(true);
  }
}

void ProgressWriter::finish() {
  if (mode_ == Mode::block && waiting_) draw(true);
  lines_on_screen_ = 0;
}

ProgressEvent load_event(const std::string& model, std::uint64_t done, std::uint64_t total) {
  ProgressEvent event;
  event.kind = done == total ? ProgressEvent::Kind::done : ProgressEvent::Kind::advanced;
  event.stage = "load";
  event.detail = model;
  event.completed = done;
  event.total = total;
  event.unit = {"bytes"};
  return event;
}

}  // namespace orrery::launch
