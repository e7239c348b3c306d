#include "launch/trace_file.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "actors/fault_switch.hpp"
#include "base/json.hpp"
#include "launch/version.hpp"

namespace orrery::launch {

using actors::TraceRecord;
using actors::TraceSource;
using trace::Event;
using trace::Kind;

namespace {

constexpr std::int64_t lone_arrow_nanoseconds = 1000;  // What an arrow begins or ends at when no span is around it.

std::string json_text(std::string_view text) { return OrderedJson(text).dump(-1, ' ', false, OrderedJson::error_handler_t::replace); }

bool is_arrow(const Event& event) { return event.kind == Kind::flow_out || event.kind == Kind::flow_in; }

/// One event of the file, by the reader's clock.
struct Entry {
  std::int64_t begin = 0, end = 0;
  const Event* event = nullptr;  // Null: a block.
  std::uint32_t block = 0;
  std::uint32_t lane = 0;        // Among rows of one name.
  std::uint32_t tid = 0;
  bool is_instant() const { return event != nullptr && event->kind == Kind::instant; }
};

/// Which track, and for requests which of them.
using RowKey = std::pair<trace::Track, std::uint64_t>;

struct Process {
  const TraceSource* source = nullptr;
  std::int64_t pid = 0;
  std::string name;
  std::map<RowKey, std::vector<Entry>> rows;
  std::vector<Entry> counters;
  std::vector<std::tuple<std::uint32_t, std::string>> threads;      // tid, name.
  std::unordered_map<std::uint32_t, std::pair<RowKey, std::size_t>> spans;  // By span number: where it is in `rows`.
};

/// An arrow's end, placed.
struct End {
  std::int64_t at = 0, pid = 0;
  std::uint32_t tid = 0;
};

class Writer {
public:
  explicit Writer(const std::function<Status(std::string_view)>& write) : write_(write) {}
  Status add(std::string_view text) {
    buffer_ += text;
    return buffer_.size() < buffer_bytes ? Status(Done{}) : flush();
  }
  /// One element of the list of events.
  Status event(std::string_view text) {
    ORRERY_TRY_DONE(add(first_ ? "\n" : ",\n"));
    first_ = false;
    return add(text);
  }
  Status flush() {
    auto status = buffer_.empty() ? Status(Done{}) : write_(buffer_);
    buffer_.clear();
    return status;
  }

private:
  static constexpr std::size_t buffer_bytes = 256 << 10;
  const std::function<Status(std::string_view)>& write_;
  std::string buffer_;
  bool first_ = true;
};

std::string microseconds(std::int64_t nanoseconds) {
  const auto size = static_cast<std::uint64_t>(nanoseconds < 0 ? -nanoseconds : nanoseconds);
  char text[40];
  std::snprintf(text, sizeof text, "%s%llu.%03llu", nanoseconds < 0 ? "-" : "", static_cast<unsigned long long>(size / 1000),
                static_cast<unsigned long long>(size % 1000));
  return text;
}

/// As a number of microseconds with three places.
double in_microseconds(std::int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e3; }

// ---- rows -----------------------------------------------------------------------------------------------------------

/// A slice around each run of compute commands of one block.
void add_blocks(std::vector<Entry>& row) {
  std::vector<Entry> blocks;
  const Event* last = nullptr;
  for (const auto& entry : row) {
    if (entry.is_instant()) continue;
    const auto block = entry.event->category == trace::Category::compute ? actors::block_of_label(trace::name_of(*entry.event)) : std::nullopt;
    const bool goes_on = block && last != nullptr && blocks.back().block == *block && last->request == entry.event->request &&
                         last->step == entry.event->step && blocks.back().end <= entry.begin;
    if (goes_on) {
      blocks.back().end = entry.end;
    } else if (block) {
      Entry fresh;
      fresh.begin = entry.begin;
      fresh.end = entry.end;
      fresh.block = *block;
      blocks.push_back(fresh);
    }
    last = block ? entry.event : nullptr;
  }
  row.insert(row.end(), blocks.begin(), blocks.end());
}

void sort_row(std::vector<Entry>& row) {
  // What is longer, then blocks, come first: they are around the others.
  std::stable_sort(row.begin(), row.end(), [](const Entry& a, const Entry& b) {
    return std::tuple(a.begin, -a.end, a.event != nullptr) < std::tuple(b.begin, -b.end, b.event != nullptr);
  });
}

/// Gives each span the first lane where it lies within, or after, what is there; that of the span around it if possible.
std::uint32_t assign_lanes(Process& process, const RowKey& key, std::vector<Entry>& row) {
  std::vector<std::vector<std::int64_t>> open(1);  // By lane: the ends of spans around the present moment.
  const auto fits = [&](std::uint32_t lane, const Entry& entry) {
    auto& ends = open[lane];
    while (!ends.empty() && ends.back() <= entry.begin) ends.pop_back();
    return ends.empty() || ends.back() >= entry.end;
  };
  for (std::size_t i = 0; i < row.size(); ++i) {
    auto& entry = row[i];
    if (entry.is_instant()) continue;
    const bool is_span = entry.event != nullptr && entry.event->kind == Kind::span;
    std::uint32_t lane = 0;
    bool found = false;
    if (is_span && entry.event->flow != 0)
      if (const auto around = process.spans.find(static_cast<std::uint32_t>(entry.event->flow));
          around != process.spans.end() && around->second.first == key) {
        lane = row[around->second.second].lane;
        found = fits(lane, entry);
      }
    for (std::uint32_t each = 0; !found && each < open.size(); ++each)
      if (fits(each, entry)) {
        lane = each;
        found = true;
      }
    if (!found) {
      lane = static_cast<std::uint32_t>(open.size());
      open.emplace_back();
    }
    open[lane].push_back(entry.end);
    entry.lane = lane;
    if (is_span) process.spans[entry.event->span] = {key, i};
  }
  return static_cast<std::uint32_t>(open.size());
}

std::string row_name(const TraceSource& source, const RowKey& key) {
  const auto found = source.tracks.find(key.first);
  auto name = found == source.tracks.end() ? "row " + std::to_string(key.first) : found->second;
  if (name == trace::requests_track && key.second != 0) return "request " + std::to_string(key.second);
  return name;
}

/// Rows in the order in which they are shown: by name, numbers by their value.
bool shown_before(const std::string& a, const std::string& b) {
  std::size_t i = 0, j = 0;
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  while (i < a.size() && j < b.size()) {
    if (digit(a[i]) && digit(b[j])) {
      std::uint64_t x = 0, y = 0;
      while (i < a.size() && digit(a[i]) && x < UINT32_MAX) x = x * 10 + static_cast<std::uint64_t>(a[i++] - '0');
      while (j < b.size() && digit(b[j]) && y < UINT32_MAX) y = y * 10 + static_cast<std::uint64_t>(b[j++] - '0');
      if (x != y) return x < y;
      continue;
    }
    if (a[i] != b[j]) return a[i] < b[j];
    ++i, ++j;
  }
  return a.size() - i < b.size() - j;
}

Process process_of(const TraceSource& source, std::int64_t pid, std::int64_t origin) {
  Process process;
  process.source = &source;
  process.pid = pid;
  process.name = source.process + (source.life > 1 ? " (life " + std::to_string(source.life) + ")" : "");
  std::optional<trace::Track> requests;
  for (const auto& [track, name] : source.tracks)
    if (name == trace::requests_track) requests = track;
  for (const auto& event : source.events) {
    Entry entry;
    entry.event = &event;
    // What began before the recording is cut off there.
    entry.begin = std::max<std::int64_t>(0, source.clock.to_ours(event.begin) - origin);
    entry.end = std::max(entry.begin, source.clock.to_ours(event.end) - origin);
    if (event.kind == Kind::counter)
      process.counters.push_back(entry);
    else if (event.kind == Kind::span || event.kind == Kind::instant)
      process.rows[{event.track, event.track == requests ? event.request : 0}].push_back(entry);
  }
  return process;
}

/// Ends of arrows: in the span around them, or in a small one of their own, which is added to the rows.
void add_lone_arrows(Process& process, std::int64_t origin) {
  std::unordered_map<std::uint32_t, bool> known;
  for (const auto& event : process.source->events)
    if (event.kind == Kind::span) known[event.span] = true;
  for (const auto& event : process.source->events) {
    if (!is_arrow(event)) continue;
    if (event.span != 0 && known.contains(event.span)) continue;
    Entry entry;
    entry.event = &event;
    entry.begin = std::max<std::int64_t>(0, process.source->clock.to_ours(event.begin) - origin);
    entry.end = entry.begin;
    process.rows[{event.track, 0}].push_back(entry);
  }
}

}  // namespace

Result<TraceCounts> write_trace(const TraceRecord& record, const std::function<Status(std::string_view)>& write) {
  TraceCounts counts;
  std::vector<Process> processes;
  for (const auto& source : record.sources) processes.push_back(process_of(source, 0, record.begin));
  const auto rank = [](const TraceSource& source) { return source.process == "client" ? 0 : source.process == "coordinator" ? 1 : 2; };
  std::stable_sort(processes.begin(), processes.end(), [&](const Process& a, const Process& b) {
    if (rank(*a.source) != rank(*b.source)) return rank(*a.source) < rank(*b.source);
    return a.source->process != b.source->process ? shown_before(a.source->process, b.source->process) : a.source->life < b.source->life;
  });
  std::unordered_map<const Event*, End> ends;  // Of arrows.
  for (std::size_t i = 0; i < processes.size(); ++i) {
    auto& process = processes[i];
    process.pid = static_cast<std::int64_t>(i) + 1;
    counts.dropped += process.source->dropped;
    add_lone_arrows(process, record.begin);
    std::vector<std::pair<std::string, RowKey>> shown;
    for (auto& [key, row] : process.rows) shown.emplace_back(row_name(*process.source, key), key);
    std::stable_sort(shown.begin(), shown.end(), [](const auto& a, const auto& b) { return shown_before(a.first, b.first); });
    std::uint32_t next_tid = 1;
    for (const auto& [name, key] : shown) {
      auto& row = process.rows[key];
      // The arrows' own slices, for lack of others.
      for (auto& entry : row)
        if (is_arrow(*entry.event)) entry.end = entry.begin + lone_arrow_nanoseconds;
      sort_row(row);
      add_blocks(row);
      sort_row(row);
      const auto lanes = assign_lanes(process, key, row);
      for (std::uint32_t lane = 0; lane < lanes; ++lane) process.threads.emplace_back(next_tid + lane, lane == 0 ? name : name + " (" + std::to_string(lane + 1) + ")");
      for (auto& entry : row) {
        entry.tid = next_tid + entry.lane;
        if (entry.event != nullptr && is_arrow(*entry.event)) ends[entry.event] = {entry.begin, process.pid, entry.tid};
      }
      next_tid += lanes;
    }
    for (const auto& event : process.source->events) {
      if (!is_arrow(event) || ends.contains(&event)) continue;
      const auto& [key, index] = process.spans.at(event.span);
      const auto& around = process.rows.at(key)[index];
      const auto at = process.source->clock.to_ours(event.begin) - record.begin;
      ends[&event] = {std::clamp(at, around.begin, around.end), process.pid, around.tid};
    }
  }
  // Arrows have both ends, each once.
  std::unordered_map<std::uint64_t, std::pair<const Event*, const Event*>> arrows;
  for (const auto& source : record.sources)
    for (const auto& event : source.events) {
      if (!is_arrow(event)) continue;
      auto& arrow = arrows[event.flow];
      auto& end = event.kind == Kind::flow_out ? arrow.first : arrow.second;
      if (end == nullptr) end = &event;
      else ++counts.unmatched;
    }
  std::vector<std::tuple<End, End, const Event*>> drawn;
  for (const auto& [id, arrow] : arrows) {
    if (arrow.first == nullptr || arrow.second == nullptr) {
      ++counts.unmatched;
      continue;
    }
    drawn.emplace_back(ends.at(arrow.first), ends.at(arrow.second), arrow.first);
    if (std::get<1>(drawn.back()).at < std::get<0>(drawn.back()).at) ++counts.backwards;
  }
  std::sort(drawn.begin(), drawn.end(), [](const auto& a, const auto& b) {
    const auto key = [](const auto& each) { return std::tuple(std::get<0>(each).at, std::get<0>(each).pid, std::get<0>(each).tid, std::get<2>(each)->flow); };
    return key(a) < key(b);
  });
  counts.arrows = drawn.size();
  for (const auto& process : processes) {
    counts.events += process.counters.size();
    for (const auto& [key, row] : process.rows) counts.events += row.size();
  }

  Writer out(write);
  OrderedJson about;
  about["program"] = version_line();
  about["times"] = "microseconds since recording began, by the clock of the process that wrote this file";
  about["began_unix_seconds"] = record.wall_seconds;
  about["processes"] = OrderedJson::array();
  for (const auto& process : processes) {
    const auto& source = *process.source;
    OrderedJson entry;
    entry["name"] = process.name;
    entry["pid"] = process.pid;
    entry["system_pid"] = source.pid;
    OrderedJson clock;
    clock["same_clock"] = source.same_clock;
    clock["ahead_us"] = in_microseconds(source.clock.offset);
    clock["error_us"] = in_microseconds(source.clock.error);
    if (source.clock.drift != 0) clock["drift_ppm"] = std::round(source.clock.drift * 1e9) / 1e3;
    clock["round_trips"] = source.measured.round_trips;
    if (source.measured.round_trips > 0) {
      clock["measured_ahead_us"] = in_microseconds(source.measured.offset);
      clock["measured_error_us"] = in_microseconds(source.measured.error);
    }
    entry["clock"] = clock;
    entry["events"] = source.events.size();
    entry["dropped"] = source.dropped;
    about["processes"].push_back(entry);
  }
  about["arrows"] = {{"drawn", counts.arrows}, {"without_other_end", counts.unmatched}, {"backwards", counts.backwards}};
  about["notes"] = record.notes;
  ORRERY_TRY_DONE(out.add("{\"displayTimeUnit\":\"ms\",\"otherData\":" + about.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) +
                          ",\"traceEvents\":["));
  for (const auto& process : processes) {
    const auto pid = std::to_string(process.pid);
    ORRERY_TRY_DONE(out.event("{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":" + pid + ",\"args\":{\"name\":" + json_text(process.name) + "}}"));
    ORRERY_TRY_DONE(out.event("{\"ph\":\"M\",\"name\":\"process_sort_index\",\"pid\":" + pid + ",\"args\":{\"sort_index\":" + pid + "}}"));
    for (const auto& [tid, name] : process.threads) {
      const auto at = ",\"pid\":" + pid + ",\"tid\":" + std::to_string(tid);
      ORRERY_TRY_DONE(out.event("{\"ph\":\"M\",\"name\":\"thread_name\"" + at + ",\"args\":{\"name\":" + json_text(name) + "}}"));
      ORRERY_TRY_DONE(out.event("{\"ph\":\"M\",\"name\":\"thread_sort_index\"" + at + ",\"args\":{\"sort_index\":" + std::to_string(tid) + "}}"));
    }
    std::unordered_map<std::string_view, std::string> names;  // Written in JSON.
    const auto named = [&](std::string_view name) -> const std::string& {
      auto& known = names[name];
      if (known.empty()) known = json_text(name);
      return known;
    };
    for (const auto& [key, row] : process.rows)
      for (const auto& entry : row) {
        std::string text = entry.is_instant() ? "{\"ph\":\"i\",\"s\":\"t\"" : "{\"ph\":\"X\"";
        text += ",\"name\":";
        text += entry.event != nullptr ? named(trace::name_of(*entry.event)) : "\"block " + std::to_string(entry.block) + "\"";
        text += ",\"cat\":\"";
        text += entry.event != nullptr ? trace::name_of(entry.event->category) : std::string_view("block");
        text += "\",\"pid\":" + pid + ",\"tid\":" + std::to_string(entry.tid) + ",\"ts\":" + microseconds(entry.begin);
        if (!entry.is_instant()) text += ",\"dur\":" + microseconds(entry.end - entry.begin);
        if (entry.event != nullptr) {
          const auto& event = *entry.event;
          std::string details;
          if (event.request != 0) details += ",\"request\":" + std::to_string(event.request);
          if (event.step != trace::no_step) details += ",\"step\":" + std::to_string(std::uint64_t{event.step} + 1);
          if (const auto block = actors::block_of_label(trace::name_of(event))) details += ",\"block\":" + std::to_string(*block);
          if (event.value != 0) details += ",\"bytes\":" + std::to_string(event.value);
          if (event.text != 0 && event.text < process.source->texts.size()) details += ",\"text\":" + json_text(process.source->texts[event.text]);
          if (!details.empty()) text += ",\"args\":{" + details.substr(1) + "}";
        }
        ORRERY_TRY_DONE(out.event(text + "}"));
      }
    for (const auto& entry : process.counters)
      ORRERY_TRY_DONE(out.event("{\"ph\":\"C\",\"name\":" + named(trace::name_of(*entry.event)) + ",\"pid\":" + pid + ",\"ts\":" + microseconds(entry.begin) +
                                ",\"args\":{\"value\":" + std::to_string(entry.event->value) + "}}"));
  }
  std::uint64_t number = 0;
  for (const auto& [from, to, event] : drawn) {
    ++number;
    const auto end = [&](const char* phase, const End& at) {
      return std::string("{\"ph\":\"") + phase + "\",\"name\":\"message\",\"cat\":\"message\",\"id\":" + std::to_string(number) + ",\"pid\":" +
             std::to_string(at.pid) + ",\"tid\":" + std::to_string(at.tid) + ",\"ts\":" + microseconds(at.at);
    };
    ORRERY_TRY_DONE(out.event(end("s", from) + ",\"args\":{\"bytes\":" + std::to_string(event->value) + "}}"));
    ORRERY_TRY_DONE(out.event(end("f\",\"bp\":\"e", to) + "}"));
  }
  ORRERY_TRY_DONE(out.add("\n]}\n"));
  ORRERY_TRY_DONE(out.flush());
  return counts;
}

}  // namespace orrery::launch
