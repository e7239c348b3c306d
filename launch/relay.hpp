// A TCP relay that stands between two processes and does to their bytes what networks do. No root needed.
//
//   client ══▶ 127.0.0.1:PORT ──[ forward ]──▶ target
//          ◀══                ◀─[ backward ]──
//
// What it can do, per direction, at any moment: delay with jitter, a rate, a stall, a half-close, corrupt, truncate
// or duplicate bytes at an offset of the stream; to connections: end them, reset them (RST), take no new ones.
// Delayed bytes keep their order, as on a wire. One seed, one series of jitters.
//
// One thread with poll. It reads no further while 4 MiB of a direction wait, so memory is bounded and a stalled
// reader is felt by the writer, as through real buffers.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.hpp"
#include "base/result.hpp"

namespace orrery::launch {

enum class RelayDirection : std::uint8_t { forward, backward };

/// What a direction does from now on, to all connections. Offsets count the bytes of each connection's direction
/// from its beginning; an offset that has passed by does nothing.
struct RelayFaults {
  std::uint64_t seed = 1;
  Duration delay{}, jitter{};
  double bytes_per_second = 0;  // 0: as fast as it is.
  bool stall = false;           // Nothing goes on until this ends; then everything, in order.
  std::optional<std::uint64_t> corrupt_at = {};    // One bit of this byte is wrong.
  std::optional<std::uint64_t> truncate_at = {};   // From here on nothing comes; the connection is half-closed.
  std::optional<std::uint64_t> duplicate_at = {};  // The 64 bytes up to here (or fewer) come twice.
};

struct RelayCounts {
  std::uint64_t connections = 0;  // Ever.
  std::uint64_t open = 0;         // Now.
  std::uint64_t refused = 0;      // Came while none were taken, or the target could not be reached.
  std::uint64_t reset = 0;
  std::uint64_t bytes_forward = 0, bytes_backward = 0;  // Handed on.
};

/// Threads: any, for all calls. The destructor ends all connections.
class Relay {
public:
  /// Listens on a free port of `listen_host` and hands connections on to HOST:PORT (an IPv4 address).
  /// Fails with invalid_config for an address that cannot be read, and with io_failed.
  static Result<std::unique_ptr<Relay>> start(const std::string& target, const std::string& listen_host = "127.0.0.1");
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  std::uint16_t port() const;
  std::string address() const;  // "127.0.0.1:40123"
  /// Where new connections go from now on.
  Status retarget(const std::string& target);

  void set(RelayDirection direction, const RelayFaults& faults);
  /// No end of file is lost: the receiver sees one at this place of the stream.
  void half_close(RelayDirection direction);
  /// Ends all connections in good order, or with RST.
  void drop_connections();
  void reset_connections();
  /// New connections are closed at once.
  void refuse_connections(bool refuse);
  /// Both directions as if nothing had been; half-closed and dropped connections stay so.
  void heal();

  RelayCounts counts() const;

private:
  struct State;
  explicit Relay(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::launch
