// The only file that includes yaml-cpp. We build our own tree from its events, so limits hold before any tree
// exists, and so nothing of its conversions (yes = true, 010 = 8, .inf) can reach a setting.

#include "base/yaml.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <sstream>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include "base/file.hpp"

namespace orrery {
namespace {

constexpr std::uint64_t file_bytes_max = std::uint64_t{1} << 20;
constexpr std::size_t depth_max = 32;
constexpr std::size_t node_count_max = 20'000;

/// Length of the valid UTF-8 sequence at the start of `text`, or 0.
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const auto continues = [&](std::size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return continues(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const unsigned second = byte(1);
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return 0;
    return continues(1) && continues(2) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const unsigned second = byte(1);
    if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return 0;
    return continues(1) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const auto length = sequence_length(text);
    const auto first = static_cast<unsigned char>(text[0]);
    if (length == 0 || first < 0x20 || first == 0x7F) {
      out += first == '\t' ? ' ' : '?';
      text.remove_prefix(1);
    } else {
      out += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return out;
}

std::size_t code_points(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

std::shared_ptr<const YamlSource> source_of(const std::string& name, std::string_view text) {
  auto source = std::make_shared<YamlSource>();
  source->name = name;
  while (!text.empty()) {
    const auto end = text.find('\n');
    auto line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    source->lines.emplace_back(line);
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return source;
}

Finding finding_in(const YamlSource& source, std::uint32_t line, std::uint32_t column, std::uint32_t end_column,
                   std::string code, std::string message, std::string hint) {
  Finding finding;
  finding.file = source.name;
  finding.line = line;
  finding.column = column;
  finding.end_column = std::max(end_column, column + 1);
  finding.code = std::move(code);
  finding.message = std::move(message);
  finding.hint = std::move(hint);
  if (line >= 1 && line <= source.lines.size()) finding.source = source.lines[line - 1];
  return finding;
}

/// Thrown out of yaml-cpp's parser when a limit is passed; caught below.
struct LimitPassed {
  Finding finding;
};

/// Builds trees from events. One per file.
class TreeBuilder final : public YAML::EventHandler {
public:
  TreeBuilder(std::shared_ptr<const YamlSource> source, std::vector<YamlNode>& documents, Findings& findings)
      : source_(std::move(source)), documents_(documents), findings_(findings) {}

  void OnDocumentStart(const YAML::Mark&) override { open_.clear(); }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    auto made = node(mark, YamlNode::Kind::null, anchor, "?");
    // The word itself is kept: a setting may offer it.
    if (made.line <= source_->lines.size() && made.column - 1 < source_->lines[made.line - 1].size() &&
        source_->lines[made.line - 1].compare(made.column - 1, 4, "null") == 0)
      made.text = "null";
    add(std::move(made));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    auto made = node(mark, YamlNode::Kind::null, YAML::NullAnchor, "?");
    complain(made, "E106", "aliases are not allowed", "write the value out");
    add(std::move(made));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    auto made = node(mark, YamlNode::Kind::scalar, anchor, tag);
    made.text = value;
    made.quoted = tag == "!";
    const auto length =
        static_cast<std::uint32_t>(std::min<std::size_t>(value.size() + (made.quoted ? 2 : 0), 1'000'000));
    made.end_column = made.column + std::max(1U, length);
    if (made.line >= 1 && made.line <= source_->lines.size()) {
      const auto line_end = static_cast<std::uint32_t>(source_->lines[made.line - 1].size()) + 1;
      made.end_column = std::max(made.column + 1, std::min(made.end_column, line_end));
    }
    if (made.quoted && !closed(made))
      throw LimitPassed{
          finding_in(*source_, made.line, made.column, made.column + 1, "E101", "this quote is never closed", "")};
    add(std::move(made));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    enter(node(mark, YamlNode::Kind::sequence, anchor, tag));
  }
  void OnSequenceEnd() override { leave(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    enter(node(mark, YamlNode::Kind::map, anchor, tag));
  }
  void OnMapEnd() override { leave(); }

private:
  struct Open {
    YamlNode node;
    std::optional<YamlNode> key;
    std::set<std::string> keys;
  };

  void complain(const YamlNode& at, std::string code, std::string message, std::string hint) {
    findings_.push_back(finding_at(at, std::move(code), "", std::move(message), std::move(hint)));
  }

  YamlNode node(const YAML::Mark& mark, YamlNode::Kind kind, YAML::anchor_t anchor, const std::string& tag) {
    YamlNode made;
    made.kind = kind;
    made.line = static_cast<std::uint32_t>(std::max(0, mark.line)) + 1;
    made.column = static_cast<std::uint32_t>(std::max(0, mark.column)) + 1;
    made.end_column = made.column + 1;
    made.source = source_;
    if (++node_count_ > node_count_max)
      throw LimitPassed{finding_in(*source_, made.line, made.column, made.column + 1, "E107",
                                   "the file has more than 20000 values", "split it")};
    if (anchor != YAML::NullAnchor) complain(made, "E106", "anchors are not allowed", "write the value out");
    if (tag != "?" && tag != "!" && !tag.empty())
      complain(made, "E106", "tags are not allowed: '" + shown(tag) + "'", "remove it");
    return made;
  }

  /// yaml-cpp takes a quote that is never closed for one that ends with the file.
  bool closed(const YamlNode& scalar) const {
    if (scalar.line > source_->lines.size()) return true;
    const auto& first = source_->lines[scalar.line - 1];
    std::size_t at = scalar.column - 1;
    if (at >= first.size() || (first[at] != '"' && first[at] != '\'')) return true;
    const char quote = first[at++];
    for (std::size_t line = scalar.line - 1; line < source_->lines.size(); ++line, at = 0) {
      const auto& text = source_->lines[line];
      for (; at < text.size(); ++at) {
        if (quote == '"' && text[at] == '\\') {
          ++at;
        } else if (text[at] == quote) {
          if (quote == '\'' && at + 1 < text.size() && text[at + 1] == '\'') {
            ++at;
          } else {
            return true;
          }
        }
      }
    }
    return false;
  }

  void enter(YamlNode made) {
    if (open_.size() >= depth_max)
      throw LimitPassed{finding_in(*source_, made.line, made.column, made.column + 1, "E107",
                                   "nested more than 32 levels deep", "")};
    open_.push_back({std::move(made), std::nullopt, {}});
  }
  void leave() {
    auto made = std::move(open_.back().node);
    open_.pop_back();
    add(std::move(made));
  }
  void add(YamlNode made) {
    if (open_.empty()) {
      documents_.push_back(std::move(made));
      return;
    }
    auto& parent = open_.back();
    if (parent.node.is_sequence()) {
      parent.node.items.push_back(std::move(made));
    } else if (!parent.key) {
      if (!made.is_scalar()) {
        complain(made, "E105", "a key must be plain text", "");
        made.kind = YamlNode::Kind::null;
      }
      parent.key = std::move(made);
    } else {
      auto key = std::move(*parent.key);
      parent.key.reset();
      if (!key.is_scalar()) return;
      if (key.text == "<<") {
        complain(key, "E106", "merge keys are not allowed", "write the keys out");
      } else if (!parent.keys.insert(key.text).second) {
        complain(key, "E103", "key '" + shown(key.text) + "' appears twice in one map", "");
      } else {
        parent.node.entries.push_back({std::move(key), std::move(made)});
      }
    }
  }

  std::shared_ptr<const YamlSource> source_;
  std::vector<YamlNode>& documents_;
  Findings& findings_;
  std::vector<Open> open_;
  std::size_t node_count_ = 0;
};

/// yaml-cpp's terse sentences, made a little clearer.
std::string syntax_sentence(const std::string& terse) {
  static const std::array<std::pair<std::string_view, std::string_view>, 6> table{{
      {"end of map not found", "this map is never closed, or its indentation changes"},
      {"end of map flow not found", "this '{' is never closed"},
      {"end of sequence not found", "this list is never closed, or its indentation changes"},
      {"end of sequence flow not found", "this '[' is never closed"},
      {"illegal map value", "a ':' cannot stand here"},
      {"unknown token", "this character cannot start a value"},
  }};
  for (const auto& [seen, said] : table)
    if (terse == seen) return "not valid YAML: " + std::string(said);
  return "not valid YAML: " + shown(terse);
}

bool check_bytes(const std::string& name, std::string_view text, Findings& findings) {
  if (text.size() > file_bytes_max) {
    Finding finding;
    finding.file = name;
    finding.code = "E107";
    finding.message = "the file is larger than 1 MiB";
    findings.push_back(std::move(finding));
    return false;
  }
  std::uint32_t line = 1;
  std::size_t line_start = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto length = sequence_length(text.substr(at));
    if (length == 0 || text[at] == '\0') {
      const auto column = static_cast<std::uint32_t>(at - line_start + 1);
      findings.push_back(
          finding_in(*source_of(name, text), line, column, column + 1, "E108",
                     text[at] == '\0' ? "the file contains a NUL byte" : "the file is not valid UTF-8",
                     "save it as UTF-8 text"));
      return false;
    }
    if (text[at] == '\n') {
      ++line;
      line_start = at + 1;
    }
    at += length;
  }
  return true;
}

/// One step of a path: a key, or an index in brackets.
struct Step {
  std::string key;
  std::size_t index = 0;
  bool is_index = false;
};

std::optional<std::vector<Step>> steps_of(std::string_view path) {
  std::vector<Step> steps;
  std::size_t at = 0;
  while (at < path.size()) {
    if (path[at] == '[') {
      const auto end = path.find(']', at);
      const auto digits = path.substr(at + 1, end == std::string_view::npos ? 0 : end - at - 1);
      if (digits.empty() || digits.size() > 6 ||
          !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }))
        return std::nullopt;
      steps.push_back({"", static_cast<std::size_t>(std::stoul(std::string(digits))), true});
      at = end + 1;
    } else {
      if (path[at] == '.') {
        if (steps.empty()) return std::nullopt;
        ++at;
      } else if (!steps.empty()) {
        return std::nullopt;
      }
      const auto end = std::min(path.find_first_of(".[]", at), path.size());
      if (end == at) return std::nullopt;
      steps.push_back({std::string(path.substr(at, end - at)), 0, false});
      at = end;
    }
    if (steps.size() > depth_max) return std::nullopt;
  }
  if (steps.empty()) return std::nullopt;
  return steps;
}

}  // namespace

std::string_view name_of(Severity severity) {
  switch (severity) {
    case Severity::error: return "error";
    case Severity::warning: return "warning";
    case Severity::note: return "note";
  }
  return "error";
}

std::string Finding::headline() const {
  std::string text = file;
  if (line > 0) text += ":" + std::to_string(line) + ":" + std::to_string(column);
  text += ": " + std::string(name_of(severity)) + ": " + message;
  if (!hint.empty()) text += " (" + hint + ")";
  return text + " [" + code + "]";
}

std::string Finding::text() const {
  std::string text = headline() + "\n";
  if (line == 0 || source.empty()) return text;
  // A window of the line around the place: lines may be a megabyte long.
  constexpr std::size_t shown_max = 120;
  const std::size_t place = std::min<std::size_t>(column - 1, source.size());
  std::size_t begin = place > shown_max - 40 ? place - (shown_max - 40) : 0;
  while (begin < place && (static_cast<unsigned char>(source[begin]) & 0xC0U) == 0x80U) ++begin;
  std::size_t end = std::min(source.size(), begin + shown_max);
  while (end > begin && end < source.size() && (static_cast<unsigned char>(source[end]) & 0xC0U) == 0x80U) --end;
  const auto number = std::to_string(line);
  const std::string margin(number.size() < 5 ? 5 - number.size() : 0, ' ');
  const auto whole = std::string_view(source);
  const auto before = printable(whole.substr(begin, place - begin));
  text += margin + number + " | " + before + printable(whole.substr(place, end > place ? end - place : 0)) + "\n";
  const std::size_t marked_end = std::min<std::size_t>(end_column > 0 ? end_column - 1 : 0, end);
  const std::size_t width =
      marked_end > place ? std::max<std::size_t>(1, code_points(whole.substr(place, marked_end - place))) : 1;
  text += std::string(std::max<std::size_t>(5, number.size()), ' ') + " | " +
          std::string(code_points(before), ' ') + "^" + std::string(width - 1, '~') + "\n";
  return text;
}

OrderedJson Finding::json() const {
  return {{"file", printable(file)},
          {"line", line},
          {"column", column},
          {"end_column", end_column},
          {"severity", name_of(severity)},
          {"code", code},
          {"path", path},
          {"message", message},
          {"hint", hint}};
}

bool has_errors(const Findings& findings) {
  return std::any_of(findings.begin(), findings.end(),
                     [](const Finding& f) { return f.severity == Severity::error; });
}

std::string text_of(const Findings& findings) {
  std::vector<std::string> files;
  for (const auto& finding : findings)
    if (std::find(files.begin(), files.end(), finding.file) == files.end()) files.push_back(finding.file);
  std::string text;
  for (const auto& file : files) {
    std::vector<const Finding*> here;
    for (const auto& finding : findings)
      if (finding.file == file) here.push_back(&finding);
    std::stable_sort(here.begin(), here.end(), [](const Finding* a, const Finding* b) {
      return std::pair(a->line, a->column) < std::pair(b->line, b->column);
    });
    for (const auto* finding : here) text += finding->text();
  }
  return text;
}

Error error_of(const Findings& findings) {
  std::string message = "the configuration is wrong";
  std::size_t count = 0;
  for (const auto& finding : findings) {
    if (finding.severity != Severity::error) continue;
    if (count++ == 0) message = finding.headline();
  }
  if (count > 1) message += ", and " + std::to_string(count - 1) + " more";
  return Error{ErrorCode::invalid_config, message, "'orrery check' prints all of them with their lines"};
}

std::string shown(std::string_view text) {
  constexpr std::size_t bytes_max = 64;
  if (text.size() <= bytes_max) return printable(text);
  std::size_t end = bytes_max;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;
  return printable(text.substr(0, end)) + "...";
}

std::string_view YamlNode::kind_text() const {
  switch (kind) {
    case Kind::null: return "nothing";
    case Kind::scalar: return "a single value";
    case Kind::sequence: return "a list";
    case Kind::map: return "a map";
  }
  return "nothing";
}

const YamlNode* YamlNode::find(std::string_view key) const {
  for (const auto& entry : entries)
    if (entry.key.text == key) return &entry.value;
  return nullptr;
}

const YamlNode& YamlNode::nearest(std::string_view path) const {
  const YamlNode* at = this;
  const auto steps = steps_of(path);
  if (!steps) return *at;
  for (const auto& step : *steps) {
    if (step.is_index) {
      // A list of one may be written without brackets.
      if (step.index == 0 && !at->is_sequence()) continue;
      if (!at->is_sequence() || step.index >= at->items.size()) break;
      at = &at->items[step.index];
    } else {
      const auto* next = at->find(step.key);
      if (next == nullptr) break;
      at = next;
    }
  }
  return *at;
}

const std::string& YamlNode::file() const {
  static const std::string none;
  return source ? source->name : none;
}

Finding finding_at(const YamlNode& node, std::string code, std::string path, std::string message,
                   std::string hint) {
  static const YamlSource none;
  auto finding = finding_in(node.source ? *node.source : none, node.line, node.column, node.end_column,
                            std::move(code), std::move(message), std::move(hint));
  finding.path = std::move(path);
  return finding;
}

std::vector<YamlNode> read_yaml(const std::string& name, std::string_view text, Findings& findings) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  std::vector<YamlNode> documents;
  if (!check_bytes(name, text, findings)) return documents;
  const auto source = source_of(name, text);
  bool complete = false;
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    TreeBuilder builder(source, documents, findings);
    while (parser.HandleNextDocument(builder)) {
    }
    complete = true;
  } catch (const LimitPassed& passed) {
    findings.push_back(passed.finding);
  } catch (const YAML::Exception& error) {
    const auto line = static_cast<std::uint32_t>(std::max(0, error.mark.line)) + 1;
    const auto column = static_cast<std::uint32_t>(std::max(0, error.mark.column)) + 1;
    // What yaml-cpp says about a tab at the start of a line leads astray.
    const auto& lines = source->lines;
    const auto indent =
        line <= lines.size() ? lines[line - 1].substr(0, lines[line - 1].find_first_not_of(" \t")) : std::string();
    const auto tab = indent.find('\t');
    if (tab != std::string::npos) {
      const auto at = static_cast<std::uint32_t>(tab) + 1;
      findings.push_back(
          finding_in(*source, line, at, at + 1, "E101", "not valid YAML: a tab cannot indent", "use spaces"));
    } else {
      findings.push_back(finding_in(*source, line, column, column + 1, "E101", syntax_sentence(error.msg), ""));
    }
  }
  std::erase_if(documents, [](const YamlNode& document) { return document.is_null(); });
  if (complete && documents.empty() && !has_errors(findings)) {
    Finding finding;
    finding.file = name;
    finding.code = "E101";
    finding.message = "the file holds no document";
    finding.hint = "it should begin with 'apiVersion: orrery/v1'";
    findings.push_back(std::move(finding));
  }
  return documents;
}

