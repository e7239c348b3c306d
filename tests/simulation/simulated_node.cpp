#include "simulated_node.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "actors/edges.hpp"
#include "base/digest.hpp"
#include "base/row_split.hpp"
#include "cards/program.hpp"
#include "protocol/collective/ordered_reduce_scatter.hpp"
#include "protocol/collective/tree_sum.hpp"
#include "topology/plan_text.hpp"

namespace orrery::simulation {

using namespace actors;
using topology::StageKind;

namespace {

constexpr std::uint64_t latent_rows = 16, width = 4;
constexpr Duration stop_limit = std::chrono::milliseconds(1500);

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
  return hash ^ (hash >> 29);
}

std::uint64_t digest_of(const std::vector<float>& values) { return xxh3_of(std::as_bytes(std::span(values))); }

/// A value of any size from 2^-12 to 2^12: sums of such depend on their order.
float value_of(std::uint64_t hash) {
  hash = mix(hash, 0x51ed270b);
  const auto mantissa = 1.0F + static_cast<float>(hash & 0xffff) / 65536.0F;
  const auto exponent = static_cast<int>((hash >> 20) % 25) - 12;
  const auto value = std::ldexp(mantissa, exponent);
  return (hash >> 60 & 1) != 0 ? value : -value;
}

float squashed(float value) { return value / (1.0F + std::fabs(value)); }

std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace

void end_routines(std::set<void*>& routines) {
  while (!routines.empty()) {
    auto* address = *routines.begin();
    std::coroutine_handle<>::from_address(address).destroy();
    routines.erase(address);
  }
}

// ---- cards --------------------------------------------------------------------------------------------------------

struct SimulatedCard::Sleep {
  SimulatedCard& card;
  Duration duration;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    auto* owner = &card;
    auto& world = card.node_.world();
    world.at(card.node_.process(), duration, [owner, handle] {
      if (owner->routines_.contains(handle.address())) handle.resume();
    });
  }
  void await_resume() const {}
};

struct SimulatedCard::Receive {
  SimulatedCard& card;
  Wait wait;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    wait.handle = handle;
    card.waits_.push_back(&wait);
    card.node_.process()->poll_wanted = true;
    card.node_.world().at(card.node_.process(), wait.deadline - card.node_.world().now() + std::chrono::microseconds(1), [] {});  // Polled then.
  }
  Result<protocol::Message> await_resume() { return std::move(*wait.outcome); }
};

std::size_t SimulatedCard::queued() const {
  std::size_t all = 0;
  for (const auto& [stage, queue] : queues_) all += queue.size();
  return all;
}

void SimulatedCard::retire() {
  retired_ = true;
  lanes_.clear();
  queues_.clear();
}

void SimulatedCard::post(std::uint8_t stage, std::function<void()> work) {
  if (retired_) return;
  queues_[stage].push_back(std::move(work));
  if (!busy_.contains(stage)) done(stage);
}

void SimulatedCard::done(std::uint8_t stage) {
  busy_.erase(stage);
  auto& queue = queues_[stage];
  if (queue.empty()) return;
  busy_.insert(stage);
  auto work = std::move(queue.front());
  queue.pop_front();
  work();
}

void SimulatedCard::open_lane(const OpenLane& order, Reply reply) {
  post(order.stage, [this, order, reply = std::move(reply)] {
    CardDone answer;
    if (auto status = node_.add_client(order.request, order.client_endpoint, order.client_data_address); !status.ok()) {
      answer.failure = status.error();
    } else {
      Lane lane;
      lane.open = order;
      if (!lanes_.emplace(LaneKey{order.request, order.stage}, std::move(lane)).second)
        node_.observer().violated("one lane", "card " + std::to_string(number_) + " was told to open a lane of request " +
                                                  std::to_string(order.request) + " twice");
    }
    reply(answer);
    done(order.stage);
  });
}

void SimulatedCard::close_lane(const CloseLane& order, Reply reply) {
  post(order.stage, [this, order, reply = std::move(reply)] {
    lanes_.erase({order.request, order.stage});
    reply({});
    done(order.stage);
  });
}

