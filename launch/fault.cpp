// orrery fault: scenarios from YAML with a verdict, and single faults in a running cluster.

#include <sys/stat.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>

#include "base/file.hpp"
#include "base/json.hpp"
#include "base/units.hpp"
#include "launch/config_files.hpp"
#include "launch/connect.hpp"
#include "launch/fault_order.hpp"
#include "launch/fault_run.hpp"
#include "launch/fault_submit.hpp"
#include "launch/paths.hpp"
#include "launch/security.hpp"
#include "launch/verb.hpp"
#include "topology/config_set.hpp"

namespace orrery::launch {
namespace {

constexpr int history_version = 1;

struct RunArguments {
  ConfigArguments config;
  std::string scenario, keep_logs, history;
  std::optional<std::uint64_t> seed;
  OutputFormat format = OutputFormat::table;
};

Result<topology::ScenarioSpec> scenario_of(const topology::ConfigSet& set, const std::string& name) {
  const auto& all = set.scenarios();
  if (!name.empty()) {
    const auto found = all.find(name);
    if (found != all.end()) return found->second;
    std::vector<std::string> known;
    for (const auto& [each, scenario] : all) known.push_back(each);
    return Error{ErrorCode::invalid_config, "there is no Scenario '" + shown(name) + "'", suggestion(name, known)};
  }
  if (all.empty()) return Error{ErrorCode::invalid_config, "the files hold no Scenario", "try -f configs/scenarios/kill_card.yaml"};
  if (all.size() > 1)
    return Error{ErrorCode::invalid_config, "the files hold " + std::to_string(all.size()) + " Scenarios", "choose one with --scenario NAME"};
  return all.begin()->second;
}

/// `drawn_before`: what a history says was drawn; null: nothing to compare with.
Result<int> run_one(const RunArguments& arguments, const VerbContext& context, const Json& drawn_before) {
  ORRERY_TRY(signals, SignalWatch::create());
  ORRERY_TRY(set, read_configs(arguments.config, context));
  FaultRunOptions options;
  ORRERY_TRY(scenario, scenario_of(set, arguments.scenario));
  options.scenario = std::move(scenario);
  if (arguments.seed) options.scenario.seed = *arguments.seed;
  options.keep_logs = arguments.keep_logs;
  options.cluster.config = arguments.config;
  options.cluster.deployment = options.scenario.deployment;
  options.cluster.allow_faults = true;
  ORRERY_TRY(planned, plan_cluster(options.cluster, context));
  ORRERY_TRY(drawn, draw_faults(options.scenario, planned.plan));
  const auto drawn_json = json_of(drawn);
  // Without regard to the order of keys, and numbers as they were written.
  if (!drawn_before.is_null() && drawn_before != Json::parse(drawn_json.dump()))
    return Error{ErrorCode::invalid_config, "the files are no longer those of the history: other faults are drawn from the same seed",
                 "restore them, or run the scenario anew with `orrery fault run`"};
  ORRERY_TRY(report, run_scenario(options, planned, context, signals));

  OrderedJson history{{"history", history_version}, {"files", arguments.config.files}, {"settings", arguments.config.settings}};
  history["scenario"] = options.scenario.name;
  history["seed"] = options.scenario.seed;
  history["drawn"] = drawn_json;
  history["report"] = report.json();
  auto path = arguments.history;
  if (path.empty() && !arguments.keep_logs.empty()) path = arguments.keep_logs + "/history.json";
  if (!path.empty()) {
    ORRERY_TRY(file, AtomicFile::create(path));
    ORRERY_TRY_DONE(file.write(history.dump(2) + "\n"));
    ORRERY_TRY_DONE(file.commit());
  }
  ORRERY_TRY_DONE(write_out(arguments.format == OutputFormat::json ? report.json().dump(2) + "\n" : report.text()));
  return exit_code_of(report.verdict);
}

Result<int> replay(const std::string& path, RunArguments arguments, const VerbContext& context) {
  ORRERY_TRY(json, read_json_file(path));
  const Error wrong{ErrorCode::invalid_config, path + " is not a history that `orrery fault run` wrote"};
  if (!json.is_object() || json.value("history", 0) != history_version) return wrong;
  for (const auto& [key, into] : {std::pair{"files", &arguments.config.files}, std::pair{"settings", &arguments.config.settings}}) {
    if (!json.contains(key) || !json[key].is_array()) return wrong;
    for (const auto& each : json[key]) {
      if (!each.is_string()) return wrong;
      into->push_back(each.get<std::string>());
    }
  }
  if (!json.contains("scenario") || !json["scenario"].is_string() || !json.contains("seed") || !json["seed"].is_number_unsigned() ||
      !json.contains("drawn") || !json["drawn"].is_array())
    return wrong;
  arguments.scenario = json["scenario"].get<std::string>();
  arguments.seed = json["seed"].get<std::uint64_t>();
  return run_one(arguments, context, json["drawn"]);
}

// ---- one fault in a running cluster ---------------------------------------------------------------------------

struct InjectArguments {
  ConnectArguments connect;
  FaultWords words;
};

Result<int> inject(const InjectArguments& arguments) {
  ORRERY_TRY(told, order_from_words(arguments.words));
  ORRERY_TRY(client, connect_to(arguments.connect));
  ORRERY_TRY_DONE(client->inject_fault(told.node, actors::json_of(told.order).dump()));
  const bool now = told.order.event == actors::FaultEvent::now;
  ORRERY_TRY_DONE(write_out("fault '" + told.order.name + "' " + (now ? "was injected" : "is armed") + "; end it with `orrery fault heal " +
                            told.order.name + "`\n"));
  return 0;
}

/// [{node, faults: [{name, action, state, ...}]}]
std::string rows_of(const Json& answers) {
  std::string text;
  for (const auto& answer : answers.is_array() ? answers : Json::array())
    for (const auto& fault : answer.is_object() ? answer.value("faults", Json::array()) : Json::array()) {
      char line[512];
      const auto ago = fault.contains("seconds_ago") ? text_of_seconds(fault.value("seconds_ago", 0.0)) + " ago" : std::string("-");
      std::snprintf(line, sizeof line, "%-24.60s %-12.40s %-18s %-8s %12s  %s\n", fault.value("name", "").c_str(),
                    answer.value("node", "").c_str(), fault.value("action", "").c_str(), fault.value("state", "").c_str(), ago.c_str(),
                    fault.contains("site") ? fault["site"].dump().substr(0, 100).c_str() : "");
      text += line;
    }
  return text;
}

Result<int> list(const ConnectArguments& cluster, OutputFormat format) {
  ORRERY_TRY(client, connect_to(cluster));
  ORRERY_TRY(answer, client->list_faults(""));
  ORRERY_TRY(json, parse_json(answer, "the coordinator's answer"));
  if (format == OutputFormat::json) {
    ORRERY_TRY_DONE(write_out(OrderedJson::parse(answer).dump(2) + "\n"));
    return 0;
  }
  char line[256];
  std::snprintf(line, sizeof line, "%-24s %-12s %-18s %-8s %12s  %s\n", "FAULT", "NODE", "ACTION", "STATE", "FIRED", "AT");
  ORRERY_TRY_DONE(write_out(line + rows_of(json)));
  return 0;
}

Result<int> heal(const ConnectArguments& cluster, const std::string& name) {
  ORRERY_TRY(client, connect_to(cluster));
  ORRERY_TRY_DONE(client->heal_faults("", name));
  ORRERY_TRY_DONE(write_out(name.empty() ? std::string("all faults are healed\n") : "fault '" + name + "' is healed\n"));
  return 0;
}

void add_report_options(CLI::App& verb, RunArguments& arguments) {
  add_output_option(verb, arguments.format, {OutputFormat::table, OutputFormat::json});
  verb.add_option("--keep-logs", arguments.keep_logs, "Keep the logs of all processes, and the history")->type_name("FOLDER");
  verb.add_option("--history", arguments.history, "Write what was drawn and seen, for `orrery fault replay`")->type_name("FILE");
}

void add_connect_options(CLI::App& verb, ConnectArguments& connect) {
  verb.add_option("--connect", connect.cluster, "Name or HOST:PORT of the cluster; may be left out when only one runs here")->type_name("CLUSTER");
  add_security_options(verb, connect.security);
}

}  // namespace

void add_fault(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("fault", "Runs fault scenarios, and injects faults into a running cluster");
  verb->require_subcommand(1);

  auto run_arguments = std::make_shared<RunArguments>();
  auto* run = verb->add_subcommand("run", "Brings a cluster up, runs a Scenario on it, and says whether its expectations hold (exit code 0, 7 or 8)");
  add_config_options(*run, run_arguments->config);
  run->add_option("--scenario", run_arguments->scenario, "Which one, when the files hold several")->type_name("NAME");
  run->add_option("--seed", run_arguments->seed, "In place of the file's: other targets, other moments of chance")->type_name("N");
  add_report_options(*run, *run_arguments);
  run->callback([run_arguments, &context] { context.run = [run_arguments, &context] { return run_one(*run_arguments, context, nullptr); }; });
  set_examples(*run, {"orrery fault run -f configs/scenarios/kill_card.yaml",
                      "orrery fault run -f configs/scenarios --scenario zombie --seed 7 -o json --keep-logs logs"});

  auto replay_arguments = std::make_shared<std::pair<std::string, RunArguments>>();
  auto* again = verb->add_subcommand("replay", "Runs a scenario again with all that was drawn from its seed");
  again->add_option("history", replay_arguments->first, "A file that --history or --keep-logs wrote")->required()->type_name("HISTORY");
  add_report_options(*again, replay_arguments->second);
  again->callback([replay_arguments, &context] {
    context.run = [replay_arguments, &context] { return replay(replay_arguments->first, replay_arguments->second, context); };
  });
  set_examples(*again, {"orrery fault replay logs/history.json"});

  auto inject_arguments = std::make_shared<InjectArguments>();
  auto& words = inject_arguments->words;
  auto* one = verb->add_subcommand("inject", "Makes one thing go wrong in a cluster that was started with --allow-faults");
  one->add_option("action", words.action, "kill, pause, slow, hang, cut, delay, corrupt, ...")->required()->type_name("ACTION");
  one->add_option("target", words.target, "NODE, NODE:CARD, NODE/NODE (a link) or coordinator")->required()->type_name("TARGET");
  one->add_option("parameters", words.parameters, "factor=4 latency=50ms jitter=5ms rate=1MB/s probability=0.1 bits=1 times=1 ...")->type_name("KEY=VALUE");
  one->add_option("--for", words.duration, "How long; default: until it is healed")->type_name("TIME");
  one->add_option("--name", words.name, "How `list` and `heal` call it; default: ACTION-TARGET")->type_name("NAME");
  one->add_option("--event", words.event, "When: now, command, step_begin, step_end, encode, decode, load")->type_name("EVENT")->capture_default_str();
  one->add_option("--request", words.request, "The n-th request from now on")->type_name("N");
  one->add_option("--step", words.step, "Denoising step, from 1")->type_name("N");
  one->add_option("--block", words.block, "Block of the model, from 0")->type_name("N");
  one->add_option("--seed", words.seed, "Of all chance in it")->type_name("N");
  one->add_flag("--one-way", words.one_way, "Links: only what goes from the first node to the second");
  add_connect_options(*one, inject_arguments->connect);
  one->callback([inject_arguments, &context] { context.run = [inject_arguments] { return inject(*inject_arguments); }; });
  set_examples(*one, {"orrery fault inject slow n1:0 factor=4 --for 10s", "orrery fault inject cut n1/n2 --one-way",
                      "orrery fault inject kill n2 --event step_end --step 5"});

  auto listed = std::make_shared<std::pair<ConnectArguments, OutputFormat>>(ConnectArguments{}, OutputFormat::table);
  auto* all = verb->add_subcommand("list", "Faults that are armed, active or healed");
  add_connect_options(*all, listed->first);
  add_output_option(*all, listed->second, {OutputFormat::table, OutputFormat::json});
  all->callback([listed, &context] { context.run = [listed] { return list(listed->first, listed->second); }; });
  set_examples(*all, {"orrery fault list"});

  auto healed = std::make_shared<std::pair<ConnectArguments, std::string>>();
  auto* end = verb->add_subcommand("heal", "Ends a fault, or all of them");
  end->add_option("name", healed->second, "Which one; default: all")->type_name("NAME");
  add_connect_options(*end, healed->first);
  end->callback([healed, &context] { context.run = [healed] { return heal(healed->first, healed->second); }; });
  set_examples(*end, {"orrery fault heal slow-n1:0", "orrery fault heal"});

  // What `run` starts for each request; not for people.
  auto submitted = std::make_shared<SubmitArguments>();
  auto* submit = verb->add_subcommand("submit", "One request of a scenario, told as JSON lines")->group("");
  submit->add_option("--connect", submitted->address)->required();
  add_security_options(*submit, submitted->security);
  submit->add_option("--id", submitted->id)->required();
  submit->add_option("--request", submitted->request)->required();
  submit->add_option("--patience", submitted->patience_seconds);
  submit->callback([submitted, &context] { context.run = [submitted] { return run_submit(*submitted); }; });
}

}  // namespace orrery::launch
