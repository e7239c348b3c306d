// A setting is declared once; reading, checks, JSON Schema and reference page come from the declaration.
//
//   static const Schema<LinkSpec> schema = Schema<LinkSpec>("link", "One kind of connection.")
//       .field("bandwidth", &LinkSpec::bandwidth, bytes_per_second(), "One direction.", {.required = true})
//       .field("latency", &LinkSpec::latency, seconds(), "Of one message.", {.example = "5us"});
//
// A Value<T> says how one value is read and described; they compose (list_of(object(schema)), auto_or(...)).
// The default of a field is its member's initialiser, so code and page cannot disagree.
//
// Scalars are stricter than YAML: only true and false are booleans, whole numbers are decimal, numbers are
// finite, quantities carry units, text that looks like one of those must stand in quotes.

#pragma once

#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/yaml.hpp"

namespace orrery {

/// Where ${VAR} comes from: the process environment, or a test's map. Nothing: not set.
using Environment = std::function<std::optional<std::string>(const std::string&)>;
Environment process_environment();

/// Replaces ${VAR}, ${VAR:-default} and ${VAR:?message}; "$${" stands for "${". Values are not expanded again.
/// Fails with invalid_config: unset variable, malformed reference.
Result<std::string> expand_variables(const std::string& text, const Environment& environment);

/// What readers share during one run: where findings go and where variables come from.
class YamlReader {
public:
  YamlReader(Findings& findings, Environment environment)
      : findings_(findings), environment_(std::move(environment)) {}

  /// Message: "PATH WHAT"; `what` is a sentence without subject, e.g. "should be a map".
  void complain(const YamlNode& node, const std::string& code, const std::string& path, const std::string& what,
                const std::string& hint = "");
  const Environment& environment() const { return environment_; }

private:
  Findings& findings_;
  Environment environment_;
};

/// One section of the reference: a map and its keys.
struct SchemaPage {
  struct Row {
    std::string key, type, standard, example, help;
  };
  std::string name, help;
  std::vector<Row> rows;
};
/// Markdown with one table per page; pages of the same name appear once.
std::string markdown_of(const std::vector<SchemaPage>& pages);

/// How a value of type T is read, checked, shown and described.
template <class T>
struct Value {
  std::string type;  // For people: "quantity of bytes".
  OrderedJson json;  // JSON Schema, draft-07.
  /// Reads into the third argument; complains and returns false when the node does not fit.
  std::function<bool(const YamlNode&, const std::string& path, T&, YamlReader&)> read;
  /// A default as it would be written; empty: not shown.
  std::function<std::string(const T&)> text = [](const T&) { return std::string(); };
  std::vector<SchemaPage> pages = {};
};

// Scalars.
Value<std::string> text();
/// Text whose variables are checked for form but kept; whoever uses it expands it then. For what need not be
/// set until it is used, such as a weights folder.
Value<std::string> late_text();
Value<bool> boolean();
Value<double> number(double least, double most);
Value<std::uint64_t> bytes();
Value<double> bytes_per_second();
Value<double> flops();
Value<double> seconds();

namespace detail {
/// Decimal digits with an optional minus; complains otherwise.
bool read_whole(const YamlNode& node, const std::string& path, std::int64_t least, std::int64_t most,
                std::int64_t& into, YamlReader& reader);
bool read_choice(const YamlNode& node, const std::string& path, const std::vector<std::string>& words,
                 std::size_t& into, YamlReader& reader);
bool expect_map(const YamlNode& node, const std::string& path, YamlReader& reader);
bool expect_list(const YamlNode& node, const std::string& path, YamlReader& reader);
/// Complains about keys of `node` that are not in `known` and do not begin with "x-".
void refuse_unknown_keys(const YamlNode& node, const std::string& path, const std::vector<std::string>& known,
                         YamlReader& reader);
std::string joined(const std::string& path, const std::string& key);
bool is_word(const YamlNode& node, std::string_view word);
}  // namespace detail

template <class T>
Value<T> whole(T least, T most) {
  static_assert(std::is_integral_v<T>);
  Value<T> value;
  value.type = "whole number, " + std::to_string(least) + " to " + std::to_string(most);
  value.json = {{"type", "integer"}, {"minimum", least}, {"maximum", most}};
  value.read = [least, most](const YamlNode& node, const std::string& path, T& into, YamlReader& reader) {
    std::int64_t read = 0;
    if (!detail::read_whole(node, path, static_cast<std::int64_t>(least), static_cast<std::int64_t>(most), read,
                            reader))
      return false;
    into = static_cast<T>(read);
    return true;
  };
  value.text = [](const T& shown_value) { return std::to_string(shown_value); };
  return value;
}

/// One of a few words.
template <class E>
Value<E> choice(std::vector<std::pair<std::string, E>> table) {
  Value<E> value;
  std::vector<std::string> words;
  for (const auto& row : table) words.push_back(row.first);
  for (const auto& word : words) value.type += (value.type.empty() ? "`" : " \\| `") + word + "`";
  value.json = {{"enum", words}};
  // Without quotes, YAML's `null` is no text.
  for (const auto& word : words)
    if (word == "null") value.json["enum"].push_back(nullptr);
  value.text = [table](const E& one) {
    for (const auto& row : table)
      if (row.second == one) return row.first;
    return std::string();
  };
  value.read = [table, words](const YamlNode& node, const std::string& path, E& into, YamlReader& reader) {
    std::size_t index = 0;
    if (!detail::read_choice(node, path, words, index, reader)) return false;
    into = table[index].second;
    return true;
  };
  return value;
}

/// `word` (nothing), or a value.
template <class T>
Value<std::optional<T>> word_or(const std::string& word, const Value<T>& inner) {
  Value<std::optional<T>> value;
  value.type = "`" + word + "` \\| " + inner.type;
  value.json = {{"anyOf", OrderedJson::array({{{"const", word}}, inner.json})}};
  value.text = [word, inner](const std::optional<T>& one) { return one ? inner.text(*one) : word; };
  value.pages = inner.pages;
  value.read = [word, inner](const YamlNode& node, const std::string& path, std::optional<T>& into, YamlReader& reader) {
    if (detail::is_word(node, word)) {
      into.reset();
      return true;
    }
    T read{};
    if (!inner.read(node, path, read, reader)) return false;
    into = std::move(read);
    return true;
  };
  return value;
}

/// `auto` (nothing), or a value.
template <class T>
Value<std::optional<T>> auto_or(const Value<T>& inner) {
  return word_or("auto", inner);
}

template <class T>
Value<std::vector<T>> list_of(const Value<T>& item, std::size_t most = 4096) {
  Value<std::vector<T>> value;
  value.type = "list of: " + item.type;
  value.json = {{"type", "array"}, {"items", item.json}, {"maxItems", most}};
  value.pages = item.pages;
  value.text = [item](const std::vector<T>& all) {
    std::string text;
    for (const auto& one : all) text += (text.empty() ? "" : ", ") + item.text(one);
    return "[" + text + "]";
  };
  value.read = [item, most](const YamlNode& node, const std::string& path, std::vector<T>& into,
                            YamlReader& reader) {
    if (!detail::expect_list(node, path, reader)) return false;
    if (node.items.size() > most) {
      reader.complain(
          node, "E112", path,
          "has " + std::to_string(node.items.size()) + " items; at most " + std::to_string(most) + " are allowed");
      return false;
    }
    into.clear();
    bool good = true;
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      T one{};
      good = item.read(node.items[i], path + "[" + std::to_string(i) + "]", one, reader) && good;
      into.push_back(std::move(one));
    }
    return good;
  };
  return value;
}

