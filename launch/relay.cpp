#include "launch/relay.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <deque>
#include <list>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/random.hpp"

namespace orrery::launch {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

constexpr std::size_t waiting_max = std::size_t{4} << 20;
constexpr std::size_t read_size = std::size_t{64} << 10;
constexpr std::size_t duplicated = 64;

/// A file descriptor that is closed with its owner.
class Descriptor {
public:
  explicit Descriptor(int number = -1) : number_(number) {}
  ~Descriptor() { close(); }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      close();
      number_ = std::exchange(other.number_, -1);
    }
    return *this;
  }
  int get() const { return number_; }
  bool open() const { return number_ >= 0; }
  void close() {
    if (number_ >= 0) ::close(number_);
    number_ = -1;
  }

private:
  int number_;
};

Error failed(const std::string& what) { return {ErrorCode::io_failed, what + ": " + std::strerror(errno)}; }

Result<sockaddr_in> address_of(const std::string& text) {
  const Error wrong{ErrorCode::invalid_config, "'" + text.substr(0, 64) + "' is no address", "write HOST:PORT with an IPv4 address"};
  const auto colon = text.rfind(':');
  if (colon == std::string::npos) return wrong;
  std::uint16_t port = 0;
  const auto* end = text.data() + text.size();
  const auto read = std::from_chars(text.data() + colon + 1, end, port);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (read.ec != std::errc() || read.ptr != end || ::inet_pton(AF_INET, text.substr(0, colon).c_str(), &address.sin_addr) != 1) return wrong;
  return address;
}

struct Piece {
  std::vector<std::byte> bytes;
  std::size_t sent = 0;
  SteadyTime due;
};

/// One direction of one connection.
struct Flow {
  std::deque<Piece> waiting;
  std::size_t bytes_waiting = 0;
  std::uint64_t offset = 0;  // Bytes read so far.
  std::vector<std::byte> last;  // The newest bytes, for a duplicate.
  SteadyTime free_at{};
  bool read_ended = false;   // End of file came in, or nothing more is taken.
  bool write_ended = false;  // It was handed on.
};

struct Connection {
  Descriptor near, far;  // Who came; the target.
  bool connected = false;
  std::array<Flow, 2> flows;
};

void reset_socket(Descriptor& socket) {
  const linger at_once{1, 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  socket.close();
}

}  // namespace

struct Relay::State {
  Descriptor listener, wakeup;
  std::uint16_t port = 0;
  std::string host;
  std::thread thread;

  mutable std::mutex mutex;  // Guards all below; not held while the thread polls.
  sockaddr_in target{};
  std::array<RelayFaults, 2> faults;
  std::array<Random, 2> random{Random(1), Random(1)};
  std::list<Connection> connections;
  RelayCounts counts;
  bool refusing = false, ending = false;

  void wake() const {
    const std::uint64_t one = 1;
    (void)!::write(wakeup.get(), &one, sizeof one);
  }

