#include "actors/group_lane.hpp"

#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <optional>
#include <thread>

#include "actors/program_runner.hpp"
#include "base/private_folder.hpp"
#include "protocol/host_transport.hpp"
#include "protocol/inproc_transport.hpp"
#include "topology/planner.hpp"

namespace orrery::actors {

namespace {

constexpr std::uint64_t only_request = 1, only_epoch = 1;

Error interrupted() { return Error{ErrorCode::cancelled, "interrupted"}; }

/// An Exchange for each node, joined as the cluster file says.
class Wiring {
public:
  Status connect(const topology::DataTransport& transport, const std::vector<std::string>& nodes, const Clock& clock) {
    protocol::ExchangeOptions options;
    ORRERY_CHECK(::getrandom(&options.cluster_id, sizeof options.cluster_id, 0) == sizeof options.cluster_id);
    const auto hub = protocol::make_inproc_hub();
    using topology::DataTransport;
    const bool has_sockets = transport == DataTransport::ipc || transport == DataTransport::tcp || transport == DataTransport::shm;
    if (has_sockets && transport != DataTransport::tcp) {
      ORRERY_TRY(folder, PrivateFolder::create());
      folder_ = std::move(folder);
    }
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      const auto self = static_cast<protocol::PeerId>(i + 1);
      std::unique_ptr<protocol::Transport> wire;
      if (has_sockets) {
        protocol::HostTransportOptions way;
        way.path = transport == DataTransport::shm ? protocol::HostPath::shm : protocol::HostPath::zmq;
        way.wire.self = self;
        if (transport != DataTransport::tcp) way.wire.bind = "ipc://" + folder_.path() + "/" + std::to_string(self);
        ORRERY_TRY(made, protocol::make_host_transport(way));
        wire = std::move(made);
      } else {
        wire = protocol::make_inproc_transport(hub, self);
      }
      ORRERY_TRY(exchange, protocol::Exchange::create(options, std::move(wire), clock));
      exchanges_.push_back(std::move(exchange));
      peers_[nodes[i]] = self;
    }
    for (const auto& exchange : exchanges_)
      for (const auto& other : exchanges_)
        if (other != exchange) ORRERY_TRY_DONE(exchange->add_peer(other->self(), other->address()));
    return Done{};
  }

  Status route(std::uint64_t plan_digest, const std::map<protocol::EndpointId, std::string>& node_of) {
    std::map<protocol::EndpointId, protocol::PeerId> routes;
    for (const auto& [endpoint, node] : node_of) routes[endpoint] = peers_.at(node);
    for (const auto& exchange : exchanges_) ORRERY_TRY_DONE(exchange->set_routes(only_epoch, plan_digest, routes));
    return Done{};
  }

  protocol::Exchange& of(const std::string& node) { return *exchanges_[peers_.at(node) - 1]; }
  void forget() {
    for (const auto& exchange : exchanges_) exchange->forget(only_request);
  }

private:
  PrivateFolder folder_;  // Of the ipc sockets; goes last.
  std::map<std::string, protocol::PeerId> peers_;
  std::vector<std::unique_ptr<protocol::Exchange>> exchanges_;
};

struct Rank {
  Seat seat;
  std::string node;
  std::unique_ptr<cards::Card> card;
  std::shared_ptr<const cards::ProgramSet> programs;
  cards::LaneId lane = 0;
};

}  // namespace