/// A list; a list of one may be written without brackets.
template <class T>
Value<std::vector<T>> one_or_list_of(const Value<T>& item, std::size_t most = 4096) {
  auto value = list_of(item, most);
  value.type = item.type + ", or a list of such";
  value.json = {{"anyOf", OrderedJson::array({item.json, value.json})}};
  value.read = [item, list = value.read](const YamlNode& node, const std::string& path, std::vector<T>& into,
                                         YamlReader& reader) {
    if (node.is_sequence()) return list(node, path, into, reader);
    T one{};
    const bool good = item.read(node, path, one, reader);
    into.assign(1, std::move(one));
    return good;
  };
  return value;
}

/// A map with free keys.
template <class T>
Value<std::map<std::string, T>> map_of(const Value<T>& item, const std::string& keys) {
  Value<std::map<std::string, T>> value;
  value.type = "map from " + keys + " to: " + item.type;
  value.json = {{"type", "object"}, {"additionalProperties", item.json}};
  value.pages = item.pages;
  value.read = [item](const YamlNode& node, const std::string& path, std::map<std::string, T>& into,
                      YamlReader& reader) {
    if (!detail::expect_map(node, path, reader)) return false;
    bool good = true;
    for (const auto& entry : node.entries) {
      T one{};
      good = item.read(entry.value, detail::joined(path, entry.key.text), one, reader) && good;
      into[entry.key.text] = std::move(one);
    }
    return good;
  };
  return value;
}

/// Keys of a struct S.
template <class S>
class Schema {
public:
  Schema(std::string name, std::string help) { page_ = {std::move(name), std::move(help), {}}; }

