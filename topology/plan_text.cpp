#include "topology/plan_text.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>

#include "base/units.hpp"
#include "base/yaml.hpp"

namespace orrery::topology {
namespace {

/// Rows of cells in columns, two spaces apart; the last column is not padded.
class Table {
public:
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string text(std::size_t indent) const {
    std::vector<std::size_t> widths;
    for (const auto& cells : rows_) {
      widths.resize(std::max(widths.size(), cells.size()));
      for (std::size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
    }
    std::string out;
    for (const auto& cells : rows_) {
      std::string line(indent, ' ');
      for (std::size_t i = 0; i < cells.size(); ++i) {
        line += cells[i];
        if (i + 1 < cells.size()) line += std::string(widths[i] - cells[i].size() + 2, ' ');
      }
      while (line.ends_with(' ')) line.pop_back();
      out += line + "\n";
    }
    return out;
  }

private:
  std::vector<std::vector<std::string>> rows_;
};

/// "0-2,5" for ascending numbers.
std::string ranges_text(const std::vector<std::uint32_t>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t j = i;
    while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) ++j;
    text += (text.empty() ? "" : ",") + std::to_string(numbers[i]);
    if (j > i) text += "-" + std::to_string(numbers[j]);
    i = j + 1;
  }
  return text;
}

std::string bytes_text(std::uint64_t bytes) { return text_of_bytes(static_cast<double>(bytes)); }

/// Groups and clusters with more cards are printed in runs.
constexpr std::size_t long_group = 8;

/// "n1:0", or "n1:0 - n2:3".
std::string run_name(const Plan& plan, std::uint32_t first, std::uint32_t last) {
  return plan.card_name(first) + (first == last ? "" : " - " + plan.card_name(last));
}

std::string degree_text(const PlannedStage& stage) {
  std::size_t most = 0;
  for (const auto& group : stage.groups) most = std::max(most, group.ranks.size());
  if (most == 1) return stage.groups.size() > 1 ? "2 branches, one card each" : "one card";
  return std::to_string(most) + " cards, " + std::string(name_of(stage.split)) + " split" +
         (stage.groups.size() > 1 ? ", for each of 2 branches" : "");
}

std::string percent_text(double part) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f%%", 100 * part);
  return text;
}

// ---- Reading ----------------------------------------------------------------------------------------------

constexpr std::size_t card_count_limit = 65'536;
constexpr std::size_t list_limit = 262'144;

bool is_count(const Json& value) {
  return value.is_number_unsigned() || (value.is_number_integer() && value.get<std::int64_t>() >= 0);
}

/// Fields of one JSON object, with complaints that name the place. The first mistake is kept.
class Fields {
public:
  Fields(const Json& json, std::string place, std::string& wrong)
      : json_(json), place_(std::move(place)), wrong_(wrong) {
    if (!json_.is_object()) complain("", "should be an object");
  }

  std::string text(const char* key) {
    const auto* value = find(key);
    if (value == nullptr) return {};
    if (!value->is_string()) return complain(key, "should be text"), std::string();
    return value->get<std::string>();
  }
  std::uint64_t whole(const char* key, std::uint64_t most) {
    const auto* value = find(key);
    if (value == nullptr) return 0;
    if (!is_count(*value) || value->get<std::uint64_t>() > most)
      return complain(key, "should be a whole number, at most " + std::to_string(most)), 0;
    return value->get<std::uint64_t>();
  }
  std::uint32_t small(const char* key, std::uint32_t most) { return static_cast<std::uint32_t>(whole(key, most)); }
  double number(const char* key) {
    const auto* value = find(key);
    if (value == nullptr) return 0;
    const double read = value->is_number() ? value->get<double>() : -1;
    if (!std::isfinite(read) || read < 0) return complain(key, "should be a number, not negative"), 0;
    return read;
  }
  bool flag(const char* key) {
    const auto* value = find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) return complain(key, "should be true or false"), false;
    return value->get<bool>();
  }
  /// Calls `each` with every item of a list and its place.
  template <class Each>
  void list(const char* key, const Each& each) {
    const auto* value = find(key);
    if (value == nullptr) return;
    if (!value->is_array() || value->size() > list_limit) return complain(key, "should be a list");
    for (std::size_t i = 0; i < value->size() && wrong_.empty(); ++i)
      each((*value)[i], place_of(key) + "[" + std::to_string(i) + "]");
  }
  void complain(const std::string& key, const std::string& what) {
    if (wrong_.empty()) wrong_ = place_of(key) + " " + what;
  }

