#include "launch/bench_compare.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "base/yaml.hpp"

namespace orrery::launch {
namespace {

constexpr double significant = 0.05;

template <class... Values>
std::string printed(const char* form, Values... values) {
  char text[128];
  std::snprintf(text, sizeof text, form, values...);
  return text;
}

const BenchRow* row_named(const BenchResult& result, const std::string& name) {
  for (const auto& row : result.rows)
    if (row.name == name) return &row;
  return nullptr;
}

}  // namespace

bool Comparison::worse() const {
  return std::any_of(rows.begin(), rows.end(), [](const ComparedRow& row) { return row.worse; });
}

Result<Comparison> compare(const BenchResult& a, const BenchResult& b, const std::string& metric, double threshold) {
  Comparison all;
  const auto which = metric.empty() ? a.metric : metric;
  for (const auto& row : a.rows) {
    const auto* other = row_named(b, row.name);
    const auto left = row.samples.find(which);
    if (left == row.samples.end() || left->second.empty()) continue;
    const auto right = other == nullptr ? row.samples.end() : other->samples.find(which);
    if (other == nullptr || right == other->samples.end() || right->second.empty()) {
      all.only_in_a.push_back(row.name);
      continue;
    }
    if (row.clock != other->clock)
      return Error{ErrorCode::usage, "'" + shown(row.name) + "' was measured by clock " + row.clock + " in one and clock " + other->clock + " in the other",
                   "a prediction is no measurement"};
    ComparedRow one;
    one.name = row.name;
    one.metric = which;
    one.clock = row.clock;
    one.median_a = quantile_of(left->second, 0.5);
    one.median_b = quantile_of(right->second, 0.5);
    if (!(one.median_a > 0) || !(one.median_b > 0)) return Error{ErrorCode::usage, "'" + shown(row.name) + "' has a median of 0"};
    one.ratio = ratio_of_medians(right->second, left->second);
    const bool can_tell = row.clock == "wall" && mann_whitney_least_p(left->second.size(), right->second.size()) < significant;
    if (can_tell) one.p = mann_whitney_p(left->second, right->second);
    const bool sure = !one.p || *one.p < significant;
    one.worse = sure && one.ratio.ratio > 1 + threshold;
    one.better = sure && one.ratio.ratio < 1 / (1 + threshold);
    all.rows.push_back(std::move(one));
  }
  for (const auto& row : b.rows)
    if (row_named(a, row.name) == nullptr) all.only_in_b.push_back(row.name);
  if (all.rows.empty())
    return Error{ErrorCode::usage, "the two results have no configuration with samples of '" + shown(which) + "' in common",
                 "compare runs of the same experiment"};
  if (a.environment.value("cpu", "") != b.environment.value("cpu", "") || a.environment.value("cores", 0) != b.environment.value("cores", 0))
    all.doubts.emplace_back("the two were measured on different machines");
  for (const auto* each : {&a, &b})
    if (each->state != "complete") all.doubts.push_back("'" + each->name + "' was interrupted");
  if (std::any_of(all.rows.begin(), all.rows.end(), [](const ComparedRow& row) { return row.clock == "wall" && !row.p; }))
    all.doubts.emplace_back("fewer than 4 runs each: the ratio alone decides");
  return all;
}

OrderedJson Comparison::json() const {
  OrderedJson list = OrderedJson::array();
  for (const auto& row : rows)
    list.push_back({{"name", row.name},
                    {"metric", row.metric},
                    {"clock", row.clock},
                    {"a", row.median_a},
                    {"b", row.median_b},
                    {"ratio", row.ratio.ratio},
                    {"ratio_ci95", {row.ratio.ci95.low, row.ratio.ci95.high}},
                    {"p", row.p ? OrderedJson(*row.p) : OrderedJson(nullptr)},
                    {"verdict", row.worse ? "worse" : row.better ? "better" : "same"}});
  return {{"rows", list}, {"only_in_a", only_in_a}, {"only_in_b", only_in_b}, {"doubts", doubts}, {"worse", worse()}};
}

std::string Comparison::text(double threshold) const {
  std::vector<std::vector<std::string>> cells = {{"configuration", "metric", "A", "B", "B/A", "ci95", "p", "verdict", "clock"}};
  for (const auto& row : rows)
    cells.push_back({row.name, row.metric, printed("%.4g", row.median_a), printed("%.4g", row.median_b), printed("%.3f", row.ratio.ratio),
                     printed("%.3f..%.3f", row.ratio.ci95.low, row.ratio.ci95.high), row.p ? printed("%.4f", *row.p) : "-",
                     row.worse ? "WORSE" : row.better ? "better" : "same", row.clock});
  auto text = aligned(cells);
  for (const auto& name : only_in_a) text += "  only in A: " + name + "\n";
  for (const auto& name : only_in_b) text += "  only in B: " + name + "\n";
  text += printed("\n# B/A: ratio of medians, ci95: bootstrap, p: Mann-Whitney; worse: B/A above %.3g and p below %.2f\n", 1 + threshold, significant);
  for (const auto& doubt : doubts) text += "# " + doubt + "\n";
  return text;
}

Result<BenchResult> read_bench_result(const std::string& path) {
  std::error_code ignored;
  const auto file = std::filesystem::is_directory(path, ignored) ? path + "/result.json" : path;
  auto json = read_json_file(file);
  if (!json.ok()) {
    auto error = json.error();
    if (error.code == ErrorCode::not_found || error.code == ErrorCode::invalid_model) error.code = ErrorCode::invalid_config;
    return error;
  }
  return bench_result_from_json(json.value(), file);
}

Result<double> threshold_of(const std::string& text) {
  const bool percent = text.ends_with("%");
  const auto digits = text.substr(0, text.size() - (percent ? 1 : 0));
  double value = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || read.ec != std::errc() || read.ptr != digits.data() + digits.size() || !std::isfinite(value) || value < 0)
    return Error{ErrorCode::usage, "--threshold '" + shown(text) + "' is no part of the whole", "write e.g. 5% or 0.05"};
  return percent ? value / 100 : value;
}

}  // namespace orrery::launch
