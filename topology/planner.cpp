// Long because it is one search: what is allowed, candidates, slices within memory, the choice, the explanation.

#include "topology/planner.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <optional>

#include "base/units.hpp"
#include "base/yaml.hpp"
#include "topology/cost.hpp"
#include "topology/hostlist.hpp"

namespace orrery::topology {
namespace {

using Cards = std::vector<std::uint32_t>;
/// Bytes left, by card.
using Memory = std::vector<std::uint64_t>;

/// Placements compared one by one; above that, candidates.
constexpr std::size_t exhaustive_max = 6000;
constexpr std::size_t rejected_shown_max = 24;

/// Cards that look alike, on one node.
struct Bucket {
  std::uint32_t node;
  Cards cards;
};

/// A placement of one stage and what it takes.
struct Candidate {
  PlannedStage placed;
  double seconds = 0;  // One step or the whole stage.
  std::size_t cards = 0;
  std::string shape;  // "tensor=4 cfg=1"
};

/// Why a placement does not fit.
struct Shortfall {
  StageKind stage = StageKind::denoiser;
  std::uint32_t card = 0;
  std::uint64_t needed = 0, available = 0;
  std::uint64_t missing() const { return needed - available; }
};

std::string shape_text(Split split, std::size_t first, std::size_t second) {
  std::string text(first == 1 && second <= 1 ? std::string_view("tensor") : name_of(split));
  // Which of two branches has the larger group makes no difference.
  text += "=" + std::to_string(std::max(first, second));
  if (second > 0 && second != first) text += "+" + std::to_string(std::min(first, second));
  return text + " cfg=" + (second > 0 ? "2" : "1");
}

class Planner {
public:
  Planner(const ClusterSpec& cluster, const DeploymentSpec& deployment, const Demand& demand,
          const CardConditions& conditions)
      : cluster_(cluster),
        deployment_(deployment),
        demand_(demand),
        lost_(conditions.lost),
        views_(views_of(cluster, demand.dtype, conditions.slowdown)) {}

  Result<Plan> run() {
    Plan plan;
    plan.cluster = cluster_.name;
    plan.model = demand_.model;
    plan.cards = cards_of(cluster_, demand_.dtype);
    if (demand_.stages.empty()) return infeasible("model '" + demand_.model + "' has no stages", "");
    for (const auto& stage : demand_.stages) {
      ORRERY_TRY(cards, allowed_cards(stage.kind));
      allowed_.push_back(cards);
    }
    denoiser_ = index_of(StageKind::denoiser);
    if (denoiser_ < demand_.stages.size()) ORRERY_TRY_DONE(check_requested());
    ORRERY_TRY(chosen, choose());
    fill(plan, chosen);
    return plan;
  }

private:
  using Choice = std::vector<Candidate>;  // One per stage.

  static Error infeasible(std::string message, std::string hint) {
    return Error{ErrorCode::no_feasible_plan, std::move(message), std::move(hint)};
  }

  std::string card_name(std::uint32_t card) const {
    std::uint32_t index = card;
    while (index > 0 && views_[index - 1].node == views_[card].node) --index;
    return cluster_.nodes[views_[card].node].name + ":" + std::to_string(card - index);
  }

  std::size_t index_of(StageKind kind) const {
    for (std::size_t i = 0; i < demand_.stages.size(); ++i)
      if (demand_.stages[i].kind == kind) return i;
    return demand_.stages.size();
  }

  // ---- What the deployment allows -------------------------------------------------------------------------

  Result<Cards> allowed_cards(StageKind kind) const {
    const auto& pins = kind == StageKind::denoiser       ? deployment_.placement.denoiser
                       : kind == StageKind::text_encoder ? deployment_.placement.text_encoder
                       : kind == StageKind::decoder      ? deployment_.placement.decoder
                                                         : deployment_.placement.guardrails;
    std::set<std::uint32_t> wanted;
    for (const auto& pin : pins) ORRERY_TRY_DONE(add_pinned(pin, kind, wanted));
    Cards cards;
    for (std::uint32_t card = 0; card < views_.size(); ++card)
      if (!lost_.contains(card) && (pins.empty() || wanted.contains(card))) cards.push_back(card);
    if (cards.empty())
      return infeasible(
          "no card is left for the " + std::string(name_of(kind)) + " on cluster '" + cluster_.name + "'",
          pins.empty() ? "" : "its placement names only cards that are lost");
    return cards;
  }

