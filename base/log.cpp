#include "base/log.hpp"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>

#include "base/json.hpp"

namespace orrery {
namespace {
std::atomic<Level> log_level{Level::warn};
std::mutex speaker_mutex;
std::string log_speaker = "orrery";  // Guarded by speaker_mutex.
}  // namespace

void set_log(Level level, std::string speaker) {
  log_level = level;
  const std::lock_guard lock(speaker_mutex);
  log_speaker = std::move(speaker);
}

void log_event(Level level, std::string_view event, std::initializer_list<LogField> fields) {
  if (level > log_level.load(std::memory_order_relaxed)) return;
  static constexpr std::string_view names[] = {"error", "warn", "info", "trace"};
  OrderedJson line;
  line["time"] = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  line["level"] = names[static_cast<std::size_t>(level)];
  {
    const std::lock_guard lock(speaker_mutex);
    line["by"] = log_speaker;
  }
  line["event"] = event;
  for (const auto& field : fields)
    std::visit([&](const auto& value) { line[std::string(field.name)] = value; }, field.value);
  const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace orrery