private:
  std::string place_of(const std::string& key) const {
    return key.empty() ? place_ : place_.empty() ? key : place_ + "." + key;
  }
  const Json* find(const char* key) {
    if (!wrong_.empty()) return nullptr;
    const auto found = json_.find(key);
    if (found == json_.end()) return complain(key, "is missing"), nullptr;
    return &*found;
  }

  const Json& json_;
  std::string place_;
  std::string& wrong_;
};

constexpr std::uint64_t bytes_limit = std::uint64_t{1} << 62;

const std::vector<StageKind> stage_kinds{StageKind::text_guardrail, StageKind::text_encoder, StageKind::denoiser,
                                         StageKind::decoder, StageKind::video_guardrail};

StageKind kind_in(Fields& fields) {
  const auto name = fields.text("kind");
  for (const auto kind : stage_kinds)
    if (name == name_of(kind)) return kind;
  fields.complain("kind", "is no stage: '" + shown(name) + "'");
  return StageKind::denoiser;
}

PlannedStage stage_in(const Json& json, const std::string& place, std::size_t card_count, std::string& wrong) {
  PlannedStage stage;
  Fields fields(json, place, wrong);
  stage.kind = kind_in(fields);
  const auto split = fields.text("split");
  if (split != "tensor" && split != "sequence") fields.complain("split", "should be tensor or sequence");
  stage.split = split == "sequence" ? Split::sequence : Split::tensor;
  stage.slices = fields.small("slices", 4096);
  if (stage.slices == 0) fields.complain("slices", "should be at least 1");
  std::set<std::uint32_t> used;
  fields.list("groups", [&](const Json& group_json, const std::string& group_place) {
    PlannedGroup group;
    Fields group_fields(group_json, group_place, wrong);
    std::vector<bool> have(stage.slices);
    std::uint32_t count = 0;
    group_fields.list("ranks", [&](const Json& rank_json, const std::string& rank_place) {
      PlannedRank rank;
      Fields rank_fields(rank_json, rank_place, wrong);
      rank.card = rank_fields.small("card", static_cast<std::uint32_t>(card_count - 1));
      if (!used.insert(rank.card).second) rank_fields.complain("card", "has a place in this stage already");
      rank_fields.list("slices", [&](const Json& slice, const std::string&) {
        if (!is_count(slice) || slice.get<std::uint64_t>() >= stage.slices)
          return rank_fields.complain("slices", "should be below " + std::to_string(stage.slices));
        const auto index = slice.get<std::uint32_t>();
        if (have[index] || (!rank.slices.empty() && rank.slices.back() > index))
          return rank_fields.complain("slices", "should be ascending and owned once");
        have[index] = true;
        ++count;
        rank.slices.push_back(index);
      });
      if (rank.slices.empty()) rank_fields.complain("slices", "should not be empty");
      group.ranks.push_back(std::move(rank));
    });
    if (count != stage.slices) group_fields.complain("ranks", "should own every slice");
    stage.groups.push_back(std::move(group));
  });
  if (stage.groups.empty() || stage.groups.size() > (stage.kind == StageKind::denoiser ? 2U : 1U))
    fields.complain("groups", "should be one, or two for the denoiser");
  return stage;
}

