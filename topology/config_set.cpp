#include "topology/config_set.hpp"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <set>
#include <utility>

#include "topology/schema_text.hpp"

namespace orrery::topology {
namespace {

constexpr std::size_t file_count_max = 1000;

std::string name_check(const std::string& name) {
  const bool good = !name.empty() && name.size() <= 63 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  });
  return good ? "" : "should be 1 to 63 letters, digits, '-', '_' or '.'";
}

const Schema<Metadata>& metadata_schema() {
  static const Schema<Metadata> schema =
      Schema<Metadata>("metadata", "Who a document is.")
          .field("name", &Metadata::name, text(), "How other documents refer to this one.",
                 {.required = true, .check = name_check})
          .field("labels", &Metadata::labels, map_of(text(), "label"), "Free labels.", {.standard = "none"})
          .field("annotations", &Metadata::annotations, map_of(text(), "name"), "Free notes.", {.standard = "none"});
  return schema;
}

std::string place_of(const YamlNode& node) {
  return node.file() + (node.line > 0 ? ":" + std::to_string(node.line) : "");
}

template <class T>
std::vector<std::string> names_in(const std::map<std::string, T>& table) {
  std::vector<std::string> names;
  for (const auto& [name, value] : table) names.push_back(name);
  return names;
}

std::string joined_names(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const std::vector<std::string>& known_kinds() {
  static const std::vector<std::string> kinds{"Cluster",    "CardProfile", "Model", "Deployment",
                                              "Experiment", "Scenario",    "Plan"};
  return kinds;
}

const YamlNode& Document::spec() const { return root.nearest("spec"); }

/// Fills a ConfigSet, in the order that references need: cards, clusters, models, deployments.
class ConfigSet::Loader {
public:
  Loader(const ConfigOptions& options, ConfigSet& into)
      : options_(options), into_(into), reader_(into.findings_, options.environment) {}

  void run() {
    for (const auto& input : options_.inputs) read_input(input);
    for (const auto& text : options_.overrides) apply(text);
    read_shipped_cards();
    for (const auto& document : into_.documents_)
      if (document.kind == "CardProfile") {
        auto& profile = into_.card_types_[document.name];
        profile = CardProfile{};
        card_profile_schema().read(document.spec(), "spec", profile, reader_);
        profile.name = document.name;
      }
    for (const auto& document : into_.documents_) {
      if (document.kind == "Cluster")
        into_.clusters_[document.name] = read_cluster(document.spec(), document.name, into_.card_types_, reader_);
      if (document.kind == "Model") into_.models_[document.name] = read_model(document.spec(), document.name, reader_);
      if (document.kind == "Deployment")
        into_.deployments_[document.name] = read_deployment(document.spec(), document.name, reader_);
      if (document.kind == "Scenario") into_.scenarios_[document.name] = read_scenario(document.spec(), document.name, reader_);
      if (document.kind == "Experiment")
        into_.experiments_[document.name] = read_experiment(document.spec(), document.name, reader_);
    }
    read_shipped_deployments();
    check_references();
  }

private:
  void complain_about(const std::string& file, std::string code, std::string message, std::string hint = "") {
    Finding finding;
    finding.file = file;
    finding.code = std::move(code);
    finding.message = std::move(message);
    finding.hint = std::move(hint);
    into_.findings_.push_back(std::move(finding));
  }

  void read_input(const std::string& input) {
    if (input == "-") {
      // One byte more than the limit is enough to see that it is passed.
      std::string text((std::size_t{1} << 20) + 1, '\0');
      std::cin.read(text.data(), static_cast<std::streamsize>(text.size()));
      text.resize(static_cast<std::size_t>(std::cin.gcount()));
      add_all("<stdin>", read_yaml("<stdin>", text, into_.findings_));
      return;
    }
    std::error_code failed;
    if (!std::filesystem::is_directory(input, failed)) {
      add_all(input, read_yaml_file(input, into_.findings_));
      return;
    }
    const auto files = yaml_files_in(input);
    if (files.empty()) complain_about(input, "E100", "the folder holds no .yaml file");
    for (const auto& file : files) add_all(file, read_yaml_file(file, into_.findings_));
  }

  std::vector<std::string> yaml_files_in(const std::string& folder) {
    std::vector<std::string> files;
    std::error_code failed;
    for (std::filesystem::recursive_directory_iterator at(folder, failed), end; !failed && at != end;
         at.increment(failed)) {
      const auto& path = at->path();
      if (path.filename().string().starts_with('.')) {
        if (at->is_directory(failed)) at.disable_recursion_pending();
        continue;
      }
      if ((path.extension() == ".yaml" || path.extension() == ".yml") && at->is_regular_file(failed))
        files.push_back(path.string());
      if (files.size() > file_count_max) {
        complain_about(folder, "E107", "the folder holds more than 1000 .yaml files", "name the files");
        break;
      }
    }
    if (failed) complain_about(folder, "E100", "the folder cannot be read: " + failed.message());
    std::sort(files.begin(), files.end());
    return files;
  }

  void add_all(const std::string& file, std::vector<YamlNode> nodes) {
    std::error_code failed;
    const auto canonical = std::filesystem::weakly_canonical(file, failed).string();
    if (file != "<stdin>" && !read_files_.insert(canonical).second) return;  // The same file named twice.
    for (auto& node : nodes)
      if (auto document = document_of(std::move(node), reader_)) add(std::move(*document));
  }

  static std::optional<Document> document_of(YamlNode root, YamlReader& reader) {
    Document document;
    document.root = std::move(root);
    const auto& node = document.root;
    if (!detail::expect_map(node, "a document", reader)) return std::nullopt;
    const auto* version = node.find("apiVersion");
    const auto* kind = node.find("kind");
    const auto* metadata = node.find("metadata");
    bool good = true;
    if (version == nullptr && kind == nullptr) {
      reader.complain(node, "E109", "", "this is no Orrery document: it has neither apiVersion nor kind",
                      "it should begin with 'apiVersion: orrery/v1'");
      return std::nullopt;
    }
    if (version == nullptr) {
      reader.complain(node, "E104", "apiVersion", "is missing", "write 'apiVersion: orrery/v1'");
      good = false;
    } else if (version->text != "orrery/v1") {
      reader.complain(*version, "E109", "apiVersion", "should be orrery/v1, not '" + shown(version->text) + "'");
      good = false;
    }
    if (kind == nullptr) {
      reader.complain(node, "E104", "kind", "is missing", "known: " + joined_names(known_kinds()));
      good = false;
    } else if (std::find(known_kinds().begin(), known_kinds().end(), kind->text) == known_kinds().end()) {
      reader.complain(*kind, "E109", "kind", "'" + shown(kind->text) + "' is not known",
                      suggestion(kind->text, known_kinds()));
      good = false;
    } else {
      document.kind = kind->text;
    }
    if (metadata == nullptr) {
      reader.complain(node, "E104", "metadata.name", "is missing");
      good = false;
    } else {
      Metadata read;
      good = metadata_schema().read(*metadata, "metadata", read, reader) && good;
      document.name = read.name;
      document.labels = read.labels;
    }
    if (node.find("spec") == nullptr) {
      reader.complain(node, "E104", "spec", "is missing");
      good = false;
    }
    detail::refuse_unknown_keys(node, "", {"apiVersion", "kind", "metadata", "spec"}, reader);
    // With a kind, the rest is read in spite of other mistakes, so that all are reported at once.
    if (document.kind.empty() || node.find("spec") == nullptr) return std::nullopt;
    if (!good && document.name.empty()) document.name = "?" + place_of(node);
    return document;
  }

  void add(Document document) {
    for (const auto& other : into_.documents_)
      if (other.kind == document.kind && other.name == document.name) {
        reader_.complain(document.root.nearest("metadata.name"), "E202", "metadata.name",
                         "'" + shown(document.name) + "' is taken: another " + document.kind + " has it at " +
                             place_of(other.root.nearest("metadata.name")));
        return;
      }
    into_.documents_.push_back(std::move(document));
  }

  /// --set: the first key decides which kind of document is meant.
  void apply(const std::string& text) {
    const auto source = "--set " + shown(text);
    const auto equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      complain_about(source, "E205", "an override is written PATH=VALUE", "e.g. parallelism.tensor=4");
      return;
    }
    auto path = text.substr(0, equals);
    if (path.starts_with("spec.")) path = path.substr(5);
    const auto first = path.substr(0, path.find_first_of(".["));
    const auto value = read_yaml_value(source, text.substr(equals + 1), into_.findings_);
    const std::vector<std::pair<std::string, std::vector<std::string>>> owners{
        {"Cluster", cluster_keys()},
        {"Model", model_keys()},
        {"Deployment", deployment_keys()},
        {"CardProfile", card_profile_schema().keys()},
        {"Scenario", scenario_keys()},
        {"Experiment", experiment_keys()}};
    std::string kind;
    std::vector<std::string> all_keys;
    // Scenario and Experiment share keys: the kind that is there.
    const auto present = [&](const std::string& name) {
      return std::any_of(into_.documents_.begin(), into_.documents_.end(), [&](const Document& one) { return one.kind == name; });
    };
    for (const auto& [name, keys] : owners) {
      all_keys.insert(all_keys.end(), keys.begin(), keys.end());
      if ((kind.empty() || !present(kind)) && std::find(keys.begin(), keys.end(), first) != keys.end() && (kind.empty() || present(name))) kind = name;
    }
    std::size_t count = 0;
    const auto set_in = [&](Document& document) {
      ++count;
      if (auto done = set_value(document.root, "spec." + path, value); !done.ok())
        complain_about(source, "E205", done.error().message);
    };
    for (auto& document : into_.documents_)
      if (!kind.empty() && document.kind == kind) set_in(document);
    if (count == 0 && kind == "Deployment") {
      Findings none;
      auto documents =
          read_yaml(source, "{apiVersion: orrery/v1, kind: Deployment, metadata: {name: default}, spec: {}}", none);
      into_.documents_.push_back({"Deployment", "default", {}, std::move(documents.front())});
      set_in(into_.documents_.back());
    } else if (count == 0 && kind.empty()) {
      complain_about(source, "E205", "no document has the key '" + shown(first) + "' in its spec",
                     suggestion(first, all_keys));
    } else if (count == 0) {
      complain_about(source, "E205", "there is no " + kind + " document to set it in");
    }
  }

  std::vector<Document> shipped_documents(const std::string& folder) {
    std::vector<Document> documents;
    const auto path = std::filesystem::path(options_.configs_folder) / folder;
    std::error_code failed;
    if (options_.configs_folder.empty() || !std::filesystem::is_directory(path, failed)) return documents;
    for (const auto& file : yaml_files_in(path.string()))
      for (auto& node : read_yaml_file(file, into_.findings_))
        if (auto document = document_of(std::move(node), reader_)) documents.push_back(std::move(*document));
    return documents;
  }

  void read_shipped_cards() {
    for (const auto& document : shipped_documents("cards")) {
      if (document.kind != "CardProfile" || is_own(document)) continue;
      auto& profile = into_.card_types_[document.name];
      profile = CardProfile{};
      card_profile_schema().read(document.spec(), "spec", profile, reader_);
      profile.name = document.name;
    }
  }

  void read_shipped_deployments() {
    bool missing = false;
    for (const auto& [name, scenario] : into_.scenarios_)
      missing |= !scenario.deployment.empty() && !into_.deployments_.contains(scenario.deployment);
    for (const auto& [name, experiment] : into_.experiments_)
      missing |= !experiment.deployment.empty() && !into_.deployments_.contains(experiment.deployment);
    if (!missing) return;
    for (const auto& document : shipped_documents("deployments"))
      if (document.kind == "Deployment" && !is_own(document))
        into_.shipped_deployments_[document.name] = read_deployment(document.spec(), document.name, reader_);
  }

  /// Whether the files of this run hold it themselves, and so report on it.
  bool is_own(const Document& document) const {
    return std::any_of(into_.documents_.begin(), into_.documents_.end(),
                       [&](const Document& own) { return own.kind == document.kind && own.name == document.name; });
  }

  void check_references() {
    bool cluster_missing = false, model_missing = false;
    for (const auto* table : {&into_.deployments_, &into_.shipped_deployments_})
      for (const auto& [name, deployment] : *table) {
        cluster_missing |= !deployment.cluster.empty() && !into_.clusters_.contains(deployment.cluster);
        model_missing |= !deployment.model.empty() && !into_.models_.contains(deployment.model);
      }
    if (cluster_missing)
      for (const auto& document : shipped_documents("clusters"))
        if (document.kind == "Cluster" && !is_own(document))
          into_.shipped_clusters_[document.name] =
              read_cluster(document.spec(), document.name, into_.card_types_, reader_);
    if (model_missing)
      for (const auto& document : shipped_documents("models"))
        if (document.kind == "Model" && !is_own(document))
          into_.shipped_models_[document.name] = read_model(document.spec(), document.name, reader_);
    for (const auto& document : into_.documents_) {
      if (document.kind == "Scenario")
        check_reference(document, "deployment", into_.scenarios_.at(document.name).deployment, into_.deployments_, into_.shipped_deployments_);
      if (document.kind == "Experiment")
        check_reference(document, "deployment", into_.experiments_.at(document.name).deployment, into_.deployments_, into_.shipped_deployments_);
      if (document.kind != "Deployment") continue;
      const auto& deployment = into_.deployments_.at(document.name);
      check_reference(document, "cluster", deployment.cluster, into_.clusters_, into_.shipped_clusters_);
      check_reference(document, "model", deployment.model, into_.models_, into_.shipped_models_);
    }
  }

  template <class T>
  void check_reference(const Document& document, const std::string& key, const std::string& name,
                       const std::map<std::string, T>& own, const std::map<std::string, T>& shipped) {
    if (name.empty() || own.contains(name) || shipped.contains(name)) return;
    auto known = names_in(own);
    for (const auto& other : names_in(shipped)) known.push_back(other);
    reader_.complain(document.root.nearest("spec." + key), "E201", "spec." + key,
                     "names the unknown " + key + " '" + shown(name) + "'",
                     known.empty() ? "add its file with -f" : suggestion(name, known));
  }

  const ConfigOptions& options_;
  ConfigSet& into_;
  YamlReader reader_;
  std::set<std::string> read_files_;
};

