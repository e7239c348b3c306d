// --trace FILE, for every verb that works on cards.
//
//   add_trace_option(*verb, arguments.trace);                        // Declares it.
//   ORRERY_TRY(timeline, TraceSession::open(arguments.trace));          // Before any work: a file that cannot be written.
//   timeline.follow(*client);                                        // A cluster; or timeline.record_here() without one.
//   return timeline.finish(context, work());                         // Also when it failed: a trace shows why.
//
// Without --trace all of it does nothing.

#pragma once

#include <memory>
#include <string>

#include "base/result.hpp"
#include "launch/verb.hpp"

namespace orrery::actors {
class Client;
}

namespace orrery::launch {

void add_trace_option(CLI::App& verb, std::string& file);

/// Threads: one. Ends before the client's Control does.
class TraceSession {
public:
  /// Claims the file under a temporary name. Fails with io_failed, or usage for a folder.
  static Result<TraceSession> open(const std::string& path);
  TraceSession(TraceSession&&) noexcept;
  TraceSession& operator=(TraceSession&&) noexcept;
  ~TraceSession();

  /// Records what all processes of this client's cluster do from now on.
  void follow(actors::Client& client);
  /// Records what this process does.
  void record_here();
  /// Ends the recording, writes the file, and tells so on stderr; what is missing in it, as warnings. Returns `result`, or
  /// io_failed when the work went well and the file did not; nothing is left of it then.
  Result<int> finish(const VerbContext& context, Result<int> result);

private:
  struct State;
  Status write(const VerbContext& context);
  explicit TraceSession(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::launch