  Status add_pinned(const std::string& pin, StageKind kind, std::set<std::uint32_t>& into) const {
    const auto wrong = [&](const std::string& why, const std::string& hint) {
      return infeasible(
          "placement of the " + std::string(name_of(kind)) + ": '" + shown(pin) + "' " + why + " [E305]", hint);
    };
    const auto colon = pin.rfind(':');
    const auto hosts = expand_hosts(pin.substr(0, colon));
    if (!hosts.ok()) return wrong(hosts.error().message, hosts.error().hint);
    for (const auto& host : hosts.value()) {
      std::uint32_t first = 0;
      std::size_t node = 0;
      for (; node < cluster_.nodes.size() && cluster_.nodes[node].name != host; ++node)
        first += static_cast<std::uint32_t>(cluster_.nodes[node].cards.size());
      if (node == cluster_.nodes.size()) {
        std::vector<std::string> names;
        for (const auto& one : cluster_.nodes) names.push_back(one.name);
        return wrong("names no host of cluster '" + cluster_.name + "'", suggestion(host, names));
      }
      const auto count = static_cast<std::uint32_t>(cluster_.nodes[node].cards.size());
      if (colon == std::string::npos) {
        for (std::uint32_t i = 0; i < count; ++i) into.insert(first + i);
        continue;
      }
      const auto digits = pin.substr(colon + 1);
      const bool number = !digits.empty() && digits.size() <= 3 &&
                          std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
      if (!number || std::stoul(digits) >= count)
        return wrong("names no card of host '" + host + "'", "it has cards 0 to " + std::to_string(count - 1));
      into.insert(first + static_cast<std::uint32_t>(std::stoul(digits)));
    }
    return Done{};
  }

  Status check_requested() const {
    const auto& stage = demand_.stages[denoiser_];
    const auto& wanted = deployment_.parallelism;
    const auto tensor = wanted.tensor.value_or(1), sequence = wanted.sequence.value_or(1),
               cfg = wanted.cfg.value_or(1);
    const auto cards = allowed_[denoiser_].size();
    if (tensor > 1 && sequence > 1)
      return infeasible("parallelism.tensor=" + std::to_string(tensor) +
                            " and parallelism.sequence=" + std::to_string(sequence) + " are not combined [E303]",
                        "set one of them to 1 or auto");
    if (cfg > 1 && stage.branches < 2)
      return infeasible("parallelism.cfg=2 needs guidance, and this request has one branch [E304]",
                        "set guidance_scale above 1, or cfg to auto");
    if (sequence > 1 && !stage.sequence_split)
      return infeasible("parallelism.sequence=" + std::to_string(sequence) + ": model '" + demand_.model +
                            "' cannot split its tokens [E303]",
                        "use parallelism.tensor");
    for (const auto& [name, degree] : {std::pair{"tensor", tensor}, std::pair{"sequence", sequence}}) {
      const auto said = "parallelism." + std::string(name) + "=" + std::to_string(degree);
      if (degree > stage.slices)
        return infeasible(
            said + " is more than the " + std::to_string(stage.slices) + " slices of model '" + demand_.model +
                "' [E301]",
            "use 1 to " +
                std::to_string(std::min<std::size_t>(stage.slices, std::max<std::size_t>(1, cards / cfg))) +
                ", or auto");
      if (std::size_t{degree} * cfg > cards)
        return infeasible(
            said + (cfg > 1 ? " with cfg=2" : "") + " needs " + std::to_string(degree * cfg) + " cards, and " +
                (cards == 1 ? "1 is" : std::to_string(cards) + " are") + " usable on cluster '" + cluster_.name +
                "' [E302]",
            cards / cfg > 0
                ? "use 1 to " + std::to_string(std::min<std::size_t>(stage.slices, cards / cfg)) + ", or auto"
                : "set cfg to 1 or auto");
    }
    return Done{};
  }

  /// Whether a denoiser group may have this form.
  bool is_requested(Split split, std::size_t size) const {
    const auto& wanted = deployment_.parallelism;
    if (wanted.tensor.value_or(1) > 1) return split == Split::tensor && size == *wanted.tensor;
    if (wanted.sequence.value_or(1) > 1) return size == *wanted.sequence && split == Split::sequence;
    if (size == 1) return true;
    return split == Split::tensor ? !wanted.tensor.has_value() : !wanted.sequence.has_value();
  }

  // ---- Candidates -----------------------------------------------------------------------------------------

  /// `free`: cards with as much left look alike.
  std::vector<Bucket> buckets_of(const Cards& cards, const Memory& free) const {
    std::vector<Bucket> buckets;
    for (const auto card : cards) {
      const auto same = [&](const Bucket& bucket) {
        const auto &a = views_[bucket.cards[0]], &b = views_[card];
        return bucket.node == b.node && a.linear == b.linear && a.attention == b.attention &&
               a.memory_bandwidth == b.memory_bandwidth && free[bucket.cards[0]] == free[card];
      };
      // Cards come in node order: only the last node's buckets can match.
      auto found = buckets.end();
      for (auto at = buckets.rbegin(); at != buckets.rend() && at->node == views_[card].node; ++at)
        if (same(*at)) found = std::prev(at.base());
      if (found == buckets.end()) {
        buckets.push_back({views_[card].node, {card}});
      } else {
        found->cards.push_back(card);
      }
    }
    return buckets;
  }

