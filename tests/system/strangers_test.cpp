// Strangers at every door of a running cluster, while it makes a video: random bytes, half greetings, well-formed
// ZeroMQ messages with random contents, frames of an old version or under a node's name, a key that nobody knows. The
// video's bytes stay the same. (Recorded and replayed frames: tests/conformance/strangers_test.cpp.)

#include <catch2/catch.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <random>
#include <set>

#include "tests/support/program.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

/// Inodes of the sockets that a process holds.
std::set<std::string> sockets_of(int pid) {
  std::set<std::string> inodes;
  std::error_code gone;
  for (std::filesystem::directory_iterator entry("/proc/" + std::to_string(pid) + "/fd", gone), end; entry != end; entry.increment(gone)) {
    if (gone) break;
    const auto target = std::filesystem::read_symlink(entry->path(), gone).string();
    if (target.starts_with("socket:[")) inodes.insert(target.substr(8, target.size() - 9));
  }
  return inodes;
}

/// TCP ports that processes of the scratch folder listen on.
std::set<std::uint16_t> listening_ports(const ScratchFolder& scratch) {
  std::set<std::string> inodes;
  for (const int pid : processes_of(scratch)) inodes.merge(sockets_of(pid));
  std::set<std::uint16_t> ports;
  std::ifstream table("/proc/net/tcp");
  std::string line;
  std::getline(table, line);
  while (std::getline(table, line)) {
    std::istringstream fields(line);
    std::string slot, local, remote, state, queues, timer, retransmits, uid, timeout, inode;
    fields >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> uid >> timeout >> inode;
    if (state == "0A" && inodes.contains(inode)) ports.insert(static_cast<std::uint16_t>(std::stoul(local.substr(local.find(':') + 1), nullptr, 16)));
  }
  return ports;
}

/// Unix sockets in the state folder.
std::vector<std::string> socket_files(const ScratchFolder& scratch) {
  std::vector<std::string> paths;
  std::error_code gone;
  for (std::filesystem::recursive_directory_iterator entry(scratch.path() + "/state", gone), end; entry != end; entry.increment(gone)) {
    if (gone) break;
    if (entry->is_socket(gone)) paths.push_back(entry->path().string());
  }
  return paths;
}

class Strangers {
public:
  ~Strangers() {
    for (const int connection : open_) ::close(connection);
  }
  /// One of the ways to misbehave, at a TCP port.
  void visit(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    talk(AF_INET, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  }
  void visit(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) return;
    std::copy(path.begin(), path.end(), address.sun_path);
    talk(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  }
  int visits() const { return visits_; }

private:
  void talk(int family, const sockaddr* address, socklen_t size) {
    const int connection = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connection < 0) return;
    if (::connect(connection, address, size) != 0 && errno != EINPROGRESS) {
      ::close(connection);
      return;
    }
    pollfd writable{connection, POLLOUT, 0};
    ::poll(&writable, 1, 100);
    auto text = speech();
    if (text.starts_with(greeting()) && text.size() > greeting().size()) {
      // ZeroMQ listens to the rest once it has answered the greeting.
      [[maybe_unused]] const auto greeted = ::send(connection, text.data(), greeting().size(), MSG_NOSIGNAL);
      pollfd answer{connection, POLLIN, 0};
      ::poll(&answer, 1, 100);
      text.erase(0, greeting().size());
    }
    [[maybe_unused]] const auto sent = ::send(connection, text.data(), text.size(), MSG_NOSIGNAL);
    ++visits_;
    if (visits_ % 2 == 0 && open_.size() < 100)
      open_.push_back(connection);  // Stays, and says no more.
    else
      ::close(connection);
  }

  std::string bytes(std::size_t count) {
    std::string text(count, '\0');
    for (auto& byte : text) byte = static_cast<char>(random_());
    return text;
  }

  static const std::string& greeting() {
    static const std::string text = std::string("\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL", 16) + std::string(48, '\0');
    return text;
  }

