#include "actors/node_services.hpp"

#include <sys/random.h>
#include <unistd.h>

#include <thread>

namespace orrery::actors {

namespace {

constexpr Duration connect_timeout = std::chrono::seconds(5);

std::uint64_t random_session() {
  std::uint64_t session = 0;
  ORRERY_CHECK(::getrandom(&session, sizeof session, 0) == sizeof session);
  return session | 1;
}

}  // namespace

NodeServices::NodeServices(const NodeHostOptions& options, Control::State& control, NodeRuntime& runtime)
    : options_(options), control_(control), runtime_(runtime), session_(random_session()) {}

NodeServices::~NodeServices() { ending_ = true; }

NodeHello NodeServices::hello() const {
  NodeHello hello;
  hello.version = control_version;
  hello.cluster_id = options_.cluster_id;
  hello.name = options_.name;
  hello.session = session_;
  hello.epoch = runtime_.epoch();
  hello.control_host = options_.listen_host;
  hello.control_port = control_port_;
  hello.peer = options_.peer;
  hello.data_address = options_.data_advertise.empty() ? runtime_.data_address() : options_.data_advertise;
  hello.pid = ::getpid();
  return hello;
}

void NodeServices::find_coordinator(std::function<void(Result<caf::actor>)> found) {
  seeker_.post([this, found = std::move(found)] {
    SteadyClock clock;
    const auto until = clock.now() + options_.join_timeout;
    auto pause = std::chrono::milliseconds(10);
    while (!ending_) {
      auto coordinator = connect(control_.system, options_.coordinator_host, options_.coordinator_port, std::chrono::seconds(1));
      if (coordinator.ok()) return found(std::move(coordinator).value());
      if (clock.now() >= until)
        return found(Error{ErrorCode::unreachable,
                           "node " + options_.name + " did not reach the coordinator at " + options_.coordinator_host + ":" +
                               std::to_string(options_.coordinator_port) + " within " + std::to_string(seconds_of(options_.join_timeout)) + " s",
                           "is `orrery up` running there?"});
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 2, std::chrono::milliseconds(100));
    }
  });
}

void NodeServices::find_nodes(const std::vector<PeerAddress>& peers, std::function<void(Result<std::vector<caf::actor>>)> found) {
  finder_.post([this, peers, found = std::move(found)] {
    std::vector<caf::actor> nodes;
    for (const auto& peer : peers) {
      auto node = connect(control_.system, peer.control_host, peer.control_port, connect_timeout);
      if (!node.ok()) return found(Error{node.error().code, "node " + peer.name + ": " + node.error().message, node.error().hint});
      nodes.push_back(std::move(node).value());
    }
    found(std::move(nodes));
  });
}

void NodeServices::load(const LoadPlan& order, std::function<void(std::uint64_t, std::uint64_t)> progress,
                        std::function<void(Result<PlanLoaded>)> loaded) {
  {
    const std::lock_guard lock(names_mutex_);
    names_.clear();
    for (const auto& peer : order.peers) names_[peer.peer] = peer.name;
  }
  loader_.post([this, order, progress = std::move(progress), loaded = std::move(loaded)] {
    loaded(runtime_.load(order, [&](std::uint64_t done, std::uint64_t total) {
      progress(done, total);
      return !ending_;
    }));
  });
}

std::map<std::uint32_t, CardBackend*> NodeServices::cards() {
  std::map<std::uint32_t, CardBackend*> all;
  for (const auto& [number, card] : runtime_.cards()) all[number] = card.get();
  return all;
}

Status NodeServices::send_kept(const SendKept& order) {
  return runtime_.keeper().send(order.request, order.edge, order.step, order.targets);
}

std::vector<SilentNode> NodeServices::silent_nodes(Duration limit) const {
  std::vector<SilentNode> silent;
  for (auto& each : runtime_.exchange().silent_peers(limit)) {
    const std::lock_guard lock(names_mutex_);
    const auto name = names_.find(each.peer);
    if (name != names_.end()) silent.push_back({name->second, each.silence, std::move(each.waiting_for)});
  }
  return silent;
}

void NodeServices::hang(const std::string& fault) {
  if (auto* faults = runtime_.faults()) faults->wait_until_healed(fault);
}

FaultAnswer NodeServices::fault(const FaultCommand& command) {
  FaultAnswer answer;
  auto* faults = runtime_.faults();
  if (faults == nullptr) {
    answer.failure = Error{ErrorCode::unsupported, "node " + options_.name + " was started without fault injection",
                           "start the cluster with --allow-faults"};
    return answer;
  }
  Status status = Done{};
  switch (static_cast<FaultVerb>(command.verb)) {
    case FaultVerb::inject: {
      auto order = fault_order_from_json(command.order);
      status = order.ok() ? faults->apply(std::move(order).value()) : Status(order.error());
      break;
    }
    case FaultVerb::heal: status = faults->heal(command.order); break;
    case FaultVerb::list: break;
  }
  if (!status.ok()) answer.failure = status.error();
  answer.json = OrderedJson{{"node", options_.name}, {"faults", faults->list()}}.dump();
  return answer;
}

}  // namespace orrery::actors
