#include "base/yaml_schema.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <set>

#include "base/units.hpp"

namespace orrery {
namespace {

constexpr std::size_t expanded_bytes_max = std::size_t{64} << 10;

bool is_name(std::string_view text) {
  if (text.empty() || (text[0] >= '0' && text[0] <= '9')) return false;
  return std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

/// Decimal number with optional fraction and exponent, as JSON and YAML 1.2 have it.
bool looks_like_number(std::string_view text) {
  if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
  if (text.empty() || !((text[0] >= '0' && text[0] <= '9') || text[0] == '.')) return false;
  double value = 0;
  const auto [rest, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  return status != std::errc::invalid_argument && rest == text.data() + text.size();
}

bool expect_scalar(const YamlNode& node, const std::string& path, const std::string& wanted, YamlReader& reader) {
  if (node.is_scalar()) return true;
  reader.complain(node, "E105", path, "should be " + wanted + ", not " + std::string(node.kind_text()));
  return false;
}

/// A scalar that may stand without quotes; a quoted one is text.
bool expect_plain(const YamlNode& node, const std::string& path, const std::string& wanted, YamlReader& reader) {
  if (!expect_scalar(node, path, wanted, reader)) return false;
  if (!node.quoted) return true;
  reader.complain(node, "E105", path, "should be " + wanted + ", not text", "remove the quotes");
  return false;
}

template <class T>
Value<T> quantity(const std::string& type, const std::string& pattern, Result<T> (*parse)(std::string_view),
                  std::string (*write)(double)) {
  Value<T> value;
  value.type = type;
  value.json = {{"type", "string"}, {"pattern", "^[0-9.]+ ?" + pattern + "$"}};
  value.text = [write](const T& one) { return write(static_cast<double>(one)); };
  value.read = [parse, type](const YamlNode& node, const std::string& path, T& into, YamlReader& reader) {
    if (!expect_scalar(node, path, "a quantity with its unit", reader)) return false;
    auto read = parse(node.text);
    if (!read.ok()) {
      reader.complain(node, "E110", path, shown(read.error().message), read.error().hint);
      return false;
    }
    into = read.value();
    return true;
  };
  return value;
}

Value<std::string> text_value(bool late) {
  Value<std::string> value;
  value.type = "text";
  value.json = {{"type", "string"}};
  value.text = [](const std::string& one) { return one; };
  value.read = [late](const YamlNode& node, const std::string& path, std::string& into, YamlReader& reader) {
    if (!expect_scalar(node, path, "text", reader)) return false;
    if (!node.quoted && (looks_like_number(node.text) || node.text == "true" || node.text == "false")) {
      reader.complain(node, "E105", path, "should be text", "write \"" + shown(node.text) + "\" in quotes");
      return false;
    }
    const auto any = [](const std::string&) -> std::optional<std::string> { return "x"; };
    auto expanded = expand_variables(node.text, late ? Environment(any) : reader.environment());
    if (!expanded.ok()) {
      reader.complain(node, "E113", path, expanded.error().message, expanded.error().hint);
      return false;
    }
    into = late ? node.text : std::move(expanded).value();
    return true;
  };
  return value;
}

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  };
}

Result<std::string> expand_variables(const std::string& text, const Environment& environment) {
  const auto wrong = [](std::string message, std::string hint) {
    return Error{ErrorCode::invalid_config, std::move(message), std::move(hint)};
  };
  std::string out;
  std::size_t at = 0;
  while (at < text.size()) {
    if (text.compare(at, 3, "$${") == 0) {
      out += "${";
      at += 3;
      continue;
    }
    if (text.compare(at, 2, "${") != 0) {
      out += text[at++];
      continue;
    }
    const auto end = text.find('}', at);
    if (end == std::string::npos)
      return wrong("has a '${' without '}'", "write ${NAME}, ${NAME:-default} or ${NAME:?message}");
    const auto inner = text.substr(at + 2, end - at - 2);
    const auto colon = inner.find(':');
    const auto name = inner.substr(0, colon);
    const auto rest = colon == std::string::npos ? std::string() : inner.substr(colon + 1);
    if (!is_name(name) || (colon != std::string::npos && !rest.starts_with('-') && !rest.starts_with('?')))
      return wrong("has a malformed variable '${" + shown(inner) + "}'",
                   "write ${NAME}, ${NAME:-default} or ${NAME:?message}");
    const auto value = environment(name);
    if (value && (!value->empty() || colon == std::string::npos)) {
      out += *value;
    } else if (rest.starts_with('-')) {
      out += rest.substr(1);
    } else if (rest.starts_with('?')) {
      return wrong("needs the environment variable " + name, rest.size() > 1 ? shown(rest.substr(1)) : "set it");
    } else {
      return wrong("needs the environment variable " + name, "set it, or write ${" + name + ":-default}");
    }
    at = end + 1;
    if (out.size() > expanded_bytes_max) return wrong("is longer than 64 KiB after its variables are replaced", "");
  }
  return out;
}

void YamlReader::complain(const YamlNode& node, const std::string& code, const std::string& path,
                          const std::string& what, const std::string& hint) {
  findings_.push_back(finding_at(node, code, path, (path.empty() ? "" : path + " ") + what, hint));
}

std::string markdown_of(const std::vector<SchemaPage>& pages) {
  const auto cell = [](const std::string& text) { return text.empty() ? std::string(" ") : text; };
  std::set<std::string> written;
  std::string out;
  for (const auto& page : pages) {
    if (!written.insert(page.name).second) continue;
    out += "### " + page.name + "\n\n" + page.help + "\n\n| key | value | default | meaning |\n|---|---|---|---|\n";
    for (const auto& row : page.rows)
      out += "| `" + row.key + "` | " + row.type + (row.example.empty() ? "" : ", e.g. `" + row.example + "`") +
             " | " + cell(row.standard) + " | " + row.help + " |\n";
    out += "\n";
  }
  return out;
}

Value<std::string> text() { return text_value(false); }
Value<std::string> late_text() { return text_value(true); }

Value<bool> boolean() {
  Value<bool> value;
  value.type = "`true` \\| `false`";
  value.json = {{"type", "boolean"}};
  value.text = [](const bool& one) { return std::string(one ? "true" : "false"); };
  value.read = [](const YamlNode& node, const std::string& path, bool& into, YamlReader& reader) {
    if (!expect_plain(node, path, "true or false", reader)) return false;
    if (node.text != "true" && node.text != "false") {
      reader.complain(node, "E111", path, "should be true or false, not '" + shown(node.text) + "'");
      return false;
    }
    into = node.text == "true";
    return true;
  };
  return value;
}

Value<double> number(double least, double most) {
  const auto bound = [](double x) {
    char out[32];
    std::snprintf(out, sizeof out, "%g", x);
    return std::string(out);
  };
  Value<double> value;
  value.type = "number, " + bound(least) + " to " + bound(most);
  value.json = {{"type", "number"}, {"minimum", least}, {"maximum", most}};
  value.text = [bound](const double& one) { return bound(one); };
  value.read = [least, most, bound](const YamlNode& node, const std::string& path, double& into,
                                    YamlReader& reader) {
    if (!expect_plain(node, path, "a number", reader)) return false;
    double read = 0;
    const char* end = node.text.data() + node.text.size();
    const auto [rest, status] = std::from_chars(node.text.data(), end, read);
    if (!looks_like_number(node.text) || status != std::errc{} || rest != end || !std::isfinite(read)) {
      reader.complain(node, "E111", path, "should be a number, not '" + shown(node.text) + "'");
      return false;
    }
    if (read < least || read > most) {
      reader.complain(node, "E112", path,
                      "should be from " + bound(least) + " to " + bound(most) + ", not " + shown(node.text));
      return false;
    }
    into = read;
    return true;
  };
  return value;
}

Value<std::uint64_t> bytes() {
  return quantity<std::uint64_t>("bytes, e.g. `64GiB`", "(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)", parse_bytes,
                                 text_of_bytes);
}
Value<double> bytes_per_second() {
  return quantity<double>("rate, e.g. `64 GB/s` or `200 Gbit/s`",
                          "(B|KB|MB|GB|TB|KiB|MiB|GiB|bit|Kbit|Mbit|Gbit|Tbit)/s", parse_bytes_per_second,
                          text_of_bytes_per_second);
}
Value<double> flops() {
  return quantity<double>("compute rate, e.g. `64 TFLOP/s`", "(FLOP|MFLOP|GFLOP|TFLOP|PFLOP)/s", parse_flops,
                          text_of_flops);
}
Value<double> seconds() {
  return quantity<double>("time, e.g. `1.5 us` or `60s`", "(ns|us|ms|s|min|h)", parse_seconds, text_of_seconds);
}

namespace detail {

bool read_whole(const YamlNode& node, const std::string& path, std::int64_t least, std::int64_t most,
                std::int64_t& into, YamlReader& reader) {
  if (!expect_plain(node, path, "a whole number", reader)) return false;
  std::int64_t read = 0;
  const char* end = node.text.data() + node.text.size();
  const auto [rest, status] = std::from_chars(node.text.data(), end, read);
  const std::string_view digits = std::string_view(node.text).substr(node.text.starts_with('-') ? 1 : 0);
  if (status == std::errc::result_out_of_range && rest == end) {
    reader.complain(node, "E112", path, "should be from " + std::to_string(least) + " to " + std::to_string(most));
    return false;
  }
  if (status != std::errc{} || rest != end || (digits.size() > 1 && digits[0] == '0')) {
    reader.complain(node, "E111", path, "should be a whole number in decimal, not '" + shown(node.text) + "'");
    return false;
  }
  if (read < least || read > most) {
    reader.complain(
        node, "E112", path,
        "should be from " + std::to_string(least) + " to " + std::to_string(most) + ", not " + node.text);
    return false;
  }
  into = read;
  return true;
}

bool read_choice(const YamlNode& node, const std::string& path, const std::vector<std::string>& words,
                 std::size_t& into, YamlReader& reader) {
  if (!(node.is_null() && node.text == "null") && !expect_scalar(node, path, "one of a few words", reader))
    return false;
  const auto found = std::find(words.begin(), words.end(), node.text);
  if (found == words.end()) {
    std::string known;
    for (const auto& word : words) known += (known.empty() ? "" : ", ") + word;
    const auto near = nearest_word(node.text, words);
    reader.complain(node, "E115", path, "should be one of " + known + ", not '" + shown(node.text) + "'",
                    near.empty() ? "" : "did you mean '" + near + "'?");
    return false;
  }
  into = static_cast<std::size_t>(found - words.begin());
  return true;
}

bool expect_map(const YamlNode& node, const std::string& path, YamlReader& reader) {
  if (node.is_map()) return true;
  reader.complain(node, "E105", path, "should be a map, not " + std::string(node.kind_text()));
  return false;
}

bool expect_list(const YamlNode& node, const std::string& path, YamlReader& reader) {
  if (node.is_sequence()) return true;
  reader.complain(node, "E105", path, "should be a list, not " + std::string(node.kind_text()));
  return false;
}

void refuse_unknown_keys(const YamlNode& node, const std::string& path, const std::vector<std::string>& known,
                         YamlReader& reader) {
  for (const auto& entry : node.entries) {
    const auto& key = entry.key.text;
    if (key.starts_with("x-") || std::find(known.begin(), known.end(), key) != known.end()) continue;
    reader.complain(entry.key, "E102", "", "unknown key '" + shown(key) + "'" + (path.empty() ? "" : " in " + path),
                    suggestion(key, known));
  }
}

std::string joined(const std::string& path, const std::string& key) {
  const auto name = shown(key);
  return path.empty() ? name : path + "." + name;
}

bool is_word(const YamlNode& node, std::string_view word) {
  return node.is_scalar() && !node.quoted && node.text == word;
}

}  // namespace detail
}  // namespace orrery