  /// Every way to take cards for one or two groups that is not a mere renaming of another, or nothing when
  /// there are too many.
  std::optional<std::vector<std::array<Cards, 2>>> every_choice(const Cards& cards, const Memory& free, bool two,
                                                                std::size_t most) const {
    const auto buckets = buckets_of(cards, free);
    double count = 1;
    for (const auto& bucket : buckets) {
      const double m = static_cast<double>(bucket.cards.size());
      count *= two ? (m + 1) * (m + 2) / 2 : m + 1;
      if (count > exhaustive_max) return std::nullopt;
    }
    std::vector<std::array<Cards, 2>> choices;
    std::vector<std::pair<std::size_t, std::size_t>> taken(buckets.size());
    const auto alike = [&](std::size_t a, std::size_t b) {
      const auto &x = buckets[a], &y = buckets[b];
      const auto &p = views_[x.cards[0]], &q = views_[y.cards[0]];
      const bool alone = (a == 0 || buckets[a - 1].node != x.node) && y.node != x.node &&
                         (b + 1 == buckets.size() || buckets[b + 1].node != y.node);
      return alone && x.cards.size() == y.cards.size() && p.linear == q.linear && p.attention == q.attention &&
             p.memory_bandwidth == q.memory_bandwidth && free[x.cards[0]] == free[y.cards[0]];
    };
    const auto recurse = [&](auto&& self, std::size_t at, std::size_t first, std::size_t second) -> void {
      if (at == buckets.size()) {
        if (first == 0 || (two && second == 0)) return;
        std::array<Cards, 2> choice;
        for (std::size_t i = 0; i < buckets.size(); ++i)
          for (std::size_t j = 0; j < taken[i].first + taken[i].second; ++j)
            choice[j < taken[i].first ? 0 : 1].push_back(buckets[i].cards[j]);
        choices.push_back(std::move(choice));
        return;
      }
      const auto size = buckets[at].cards.size();
      for (std::size_t a = 0; a <= size; ++a)
        for (std::size_t b = 0; b <= (two ? size - a : 0); ++b) {
          if (first + a > most || second + b > most) continue;
          // Of nodes that look alike, the earlier one takes more.
          if (at > 0 && alike(at - 1, at) && std::pair(a, b) > taken[at - 1]) continue;
          taken[at] = {a, b};
          self(self, at + 1, first + a, second + b);
        }
    };
    recurse(recurse, 0, 0, 0);
    return choices;
  }

  /// Cards of each node, fastest first; nodes by the sum of their speeds.
  std::vector<Cards> nodes_by_speed(const Cards& cards) const {
    std::map<std::uint32_t, Cards> by_node;
    for (const auto card : cards) by_node[views_[card].node].push_back(card);
    std::vector<std::pair<double, Cards>> nodes;
    for (auto& [node, own] : by_node) {
      std::stable_sort(own.begin(), own.end(),
                       [&](std::uint32_t a, std::uint32_t b) { return views_[a].linear > views_[b].linear; });
      double sum = 0;
      for (const auto card : own) sum += views_[card].linear;
      nodes.emplace_back(sum, std::move(own));
    }
    std::stable_sort(nodes.begin(), nodes.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    std::vector<Cards> sorted;
    for (auto& [sum, own] : nodes) sorted.push_back(std::move(own));
    return sorted;
  }

  /// A few good ways to take `size` cards.
  std::vector<Cards> good_choices(const Cards& cards, std::size_t size) const {
    std::vector<Cards> choices;
    if (size > cards.size()) return choices;
    const auto nodes = nodes_by_speed(cards);
    // Within one node: the strongest that is large enough, and the smallest that is.
    const Cards* strongest = nullptr;
    const Cards* smallest = nullptr;
    for (const auto& node : nodes) {
      if (node.size() < size) continue;
      const auto speed = [&](const Cards& own) { return views_[own[size - 1]].linear; };
      if (strongest == nullptr || speed(node) > speed(*strongest)) strongest = &node;
      if (smallest == nullptr || node.size() < smallest->size()) smallest = &node;
    }
    for (const auto* node : {strongest, smallest})
      if (node != nullptr) choices.emplace_back(node->begin(), node->begin() + static_cast<std::ptrdiff_t>(size));
    // Whole nodes, strongest first.
    Cards filled;
    for (const auto& node : nodes)
      for (const auto card : node)
        if (filled.size() < size) filled.push_back(card);
    choices.push_back(std::move(filled));
    // Evenly over 2, 4, 8 ... nodes, and over all.
    for (std::size_t over = 2; over <= nodes.size() && over <= size; over *= 2)
      choices.push_back(spread(nodes, size, over));
    choices.push_back(spread(nodes, size, std::min(size, nodes.size())));
    // The fastest anywhere.
    auto fastest = cards;
    std::stable_sort(fastest.begin(), fastest.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return views_[a].linear > views_[b].linear; });
    fastest.resize(size);
    choices.push_back(std::move(fastest));
    for (auto& choice : choices) std::sort(choice.begin(), choice.end());
    std::sort(choices.begin(), choices.end());
    choices.erase(std::unique(choices.begin(), choices.end()), choices.end());
    std::erase_if(choices, [size](const Cards& choice) { return choice.size() != size; });
    return choices;
  }

