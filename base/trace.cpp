#include "base/trace.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "base/file.hpp"

namespace orrery::trace {

namespace {

constexpr std::size_t block_events = 512;
constexpr std::size_t spare_blocks_max = 64;  // 3 MiB, while something is recorded.
constexpr std::size_t tracks_max = 4096, texts_max = 4096, text_bytes_max = 1000;
constexpr std::string_view fallback_track = "data plane";

static_assert(std::is_same_v<std::chrono::steady_clock::duration, Duration>);

std::string_view cut(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return text;
  auto end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // Within a character.
  return text.substr(0, end);
}

struct Block {
  std::array<Event, block_events> events;
  std::size_t count = 0;
};

/// One thread's events. The mutex is contended only while somebody takes them.
struct Buffer {
  std::mutex mutex;
  std::deque<std::unique_ptr<Block>> blocks;
};

struct Recorder {
  std::mutex mutex;
  std::vector<std::shared_ptr<Buffer>> buffers;
  std::vector<std::string> tracks{std::string(fallback_track)};
  std::map<std::string, Track, std::less<>> track_ids{{std::string(fallback_track), 0}};
  std::vector<std::string> texts;  // Of this recording; text 1 is the first.
  std::atomic<std::uint64_t> bytes{0}, bytes_max{0}, dropped{0};
  std::atomic<std::int64_t> lease_end{0};
  std::atomic<std::uint32_t> next_span{1};
  std::mutex spare_mutex;
  std::vector<std::unique_ptr<Block>> spare;  // Used before. Guarded by spare_mutex.

