#include "launch/bench_config.hpp"

#include <algorithm>
#include <cstdio>

namespace orrery::launch {
namespace {

using topology::ClusterNode;
using topology::Document;

std::string quoted(const std::string& text) { return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string scalar_of(const YamlNode& node) {
  if (node.is_null()) return "null";
  return node.quoted ? quoted(node.text) : node.text;
}

bool is_empty(const YamlNode& node) { return node.is_map() ? node.entries.empty() : node.is_sequence() && node.items.empty(); }

void write(const YamlNode& node, std::size_t indent, std::string& text) {
  const std::string margin(indent, ' ');
  const auto value = [&](const YamlNode& inner) {
    if (is_empty(inner)) {
      text += inner.is_map() ? " {}\n" : " []\n";
    } else if (inner.is_map() || inner.is_sequence()) {
      text += "\n";
      write(inner, indent + 2, text);
    } else {
      text += " " + scalar_of(inner) + "\n";
    }
  };
  for (const auto& entry : node.entries) {
    text += margin + scalar_of(entry.key) + ":";
    value(entry.value);
  }
  for (const auto& item : node.items) {
    text += margin + "-";
    value(item);
  }
}

/// The first document of a kind and name in the shipped folder.
Result<Document> shipped(const std::string& configs_folder, const std::string& folder, const std::string& kind, const std::string& name) {
  topology::ConfigOptions options;
  options.inputs = {configs_folder + "/" + folder};
  options.configs_folder = configs_folder;
  const auto set = topology::ConfigSet::read(options);
  for (const auto& document : set.documents())
    if (document.kind == kind && document.name == name) return document;
  return Error{ErrorCode::invalid_config, "the " + kind + " '" + name + "' was not found again"};
}

Result<Document> document_of(const topology::ConfigSet& set, const std::string& configs_folder, const std::string& folder, const std::string& kind,
                             const std::string& name) {
  for (const auto& document : set.documents())
    if (document.kind == kind && document.name == name) return document;
  return shipped(configs_folder, folder, kind, name);
}

/// What one flow value says, as a node.
YamlNode node_of(const std::string& text) {
  Findings none;
  return read_yaml_value("orrery bench", text, none);
}

Status set_in(Document& document, const std::string& path, const std::string& value) { return set_value(document.root, path, node_of(value)); }

std::string text_of(double number) {
  char text[64];
  std::snprintf(text, sizeof text, "%.17g", number);
  return text;
}

/// `nodes` of a cluster file with just these cards.
std::string flow_of(const topology::ClusterSpec& cluster, const std::vector<ClusterNode>& nodes) {
  std::string text = "[";
  for (const auto& node : nodes) {
    text += std::string(text.size() > 1 ? ", " : "") + "{hosts: " + quoted(node.name) + ", address: " + quoted(node.address) + ", cards: [";
    for (std::size_t i = 0; i < node.cards.size(); ++i) {
      const auto& card = node.cards[i];
      text += std::string(i > 0 ? ", " : "") + "{type: " + quoted(card.type) + ", memory: " + std::to_string(card.memory) + "B";
      if (cluster.type_of(card).backend == topology::Backend::cpu) text += ", threads: " + std::to_string(card.threads);
      text += ", compute_share: " + text_of(card.compute_share) + "}";
    }
    text += "]";
    if (!node.labels.empty()) {
      text += ", labels: {";
      for (auto at = node.labels.begin(); at != node.labels.end(); ++at)
        text += std::string(at == node.labels.begin() ? "" : ", ") + quoted(at->first) + ": " + quoted(at->second);
      text += "}";
    }
    text += "}";
  }
  return text + "]";
}

/// The first `node_count` nodes with `card_count` cards of them, as evenly as they have them; without a number of nodes, as
/// many as the cards need.
Result<std::vector<ClusterNode>> cut(const topology::ClusterSpec& cluster, std::optional<std::uint32_t> node_count, std::optional<std::uint32_t> card_count) {
  const auto too_few = [&](const std::string& what, std::size_t has) {
    return Error{ErrorCode::invalid_config, "the experiment asks for " + what + ", and cluster '" + cluster.name + "' has " + std::to_string(has)};
  };
  auto nodes = cluster.nodes;
  if (node_count) {
    if (*node_count > nodes.size()) return too_few(std::to_string(*node_count) + " nodes", nodes.size());
    nodes.resize(*node_count);
  }
  if (!card_count) return nodes;
  std::size_t available = 0;
  for (const auto& node : nodes) available += node.cards.size();
  if (*card_count > available) return too_few(std::to_string(*card_count) + " cards" + (node_count ? " on " + std::to_string(*node_count) + " nodes" : ""), available);
  std::vector<std::size_t> taken(nodes.size(), 0);
  for (std::size_t left = *card_count; left > 0;) {
    for (std::size_t i = 0; i < nodes.size() && left > 0; ++i) {
      auto take = std::min(left, nodes[i].cards.size() - taken[i]);
      if (node_count) take = std::min<std::size_t>(take, 1);  // One after the other, so that it stays even.
      taken[i] += take;
      left -= take;
    }
  }
  std::vector<ClusterNode> kept;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    nodes[i].cards.resize(taken[i]);
    if (taken[i] > 0) kept.push_back(std::move(nodes[i]));
  }
  return kept;
}

}  // namespace

std::string yaml_of(const YamlNode& node) {
  std::string text;
  write(node, 0, text);
  return text;
}

Result<BenchConfig> BenchConfig::create(const topology::ConfigSet& set, const std::string& deployment, const std::string& configs_folder) {
  BenchConfig config;
  ORRERY_TRY(resolved, set.resolve(deployment));
  config.resolved_ = std::move(resolved);
  const auto& names = config.resolved_;
  ORRERY_TRY(cluster, document_of(set, configs_folder, "clusters", "Cluster", names.cluster.name));
  config.cluster_ = std::move(cluster);
  const bool written = std::any_of(set.documents().begin(), set.documents().end(), [](const Document& one) { return one.kind == "Deployment"; });
  if (!deployment.empty() || written) {
    ORRERY_TRY(found, document_of(set, configs_folder, "deployments", "Deployment", names.deployment.name));
    config.deployment_ = std::move(found);
  } else {
    config.deployment_ = {"Deployment", "default", {}, node_of("{apiVersion: orrery/v1, kind: Deployment, metadata: {name: default}, spec: {}}")};
  }
  ORRERY_TRY_DONE(set_in(config.deployment_, "spec.cluster", quoted(names.cluster.name)));
  ORRERY_TRY(model, document_of(set, configs_folder, "models", "Model", names.model.name));
  config.model_ = std::move(model);
  ORRERY_TRY_DONE(set_in(config.deployment_, "spec.model", quoted(names.model.name)));
  // A folder that starts at the file does not any more. One whose variable is not set stays as it is written.
  if (const auto folder = topology::folder_of(names.model); folder.ok()) ORRERY_TRY_DONE(set_in(config.model_, "spec.folder", quoted(folder.value())));
  const auto& parts = names.model.components;
  for (const auto& [part, written_folder] : {std::pair("transformer", &parts.transformer), std::pair("text_encoder", &parts.text_encoder),
                                             std::pair("tokenizer", &parts.tokenizer), std::pair("vae", &parts.vae), std::pair("scheduler", &parts.scheduler)})
    if (!written_folder->empty())
      if (const auto folder = topology::component_folder_of(names.model, part); folder.ok())
        ORRERY_TRY_DONE(set_in(config.model_, std::string("spec.components.") + part, quoted(folder.value())));
  for (const auto& document : set.documents())
    if (document.kind == "CardProfile" || document.kind == "Experiment") config.others_.push_back(document);
  return config;
}

std::string BenchConfig::text() const {
  auto text = yaml_of(cluster_.root) + "---\n" + yaml_of(deployment_.root);
  text += "---\n" + yaml_of(model_.root);
  for (const auto& other : others_) text += "---\n" + yaml_of(other.root);
  return text;
}

Result<std::string> BenchConfig::text_of(const topology::ExperimentPoint& point) const {
  auto cluster = cluster_, deployment = deployment_;
  const auto number = [&](const char* axis) -> std::optional<std::uint32_t> {
    const auto* value = point.value(axis);
    if (value == nullptr) return std::nullopt;
    return static_cast<std::uint32_t>(std::stoul(*value));  // The schema has seen to it.
  };
  if (point.value("nodes") != nullptr || point.value("cards") != nullptr) {
    ORRERY_TRY(nodes, cut(resolved_.cluster, number("nodes"), number("cards")));
    ORRERY_TRY_DONE(set_in(cluster, "spec.nodes", flow_of(resolved_.cluster, nodes)));
  }
  if (const auto* transport = point.value("transport")) ORRERY_TRY_DONE(set_in(cluster, "spec.data.transport", *transport));
  for (const auto* axis : {"parallelism.tensor", "parallelism.sequence", "parallelism.cfg"})
    if (const auto* value = point.value(axis)) ORRERY_TRY_DONE(set_in(deployment, std::string("spec.") + axis, *value));
  auto text = "# " + point.name() + "\n" + yaml_of(cluster.root) + "---\n" + yaml_of(deployment.root);
  text += "---\n" + yaml_of(model_.root);
  for (const auto& other : others_)
    if (other.kind == "CardProfile") text += "---\n" + yaml_of(other.root);
  return text;
}

}  // namespace orrery::launch
