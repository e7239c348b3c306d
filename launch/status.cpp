// orrery status: nodes, cards and requests of a running cluster.

#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>

#include "actors/client.hpp"
#include "base/json.hpp"
#include "base/units.hpp"
#include "launch/connect.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

struct StatusArguments {
  std::string cluster;
  OutputFormat format = OutputFormat::table;
};

std::string table_of(const Json& status) {
  std::string text = "cluster " + status.value("cluster", "?") + ": " + status.value("phase", "?");
  if (status.contains("degraded")) text += ", degraded: " + status.value("degraded", "");
  text += "\nmodel   " + status.value("model", "?") + ", " + status.value("dtype", "?") + "\n\n";
  char line[512];
  std::snprintf(line, sizeof line, "%-16s %-8s %8s %10s %10s  %s\n", "NODE", "STATE", "PID", "RESIDENT", "CPU", "CARDS (USED / BUDGET)");
  text += line;
  for (const auto& node : status["nodes"]) {
    std::string cards;
    for (const auto& card : node.value("cards", Json::array()))
      cards += (cards.empty() ? "" : ", ") + text_of_bytes(card.value("bytes", 0.0)) + " / " + text_of_bytes(card.value("budget", 0.0));
    std::snprintf(line, sizeof line, "%-16s %-8s %8s %10s %10s  %s\n", node.value("name", "").c_str(), node.value("state", "").c_str(),
                  node.contains("pid") ? std::to_string(node["pid"].get<long>()).c_str() : "-",
                  node.contains("resident_bytes") ? text_of_bytes(node.value("resident_bytes", 0.0)).c_str() : "-",
                  node.contains("cpu_seconds") ? text_of_seconds(node.value("cpu_seconds", 0.0)).c_str() : "-", cards.c_str());
    text += line;
  }
  if (!status["requests"].empty()) {
    std::snprintf(line, sizeof line, "\n%-8s %-16s %10s  %-24s %s\n", "REQUEST", "STAGE", "DONE", "STATE", "PROMPT");
    text += line;
  }
  for (const auto& request : status["requests"]) {
    const auto done = std::to_string(request.value("done", 0)) + "/" + std::to_string(request.value("total", 0));
    std::snprintf(line, sizeof line, "%-8s %-16s %10s  %-24s %.60s\n", std::to_string(request.value("id", 0)).c_str(),
                  request.value("stage", "").c_str(), done.c_str(), request.value("state", "").substr(0, 200).c_str(),
                  request.value("prompt", "").c_str());
    text += line;
  }
  return text;
}

Result<int> run_status(const StatusArguments& arguments) {
  actors::Control control;
  ORRERY_TRY(client, connect_to(control, arguments.cluster));
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
  auto* verb = app.add_subcommand("status", "Nodes, cards and requests of a running cluster");
  auto arguments = std::make_shared<StatusArguments>();
  verb->add_option("cluster", arguments->cluster, "Name or HOST:PORT; may be left out when only one runs here")->type_name("CLUSTER");
  add_output_option(*verb, arguments->format, {OutputFormat::table, OutputFormat::json});
  verb->callback([arguments, &context] { context.run = [arguments] { return run_status(*arguments); }; });
  set_examples(*verb, {"orrery status", "orrery status 10.0.0.1:7700 -o json"});
}

}  // namespace orrery::launch
