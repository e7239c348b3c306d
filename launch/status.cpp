// orrery status: nodes, cards, requests and incidents of a running cluster.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <memory>

#include <CLI/CLI.hpp>

#include "actors/client.hpp"
#include "base/json.hpp"
#include "base/units.hpp"
#include "launch/connect.hpp"
#include "launch/security.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

struct StatusArguments {
  ConnectArguments connect;
  OutputFormat format = OutputFormat::table;
};

/// What may be missing in the answer of another version is shown as nothing.
std::string text_at(const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end()) return {};
  if (found->is_string()) return found->get<std::string>();
  return found->is_number_integer() ? std::to_string(found->get<std::int64_t>()) : std::string();
}
double number_at(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<double>() : 0;
}
const Json& list_at(const Json& json, const char* key) {
  static const Json none = Json::array();
  const auto found = json.find(key);
  return found != json.end() && found->is_array() ? *found : none;
}

template <class... Parts>
void add_line(std::string& text, const char* format, const Parts&... parts) {
  char line[1024];
  std::snprintf(line, sizeof line, format, parts...);
  text += line;
  if (text.back() != '\n') text += '\n';  // A line too long was cut.
}

/// "0.21 ms", or "-" for what did not happen.
std::string milliseconds_at(const Json& json, const char* key) {
  return json.contains(key) ? text_of_seconds(number_at(json, key) / 1000) : "-";
}

std::string clock_of(double seconds_since_1970) {
  const auto time = static_cast<std::time_t>(seconds_since_1970);
  std::tm local{};
  char text[16];
  if (::localtime_r(&time, &local) == nullptr || std::strftime(text, sizeof text, "%H:%M:%S", &local) == 0) return "-";
  return text;
}

std::string nodes_table(const Json& status) {
  std::string text;
  add_line(text, "%-16s %-12s %8s %10s %10s  %s\n", "NODE", "STATE", "PID", "RESIDENT", "CPU", "CARDS (USED / BUDGET)");
  for (const auto& node : list_at(status, "nodes")) {
    std::string cards;
    for (const auto& card : list_at(node, "cards"))
      cards += (cards.empty() ? "" : ", ") + text_of_bytes(number_at(card, "bytes")) + " / " + text_of_bytes(number_at(card, "budget"));
    if (const auto why = text_at(node, "why"); !why.empty() && text_at(node, "state") != "up") cards = why;
    const auto pid = text_at(node, "pid");
    add_line(text, "%-16s %-12s %8s %10s %10s  %.200s\n", text_at(node, "name").c_str(), text_at(node, "state").c_str(), pid.empty() ? "-" : pid.c_str(),
             node.contains("resident_bytes") ? text_of_bytes(number_at(node, "resident_bytes")).c_str() : "-",
             node.contains("cpu_seconds") ? text_of_seconds(number_at(node, "cpu_seconds")).c_str() : "-", cards.c_str());
  }
  for (const auto& card : list_at(status, "card_conditions"))
    add_line(text, "card %-11s %-12s %.200s\n", text_at(card, "card").c_str(), text_at(card, "state").c_str(), text_at(card, "why").c_str());
  return text;
}

std::string requests_table(const Json& status) {
  std::string text;
  if (list_at(status, "requests").empty()) return text;
  add_line(text, "\n%-12s %-14s %10s  %-22s %s\n", "REQUEST", "STAGE", "DONE", "STATE", "PROMPT");
  for (const auto& request : list_at(status, "requests")) {
    const auto key = text_at(request, "key");
    const auto done = text_at(request, "done") + "/" + text_at(request, "total");
    auto state = text_at(request, "state");
    if (const auto reason = text_at(request, "reason"); !reason.empty()) state += ": " + reason.substr(0, 200);
    add_line(text, "%-12.12s %-14s %10s  %-22s %.60s\n", key.empty() ? text_at(request, "id").c_str() : key.c_str(), text_at(request, "stage").c_str(),
             done.c_str(), state.c_str(), text_at(request, "prompt").c_str());
  }
  return text;
}

/// The last few: what failed, and how long each part of the recovery took.
std::string incidents_table(const Json& status) {
  constexpr std::size_t shown = 8;
  std::string text;
  const auto& incidents = list_at(status, "incidents");
  if (incidents.empty()) return text;
  add_line(text, "\n%-9s %9s %9s %9s %9s %9s %6s  %s\n", "AT", "DETECTED", "FENCED", "REPLANNED", "LOADED", "RESUMED", "AGAIN", "INCIDENT");
  for (std::size_t i = incidents.size() - std::min(shown, incidents.size()); i < incidents.size(); ++i) {
    const auto& one = incidents[i];
    auto what = text_at(one, "what");
    const auto listed = list_at(one, "consequences").size();
    if (const auto consequences = listed > 0 ? listed : static_cast<std::size_t>(number_at(one, "consequences")); consequences > 0)
      what += " (and " + std::to_string(consequences) + (consequences == 1 ? " consequence)" : " consequences)");
    add_line(text, "%-9s %9s %9s %9s %9s %9s %6s  %.300s\n", clock_of(number_at(one, "at")).c_str(), milliseconds_at(one, "detected_ms").c_str(),
             milliseconds_at(one, "fenced_ms").c_str(), milliseconds_at(one, "replanned_ms").c_str(), milliseconds_at(one, "loaded_ms").c_str(),
             milliseconds_at(one, "resumed_ms").c_str(), text_at(one, "steps_repeated").c_str(), what.c_str());
  }
  return text;
}

std::string table_of(const Json& status) {
  std::string text = "cluster " + text_at(status, "cluster") + ": " + text_at(status, "phase");
  if (const auto why = text_at(status, "waiting_for"); !why.empty()) text += ": " + why;
  if (const auto found = status.find("failure"); found != status.end() && found->is_object()) text += ": " + text_at(*found, "message");
  text += "\nmodel   " + text_at(status, "model") + ", " + text_at(status, "dtype");
  if (const auto epoch = text_at(status, "epoch"); !epoch.empty()) text += "; epoch " + epoch;
  if (const auto trouble = text_at(status, "journal"); !trouble.empty()) text += "\njournal " + trouble;
  return text + "\n\n" + nodes_table(status) + requests_table(status) + incidents_table(status);
}

Result<int> run_status(const StatusArguments& arguments) {
  ORRERY_TRY(client, connect_to(arguments.connect));
  ORRERY_TRY(text, client->status());
  ORRERY_TRY(status, parse_json(text, "the coordinator's answer"));
  if (arguments.format == OutputFormat::json)
    ORRERY_TRY_DONE(write_out(OrderedJson::parse(text).dump(2) + "\n"));
  else
    ORRERY_TRY_DONE(write_out(table_of(status)));
  return 0;
}

}  // namespace

void add_status(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("status", "Nodes, cards, requests and incidents of a running cluster");
  auto arguments = std::make_shared<StatusArguments>();
  verb->add_option("cluster", arguments->connect.cluster, "Name or HOST:PORT; may be left out when only one runs here")->type_name("CLUSTER");
  add_security_options(*verb, arguments->connect.security);
  add_output_option(*verb, arguments->format, {OutputFormat::table, OutputFormat::json});
  verb->callback([arguments, &context] { context.run = [arguments] { return run_status(*arguments); }; });
  set_examples(*verb, {"orrery status", "orrery status 10.0.0.1:7700 --keys /etc/orrery/keys -o json"});
}

}  // namespace orrery::launch