Result<topology::Plan> plan_group(const GroupOptions& options, std::uint32_t slices) {
  // Compute decides: a nominal piece of work with next to no exchange. Memory is the cards' own business.
  topology::StageDemand work;
  work.kind = options.component == "vae"            ? topology::StageKind::decoder
              : options.component == "text_encoder" ? topology::StageKind::text_encoder
                                                    : topology::StageKind::denoiser;
  work.slices = slices;
  work.blocks = 1;
  work.rows = work.width = 1;
  work.sequence_split = true;
  work.flops_linear = 1e12;
  topology::Demand demand;
  demand.model = options.component;
  demand.dtype = options.dtype;
  demand.stages = {work};
  auto deployment = options.deployment;
  auto& parallelism = deployment.parallelism;
  parallelism.cfg = 1;
  const auto placed = [&]() -> Result<topology::Plan> {
    ORRERY_TRY(first, topology::make_plan(options.cluster, deployment, demand));
    // The codec is never shared out; the planner shares others than the denoiser out as it likes, so here the text
    // encoder takes the denoiser's part: its parallelism is what a deployment can name.
    if (work.kind == topology::StageKind::decoder) return std::move(first);
    if (work.kind == topology::StageKind::text_encoder)
      deployment.placement.denoiser = deployment.placement.text_encoder;
    demand.stages[0].kind = topology::StageKind::denoiser;
    if (parallelism.tensor || parallelism.sequence) {
      parallelism = {parallelism.tensor.value_or(1), parallelism.sequence.value_or(1), 1};
      return topology::make_plan(options.cluster, deployment, demand);
    }
    // All cards: how many its placement leaves, the planner knows.
    for (auto count = static_cast<std::uint32_t>(std::min<std::size_t>(slices, options.cluster.card_count()));;
         --count) {
      parallelism = {count, 1, 1};
      auto plan = topology::make_plan(options.cluster, deployment, demand);
      if (plan.ok() || count <= 1) return plan;
    }
  };
  ORRERY_TRY(plan, placed());
  for (const auto& rank : plan.stages[0].groups[0].ranks)
    if (const auto& type = options.cluster.card_types.at(plan.cards[rank.card].type);
        type.backend != topology::Backend::cpu)
      return Error{
          ErrorCode::unsupported,
          "card " + plan.card_name(rank.card) + " is a " + type.name + ", of which this machine has only the profile",
          "use a cluster of cpu cards"};
  return std::move(plan);
}