void SimulatedCard::run(const RunProgram& order, Reply reply) {
  post(order.stage, [this, order, reply = std::move(reply)] { run_now(order, reply); });
}

void SimulatedCard::cancel(std::uint64_t request) {
  if (retired_) return;
  for (auto& [key, lane] : lanes_)
    if (key.first == request) lane.cancelled = true;
  node_.exchange().forget(request);
  node_.process()->poll_wanted = true;
}

void SimulatedCard::cancel_all() {
  for (auto& [key, lane] : lanes_) {
    lane.cancelled = true;
    node_.exchange().forget(key.first);
  }
  node_.process()->poll_wanted = true;
}

bool SimulatedCard::poll() {
  bool any = false;
  const auto waits = waits_;
  for (auto* wait : waits) {
    if (std::find(waits_.begin(), waits_.end(), wait) == waits_.end()) continue;
    auto& exchange = node_.exchange();
    const auto now = node_.world().now();
    auto received = exchange.receive(wait->key, now);
    if (!received.ok() && now < wait->deadline &&
        (received.error().code == ErrorCode::timed_out || received.error().code == ErrorCode::pool_exhausted)) {
      auto polled = exchange.try_receive(wait->key);
      if (!polled) continue;
      received = std::move(*polled);
    }
    std::erase(waits_, wait);
    wait->outcome.emplace(std::move(received));
    any = true;
    wait->handle.resume();
  }
  return any;
}

Status SimulatedCard::send(const protocol::MessageKey& key, const Shape& shape, const std::vector<float>& values, bool is_collective) {
  // Collectives carry the epoch that they were computed in, where the protocol cannot see it.
  std::vector<std::byte> bytes((values.size() + (is_collective ? 2 : 0)) * sizeof(float));
  auto* at = bytes.data();
  if (is_collective) {
    const auto epoch = node_.epoch();
    std::memcpy(at, &epoch, sizeof epoch);
    at += sizeof epoch;
  }
  if (!values.empty()) std::memcpy(at, values.data(), values.size() * sizeof(float));
  const auto sent = is_collective ? Shape{bytes.size() / sizeof(float)} : shape;
  node_.process()->poll_wanted = true;
  return node_.exchange().send(key, DType::f32, sent, Shard::of(std::move(bytes)));
}

Result<std::vector<float>> SimulatedCard::values_of(const protocol::Message& message) const {
  std::vector<std::byte> bytes(message.bytes());
  message.copy_to(bytes);
  if (bytes.size() < sizeof(std::uint64_t) || bytes.size() % sizeof(float) != 0)
    return Error{ErrorCode::bad_frame, "a shard of " + std::to_string(bytes.size()) + " bytes came"};
  std::uint64_t epoch = 0;
  std::memcpy(&epoch, bytes.data(), sizeof epoch);
  if (epoch != node_.epoch())
    node_.observer().violated("no old epoch", "card " + std::to_string(number_) + " got a shard of epoch " + std::to_string(epoch) +
                                                  " in epoch " + std::to_string(node_.epoch()));
  std::vector<float> values((bytes.size() - sizeof epoch) / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data() + sizeof epoch, values.size() * sizeof(float));
  return values;
}

