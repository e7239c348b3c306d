#include "actors/tls_relay.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <set>
#include <thread>
#include <vector>

#include "base/file.hpp"
#include "base/log.hpp"

namespace orrery::actors {

bool is_local_connection(int socket) {
  for (const bool peer : {false, true}) {
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    if ((peer ? ::getpeername : ::getsockname)(socket, reinterpret_cast<sockaddr*>(&name), &size) != 0) return false;
    char text[INET6_ADDRSTRLEN] = "";
    if (name.ss_family == AF_INET)
      ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(name).sin_addr, text, sizeof text);
    else if (name.ss_family == AF_INET6)
      ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(name).sin6_addr, text, sizeof text);
    if (!is_loopback(text)) return false;
  }
  return true;
}

namespace {

constexpr std::size_t buffer_bytes = 64 << 10;
// Moved for one connection before the others get their turn.
constexpr std::size_t turn_bytes = 1 << 20;
constexpr std::size_t handshakes_max = 256;
constexpr std::size_t named_strangers_max = 64;
// For what was under way when one side closed.
constexpr Duration closing_timeout = std::chrono::seconds(5);

struct FreeContext {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
struct FreeSession {
  void operator()(SSL* session) const { SSL_free(session); }
};
struct FreeCertificate {
  void operator()(X509* certificate) const { X509_free(certificate); }
};
struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};

/// A certificate that says nothing but a public key.
std::unique_ptr<X509, FreeCertificate> certificate_of(EVP_PKEY* key) {
  std::unique_ptr<X509, FreeCertificate> certificate(X509_new());
  auto* one = certificate.get();
  auto* name = X509_get_subject_name(one);
  const bool made = X509_set_version(one, X509_VERSION_3) == 1 && ASN1_INTEGER_set(X509_get_serialNumber(one), 1) == 1 &&
                    // Dates are not looked at: hosts whose clocks are wrong must work.
                    X509_gmtime_adj(X509_getm_notBefore(one), 0) != nullptr && X509_gmtime_adj(X509_getm_notAfter(one), 3600L * 24 * 365 * 10) != nullptr &&
                    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("orrery"), -1, -1, 0) == 1 &&
                    X509_set_issuer_name(one, name) == 1 && X509_set_pubkey(one, key) == 1 && X509_sign(one, key, nullptr) > 0;
  if (!made) certificate.reset();
  return certificate;
}

/// The ends of one connection and what is between them.
struct Connection {
  int network = -1;  // TCP.
  int clear = -1;    // Ours of the socket pair.
  std::unique_ptr<SSL, FreeSession> session;
  bool server = false;
  std::shared_ptr<TlsOutcome> outcome;
  std::string address;
  Time deadline = Time::max();  // Of the handshake, or of closing.
  bool ready = false;           // The handshake is done.
  bool finished = false;
  bool network_ended = false, clear_ended = false;
  bool said_goodbye = false;
  std::string why_refused;  // By our own check.

  /// Bytes from one end that the other has not taken yet.
  struct Flow {
    std::vector<char> bytes = std::vector<char>(buffer_bytes);
    std::size_t from = 0, to = 0;
    bool empty() const { return from == to; }
  } in, out;  // Network to clear; clear to network.

  // What OpenSSL's last call in each direction waits for (EPOLLIN, EPOLLOUT; 0: nothing): a read may have to write.
  std::uint32_t read_needs = 0, write_needs = 0;
  std::uint32_t network_registered = 0, clear_registered = 0;

  ~Connection() {
    session.reset();
    if (network >= 0) ::close(network);
    if (clear >= 0) ::close(clear);
  }
};

std::string address_of(int socket) {
  sockaddr_storage name{};
  socklen_t size = sizeof name;
  char text[INET6_ADDRSTRLEN] = "?";
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&name), &size) != 0) return text;
  if (name.ss_family == AF_INET) ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(name).sin_addr, text, sizeof text);
  if (name.ss_family == AF_INET6) ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(name).sin6_addr, text, sizeof text);
  return text;
}

