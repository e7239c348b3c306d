#include "launch/trace_option.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <optional>

#include "actors/client.hpp"
#include "actors/trace_collector.hpp"
#include "base/file.hpp"
#include "launch/trace_file.hpp"

namespace orrery::launch {

void add_trace_option(CLI::App& verb, std::string& file) {
  verb.add_option("--trace", file, "Write a timeline of all nodes and cards: Chrome trace JSON, opens in ui.perfetto.dev")->type_name("FILE");
}

struct TraceSession::State {
  std::string path;  // Empty: no trace.
  std::optional<AtomicFile> file;
  std::unique_ptr<actors::TraceCollector> cluster;
  std::unique_ptr<actors::LocalTrace> local;
};

TraceSession::TraceSession(std::unique_ptr<State> state) : state_(std::move(state)) {}
TraceSession::TraceSession(TraceSession&&) noexcept = default;
TraceSession& TraceSession::operator=(TraceSession&&) noexcept = default;
TraceSession::~TraceSession() = default;

Result<TraceSession> TraceSession::open(const std::string& path) {
  auto state = std::make_unique<State>();
  state->path = path;
  if (path.empty()) return TraceSession(std::move(state));
  std::error_code failed;
  if (path.ends_with('/') || std::filesystem::is_directory(path, failed))
    return Error{ErrorCode::usage, "--trace " + path + " names a folder", "name a file, e.g. --trace trace.json"};
  auto file = AtomicFile::create(path);
  if (!file.ok()) return Error{file.error().code, "the trace cannot be written: " + file.error().message, file.error().hint};
  state->file = std::move(file).value();
  return TraceSession(std::move(state));
}

void TraceSession::follow(actors::Client& client) {
  if (state_->file) state_->cluster = client.record_trace();
}

void TraceSession::record_here() {
  if (state_->file) state_->local = std::make_unique<actors::LocalTrace>();
}

Result<int> TraceSession::finish(const VerbContext& context, Result<int> result) {
  if (!state_->file || (!state_->cluster && !state_->local)) return result;
  auto written = write(context);
  if (!written.ok() && result.ok()) return written.error();
  if (!written.ok()) warn(context, written.error().message);
  return result;
}

Status TraceSession::write(const VerbContext& context) {
  const auto record = state_->cluster ? state_->cluster->finish() : state_->local->finish();
  state_->cluster.reset();
  state_->local.reset();
  auto file = std::move(*state_->file);
  state_->file.reset();
  ORRERY_TRY(counts, write_trace(record, [&](std::string_view text) { return file.write(text); }));
  ORRERY_TRY_DONE(file.commit());
  for (const auto& note : record.notes) warn(context, "trace: " + note);
  if (counts.dropped > 0) warn(context, "trace: " + std::to_string(counts.dropped) + " events found no room and are missing");
  double error_us = 0;
  for (const auto& source : record.sources) error_us = std::max(error_us, static_cast<double>(source.clock.error) / 1e3);
  auto line = state_->path + ": " + std::to_string(counts.events) + " events and " + std::to_string(counts.arrows) + " messages of " +
              std::to_string(record.sources.size()) + (record.sources.size() == 1 ? " process" : " processes");
  if (error_us > 0) line += ", clocks within " + std::to_string(static_cast<std::int64_t>(error_us + 1)) + " us";
  if (!context.quiet()) std::fprintf(stderr, "%s; opens in ui.perfetto.dev\n", line.c_str());
  return Done{};
}

}  // namespace orrery::launch