  static Cards spread(const std::vector<Cards>& nodes, std::size_t size, std::size_t over) {
    Cards cards;
    for (std::size_t turn = 0; cards.size() < size; ++turn) {
      bool any = false;
      for (std::size_t node = 0; node < over && cards.size() < size; ++node)
        if (turn < nodes[node].size()) {
          cards.push_back(nodes[node][turn]);
          any = true;
        }
      if (!any) break;
    }
    return cards;
  }

  std::vector<std::size_t> sizes_up_to(std::size_t most, const Cards& cards) const {
    std::vector<std::size_t> sizes;
    const auto sound = static_cast<std::size_t>(
        std::count_if(cards.begin(), cards.end(), [&](std::uint32_t card) { return views_[card].slowdown == 1; }));
    for (std::size_t size = 1; size <= most; ++size) {
      const bool round = size <= 8 || std::has_single_bit(size) ||
                         (size % 3 == 0 && std::has_single_bit(size / 3)) ||
                         (size % 5 == 0 && std::has_single_bit(size / 5));
      const bool asked = size == deployment_.parallelism.tensor.value_or(0) ||
                         size == deployment_.parallelism.sequence.value_or(0);
      // Without the slow cards, in one group or two.
      const bool without_slow = sound < cards.size() && (size == sound || size == sound / 2);
      if (round || asked || without_slow || size == most) sizes.push_back(size);
    }
    return sizes;
  }

  /// Cards of a stage for one or two groups; those that cannot hold a single slice are left out.
  std::vector<std::array<Cards, 2>> choices_of(std::size_t index, const Memory& free, bool two,
                                               Shortfall& shortfall) {
    const auto& stage = demand_.stages[index];
    const std::size_t most = std::max(1U, stage.slices);
    const auto least = std::min(rank_bill(demand_, stage, Split::tensor, 1, two).total(),
                                rank_bill(demand_, stage, Split::sequence, 1, two).total());
    Cards cards;
    for (const auto card : allowed_[index]) {
      if (least <= free[card]) {
        cards.push_back(card);
      } else {
        note(shortfall, {stage.kind, card, least, free[card]});
      }
    }
    if (cards.size() < (two ? 2U : 1U)) return {};
    if (auto every = every_choice(cards, free, two, most)) return std::move(*every);
    exhaustive_ = false;
    std::vector<std::array<Cards, 2>> choices;
    const auto without = [](const Cards& all, const Cards& taken) {
      Cards rest;
      std::set_difference(all.begin(), all.end(), taken.begin(), taken.end(), std::back_inserter(rest));
      return rest;
    };
    for (const auto size : sizes_up_to(std::min(most, two ? cards.size() - 1 : cards.size()), cards)) {
      for (const auto& first : good_choices(cards, size)) {
        if (!two) {
          choices.push_back({first, {}});
          continue;
        }
        const auto rest = without(cards, first);
        for (const auto& second : good_choices(rest, size)) choices.push_back({first, second});
        if (rest.size() != size && !rest.empty() && rest.size() <= most) choices.push_back({first, rest});
      }
      // Both branches on the same nodes, half of the cards each.
      if (two && 2 * size <= cards.size())
        for (const auto& both : good_choices(cards, 2 * size)) {
          std::array<Cards, 2> halves;
          for (std::size_t i = 0; i < both.size(); ++i) halves[i % 2].push_back(both[i]);
          choices.push_back(std::move(halves));
        }
    }
    return choices;
  }

  // ---- Memory and slices ----------------------------------------------------------------------------------

