#include "topology/cost.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <tuple>

#include "base/row_split.hpp"
#include "base/slice_tree.hpp"
#include "topology/planner.hpp"

namespace orrery::topology {
namespace {

std::uint64_t part_of(std::uint64_t bytes, std::uint64_t part, std::uint64_t whole) {
  return static_cast<std::uint64_t>((static_cast<unsigned __int128>(bytes) * part + whole - 1) / whole);
}

/// Bytes that flow at the same time, summed up by port.
class Traffic {
public:
  Traffic(const ClusterSpec& cluster, const std::vector<CardView>& views)
      : cluster_(cluster),
        views_(views),
        card_in_(views.size()),
        card_out_(views.size()),
        node_in_(cluster.nodes.size()),
        node_out_(cluster.nodes.size()),
        node_within_(cluster.nodes.size()) {}

  void add(std::uint32_t from, std::uint32_t to, double bytes) {
    const auto a = views_[from].node, b = views_[to].node;
    // Only meshes ask for pairs, and keeping them is most of the work.
    if ((a == b ? cluster_.within_node : cluster_.between_nodes).shape == LinkShape::mesh)
      pairs_[{a == b ? from : a, a == b ? to : b, a == b}] += bytes;
    if (a == b) {
      card_out_[from] += bytes;
      card_in_[to] += bytes;
      node_within_[a] += bytes;
    } else {
      node_out_[a] += bytes;
      node_in_[b] += bytes;
      between_total_ += bytes;
    }
  }

  /// Until the last byte has passed the busiest port.
  double seconds() const {
    double within = 0, between = 0, within_pair = 0, between_pair = 0;
    for (const auto& [key, bytes] : pairs_)
      (std::get<2>(key) ? within_pair : between_pair) =
          std::max(std::get<2>(key) ? within_pair : between_pair, bytes);
    for (std::size_t i = 0; i < card_in_.size(); ++i) within = std::max({within, card_in_[i], card_out_[i]});
    for (std::size_t i = 0; i < node_in_.size(); ++i) between = std::max({between, node_in_[i], node_out_[i]});
    double shared = 0;
    std::size_t cards_most = 1;
    for (std::size_t node = 0; node < node_within_.size(); ++node) {
      if (node_within_[node] == 0) continue;
      shared = std::max(shared, node_within_[node]);
      cards_most = std::max(cards_most, cluster_.nodes[node].cards.size());
    }
    return std::max(of_shape(cluster_.within_node, within, within_pair, shared, cards_most),
                    of_shape(cluster_.between_nodes, between, between_pair, between_total_, cluster_.nodes.size()));
  }

private:
  static double of_shape(const Link& link, double port, double pair, double total, std::size_t members) {
    const double bandwidth = std::max(link.bandwidth, 1.0);
    switch (link.shape) {
      case LinkShape::mesh: return pair / bandwidth;
      case LinkShape::ports: return port / bandwidth;
      // In a ring with both directions a byte passes a quarter of the members on average.
      case LinkShape::ring: return port * std::max(1.0, static_cast<double>(members) / 4) / bandwidth;
      case LinkShape::shared: return total / bandwidth;
    }
    return port / bandwidth;
  }

