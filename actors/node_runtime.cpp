#include "actors/node_runtime.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "actors/card_runtime.hpp"
#include "actors/edges.hpp"
#include "actors/request_check.hpp"
#include "base/log.hpp"
#include "compiler/models/cosmos_codec.hpp"
#include "protocol/host_transport.hpp"
#include "topology/plan_text.hpp"

namespace orrery::actors {

using topology::StageKind;

namespace {

// A command of a real card ends long before; one that does not is taken to hang.
constexpr Duration stop_limit = std::chrono::milliseconds(1500);

// The pages of one component's files, shared by all cards of the node.
const char* component_of(StageKind kind) {
  switch (kind) {
    case StageKind::text_encoder: return "text_encoder";
    case StageKind::denoiser: return "transformer";
    case StageKind::decoder: return "vae";
    default: return nullptr;  // Guardrails have no weights of ours.
  }
}

Result<std::shared_ptr<const cards::WeightSet>> weights_of(StageKind kind, const compiler::ModelFolder& model,
                                                           const compiler::Layout& layout, compiler::Compute compute) {
  switch (kind) {
    case StageKind::text_encoder: return compiler::text_encoder_weights(*model.text_encoder, layout, compute);
    case StageKind::denoiser: return compiler::denoiser_weights(*model.transformer, layout, compute);
    default: return compiler::decoder_weights(*model.codec, compute);
  }
}

}  // namespace

Result<std::unique_ptr<NodeRuntime>> NodeRuntime::create(const NodeRuntimeOptions& options) {
  std::unique_ptr<NodeRuntime> node(new NodeRuntime(options));
  protocol::HostTransportOptions way;
  way.wire.self = options.peer;
  way.wire.bind = options.data_bind;
  way.wire.advertise = options.data_advertise;
  way.wire.security = options.security;
  if (!options.share_memory) way.path = protocol::HostPath::zmq;
  ORRERY_TRY(transport, protocol::make_host_transport(way));
  if (options.allow_faults) {
    node->faults_ = std::make_unique<FaultSwitch>(node->clock_);
    auto faulty = std::make_unique<protocol::FaultyTransport>(std::move(transport), protocol::FaultOptions{});
    node->faults_->bind_transport(faulty.get());
    transport = std::move(faulty);
  }
  protocol::ExchangeOptions exchange;
  exchange.cluster_id = options.cluster_id;
  ORRERY_TRY(made, protocol::Exchange::create(exchange, std::move(transport), node->clock_));
  node->exchange_ = std::move(made);
  node->keeper_ = std::make_unique<Keeper>(*node->exchange_);
  return node;
}

NodeRuntime::~NodeRuntime() {
  if (faults_) static_cast<void>(faults_->heal(""));  // Nobody hangs for ever.
  for (const auto& [number, card] : cards_) card->stop(Duration::max());
  keeper_.reset();
  if (faults_) faults_->bind_transport(nullptr);
  exchange_.reset();  // Lets go of card memory that was lent to a neighbour that died.
  if (faults_)
    for (const auto& [number, card] : cards_) faults_->unbind_card(plan_.cards[number].index);
  cards_.clear();
}

std::string NodeRuntime::data_address() const { return exchange_->address(); }

Result<std::unique_ptr<cards::Card>> NodeRuntime::make_card(const cards::CardOptions& options, std::uint32_t index) {
  ORRERY_TRY(card, cards::make_cpu_card(options));
  if (!faults_) return card;
  auto faulty = std::make_unique<cards::FaultyCard>(std::move(card), clock_);
  faults_->bind_card(index, *faulty);
  return std::unique_ptr<cards::Card>(std::move(faulty));
}

Status NodeRuntime::make_routes(const LoadPlan& order, bool with_cards) {
  const std::lock_guard lock(routes_mutex_);
  routes_.clear();
  clients_.clear();
  if (faults_) {
    std::map<std::string, protocol::PeerId> others;
    for (const auto& each : order.peers)
      if (each.name != options_.name) others[each.name] = each.peer;
    faults_->set_peers(std::move(others));
  }
  for (const auto& each : order.peers) {
    if (each.name != options_.name) ORRERY_TRY_DONE(exchange_->add_peer(each.peer, each.data_address));
    routes_[first_keeper_endpoint + each.peer] = each.peer;
    for (std::uint32_t card = 0; card < plan_.cards.size(); ++card)
      if (with_cards && plan_.cards[card].node == each.name) routes_[card] = each.peer;
  }
  return route();
}

Result<PlanLoaded> NodeRuntime::load(const LoadPlan& order, const std::function<bool(std::uint64_t, std::uint64_t)>& progress) {
  if (order.epoch <= epoch_)
    return Error{ErrorCode::stale_epoch, "node " + options_.name + " is in epoch " + std::to_string(epoch_) + " and refuses a plan of epoch " +
                                             std::to_string(order.epoch)};
  ORRERY_TRY(plan_json, parse_json(order.plan, "plan"));
  ORRERY_TRY(plan, topology::plan_from_json(plan_json));
  for (const auto& [number, card] : cards_) card->cancel_all();
  const auto patience = [this] {
    auto longest = stop_limit;
    for (const auto& [number, card] : cards_) longest = std::max(longest, card->patience());
    return longest;
  }();
  if (model_folder_ != order.model_folder) {
    auto opened_folder = compiler::open_model_folder(order.model_folder);
    if (!opened_folder.ok()) return model_error(opened_folder.error());
    auto folder = std::move(opened_folder).value();
    ORRERY_TRY_DONE(check_whole(folder));
    model_ = std::make_shared<const compiler::ModelFolder>(std::move(folder));
    model_folder_ = order.model_folder;
  }
  plan_ = std::move(plan);
  epoch_ = order.epoch;
  // The new epoch lets go of what cards have lent, which they may be waiting for. They have no place in it until they have
  // stopped: whatever they still send goes nowhere.
  ORRERY_TRY_DONE(make_routes(order, false));
  for (const auto& [number, card] : cards_)
    if (!card->stop(patience))
      return Error{ErrorCode::peer_lost, "card " + card->card().options().name + " hangs in a command",
                   "its node's process has to end, and is started again"};
  const auto compute = compiler::compute_named(order.dtype);
  if (!compute) return Error{ErrorCode::unsupported, "the coordinator asks for arithmetic in " + order.dtype.substr(0, 40), "use the same version of Orrery on all nodes"};
  PlanLoaded result;
  ORRERY_TRY(numerics, cards::check_numerics());
  result.numerics = std::move(numerics);
  ORRERY_TRY_DONE(make_routes(order, true));

  // Cards and their weights may serve again.
  std::map<std::string, std::unique_ptr<cards::Card>> old_cards;
  std::map<std::string, std::vector<StageSeat>> old_seats;
  {
    const std::lock_guard lock(cards_mutex_);
    for (auto& [number, card] : cards_) {
      const auto name = card->card().options().name;
      old_seats[name] = card->seats();
      old_cards[name] = card->take_card();
    }
    cards_.clear();
  }

  // Who sits where, then what of it is not there yet, then the reading.
  struct Load {
    std::unique_ptr<cards::Card> card;
    std::vector<StageSeat> seats;
    std::vector<bool> present;
  };
  std::map<std::uint32_t, Load> loads;
  std::uint64_t total = 0;
  for (std::uint32_t number = 0; number < plan_.cards.size(); ++number) {
    const auto& planned = plan_.cards[number];
    if (planned.node != options_.name) continue;
    cards::CardOptions card;
    card.name = planned.node + ":" + std::to_string(planned.index);
    card.memory_bytes = planned.memory_bytes;
    card.threads = planned.threads;
    card.copy_bandwidth = planned.host_bandwidth;
    auto& load = loads[number];
    auto& old = old_cards[card.name];
    if (old && old->options().memory_bytes == card.memory_bytes && old->options().threads == card.threads &&
        old->options().copy_bandwidth == card.copy_bandwidth) {
      load.card = std::move(old);
    } else {
      old_seats.erase(card.name);
      if (old && faults_) faults_->unbind_card(planned.index);
      old.reset();
      ORRERY_TRY(made, make_card(card, planned.index));
      load.card = std::move(made);
    }
    for (const auto& stage : plan_.stages) {
      if (component_of(stage.kind) == nullptr) continue;
      for (std::uint32_t group = 0; group < stage.groups.size(); ++group)
        for (std::uint32_t rank = 0; rank < stage.groups[group].ranks.size(); ++rank) {
          if (stage.groups[group].ranks[rank].card != number) continue;
          StageSeat seat;
          seat.kind = stage.kind;
          seat.seat = seat_of(plan_, stage, group, rank);
          ORRERY_TRY(weights, weights_of(stage.kind, *model_, seat.seat.layout, *compute));
          seat.weights = std::move(weights);
          load.seats.push_back(std::move(seat));
        }
    }
    // What no seat needs any more makes room before anything is read.
    for (const auto& before : old_seats[card.name]) {
      const bool stays = std::any_of(load.seats.begin(), load.seats.end(), [&](const StageSeat& seat) {
        return streamed_ == plan_.streamed && seat.kind == before.kind && cards::same_weights(*seat.weights, *before.weights);
      });
      if (!stays) load.card->drop_weights(before.weights->component);
    }
    for (const auto& seat : load.seats) {
      const auto& before = old_seats[card.name];
      load.present.push_back(std::any_of(before.begin(), before.end(), [&](const StageSeat& each) {
        return streamed_ == plan_.streamed && each.kind == seat.kind && cards::same_weights(*seat.weights, *each.weights);
      }));
      if (!load.present.back()) total += seat.weights->bytes();
    }
  }
  std::map<std::string, std::shared_ptr<const compiler::WeightFiles>> files;
  std::uint64_t done = 0;
  for (auto& [number, load] : loads) {
    for (std::size_t i = 0; i < load.seats.size(); ++i) {
      const auto& seat = load.seats[i];
      if (load.present[i]) continue;
      const std::string component = component_of(seat.kind);
      if (!files.contains(component)) {
        auto opened = compiler::open_weights(*model_, component);
        if (!opened.ok()) return model_error(opened.error());
        files[component] = std::move(opened).value();
      }
      if (plan_.streamed)
        ORRERY_TRY_DONE(load.card->stream_weights(seat.weights, files[component]));
      else
        ORRERY_TRY_DONE(load.card->load_weights(seat.weights, *files[component],
                                                [&](std::uint64_t bytes) { return progress(done + bytes, total); }));
      done += seat.weights->bytes();
    }
    const auto deadline = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(order.collective_deadline_seconds));
    auto runtime = std::make_unique<CardRuntime>(number, std::move(load.card), std::move(load.seats), model_, *compute, *exchange_,
                                                 clock_, deadline,
                                                 [this](std::uint64_t request, std::uint32_t endpoint, const std::string& address) {
                                                   return add_client(request, endpoint, address);
                                                 },
                                                 FaultProbe{faults_.get(), plan_.cards[number].index});
    const std::lock_guard lock(cards_mutex_);
    cards_[number] = std::move(runtime);
  }
  if (faults_)
    for (const auto& [name, card] : old_cards)
      if (card) faults_->unbind_card(static_cast<std::uint32_t>(std::stoul(name.substr(name.rfind(':') + 1))));
  streamed_ = plan_.streamed;
  progress(total, total);
  result.bytes_read = plan_.streamed ? 0 : total;
  result.kept = keeper_->items();
  return result;
}