  void accept_new() {
    for (;;) {
      Descriptor near(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!near.open()) return;
      if (refusing) {
        ++counts.refused;
        reset_socket(near);
        continue;
      }
      Descriptor far(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
      const int yes = 1;
      ::setsockopt(near.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      ::setsockopt(far.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      const auto status = ::connect(far.get(), reinterpret_cast<const sockaddr*>(&target), sizeof target);
      if (status != 0 && errno != EINPROGRESS) {
        ++counts.refused;
        continue;
      }
      auto& connection = connections.emplace_back();
      connection.near = std::move(near);
      connection.far = std::move(far);
      connection.connected = status == 0;
      ++counts.connections;
    }
  }

  /// Takes what has come in, and does to it what the direction says.
  bool read_some(Connection& connection, std::size_t direction) {
    auto& flow = connection.flows[direction];
    const auto& source = direction == 0 ? connection.near : connection.far;
    std::vector<std::byte> bytes(read_size);
    const auto count = ::recv(source.get(), bytes.data(), bytes.size(), 0);
    if (count < 0) return errno == EAGAIN || errno == EINTR;
    if (count == 0) {
      flow.read_ended = true;
      return true;
    }
    bytes.resize(static_cast<std::size_t>(count));
    const auto& fault = faults[direction];
    const auto begin = flow.offset, end = flow.offset + bytes.size();
    flow.offset = end;
    const auto inside = [&](const std::optional<std::uint64_t>& at) { return at && *at >= begin && *at < end; };
    if (inside(fault.corrupt_at)) bytes[*fault.corrupt_at - begin] ^= std::byte{0x10};
    if (inside(fault.duplicate_at)) {
      const auto cut = *fault.duplicate_at - begin + 1;
      std::vector<std::byte> before = flow.last;
      before.insert(before.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(cut));
      const auto size = std::min(duplicated, before.size());
      bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(cut), before.end() - static_cast<std::ptrdiff_t>(size), before.end());
    }
    if (fault.truncate_at && *fault.truncate_at < end) {
      bytes.resize(*fault.truncate_at > begin ? *fault.truncate_at - begin : 0);
      flow.read_ended = true;
    }
    flow.last.insert(flow.last.end(), bytes.end() - static_cast<std::ptrdiff_t>(std::min(duplicated, bytes.size())), bytes.end());
    if (flow.last.size() > duplicated) flow.last.erase(flow.last.begin(), flow.last.end() - duplicated);
    if (bytes.empty()) return true;
    const auto now = std::chrono::steady_clock::now();
    auto due = now;
    if (fault.bytes_per_second > 0) {
      const std::chrono::duration<double> taken(std::min(static_cast<double>(bytes.size()) / fault.bytes_per_second, 3600.0));
      flow.free_at = std::max(flow.free_at, now) + std::chrono::duration_cast<Duration>(taken);
      due = flow.free_at;
    }
    due += fault.delay;
    if (fault.jitter > Duration::zero())
      due += Duration(static_cast<std::int64_t>(random[direction].uniform() * static_cast<double>(fault.jitter.count())));
    if (!flow.waiting.empty()) due = std::max(due, flow.waiting.back().due);
    flow.bytes_waiting += bytes.size();
    flow.waiting.push_back({std::move(bytes), 0, due});
    return true;
  }

  /// Hands on what is due. False: the connection is over.
  bool write_some(Connection& connection, std::size_t direction, SteadyTime now) {
    auto& flow = connection.flows[direction];
    const auto& sink = direction == 0 ? connection.far : connection.near;
    while (!flow.waiting.empty() && !faults[direction].stall && flow.waiting.front().due <= now) {
      auto& piece = flow.waiting.front();
      const auto count = ::send(sink.get(), piece.bytes.data() + piece.sent, piece.bytes.size() - piece.sent, MSG_NOSIGNAL);
      if (count < 0) return errno == EAGAIN || errno == EINTR;
      piece.sent += static_cast<std::size_t>(count);
      (direction == 0 ? counts.bytes_forward : counts.bytes_backward) += static_cast<std::uint64_t>(count);
      flow.bytes_waiting -= static_cast<std::size_t>(count);
      if (piece.sent == piece.bytes.size()) flow.waiting.pop_front();
    }
    if (flow.read_ended && flow.waiting.empty() && !flow.write_ended && !faults[direction].stall) {
      ::shutdown(sink.get(), SHUT_WR);
      flow.write_ended = true;
    }
    return true;
  }

  void run() {
    std::vector<pollfd> polled;
    std::unique_lock lock(mutex);
    while (!ending) {
      polled.assign({{listener.get(), POLLIN, 0}, {wakeup.get(), POLLIN, 0}});
      const auto now = std::chrono::steady_clock::now();
      std::optional<SteadyTime> next;
      for (const auto& connection : connections) {
        short near = 0, far = 0;
        for (std::size_t direction = 0; direction < 2; ++direction) {
          const auto& flow = connection.flows[direction];
          auto& source = direction == 0 ? near : far;
          auto& sink = direction == 0 ? far : near;
          if (connection.connected && !flow.read_ended && flow.bytes_waiting < waiting_max) source |= POLLIN;
          if (!flow.waiting.empty() && !faults[direction].stall) {
            if (flow.waiting.front().due <= now) sink |= POLLOUT;
            else next = next ? std::min(*next, flow.waiting.front().due) : flow.waiting.front().due;
          }
        }
        if (!connection.connected) far |= POLLOUT;
        // Who has nothing to say is not asked: a hang-up would be reported over and over.
        polled.push_back({near != 0 ? connection.near.get() : -1, near, 0});
        polled.push_back({far != 0 ? connection.far.get() : -1, far, 0});
      }
      timespec rest{};
      if (next) {
        const auto left = std::max(Duration::zero(), std::chrono::duration_cast<Duration>(*next - now));
        rest = {left.count() / 1'000'000'000, left.count() % 1'000'000'000};
      }
      lock.unlock();
      ::ppoll(polled.data(), polled.size(), next ? &rest : nullptr, nullptr);
      lock.lock();
      std::uint64_t ignored = 0;
      if ((polled[1].revents & POLLIN) != 0) (void)!::read(wakeup.get(), &ignored, sizeof ignored);
      serve(polled);
      if ((polled[0].revents & POLLIN) != 0) accept_new();
    }
  }

  void serve(const std::vector<pollfd>& polled) {
    const auto now = std::chrono::steady_clock::now();
    std::size_t at = 2;
    for (auto each = connections.begin(); each != connections.end();) {
      auto& connection = *each;
      // Connections were only removed meanwhile (drop, reset), never added: match by descriptor.
      short near = 0, far = 0;
      for (auto look = at; look + 1 < polled.size(); look += 2) {
        const bool same = (polled[look].fd < 0 || polled[look].fd == connection.near.get()) &&
                          (polled[look + 1].fd < 0 || polled[look + 1].fd == connection.far.get());
        if (!same) continue;
        near = polled[look].fd < 0 ? short{0} : polled[look].revents;
        far = polled[look + 1].fd < 0 ? short{0} : polled[look + 1].revents;
        at = look + 2;
        break;
      }
      bool alive = true;
      if (!connection.connected && far != 0) {
        int error = 0;
        socklen_t size = sizeof error;
        ::getsockopt(connection.far.get(), SOL_SOCKET, SO_ERROR, &error, &size);
        if (error != 0) {
          ++counts.refused;
          reset_socket(connection.near);
          alive = false;
        } else {
          connection.connected = true;
        }
      }
      if (alive && connection.connected) {
        const short readable = POLLIN | POLLHUP | POLLERR;
        if ((near & readable) != 0 && !connection.flows[0].read_ended) alive = read_some(connection, 0);
        if (alive && (far & readable) != 0 && !connection.flows[1].read_ended) alive = read_some(connection, 1);
        for (std::size_t direction = 0; direction < 2 && alive; ++direction) alive = write_some(connection, direction, now);
        if (!alive) {
          // A reset goes through to the other side.
          reset_socket(connection.near);
          reset_socket(connection.far);
        }
        if (alive && connection.flows[0].write_ended && connection.flows[1].write_ended) alive = false;
      }
      each = alive ? std::next(each) : connections.erase(each);
    }
  }
};

Relay::Relay(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<Relay>> Relay::start(const std::string& target, const std::string& listen_host) {
  auto state = std::make_unique<State>();
  ORRERY_TRY(address, address_of(target));
  ORRERY_TRY(own, address_of(listen_host + ":0"));
  state->target = address;
  state->host = listen_host;
  state->listener = Descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  state->wakeup = Descriptor(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!state->listener.open() || !state->wakeup.open()) return failed("a relay cannot be made");
  socklen_t size = sizeof own;
  if (::bind(state->listener.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0 || ::listen(state->listener.get(), 64) != 0 ||
      ::getsockname(state->listener.get(), reinterpret_cast<sockaddr*>(&own), &size) != 0)
    return failed("a relay cannot listen on " + listen_host);
  state->port = ntohs(own.sin_port);
  auto* const running = state.get();
  state->thread = std::thread([running] { running->run(); });
  return std::unique_ptr<Relay>(new Relay(std::move(state)));
}

Relay::~Relay() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->ending = true;
  }
  state_->wake();
  state_->thread.join();
}

std::uint16_t Relay::port() const { return state_->port; }
std::string Relay::address() const { return state_->host + ":" + std::to_string(state_->port); }

Status Relay::retarget(const std::string& target) {
  ORRERY_TRY(address, address_of(target));
  const std::lock_guard lock(state_->mutex);
  state_->target = address;
  return Done{};
}

void Relay::set(RelayDirection direction, const RelayFaults& faults) {
  {
    const std::lock_guard lock(state_->mutex);
    const auto index = static_cast<std::size_t>(direction);
    const bool faster = faults.delay == Duration::zero() && faults.jitter == Duration::zero() && faults.bytes_per_second <= 0;
    state_->faults[index] = faults;
    state_->random[index] = Random(faults.seed * 2 + index);
    for (auto& connection : state_->connections) {
      auto& flow = connection.flows[index];
      flow.free_at = {};
      if (faster)
        for (auto& piece : flow.waiting) piece.due = {};
    }
  }
  state_->wake();
}

void Relay::half_close(RelayDirection direction) {
  {
    const std::lock_guard lock(state_->mutex);
    for (auto& connection : state_->connections) connection.flows[static_cast<std::size_t>(direction)].read_ended = true;
  }
  state_->wake();
}

void Relay::drop_connections() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->connections.clear();
  }
  state_->wake();
}

void Relay::reset_connections() {
  {
    const std::lock_guard lock(state_->mutex);
    for (auto& connection : state_->connections) {
      ++state_->counts.reset;
      reset_socket(connection.near);
      reset_socket(connection.far);
    }
    state_->connections.clear();
  }
  state_->wake();
}

void Relay::refuse_connections(bool refuse) {
  const std::lock_guard lock(state_->mutex);
  state_->refusing = refuse;
}

void Relay::heal() {
  set(RelayDirection::forward, {});
  set(RelayDirection::backward, {});
  refuse_connections(false);
}

RelayCounts Relay::counts() const {
  const std::lock_guard lock(state_->mutex);
  auto counts = state_->counts;
  counts.open = state_->connections.size();
  return counts;
}

}  // namespace orrery::launch
