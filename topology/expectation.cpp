#include "topology/expectation.hpp"

#include <cctype>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/units.hpp"
#include "base/yaml.hpp"

namespace orrery::topology {
namespace {

constexpr std::size_t text_max = 400;

bool starts_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool in_name(char c) { return starts_name(c) || (c >= '0' && c <= '9'); }
bool in_number(char c) { return (c >= '0' && c <= '9') || c == '.'; }

}  // namespace

class Expectation::Parser {
public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<std::vector<Comparison>> run() {
    std::vector<Comparison> all;
    while (true) {
      ORRERY_TRY(left, term());
      ORRERY_TRY(order, comparison());
      ORRERY_TRY(right, term());
      all.push_back({std::move(left), std::move(right), order});
      skip_spaces();
      if (at_ == text_.size()) return all;
      if (!word("and")) return wrong("should end, or go on with 'and'");
    }
  }

private:
  Error wrong(const std::string& what) const {
    return {ErrorCode::invalid_config, "is wrong at character " + std::to_string(at_ + 1) + ": " + what};
  }
  void skip_spaces() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  bool word(std::string_view wanted) {
    if (text_.substr(at_, wanted.size()) != wanted) return false;
    if (at_ + wanted.size() < text_.size() && in_name(text_[at_ + wanted.size()])) return false;
    at_ += wanted.size();
    return true;
  }

  Result<Order> comparison() {
    skip_spaces();
    static const std::pair<const char*, Order> table[] = {
        {"==", Order::equal},         {"!=", Order::not_equal},        {"<=", Order::less_or_equal},
        {">=", Order::greater_or_equal}, {"<", Order::less}, {">", Order::greater}};
    for (const auto& [sign, order] : table)
      if (text_.substr(at_, std::string_view(sign).size()) == sign) {
        at_ += std::string_view(sign).size();
        return order;
      }
    return wrong("should be ==, !=, <, <=, > or >=");
  }

  Result<Term> term() {
    skip_spaces();
    if (at_ == text_.size()) return wrong("a name or a number is missing");
    const auto first = text_[at_];
    const auto begin = at_;
    if (first == '\'') {
      const auto end = text_.find('\'', at_ + 1);
      if (end == std::string_view::npos) return wrong("the text has no closing '");
      at_ = end + 1;
      return Term{"", std::string(text_.substr(begin + 1, end - begin - 1))};
    }
    if (starts_name(first)) {
      while (at_ < text_.size() && in_name(text_[at_])) ++at_;
      return Term{std::string(text_.substr(begin, at_ - begin)), {}};
    }
    if (!in_number(first)) return wrong("should be a name, a number or 'text', not '" + shown(text_.substr(at_, 1)) + "'");
    while (at_ < text_.size() && in_number(text_[at_])) ++at_;
    const auto digits = text_.substr(begin, at_ - begin);
    // A unit may follow, with or without a space; `and` is none.
    auto unit_begin = at_;
    while (unit_begin < text_.size() && text_[unit_begin] == ' ') ++unit_begin;
    auto unit_end = unit_begin;
    while (unit_end < text_.size() && starts_name(text_[unit_end])) ++unit_end;
    const auto unit = text_.substr(unit_begin, unit_end - unit_begin);
    if (!unit.empty() && unit != "and") {
      const auto quantity = std::string(digits) + std::string(unit);
      at_ = begin;
      if (auto seconds = parse_seconds(quantity); seconds.ok()) {
        at_ = unit_end;
        return Term{"", seconds.value()};
      }
      auto bytes = parse_bytes(quantity);
      if (!bytes.ok()) return wrong("'" + shown(quantity) + "' is no time and no number of bytes");
      at_ = unit_end;
      return Term{"", static_cast<double>(bytes.value())};
    }
    double value = 0;
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (read.ec != std::errc() || read.ptr != digits.data() + digits.size() || !std::isfinite(value)) {
      at_ = begin;
      return wrong("'" + shown(digits) + "' is no number");
    }
    return Term{"", value};
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

Result<Expectation> Expectation::parse(std::string_view text) {
  if (text.size() > text_max) return Error{ErrorCode::invalid_config, "is longer than 400 characters"};
  ORRERY_TRY(comparisons, Parser(text).run());
  Expectation expectation;
  expectation.text_ = std::string(text);
  expectation.comparisons_ = std::move(comparisons);
  return expectation;
}

Result<bool> Expectation::evaluate(const std::map<std::string, Measured>& values) const {
  const auto value_of = [&](const Term& term) -> Result<Measured> {
    if (term.name.empty()) return term.value;
    const auto found = values.find(term.name);
    if (found == values.end()) return Error{ErrorCode::not_found, "'" + term.name + "' was not measured"};
    return found->second;
  };
  bool all = true;
  for (const auto& each : comparisons_) {
    ORRERY_TRY(left, value_of(each.left));
    ORRERY_TRY(right, value_of(each.right));
    if (left.index() != right.index()) return Error{ErrorCode::invalid_config, "'" + text_ + "' compares a number with text"};
    const bool equal = left == right;
    if (std::holds_alternative<std::string>(left)) {
      if (each.order != Order::equal && each.order != Order::not_equal)
        return Error{ErrorCode::invalid_config, "'" + text_ + "' compares texts by size"};
      all = all && (equal == (each.order == Order::equal));
      continue;
    }
    const auto a = std::get<double>(left), b = std::get<double>(right);
    switch (each.order) {
      case Order::equal: all = all && equal; break;
      case Order::not_equal: all = all && !equal; break;
      case Order::less: all = all && a < b; break;
      case Order::less_or_equal: all = all && a <= b; break;
      case Order::greater: all = all && a > b; break;
      case Order::greater_or_equal: all = all && a >= b; break;
    }
  }
  return all;
}

std::vector<std::string> Expectation::names() const {
  std::vector<std::string> all;
  for (const auto& each : comparisons_)
    for (const auto* term : {&each.left, &each.right})
      if (!term->name.empty()) all.push_back(term->name);
  return all;
}

std::string Expectation::shown_values(const std::map<std::string, Measured>& values) const {
  std::string text;
  for (const auto& name : names()) {
    text += (text.empty() ? "" : ", ") + name + " = ";
    const auto found = values.find(name);
    if (found == values.end()) {
      text += "not measured";
    } else if (const auto* number = std::get_if<double>(&found->second)) {
      char digits[32];
      std::snprintf(digits, sizeof digits, "%.6g", *number);
      text += digits;
    } else {
      text += std::get<std::string>(found->second).substr(0, 16);
    }
  }
  return text;
}

}  // namespace orrery::topology