Status NodeRuntime::route() { return exchange_->set_routes(epoch_, plan_.digest(), routes_); }

Status NodeRuntime::add_client(std::uint64_t request, std::uint32_t endpoint, const std::string& address) {
  if (endpoint == 0) return Done{};  // Nobody waits for this request at the moment.
  const std::lock_guard lock(routes_mutex_);
  auto& known = clients_[request];
  if (known == endpoint) return Done{};
  if (known != 0) routes_.erase(known);
  known = endpoint;
  ORRERY_TRY_DONE(exchange_->add_peer(endpoint, address));
  routes_[endpoint] = endpoint;
  return route();
}

void NodeRuntime::drop(std::uint64_t request) {
  {
    const std::lock_guard lock(cards_mutex_);
    for (const auto& [number, card] : cards_) card->cancel(request);
  }
  exchange_->forget(request);
  keeper_->forget(request);
  drop_client(request);
}

void NodeRuntime::drop_client(std::uint64_t request) {
  const std::lock_guard lock(routes_mutex_);
  const auto client = clients_.find(request);
  if (client == clients_.end()) return;
  routes_.erase(client->second);
  clients_.erase(client);
  if (auto status = route(); !status.ok()) log_event(Level::warn, "route.refused", {{"reason", status.error().text()}});
}

NodeHealth NodeRuntime::health() const {
  NodeHealth health;
  health.name = options_.name;
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::uint64_t kilobytes = 0;
    if (word == "VmRSS:" && status >> kilobytes) health.resident_bytes = kilobytes * 1024;
    if (word == "VmHWM:" && status >> kilobytes) health.resident_bytes_max = kilobytes * 1024;
  }
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6; };
  health.cpu_seconds = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  const std::lock_guard lock(cards_mutex_);
  for (const auto& [number, card] : cards_) {
    const auto use = card->card().use();
    health.card_bytes.push_back(use.weights + use.lanes);
    health.card_bytes_max.push_back(use.high_water);
    health.card_budget.push_back(use.budget);
  }
  auto traffic = exchange_->statistics();
  traffic.peers.emplace(0, traffic.gone);  // 0 is nobody's number.
  for (const auto& [peer, statistics] : traffic.peers) {
    health.bytes_sent += statistics.bytes_sent;
    health.bytes_received += statistics.bytes_received;
    health.frames_resent += statistics.frames_resent;
    health.frames_refused += statistics.frames_bad + statistics.frames_stale;
  }
  return health;
}

}  // namespace orrery::actors