/// Threads: one drives; `fail` from any.
class GroupLanes::Lane final : public compiler::ComponentLane {
public:
  explicit Lane(GroupLanes& owner) : owner_(owner) {
    const std::lock_guard lock(owner_.mutex_);
    owner_.current_ = this;
    if (owner_.cancelled_) first_failure_ = interrupted();
  }
  ~Lane() override {
    {
      const std::lock_guard lock(owner_.mutex_);
      owner_.current_ = nullptr;
    }
    owner_.cards_.clear();
    for (const auto& rank : ranks_)
      owner_.cards_.push_back({rank.card->options().name, rank.seat.layout.slices(), rank.card->use()});
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  Status open(const topology::Plan& plan, const compiler::CompileFor& compile, const cards::WeightSource& source) {
    if (const auto numerics = cards::check_numerics(); !numerics.ok()) return numerics.error();
    const auto& stage = plan.stages[0];
    const auto& members = stage.groups[0].ranks;
    std::vector<std::string> nodes;
    std::map<protocol::EndpointId, std::string> node_of;
    for (std::uint32_t index = 0; index < members.size(); ++index) {
      const auto& planned = plan.cards[members[index].card];
      if (std::find(nodes.begin(), nodes.end(), planned.node) == nodes.end()) nodes.push_back(planned.node);
      node_of[members[index].card] = planned.node;
      Rank rank;
      rank.seat = seat_of(plan, stage, 0, index);
      rank.node = planned.node;
      ORRERY_TRY(card,
                 cards::make_cpu_card({plan.card_name(members[index].card), planned.memory_bytes, planned.threads,
                                       planned.host_bandwidth}));
      rank.card = std::move(card);
      ranks_.push_back(std::move(rank));
    }
    ORRERY_TRY_DONE(wiring_.connect(owner_.options_.cluster.data.transport, nodes, clock_));
    ORRERY_TRY_DONE(wiring_.route(plan.digest(), node_of));
    ORRERY_TRY_DONE(on_all([&](std::size_t index) { return load(ranks_[index], compile, source); }));
    const std::lock_guard lock(mutex_);
    for (const auto& rank : ranks_)
      runners_.push_back(std::make_unique<ProgramRunner>(*rank.card, wiring_.of(rank.node), clock_, rank.seat,
                                                         only_request, rank.lane, rank.programs,
                                                         owner_.options_.deadline));
    return Done{};
  }

  void write(const std::string& input, std::span<const std::byte> values) override {
    bool taken = false;
    for (const auto& runner : runners_) {
      const auto found = runner->programs().inputs.find(input);
      if (found == runner->programs().inputs.end()) continue;
      const auto memory = runner->memory(found->second);
      ORRERY_CHECK(memory.size() == values.size());
      std::memcpy(memory.data(), values.data(), memory.size());
      taken = true;
    }
    ORRERY_CHECK(taken);
  }
  Status run(const std::string& program, const cards::Scalars& scalars) override {
    const auto step = step_++;
    return on_all([&](std::size_t index) -> Status {
      auto& runner = *runners_[index];
      if (const auto times = runner.run(runner.programs().index_of(program), step, scalars); !times.ok())
        return times.error();
      return Done{};
    });
  }
  void read(const std::string& output, std::span<std::byte> values) override {
    const auto memory = runners_[0]->memory(ranks_[0].programs->outputs.at(output));
    ORRERY_CHECK(memory.size() == values.size());
    std::memcpy(values.data(), memory.data(), memory.size());
  }
  Shape shape_of(const std::string& output) const override {
    const auto& programs = *ranks_[0].programs;
    return programs.slots[programs.outputs.at(output)].shape;
  }

  /// The first one counts: what the others then say are its consequences.
  void fail(const Error& error) {
    const std::lock_guard lock(mutex_);
    if (first_failure_) return;
    first_failure_ = error;
    failed_ = true;
    for (const auto& runner : runners_) runner->cancel();
    if (!runners_.empty()) wiring_.forget();  // Before, nobody waits for anybody.
  }

private:
  Status load(Rank& rank, const compiler::CompileFor& compile, const cards::WeightSource& source) {
    ORRERY_TRY(programs, compile(rank.seat.layout));
    rank.programs = std::move(programs);
    const auto wanted = owner_.options_.deployment.weights;
    const bool fits = rank.programs->weights->bytes() + rank.programs->lane_bytes() <= rank.card->options().memory_bytes;
    if (wanted == topology::WeightPlacement::streamed || (wanted == topology::WeightPlacement::automatic && !fits)) {
      // The caller's source outlives this lane.
      const std::shared_ptr<const cards::WeightSource> borrowed(std::shared_ptr<void>(), &source);
      ORRERY_TRY_DONE(rank.card->stream_weights(rank.programs->weights, borrowed));
    } else {
      ORRERY_TRY_DONE(
          rank.card->load_weights(rank.programs->weights, source, [this](std::uint64_t) { return !failed_; }));
    }
    ORRERY_TRY(lane, rank.card->open_lane(rank.programs));
    rank.lane = lane;
    return Done{};
  }

  /// A thread for each rank, until all have ended.
  Status on_all(const std::function<Status(std::size_t)>& task) {
    {
      std::vector<std::jthread> threads;
      for (std::size_t index = 0; index < ranks_.size(); ++index)
        threads.emplace_back([this, &task, index] {
          if (const auto status = task(index); !status.ok()) fail(status.error());
        });
    }
    const std::lock_guard lock(mutex_);
    if (first_failure_) return *first_failure_;
    return Done{};
  }

  // Destroyed from the bottom up: runners wait for lent memory, exchanges let go of the rest, then the cards go.
  GroupLanes& owner_;
  SteadyClock clock_;
  std::vector<Rank> ranks_;
  Wiring wiring_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;  // Guards first_failure_ and the making of runners_.
  std::optional<Error> first_failure_;
  std::vector<std::unique_ptr<ProgramRunner>> runners_;
  std::uint32_t step_ = 0;
};

Result<std::unique_ptr<compiler::ComponentLane>> GroupLanes::open(std::uint32_t slice_count,
                                                                  const compiler::CompileFor& compile,
                                                                  const cards::WeightSource& source) {
  ORRERY_TRY(plan, plan_group(options_, slice_count));
  auto lane = std::make_unique<Lane>(*this);
  ORRERY_TRY_DONE(lane->open(plan, compile, source));
  return std::unique_ptr<compiler::ComponentLane>(std::move(lane));
}

void GroupLanes::cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (current_ != nullptr) current_->fail(interrupted());
}

}  // namespace orrery::actors
