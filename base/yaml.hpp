// YAML files as a strict tree with places, and the findings that are made about them.
//
// Hostile until checked: at most 1 MiB, 32 levels, 20,000 nodes; valid UTF-8 without NUL; no anchors, aliases,
// merge keys or tags. Reading never stops at the first mistake: everything found goes to a list, and a person
// gets all of it in one run. Values stay text here; base/yaml_schema.hpp gives them types.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.hpp"
#include "base/result.hpp"

namespace orrery {

enum class Severity : std::uint8_t { error, warning, note };
std::string_view name_of(Severity severity);

/// One thing that is wrong (or doubtful) in a file, for editors, scripts and people.
///
/// Codes: E1xx the shape of a file, E2xx references between documents, E3xx what cannot be planned.
struct Finding {
  std::string file;
  std::uint32_t line = 0;    // 1-based; 0: the file as a whole, or a value from the command line.
  std::uint32_t column = 0;  // 1-based, in bytes.
  std::uint32_t end_column = 0;
  Severity severity = Severity::error;
  std::string code;     // "E102"
  std::string path;     // "spec.nodes[0].memory"
  std::string message;  // One sentence without a full stop.
  std::string hint;     // May be empty.
  std::string source;   // The line of the file, for the caret.

  /// "FILE:LINE:COLUMN: error: MESSAGE (HINT) [CODE]", without source line.
  std::string headline() const;
  /// The headline, the source line and a caret under the place; several lines, ends with a line feed.
  std::string text() const;
  /// {file, line, column, end_column, severity, code, path, message, hint}.
  OrderedJson json() const;
};

using Findings = std::vector<Finding>;
bool has_errors(const Findings& findings);
/// All findings, sorted by file (in order of first appearance) and place.
std::string text_of(const Findings& findings);
/// An invalid_config error: the first finding's headline, and how many more there are.
Error error_of(const Findings& findings);

/// Text of strangers made fit for one line of a message: cut at 64 bytes, unprintable bytes shown as '?'.
std::string shown(std::string_view text);

/// A file's name and lines, shared by all nodes read from it.
struct YamlSource {
  std::string name;
  std::vector<std::string> lines;
};

struct YamlEntry;

/// A value of a file and its place.
struct YamlNode {
  enum class Kind : std::uint8_t { null, scalar, sequence, map };
  Kind kind = Kind::null;
  std::string text;     // Of a scalar; "null" when that word is written.
  bool quoted = false;  // A scalar in quotes or a block scalar: always text.
  std::uint32_t line = 0, column = 0, end_column = 0;
  std::vector<YamlNode> items;     // Of a sequence.
  std::vector<YamlEntry> entries;  // Of a map, in file order; keys are scalars and unique.
  std::shared_ptr<const YamlSource> source;

  bool is_null() const { return kind == Kind::null; }
  bool is_scalar() const { return kind == Kind::scalar; }
  bool is_sequence() const { return kind == Kind::sequence; }
  bool is_map() const { return kind == Kind::map; }
  /// "a map", "a list", "text", "nothing".
  std::string_view kind_text() const;
  /// The value of a key of a map, or null.
  const YamlNode* find(std::string_view key) const;
  /// Follows "spec.nodes[0].cards" as far as it exists: the node to point at for a relation between fields.
  const YamlNode& nearest(std::string_view path) const;
  const std::string& file() const;
};

struct YamlEntry {
  YamlNode key;
  YamlNode value;
};

/// A finding at `node`.
Finding finding_at(const YamlNode& node, std::string code, std::string path, std::string message,
                   std::string hint = {});

/// The documents of `text`, in order; empty documents between separators are dropped. What is wrong goes to
/// `findings`; after a syntax error or a limit the documents so far are returned.
std::vector<YamlNode> read_yaml(const std::string& name, std::string_view text, Findings& findings);

/// A file; one that cannot be read is a finding (E100).
std::vector<YamlNode> read_yaml_file(const std::string& path, Findings& findings);

/// One value as written after `--set PATH=`; `name` stands for the file in messages.
YamlNode read_yaml_value(const std::string& name, std::string_view text, Findings& findings);

/// Sets `path` ("spec.parallelism.tensor", "spec.nodes[0].cards.count") in a document, making maps on the way.
/// Fails with invalid_config when the path is malformed, goes through a scalar, or past the end of a list.
Status set_value(YamlNode& root, std::string_view path, YamlNode value);

/// The candidate nearest to `word` if at most two edits away, else empty.
std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates);
/// "did you mean 'memory'?", or "known: a, b, c", or empty.
std::string suggestion(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace orrery