Routine SimulatedCard::run_now(RunProgram order, Reply reply) {
  CardDone answer;
  auto& world = node_.world();
  const auto kind = static_cast<StageKind>(order.stage);
  const LaneKey lane_key{order.request, order.stage};
  const auto started = world.now();
  const auto end = [&](const Error& error) { answer.failure = error; };
  const auto blame = [&](const Error& error, std::uint32_t source) {
    answer.failure = error;
    if (error.code == ErrorCode::timed_out || error.code == ErrorCode::peer_lost) answer.suspects = {source};
    if (source >= first_keeper_endpoint) answer.suspects.clear();
  };
  const auto lane_of = [&]() -> Lane* {
    const auto found = lanes_.find(lane_key);
    return found == lanes_.end() ? nullptr : &found->second;
  };
  if (lane_of() == nullptr) end(Error{ErrorCode::not_found, "there is no lane for request " + std::to_string(order.request)});

  // Inputs.
  std::vector<std::int32_t> tokens;
  for (std::size_t i = 0; i < order.inputs.size() && answer.failure.ok(); ++i) {
    const auto& input = order.inputs[i];
    std::vector<float> values;
    if (static_cast<InputFrom>(input.from) == InputFrom::values) {
      tokens = input.values;
      continue;
    }
    if (static_cast<InputFrom>(input.from) == InputFrom::noise) {
      values.resize(latent_rows * width);
      fill_normal(input.seed, RandomStream::noise, 0, values);
    } else {
      const protocol::MessageKey key{order.request, input.step, edge_stream, 0, input.edge, input.source, number_};
      Wait wait;
      wait.key = key;
      wait.deadline = world.now() + node_.deadline();
      Receive receive{*this, std::move(wait)};
      auto received = co_await receive;
      if (!received.ok()) {
        blame(received.error(), input.source);
        break;
      }
      values.resize(received.value().bytes() / sizeof(float));
      received.value().copy_to(std::as_writable_bytes(std::span(values)));
    }
    auto* lane = lane_of();
    if (lane == nullptr) {
      end(Error{ErrorCode::cancelled, "the lane is closed"});
      break;
    }
    if (input.slot == "text_prompt") lane->prompt = values;
    else if (input.slot == "text_negative") lane->negative = values;
    else lane->latents = values;
  }
  answer.exchange_seconds += seconds_of(world.now() - started);

  auto& faults = node_.faults_of(number_);
  if (answer.failure.ok() && !order.program.empty()) {
    if (faults.hang) {
      stuck_ = true;
      Sleep forever{*this, std::chrono::hours(10)};
      co_await forever;
    }
    if (faults.fail > 0) {
      --faults.fail;
      end(Error{ErrorCode::internal, "card " + std::to_string(number_) + " failed in " + order.program});
    } else {
      const auto pause = std::chrono::duration_cast<Duration>(
          std::chrono::duration<double>(0.02 * std::max(1.0, faults.slow)) + world.between(Duration::zero(), std::chrono::milliseconds(4)));
      Sleep computing{*this, pause};
      co_await computing;
      answer.compute_seconds += seconds_of(pause);
      if (auto* lane = lane_of(); lane == nullptr || lane->cancelled) end(Error{ErrorCode::cancelled, "the request was cancelled"});
    }
  }

  // Sums over a group: of the text encoder's tokens, of a step's branches.
  const auto* stage = node_.plan().stage(kind);
  std::vector<std::vector<float>> sums;  // By branch; on every card of the group.
  const bool sums_up = answer.failure.ok() && stage != nullptr &&
                       ((kind == StageKind::text_encoder && order.program == "forward") || (kind == StageKind::denoiser && order.program == "step"));
  if (sums_up) {
    const auto exchange_started = world.now();
    std::size_t own_group = 0;
    for (std::size_t group = 0; group < stage->groups.size(); ++group)
      for (const auto& rank : stage->groups[group].ranks)
        if (rank.card == number_) own_group = group;
    const bool guided = kind == StageKind::denoiser && lane_of()->open.negative_rows > 0;
    const bool split = guided && stage->groups.size() > 1;
    const auto& ranks = stage->groups[own_group].ranks;
    const std::uint64_t rows = kind == StageKind::text_encoder ? tokens.size() : latent_rows;
    std::vector<std::uint32_t> shares;
    for (const auto& rank : ranks) shares.push_back(static_cast<std::uint32_t>(rank.slices.size()));
    const auto row_ranges = split_rows(rows, shares);
    std::vector<protocol::ReduceRank> group_ranks;
    for (std::size_t i = 0; i < ranks.size(); ++i) group_ranks.push_back({ranks[i].card, ranks[i].slices, row_ranges[i]});
    std::vector<std::uint32_t> slices;
    for (const auto& rank : ranks)
      if (rank.card == number_) slices = rank.slices;
    const auto stream = static_cast<std::uint16_t>(1 + order.stage);
    const std::uint32_t branches = guided ? 2 : 1;
    sums.resize(branches);
    for (std::uint32_t branch = 0; branch < branches && answer.failure.ok(); ++branch) {
      if (split && branch != own_group) continue;
      auto reduce = protocol::OrderedReduceScatter::create(stage->slices, group_ranks, number_, width);
      ORRERY_CHECK(reduce.ok());
      const auto scatter = std::move(reduce).value();
      // One partial sum per slice.
      std::map<std::uint32_t, std::vector<float>> partial;
      for (const auto slice : slices) {
        auto& values = partial[slice];
        values.resize(rows * width);
        const auto* lane = lane_of();
        const auto text = kind == StageKind::denoiser ? digest_of(branch == 0 ? lane->prompt : lane->negative) : 0;
        auto scalars = std::uint64_t{0};
        for (const auto scalar : order.scalars) {
          std::uint64_t bits = 0;
          std::memcpy(&bits, &scalar, sizeof bits);
          scalars = mix(scalars, bits);
        }
        for (std::uint64_t i = 0; i < values.size(); ++i) {
          const auto seen = kind == StageKind::denoiser ? bits_of(lane->latents[i]) : static_cast<std::uint32_t>(tokens[i / width]);
          values[i] = value_of(mix(mix(mix(mix(mix(seen, slice), i % width), order.step), text), scalars));
        }
      }
      std::vector<std::vector<float>> pieces;
      for (const auto& piece : scatter.pieces()) {
        std::vector<protocol::Summand> summands;
        for (auto slice = piece.begin; slice < piece.end; ++slice)
          summands.push_back({{slice, slice + 1}, {std::as_bytes(std::span(partial.at(slice)))}});
        std::vector<float> sum(rows * width);
        ORRERY_CHECK(protocol::tree_sum(piece, summands, sum).ok());
        pieces.push_back(std::move(sum));
      }
      for (const auto& each : scatter.sends()) {
        const auto& piece = pieces[each.part];
        const auto first = piece.begin() + static_cast<std::ptrdiff_t>(each.offset / sizeof(float));
        const std::vector<float> values(first, first + static_cast<std::ptrdiff_t>(each.bytes / sizeof(float)));
        const protocol::MessageKey key{order.request, order.step, stream, each.part, branch * 4 + 1, number_, each.target};
        if (auto status = send(key, {}, values, true); !status.ok()) blame(status.error(), each.target);
        if (!answer.failure.ok()) break;
      }
      std::vector<protocol::Message> received;
      std::vector<std::vector<float>> received_values;
      for (std::size_t i = 0; i < scatter.receives().size() && answer.failure.ok(); ++i) {
        const auto& each = scatter.receives()[i];
        Wait wait;
        wait.key = {order.request, order.step, stream, each.part, branch * 4 + 1, each.source, number_};
        wait.deadline = world.now() + node_.deadline();
        Receive receive{*this, std::move(wait)};
        auto message = co_await receive;
        if (!message.ok()) {
          blame(message.error(), each.source);
          break;
        }
        auto values = values_of(message.value());
        if (!values.ok()) {
          end(values.error());
          break;
        }
        received_values.push_back(std::move(values).value());
      }
      if (!answer.failure.ok()) break;
      for (const auto& values : received_values)
        received.push_back({DType::f32, {values.size()}, {{0, Shard::copy_of(std::as_bytes(std::span(values)))}}});
      std::vector<std::span<const float>> own;
      for (const auto& piece : pieces) own.emplace_back(piece);
      std::vector<float> part(scatter.rows().count() * width);
      if (auto status = scatter.combine(own, received, part); !status.ok()) {
        end(status.error());
        break;
      }
      // Everyone's rows to everyone.
      auto& sum = sums[branch];
      sum.resize(rows * width);
      for (std::size_t i = 0; i < ranks.size() && answer.failure.ok(); ++i) {
        if (ranks[i].card == number_) {
          std::copy(part.begin(), part.end(), sum.begin() + static_cast<std::ptrdiff_t>(row_ranges[i].begin * width));
          continue;
        }
        const protocol::MessageKey key{order.request, order.step, stream, 0, branch * 4 + 2, number_, ranks[i].card};
        if (auto status = send(key, {}, part, true); !status.ok()) blame(status.error(), ranks[i].card);
      }
      for (std::size_t i = 0; i < ranks.size() && answer.failure.ok(); ++i) {
        if (ranks[i].card == number_) continue;
        Wait wait;
        wait.key = {order.request, order.step, stream, 0, branch * 4 + 2, ranks[i].card, number_};
        wait.deadline = world.now() + node_.deadline();
        Receive receive{*this, std::move(wait)};
        auto message = co_await receive;
        if (!message.ok()) {
          blame(message.error(), ranks[i].card);
          break;
        }
        auto values = values_of(message.value());
        if (!values.ok() || values.value().size() != row_ranges[i].count() * width) {
          end(Error{ErrorCode::bad_frame, "a gathered shard has a wrong size"});
          break;
        }
        std::copy(values.value().begin(), values.value().end(), sum.begin() + static_cast<std::ptrdiff_t>(row_ranges[i].begin * width));
      }
    }
    // The other branch lives on other cards: their first one sends it to all of ours.
    if (split && answer.failure.ok()) {
      const auto other = 1 - own_group;
      const auto& others = stage->groups[other].ranks;
      if (ranks.front().card == number_)
        for (const auto& each : others) {
          const protocol::MessageKey key{order.request, order.step, stream, 0, 11, number_, each.card};
          if (auto status = send(key, {}, sums[own_group], true); !status.ok()) blame(status.error(), each.card);
        }
      if (answer.failure.ok()) {
        Wait wait;
        wait.key = {order.request, order.step, stream, 0, 11, others.front().card, number_};
        wait.deadline = world.now() + node_.deadline();
        Receive receive{*this, std::move(wait)};
        auto message = co_await receive;
        if (!message.ok()) {
          blame(message.error(), others.front().card);
        } else {
          auto values = values_of(message.value());
          if (!values.ok() || values.value().size() != latent_rows * width) end(Error{ErrorCode::bad_frame, "a branch has a wrong size"});
          else sums[other] = std::move(values).value();
        }
      }
    }
    answer.exchange_seconds += seconds_of(world.now() - exchange_started);
  }

  // What the program leaves in the lane, and what goes out.
  auto* lane = lane_of();
  if (answer.failure.ok() && (lane == nullptr || lane->cancelled)) end(Error{ErrorCode::cancelled, "the request was cancelled"});
  if (answer.failure.ok() && sums_up) {
    if (kind == StageKind::text_encoder) {
      lane->latents = sums[0];
      for (auto& value : lane->latents) value = squashed(value);
    } else {
      for (std::size_t i = 0; i < lane->latents.size(); ++i) {
        auto change = sums[0][i];
        if (sums.size() > 1) change += static_cast<float>(lane->open.spec.guidance) * (sums[0][i] - sums[1][i]);
        lane->latents[i] = squashed(0.5F * lane->latents[i] + change);
      }
    }
  }
  if (answer.failure.ok() && kind == StageKind::decoder && !order.program.empty()) {
    if (order.program == "prepare") lane->chain = digest_of(lane->latents);
    else lane->chain = mix(mix(lane->chain, digest_of(lane->latents)), order.step);
  }
  for (std::size_t i = 0; i < order.outputs.size() && answer.failure.ok(); ++i) {
    const auto& output = order.outputs[i];
    for (const auto target : output.targets) {
      const protocol::MessageKey key{order.request, output.step, edge_stream, 0, output.edge, number_, target};
      Status status = Done{};
      if (static_cast<Edge>(output.edge) == Edge::frames) {
        const std::uint64_t frames = order.step == 0 ? 1 : node_.model()->codec->temporal_ratio;
        std::vector<std::byte> pixels(frames * 12);
        for (std::size_t pixel = 0; pixel < pixels.size(); ++pixel) pixels[pixel] = static_cast<std::byte>(mix(lane->chain, pixel) & 0xff);
        node_.process()->poll_wanted = true;
        status = node_.exchange().send(key, DType::u8, {frames, 2, 2, 3}, Shard::of(std::move(pixels)));
      } else {
        status = send(key, {lane->latents.size() / width, width}, lane->latents, false);
      }
      if (!status.ok()) {
        end(status.error());
        break;
      }
    }
  }
  reply(answer);
  done(order.stage);
}

