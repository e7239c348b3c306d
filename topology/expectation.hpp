// Expectations of a scenario: comparisons between counters, quantities and words.
//
//   completed == requests
//   recovery_seconds <= 2 s and steps_repeated <= 1
//   frames_sha256 == reference
//   fate == 'refused'
//
//   expectation = comparison { "and" comparison }
//   comparison  = term ("==" | "!=" | "<" | "<=" | ">" | ">=") term
//   term        = name | number [unit of time or bytes] | 'text'
//
// Nothing can be called, computed or looped. Seconds and bytes are plain numbers once read.

#pragma once

#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.hpp"

namespace orrery::topology {

using Measured = std::variant<double, std::string>;

class Expectation {
public:
  /// At most 400 characters. Fails with invalid_config and a sentence that names the place: "at character 9 ...".
  static Result<Expectation> parse(std::string_view text);

  /// Whether all comparisons hold. Fails with not_found for a name that was not measured, and with
  /// invalid_config when a number is compared with text, or texts by size.
  Result<bool> evaluate(const std::map<std::string, Measured>& values) const;
  /// "completed = 2, requests = 3": what its names stood for.
  std::string shown_values(const std::map<std::string, Measured>& values) const;

  const std::string& text() const { return text_; }
  /// All names in it, in order.
  std::vector<std::string> names() const;

private:
  enum class Order { equal, not_equal, less, less_or_equal, greater, greater_or_equal };
  struct Term {
    std::string name;  // Empty: `value` stands for itself.
    Measured value;
  };
  struct Comparison {
    Term left, right;
    Order order;
  };
  class Parser;

  std::string text_;
  std::vector<Comparison> comparisons_;
};

}  // namespace orrery::topology