  /// Shares the slices of a stage out over cards, within what they have free.
  std::optional<PlannedGroup> group_on(const StageDemand& stage, const Cards& cards, Split split, bool two,
                                       const Memory& free, Shortfall& shortfall) const {
    const std::uint32_t slices = std::max(1U, stage.slices);
    std::vector<double> seconds;
    std::vector<std::uint32_t> most;
    std::uint64_t fits = 0;
    for (const auto card : cards) {
      seconds.push_back(std::max(stage_seconds_on(stage, views_[card]), 1 / views_[card].linear) / slices);
      const auto needed = [&](std::uint32_t count) {
        return rank_bill(demand_, stage, split, count, two).total();
      };
      std::uint32_t low = needed(slices) <= free[card] ? slices : 0, high = slices;
      while (low < high) {
        const auto middle = low + (high - low + 1) / 2;
        const bool fit = needed(middle) <= free[card];
        (fit ? low : high) = fit ? middle : middle - 1;
      }
      if (low == 0) {
        note(shortfall, {stage.kind, card, needed(1), free[card]});
        return std::nullopt;
      }
      most.push_back(low);
      fits += low;
    }
    const auto shares = share_out(slices, seconds, most);
    if (shares.empty()) {
      // Everything is full: the roomiest card would have to take the rest.
      std::size_t roomiest = 0;
      for (std::size_t i = 1; i < cards.size(); ++i)
        if (free[cards[i]] > free[cards[roomiest]]) roomiest = i;
      const auto count = static_cast<std::uint32_t>(
          std::min<std::uint64_t>(slices, most[roomiest] + (slices > fits ? slices - fits : 1)));
      const auto needed = rank_bill(demand_, stage, split, count, two).total();
      note(shortfall,
           {stage.kind, cards[roomiest], std::max(needed, free[cards[roomiest]] + 1), free[cards[roomiest]]});
      return std::nullopt;
    }
    PlannedGroup group;
    group.ranks.reserve(cards.size());
    std::uint32_t next = 0;
    for (std::size_t i = 0; i < cards.size(); ++i) {
      PlannedRank rank{cards[i], {}};
      rank.slices.reserve(shares[i]);
      for (std::uint32_t s = 0; s < shares[i]; ++s) rank.slices.push_back(next++);
      group.ranks.push_back(std::move(rank));
    }
    return group;
  }

  static void note(Shortfall& smallest, Shortfall found) {
    if (smallest.needed == 0 || found.missing() < smallest.missing()) smallest = found;
  }

  std::optional<Candidate> candidate_on(const StageDemand& stage, const std::array<Cards, 2>& cards, Split split,
                                        const Memory& free, Shortfall& shortfall) const {
    Candidate candidate;
    candidate.placed = {stage.kind, split, std::max(1U, stage.slices), {}};
    const bool two = !cards[1].empty();
    for (const auto& own : cards) {
      if (own.empty()) continue;
      auto group = group_on(stage, own, split, two, free, shortfall);
      if (!group) return std::nullopt;
      candidate.placed.groups.push_back(std::move(*group));
      candidate.cards += own.size();
    }
    // Now that it is known which slices: some take more than others of that number.
    for (const auto& group : candidate.placed.groups)
      for (const auto& rank : group.ranks)
        if (const auto needed = rank_bill(demand_, stage, candidate.placed, rank).total(); needed > free[rank.card]) {
          note(shortfall, {stage.kind, rank.card, needed, free[rank.card]});
          return std::nullopt;
        }
    candidate.seconds = predicted(cluster_, views_, demand_, stage, candidate.placed).total_seconds();
    candidate.shape = shape_text(split, cards[0].size(), cards[1].size());
    return candidate;
  }

  /// Of lanes, room is kept for those of all stages, also where fewer are ever open: what comes and goes leaves gaps.
  void take(const Candidate& candidate, const StageDemand& stage, Memory& free) const {
    for (const auto& group : candidate.placed.groups)
      for (const auto& rank : group.ranks) free[rank.card] -= rank_bill(demand_, stage, candidate.placed, rank).total();
  }

  // ---- The search -----------------------------------------------------------------------------------------

  /// Candidates of the denoiser on an empty cluster, fastest first; what does not fit is remembered.
  std::vector<Candidate> denoiser_candidates(const Memory& free, Shortfall& shortfall) {
    const auto& stage = demand_.stages[denoiser_];
    const auto& cards = allowed_[denoiser_];
    std::vector<Candidate> candidates;
    for (const bool two : {false, true}) {
      if (two && (stage.branches < 2 || cards.size() < 2)) continue;
      if (deployment_.parallelism.cfg.value_or(two ? 2 : 1) != (two ? 2U : 1U)) continue;
      for (const auto& choice : choices_of(denoiser_, free, two, shortfall))
        for (const auto split : {Split::tensor, Split::sequence}) {
          const auto most = std::max(choice[0].size(), choice[1].size());
          if (split == Split::sequence && (most == 1 || !stage.sequence_split)) continue;
          if (!is_requested(split, choice[0].size()) || (two && !is_requested(split, choice[1].size()))) continue;
          Shortfall own;
          auto candidate = candidate_on(stage, choice, split, free, own);
          if (candidate) {
            candidates.push_back(std::move(*candidate));
          } else {
            note(shortfall, own);
            auto& seen = too_large_[shape_text(split, choice[0].size(), choice[1].size())];
            note(seen, own);
          }
        }
    }
    std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
      return std::tuple(a.seconds, a.cards) < std::tuple(b.seconds, b.cards);
    });
    return candidates;
  }