// ---- the node -----------------------------------------------------------------------------------------------------

struct SimulatedNode::Sleep {
  SimulatedNode& node;
  Duration duration;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    auto* owner = &node;
    node.world_.at(node.process_, duration, [owner, handle] {
      if (owner->routines_.contains(handle.address())) handle.resume();
    });
  }
  void await_resume() const {}
};

SimulatedNode::SimulatedNode(World& world, ProcessPointer process, NodeOptions options, Observer& observer)
    : world_(world), process_(std::move(process)), options_(std::move(options)), observer_(observer), session_(world.random().next() | 1) {
  world_.make_exchange(process_, options_.peer, options_.cluster_id);
  keeper_ = std::make_unique<Keeper>(*process_->exchange);
  process_->poll = [this] {
    while (poll()) {
    }
  };
}

SimulatedNode::~SimulatedNode() {
  end_routines(routines_);
  cards_.clear();
  retired_.clear();
  keeper_.reset();
}

void SimulatedNode::join() {
  NodeActorSetup setup;
  setup.backend = this;
  setup.board = &board_;
  setup.name = options_.name;
  actor_ = world_.spawn_in(process_, node_actor, setup);
  caf::anon_send(actor_, Rejoin{});
}

bool SimulatedNode::poll() {
  bool any = false;
  std::vector<SimulatedCard*> all;  // A card that goes on may cause a load.
  for (const auto& [number, card] : cards_) all.push_back(card.get());
  for (auto* card : all) any = card->poll() || any;
  return any;
}

