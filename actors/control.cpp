#include "actors/control.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <charconv>
#include <cstring>

#include "actors/control_state.hpp"
#include "base/file.hpp"

namespace orrery::actors {

ControlConfig::ControlConfig(const ControlOptions& options) {
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

Status check_reachable(const std::string& host, std::uint16_t port, Duration timeout) {
  const auto refuse = [&](const std::string& why) {
    return Error{ErrorCode::unreachable, "cannot reach " + host + ":" + std::to_string(port) + ": " + why};
  };
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int status = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); status != 0)
    return refuse(::gai_strerror(status));
  std::string why = "no address";
  bool reached = false;
  for (const auto* each = found; each != nullptr && !reached; each = each->ai_next) {
    const int socket = ::socket(each->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (socket < 0) continue;
    if (::connect(socket, each->ai_addr, each->ai_addrlen) == 0) {
      reached = true;
    } else if (errno == EINPROGRESS) {
      pollfd waiting{socket, POLLOUT, 0};
      const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count();
      int error = ETIMEDOUT;
      socklen_t size = sizeof error;
      if (::poll(&waiting, 1, static_cast<int>(milliseconds)) == 1) ::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size);
      reached = error == 0;
      why = std::strerror(error);
    } else {
      why = errno_text();
    }
    ::close(socket);
  }
  ::freeaddrinfo(found);
  if (!reached) return refuse(why);
  return Done{};
}

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
  const auto published = system.middleman().publish(actor, port, host.c_str(), false);
  if (!published)
    return Error{ErrorCode::port_in_use, "cannot listen on " + host + ":" + std::to_string(port) + ": " + system.render(published.error()),
                 "is another program using the port? Port 0 takes a free one"};
  return *published;
}

Result<caf::actor> connect(caf::actor_system& system, const std::string& host, std::uint16_t port, Duration timeout) {
  ORRERY_TRY_DONE(check_reachable(host, port, timeout));
  auto actor = system.middleman().remote_actor(host, port);
  if (!actor) return error_of(system, actor.error(), "cannot talk to " + host + ":" + std::to_string(port));
  return std::move(*actor);
}

}  // namespace orrery::actors