  std::unique_ptr<Block> new_block() {
    {
      const std::lock_guard lock(spare_mutex);
      if (!spare.empty()) {
        auto block = std::move(spare.back());
        spare.pop_back();
        block->count = 0;
        return block;
      }
    }
    return std::unique_ptr<Block>(new Block);  // Not value-initialised.
  }
};

/// Never destroyed: threads may outlive static objects.
Recorder& recorder() {
  static auto& only = *new Recorder;
  return only;
}

struct ThreadContext {
  std::shared_ptr<Buffer> buffer;
  std::uint32_t span = 0;
  std::uint32_t step = no_step;
  std::uint64_t request = 0;
  Track track = 0;
};
thread_local ThreadContext context;

void free_blocks(Buffer& buffer) {
  std::deque<std::unique_ptr<Block>> blocks;
  {
    const std::lock_guard lock(buffer.mutex);
    blocks.swap(buffer.blocks);
  }
  recorder().bytes -= blocks.size() * sizeof(Block);
}

void push(const Event& event) {
  auto& all = recorder();
  if (event.end > all.lease_end.load(std::memory_order_relaxed)) return stop();
  if (!context.buffer) {
    context.buffer = std::make_shared<Buffer>();
    const std::lock_guard lock(all.mutex);
    all.buffers.push_back(context.buffer);
  }
  auto& buffer = *context.buffer;
  const std::lock_guard lock(buffer.mutex);
  if (!enabled()) return;  // Else a stop() meanwhile would not free it.
  if (buffer.blocks.empty() || buffer.blocks.back()->count == block_events) {
    if (all.bytes.fetch_add(sizeof(Block)) + sizeof(Block) > all.bytes_max.load(std::memory_order_relaxed)) {
      all.bytes -= sizeof(Block);
      ++all.dropped;
      return;
    }
    buffer.blocks.push_back(all.new_block());
  }
  auto& block = *buffer.blocks.back();
  block.events[block.count++] = event;
}

std::uint32_t text_id(std::string_view text) {
  if (text.empty()) return 0;
  auto& all = recorder();
  const std::lock_guard lock(all.mutex);
  if (all.texts.size() == texts_max) return 0;
  all.texts.emplace_back(cut(text, text_bytes_max));
  return static_cast<std::uint32_t>(all.texts.size());
}

void fill(Event& event, Kind kind, Track track, Category category, std::string_view name, const Details& details) {
  event.kind = kind;
  event.track = track == here ? context.track : track;
  event.category = category;
  event.request = details.request != 0 ? details.request : context.request;
  event.step = details.step != no_step ? details.step : context.step;
  event.value = details.bytes;
  event.flow = 0;
  event.text = text_id(details.text);
  event.span = context.span;
  set_name(event, name);
}

std::uint32_t new_span_number() {
  const auto number = recorder().next_span.fetch_add(1, std::memory_order_relaxed);
  return number != 0 ? number : recorder().next_span.fetch_add(1, std::memory_order_relaxed);
}

void flow(Kind kind, std::uint64_t id, std::uint64_t bytes) {
  Event event;
  fill(event, kind, context.track, Category::exchange, kind == Kind::flow_out ? "send" : "receive", {0, no_step, bytes, {}});
  event.flow = id;
  event.begin = event.end = now();
  push(event);
}

}  // namespace

std::int64_t now() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

std::string clock_name() {
  // The steady clock counts from the machine's start, and may be shifted in a time namespace.
  auto boot = read_text_file("/proc/sys/kernel/random/boot_id", 100);
  std::array<char, 64> space{};
  const auto size = ::readlink("/proc/self/ns/time", space.data(), space.size());
  if (!boot.ok() || size <= 0) return {};
  return boot.value().substr(0, boot.value().find('\n')) + " " + std::string(space.data(), static_cast<std::size_t>(size));
}

std::string_view name_of(Category category) {
  static constexpr std::string_view names[] = {"compute", "copy", "exchange", "wait", "step", "stage", "request", "epoch", "incident", "control"};
  static_assert(std::size(names) == category_count);
  return names[static_cast<std::size_t>(category)];
}

void set_name(Event& event, std::string_view name) {
  const auto part = cut(name, event.name.size() - 1);
  std::copy(part.begin(), part.end(), event.name.begin());  // An empty name may have no bytes to point at.
  std::memset(event.name.data() + part.size(), 0, event.name.size() - part.size());
}

Track track(std::string_view name) {
  auto& all = recorder();
  const std::lock_guard lock(all.mutex);
  if (const auto found = all.track_ids.find(name); found != all.track_ids.end()) return found->second;
  if (all.tracks.size() == tracks_max) return 0;
  const auto id = static_cast<Track>(all.tracks.size());
  all.tracks.emplace_back(name);
  all.track_ids.emplace(std::string(name), id);
  return id;
}

void Span::begin(Track track, Category category, std::string_view name, const Details& details) {
  active_ = true;
  around_ = {context.span, context.step, context.request, context.track};
  fill(event_, Kind::span, track, category, name, details);
  event_.flow = context.span;
  event_.span = new_span_number();
  context.span = event_.span;
  context.step = event_.step;
  context.request = event_.request;
  context.track = event_.track;
  event_.begin = now();
}

void Span::end() {
  event_.end = now();
  context.span = around_.span;
  context.step = around_.step;
  context.request = around_.request;
  context.track = around_.track;
  if (enabled()) push(event_);
}

void complete(Track track, Category category, std::string_view name, Time begin, Time end, const Details& details) {
  if (!enabled()) return;
  Event event;
  fill(event, Kind::span, track, category, name, details);
  event.span = new_span_number();
  event.begin = begin.time_since_epoch().count();
  event.end = std::max(event.begin, static_cast<std::int64_t>(end.time_since_epoch().count()));
  push(event);
}

void instant(Track track, Category category, std::string_view name, const Details& details) {
  if (!enabled()) return;
  Event event;
  fill(event, Kind::instant, track, category, name, details);
  event.begin = event.end = now();
  push(event);
}

void counter(std::string_view name, std::uint64_t value) {
  if (!enabled()) return;
  Event event;
  fill(event, Kind::counter, 0, Category::control, name, {});
  event.value = value;
  event.begin = event.end = now();
  push(event);
}

void flow_out(std::uint64_t id, std::uint64_t bytes) {
  if (enabled()) flow(Kind::flow_out, id, bytes);
}
void flow_in(std::uint64_t id, std::uint64_t bytes) {
  if (enabled()) flow(Kind::flow_in, id, bytes);
}

std::uint64_t flow_id(std::initializer_list<std::uint64_t> words) {
  std::uint64_t hash = 0x9E3779B97F4A7C15;
  for (const auto word : words) {  // splitmix64's finisher, chained.
    hash = (hash ^ word) + 0x9E3779B97F4A7C15;
    hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9;
    hash = (hash ^ (hash >> 27)) * 0x94D049BB133111EB;
    hash ^= hash >> 31;
  }
  return hash;
}

// ---- the recorder ---------------------------------------------------------------------------------------------------

void record(Duration lease, std::uint64_t bytes_max) {
  auto& all = recorder();
  const std::lock_guard lock(all.mutex);
  if (!enabled()) {
    all.dropped = 0;
    all.texts.clear();
  }
  all.bytes_max = bytes_max;
  all.lease_end = now() + std::max(lease, Duration{}).count();
  detail::recording = true;
}

void stop() {
  auto& all = recorder();
  std::vector<std::shared_ptr<Buffer>> buffers;
  {
    const std::lock_guard lock(all.mutex);
    detail::recording = false;
    buffers = all.buffers;
    all.texts.clear();
  }
  for (const auto& buffer : buffers) free_blocks(*buffer);
  const std::lock_guard lock(all.spare_mutex);
  all.spare.clear();
}

Batch take(std::size_t events_max) {
  auto& all = recorder();
  Batch batch;
  std::vector<std::unique_ptr<Block>> blocks;
  const std::lock_guard lock(all.mutex);
  std::size_t count = 0;
  for (const auto& buffer : all.buffers) {
    const std::lock_guard turn(buffer->mutex);
    while (!buffer->blocks.empty() && count < events_max) {
      count += buffer->blocks.front()->count;
      blocks.push_back(std::move(buffer->blocks.front()));
      buffer->blocks.pop_front();
    }
    batch.more = batch.more || !buffer->blocks.empty();
  }
  // Of threads that have ended.
  std::erase_if(all.buffers, [](const auto& buffer) { return buffer.use_count() == 1 && buffer->blocks.empty(); });
  all.bytes -= blocks.size() * sizeof(Block);
  batch.dropped = all.dropped;
  batch.events.reserve(count);
  std::vector<char> tracks(all.tracks.size()), texts(all.texts.size() + 1);
  for (const auto& block : blocks)
    batch.events.insert(batch.events.end(), block->events.begin(), block->events.begin() + static_cast<std::ptrdiff_t>(block->count));
  for (auto& event : batch.events) {
    tracks[event.track] = 1;
    if (event.text >= texts.size()) event.text = 0;  // Of a recording before this one.
    texts[event.text] = 1;
  }
  // The next blocks need no new pages.
  {
    const std::lock_guard spare(all.spare_mutex);
    for (auto& block : blocks)
      if (all.spare.size() < spare_blocks_max) all.spare.push_back(std::move(block));
  }
  for (std::size_t id = 0; id < tracks.size(); ++id)
    if (tracks[id]) batch.tracks.emplace_back(static_cast<Track>(id), all.tracks[id]);
  for (std::size_t id = 1; id < texts.size(); ++id)
    if (texts[id]) batch.texts.emplace_back(static_cast<std::uint32_t>(id), all.texts[id - 1]);
  return batch;
}

// ---- as bytes -------------------------------------------------------------------------------------------------------

namespace {

void put(std::string& out, std::uint64_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}
void put_signed(std::string& out, std::int64_t value) {
  put(out, (static_cast<std::uint64_t>(value) << 1) ^ static_cast<std::uint64_t>(value >> 63));
}
/// a - b, also where that leaves the range; `plus` undoes it.
std::int64_t minus(std::int64_t a, std::int64_t b) { return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) - static_cast<std::uint64_t>(b)); }
std::int64_t plus(std::int64_t a, std::int64_t b) { return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b)); }