NodeHello SimulatedNode::hello() const {
  NodeHello hello;
  hello.version = control_version;
  hello.cluster_id = options_.cluster_id;
  hello.name = options_.name;
  hello.session = session_;
  hello.epoch = process_->exchange->epoch();
  hello.control_host = "127.0.0.1";
  hello.control_port = static_cast<std::uint16_t>(options_.peer);
  hello.peer = options_.peer;
  hello.data_address = process_->exchange->address();
  hello.pid = static_cast<std::int64_t>(process_->number);
  return hello;
}

void SimulatedNode::seek(std::function<void(Result<caf::actor>)> found) {
  world_.at(process_, world_.between(std::chrono::milliseconds(1), std::chrono::milliseconds(100)), [this, found = std::move(found)]() mutable {
    const auto coordinator = options_.coordinator();
    if (!coordinator || world_.is_cut(options_.name, "coordinator") || world_.is_cut("coordinator", options_.name)) return seek(std::move(found));
    found(world_.wire(process_, *coordinator));
  });
}

void SimulatedNode::find_coordinator(std::function<void(Result<caf::actor>)> found) { seek(std::move(found)); }

void SimulatedNode::find_nodes(const std::vector<PeerAddress>& peers, std::function<void(Result<std::vector<caf::actor>>)> found) {
  world_.at(process_, world_.between(std::chrono::milliseconds(1), std::chrono::milliseconds(10)), [this, peers, found = std::move(found)] {
    std::vector<caf::actor> nodes;
    for (const auto& peer : peers) {
      const auto node = options_.node_named(peer.name);
      if (!node || world_.is_cut(options_.name, peer.name) || world_.is_cut(peer.name, options_.name))
        return world_.at(process_, node ? std::chrono::seconds(5) : std::chrono::milliseconds(1), [peer, found] {
          found(Error{ErrorCode::unreachable, "node " + peer.name + " cannot be reached"});
        });
      nodes.push_back(world_.wire(process_, *node));
    }
    found(std::move(nodes));
  });
}

