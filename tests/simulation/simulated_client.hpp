// Whoever asks for one video: what actors/client.hpp does with threads, here as an actor. It may die and come back with the
// same id; what it saw in all its lives is its history, against which the journal is checked.

#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

#include "base/digest.hpp"
#include "simulated_node.hpp"
#include "world.hpp"

namespace orrery::simulation {

/// Over all lives.
struct ClientHistory {
  std::string id;
  actors::RequestSpec spec;
  std::string expected;                   // Digest of the undisturbed run; empty: this is it.
  std::optional<std::uint64_t> accepted;  // The number that it was given.
  bool fetched = false;                   // The coordinator has confirmed it.
  bool delivered = false;                 // All frames came, with `digest`.
  std::string digest;
  std::optional<actors::Failure> failed;  // The final word.
  std::uint32_t lives = 0, submits = 0, completions = 0;
  bool cancel_asked = false;

  bool over() const { return delivered || failed; }
};

struct ClientOptions {
  std::uint64_t cluster_id = 0;
  std::function<std::optional<caf::actor>()> coordinator;
  std::function<void(const std::string& host)> come_back;  // This life has ended; the request has not.
};

/// One life.
class SimulatedClient {
public:
  SimulatedClient(World& world, ProcessPointer process, ClientHistory& history, ClientOptions options, Observer& observer);
  ~SimulatedClient();
  SimulatedClient(const SimulatedClient&) = delete;
  SimulatedClient& operator=(const SimulatedClient&) = delete;

  void start();
  void cancel();

private:
  struct Piece {
    std::uint64_t frames = 0;
    std::vector<std::byte> rgb;
  };
  caf::behavior behavior(caf::event_based_actor* self);
  void seek();
  void submit();
  void follow(const actors::ClusterRoutes& routes);
  void take(const protocol::MessageKey& key, const protocol::Message& message);
  void on_event(const actors::RequestEvent& event);
  void finish();
  void report();
  void give_up(const std::string& why);

  World& world_;
  const ProcessPointer process_;
  ClientHistory& history_;
  const ClientOptions options_;
  Observer& observer_;
  const std::uint32_t endpoint_;
  caf::actor actor_;
  caf::event_based_actor* self_ = nullptr;
  caf::actor coordinator_;
  bool seeking_ = false, completed_ = false, finishing_ = false, given_up_ = false;
  std::uint64_t request_ = 0;
  std::set<std::pair<std::uint32_t, std::uint32_t>> seen_;
  std::set<std::pair<std::uint64_t, protocol::MessageKey>> handed_over_;  // By epoch.
  std::map<std::uint32_t, Piece> pieces_;
  std::uint32_t next_piece_ = 0;
  std::uint64_t frames_ = 0;
  Sha256 digest_;
};

}  // namespace orrery::simulation
