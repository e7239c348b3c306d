// Named events as JSON lines on stderr (or in a file), for machines and for people who look for a cause.
//
// Events are `noun.past_participle` with fields; never prose, never per chunk. Levels: error (someone must
// look), warn (handled, remember), info (milestones), trace (off unless asked for).

#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace orrery {

enum class Level { error = 0, warn = 1, info = 2, trace = 3 };

using LogValue = std::variant<std::string, double, std::int64_t, std::uint64_t, bool>;
struct LogField {
  std::string_view name;
  LogValue value;
  LogField(std::string_view n, std::string v) : name(n), value(std::move(v)) {}
  LogField(std::string_view n, std::string_view v) : name(n), value(std::string(v)) {}
  LogField(std::string_view n, const char* v) : name(n), value(std::string(v)) {}
  LogField(std::string_view n, double v) : name(n), value(v) {}
  LogField(std::string_view n, int v) : name(n), value(std::int64_t{v}) {}
  LogField(std::string_view n, std::int64_t v) : name(n), value(v) {}
  LogField(std::string_view n, std::uint64_t v) : name(n), value(v) {}
  LogField(std::string_view n, unsigned v) : name(n), value(std::uint64_t{v}) {}
  LogField(std::string_view n, bool v) : name(n), value(v) {}
};

/// Writes one line if `level` is switched on. Threads: any; a line is written whole.
void log_event(Level level, std::string_view event, std::initializer_list<LogField> fields = {});

/// What is switched on (default: warn) and who is speaking ("coordinator", a node's name). Set once in main.
void set_log(Level level, std::string speaker);

}  // namespace orrery