  template <class T>
  struct Options {
    bool required = false;
    std::string example = "";
    std::string standard = "";  // Default, where the initialiser does not say it.
    /// What is wrong with a value, as in "should be odd"; empty: nothing.
    std::function<std::string(const T&)> check = {};
  };

  template <class T>
  Schema& field(std::string key, T S::*member, const Value<T>& value, std::string help, Options<T> options = {}) {
    auto standard = options.standard.empty() ? value.text(S{}.*member) : options.standard;
    return add(std::move(key), value, std::move(help), options.required, options.example, std::move(standard),
               [member, read = value.read, check = options.check](const YamlNode& node, const std::string& path,
                                                                  S& into, YamlReader& reader) {
                 if (!read(node, path, into.*member, reader)) return false;
                 return checked(check, into.*member, node, path, reader);
               });
  }

  /// A field that may be absent; the member then holds nothing.
  template <class T>
  Schema& optional(std::string key, std::optional<T> S::*member, const Value<T>& value, std::string help,
                   Options<T> options = {}) {
    return add(std::move(key), value, std::move(help), false, options.example, options.standard,
               [member, read = value.read, check = options.check](const YamlNode& node, const std::string& path,
                                                                  S& into, YamlReader& reader) {
                 T one{};
                 const bool good = read(node, path, one, reader) && checked(check, one, node, path, reader);
                 into.*member = std::move(one);
                 return good;
               });
  }

  /// Reads a map into `into`; fields that are absent keep what they have. Returns whether nothing was wrong.
  bool read(const YamlNode& node, const std::string& path, S& into, YamlReader& reader) const {
    if (!detail::expect_map(node, path, reader)) return false;
    bool good = true;
    for (const auto& row : rows_) {
      const auto* value = node.find(row.key);
      if (value != nullptr) {
        good = row.read(*value, detail::joined(path, row.key), into, reader) && good;
      } else if (row.required) {
        reader.complain(node, "E104", detail::joined(path, row.key), "is missing");
        good = false;
      }
    }
    detail::refuse_unknown_keys(node, path, keys(), reader);
    return good;
  }

  std::vector<std::string> keys() const {
    std::vector<std::string> keys;
    for (const auto& row : rows_) keys.push_back(row.key);
    return keys;
  }

  OrderedJson json_schema() const {
    OrderedJson properties = OrderedJson::object(), required = OrderedJson::array();
    for (const auto& row : rows_) {
      properties[row.key] = row.json;
      if (row.required) required.push_back(row.key);
    }
    OrderedJson schema{{"type", "object"}, {"description", page_.help}, {"properties", properties}};
    if (!required.empty()) schema["required"] = required;
    schema["patternProperties"] = {{"^x-", OrderedJson::object()}};
    schema["additionalProperties"] = false;
    return schema;
  }

  /// This map's page, then those of the maps inside.
  std::vector<SchemaPage> pages() const {
    std::vector<SchemaPage> all{page_};
    for (const auto& row : rows_) all.insert(all.end(), row.pages.begin(), row.pages.end());
    return all;
  }
  const std::string& name() const { return page_.name; }

private:
  using Read = std::function<bool(const YamlNode&, const std::string&, S&, YamlReader&)>;
  struct Row {
    std::string key;
    bool required;
    OrderedJson json;
    std::vector<SchemaPage> pages;
    Read read;
  };

  template <class T>
  static bool checked(const std::function<std::string(const T&)>& check, const T& value, const YamlNode& node,
                      const std::string& path, YamlReader& reader) {
    if (!check) return true;
    const auto wrong = check(value);
    if (!wrong.empty()) reader.complain(node, "E112", path, wrong);
    return wrong.empty();
  }

  template <class T>
  Schema& add(std::string key, const Value<T>& value, std::string help, bool required, const std::string& example,
              std::string standard, Read read) {
    page_.rows.push_back({key, value.type, required ? "required" : std::move(standard), example, help});
    auto json = value.json;
    json["description"] = std::move(help);
    if (!example.empty()) json["examples"] = OrderedJson::array({example});
    rows_.push_back({std::move(key), required, std::move(json), value.pages, std::move(read)});
    return *this;
  }

  SchemaPage page_;
  std::vector<Row> rows_;
};

/// A map with the keys of `schema`, which must outlive the value (schemas are function-local constants).
template <class S>
Value<S> object(const Schema<S>& schema) {
  Value<S> value;
  value.type = schema.name();
  value.json = schema.json_schema();
  value.pages = schema.pages();
  value.read = [&schema](const YamlNode& node, const std::string& path, S& into, YamlReader& reader) {
    return schema.read(node, path, into, reader);
  };
  return value;
}

}  // namespace orrery