void put_text(std::string& out, std::string_view text) {
  put(out, text.size());
  out += text;
}

/// Reads what `put` wrote; after the first thing that is wrong everything is 0 and `good` false.
class Reader {
public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  std::uint64_t number(std::uint64_t limit = UINT64_MAX) {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) return fail();
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      if (shift == 63 && byte > 1) return fail();
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value <= limit ? value : fail();
    }
    return fail();
  }
  std::int64_t signed_number() {
    const auto value = number();
    return static_cast<std::int64_t>((value >> 1) ^ (~(value & 1) + 1));
  }
  std::string_view text(std::size_t limit) {
    const auto size = number(limit);
    if (size > rest_.size()) return fail(), std::string_view();
    const auto text = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return text;
  }
  std::uint64_t fail() {
    good_ = false;
    rest_ = {};
    return 0;
  }
  bool good() const { return good_; }
  std::size_t left() const { return rest_.size(); }

private:
  std::string_view rest_;
  bool good_ = true;
};

}  // namespace

std::string pack(const Batch& batch) {
  std::string out;
  out.reserve(batch.events.size() * 24 + 1024);
  put(out, batch.dropped);
  put(out, batch.more ? 1 : 0);
  put(out, batch.tracks.size());
  for (const auto& [id, name] : batch.tracks) {
    put(out, id);
    put_text(out, name);
  }
  put(out, batch.texts.size());
  for (const auto& [id, text] : batch.texts) {
    put(out, id);
    put_text(out, text);
  }
  put(out, batch.events.size());
  std::unordered_map<std::string_view, std::uint64_t> names;  // A name is written once, then by its number.
  std::int64_t last_begin = 0;
  std::uint32_t last_span = 0;
  for (const auto& event : batch.events) {
    out.push_back(static_cast<char>(static_cast<unsigned>(event.kind) * 16 + static_cast<unsigned>(event.category)));
    put(out, event.track);
    const auto [known, is_new] = names.emplace(name_of(event), names.size());
    put(out, known->second);
    if (is_new) put_text(out, known->first);
    put_signed(out, minus(event.begin, last_begin));
    put(out, static_cast<std::uint64_t>(minus(event.end, event.begin)));
    put_signed(out, std::int64_t{event.span} - std::int64_t{last_span});
    put(out, event.request);
    put(out, static_cast<std::uint32_t>(event.step + 1));  // None is 0.
    put(out, event.value);
    put(out, event.text);
    put(out, event.flow);
    last_begin = event.begin;
    last_span = event.span;
  }
  return out;
}

