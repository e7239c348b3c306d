#include "topology/plan.hpp"

#include <string>

#include "base/digest.hpp"
#include "base/json.hpp"
#include "base/yaml.hpp"

namespace orrery::topology {

std::string_view name_of(StageKind kind) {
  switch (kind) {
    case StageKind::text_guardrail: return "text_guardrail";
    case StageKind::text_encoder: return "text_encoder";
    case StageKind::denoiser: return "denoiser";
    case StageKind::decoder: return "decoder";
    case StageKind::video_guardrail: return "video_guardrail";
  }
  return "denoiser";
}

std::string_view name_of(Split split) { return split == Split::tensor ? "tensor" : "sequence"; }

std::string Plan::canonical() const {
  OrderedJson cards_json = OrderedJson::array(), stages_json = OrderedJson::array();
  for (const auto& card : cards)
    cards_json.push_back(OrderedJson::array({card.node, card.index, card.type, card.memory_bytes, card.threads}));
  for (const auto& stage : stages) {
    OrderedJson groups = OrderedJson::array();
    for (const auto& group : stage.groups) {
      OrderedJson ranks = OrderedJson::array();
      for (const auto& rank : group.ranks) ranks.push_back(OrderedJson::array({rank.card, rank.slices}));
      groups.push_back(std::move(ranks));
    }
    stages_json.push_back({{"kind", name_of(stage.kind)},
                           {"split", name_of(stage.split)},
                           {"slices", stage.slices},
                           {"groups", std::move(groups)}});
  }
  OrderedJson all{
      {"cluster", cluster}, {"model", model}, {"cards", std::move(cards_json)}, {"stages", std::move(stages_json)}};
  if (streamed) all["weights"] = "streamed";
  return all.dump(-1, ' ', true, OrderedJson::error_handler_t::replace);
}

std::uint64_t Plan::digest() const { return std::stoull(sha256_of(canonical()).substr(0, 16), nullptr, 16); }

const PlannedStage* Plan::stage(StageKind kind) const {
  for (const auto& one : stages)
    if (one.kind == kind) return &one;
  return nullptr;
}

const PredictedStage* Plan::prediction(StageKind kind) const {
  for (const auto& one : predicted)
    if (one.kind == kind) return &one;
  return nullptr;
}

std::string Plan::card_name(std::uint32_t card) const {
  ORRERY_CHECK(card < cards.size());
  return cards[card].node + ":" + std::to_string(cards[card].index);
}

}  // namespace orrery::topology
