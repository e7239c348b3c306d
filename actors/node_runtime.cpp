#include "actors/node_runtime.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

#include "actors/card_runtime.hpp"
#include "actors/edges.hpp"
#include "actors/request_check.hpp"
#include "base/log.hpp"
#include "compiler/models/cosmos_codec.hpp"
#include "protocol/zmq_transport.hpp"
#include "topology/plan_text.hpp"

namespace orrery::actors {

using topology::StageKind;

namespace {

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
  protocol::ZmqOptions wire;
  wire.self = options.peer;
  wire.bind = options.data_bind;
  wire.advertise = options.data_advertise;
  ORRERY_TRY(transport, protocol::make_zmq_transport(wire));
  protocol::ExchangeOptions exchange;
  exchange.cluster_id = options.cluster_id;
  ORRERY_TRY(made, protocol::Exchange::create(exchange, std::move(transport), node->clock_));
  node->exchange_ = std::move(made);
  return node;
}

NodeRuntime::~NodeRuntime() {
  for (const auto& [number, card] : cards_) card->stop();
  exchange_.reset();  // Lets go of card memory that was lent to a neighbour that died.
  cards_.clear();
}

std::string NodeRuntime::data_address() const { return exchange_->address(); }

Result<std::string> NodeRuntime::load(const LoadPlan& order, const std::function<bool(std::uint64_t, std::uint64_t)>& progress) {
  for (const auto& [number, card] : cards_) card->stop();
  ORRERY_TRY(plan_json, parse_json(order.plan, "plan"));
  ORRERY_TRY(plan, topology::plan_from_json(plan_json));
  auto opened_folder = compiler::open_model_folder(order.model_folder);
  if (!opened_folder.ok()) return model_error(opened_folder.error());
  auto folder = std::move(opened_folder).value();
  ORRERY_TRY_DONE(check_whole(folder));
  plan_ = std::move(plan);
  model_ = std::make_shared<const compiler::ModelFolder>(std::move(folder));
  epoch_ = order.epoch;
  const auto compute = order.dtype == "bfloat16" ? compiler::Compute::bf16 : compiler::Compute::f32;
  ORRERY_TRY(numerics, cards::check_numerics());

  {
    const std::lock_guard lock(routes_mutex_);
    routes_.clear();
    clients_.clear();
    for (std::size_t i = 0; i < order.peers.size(); ++i) {
      const auto peer = static_cast<protocol::PeerId>(i + 1);
      if (order.peers[i].name != options_.name) ORRERY_TRY_DONE(exchange_->add_peer(peer, order.peers[i].data_address));
      for (std::uint32_t card = 0; card < plan_.cards.size(); ++card)
        if (plan_.cards[card].node == order.peers[i].name) routes_[card] = peer;
    }
    ORRERY_TRY_DONE(route());
  }

  cards_.clear();  // Only now: the new epoch has let go of what they had lent.

  // Who sits where, then what all that weighs, then the reading.
  struct Load {
    std::unique_ptr<cards::Card> card;
    std::vector<StageSeat> seats;
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
    ORRERY_TRY(made, cards::make_cpu_card(card));
    auto& load = loads[number];
    load.card = std::move(made);
    for (const auto& stage : plan_.stages) {
      if (component_of(stage.kind) == nullptr) continue;
      for (std::uint32_t group = 0; group < stage.groups.size(); ++group)
        for (std::uint32_t rank = 0; rank < stage.groups[group].ranks.size(); ++rank) {
          if (stage.groups[group].ranks[rank].card != number) continue;
          StageSeat seat;
          seat.kind = stage.kind;
          seat.seat = seat_of(stage, group, rank);
          ORRERY_TRY(weights, weights_of(stage.kind, *model_, seat.seat.layout, compute));
          seat.weights = std::move(weights);
          total += seat.weights->bytes();
          load.seats.push_back(std::move(seat));
        }
    }
  }
  std::map<std::string, std::shared_ptr<const compiler::WeightFiles>> files;
  std::uint64_t done = 0;
  for (auto& [number, load] : loads) {
    for (const auto& seat : load.seats) {
      const std::string component = component_of(seat.kind);
      if (!files.contains(component)) {
        auto opened = compiler::open_weights(*model_, component);
        if (!opened.ok()) return model_error(opened.error());
        files[component] = std::move(opened).value();
      }
      ORRERY_TRY_DONE(load.card->load_weights(seat.weights, *files[component],
                                              [&](std::uint64_t bytes) { return progress(done + bytes, total); }));
      done += seat.weights->bytes();
    }
    const auto deadline = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(order.collective_deadline_seconds));
    cards_[number] = std::make_unique<CardRuntime>(number, std::move(load.card), std::move(load.seats), model_, compute,
                                                   *exchange_, clock_, deadline,
                                                   [this](std::uint64_t request, std::uint32_t endpoint, const std::string& address) {
                                                     return add_client(request, endpoint, address);
                                                   });
  }
  progress(total, total);
  return numerics;
}

Status NodeRuntime::route() { return exchange_->set_routes(epoch_, plan_.digest(), routes_); }

Status NodeRuntime::add_client(std::uint64_t request, std::uint32_t endpoint, const std::string& address) {
  const std::lock_guard lock(routes_mutex_);
  if (!clients_.emplace(request, endpoint).second) return Done{};
  ORRERY_TRY_DONE(exchange_->add_peer(endpoint, address));
  routes_[endpoint] = endpoint;
  return route();
}

void NodeRuntime::drop(std::uint64_t request) {
  for (const auto& [number, card] : cards_) card->cancel(request);
  exchange_->forget(request);
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
  for (const auto& [number, card] : cards_) {
    const auto use = card->card().use();
    health.card_bytes.push_back(use.weights + use.lanes);
    health.card_bytes_max.push_back(use.high_water);
    health.card_budget.push_back(use.budget);
  }
  for (const auto& [peer, statistics] : exchange_->statistics().peers) {
    health.bytes_sent += statistics.bytes_sent;
    health.bytes_received += statistics.bytes_received;
    health.frames_resent += statistics.frames_resent;
    health.frames_refused += statistics.frames_bad + statistics.frames_stale;
  }
  return health;
}

}  // namespace orrery::actors