/// A JSON value as YAML in flow style where it is short, in block style where not.
void append_yaml(std::string& out, const OrderedJson& json, std::size_t indent) {
  const auto dumped = [](const OrderedJson& value) {
    return value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  };
  const std::string margin(indent, ' ');
  constexpr std::size_t flow_max = 100;
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      const auto flow = dumped(value);
      if (!value.is_structured() || value.empty() || flow.size() + indent + key.size() < flow_max) {
        out += margin + key + ": " + flow + "\n";
      } else {
        out += margin + key + ":\n";
        append_yaml(out, value, indent + 2);
      }
    }
    return;
  }
  for (const auto& value : json) {
    const auto flow = dumped(value);
    if (!value.is_structured() || value.empty() || flow.size() + indent < flow_max) {
      out += margin + "- " + flow + "\n";
    } else {
      std::string inner;
      append_yaml(inner, value, indent + 2);
      inner.replace(indent, 2, "- ");
      out += inner;
    }
  }
}

}  // namespace

std::string text_of(const Plan& plan, bool explain) {
  std::string out = "plan of model " + plan.model + " on cluster " + plan.cluster + ", " +
                    std::to_string(plan.cards.size()) + (plan.cards.size() == 1 ? " card" : " cards") + "\n\n";
  Table placement;
  placement.row({"STAGE", "GROUP", "CARD", "TYPE", "SLICES"});
  for (const auto& stage : plan.stages) {
    bool first = true;
    for (std::size_t g = 0; g < stage.groups.size(); ++g) {
      const auto group = stage.groups.size() == 1 ? "-" : g == 0 ? "prompt" : "negative";
      const auto& ranks = stage.groups[g].ranks;
      for (std::size_t i = 0; i < ranks.size();) {
        // Long groups: neighbours of one type that own as much are one row.
        std::size_t end = i + 1;
        const auto alike = [&](const PlannedRank& rank) {
          return rank.slices.size() == ranks[i].slices.size() &&
                 plan.cards[rank.card].type == plan.cards[ranks[i].card].type;
        };
        while (ranks.size() > long_group && end < ranks.size() && alike(ranks[end])) ++end;
        std::vector<std::uint32_t> slices;
        for (std::size_t j = i; j < end; ++j)
          slices.insert(slices.end(), ranks[j].slices.begin(), ranks[j].slices.end());
        const auto each = end - i > 1 ? ", " + std::to_string(ranks[i].slices.size()) + " each" : "";
        placement.row({first ? std::string(name_of(stage.kind)) : "", group,
                       run_name(plan, ranks[i].card, ranks[end - 1].card), plan.cards[ranks[i].card].type,
                       ranges_text(slices) + " of " + std::to_string(stage.slices) + each});
        first = false;
        i = end;
      }
    }
  }
  out += placement.text(0) + "\n";
  Table memory;
  memory.row({"CARD", "WEIGHTS", "ACTIVATIONS", "OVERLAP", "TOTAL", "BUDGET", "USED"});
  std::size_t idle = 0;
  for (std::size_t i = 0; i < plan.bills.size();) {
    const auto& bill = plan.bills[i];
    std::size_t end = i + 1;
    const auto alike = [&](const MemoryBill& other) {
      return std::tie(other.weights, other.activations, other.overlap, other.budget) ==
             std::tie(bill.weights, bill.activations, bill.overlap, bill.budget);
    };
    while (plan.bills.size() > long_group && end < plan.bills.size() && alike(plan.bills[end])) ++end;
    if (bill.total() == 0) {
      idle += end - i;
    } else {
      memory.row({run_name(plan, bill.card, plan.bills[end - 1].card), bytes_text(bill.weights),
                  bytes_text(bill.activations), bytes_text(bill.overlap), bytes_text(bill.total()),
                  bytes_text(bill.budget),
                  bill.budget > 0
                      ? percent_text(static_cast<double>(bill.total()) / static_cast<double>(bill.budget))
                      : "-"});
    }
    i = end;
  }
  out += memory.text(0);
  if (plan.streamed) out += "weights are streamed: they stay with the hosts, and cards hold what is used next\n";
  if (idle > 0) out += std::to_string(idle) + (idle == 1 ? " card is" : " cards are") + " not used\n";
  out += "\n";
  if (!plan.links.empty()) {
    Table links;
    links.row({"LINK", "FROM", "TO", "BYTES/STEP", "TIME/STEP"});
    for (const auto& link : plan.links)
      links.row({link.link_type, link.from, link.from == link.to ? "(within)" : link.to,
                 bytes_text(link.bytes_per_step), text_of_seconds(link.seconds_per_step)});
    out += links.text(0) + "\n";
  }
  Table times;
  times.row({"STAGE", "HOW", "COMPUTE", "EXCHANGE", "TOTAL"});
  for (std::size_t i = 0; i < plan.predicted.size() && i < plan.stages.size(); ++i) {
    const auto& one = plan.predicted[i];
    const auto name = std::string(name_of(one.kind)) + (one.kind == StageKind::denoiser ? ", one step" : "");
    times.row({name, degree_text(plan.stages[i]), text_of_seconds(one.compute_seconds),
               text_of_seconds(one.exchange_seconds), text_of_seconds(one.total_seconds())});
  }
  out += times.text(0);
  out += "\npredicted: " + text_of_seconds(plan.predicted_video_seconds) + " for one video of " +
         std::to_string(plan.steps) + (plan.steps == 1 ? " step" : " steps") + "; no plan can be below " +
         text_of_seconds(plan.lower_bound_seconds) + "\n";
  if (explain) {
    out += plan.exhaustive ? "every placement was compared; rejected, best of each form:\n"
                           : "candidate placements were compared; rejected, best of each form:\n";
    Table rejected;
    for (const auto& one : plan.rejected) rejected.row({one.what, one.why});
    out += plan.rejected.empty() ? "  none\n" : rejected.text(2);
  }
  return out;
}