ConfigSet ConfigSet::read(const ConfigOptions& options) {
  ConfigSet set;
  Loader(options, set).run();
  return set;
}

namespace {

Error wrong(std::string message, std::string hint) {
  return Error{ErrorCode::invalid_config, std::move(message), std::move(hint)};
}

/// The named one, or the only one.
template <class T>
Status choose(const std::string& what, const std::string& name, const std::map<std::string, T>& own,
              const std::map<std::string, T>& shipped, T& into) {
  if (!name.empty()) {
    const auto found = own.find(name);
    into = found != own.end() ? found->second : shipped.at(name);
    return Done{};
  }
  if (own.empty()) return wrong("the files hold no " + what, "add one with -f");
  if (own.size() > 1)
    return wrong("the files hold several " + what + "s: " + joined_names(names_in(own)),
                 "add a Deployment that names one");
  into = own.begin()->second;
  return Done{};
}

}  // namespace

Result<Resolved> ConfigSet::resolve_without_model(const std::string& deployment) const {
  if (!ok()) return error_of(findings_);
  Resolved resolved;
  if (!deployment.empty()) {
    const auto& table = deployments_.contains(deployment) ? deployments_ : shipped_deployments_;
    const auto found = table.find(deployment);
    if (found == table.end())
      return wrong("there is no Deployment '" + shown(deployment) + "'",
                   suggestion(deployment, names_in(deployments_)));
    resolved.deployment = found->second;
  } else if (deployments_.size() > 1) {
    return wrong("the files hold several Deployments: " + joined_names(names_in(deployments_)), "name one");
  } else if (!deployments_.empty()) {
    resolved.deployment = deployments_.begin()->second;
  } else {
    resolved.deployment.name = "default";
  }
  ORRERY_TRY_DONE(choose("Cluster", resolved.deployment.cluster, clusters_, shipped_clusters_, resolved.cluster));
  resolved.deployment.cluster = resolved.cluster.name;
  return resolved;
}

Result<Resolved> ConfigSet::resolve(const std::string& deployment) const {
  ORRERY_TRY(resolved, resolve_without_model(deployment));
  ORRERY_TRY_DONE(choose("Model", resolved.deployment.model, models_, shipped_models_, resolved.model));
  resolved.deployment.model = resolved.model.name;
  return std::move(resolved);
}

std::vector<SchemaPage> metadata_pages() { return metadata_schema().pages(); }
OrderedJson metadata_json_schema() { return metadata_schema().json_schema(); }

}  // namespace orrery::topology