  const ClusterSpec& cluster_;
  const std::vector<CardView>& views_;
  std::vector<double> card_in_, card_out_, node_in_, node_out_, node_within_;
  std::map<std::tuple<std::uint32_t, std::uint32_t, bool>, double> pairs_;
  double between_total_ = 0;
};

/// How many complete subtrees of `range` the slices [begin, end) are: `pieces_of` without making them.
std::size_t piece_count(SliceRange range, std::uint32_t begin, std::uint32_t end) {
  if (end <= range.begin || range.end <= begin) return 0;
  if (begin <= range.begin && range.end <= end) return 1;
  const auto split = split_of(range);
  return piece_count({range.begin, split}, begin, end) + piece_count({split, range.end}, begin, end);
}

std::size_t piece_count(const std::vector<std::uint32_t>& owned_slices, std::uint32_t slices) {
  if (owned_slices.empty()) return 0;
  const auto begin = owned_slices.front(), end = owned_slices.back() + 1;
  // Plans that people write need not be contiguous.
  return end - begin == owned_slices.size() ? piece_count({0, slices}, begin, end)
                                            : pieces_of(owned_slices, slices).size();
}

/// One collective of a stage: what each rank of a group sends to each other rank.
enum class Collective : std::uint8_t { reduce_scatter, all_gather, all_to_all };

template <class Add>
void flows_of(const StageDemand& stage, const PlannedGroup& group, Collective collective, const Add& add) {
  std::vector<std::uint32_t> shares;
  for (const auto& rank : group.ranks) shares.push_back(static_cast<std::uint32_t>(owned(rank)));
  const auto rows = split_rows(stage.rows, shares);
  const double width = static_cast<double>(stage.width), slices = std::max(1U, stage.slices);
  for (std::size_t from = 0; from < shares.size(); ++from) {
    double pieces = 1;
    if (collective == Collective::reduce_scatter)
      pieces = static_cast<double>(piece_count(group.ranks[from].slices, stage.slices));
    for (std::size_t to = 0; to < shares.size(); ++to) {
      if (from == to) continue;
      double bytes = 0;
      switch (collective) {
        case Collective::reduce_scatter:
          bytes = static_cast<double>(rows[to].count()) * width * stage.reduce_element_bytes * pieces;
          break;
        case Collective::all_gather:
          bytes = static_cast<double>(rows[from].count()) * width * stage.gather_element_bytes;
          break;
        case Collective::all_to_all:
          bytes =
              static_cast<double>(rows[from].count()) * width * (shares[to] / slices) * stage.gather_element_bytes;
          break;
      }
      add(group.ranks[from].card, group.ranks[to].card, bytes);
    }
  }
}

/// The collectives of one block and how often each runs.
std::vector<std::pair<Collective, double>> collectives_of(const StageDemand& stage, Split split) {
  if (split == Split::sequence) return {{Collective::all_to_all, stage.all_to_alls_per_block}};
  return {{Collective::reduce_scatter, stage.reduces_per_block}, {Collective::all_gather, stage.reduces_per_block}};
}

/// How often a block's collectives run in what is predicted (one step, or the whole stage).
double rounds_of(const StageDemand& stage, const PlannedStage& placed) {
  return static_cast<double>(stage.blocks) * (placed.groups.size() > 1 ? 1 : std::max(1U, stage.branches));
}

/// (p-1) latencies of the rank with the dearest peers.
double latency_of(const ClusterSpec& cluster, const std::vector<CardView>& views, const PlannedGroup& group) {
  std::map<std::uint32_t, std::size_t> on_node;
  for (const auto& rank : group.ranks) ++on_node[views[rank.card].node];
  double most = 0;
  for (const auto& [node, count] : on_node)
    most = std::max(most, static_cast<double>(count - 1) * cluster.within_node.latency +
                              static_cast<double>(group.ranks.size() - count) * cluster.between_nodes.latency);
  return most;
}

/// Between the sizes that are known, the line: a lane is the largest of several sums that are linear in the rank's share.
std::uint64_t lane_bytes(const StageDemand& stage, Split split, std::uint64_t slices, std::size_t pieces, bool two_groups) {
  const LaneSize* below = nullptr;
  const LaneSize* above = nullptr;
  for (const auto& lane : stage.lanes) {
    if (lane.two_groups != two_groups || (stage.sequence_split && lane.split != split)) continue;
    if (lane.slices <= slices) below = &lane;
    if (lane.slices >= slices && above == nullptr) above = &lane;
  }
  ORRERY_CHECK(below != nullptr && above != nullptr);
  auto bytes = static_cast<double>(below->bytes);
  if (above != below)
    bytes += (static_cast<double>(above->bytes) - bytes) * static_cast<double>(slices - below->slices) / (above->slices - below->slices);
  // Each further piece of the slice tree is at most one more partial sum of all rows, and a little for gaps beside it.
  const auto counted = std::min<std::size_t>(below->pieces, above->pieces);
  if (split == Split::tensor && pieces > counted)
    bytes += 1.0625 * static_cast<double>(pieces - counted) * static_cast<double>(stage.rows * stage.width) * stage.reduce_element_bytes;
  return static_cast<std::uint64_t>(bytes);
}

MemoryBill rank_bill(const Demand& demand, const StageDemand& stage, Split split, std::uint64_t slices, std::size_t pieces,
                     bool two_groups) {
  const std::uint64_t whole = std::max(1U, stage.slices);
  MemoryBill bill;
  const auto sliced = stage.weight_bytes_sliced + stage.weight_padding_sliced;
  bill.weights = stage.weight_bytes_replicated + stage.weight_padding_replicated +
                 (split == Split::tensor ? part_of(sliced, slices, whole) : sliced);
  // One block in use and one on its way.
  if (demand.streamed_weights) bill.weights = std::min(bill.weights, 2 * (bill.weights / std::max(1U, stage.blocks) + 1));
  if (!stage.lanes.empty())
    bill.activations = lane_bytes(stage, split, slices, pieces, two_groups);
  else
    bill.activations = stage.activation_bytes_fixed + part_of(stage.activation_bytes_split, slices, whole) +
                       (two_groups ? 2 * demand.latent_bytes : 0);
  return bill;
}

}  // namespace

std::vector<CardView> views_of(const ClusterSpec& cluster, const std::string& dtype,
                               const std::map<std::uint32_t, double>& slowdown) {
  std::vector<CardView> views;
  for (std::uint32_t node = 0; node < cluster.nodes.size(); ++node)
    for (const auto& card : cluster.nodes[node].cards) {
      const auto& type = cluster.type_of(card);
      const double rate = std::max(type.compute_of(dtype) * card.compute_share, 1.0);
      const auto measured = slowdown.find(static_cast<std::uint32_t>(views.size()));
      // `>` first: what is not a number counts as 1.
      const double slow =
          measured != slowdown.end() && measured->second > 1 ? std::min(measured->second, slowdown_max) : 1;
      views.push_back({node, slow, rate * type.efficiency.linear / slow, rate * type.efficiency.attention / slow,
                       std::max(type.memory_bandwidth, 1.0) / slow, card.memory, card.type, type.host_bandwidth});
    }
  return views;
}

double stage_seconds_on(const StageDemand& stage, const CardView& card) {
  return stage.flops_linear / card.linear + stage.flops_attention / card.attention;
}

MemoryBill rank_bill(const Demand& demand, const StageDemand& stage, Split split, std::uint64_t slices, bool two_groups) {
  return rank_bill(demand, stage, split, slices, 1, two_groups);
}

MemoryBill rank_bill(const Demand& demand, const StageDemand& stage, const PlannedStage& placed, const PlannedRank& rank) {
  auto bill = rank_bill(demand, stage, placed.split, owned(rank), piece_count(rank.slices, std::max(1U, stage.slices)),
                        placed.groups.size() > 1);
  bill.card = rank.card;
  return bill;
}

PredictedStage predicted(const ClusterSpec& cluster, const std::vector<CardView>& views, const Demand& demand,
                         const StageDemand& stage, const PlannedStage& placed) {
  PredictedStage result;
  result.kind = stage.kind;
  const double whole = std::max(1U, stage.slices),
               branches = placed.groups.size() > 1 ? 1 : std::max(1U, stage.branches);
  bool exchanges = false;
  for (const auto& group : placed.groups) {
    exchanges |= group.ranks.size() > 1;
    for (const auto& rank : group.ranks) {
      const double part = static_cast<double>(owned(rank)) / whole;
      const auto& card = views[rank.card];
      const double weights =
          static_cast<double>(stage.weight_bytes_replicated) +
          static_cast<double>(stage.weight_bytes_sliced) * (placed.split == Split::tensor ? part : 1);
      double seconds = branches * std::max(part * stage_seconds_on(stage, card), weights / card.memory_bandwidth);
      if (demand.streamed_weights && card.host_bandwidth > 0) {
        // What does not stay beside the activations comes again in every run; both branches use it.
        const auto bill = rank_bill(demand, stage, placed, rank);
        const auto room = static_cast<double>(card.memory - std::min(card.memory, bill.activations));
        seconds = std::max(seconds, std::max(0.0, weights - room) / card.host_bandwidth);
      }
      result.compute_seconds = std::max(result.compute_seconds, seconds);
    }
  }
  if (exchanges)
    for (const auto& [collective, count] : collectives_of(stage, placed.split)) {
      Traffic traffic(cluster, views);
      double latency = 0;
      for (const auto& group : placed.groups) {
        flows_of(stage, group, collective,
                 [&](std::uint32_t from, std::uint32_t to, double bytes) { traffic.add(from, to, bytes); });
        latency = std::max(latency, latency_of(cluster, views, group));
      }
      result.exchange_seconds += rounds_of(stage, placed) * count * (latency + traffic.seconds());
    }
  if (placed.groups.size() > 1) {
    // The branches hand each other one latent.
    const bool near = views[placed.groups[0].ranks[0].card].node == views[placed.groups[1].ranks[0].card].node;
    const auto& link = near ? cluster.within_node : cluster.between_nodes;
    result.exchange_seconds +=
        link.latency + static_cast<double>(demand.latent_bytes) / std::max(link.bandwidth, 1.0);
  }
  return result;
}

std::vector<PlannedCard> cards_of(const ClusterSpec& cluster, const std::string& dtype) {
  const auto views = views_of(cluster, dtype);
  double slowest = std::numeric_limits<double>::infinity();
  for (const auto& view : views) slowest = std::min(slowest, view.linear);
  std::vector<PlannedCard> cards;
  for (const auto& node : cluster.nodes)
    for (std::uint32_t index = 0; index < node.cards.size(); ++index) {
      const auto& card = node.cards[index];
      cards.push_back(
          {node.name, index, card.type, card.memory, views[cards.size()].linear / slowest, card.threads, views[cards.size()].host_bandwidth});
    }
  return cards;
}

PredictedStage predict(const ClusterSpec& cluster, const Demand& demand, const StageDemand& stage,
                       const PlannedStage& placed, const CardConditions& conditions) {
  return predicted(cluster, views_of(cluster, demand.dtype, conditions.slowdown), demand, stage, placed);
}

std::vector<LinkLoad> link_loads(const ClusterSpec& cluster, const Demand& demand, const StageDemand& stage,
                                 const PlannedStage& placed) {
  const auto views = views_of(cluster, demand.dtype);
  std::map<std::pair<std::uint32_t, std::uint32_t>, double> bytes;
  for (const auto& group : placed.groups)
    for (const auto& [collective, count] : collectives_of(stage, placed.split))
      flows_of(stage, group, collective,
               [&, times = count * rounds_of(stage, placed)](std::uint32_t from, std::uint32_t to, double one) {
                 bytes[{views[from].node, views[to].node}] += one * times;
               });
  if (placed.groups.size() > 1) {
    const auto a = views[placed.groups[0].ranks[0].card].node, b = views[placed.groups[1].ranks[0].card].node;
    bytes[{a, b}] += static_cast<double>(demand.latent_bytes);
    bytes[{b, a}] += static_cast<double>(demand.latent_bytes);
  }
  std::vector<LinkLoad> loads;
  for (const auto& [nodes, sum] : bytes) {
    const auto& link = nodes.first == nodes.second ? cluster.within_node : cluster.between_nodes;
    loads.push_back({cluster.nodes[nodes.first].name, cluster.nodes[nodes.second].name, link.name,
                     static_cast<std::uint64_t>(sum), sum / std::max(link.bandwidth, 1.0)});
  }
  return loads;
}

MemoryBill bill_of(const Demand& demand, const StageDemand& stage, const PlannedStage& placed, std::size_t group,
                   std::size_t rank) {
  return rank_bill(demand, stage, placed, placed.groups.at(group).ranks.at(rank));
}

}  // namespace orrery::topology
