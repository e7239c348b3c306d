#include "topology/hostlist.hpp"

#include <algorithm>
#include <cstdint>

#include "base/yaml.hpp"

namespace orrery::topology {
namespace {

/// Numbers first..last of one bracket item, padded to `width`.
struct Range {
  std::uint64_t first = 0, last = 0;
  std::size_t width = 0;
};

/// Literal text followed by a bracket (empty `ranges`: none).
struct Part {
  std::string literal;
  std::vector<Range> ranges;
};

Error wrong(std::string message, std::string hint = "write e.g. npu[01-04,07]") {
  return Error{ErrorCode::invalid_config, std::move(message), std::move(hint)};
}

bool all_digits(std::string_view text) {
  return !text.empty() && text.size() <= 9 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

bool fits_a_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
         c == '_';
}

Result<std::vector<Range>> ranges_of(std::string_view inside) {
  std::vector<Range> ranges;
  std::uint64_t count = 0;
  while (true) {
    const auto comma = inside.find(',');
    const auto item = inside.substr(0, comma);
    const auto dash = item.find('-');
    const auto first = item.substr(0, dash);
    const auto last = dash == std::string_view::npos ? first : item.substr(dash + 1);
    if (!all_digits(first) || !all_digits(last))
      return wrong("has '" + shown(item) + "' in brackets, which is no number or range");
    Range range{std::stoull(std::string(first)), std::stoull(std::string(last)), first.size()};
    if (range.last < range.first) return wrong("has the range '" + shown(item) + "', which runs backward");
    if (first.size() > 1 && first[0] == '0' && last.size() != first.size())
      return wrong("has the range '" + shown(item) + "', whose ends have different widths", "pad both with zeros");
    count += range.last - range.first + 1;
    if (count > host_count_max) return wrong("names more than 4096 hosts", "");
    ranges.push_back(range);
    if (comma == std::string_view::npos) return ranges;
    inside.remove_prefix(comma + 1);
  }
}

Status expand_one(std::string_view text, std::vector<std::string>& names) {
  std::vector<Part> parts;
  std::uint64_t count = 1;
  while (!text.empty()) {
    const auto open = text.find('[');
    Part part{std::string(text.substr(0, open)), {}};
    for (const char c : part.literal)
      if (!fits_a_name(c))
        return wrong("has the character '" + shown(std::string_view(&c, 1)) + "' in a host name",
                     "letters, digits, '-', '.', '_'");
    if (open == std::string_view::npos) {
      parts.push_back(std::move(part));
      break;
    }
    const auto close = text.find(']', open);
    if (close == std::string_view::npos) return wrong("has a '[' that is never closed");
    ORRERY_TRY(ranges, ranges_of(text.substr(open + 1, close - open - 1)));
    std::uint64_t here = 0;
    for (const auto& range : ranges) here += range.last - range.first + 1;
    part.ranges = std::move(ranges);
    count *= here;
    if (count > host_count_max) return wrong("names more than 4096 hosts", "");
    if (parts.size() > 8) return wrong("has more than 8 brackets", "");
    parts.push_back(std::move(part));
    text.remove_prefix(close + 1);
  }
  std::vector<std::string> made{""};
  for (const auto& part : parts) {
    std::vector<std::string> next;
    for (const auto& prefix : made) {
      if (part.ranges.empty()) next.push_back(prefix + part.literal);
      for (const auto& range : part.ranges)
        for (auto number = range.first; number <= range.last; ++number) {
          auto digits = std::to_string(number);
          if (digits.size() < range.width) digits.insert(0, range.width - digits.size(), '0');
          next.push_back(prefix + part.literal + digits);
        }
    }
    made = std::move(next);
  }
  if (names.size() + made.size() > host_count_max) return wrong("names more than 4096 hosts", "");
  for (auto& name : made) {
    if (name.empty()) return wrong("has an empty host name");
    if (name.size() > 253) return wrong("has a host name longer than 253 bytes", "");
    names.push_back(std::move(name));
  }
  return Done{};
}

}  // namespace

Result<std::vector<std::string>> expand_hosts(std::string_view text) {
  std::vector<std::string> names;
  if (text.size() > 65536) return wrong("is longer than 64 KiB", "");
  while (true) {
    // Commas outside brackets separate items.
    std::size_t end = 0;
    for (bool inside = false; end < text.size() && (inside || text[end] != ','); ++end) {
      if (text[end] == '[') inside = true;
      if (text[end] == ']') inside = false;
    }
    const auto item = text.substr(0, end);
    if (item.empty()) return wrong("has an empty host name");
    ORRERY_TRY_DONE(expand_one(item, names));
    if (end >= text.size()) break;
    text.remove_prefix(end + 1);
  }
  auto sorted = names;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) return wrong("names host '" + shown(*twice) + "' twice", "");
  return names;
}

}  // namespace orrery::topology