std::string openssl_words() {
  std::string words;
  for (unsigned long code = ERR_get_error(); code != 0; code = ERR_get_error())
    if (const char* reason = ERR_reason_error_string(code); words.empty() && reason != nullptr) words = reason;
  return words;
}

int connection_index() {
  static const int index = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
  return index;
}

}  // namespace

struct TlsRelay::State {
  std::shared_ptr<const KeyRing> keys;
  Duration handshake_timeout{};
  std::unique_ptr<SSL_CTX, FreeContext> context;
  int epoll = -1, wake = -1;
  SteadyClock clock;
  std::thread thread;

  mutable std::mutex mutex;
  std::vector<std::unique_ptr<Connection>> arrivals;
  TlsStatistics statistics;
  std::size_t handshakes = 0;
  bool stop = false;

  // Of the thread.
  std::list<std::unique_ptr<Connection>> connections;
  std::set<std::string> named;  // Addresses whose refusal was logged.

  ~State() {
    if (wake >= 0) ::close(wake);
    if (epoll >= 0) ::close(epoll);
  }

  /// OpenSSL's question about the other side's certificate; replaces all checks of authorities, names and dates.
  static int check(X509_STORE_CTX* store, void* own) {
    const auto& state = *static_cast<const State*>(own);
    auto* session = static_cast<SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
    auto& connection = *static_cast<Connection*>(SSL_get_ex_data(session, connection_index()));
    IdentityKey key{};
    std::size_t size = key.size();
    const auto* certificate = X509_STORE_CTX_get0_cert(store);
    const auto* theirs = certificate == nullptr ? nullptr : X509_get0_pubkey(certificate);
    const bool readable = theirs != nullptr && EVP_PKEY_get_id(theirs) == EVP_PKEY_ED25519 &&
                          EVP_PKEY_get_raw_public_key(theirs, reinterpret_cast<unsigned char*>(key.data()), &size) == 1 && size == key.size();
    const auto* found = readable ? state.keys->find(key) : nullptr;
    if (found == nullptr)
      connection.why_refused = "its key is not in the list of allowed keys";
    else if (!connection.server && found->role == KeyRole::client)
      connection.why_refused = "it shows the key of a client, " + found->name;
    else
      return 1;
    X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED);
    return 0;
  }

  Status open() {
    context.reset(SSL_CTX_new(TLS_method()));
    BIO* pem = BIO_new_mem_buf(keys->identity_pem.data(), static_cast<int>(keys->identity_pem.size()));
    const std::unique_ptr<EVP_PKEY, FreeKey> key(PEM_read_bio_PrivateKey(pem, nullptr, [](char*, int, int, void*) { return -1; }, nullptr));
    BIO_free(pem);
    const auto certificate = key ? certificate_of(key.get()) : nullptr;
    auto* own = context.get();
    const bool usable = certificate && SSL_CTX_set_min_proto_version(own, TLS1_3_VERSION) == 1 && SSL_CTX_use_certificate(own, certificate.get()) == 1 &&
                        SSL_CTX_use_PrivateKey(own, key.get()) == 1 && SSL_CTX_set1_sigalgs_list(own, "ed25519") == 1 && SSL_CTX_set_num_tickets(own, 0) == 1;
    if (!usable) return Error{ErrorCode::invalid_config, "the identity key of " + keys->name + " cannot be used: " + openssl_words()};
    SSL_CTX_set_session_cache_mode(own, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(own, SSL_OP_IGNORE_UNEXPECTED_EOF);  // A process that dies says no goodbye; CAF's messages have lengths.
    SSL_CTX_set_verify(own, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    SSL_CTX_set_cert_verify_callback(own, &State::check, this);
    SSL_CTX_set_mode(own, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    // A stranger's certificate has some hundred bytes.
    SSL_CTX_set_max_cert_list(own, 16 << 10);
    epoll = ::epoll_create1(EPOLL_CLOEXEC);
    wake = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = nullptr;
    if (epoll < 0 || wake < 0 || ::epoll_ctl(epoll, EPOLL_CTL_ADD, wake, &event) != 0)
      return Error{ErrorCode::io_failed, "no more file descriptors can be opened"};
    thread = std::thread([this] { run(); });
    return Done{};
  }

  void ring() const {
    const std::uint64_t one = 1;
    // Fails only when the counter is full, and then the thread wakes anyway.
    [[maybe_unused]] const auto written = ::write(wake, &one, sizeof one);
  }

  // --- Below, on the relay's thread.

  void run() {
    // OpenSSL writes without MSG_NOSIGNAL; a signal for this thread stays pending for it alone.
    sigset_t pipe_signal;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &pipe_signal, nullptr);
    std::vector<epoll_event> events(64);
    std::optional<Time> end;
    for (;;) {
      bool again = false;
      for (auto each = connections.begin(); each != connections.end();) {
        if (!(*each)->finished && clock.now() >= (*each)->deadline) give_up(**each, (*each)->ready ? "" : "it did not say who it is in time");
        if ((*each)->finished) {
          forget(**each);
          each = connections.erase(each);
        } else {
          ++each;
        }
      }
      {
        const std::lock_guard lock(mutex);
        statistics.open = connections.size() + arrivals.size();
        if (stop && !end) {
          end = clock.now() + std::chrono::seconds(1);
          for (auto& one : connections) one->deadline = std::min(one->deadline, *end);
        }
        if (stop && connections.empty() && arrivals.empty()) return;
      }
      Time next = Time::max();
      for (const auto& one : connections) {
        next = std::min(next, one->deadline);
        again = again || pending(*one);
      }
      int wait = -1;
      if (again)
        wait = 0;
      else if (next != Time::max())
        wait = static_cast<int>(std::max<std::int64_t>(0, std::chrono::duration_cast<std::chrono::milliseconds>(next - clock.now()).count() + 1));
      const int count = ::epoll_wait(epoll, events.data(), static_cast<int>(events.size()), wait);
      std::set<Connection*> due;
      for (int i = 0; i < count; ++i) {
        if (events[static_cast<std::size_t>(i)].data.ptr != nullptr) {
          due.insert(static_cast<Connection*>(events[static_cast<std::size_t>(i)].data.ptr));
          continue;
        }
        std::uint64_t rung;
        [[maybe_unused]] const auto bytes = ::read(wake, &rung, sizeof rung);
      }
      if (again)
        for (auto& one : connections)
          if (pending(*one)) due.insert(one.get());
      std::vector<std::unique_ptr<Connection>> fresh;
      {
        const std::lock_guard lock(mutex);
        fresh.swap(arrivals);
      }
      for (auto& one : fresh) {
        due.insert(one.get());
        connections.push_back(std::move(one));
      }
      for (auto* one : due) move(*one);
    }
  }

  /// A turn ended before the socket was empty: OpenSSL, or the kernel, holds more that no event may announce.
  static bool pending(const Connection& connection) {
    return !connection.finished && connection.ready && connection.in.empty() && SSL_pending(connection.session.get()) > 0;
  }

  void forget(Connection& connection) {
    ::epoll_ctl(epoll, EPOLL_CTL_DEL, connection.network, nullptr);
    ::epoll_ctl(epoll, EPOLL_CTL_DEL, connection.clear, nullptr);
    if (connection.ready) return;
    const std::lock_guard lock(mutex);
    --handshakes;
  }

  /// `why`: of a handshake that failed; empty at an ordinary end.
  void give_up(Connection& connection, const std::string& why) {
    connection.finished = true;
    if (connection.ready) return;
    if (connection.outcome) connection.outcome->fail(why);
    {
      const std::lock_guard lock(mutex);
      ++statistics.refused;
    }
    if (named.size() < named_strangers_max && named.insert(connection.address).second)
      log_event(Level::warn, "tls.refused", {{"address", connection.address}, {"called", connection.server ? "us" : "by us"}, {"why", why}});
  }

  /// Everything that can be done now, up to a turn; then what to wait for.
  void move(Connection& connection) {
    if (!connection.ready && !shake_hands(connection)) return watch(connection);
    std::size_t moved = 0;
    for (bool progress = true; progress && moved < turn_bytes && !connection.finished;) {
      const auto before = moved;
      moved += read_network(connection) + write_clear(connection) + read_clear(connection) + write_network(connection);
      progress = moved > before;
    }
    if (connection.finished) return watch(connection);
    if ((connection.network_ended || connection.clear_ended) && connection.deadline == Time::max()) connection.deadline = clock.now() + closing_timeout;
    // The other side hears of an end once it has all that came before.
    if (connection.network_ended && connection.in.empty()) connection.finished = true;
    if (connection.clear_ended && connection.out.empty() && !connection.network_ended && !std::exchange(connection.said_goodbye, true)) {
      // Not closed yet: a socket that is closed while more comes in takes back what it has sent.
      SSL_shutdown(connection.session.get());
      ::shutdown(connection.network, SHUT_WR);
    }
    watch(connection);
  }

  /// True once done.
  bool shake_hands(Connection& connection) {
    ERR_clear_error();
    const int result = connection.server ? SSL_accept(connection.session.get()) : SSL_connect(connection.session.get());
    if (result == 1) {
      connection.ready = true;
      connection.deadline = Time::max();
      const std::lock_guard lock(mutex);
      --handshakes;
      ++(connection.server ? statistics.accepted : statistics.connected);
      return true;
    }
    const int error = SSL_get_error(connection.session.get(), result);
    connection.read_needs = error == SSL_ERROR_WANT_READ ? EPOLLIN : error == SSL_ERROR_WANT_WRITE ? EPOLLOUT : 0U;
    if (connection.read_needs == 0) {
      const auto words = openssl_words();
      give_up(connection, !connection.why_refused.empty() ? connection.why_refused : words.empty() ? "it ended the connection" : words);
    }
    return false;
  }

  /// What an SSL call that moved nothing waits for; nothing at an end.
  std::uint32_t needs_of(Connection& connection, int result) {
    switch (SSL_get_error(connection.session.get(), result)) {
      case SSL_ERROR_WANT_READ: return EPOLLIN;
      case SSL_ERROR_WANT_WRITE: return EPOLLOUT;
      default: {
        // In TLS 1.3 the called side judges the caller after the caller has begun to speak: its refusal comes here.
        const auto words = openssl_words();
        if (connection.outcome && !words.empty()) connection.outcome->fail("it refuses us (" + words + "); is our key in its list of allowed keys?");
        connection.network_ended = true;
        return 0;
      }
    }
  }

  std::size_t read_network(Connection& connection) {
    auto& flow = connection.in;
    if (!flow.empty() || connection.network_ended) return 0;
    ERR_clear_error();
    const int count = SSL_read(connection.session.get(), flow.bytes.data(), static_cast<int>(flow.bytes.size()));
    if (count <= 0) {
      connection.read_needs = needs_of(connection, count);
      return 0;
    }
    connection.read_needs = 0;
    flow.from = 0;
    flow.to = static_cast<std::size_t>(count);
    return flow.to;
  }

  std::size_t write_clear(Connection& connection) {
    auto& flow = connection.in;
    if (flow.empty()) return 0;
    const auto count = ::send(connection.clear, flow.bytes.data() + flow.from, flow.to - flow.from, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 0;
      connection.clear_ended = true;  // Nobody is left to hear it.
      flow.from = flow.to = 0;
      return 0;
    }
    flow.from += static_cast<std::size_t>(count);
    return static_cast<std::size_t>(count);
  }

  std::size_t read_clear(Connection& connection) {
    auto& flow = connection.out;
    if (!flow.empty() || connection.clear_ended) return 0;
    const auto count = ::recv(connection.clear, flow.bytes.data(), flow.bytes.size(), MSG_DONTWAIT);
    if (count <= 0) {
      if (count == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) connection.clear_ended = true;
      return 0;
    }
    flow.from = 0;
    flow.to = static_cast<std::size_t>(count);
    return flow.to;
  }

  std::size_t write_network(Connection& connection) {
    auto& flow = connection.out;
    if (flow.empty()) return 0;
    ERR_clear_error();
    const int count = SSL_write(connection.session.get(), flow.bytes.data() + flow.from, static_cast<int>(flow.to - flow.from));
    if (count <= 0) {
      connection.write_needs = needs_of(connection, count);
      if (connection.network_ended) flow.from = flow.to = 0;
      return 0;
    }
    connection.write_needs = 0;
    flow.from += static_cast<std::size_t>(count);
    return static_cast<std::size_t>(count);
  }

  /// Tells epoll. Level-triggered: what a turn left over is announced again.
  void watch(Connection& connection) {
    if (connection.finished) return;  // The loop closes it before it sleeps.
    std::uint32_t network = 0, clear = 0;
    const auto need = [](std::uint32_t needs, std::uint32_t otherwise) { return needs == 0 ? otherwise : needs; };
    if (!connection.ready) {
      network = connection.read_needs;
    } else {
      if (connection.in.empty() && !connection.network_ended) network |= need(connection.read_needs, EPOLLIN);
      if (!connection.out.empty() && !connection.network_ended) network |= need(connection.write_needs, EPOLLOUT);
      if (!connection.in.empty() && !connection.clear_ended) clear |= EPOLLOUT;
      if (connection.out.empty() && !connection.clear_ended) clear |= EPOLLIN;
    }
    set_events(connection, connection.network, network, connection.network_registered);
    set_events(connection, connection.clear, clear, connection.clear_registered);
  }

  /// A descriptor that nothing is wanted of is taken out: epoll would go on to report that it was hung up.
  void set_events(Connection& connection, int descriptor, std::uint32_t events, std::uint32_t& registered) {
    if (events == registered) return;
    epoll_event event{};
    event.events = events;
    event.data.ptr = &connection;
    const int operation = registered == 0 ? EPOLL_CTL_ADD : events == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
    if (::epoll_ctl(epoll, operation, descriptor, &event) == 0) {
      registered = events;
      return;
    }
    log_event(Level::warn, "tls.failed", {{"address", connection.address}, {"why", errno_text()}});
    connection.finished = true;
  }
};

TlsRelay::TlsRelay(std::unique_ptr<State> state) : state_(std::move(state)) {}

TlsRelay::~TlsRelay() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->ring();
  state_->thread.join();
}