void SimulatedNode::load(const LoadPlan& order, std::function<void(std::uint64_t, std::uint64_t)> progress,
                         std::function<void(Result<PlanLoaded>)> loaded) {
  names_.clear();
  for (const auto& peer : order.peers) names_[peer.peer] = peer.name;
  loads_.push_back({order, std::move(progress), std::move(loaded)});
  if (!loading_) load_all();
}

Routine SimulatedNode::load_all() {
  loading_ = true;
  while (!loads_.empty()) {
    auto load = std::move(loads_.front());
    loads_.pop_front();
    if (load.order.epoch <= epoch_) {
      load.loaded(Error{ErrorCode::stale_epoch, "node " + options_.name + " is in epoch " + std::to_string(epoch_)});
      continue;
    }
    for (const auto& [number, card] : cards_) card->cancel_all();
    const auto busy = [this] { return std::any_of(cards_.begin(), cards_.end(), [](const auto& each) { return !each.second->idle(); }); };
    const auto until = world_.now() + stop_limit;
    while (busy() && world_.now() < until) {
      Sleep moment{*this, std::chrono::milliseconds(5)};
      co_await moment;
    }
    if (busy()) {
      load.loaded(Error{ErrorCode::peer_lost, "a card of " + options_.name + " hangs in a command", "its process has to end"});
      continue;
    }
    auto plan_json = parse_json(load.order.plan, "plan");
    ORRERY_CHECK(plan_json.ok());
    auto plan = topology::plan_from_json(plan_json.value());
    ORRERY_CHECK(plan.ok());
    // What has to be read takes its time.
    std::set<std::string> needed;
    for (const auto& stage : plan.value().stages)
      for (const auto& group : stage.groups)
        for (const auto& rank : group.ranks)
          if (plan.value().cards[rank.card].node == options_.name)
            for (const auto slice : rank.slices)
              needed.insert(std::to_string(rank.card) + "/" + std::string(topology::name_of(stage.kind)) + "/" + std::to_string(slice));
    std::uint64_t missing = 0;
    for (const auto& each : needed) missing += weights_.contains(each) ? 0 : 1;
    auto result = take(load.order);
    load.progress(0, missing);
    Sleep reading{*this, std::chrono::milliseconds(2 + 8 * missing)};
    co_await reading;
    weights_ = needed;
    load.progress(missing, missing);
    if (result.ok()) {
      result.value().bytes_read = missing;
      result.value().kept = keeper_->items();
    }
    load.loaded(std::move(result));
  }
  loading_ = false;
}