  /// The fastest placement of any other stage in what is free; of equals, the cards with most left.
  std::optional<Candidate> best_of(std::size_t index, const Memory& free, Shortfall& shortfall) {
    const auto& stage = demand_.stages[index];
    std::optional<Candidate> best;
    std::uint64_t best_left = 0;
    const auto choices = choices_of(index, free, false, shortfall);
    // Most choices cannot win even with perfect sharing and free exchange. What is known to be possible comes from
    // the one that would be fastest then; choices are still looked at in their order, which decides among equals.
    std::vector<double> least;
    for (const auto& choice : choices) {
      double rate = 0;
      for (const auto card : choice[0]) rate += 1 / stage_seconds_on(stage, views_[card]);
      // A stage without work (a guardrail) takes no time on any card: an infinite rate.
      least.push_back(std::max(1U, stage.branches) / rate * (1 - 1e-9));
    }
    double possible = std::numeric_limits<double>::infinity();
    if (!choices.empty()) {
      Shortfall ignored;
      const auto first = static_cast<std::size_t>(std::min_element(least.begin(), least.end()) - least.begin());
      if (const auto candidate = candidate_on(stage, choices[first], Split::tensor, free, ignored))
        possible = candidate->seconds;
    }
    for (std::size_t i = 0; i < choices.size(); ++i) {
      const auto& choice = choices[i];
      if (least[i] > std::min(possible, best ? best->seconds : possible)) continue;
      auto candidate = candidate_on(stage, choice, Split::tensor, free, shortfall);
      if (!candidate) continue;
      std::uint64_t left = std::numeric_limits<std::uint64_t>::max();
      for (const auto card : choice[0]) left = std::min(left, free[card]);
      const bool better =
          !best || std::tuple(candidate->seconds, candidate->cards) < std::tuple(best->seconds, best->cards) ||
          (candidate->seconds == best->seconds && candidate->cards == best->cards && left > best_left);
      if (!better) continue;
      best = std::move(candidate);
      best_left = left;
    }
    return best;
  }

  std::string too_little(const Shortfall& shortfall) const {
    return "model '" + demand_.model + "' does not fit cluster '" + cluster_.name + "': card " +
           card_name(shortfall.card) + " has " + text_of_bytes(static_cast<double>(shortfall.available)) +
           " for the " + std::string(name_of(shortfall.stage)) + ", which needs at least " +
           text_of_bytes(static_cast<double>(shortfall.needed)) + " there (" +
           text_of_bytes(static_cast<double>(shortfall.missing())) + " too little)";
  }

  Result<Choice> choose() {
    Memory all;
    for (const auto& view : views_) all.push_back(view.memory);
    const std::string hint = "add cards or memory, or ask for fewer or smaller frames";
    // The least that the other stages can take, for stopping early.
    double others_least = 0;
    for (std::size_t i = 0; i < demand_.stages.size(); ++i) {
      if (i == denoiser_) continue;
      Shortfall shortfall;
      const auto alone = best_of(i, all, shortfall);
      if (!alone) return infeasible(too_little(shortfall), hint);
      others_least += alone->seconds;
    }
    std::vector<Candidate> candidates;
    double steps = 0;
    if (denoiser_ < demand_.stages.size()) {
      Shortfall shortfall;
      candidates = denoiser_candidates(all, shortfall);
      if (candidates.empty()) return infeasible(too_little(shortfall), hint);
      steps = std::max(1U, demand_.stages[denoiser_].steps);
    } else {
      candidates.emplace_back();
    }
    std::optional<Choice> best;
    double best_seconds = std::numeric_limits<double>::infinity();
    Shortfall shortfall;
    for (const auto& candidate : candidates) {
      if (candidate.seconds * steps + others_least >= best_seconds) break;
      Shortfall own;
      auto choice = complete(candidate, all, own);
      if (!choice) {
        note(shortfall, own);
        note(too_large_[candidate.shape], own);
        continue;
      }
      double seconds = 0;
      for (std::size_t i = 0; i < choice->size(); ++i)
        seconds += (*choice)[i].seconds * (i == denoiser_ ? steps : 1);
      if (seconds < best_seconds) {
        best_seconds = seconds;
        best = std::move(choice);
      }
    }
    if (!best) return infeasible(too_little(shortfall), hint);
    for (const auto& candidate : candidates) {
      auto& fastest = by_shape_[candidate.shape];
      if (!fastest) fastest = candidate.seconds;
    }
    return std::move(*best);
  }

