#include "actors/control.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <optional>
#include <set>

#include <caf/io/basp_broker.hpp>
#include <caf/io/network/default_multiplexer.hpp>
#include <caf/io/network/doorman_impl.hpp>
#include <caf/io/network/scribe_impl.hpp>

#include "actors/control_state.hpp"
#include "base/file.hpp"

namespace orrery::actors {

ControlConfig::ControlConfig(const ControlOptions& options) : security(options.security) {
  load<caf::io::middleman>();
  add_message_types<caf::id_block::orrery>();
  // `stealing`, CAF's default, polls: 1 % of a core while idle. See actors/README.md.
  set("scheduler.policy", caf::atom("sharing"));
  set("scheduler.max-threads", static_cast<std::size_t>(options.threads));
  set("scheduler.max-throughput", std::size_t{64});
  set("middleman.heartbeat-interval", caf::timespan{options.heartbeat});
  set("middleman.connection-timeout", caf::timespan{options.connection_timeout});
  set("middleman.workers", std::size_t{1});
}

Result<int> ControlConfig::protected_socket(int socket, bool server, std::shared_ptr<TlsOutcome> outcome) const {
  const bool local = is_local_connection(socket);
  // Both ends see the same two addresses, so they decide alike.
  const auto needed = security.protects(local ? "localhost" : "*");
  if (needed.ok() && !needed.value()) return socket;
  const std::lock_guard lock(mutex_);
  if (needed.ok() && !relay_) {
    auto relay = TlsRelay::create(security.keys);
    if (!relay.ok()) {
      ::close(socket);
      return relay.error();
    }
    relay_ = std::move(relay).value();
  }
  if (needed.ok()) return relay_->wrap(socket, server, std::move(outcome));
  ::close(socket);
  return needed.error();
}

Control::Control(const ControlOptions& options) : state_(std::make_unique<State>(options)) {}
Control::~Control() = default;

Result<HostPort> parse_address(const std::string& text) {
  std::string_view rest = text;
  if (rest.starts_with("tcp://")) rest.remove_prefix(6);
  const auto colon = rest.rfind(':');
  HostPort address;
  if (colon != std::string_view::npos && colon > 0) {
    address.host = rest.substr(0, colon);
    const auto digits = rest.substr(colon + 1);
    const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), address.port);
    if (status == std::errc{} && end == digits.data() + digits.size() && !digits.empty()) return address;
  }
  return Error{ErrorCode::usage, "'" + text + "' is not an address", "write HOST:PORT, e.g. 127.0.0.1:7700"};
}

