// What a run means: incidents fitted to faults, expectations, table and JSON. No processes here.

#include <algorithm>
#include <cstdio>

#include "base/units.hpp"
#include "launch/fault_run.hpp"

namespace orrery::launch {
namespace {

/// Two clocks are read one after the other, and a launcher sees a stop a little late.
constexpr double clock_slack = 0.1;

std::string shown_time(const std::optional<double>& seconds) { return seconds ? text_of_seconds(*seconds) : "-"; }

OrderedJson number_or_null(const std::optional<double>& value) { return value ? OrderedJson(*value) : OrderedJson(nullptr); }

std::optional<double> seconds_in(const Json& incident, const char* key) {
  const auto found = incident.find(key);
  if (found == incident.end() || !found->is_number()) return std::nullopt;
  return found->get<double>() / 1000;
}

const FaultRecord* find(const FaultReport& report, const std::string& name) {
  const auto found = std::find_if(report.faults.begin(), report.faults.end(), [&](const auto& each) { return each.name == name; });
  return found == report.faults.end() ? nullptr : &*found;
}

/// When something happened after a fault, in seconds from its firing.
std::optional<double> moment_of(const FaultRecord& fault, const std::string& event) {
  if (!fault.fired) return std::nullopt;
  if (event == "fired") return 0.0;
  if (!fault.detected) return std::nullopt;
  if (event == "detected") return fault.detected;
  const auto& part = event == "fenced" ? fault.fenced : event == "replanned" ? fault.replanned : event == "loaded" ? fault.loaded : fault.resumed;
  if (!part) return std::nullopt;
  return *fault.detected + *part;
}

}  // namespace

std::string_view name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::pass: return "pass";
    case Verdict::fail: return "fail";
    case Verdict::inconclusive: return "inconclusive";
  }
  return "unknown";
}

int exit_code_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::pass: return 0;
    case Verdict::fail: return exit_code_of(ErrorCode::expectation_not_met);
    case Verdict::inconclusive: return exit_code_of(ErrorCode::inconclusive);
  }
  return 1;
}

void match_incidents(const Json& incidents, double began, FaultReport& report) {
  if (!incidents.is_array()) return;
  for (const auto& incident : incidents) {
    if (!incident.is_object() || !incident.contains("at") || !incident["at"].is_number()) continue;
    const auto at = incident["at"].get<double>() - began;
    if (at < -clock_slack) continue;  // Of the time before the workload.
    report.incidents.push_back(OrderedJson::parse(incident.dump()));
    FaultRecord* cause = nullptr;
    for (auto& fault : report.faults)
      if (fault.fired && *fault.fired <= at + clock_slack && (cause == nullptr || *fault.fired >= *cause->fired)) cause = &fault;
    if (cause == nullptr) continue;
    cause->steps_repeated = std::max(cause->steps_repeated, incident.value("steps_repeated", 0U));
    if (cause->detected) continue;
    cause->detected = std::max(0.0, at - *cause->fired);
    cause->fenced = seconds_in(incident, "fenced_ms");
    cause->replanned = seconds_in(incident, "replanned_ms");
    cause->loaded = seconds_in(incident, "loaded_ms");
    cause->resumed = seconds_in(incident, "resumed_ms");
  }
}

void evaluate(const topology::ScenarioSpec& scenario, FaultReport& report) {
  auto& counters = report.counters;
  double completed = 0, failed = 0, lost = 0, duplicated = 0, refusals = 0, fired = 0, repeated = 0;
  for (const auto& request : report.requests) {
    completed += request.completed;
    failed += request.ended && !request.completed;
    lost += !request.ended;
    duplicated += static_cast<double>(request.surplus_frames);
    refusals += request.refusals;
  }
  std::optional<double> detection, recovery;
  for (const auto& fault : report.faults) {
    fired += fault.fired.has_value();
    repeated = std::max(repeated, static_cast<double>(fault.steps_repeated));
    if (fault.detected) detection = std::max(detection.value_or(0), *fault.detected);
  }
  for (const auto& incident : report.incidents)
    if (const auto resumed = seconds_in(Json::parse(incident.dump()), "resumed_ms")) recovery = std::max(recovery.value_or(0), *resumed);
  counters["requests"] = static_cast<double>(report.requests.size());
  counters["completed"] = completed;
  counters["failed"] = failed;
  counters["lost"] = lost;
  counters["duplicated"] = duplicated;
  counters["faults"] = static_cast<double>(report.faults.size());
  counters["fired"] = fired;
  counters["incidents"] = static_cast<double>(report.incidents.size());
  counters["steps_repeated"] = repeated;
  const auto others = counters.find("refusals");
  counters["refusals"] = refusals + (others == counters.end() ? 0 : std::get<double>(others->second));
  if (detection) counters["detection_seconds"] = *detection;
  if (recovery) counters["recovery_seconds"] = *recovery;

  bool all = true;
  for (const auto& expected : scenario.expect) {
    ExpectationRecord record;
    if (expected.expression) {
      record.text = expected.expression->text();
      record.shown = expected.expression->shown_values(counters);
      const auto held = expected.expression->evaluate(counters);
      record.held = held.ok() && held.value();
    } else {
      record.text = expected.event + " within " + text_of_seconds(expected.within) + " after " + expected.after;
      const auto* fault = find(report, expected.after);
      const auto moment = fault == nullptr ? std::nullopt : moment_of(*fault, expected.event);
      record.shown = moment ? "after " + text_of_seconds(*moment) : fault != nullptr && !fault->fired ? "the fault did not fire" : "not seen";
      record.held = moment && *moment <= expected.within;
    }
    all = all && record.held;
    report.expectations.push_back(std::move(record));
  }
  const auto limit = [&](const std::string& text, const std::optional<double>& measured, double most) {
    ExpectationRecord record{text, measured ? std::to_string(*measured) : "not measured", !measured || *measured <= most};
    all = all && record.held;
    report.expectations.push_back(std::move(record));
  };
  if (scenario.budget.recovery_time_max)
    limit("budget: recovery within " + text_of_seconds(*scenario.budget.recovery_time_max), recovery, *scenario.budget.recovery_time_max);
  if (scenario.budget.lost_steps_max)
    limit("budget: at most " + std::to_string(*scenario.budget.lost_steps_max) + " steps repeated", repeated, *scenario.budget.lost_steps_max);
  report.verdict = all ? Verdict::pass : Verdict::fail;
}