Result<std::unique_ptr<TlsRelay>> TlsRelay::create(std::shared_ptr<const KeyRing> keys, Duration handshake_timeout) {
  auto state = std::make_unique<State>();
  state->handshake_timeout = handshake_timeout;
  state->keys = std::move(keys);
  ORRERY_TRY_DONE(state->open());
  return std::unique_ptr<TlsRelay>(new TlsRelay(std::move(state)));
}

Result<int> TlsRelay::wrap(int socket, bool server, std::shared_ptr<TlsOutcome> outcome) {
  auto connection = std::make_unique<Connection>();
  connection->network = socket;
  connection->server = server;
  connection->outcome = std::move(outcome);
  connection->address = address_of(socket);
  connection->deadline = state_->clock.now() + state_->handshake_timeout;
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) return Error{ErrorCode::io_failed, "no more sockets can be opened"};
  connection->clear = pair[0];
  struct Closing {
    int socket;
    ~Closing() {
      if (socket >= 0) ::close(socket);
    }
  } theirs{pair[1]};
  const int one = 1;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  connection->session.reset(SSL_new(state_->context.get()));
  if (::fcntl(socket, F_SETFL, ::fcntl(socket, F_GETFL) | O_NONBLOCK) != 0 || !connection->session || SSL_set_fd(connection->session.get(), socket) != 1 ||
      SSL_set_ex_data(connection->session.get(), connection_index(), connection.get()) != 1)
    return Error{ErrorCode::io_failed, "a TLS session cannot be opened: " + openssl_words()};
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->stop || state_->handshakes >= handshakes_max)
      return Error{ErrorCode::pool_exhausted, std::to_string(handshakes_max) + " others are in the middle of a handshake"};
    ++state_->handshakes;
    state_->arrivals.push_back(std::move(connection));
  }
  state_->ring();
  return std::exchange(theirs.socket, -1);
}

TlsStatistics TlsRelay::statistics() const {
  const std::lock_guard lock(state_->mutex);
  return state_->statistics;
}

}  // namespace orrery::actors
