// Encrypts control connections without CAF's knowledge: CAF gets one end of a socket pair, the network sees TLS 1.3.
//
//   CAF ══ socket pair ══ relay thread ══ TLS ══ other host's relay thread ══ socket pair ══ CAF
//
// Both sides show a certificate that they made themselves from their Ed25519 key; what counts is that key, which must
// be in the list of allowed keys (base/keys.hpp). No authority, no names, no dates, no resumption: a revoked key is out
// with the next connection of a process that has read the list.
//
// One thread for all connections, asleep unless bytes move. Each connection holds at most two buffers of 64 KiB; a side
// that does not read stops the other. Closing either end closes the other, after what was under way has been passed on.
//
// Knows nothing of CAF.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/clock.hpp"
#include "base/keys.hpp"
#include "base/result.hpp"

namespace orrery::actors {

/// Both ends of a connection belong to this machine: nothing to encrypt, unless it is always done.
bool is_local_connection(int socket);

struct TlsStatistics {
  std::uint64_t accepted = 0, connected = 0;  // Handshakes that succeeded.
  std::uint64_t refused = 0;                  // Handshakes that failed: strangers, or we were one.
  std::uint64_t open = 0;                     // Now, those in the middle of a handshake included.
};

/// Why a connection came to nothing; filled in by the relay's thread.
class TlsOutcome {
public:
  void fail(const std::string& why) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = why;
  }
  std::optional<std::string> failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

private:
  mutable std::mutex mutex_;
  std::optional<std::string> failure_;
};

/// Threads: any. The destructor ends all connections; what CAF has written by then is sent for up to a second.
class TlsRelay {
public:
  /// Fails with invalid_config when the keys are not usable.
  static Result<std::unique_ptr<TlsRelay>> create(std::shared_ptr<const KeyRing> keys, Duration handshake_timeout = std::chrono::seconds(5));
  ~TlsRelay();

  /// Takes over a connected TCP socket and returns the clear end for CAF. `server`: we were called. Returns at once, the
  /// handshake goes on meanwhile; when it fails the clear end reads as closed. A caller lets in nodes and
  /// coordinators only. Fails with io_failed (no descriptors) or pool_exhausted (too many handshakes at once); the socket
  /// is closed then.
  Result<int> wrap(int socket, bool server, std::shared_ptr<TlsOutcome> outcome = nullptr);

  TlsStatistics statistics() const;

private:
  struct State;
  explicit TlsRelay(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::actors