OrderedJson FaultReport::json() const {
  OrderedJson all{{"scenario", scenario}, {"seed", seed}, {"verdict", name_of(verdict)}};
  if (!reason.empty()) all["reason"] = reason;
  all["faults"] = OrderedJson::array();
  for (const auto& fault : faults) {
    OrderedJson row{{"name", fault.name}, {"action", fault.action}, {"target", fault.target}};
    row["fired_seconds"] = number_or_null(fault.fired);
    row["detected_seconds"] = number_or_null(fault.detected);
    row["fenced_seconds"] = number_or_null(fault.fenced);
    row["replanned_seconds"] = number_or_null(fault.replanned);
    row["loaded_seconds"] = number_or_null(fault.loaded);
    row["resumed_seconds"] = number_or_null(fault.resumed);
    row["steps_repeated"] = fault.steps_repeated;
    if (!fault.note.empty()) row["note"] = fault.note;
    all["faults"].push_back(std::move(row));
  }
  all["expectations"] = OrderedJson::array();
  for (const auto& each : expectations) all["expectations"].push_back({{"text", each.text}, {"held", each.held}, {"values", each.shown}});
  all["requests"] = OrderedJson::array();
  for (const auto& each : requests) {
    OrderedJson row{{"id", each.id}, {"completed", each.completed}, {"sha256", each.sha256}, {"frames", each.frames}, {"attempts", each.attempts}};
    if (each.refusals > 0) row["refusals"] = each.refusals;
    if (!each.failure.empty()) row["failure"] = each.failure;
    all["requests"].push_back(std::move(row));
  }
  all["counters"] = OrderedJson::object();
  for (const auto& [name, value] : counters)
    if (const auto* number = std::get_if<double>(&value)) all["counters"][name] = *number;
    else all["counters"][name] = std::get<std::string>(value);
  all["incidents"] = incidents;
  return all;
}

std::string FaultReport::text() const {
  std::string text;
  char line[512];
  std::snprintf(line, sizeof line, "%-20s %-18s %-18s %9s %9s %9s %9s %9s %9s %8s\n", "FAULT", "ACTION", "TARGET", "FIRED", "DETECTED", "FENCED",
                "RE-PLAN", "RELOAD", "RESUMED", "REPEATED");
  text += line;
  for (const auto& fault : faults) {
    std::snprintf(line, sizeof line, "%-20.40s %-18s %-18.40s %9s %9s %9s %9s %9s %9s %8u\n", fault.name.c_str(), fault.action.c_str(),
                  fault.target.c_str(), shown_time(fault.fired).c_str(), shown_time(fault.detected).c_str(), shown_time(fault.fenced).c_str(),
                  shown_time(fault.replanned).c_str(), shown_time(fault.loaded).c_str(), shown_time(fault.resumed).c_str(), fault.steps_repeated);
    text += line;
    if (!fault.note.empty()) text += "  " + fault.note + "\n";
  }
  text += "\n";
  for (const auto& each : expectations) text += std::string(each.held ? "  ok    " : "  FAILS ") + each.text + "   (" + each.shown + ")\n";
  for (const auto& each : requests)
    if (!each.completed) text += "  request " + each.id.substr(0, 8) + ": " + (each.failure.empty() ? "did not end" : each.failure) + "\n";
  text += "\nscenario " + scenario + ", seed " + std::to_string(seed) + ": " + std::string(name_of(verdict));
  if (!reason.empty()) text += " (" + reason + ")";
  return text + "\n";
}

}  // namespace orrery::launch
