#include "protocol/zmq_transport.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include <zmq.hpp>

#include "base/log.hpp"
#include "protocol/curve.hpp"

namespace orrery::protocol {
namespace {

constexpr std::string_view tcp_scheme = "tcp://";
constexpr std::string_view ipc_scheme = "ipc://";
// How long the thread leaves sockets to helpers.
constexpr auto short_pause = std::chrono::milliseconds(1);
// Received in one go before queues are looked at again.
constexpr int receive_batch = 64;
// ZeroMQ's own; messages that fit into it are not read straight into memory of their own.
constexpr std::size_t receive_buffer_bytes = 8192;
// Of the kernel, which doubles it. Left to itself it grows to 4 MiB, beyond the processor's caches: a tenth slower on one
// machine. 1 MiB on the way keeps 100 Gbit/s busy at 80 us.
constexpr int send_buffer_bytes = 512 << 10;

// A connection's name at the other side's ROUTER: 'P', the process number (big endian), and eight bytes that nobody can
// guess. Names alike would let whoever takes another's name push the other's connection out.
constexpr std::size_t routing_id_bytes = 13;
// Whom to name in the log once each; strangers can make up any number of keys.
constexpr std::size_t named_strangers_max = 64;

std::string routing_id_of(PeerId peer) {
  std::string id = "P";
  for (int shift = 24; shift >= 0; shift -= 8) id += static_cast<char>(peer >> shift & 0xff);
  id.resize(routing_id_bytes);
  ORRERY_CHECK(::getrandom(id.data() + 5, routing_id_bytes - 5, 0) == static_cast<ssize_t>(routing_id_bytes - 5));
  return id;
}

std::optional<PeerId> peer_of(const zmq::message_t& id) {
  const auto* bytes = id.data<unsigned char>();
  if (id.size() != routing_id_bytes || bytes[0] != 'P') return std::nullopt;
  return PeerId{bytes[1]} << 24 | PeerId{bytes[2]} << 16 | PeerId{bytes[3]} << 8 | PeerId{bytes[4]};
}

// "tcp://n1:7000#KEY" apart; the key as Z85, empty when there is none.
struct PeerAddress {
  std::string address;
  std::string key;
};

Error unreadable(const std::string& address) {
  return Error{ErrorCode::invalid_config, "'" + address + "' is not an address of the data plane",
               "write tcp://HOST:PORT or ipc:///PATH"};
}

// The syntax only; names are looked up when connecting.
Status check_address(const std::string& address, bool port_may_be_zero) {
  if (address.starts_with(ipc_scheme)) {
    const auto path = address.substr(ipc_scheme.size());
    if (path.empty() || path[0] != '/') return unreadable(address);
    if (path.size() >= sizeof(sockaddr_un::sun_path))
      return Error{ErrorCode::invalid_config, "'" + address + "' is too long for a socket file",
                   "the system allows " + std::to_string(sizeof(sockaddr_un::sun_path) - 1) + " characters"};
    return Done{};
  }
  const auto colon = address.rfind(':');
  if (!address.starts_with(tcp_scheme) || colon <= tcp_scheme.size()) return unreadable(address);
  const auto digits = std::string_view(address).substr(colon + 1);
  unsigned port = 0;
  const auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (problem != std::errc{} || end != digits.data() + digits.size() || port > 65535 || (port == 0 && !port_may_be_zero))
    return unreadable(address);
  return Done{};
}

// What a connection at the address needs keys by: ipc:// is guarded by its folder.
std::string host_of(const std::string& address) {
  if (!address.starts_with(tcp_scheme)) return "localhost";
  return address.substr(tcp_scheme.size(), address.rfind(':') - tcp_scheme.size());
}

Result<PeerAddress> parse_peer_address(const std::string& text) {
  PeerAddress parsed{text, ""};
  if (const auto mark = text.rfind('#'); mark != std::string::npos && mark + 1 + 64 == text.size()) {
    const auto key = curve_key_of_hex(std::string_view(text).substr(mark + 1));
    if (!key) return unreadable(text);
    parsed = {text.substr(0, mark), *key};
  }
  ORRERY_TRY_DONE(check_address(parsed.address, false));
  return parsed;
}

// ZeroMQ replaces a socket file without asking, even one that is in use.
Status check_socket_file(const std::string& path) {
  const auto folder = std::filesystem::path(path).parent_path().string();
  struct stat facts {};
  if (::stat(folder.c_str(), &facts) != 0 || !S_ISDIR(facts.st_mode))
    return Error{ErrorCode::io_failed, "the folder " + folder + " for a socket does not exist"};
  if (facts.st_uid != ::geteuid() || (facts.st_mode & 077) != 0)
    return Error{ErrorCode::invalid_config, "others can enter " + folder + ", so a socket there is not private",
                 "chmod 700 " + folder};
  const int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return Error{ErrorCode::io_failed, "no more sockets can be opened"};
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  path.copy(name.sun_path, sizeof name.sun_path - 1);
  const bool answered = ::connect(probe, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0;
  ::close(probe);
  if (answered) return Error{ErrorCode::port_in_use, "ipc://" + path + " is in use by another program"};
  return Done{};
}

void release_shard(void*, void* shard) { delete static_cast<Shard*>(shard); }

// ZeroMQ reads the Shard's memory and lets go of it on one of its threads.
zmq::message_t lend(Shard payload) {
  if (payload.size() == 0) return {};
  auto* owner = new Shard(std::move(payload));
  // The interface is not const-correct; sending only reads.
  return {const_cast<std::byte*>(owner->bytes().data()), owner->bytes().size(), &release_shard, owner};
}

struct QueuedFrame {
  HeaderBytes header;
  Shard payload;
};

struct Link;

// What other threads may touch, under the lock.
struct Outbox {
  std::deque<QueuedFrame> frames;
  Link* link = nullptr;    // Once its socket is there.
  bool connected = false;  // Frames for nobody would keep their payloads borrowed: none are taken.
  bool refused = false;
};

struct Command {
  PeerId peer = 0;
  std::string connect;  // Empty: remove.
  std::string key;      // Empty: not encrypted.
};

// What only the pump touches, but for the dealer and what is known of it: under the lock.
struct Link {
  std::string address;
  zmq::socket_t dealer;
  zmq::socket_t monitor;
  bool blocked = false;      // ZeroMQ's queue is full, or nobody is connected.
  bool header_sent = false;  // Of the frame at the front.
  std::string key;           // The peer's; empty: not encrypted.
  bool refusal_told = false;
  int monitor_descriptor = -1, dealer_descriptor = -1;
  bool read_before = false;
};

class ZmqTransport final : public Transport {
public:
  explicit ZmqTransport(const ZmqOptions& options) : options_(options) {}

  ~ZmqTransport() override { close(); }

  Status open() {
    ORRERY_TRY_DONE(check_address(options_.bind, true));
    if (options_.bind.starts_with(ipc_scheme)) {
      socket_file_ = options_.bind.substr(ipc_scheme.size());
      if (const auto status = check_socket_file(socket_file_); !status.ok()) {
        socket_file_.clear();
        return status;
      }
    }
    ORRERY_TRY(protect, options_.security.protects(host_of(options_.bind)));
    if (options_.security.keys) {
      ORRERY_TRY(key, curve_public_of(options_.security.keys->curve_secret));
      public_key_ = key;
      for (const auto& one : options_.security.keys->allowed) allowed_.emplace(one.curve, one.name);
      if (!allowed_.contains(public_key_))
        return Error{ErrorCode::invalid_config, "the list of allowed keys has another CURVE key of " + options_.security.keys->name + " than its secret",
                     "are the files of two `orrery keys make`?"};
    }
    wake_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (wake_ < 0) return Error{ErrorCode::io_failed, "no more file descriptors can be opened"};
    try {
      context_.emplace(1);
      context_->set(zmq::ctxopt::max_sockets, 4096);
      if (protect) {
        // ZeroMQ asks here about every key that knocks; the pump answers. It must be there before anybody can knock.
        gate_ = zmq::socket_t(*context_, zmq::socket_type::rep);
        gate_.set(zmq::sockopt::linger, 0);
        gate_.bind("inproc://zeromq.zap.01");
      }
      router_ = zmq::socket_t(*context_, zmq::socket_type::router);
      if (protect) {
        router_.set(zmq::sockopt::curve_server, true);
        router_.set(zmq::sockopt::curve_secretkey, options_.security.keys->curve_secret);
        router_.set(zmq::sockopt::zap_domain, "orrery");
      }
      monitor_ = monitor_of(router_, failed_handshakes);
      set_common(router_);
      // More than channels let a peer have on the way: where this limit is reached libzmq 4.3 stops reading, and a process
      // that was stopped itself and goes on then finds heartbeats behind it, of a peer that has closed: an assertion
      // (!_io_error) ends it.
      router_.set(zmq::sockopt::rcvhwm, static_cast<int>(8 * options_.queue_frames));
      router_.set(zmq::sockopt::router_mandatory, true);
      router_.set(zmq::sockopt::router_handover, true);  // A restarted peer takes its own place.
      router_.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(options_.payload_bytes_max));
      router_.set(zmq::sockopt::ipv6, options_.bind.find('[') != std::string::npos);
      router_.bind(options_.bind);
      address_ = router_.get(zmq::sockopt::last_endpoint);
      descriptors_ = {descriptor_of(router_), descriptor_of(monitor_)};
      if (gate_) descriptors_.push_back(descriptor_of(gate_));
    } catch (const zmq::error_t& error) {
      if (error.num() == EADDRINUSE)
        return Error{ErrorCode::port_in_use, options_.bind + " is in use by another program",
                     "choose another port, or port 0 for any free one"};
      return Error{error.num() == EINVAL ? ErrorCode::invalid_config : ErrorCode::io_failed,
                   "cannot listen at " + options_.bind + ": " + error.what()};
    }
    if (!options_.advertise.empty() && address_.starts_with(tcp_scheme))
      address_ = options_.advertise + address_.substr(address_.rfind(':'));
    if (protect) address_ += "#" + hex_of_curve_key(public_key_).value();
    return Done{};
  }

  void start(TransportHandlers handlers) override {
    handlers_ = std::move(handlers);
    thread_ = std::thread([this] { pump(); });
  }

  void close() override {
    {
      const std::lock_guard lock(mutex_);
      if (stop_) return;
      stop_ = true;  // From here on nobody else rings.
      if (wake_ >= 0) ring();
    }
    {
      const std::lock_guard lock(wake_mutex_);
      thread_may_go_on_.notify_all();
    }
    if (thread_.joinable()) thread_.join();
    while (!links_.empty()) drop(links_.begin()->first);
    router_ = {};
    monitor_ = {};
    gate_ = {};
    context_.reset();  // Waits until ZeroMQ has let go of every payload.
    std::map<PeerId, Outbox> dropped;
    {
      const std::lock_guard lock(mutex_);
      dropped.swap(outboxes_);
      const std::lock_guard waking(wake_mutex_);
      if (wake_ >= 0) ::close(wake_);
      wake_ = -1;
    }
    if (!socket_file_.empty()) ::unlink(socket_file_.c_str());
  }

  PeerId self() const override { return options_.self; }
  std::string address() const override { return address_; }

  Status add_peer(PeerId peer, const std::string& address) override {
    ORRERY_TRY(parsed, parse_peer_address(address));
    if (!parsed.key.empty()) {
      if (!options_.security.keys)
        return Error{ErrorCode::invalid_config, "process " + std::to_string(peer) + " encrypts its data plane, and this one has no keys",
                     "give all processes of the cluster keys, or none (`security.keys`)"};
      if (!allowed_.contains(parsed.key))
        return Error{ErrorCode::invalid_config, "the key of process " + std::to_string(peer) + " at " + parsed.address + " is not in the list of allowed keys",
                     "bring the file `allowed` up to date on this host, and start again"};
    } else {
      ORRERY_TRY(protect, options_.security.protects(host_of(parsed.address)));
      if (protect)
        return Error{ErrorCode::invalid_config, "process " + std::to_string(peer) + " at " + parsed.address + " does not encrypt its data plane, and this one would",
                     "give all processes of the cluster keys, or none (`security.keys`)"};
    }
    const std::lock_guard lock(mutex_);
    if (stop_) return Error{ErrorCode::unreachable, "this transport is closed"};
    outboxes_.try_emplace(peer);
    commands_.push_back({peer, parsed.address, parsed.key});
    ring();
    return Done{};
  }

  void remove_peer(PeerId peer) override {
    Outbox dropped;
    const std::lock_guard lock(mutex_);
    const auto found = outboxes_.find(peer);
    if (found == outboxes_.end() || stop_) return;
    // The frames go with the command: the pump may be in the middle of the first one.
    std::swap(dropped, found->second);
    outboxes_.erase(found);
    commands_.push_back({peer, "", ""});
    ring();
  }

  Status send(PeerId peer, const HeaderBytes& header, Shard payload) override {
    QueuedFrame frame{header, std::move(payload)};  // Let go of after the lock.
    const std::lock_guard lock(mutex_);
    const auto found = outboxes_.find(peer);
    if (found == outboxes_.end() || stop_)
      return Error{ErrorCode::unreachable, "process " + std::to_string(peer) + " is not known"};
    auto& outbox = found->second;
    if (!outbox.connected)
      return Error{ErrorCode::pool_exhausted, "process " + std::to_string(peer) + " is not connected"};
    if (outbox.frames.size() >= options_.queue_frames) {
      outbox.refused = true;
      return Error{ErrorCode::pool_exhausted, "the queue to process " + std::to_string(peer) + " is full"};
    }
    // From this thread, unless ZeroMQ's own queue is full: nobody has to be woken up for it.
    if (outbox.frames.empty() && outbox.link && !outbox.link->blocked && push(*outbox.link, frame)) return Done{};
    outbox.frames.push_back(std::move(frame));
    if (outbox.frames.size() == 1) ring();
    return Done{};
  }

  bool helps(PeerId) const override { return true; }

  void help(Duration longest) override {
    helper_inside_ = helped_ = true;
    if (thread_polls_) ring();
    {
      const std::lock_guard turn(turn_);
      if (!helper_woken_.exchange(false) && !stop_)
        take_turn(static_cast<int>(std::clamp<std::int64_t>(std::chrono::ceil<std::chrono::milliseconds>(longest).count(), 0, 1000)));
    }
    helped_ = true;
    helper_inside_ = false;
    if (!thread_waits_) return;
    const std::lock_guard lock(wake_mutex_);
    thread_may_go_on_.notify_all();
  }

  void wake_helper() override {
    helper_woken_ = true;
    const std::lock_guard lock(wake_mutex_);
    if (helper_inside_ && wake_ >= 0) ring();
  }

  TransportStatistics statistics() const override {
    const std::lock_guard lock(mutex_);
    return statistics_;
  }

private:
  static constexpr int failed_handshakes =
      ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;

  /// A socket that tells what happens to the connections of another.
  zmq::socket_t monitor_of(zmq::socket_t& socket, int events) {
    const auto name = "inproc://monitor-" + std::to_string(++monitors_);
    if (zmq_socket_monitor(socket.handle(), name.c_str(), events) != 0) throw zmq::error_t();
    zmq::socket_t monitor(*context_, zmq::socket_type::pair);
    monitor.set(zmq::sockopt::linger, 0);
    monitor.connect(name);
    return monitor;
  }

  void set_common(zmq::socket_t& socket) const {
    socket.set(zmq::sockopt::linger, 0);
    socket.set(zmq::sockopt::sndhwm, static_cast<int>(options_.queue_frames));
    socket.set(zmq::sockopt::rcvhwm, static_cast<int>(options_.queue_frames));
    socket.set(zmq::sockopt::handshake_ivl, 2000);
    socket.set(zmq::sockopt::heartbeat_ivl, 300);
    socket.set(zmq::sockopt::heartbeat_timeout, 1500);
    socket.set(zmq::sockopt::heartbeat_ttl, 1500);
  }

  void ring() const {
    const std::uint64_t one = 1;
    // Fails only when the counter is full, and then the thread wakes anyway.
    [[maybe_unused]] const auto written = ::write(wake_, &one, sizeof one);
  }

  // --- Below, the pump: this transport's thread, or a helper in its place; whoever has `turn_`.

  void pump() {
    while (!stop_) {
      // Helpers come and go: they see frames first, and need not chase this thread away each time.
      if (helped_.exchange(false)) {
        {
          std::unique_lock lock(wake_mutex_);
          thread_may_go_on_.wait_for(lock, short_pause, [&] { return stop_.load(); });
        }
        const std::unique_lock turn(turn_, std::try_to_lock);
        if (turn.owns_lock() && !take_turn(0)) break;
        continue;
      }
      if (helper_inside_) {  // One that stays.
        std::unique_lock lock(wake_mutex_);
        thread_waits_ = true;
        thread_may_go_on_.wait(lock, [&] { return stop_ || !helper_inside_; });
        thread_waits_ = false;
        continue;
      }
      const std::lock_guard turn(turn_);
      thread_polls_ = true;
      const bool good = helped_ || take_turn(-1);
      thread_polls_ = false;
      if (!good) break;
    }
  }

  /// Waits for something, up to `milliseconds` (-1: for ever), and does what there is to do. False when ZeroMQ is broken.
  bool take_turn(int milliseconds) {
    items_.clear();
    items_.push_back({wake_, POLLIN, 0});
    for (const int descriptor : descriptors_) items_.push_back({descriptor, POLLIN, 0});
    // A socket's descriptor tells of changes only: what is there already must be asked for.
    bool ready = more_waits_;
    try {
      {
        const std::lock_guard lock(mutex_);
        for (auto& [peer, link] : links_) {
          items_.push_back({link.monitor_descriptor, POLLIN, 0});
          items_.push_back({link.dealer_descriptor, POLLIN, 0});
          if (link.blocked && (link.dealer.get(zmq::sockopt::events) & ZMQ_POLLOUT)) {
            link.blocked = false;
            ready = true;
          }
        }
      }
      ::poll(items_.data(), items_.size(), ready ? 0 : milliseconds);
      if (items_[0].revents) {
        std::uint64_t count;
        [[maybe_unused]] const auto bytes = ::read(wake_, &count, sizeof count);
      }
      // A descriptor tells of nothing before its socket was read in vain once.
      const bool first = !std::exchange(read_before_, true);
      if (items_[2].revents || first) read_router_monitor();
      std::size_t item = 3;
      if (gate_ && (items_[item++].revents || first)) answer_gate();
      for (auto& [peer, link] : links_) {
        if (items_[item++].revents || !std::exchange(link.read_before, true)) read_monitor(peer, link);
        if (items_[item++].revents) {
          // Also lets the socket see what became of its connection.
          const std::lock_guard lock(mutex_);
          if (link.dealer.get(zmq::sockopt::events) & ZMQ_POLLOUT) link.blocked = false;
        }
      }
      run_commands();
      for (auto& [peer, link] : links_) drain(peer, link);
      receive();
    } catch (const zmq::error_t& error) {
      if (error.num() == EINTR) return true;
      log_event(Level::error, "transport.failed", {{"why", error.what()}});
      return false;
    }
    return true;
  }

  // ZeroMQ's own thread sends events to the monitor and waits for ever when nobody is left to take them: no more events
  // before the monitor goes.
  bool drop(PeerId peer) {
    const auto found = links_.find(peer);
    if (found == links_.end()) return false;
    zmq_socket_monitor(found->second.dealer.handle(), nullptr, 0);
    {
      const std::lock_guard lock(mutex_);
      if (const auto outbox = outboxes_.find(peer); outbox != outboxes_.end() && outbox->second.link == &found->second)
        outbox->second.link = nullptr;
    }
    links_.erase(found);
    return true;
  }

  void run_commands() {
    std::vector<Command> commands;
    {
      const std::lock_guard lock(mutex_);
      commands.swap(commands_);
    }
    for (auto& command : commands) {
      if (command.connect.empty()) {
        drop(command.peer);
        continue;
      }
      const auto found = links_.find(command.peer);
      if (found != links_.end() && found->second.address == command.connect && found->second.key == command.key) {
        adopt(command.peer, found->second);  // It may have been removed and added at once.
        continue;
      }
      if (drop(command.peer)) set_connected(command.peer, false);
      try {
        const auto [link, is_new] = links_.emplace(command.peer, connect(command.connect, command.key));
        adopt(command.peer, link->second);
        more_waits_ = true;  // Its monitor is to be read at once.
      } catch (const zmq::error_t& error) {
        log_event(Level::warn, "peer.unreachable",
                  {{"peer", command.peer}, {"address", command.connect}, {"why", error.what()}});
      }
    }
  }

  /// From now on frames to the peer go over this link.
  void adopt(PeerId peer, Link& link) {
    const std::lock_guard lock(mutex_);
    if (const auto outbox = outboxes_.find(peer); outbox != outboxes_.end()) outbox->second.link = &link;
  }

  static int descriptor_of(const zmq::socket_t& socket) { return static_cast<int>(socket.get(zmq::sockopt::fd)); }

  Link connect(const std::string& address, const std::string& key) {
    Link link{.address = address, .dealer = {*context_, zmq::socket_type::dealer}, .monitor = {}, .key = key};
    set_common(link.dealer);
    if (!key.empty()) {
      link.dealer.set(zmq::sockopt::curve_serverkey, key);
      link.dealer.set(zmq::sockopt::curve_publickey, public_key_);
      link.dealer.set(zmq::sockopt::curve_secretkey, options_.security.keys->curve_secret);
    }
    link.dealer.set(zmq::sockopt::routing_id, routing_id_of(options_.self));
    link.dealer.set(zmq::sockopt::immediate, true);  // Nothing is queued for a peer that is not there.
    link.dealer.set(zmq::sockopt::sndbuf, send_buffer_bytes);
    link.dealer.set(zmq::sockopt::connect_timeout, 1000);
    link.dealer.set(zmq::sockopt::reconnect_ivl, 50);
    link.dealer.set(zmq::sockopt::reconnect_ivl_max, 1000);
    link.dealer.set(zmq::sockopt::maxmsgsize, std::int64_t{1024});  // Nobody answers on this socket.
    link.monitor = monitor_of(link.dealer, ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED | failed_handshakes);
    link.dealer.set(zmq::sockopt::ipv6, address.find('[') != std::string::npos);
    link.dealer.connect(address);
    link.monitor_descriptor = descriptor_of(link.monitor);
    link.dealer_descriptor = descriptor_of(link.dealer);
    return link;
  }

  void read_monitor(PeerId peer, Link& link) {
    zmq::message_t event, address;
    while (link.monitor.recv(event, zmq::recv_flags::dontwait)) {
      if (event.more()) (void)link.monitor.recv(address, zmq::recv_flags::dontwait);
      if (event.size() < sizeof(std::uint16_t)) continue;
      std::uint16_t kind;
      std::memcpy(&kind, event.data(), sizeof kind);
      if (kind == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
        set_connected(peer, true);
        if (handlers_.on_hint) handlers_.on_hint(peer, PeerHint::up);
      } else if (kind == ZMQ_EVENT_DISCONNECTED) {
        set_connected(peer, false);
        if (handlers_.on_hint) handlers_.on_hint(peer, PeerHint::down);
      } else if (kind & failed_handshakes) {
        // Without keys, and without a reason, it is only slow or about to end.
        if (!options_.security.keys && (kind & ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL)) continue;
        count_refusal();
        if (!std::exchange(link.refusal_told, true))
          log_event(Level::warn, "handshake.refused", {{"peer", peer}, {"address", link.address}, {"why", "it is not who it should be, or does not know us"}});
      }
    }
  }

  void read_router_monitor() {
    zmq::message_t event, address;
    while (monitor_.recv(event, zmq::recv_flags::dontwait)) {
      if (event.more()) (void)monitor_.recv(address, zmq::recv_flags::dontwait);
      if (count_refusal() == 1)
        log_event(Level::warn, "handshake.refused", {{"address", address_}, {"why", "a stranger connected, or one who speaks something else"}});
    }
  }

  std::uint64_t count_refusal() {
    const std::lock_guard lock(mutex_);
    return ++statistics_.handshakes_refused;
  }

  /// ZeroMQ's question whether a key may come in (RFC 27): version, request, domain, address, identity, mechanism, key.
  void answer_gate() {
    for (;;) {
      std::vector<zmq::message_t> question;
      do {
        zmq::message_t part;
        if (!gate_.recv(part, zmq::recv_flags::dontwait)) return;
        question.push_back(std::move(part));
      } while (question.back().more());
      std::optional<std::string> key;
      if (question.size() == 7 && question[5].to_string_view() == "CURVE" && question[6].size() == 32) {
        char text[41];
        if (zmq_z85_encode(text, question[6].data<std::uint8_t>(), 32) != nullptr) key = text;
      }
      const bool welcome = key && allowed_.contains(*key);
      if (!welcome) {
        count_refusal();
        if (key && strangers_.size() < named_strangers_max && strangers_.insert(*key).second)
          log_event(Level::warn, "handshake.refused", {{"address", question[3].to_string()}, {"key", *key}, {"why", "the key is not allowed here"}});
      }
      const std::string request = question.size() > 1 ? question[1].to_string() : "";
      const std::string user = welcome ? *key : "";  // What `is_of` will find with every message.
      const std::string_view answer[] = {"1.0", request, welcome ? "200" : "400", welcome ? "OK" : "not allowed", user, ""};
      for (std::size_t i = 0; i < std::size(answer); ++i)
        (void)gate_.send(zmq::buffer(answer[i]), i + 1 < std::size(answer) ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
  }

  /// Whether the connection that a frame came by belongs to whom the frame is from.
  bool is_of(PeerId peer, zmq::message_t& part) {
    if (!gate_) return true;
    const auto link = links_.find(peer);
    if (link == links_.end() || link->second.key.empty()) return true;  // Nobody we were told of; the exchange drops it.
    const char* key = zmq_msg_gets(part.handle(), "User-Id");
    if (key != nullptr && link->second.key == key) return true;
    std::uint64_t count;
    {
      const std::lock_guard lock(mutex_);
      count = ++statistics_.frames_foreign;
    }
    if (count == 1) {
      const auto name = allowed_.find(key == nullptr ? "" : key);
      log_event(Level::warn, "frame.foreign", {{"peer", peer}, {"by", name == allowed_.end() ? "an unknown key" : name->second}});
    }
    return false;
  }

  // A broken connection lets go of what waited for it, as ZeroMQ does with what it had taken.
  void set_connected(PeerId peer, bool connected) {
    std::deque<QueuedFrame> dropped;
    const std::lock_guard lock(mutex_);
    if (const auto link = links_.find(peer); link != links_.end()) {
      if (connected) link->second.blocked = false;
      if (!connected) link->second.header_sent = false;
    }
    const auto found = outboxes_.find(peer);
    if (found == outboxes_.end()) return;
    found->second.connected = connected;
    if (!connected) dropped.swap(found->second.frames);
  }

  /// Under the lock: the frame to ZeroMQ. False, and `blocked`, when its queue is full.
  bool push(Link& link, const QueuedFrame& frame) {
    if (!link.header_sent) {
      const auto bytes = frame.header.bytes();
      zmq::message_t header(bytes.data(), bytes.size());
      if (!link.dealer.send(header, zmq::send_flags::sndmore | zmq::send_flags::dontwait)) {
        link.blocked = true;
        return false;
      }
      link.header_sent = true;
    }
    auto payload = lend(frame.payload);
    if (!link.dealer.send(payload, zmq::send_flags::dontwait)) {
      link.blocked = true;
      return false;
    }
    link.header_sent = false;
    ++statistics_.frames_sent;
    statistics_.payload_bytes_sent += frame.payload.size();
    return true;
  }

  void drain(PeerId peer, Link& link) {
    bool writable = false;
    std::vector<QueuedFrame> gone;  // Let go of after the lock.
    {
      const std::lock_guard lock(mutex_);
      const auto found = outboxes_.find(peer);
      if (found == outboxes_.end() || found->second.link != &link) return;
      auto& outbox = found->second;
      while (!link.blocked && !outbox.frames.empty() && push(link, outbox.frames.front())) {
        gone.push_back(std::move(outbox.frames.front()));
        outbox.frames.pop_front();
        writable = writable || std::exchange(outbox.refused, false);
      }
    }
    if (writable && handlers_.on_hint) handlers_.on_hint(peer, PeerHint::writable);
  }

  void receive() {
    more_waits_ = true;
    for (int count = 0; count < receive_batch; ++count) {
      zmq::message_t id, header;
      auto payload = std::make_shared<zmq::message_t>();
      if (!router_.recv(id, zmq::recv_flags::dontwait)) {
        more_waits_ = false;
        return;
      }
      bool good = id.more();
      if (good) {
        (void)router_.recv(header, zmq::recv_flags::dontwait);
        good = header.more();
      }
      if (good) {
        (void)router_.recv(*payload, zmq::recv_flags::dontwait);
        zmq::message_t rest;
        for (bool more = payload->more(); more; more = rest.more()) {
          good = false;
          (void)router_.recv(rest, zmq::recv_flags::dontwait);
        }
      }
      const auto from = peer_of(id);
      good = good && from && header.size() <= HeaderBytes::capacity;
      {
        const std::lock_guard lock(mutex_);
        if (good) {
          ++statistics_.frames_received;
          statistics_.payload_bytes_received += payload->size();
        } else if (statistics_.frames_malformed++ == 0) {
          log_event(Level::warn, "frame.malformed", {{"address", address_}});
        }
      }
      if (!good || !handlers_.on_frame || !is_of(*from, *payload)) continue;
      const std::span<const std::byte> bytes(payload->data<std::byte>(), payload->size());
      // Small messages may lie inside ZeroMQ's receive buffer, at any address, and would keep it alive.
      auto shard = bytes.size() <= receive_buffer_bytes ? Shard::copy_of(bytes) : Shard(std::move(payload), bytes);
      handlers_.on_frame(*from, {header.data<std::byte>(), header.size()}, std::move(shard));
    }
  }

  const ZmqOptions options_;
  std::string address_;
  std::string socket_file_;
  int wake_ = -1;
  std::optional<zmq::context_t> context_;
  zmq::socket_t router_;
  zmq::socket_t monitor_;  // The router's.
  zmq::socket_t gate_;     // ZeroMQ's questions about keys; none without keys.
  std::string public_key_;
  std::map<std::string, std::string> allowed_;  // Key to name.
  std::set<std::string> strangers_;             // Keys that were named in the log.
  TransportHandlers handlers_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::uint64_t monitors_ = 0;

  // Whoever has it is the pump. Sockets may go from thread to thread, with a lock between.
  std::mutex turn_;
  std::map<PeerId, Link> links_;
  std::vector<int> descriptors_;  // Of the sockets that are always there.
  std::vector<pollfd> items_;
  bool read_before_ = false;
  bool more_waits_ = true;  // Received frames, perhaps.
  std::atomic<bool> helped_{false}, helper_inside_{false}, helper_woken_{false}, thread_polls_{false}, thread_waits_{false};
  std::mutex wake_mutex_;
  std::condition_variable thread_may_go_on_;

  mutable std::mutex mutex_;  // After turn_.
  std::map<PeerId, Outbox> outboxes_;
  std::vector<Command> commands_;
  TransportStatistics statistics_;
};

}  // namespace

Result<std::unique_ptr<Transport>> make_zmq_transport(const ZmqOptions& options) {
  auto transport = std::make_unique<ZmqTransport>(options);
  ORRERY_TRY_DONE(transport->open());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace orrery::protocol