Result<Batch> unpack(std::string_view bytes) {
  Reader in(bytes);
  Batch batch;
  batch.dropped = in.number();
  batch.more = in.number(1) == 1;
  std::map<std::uint64_t, bool> tracks, texts;
  for (auto left = in.number(tracks_max); left > 0 && in.good(); --left) {
    const auto id = static_cast<Track>(in.number(tracks_max));
    tracks[id] = true;
    batch.tracks.emplace_back(id, in.text(std::numeric_limits<std::uint32_t>::max()));
  }
  texts[0] = true;
  for (auto left = in.number(texts_max); left > 0 && in.good(); --left) {
    const auto id = static_cast<std::uint32_t>(in.number(texts_max));
    texts[id] = true;
    batch.texts.emplace_back(id, in.text(text_bytes_max));
  }
  const auto count = in.number();
  if (in.good()) batch.events.reserve(std::min<std::uint64_t>(count, in.left() / 11));  // The least that an event takes.
  std::vector<std::string_view> names;
  std::int64_t last_begin = 0, last_span = 0;
  for (std::uint64_t i = 0; i < count && in.good(); ++i) {
    Event event;
    const auto head = in.number(0x7F);
    event.kind = static_cast<Kind>(head / 16);
    event.category = static_cast<Category>(head % 16);
    event.track = static_cast<Track>(in.number(tracks_max));
    const auto name = in.number();
    if (name == names.size()) names.push_back(in.text(event.name.size() - 1));
    const bool in_range = head / 16 < kind_count && head % 16 < category_count && name < names.size() && tracks.contains(event.track);
    if (!in_range) {
      in.fail();
      break;
    }
    set_name(event, names[name]);
    event.begin = plus(last_begin, in.signed_number());
    event.end = plus(event.begin, static_cast<std::int64_t>(in.number(std::numeric_limits<std::int64_t>::max())));
    const auto span = plus(last_span, in.signed_number());
    event.request = in.number();
    event.step = static_cast<std::uint32_t>(in.number(UINT32_MAX)) - 1;
    event.value = in.number();
    event.text = static_cast<std::uint32_t>(in.number(texts_max));
    event.flow = in.number();
    if (span < 0 || span > std::int64_t{UINT32_MAX} || event.end < event.begin || !texts.contains(event.text)) in.fail();
    event.span = static_cast<std::uint32_t>(span);
    last_begin = event.begin;
    last_span = event.span;
    if (in.good()) batch.events.push_back(event);
  }
  if (!in.good() || in.left() != 0) return Error{ErrorCode::bad_frame, "a piece of a trace is damaged"};
  return batch;
}

}  // namespace orrery::trace