OrderedJson json_of(const Plan& plan) {
  OrderedJson cards = OrderedJson::array(), stages = OrderedJson::array(), bills = OrderedJson::array(),
              links = OrderedJson::array(), predicted = OrderedJson::array(), rejected = OrderedJson::array();
  for (const auto& card : plan.cards)
    cards.push_back({{"node", card.node},
                     {"index", card.index},
                     {"type", card.type},
                     {"memory_bytes", card.memory_bytes},
                     {"relative_compute", card.relative_compute},
                     {"threads", card.threads},
                     {"host_bandwidth", card.host_bandwidth}});
  for (const auto& stage : plan.stages) {
    OrderedJson groups = OrderedJson::array();
    for (const auto& group : stage.groups) {
      OrderedJson ranks = OrderedJson::array();
      for (const auto& rank : group.ranks)
        ranks.push_back({{"card", rank.card}, {"name", plan.card_name(rank.card)}, {"slices", rank.slices}});
      groups.push_back({{"ranks", std::move(ranks)}});
    }
    stages.push_back({{"kind", name_of(stage.kind)},
                      {"split", name_of(stage.split)},
                      {"slices", stage.slices},
                      {"groups", std::move(groups)}});
  }
  for (const auto& bill : plan.bills)
    bills.push_back({{"card", bill.card},
                     {"name", plan.card_name(bill.card)},
                     {"weights", bill.weights},
                     {"activations", bill.activations},
                     {"overlap", bill.overlap},
                     {"budget", bill.budget}});
  for (const auto& link : plan.links)
    links.push_back({{"from", link.from},
                     {"to", link.to},
                     {"link_type", link.link_type},
                     {"bytes_per_step", link.bytes_per_step},
                     {"seconds_per_step", link.seconds_per_step}});
  for (const auto& one : plan.predicted)
    predicted.push_back({{"kind", name_of(one.kind)},
                         {"compute_seconds", one.compute_seconds},
                         {"exchange_seconds", one.exchange_seconds}});
  for (const auto& one : plan.rejected) rejected.push_back({{"what", one.what}, {"why", one.why}});
  return {{"cluster", plan.cluster},
          {"model", plan.model},
          {"cards", std::move(cards)},
          {"stages", std::move(stages)},
          {"bills", std::move(bills)},
          {"streamed", plan.streamed},
          {"links", std::move(links)},
          {"predicted", std::move(predicted)},
          {"steps", plan.steps},
          {"predicted_video_seconds", plan.predicted_video_seconds},
          {"lower_bound_seconds", plan.lower_bound_seconds},
          {"exhaustive", plan.exhaustive},
          {"rejected", std::move(rejected)}};
}