  /// The other stages around a denoiser: largest first, then smallest first if that does not fit.
  std::optional<Choice> complete(const Candidate& denoiser, const Memory& all, Shortfall& shortfall) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < demand_.stages.size(); ++i)
      if (i != denoiser_) order.push_back(i);
    const auto weight = [&](std::size_t i) {
      const auto& stage = demand_.stages[i];
      return rank_bill(demand_, stage, Split::tensor, std::max(1U, stage.slices), false).total();
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return weight(a) > weight(b); });
    for (int attempt = 0; attempt < 2; ++attempt) {
      auto free = all;
      Choice choice(demand_.stages.size());
      if (denoiser_ < demand_.stages.size()) {
        take(denoiser, demand_.stages[denoiser_], free);
        choice[denoiser_] = denoiser;
      }
      bool complete = true;
      for (const auto i : order) {
        Shortfall own;
        auto placed = best_of(i, free, own);
        if (!placed) {
          note(shortfall, own);
          complete = false;
          break;
        }
        take(*placed, demand_.stages[i], free);
        choice[i] = std::move(*placed);
      }
      if (complete) return choice;
      std::reverse(order.begin(), order.end());
    }
    return std::nullopt;
  }

  // ---- The plan -------------------------------------------------------------------------------------------

  void fill(Plan& plan, const Choice& chosen) {
    plan.exhaustive = exhaustive_;
    for (std::uint32_t card = 0; card < views_.size(); ++card)
      plan.bills.push_back({card, 0, 0, 0, views_[card].memory});
    std::vector<std::vector<std::uint64_t>> lanes(views_.size());  // Of each card, by stage.
    double rate_sum = 0, attention_sum = 0;
    for (std::uint32_t card = 0; card < views_.size(); ++card) {
      if (lost_.contains(card)) continue;
      rate_sum += views_[card].linear;
      attention_sum += views_[card].attention;
    }
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const auto& stage = demand_.stages[i];
      const auto& placed = chosen[i].placed;
      plan.stages.push_back(placed);
      plan.predicted.push_back(predicted(cluster_, views_, demand_, stage, placed));
      for (const auto& group : placed.groups)
        for (const auto& rank : group.ranks) {
          const auto bill = rank_bill(demand_, stage, placed, rank);
          plan.bills[rank.card].weights += bill.weights;
          lanes[rank.card].push_back(bill.activations);
        }
      const double times = stage.kind == StageKind::denoiser ? std::max(1U, stage.steps) : 1;
      plan.predicted_video_seconds += times * plan.predicted.back().total_seconds();
      // No sharing can beat all cards at once; what cannot be split is at best on the fastest card.
      double least =
          (stage.flops_linear / rate_sum + stage.flops_attention / attention_sum) * std::max(1U, stage.branches);
      if (stage.slices <= 1) {
        least = std::numeric_limits<double>::infinity();
        for (const auto card : allowed_[i]) least = std::min(least, stage_seconds_on(stage, views_[card]));
      }
      plan.lower_bound_seconds += times * least;
      if (stage.kind == StageKind::denoiser) {
        plan.steps = std::max(1U, stage.steps);
        plan.links = link_loads(cluster_, demand_, stage, placed);
      }
    }
    for (auto& bill : plan.bills) {
      // A video is in one stage at a time, and a stage works on one video.
      auto& open = lanes[bill.card];
      std::sort(open.begin(), open.end(), std::greater<>());
      if (open.size() > deployment_.admission.max_in_flight) open.resize(deployment_.admission.max_in_flight);
      if (open.empty()) continue;
      bill.activations = open.front();
      bill.overlap = std::accumulate(open.begin() + 1, open.end(), std::uint64_t{0});
    }
    if (denoiser_ < chosen.size()) explain(plan, chosen[denoiser_]);
  }

  void explain(Plan& plan, const Candidate& chosen) const {
    std::vector<std::tuple<double, std::string, std::string>> rows;
    for (const auto& [shape, seconds] : by_shape_) {
      if (shape == chosen.shape || !seconds) continue;
      char percent[32];
      std::snprintf(percent, sizeof percent, "%.0f", 100 * (*seconds / std::max(chosen.seconds, 1e-300) - 1));
      const auto small = too_large_.find(shape);
      std::string why =
          *seconds >= chosen.seconds
              ? (std::string(percent) == "0" ? std::string("no faster: ") : std::string(percent) + "% slower: ") +
                    text_of_seconds(*seconds) + " a step against " + text_of_seconds(chosen.seconds)
          : small != too_large_.end() ? memory_reason(small->second)
                                      : "faster alone, but the other stages lose more";
      rows.emplace_back(*seconds, shape, std::move(why));
    }
    std::sort(rows.begin(), rows.end());
    for (const auto& [seconds, shape, why] : rows)
      if (plan.rejected.size() < rejected_shown_max) plan.rejected.push_back({"denoiser " + shape, why});
    for (const auto& [shape, shortfall] : too_large_)
      if ((!by_shape_.contains(shape) || !by_shape_.at(shape)) && shape != chosen.shape &&
          plan.rejected.size() < rejected_shown_max)
        plan.rejected.push_back({"denoiser " + shape, memory_reason(shortfall)});
  }

  std::string memory_reason(const Shortfall& shortfall) const {
    return card_name(shortfall.card) + " needs " + text_of_bytes(static_cast<double>(shortfall.needed)) + " of " +
           text_of_bytes(static_cast<double>(shortfall.available)) +
           (shortfall.stage == StageKind::denoiser ? "" : " for the " + std::string(name_of(shortfall.stage)));
  }

  const ClusterSpec& cluster_;
  const DeploymentSpec& deployment_;
  const Demand& demand_;
  const std::set<std::uint32_t>& lost_;
  const std::vector<CardView> views_;
  std::vector<Cards> allowed_;  // Per stage, ascending.
  std::size_t denoiser_ = 0;
  bool exhaustive_ = true;
  std::map<std::string, Shortfall> too_large_;
  std::map<std::string, std::optional<double>> by_shape_;
};

}  // namespace