std::vector<YamlNode> read_yaml_file(const std::string& path, Findings& findings) {
  auto text = read_text_file(path, file_bytes_max);
  if (!text.ok()) {
    Finding finding;
    finding.file = path;
    finding.code = "E100";
    finding.message = text.error().message;
    finding.hint = text.error().hint;
    findings.push_back(std::move(finding));
    return {};
  }
  return read_yaml(path, text.value(), findings);
}

YamlNode read_yaml_value(const std::string& name, std::string_view text, Findings& findings) {
  YamlNode value;
  auto documents = read_yaml(name, text, findings);
  if (documents.size() == 1) value = std::move(documents.front());
  // Nothing of the command line has a line number.
  const auto forget_place = [source = source_of(name, "")](auto&& self, YamlNode& node) -> void {
    node.line = node.column = node.end_column = 0;
    node.source = source;
    for (auto& item : node.items) self(self, item);
    for (auto& entry : node.entries) {
      self(self, entry.key);
      self(self, entry.value);
    }
  };
  forget_place(forget_place, value);
  return value;
}

Status set_value(YamlNode& root, std::string_view path, YamlNode value) {
  const auto wrong = [&](const std::string& why) {
    return Error{ErrorCode::invalid_config, "cannot set '" + shown(path) + "': " + why};
  };
  const auto steps = steps_of(path);
  if (!steps) return wrong("a path is written like spec.nodes[0].cards.count");
  YamlNode* at = &root;
  for (const auto& step : *steps) {
    if (step.is_index) {
      if (step.index == 0 && at->is_map()) continue;
      if (!at->is_sequence()) return wrong("there is no list before [" + std::to_string(step.index) + "]");
      if (step.index >= at->items.size())
        return wrong("the list has " + std::to_string(at->items.size()) + " items; the first is [0]");
      at = &at->items[step.index];
      continue;
    }
    if (at->is_null()) at->kind = YamlNode::Kind::map;
    if (!at->is_map()) return wrong("'" + shown(step.key) + "' would be a key of " + std::string(at->kind_text()));
    auto found = std::find_if(at->entries.begin(), at->entries.end(),
                              [&](const YamlEntry& e) { return e.key.text == step.key; });
    if (found == at->entries.end()) {
      YamlEntry made;
      made.key.kind = YamlNode::Kind::scalar;
      made.key.text = step.key;
      made.key.source = made.value.source = value.source;
      at->entries.push_back(std::move(made));
      found = std::prev(at->entries.end());
    }
    at = &found->value;
  }
  *at = std::move(value);
  return Done{};
}