std::string yaml_of(const Plan& plan) {
  std::string out =
      "apiVersion: orrery/v1\nkind: Plan\nmetadata: {name: plan-" + plan.cluster + "-" + plan.model + "}\nspec:\n";
  append_yaml(out, json_of(plan), 2);
  return out;
}

Result<Plan> plan_from_json(const Json& json) {
  Plan plan;
  std::string wrong;
  Fields fields(json, "", wrong);
  plan.cluster = fields.text("cluster");
  plan.model = fields.text("model");
  fields.list("cards", [&](const Json& item, const std::string& place) {
    Fields card(item, place, wrong);
    PlannedCard read;
    read.node = card.text("node");
    read.index = card.small("index", 65'535);
    read.type = card.text("type");
    read.memory_bytes = card.whole("memory_bytes", bytes_limit);
    read.relative_compute = card.number("relative_compute");
    read.threads = card.small("threads", 4096);
    read.host_bandwidth = card.number("host_bandwidth");
    plan.cards.push_back(std::move(read));
  });
  if (plan.cards.empty() || plan.cards.size() > card_count_limit)
    fields.complain("cards", "should be 1 to 65536 cards");
  if (!wrong.empty()) return Error{ErrorCode::invalid_config, "plan: " + wrong};
  fields.list("stages", [&](const Json& item, const std::string& place) {
    plan.stages.push_back(stage_in(item, place, plan.cards.size(), wrong));
  });
  for (std::size_t i = 1; i < plan.stages.size(); ++i)
    if (plan.stages[i].kind <= plan.stages[i - 1].kind) fields.complain("stages", "should be in pipeline order");
  const auto last_card = static_cast<std::uint32_t>(plan.cards.size() - 1);
  fields.list("bills", [&](const Json& item, const std::string& place) {
    Fields bill(item, place, wrong);
    plan.bills.push_back({bill.small("card", last_card), bill.whole("weights", bytes_limit),
                          bill.whole("activations", bytes_limit), bill.whole("overlap", bytes_limit),
                          bill.whole("budget", bytes_limit)});
  });
  fields.list("links", [&](const Json& item, const std::string& place) {
    Fields link(item, place, wrong);
    LinkLoad read{link.text("from"), link.text("to"), link.text("link_type"), 0, 0};
    read.bytes_per_step = link.whole("bytes_per_step", bytes_limit);
    read.seconds_per_step = link.number("seconds_per_step");
    plan.links.push_back(std::move(read));
  });
  fields.list("predicted", [&](const Json& item, const std::string& place) {
    Fields one(item, place, wrong);
    const auto kind = kind_in(one);
    const double compute = one.number("compute_seconds");
    plan.predicted.push_back({kind, compute, one.number("exchange_seconds")});
  });
  plan.streamed = fields.flag("streamed");
  plan.steps = fields.small("steps", 1'000'000);
  plan.predicted_video_seconds = fields.number("predicted_video_seconds");
  plan.lower_bound_seconds = fields.number("lower_bound_seconds");
  plan.exhaustive = fields.flag("exhaustive");
  fields.list("rejected", [&](const Json& item, const std::string& place) {
    Fields one(item, place, wrong);
    auto what = one.text("what");
    plan.rejected.push_back({std::move(what), one.text("why")});
  });
  if (!wrong.empty()) return Error{ErrorCode::invalid_config, "plan: " + wrong};
  return plan;
}

}  // namespace orrery::topology