  /// What a DEALER says after the greeting: READY, with the property Socket-Type and perhaps Identity.
  static std::string ready(const std::string& identity) {
    std::string body = "\5READY\x0bSocket-Type" + std::string("\0\0\0\6", 4) + "DEALER";
    if (!identity.empty()) body += "\x08Identity" + std::string("\0\0\0", 3) + static_cast<char>(identity.size()) + identity;
    return std::string("\4", 1) + static_cast<char>(body.size()) + body;
  }

  std::string speech() {
    switch (visits_ % 10) {
      case 0: return bytes(1 + random_() % 4096);
      case 1: return greeting().substr(0, random_() % greeting().size());
      case 2: return greeting() + bytes(1 + random_() % 512);
      case 3: return "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
      case 4: return std::string(64, '\0') + bytes(64);
      case 5: {
        // A header of CAF's protocol: a direct message of 4 GiB to actor 1.
        std::string header(32, '\0');
        header[0] = 2;
        header[4] = header[5] = header[6] = header[7] = '\xff';
        header[31] = 1;
        return header;
      }
      case 6: {
        // A key of somebody's own, where there are no keys: CURVE's greeting and HELLO.
        auto text = greeting();
        text.replace(12, 5, "CURVE");
        return text + std::string("\4\xc8\5HELLO\1\0", 10) + bytes(192);
      }
      case 7:
      case 8: {
        // Under the name of node 1, a frame's header: of protocol version 0, or of this one and else random.
        auto text = greeting() + ready(std::string("P\0\0\0\1", 5) + bytes(8));
        std::string header = "ORRY" + std::string(1, visits_ % 10 == 7 ? '\0' : '\1') + std::string(11, '\0') + bytes(200);
        text += '\1';
        text += static_cast<char>(header.size());
        return text + header + std::string("\0\4data", 6);
      }
      default: {
        auto text = greeting() + ready("");
        // Messages of one to four parts.
        for (int message = 0; message < 5; ++message) {
          const auto parts = 1 + random_() % 4;
          for (std::uint32_t part = 0; part < parts; ++part) {
            const auto size = random_() % 200;
            text += static_cast<char>(part + 1 < parts ? 1 : 0);
            text += static_cast<char>(size);
            text += bytes(size);
          }
        }
        return text;
      }
    }
  }

  std::mt19937 random_{7};
  std::vector<int> open_;
  int visits_ = 0;
};

}  // namespace

TEST_CASE("strangers: garbage at every port of a cluster does not change its video", "[system][faults]") {
  for (const std::string transport : {"tcp", "ipc"}) {
    ScratchFolder scratch;
    const auto cluster = tiny_on_two_nodes + std::vector<std::string>{"--steps", "400", "--set", "spec.data.transport=" + transport};
    const auto calm = run_command(scratch, generate("a red circle", scratch.file("calm.y4m"), cluster));
    INFO(calm.err);
    REQUIRE(calm.exit_code == 0);

    Strangers strangers;
    std::set<std::uint16_t> ports;
    std::size_t doors = 0;
    bool before_nodes_joined = false;
    const auto result = run_command(scratch, generate("a red circle", scratch.file("v.y4m"), cluster), std::chrono::minutes(2),
                                    [&](int, const std::string&, const std::string& err) {
                                                                            ports = listening_ports(scratch);
                                      const auto files = socket_files(scratch);
                                      if (strangers.visits() < 1000) {
                                        for (const auto port : ports) strangers.visit(port);
                                        for (const auto& path : files) strangers.visit(path);
                                      }
                                      doors = std::max(doors, ports.size() + files.size());
                                      before_nodes_joined = before_nodes_joined || (!ports.empty() && err.empty());
                                    });
    INFO(transport << ", " << doors << " doors, " << strangers.visits() << " visits: " << result.err);
    CHECK(doors >= 6);  // Control ports of coordinator and two nodes, data ports of two nodes and the client.
    CHECK(strangers.visits() > 60);
    CHECK(before_nodes_joined);
    REQUIRE(result.exit_code == 0);
    CHECK(frames_digest(scratch.file("v.y4m")) == frames_digest(scratch.file("calm.y4m")));
    check_clean(scratch);
  }
}
