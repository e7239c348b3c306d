#include "topology/scenario_spec.hpp"

#include <algorithm>
#include <set>

#include "base/units.hpp"
#include "topology/model_spec.hpp"

namespace orrery::topology {
namespace {

using Action = ScenarioAction;
using Event = ScenarioEvent;

const std::vector<std::pair<std::string, Action>> actions = {
    {"kill", Action::kill},
    {"term", Action::term},
    {"segv", Action::segv},
    {"abort", Action::abort},
    {"pause", Action::pause},
    {"hang_node", Action::hang_node},
    {"slow", Action::slow},
    {"hang", Action::hang},
    {"fail", Action::fail},
    {"refuse_memory", Action::refuse_memory},
    {"flip_weights", Action::flip_weights},
    {"flip_activations", Action::flip_activations},
    {"crash_loading", Action::crash_loading},
    {"cut", Action::cut},
    {"stall", Action::stall},
    {"delay", Action::delay},
    {"rate", Action::rate},
    {"drop", Action::drop},
    {"duplicate", Action::duplicate},
    {"reorder", Action::reorder},
    {"corrupt", Action::corrupt},
    {"truncate", Action::truncate},
    {"disk_full", Action::disk_full},
    {"fail_sync", Action::fail_sync},
    {"short_write", Action::short_write},
    {"torn_write", Action::torn_write},
    {"point", Action::point},
    {"second_coordinator", Action::second_coordinator},
};

const std::vector<std::pair<std::string, Event>> events = {
    {"start", Event::start},   {"command", Event::command}, {"step_begin", Event::step_begin}, {"step_end", Event::step_end},
    {"encode", Event::encode}, {"decode", Event::decode},   {"load", Event::load},             {"recovery", Event::recovery},
    {"idle", Event::idle},
};

const std::vector<std::pair<std::string, TargetKind>> kinds = {
    {"card", TargetKind::card},       {"process", TargetKind::process},         {"node", TargetKind::node},
    {"link", TargetKind::link},       {"coordinator", TargetKind::coordinator}, {"storage", TargetKind::storage},
    {"client", TargetKind::client},
};

template <class E>
std::string_view word_of(const std::vector<std::pair<std::string, E>>& table, E value) {
  for (const auto& [word, one] : table)
    if (one == value) return word;
  return "unknown";
}

bool in_node(Event event) { return event >= Event::command && event <= Event::load; }

std::string positive(const double& seconds) { return seconds > 0 ? "" : "should be more than 0"; }
std::string at_most_a_day(const double& seconds) {
  return seconds > 0 && seconds <= 86'400 ? "" : "should be more than 0 and at most 24 h";
}

/// Text that is an expectation over the known counters.
Value<Expectation> expression(bool steady) {
  Value<Expectation> value;
  value.type = "comparison, e.g. `completed == requests`";
  value.json = {{"type", "string"}};
  value.text = [](const Expectation& one) { return one.text(); };
  value.read = [steady, plain = text()](const YamlNode& node, const std::string& path, Expectation& into, YamlReader& reader) {
    std::string given;
    if (!plain.read(node, path, given, reader)) return false;
    auto parsed = Expectation::parse(given);
    if (!parsed.ok()) {
      reader.complain(node, "E112", path, parsed.error().message, "e.g. 'recovery_seconds <= 2 s and steps_repeated <= 1'");
      return false;
    }
    std::vector<std::string> known;
    for (const auto& counter : scenario_counters())
      if (!steady || counter.steady) known.push_back(counter.name);
    bool good = true;
    for (const auto& name : parsed.value().names()) {
      if (std::find(known.begin(), known.end(), name) != known.end()) continue;
      auto hint = suggestion(name, known);
      if (hint.empty()) {
        for (const auto& each : known) hint += (hint.empty() ? "known: " : ", ") + each;
      }
      reader.complain(node, "E112", path, "asks for the unknown '" + shown(name) + "'", hint);
      good = false;
    }
    into = std::move(parsed).value();
    return good;
  };
  return value;
}

struct EventProbe {
  std::string event, after;
  double within = 0;
};

const Schema<EventProbe>& probe_schema() {
  static const Schema<EventProbe> schema =
      Schema<EventProbe>("event expectation", "Something that has to be seen in time, instead of a comparison.")
          .field("event", &EventProbe::event, text(), "`fired`, `detected`, `fenced`, `replanned`, `loaded` or `resumed`.",
                 {.required = true,
                  .check =
                      [](const std::string& event) {
                        const auto& known = scenario_events();
                        return std::find(known.begin(), known.end(), event) != known.end()
                                   ? std::string()
                                   : "should be fired, detected, fenced, replanned, loaded or resumed";
                      }})
          .field("within", &EventProbe::within, seconds(), "Counted from when the fault fired.", {.required = true, .check = at_most_a_day})
          .field("after", &EventProbe::after, text(), "Name of the fault.", {.required = true});
  return schema;
}

/// An expression, or a map with an event.
Value<ScenarioExpectation> expectation() {
  const auto compared = expression(false);
  const auto probed = object(probe_schema());
  Value<ScenarioExpectation> value;
  value.type = compared.type + ", or event expectation";
  value.json = {{"anyOf", OrderedJson::array({compared.json, probed.json})}};
  value.pages = probed.pages;
  value.read = [compared, probed](const YamlNode& node, const std::string& path, ScenarioExpectation& into, YamlReader& reader) {
    into.line = node.line;
    if (node.is_map()) {
      EventProbe probe;
      const bool good = probed.read(node, path, probe, reader);
      into.event = probe.event;
      into.after = probe.after;
      into.within = probe.within;
      return good;
    }
    Expectation read;
    const bool good = compared.read(node, path, read, reader);
    into.expression = std::move(read);
    return good;
  };
  return value;
}

/// Whole numbers, so that they are read like all others.
Value<std::uint64_t> count_from(std::uint64_t least, std::uint64_t most) { return whole<std::uint64_t>(least, most); }

const Schema<ScenarioFault>& fault_schema() {
  static const auto ordinal = whole<std::uint32_t>(1, 1'000'000);
  static const Schema<ScenarioWhen> when =
      Schema<ScenarioWhen>("when", "The moment of a fault, by progress: the same in every run.")
          .field("event", &ScenarioWhen::event, choice<Event>(events),
                 "`start`: as the workload begins. `command`, `step_begin`, `step_end`, `encode`, `decode`: in a card's program. `load`: half "
                 "of a component's weights are read. `recovery`: while the cluster re-plans. `idle`: all requests are done.",
                 {.required = true})
          .field("request", &ScenarioWhen::request, ordinal, "Of the workload, from 1.", {.standard = "any"})
          .field("step", &ScenarioWhen::step, ordinal, "Denoising step, from 1.", {.standard = "any"})
          .optional("block", &ScenarioWhen::block, whole<std::uint32_t>(0, 1'000'000), "Block of the model, from 0; only with `command`.",
                    {.standard = "any"})
          .field("stage", &ScenarioWhen::stage, text(), "`text_encoder`, `denoiser` or `decoder`.",
                 {.standard = "any", .check = [](const std::string& stage) {
                    return stage == "text_encoder" || stage == "denoiser" || stage == "decoder" ? ""
                                                                                                : "should be text_encoder, denoiser or decoder";
                  }});
  static const Schema<ScenarioWhere> where =
      Schema<ScenarioWhere>("where", "What a target has to be, when it is not named.")
          .field("role", &ScenarioWhere::role, text(), "Stage that it works for.",
                 {.example = "denoiser", .standard = "any", .check = [](const std::string& stage) {
                    return stage == "text_encoder" || stage == "denoiser" || stage == "decoder" ? ""
                                                                                                : "should be text_encoder, denoiser or decoder";
                  }})
          .field("node", &ScenarioWhere::node, text(), "Its node.", {.example = "n1", .standard = "any"})
          .optional("card", &ScenarioWhere::card, whole<std::uint32_t>(0, 65'535), "Its number within the node.", {.standard = "any"});
  static const Schema<ScenarioTarget> target =
      Schema<ScenarioTarget>("target", "What a fault is done to. What is left open is drawn from the seed.")
          .field("kind", &ScenarioTarget::kind, choice<TargetKind>(kinds),
                 "`card`, `node` (or `process`: its process), `link` between two nodes, `coordinator`, `storage` (the coordinator's), "
                 "`client` (who waits for a result).",
                 {.required = true})
          .field("mode", &ScenarioTarget::all, choice<bool>({{"one", false}, {"all", true}}), "All that fit, or `count` of them.")
          .field("count", &ScenarioTarget::count, whole<std::uint32_t>(1, 65'536), "How many, with `mode: one`.")
          .field("name", &ScenarioTarget::name, text(), "This one.", {.example = "n1:0", .standard = "drawn"})
          .field("where", &ScenarioTarget::where, object(where), "Which ones fit.", {.standard = "all of the kind"})
          .field("from", &ScenarioTarget::from, text(), "Node at one end of a link.", {.example = "n1", .standard = "drawn"})
          .field("to", &ScenarioTarget::to, text(), "Node at the other end.", {.example = "n2", .standard = "all others"})
          .field("direction", &ScenarioTarget::direction,
                 choice<ScenarioDirection>({{"both", ScenarioDirection::both}, {"forward", ScenarioDirection::forward}}),
                 "`forward`: only what goes from `from` to `to`.");
  static const Schema<ScenarioParameters> parameters =
      Schema<ScenarioParameters>("parameters", "How much.")
          .field("factor", &ScenarioParameters::factor, number(1, 1e6), "`slow`: times as long.")
          .field("latency", &ScenarioParameters::latency, seconds(), "`delay`, and `point` with `effect: delay`.")
          .field("jitter", &ScenarioParameters::jitter, seconds(), "`delay`: up to this more.")
          .field("rate", &ScenarioParameters::rate, bytes_per_second(), "`rate`: what goes through.",
                 {.check = [](const double& rate) { return rate >= 1 ? "" : "should be at least 1 B/s"; }})
          .field("probability", &ScenarioParameters::probability, number(0, 1), "Link faults: of each frame.")
          .field("bits", &ScenarioParameters::bits, count_from(1, 1'000'000), "`flip_...`: how many.")
          .field("bytes", &ScenarioParameters::bytes, bytes(), "`crash_loading`: after so many.", {.standard = "at once"})
          .field("times", &ScenarioParameters::times, count_from(0, 1'000'000'000), "`fail`, `fail_sync`, `short_write`, `point`; 0: no end.")
          .field("hit", &ScenarioParameters::hit, count_from(1, 1'000'000'000), "`point`: at this hit.")
          .field("point", &ScenarioParameters::point, text(), "`point`: its name.", {.example = "journal.before_fsync"})
          .field("effect", &ScenarioParameters::effect, text(), "`point`: `crash`, `fail`, `delay` or `hang`.", {.check = [](const std::string& one) {
                   return one == "crash" || one == "fail" || one == "delay" || one == "hang" ? "" : "should be crash, fail, delay or hang";
                 }});
  static const Schema<ScenarioEvery> every =
      Schema<ScenarioEvery>("every", "Not always.")
          .field("p", &ScenarioEvery::p, number(0, 1), "Links: share of the frames. Else: chance at each moment that fits.", {.required = true});
  static const Schema<ScenarioFault> schema =
      Schema<ScenarioFault>("fault", "One thing that goes wrong. Exactly one of `when`, `at` and `after` says when.")
          .field("name", &ScenarioFault::name, text(), "Unique in the scenario.",
                 {.required = true, .check = [](const std::string& name) {
                    return !name.empty() && name.size() <= 63 ? "" : "should be 1 to 63 characters";
                  }})
          .optional("when", &ScenarioFault::when, object(when), "By progress.")
          .optional("at", &ScenarioFault::at, seconds(), "By time, after the workload began.")
          .field("after", &ScenarioFault::after, text(), "When this other fault has fired.")
          .optional("for", &ScenarioFault::duration, seconds(), "How long; then it is healed.",
                    {.standard = "until the end", .check = at_most_a_day})
          .field("action", &ScenarioFault::action, choice<Action>(actions), "What goes wrong.", {.required = true})
          .field("target", &ScenarioFault::target, object(target), "What it is done to.", {.required = true})
          .field("parameters", &ScenarioFault::parameters, object(parameters), "How much.", {.standard = "see there"})
          .field("every", &ScenarioFault::every, object(every), "Not always.", {.standard = "always"});
  return schema;
}

const Schema<ScenarioSpec>& scenario_schema() {
  static const Schema<ScenarioRequest> request =
      Schema<ScenarioRequest>("scenario request", "What each request asks for; the rest is the model's default.")
          .field("prompt", &ScenarioRequest::prompt, text(), "What the video shows.")
          .optional("negative_prompt", &ScenarioRequest::negative_prompt, text(), "What it should not show.")
          .optional("num_inference_steps", &ScenarioRequest::num_inference_steps, whole<std::uint32_t>(1, 1000), "Denoising steps.")
          .optional("num_frames", &ScenarioRequest::num_frames, whole<std::uint32_t>(1, 100'000), "Frames.")
          .optional("size", &ScenarioRequest::size, text(), "`WIDTHxHEIGHT`.",
                    {.example = "64x64", .check = [](const std::string& size) {
                       const auto read = parse_frame_size(size);
                       return read.ok() ? std::string() : read.error().message;
                     }})
          .field("seed", &ScenarioRequest::seed, count_from(0, std::uint64_t{1} << 62), "Of the noise; request i has seed + i - 1.")
          .optional("guidance_scale", &ScenarioRequest::guidance_scale, number(0, 1000), "How closely the prompt is followed.");
  static const Schema<ScenarioWorkload> workload =
      Schema<ScenarioWorkload>("workload", "What the cluster works on meanwhile.")
          .field("requests", &ScenarioWorkload::requests, whole<std::uint32_t>(1, 10'000), "How many.")
          .field("concurrency", &ScenarioWorkload::concurrency, whole<std::uint32_t>(1, 256), "How many at once.")
          .field("request", &ScenarioWorkload::request, object(request), "Each of them.", {.standard = "the model's defaults"});
  static const Schema<ScenarioBudget> budget =
      Schema<ScenarioBudget>("budget", "What all faults together may cost; more is a failed scenario.")
          .optional("recovery_time_max", &ScenarioBudget::recovery_time_max, seconds(), "From a fault's detection until work goes on.",
                    {.check = positive})
          .optional("lost_steps_max", &ScenarioBudget::lost_steps_max, whole<std::uint32_t>(0, 1'000'000),
                    "Denoising steps done again, per failure.");
  static const Schema<ScenarioSpec> schema =
      Schema<ScenarioSpec>("Scenario", "Faults, what they are done to, and what has to be true afterwards. The keys of `spec`:")
          .field("deployment", &ScenarioSpec::deployment, text(), "Name of a Deployment.", {.standard = "the only one"})
          .field("seed", &ScenarioSpec::seed, count_from(0, std::uint64_t{1} << 62), "Every choice that is left open is drawn from it.")
          .field("workload", &ScenarioSpec::workload, object(workload), "What the cluster works on.", {.standard = "one request"})
          .field("steady_state", &ScenarioSpec::steady_state, list_of(expression(true), 64),
                 "Must hold before any fault; else the verdict is `inconclusive`.", {.standard = "every card is ready"})
          .field("steady_within", &ScenarioSpec::steady_within, seconds(), "Until then it must hold.", {.check = at_most_a_day})
          .field("timeout", &ScenarioSpec::timeout, seconds(), "For the whole workload.", {.check = at_most_a_day})
          .field("faults", &ScenarioSpec::faults, list_of(object(fault_schema()), 256), "What goes wrong.", {.standard = "none"})
          .field("heal", &ScenarioSpec::heal, choice<bool>({{"always", true}, {"never", false}}),
                 "Whether faults without `for` end when all have fired and the workload would wait for ever.")
          .field("expect", &ScenarioSpec::expect, list_of(expectation(), 256), "What has to be true at the end.",
                 {.required = true, .check = [](const std::vector<ScenarioExpectation>& all) {
                    return all.empty() ? "should not be empty" : "";
                  }})
          .field("budget", &ScenarioSpec::budget, object(budget), "What it may cost.", {.standard = "anything"});
  return schema;
}

/// Relations between the fields of one fault.
void check_fault(const ScenarioFault& fault, const std::string& key, const std::set<std::string>& names, const YamlNode& spec,
                 YamlReader& reader) {
  const auto place = [&](const std::string& path) -> const YamlNode& { return spec.nearest(path); };
  const int moments = (fault.when ? 1 : 0) + (fault.at ? 1 : 0) + (fault.after.empty() ? 0 : 1);
  if (moments != 1)
    reader.complain(place(key), "E112", "spec." + key, "should have exactly one of when, at and after, not " + std::to_string(moments));
  if (!fits(fault.action, fault.target.kind)) {
    std::string known;
    for (const auto& [word, kind] : kinds)
      if (fits(fault.action, kind)) known += (known.empty() ? "" : ", ") + word;
    reader.complain(place(key + ".target.kind"), "E112", "spec." + key + ".target.kind",
                    "'" + std::string(name_of(fault.target.kind)) + "' cannot be the target of '" + std::string(name_of(fault.action)) + "'",
                    "it can be: " + known);
  }
  if (!fault.after.empty() && (fault.after == fault.name || !names.contains(fault.after)))
    reader.complain(place(key + ".after"), "E201", "spec." + key + ".after", "names the unknown fault '" + shown(fault.after) + "'",
                    suggestion(fault.after, {names.begin(), names.end()}));
  if (fault.when && fault.when->block && fault.when->event != Event::command)
    reader.complain(place(key + ".when.block"), "E112", "spec." + key + ".when.block", "is only known at event 'command'");
  if (fault.when && !in_node(fault.when->event) && (fault.when->step != 0 || !fault.when->stage.empty()))
    reader.complain(place(key + ".when"), "E112", "spec." + key + ".when",
                    "has no step or stage at event '" + std::string(name_of(fault.when->event)) + "'");
  if (fault.action == Action::point && fault.parameters.point.empty())
    reader.complain(place(key + ".action"), "E104", "spec." + key + ".parameters.point", "is missing", "it says which point");
  if (fault.target.kind != TargetKind::link && (!fault.target.from.empty() || !fault.target.to.empty()))
    reader.complain(place(key + ".target"), "E112", "spec." + key + ".target", "has from or to, which only links have");
}

}  // namespace

std::string_view name_of(ScenarioEvent event) { return word_of(events, event); }
std::string_view name_of(ScenarioAction action) { return word_of(actions, action); }
std::string_view name_of(TargetKind kind) { return word_of(kinds, kind); }

const std::vector<ScenarioCounter>& scenario_counters() {
  static const std::vector<ScenarioCounter> all = {
      {"cards", "cards of the plan", true},
      {"nodes", "nodes that are connected", true},
      {"ready", "1 when a plan is loaded everywhere", true},
      {"requests", "requests of the workload", true},
      {"completed", "results that arrived whole"},
      {"failed", "requests that ended with a reason"},
      {"lost", "requests that were accepted and never ended"},
      {"duplicated", "frames that were delivered more than once or twice differently"},
      {"wrong", "results whose bytes differ from the reference"},
      {"frames_sha256", "digest over the digests of all results, in order"},
      {"reference", "the same of the run without faults"},
      {"faults", "faults of the scenario"},
      {"fired", "faults that fired"},
      {"incidents", "losses that the coordinator saw"},
      {"restarts", "processes that were started again"},
      {"epochs", "plans that were made since the workload began"},
      {"detection_seconds", "longest time from a fault to its detection"},
      {"recovery_seconds", "longest time from detection until work went on"},
      {"steps_repeated", "most denoising steps done again for one failure"},
      {"seconds", "of the whole workload"},
      {"frames_refused", "frames that failed a check, all nodes together"},
      {"refusals", "attempts that were refused: a second coordinator, a request without journal"},
  };
  return all;
}

const std::vector<std::string>& scenario_events() {
  static const std::vector<std::string> all = {"fired", "detected", "fenced", "replanned", "loaded", "resumed"};
  return all;
}

bool fits(ScenarioAction action, TargetKind target) {
  const bool machine = target == TargetKind::card || target == TargetKind::process || target == TargetKind::node;
  switch (action) {
    case Action::kill: return machine || target == TargetKind::coordinator || target == TargetKind::client;
    case Action::term:
    case Action::pause: return machine || target == TargetKind::coordinator;
    case Action::segv:
    case Action::abort:
    case Action::hang_node: return machine;
    case Action::slow:
    case Action::hang:
    case Action::fail:
    case Action::refuse_memory:
    case Action::flip_weights:
    case Action::flip_activations:
    case Action::crash_loading: return target == TargetKind::card || target == TargetKind::node;
    case Action::cut:
    case Action::stall:
    case Action::delay:
    case Action::rate:
    case Action::drop:
    case Action::duplicate:
    case Action::reorder:
    case Action::corrupt:
    case Action::truncate: return target == TargetKind::link;
    case Action::disk_full:
    case Action::fail_sync:
    case Action::short_write:
    case Action::torn_write: return target == TargetKind::storage;
    case Action::point: return machine || target == TargetKind::coordinator;
    case Action::second_coordinator: return target == TargetKind::coordinator;
  }
  return false;
}

ScenarioSpec read_scenario(const YamlNode& spec, const std::string& name, YamlReader& reader) {
  ScenarioSpec scenario;
  scenario.name = name;
  if (!scenario_schema().read(spec, "spec", scenario, reader)) return scenario;
  std::set<std::string> names;
  for (std::size_t i = 0; i < scenario.faults.size(); ++i)
    if (!names.insert(scenario.faults[i].name).second)
      reader.complain(spec.nearest("faults[" + std::to_string(i) + "].name"), "E202", "spec.faults[" + std::to_string(i) + "].name",
                      "'" + shown(scenario.faults[i].name) + "' is taken by another fault");
  for (std::size_t i = 0; i < scenario.faults.size(); ++i)
    check_fault(scenario.faults[i], "faults[" + std::to_string(i) + "]", names, spec, reader);
  // A chain of `after` has to begin somewhere.
  for (std::size_t i = 0; i < scenario.faults.size(); ++i) {
    std::set<std::string> seen;
    for (auto at = scenario.faults[i].name; !at.empty();) {
      if (!seen.insert(at).second) {
        reader.complain(spec.nearest("faults[" + std::to_string(i) + "].after"), "E112", "spec.faults[" + std::to_string(i) + "].after",
                        "waits for itself");
        break;
      }
      const auto found = std::find_if(scenario.faults.begin(), scenario.faults.end(), [&](const auto& each) { return each.name == at; });
      at = found == scenario.faults.end() ? "" : found->after;
    }
  }
  for (std::size_t i = 0; i < scenario.expect.size(); ++i)
    if (!scenario.expect[i].after.empty() && !names.contains(scenario.expect[i].after))
      reader.complain(spec.nearest("expect[" + std::to_string(i) + "].after"), "E201", "spec.expect[" + std::to_string(i) + "].after",
                      "names the unknown fault '" + shown(scenario.expect[i].after) + "'",
                      suggestion(scenario.expect[i].after, {names.begin(), names.end()}));
  if (scenario.workload.concurrency > scenario.workload.requests)
    reader.complain(spec.nearest("workload.concurrency"), "E112", "spec.workload.concurrency", "should not be more than the requests");
  return scenario;
}

OrderedJson scenario_json_schema() { return scenario_schema().json_schema(); }
std::vector<SchemaPage> scenario_pages() { return scenario_schema().pages(); }
std::vector<std::string> scenario_keys() { return scenario_schema().keys(); }

}  // namespace orrery::topology