namespace {

// Plans of large clusters are the largest control messages: some hundred KiB.
constexpr std::size_t control_message_max = std::size_t{16} << 20;

/// The same socket under a number that was not used for long. CAF 0.17 names connections by their descriptors and forgets
/// a closed one a little late, by that number: a stranger who comes and goes would cut off the node that comes next.
int with_fresh_number(int socket) {
  static const int numbers = [] {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
    limit.rlim_cur = std::max(limit.rlim_cur, std::min<rlim_t>(limit.rlim_max, 16'384));
    ::setrlimit(RLIMIT_NOFILE, &limit);
    ::getrlimit(RLIMIT_NOFILE, &limit);
    return static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 16'384));
  }();
  static std::atomic<unsigned> used{0};
  if (numbers < 16) return socket;
  const int lowest = numbers / 4;
  const int from = lowest + static_cast<int>(used++ % static_cast<unsigned>(numbers - lowest));
  const int fresh = ::fcntl(socket, F_DUPFD_CLOEXEC, from);
  if (fresh < 0) return socket;
  ::close(socket);
  return fresh;
}

/// A connection that believes no length: a header of CAF's protocol may announce 4 GiB, and CAF makes room at once.
class Scribe : public caf::io::network::scribe_impl {
public:
  using scribe_impl::scribe_impl;
  void configure_read(caf::io::receive_policy::config config) override {
    if (config.second <= control_message_max) return scribe_impl::configure_read(config);
    ::shutdown(stream_.fd(), SHUT_RDWR);  // The next read finds the end, and CAF tidies up.
  }
};

caf::io::scribe_ptr make_scribe(caf::io::network::default_multiplexer& sockets, int socket) {
  return caf::make_counted<Scribe>(sockets, with_fresh_number(socket));
}

const ControlConfig& config_of(caf::actor_system& system) {
  const auto* config = dynamic_cast<const ControlConfig*>(&system.config());
  ORRERY_CHECK(config != nullptr);
  return *config;
}

class Doorman : public caf::io::network::doorman_impl {
public:
  using doorman_impl::doorman_impl;
  bool new_connection() override {
    if (detached()) return false;
    auto& sockets = acceptor_.backend();
    const auto socket = config_of(parent()->system()).protected_socket(acceptor_.accepted_socket(), true);
    if (!socket.ok()) return true;  // Not this one; others may come.
    auto scribe = make_scribe(sockets, socket.value());
    const auto handle = scribe->hdl();
    parent()->add_scribe(std::move(scribe));
    return doorman::new_connection(&sockets, handle);
  }
};

caf::io::network::default_multiplexer& sockets_of(caf::actor_system& system) {
  auto* sockets = dynamic_cast<caf::io::network::default_multiplexer*>(&system.middleman().backend());
  ORRERY_CHECK(sockets != nullptr);
  return *sockets;
}

caf::actor broker_of(caf::actor_system& system) { return system.middleman().named_broker<caf::io::basp_broker>(caf::atom("BASP")); }

/// A socket that is connected to host:port. Fails with unreachable.
Result<int> connected_socket(const std::string& host, std::uint16_t port, Duration timeout) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  std::string why = "no address";
  int connected = -1;
  if (const int status = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); status != 0) why = ::gai_strerror(status);
  for (const auto* each = found; each != nullptr && connected < 0; each = each->ai_next) {
    const int socket = ::socket(each->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (socket < 0) continue;
    int error = 0;
    if (::connect(socket, each->ai_addr, each->ai_addrlen) != 0) error = errno;
    if (error == EINPROGRESS) {
      pollfd waiting{socket, POLLOUT, 0};
      const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count();
      socklen_t size = sizeof error;
      error = ETIMEDOUT;
      if (::poll(&waiting, 1, static_cast<int>(milliseconds)) == 1) ::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error == 0) {
      connected = socket;
    } else {
      why = std::strerror(error);
      ::close(socket);
    }
  }
  if (found != nullptr) ::freeaddrinfo(found);
  if (connected < 0)
    return Error{ErrorCode::unreachable, "cannot reach " + host + ":" + std::to_string(port) + ": " + why, "is `orrery up` running there?"};
  return connected;
}

}  // namespace

Error error_of(caf::actor_system& system, const caf::error& error, const std::string& doing) {
  if (error == caf::sec::request_timeout) return {ErrorCode::timed_out, doing + ": no answer in time"};
  return {ErrorCode::unreachable, doing + ": " + system.render(error)};
}

void end_actor(caf::actor_system& system, caf::actor actor) {
  caf::scoped_actor self{system};
  self->monitor(actor);
  self->send_exit(actor, caf::exit_reason::user_shutdown);
  actor = nullptr;
  self->receive([](const caf::down_msg&) {}, caf::after(std::chrono::seconds(5)) >> [] {});
}

Result<std::uint16_t> publish(caf::actor_system& system, const caf::actor& actor, const std::string& host, std::uint16_t port) {
  const auto place = host + ":" + std::to_string(port);
  if (const auto protects = config_of(system).security.protects(host); !protects.ok()) return protects.error();
  // What middleman().publish does, with our doorman.
  const auto listener = caf::io::network::new_tcp_acceptor_impl(port, host.c_str(), true);
  if (!listener)
    return Error{ErrorCode::port_in_use, "listening on " + place + " is not possible", "is another program using the port? Port 0 takes a free one"};
  auto doorman = caf::make_counted<Doorman>(sockets_of(system), *listener);
  const auto taken = doorman->port();
  caf::anon_send(broker_of(system), caf::publish_atom::value, caf::io::doorman_ptr{std::move(doorman)}, taken,
                 caf::actor_cast<caf::strong_actor_ptr>(actor), std::set<std::string>{});
  return taken;
}

Result<std::string> own_address_towards(const std::string& host, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  std::string why = "no address";
  std::string own, own_of_six;
  if (const int status = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); status != 0) why = ::gai_strerror(status);
  for (const auto* each = found; each != nullptr; each = each->ai_next) {
    const int socket = ::socket(each->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    char text[NI_MAXHOST];
    // To connect a datagram socket chooses the route, no more.
    if (socket < 0 || ::connect(socket, each->ai_addr, each->ai_addrlen) != 0 ||
        ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
        ::getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0)
      why = std::strerror(errno);
    else if (each->ai_family == AF_INET6)
      own_of_six = "[" + std::string(text) + "]";
    else if (own.empty())
      own = text;
    if (socket >= 0) ::close(socket);
  }
  if (found != nullptr) ::freeaddrinfo(found);
  // `localhost` is both; most listen at the older.
  if (own.empty()) own = own_of_six;
  if (own.empty()) return Error{ErrorCode::unreachable, "no way leads to " + host + ": " + why};
  return own;
}

Result<caf::actor> connect(caf::actor_system& system, const std::string& host, std::uint16_t port, Duration timeout) {
  // Not middleman().remote_actor: that blocks for minutes on a host that swallows packets, holds up every other connect
  // of the process meanwhile, and waits for ever for a program that accepts and says nothing. Nor a trial connection
  // first: CAF forgets a closed connection a little late, by its descriptor's number, which by then may be the next's.
  const auto broker = broker_of(system);
  const auto place = host + ":" + std::to_string(port);
  const std::string hint = "is it an Orrery cluster's control port?";
  SteadyClock clock;
  const auto until = clock.now() + timeout;
  for (;;) {
    ORRERY_TRY(network, connected_socket(host, port, timeout));
    const auto outcome = std::make_shared<TlsOutcome>();
    ORRERY_TRY(socket, config_of(system).protected_socket(network, false, outcome));
    std::optional<Result<caf::actor>> answer;
    caf::scoped_actor self{system};
    self->request(broker, timeout, caf::connect_atom::value, make_scribe(sockets_of(system), socket), port)
        .receive(
            [&](const caf::node_id&, const caf::strong_actor_ptr& actor, const std::set<std::string>&) {
              if (actor)
                answer.emplace(caf::actor_cast<caf::actor>(actor));
              else
                answer.emplace(Error{ErrorCode::unreachable, "no actor is offered at " + place, hint});
            },
            [&](const caf::error& error) {
              if (const auto refusal = outcome->failure()) {
                answer.emplace(Error{ErrorCode::unreachable, place + " cannot be trusted, or does not trust us: " + *refusal,
                                     "do both sides have keys of the same `orrery keys make`, and the same file `allowed`?"});
                return;
              }
              // CAF's next heartbeat ends a connection that has not spoken yet, be it only slow: that is no answer.
              if (error != caf::sec::request_timeout && error != caf::sec::connection_timeout)
                answer.emplace(Error{ErrorCode::unreachable, place + " does not speak Orrery's control protocol", hint});
            });
    if (answer) return std::move(*answer);
    if (clock.now() >= until)
      return Error{ErrorCode::timed_out, place + " accepts connections but says nothing", hint};
  }
}

}  // namespace orrery::actors