Result<PlanLoaded> SimulatedNode::take(const LoadPlan& order) {
  ORRERY_TRY(plan_json, parse_json(order.plan, "plan"));
  ORRERY_TRY(plan, topology::plan_from_json(plan_json));
  plan_ = std::move(plan);
  epoch_ = order.epoch;
  observer_.plan_loaded(*process_, epoch_, plan_.digest());
  deadline_ = std::min<Duration>(std::chrono::seconds(3),
                                 std::chrono::duration_cast<Duration>(std::chrono::duration<double>(order.collective_deadline_seconds)));
  routes_.clear();
  clients_.clear();
  for (const auto& each : order.peers) {
    if (each.name != options_.name) ORRERY_TRY_DONE(exchange().add_peer(each.peer, each.data_address));
    routes_[first_keeper_endpoint + each.peer] = each.peer;
    for (std::uint32_t card = 0; card < plan_.cards.size(); ++card)
      if (plan_.cards[card].node == each.name) routes_[card] = each.peer;
  }
  ORRERY_TRY_DONE(exchange().set_routes(epoch_, plan_.digest(), routes_));
  for (auto& [number, card] : cards_) {
    card->retire();
    retired_.push_back(std::move(card));
  }
  cards_.clear();
  for (std::uint32_t number = 0; number < plan_.cards.size(); ++number)
    if (plan_.cards[number].node == options_.name) cards_[number] = std::make_unique<SimulatedCard>(*this, number);
  PlanLoaded loaded;
  loaded.numerics = "simulated";
  return loaded;
}