std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates) {
  constexpr std::size_t length_max = 64;
  if (word.size() > length_max) return {};
  std::string best;
  std::size_t best_distance = 3;
  for (const auto& candidate : candidates) {
    if (candidate.size() > length_max) continue;
    const auto n = word.size(), m = candidate.size();
    // Edits: insert, delete, replace, swap neighbours. Two rows back are needed for the swap.
    std::vector<std::vector<std::size_t>> d(n + 1, std::vector<std::size_t>(m + 1));
    for (std::size_t i = 0; i <= n; ++i) d[i][0] = i;
    for (std::size_t j = 0; j <= m; ++j) d[0][j] = j;
    for (std::size_t i = 1; i <= n; ++i)
      for (std::size_t j = 1; j <= m; ++j) {
        const std::size_t same = word[i - 1] == candidate[j - 1] ? 0 : 1;
        d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + same});
        if (i > 1 && j > 1 && word[i - 1] == candidate[j - 2] && word[i - 2] == candidate[j - 1])
          d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    // A word of two letters is two edits from any other.
    if (d[n][m] < best_distance && d[n][m] < std::max<std::size_t>(n, 1)) {
      best = candidate;
      best_distance = d[n][m];
    }
  }
  return best;
}

std::string suggestion(std::string_view word, const std::vector<std::string>& candidates) {
  if (const auto near = nearest_word(word, candidates); !near.empty()) return "did you mean '" + shown(near) + "'?";
  if (candidates.empty() || candidates.size() > 16) return {};
  std::string known;
  for (const auto& candidate : candidates) known += (known.empty() ? "known: " : ", ") + shown(candidate);
  return known;
}

}  // namespace orrery