std::vector<std::uint32_t> share_out(std::uint32_t slices, std::span<const double> seconds_per_slice,
                                     std::span<const std::uint32_t> most) {
  const auto ranks = seconds_per_slice.size();
  if (ranks == 0 || ranks > slices || most.size() != ranks) return {};
  std::uint64_t room = 0;
  for (const auto one : most) {
    if (one == 0) return {};
    room += one;
  }
  if (room < slices) return {};
  std::vector<std::uint32_t> shares(ranks, 1);
  // Equal up to rounding is equal, and then the earlier rank takes it: 3 * (1/3) must not decide a placement.
  constexpr double less = 1 - 1e-9, never = std::numeric_limits<double>::infinity();
  std::vector<double> with_another(ranks);  // Seconds of a rank with one slice more.
  const auto look_ahead = [&](std::size_t i) {
    with_another[i] = shares[i] < most[i] ? (shares[i] + 1) * seconds_per_slice[i] : never;
  };
  for (std::size_t i = 0; i < ranks; ++i) look_ahead(i);
  for (auto left = slices - static_cast<std::uint32_t>(ranks); left > 0; --left) {
    std::size_t next = 0;
    for (std::size_t i = 1; i < ranks; ++i)
      if (with_another[i] < less * with_another[next]) next = i;
    ++shares[next];
    look_ahead(next);
  }
  return shares;
}

Result<Plan> make_plan(const ClusterSpec& cluster, const DeploymentSpec& deployment, const Demand& demand,
                       const CardConditions& conditions) {
  const auto planned = [&](bool streamed) -> Result<Plan> {
    auto asked = demand;
    asked.streamed_weights = streamed;
    ORRERY_TRY(plan, Planner(cluster, deployment, asked, conditions).run());
    plan.streamed = streamed;
    return plan;
  };
  if (deployment.weights == WeightPlacement::streamed) return planned(true);
  auto resident = planned(false);
  if (resident.ok() || deployment.weights == WeightPlacement::resident) return resident;
  // What still does not fit then is the least that is missing.
  return planned(true);
}

std::set<std::uint32_t> spare_cards(const ClusterSpec& cluster, std::uint32_t count) {
  struct Node {
    Cards left;  // The next to give is the last.
    std::size_t given = 0;
  };
  std::vector<Node> nodes;
  std::uint32_t card = 0;
  for (const auto& node : cluster.nodes) {
    std::vector<std::pair<double, std::uint32_t>> own;
    for (const auto& one : node.cards) {
      double rate = 0;
      for (const auto& [dtype, value] : cluster.type_of(one).compute) rate = std::max(rate, value);
      own.emplace_back(rate * one.compute_share, card++);
    }
    std::stable_sort(own.begin(), own.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    nodes.emplace_back();
    for (const auto& [rate, index] : own) nodes.back().left.push_back(index);
  }
  std::set<std::uint32_t> spares;
  while (spares.size() < count && spares.size() + 1 < card) {
    auto* from = &nodes.front();
    for (auto& node : nodes)
      if (node.left.size() > from->left.size() ||
          (node.left.size() == from->left.size() && node.given <= from->given))
        from = &node;
    spares.insert(from->left.back());
    from->left.pop_back();
    ++from->given;
  }
  return spares;
}

}  // namespace orrery::topology