CardFaults& SimulatedNode::faults_of(std::uint32_t card) { return (*options_.faults)[plan_.cards[card].index]; }

std::map<std::uint32_t, CardBackend*> SimulatedNode::cards() {
  std::map<std::uint32_t, CardBackend*> all;
  for (const auto& [number, card] : cards_) all[number] = card.get();
  return all;
}

Status SimulatedNode::add_client(std::uint64_t request, std::uint32_t endpoint, const std::string& address) {
  if (endpoint == 0) return Done{};
  auto& known = clients_[request];
  if (known == endpoint) return Done{};
  if (known != 0) routes_.erase(known);
  known = endpoint;
  ORRERY_TRY_DONE(exchange().add_peer(endpoint, address));
  routes_[endpoint] = endpoint;
  return exchange().set_routes(epoch_, plan_.digest(), routes_);
}

void SimulatedNode::drop(std::uint64_t request) {
  for (const auto& [number, card] : cards_) card->cancel(request);
  exchange().forget(request);
  keeper_->forget(request);
  drop_client(request);
}

void SimulatedNode::drop_client(std::uint64_t request) {
  const auto client = clients_.find(request);
  if (client == clients_.end()) return;
  routes_.erase(client->second);
  clients_.erase(client);
  static_cast<void>(exchange().set_routes(epoch_, plan_.digest(), routes_));
}

Status SimulatedNode::send_kept(const SendKept& order) {
  process_->poll_wanted = true;
  return keeper_->send(order.request, order.edge, order.step, order.targets);
}

std::vector<SilentNode> SimulatedNode::silent_nodes(Duration limit) const {
  std::vector<SilentNode> silent;
  for (auto& each : process_->exchange->silent_peers(limit))
    if (const auto name = names_.find(each.peer); name != names_.end()) silent.push_back({name->second, each.silence, std::move(each.waiting_for)});
  return silent;
}

NodeHealth SimulatedNode::health() const {
  NodeHealth health;
  health.name = options_.name;
  return health;
}

FaultAnswer SimulatedNode::fault(const FaultCommand&) {
  FaultAnswer answer;
  answer.failure = Error{ErrorCode::unsupported, "faults of a simulated node come from the seed"};
  return answer;
}

void SimulatedNode::hang(const std::string&) { world_.pause(process_); }

std::string SimulatedNode::names_left() const {
  std::string left;
  const auto add = [&](const std::string& what, std::uint64_t count) {
    if (count > 0) left += (left.empty() ? "" : ", ") + std::to_string(count) + " " + what;
  };
  std::uint64_t lanes = 0, queued = 0;
  for (const auto& [number, card] : cards_) {
    if (card->stuck()) continue;  // Found out when it is needed next.
    lanes += card->lanes();
    queued += card->queued();
  }
  add("lanes", lanes);
  add("queued orders", queued);
  add("kept items", keeper_->items().size());
  add("clients", clients_.size());
  const auto statistics = process_->exchange->statistics();
  std::uint64_t unclaimed = 0, unacked = 0;
  for (const auto& [peer, each] : statistics.peers) {
    unclaimed += each.unclaimed_bytes;
    unacked += each.unacked_bytes;
  }
  add("unclaimed bytes", unclaimed);
  add("unacked bytes", unacked);
  add("waiting receives", statistics.receives_waiting);
  return left;
}

std::string SimulatedNode::over_bounds() const {
  const auto kept = keeper_->items().size();
  if (kept > 64) return std::to_string(kept) + " items are kept";
  for (const auto& [peer, each] : process_->exchange->statistics().peers) {
    if (each.unclaimed_bytes > (512U << 10)) return std::to_string(each.unclaimed_bytes) + " bytes lie unclaimed";
    if (each.unacked_bytes > (4U << 20)) return std::to_string(each.unacked_bytes) + " bytes are not acked";
  }
  return "";
}

}  // namespace orrery::simulation
