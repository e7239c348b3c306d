#include "launch/planned_cluster.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>

#include <sys/mman.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "actors/demand.hpp"
#include "actors/request_check.hpp"
#include "base/file.hpp"
#include "launch/config_files.hpp"
#include "launch/paths.hpp"
#include "topology/planner.hpp"

namespace orrery::launch {
namespace {

/// Moves what stands on standard input into memory and puts that in its place, so that it can be read more than once.
/// At most what the reader of YAML takes, and one byte, so that the reader sees that it is too much.
Result<std::shared_ptr<const int>> keep_standard_input() {
  const auto failed = [](const std::string& what) { return Error{ErrorCode::io_failed, "standard input could not be read: " + what}; };
  const int file = memfd_create("standard input", MFD_CLOEXEC);
  if (file < 0) return failed(errno_text());
  std::shared_ptr<const int> kept(new int(file), [](const int* held) {
    close(*held);
    delete held;
  });
  std::array<char, 65536> buffer{};
  for (std::size_t left = (std::size_t{1} << 20) + 1; left > 0;) {
    const auto got = read(0, buffer.data(), std::min(left, buffer.size()));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed(errno_text());
    if (got == 0) break;
    if (write(file, buffer.data(), static_cast<std::size_t>(got)) != got) return failed("no memory for it");
    left -= static_cast<std::size_t>(got);
  }
  if (lseek(file, 0, SEEK_SET) != 0 || dup2(file, 0) != 0) return failed(errno_text());
  return kept;
}

std::string text_of(double number) {
  char text[64];
  std::snprintf(text, sizeof text, "%.17g", number);
  return text;
}

}  // namespace

void add_quantisation_option(CLI::App& verb, std::string& quantisation) {
  verb.add_option("--quantisation", quantisation, "Of attention and feed-forward weights, in place of the model file's: int8 takes a quarter of float32's memory")
      ->type_name("none|int8")
      ->check(CLI::IsMember({"none", "int8"}));
}

void add_cluster_options(CLI::App& verb, ClusterArguments& arguments) {
  add_config_options(verb, arguments.config);
  verb.add_option("--deployment", arguments.deployment, "Which deployment, when the files hold several")->type_name("NAME");
  verb.add_option("--model", arguments.model_folder, "A model folder in place of the one in the YAML")->type_name("FOLDER");
  verb.add_option("--dtype", arguments.dtype, "Type of weights and activations in place of the model file's")
      ->type_name("DTYPE")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  add_quantisation_option(verb, arguments.quantisation);
  verb.add_flag("--allow-faults", arguments.allow_faults, "Let `orrery fault inject` do harm to this cluster; for tests only");
}

std::vector<std::string> words_of(const ClusterArguments& arguments) {
  std::vector<std::string> words;
  const auto add = [&words](const std::string& flag, const std::string& value) {
    if (!value.empty()) words.insert(words.end(), {flag, value});
  };
  for (const auto& file : arguments.config.files) add("-f", file);
  for (const auto& setting : arguments.config.settings) add("--set", setting);
  add("--deployment", arguments.deployment);
  add("--model", arguments.model_folder);
  add("--dtype", arguments.dtype);
  add("--quantisation", arguments.quantisation);
  const auto& request = arguments.request;
  if (request.size) add("--size", std::to_string(request.size->width) + "x" + std::to_string(request.size->height));
  if (request.frames) add("--frames", std::to_string(*request.frames));
  if (request.steps) add("--steps", std::to_string(*request.steps));
  if (request.max_text_tokens) add("--max-text-tokens", std::to_string(*request.max_text_tokens));
  if (request.guidance) add("--guidance", text_of(*request.guidance));
  if (arguments.allow_faults) words.emplace_back("--allow-faults");
  return words;
}

Result<PlannedCluster> plan_cluster(const ClusterArguments& arguments, const VerbContext& context) {
  PlannedCluster planned;
  planned.allow_faults = arguments.allow_faults;
  if (std::find(arguments.config.files.begin(), arguments.config.files.end(), "-") != arguments.config.files.end()) {
    ORRERY_TRY(kept, keep_standard_input());
    planned.input_file = "/proc/self/fd/" + std::to_string(*kept);
    planned.input_descriptor = std::move(kept);
  }
  ORRERY_TRY(set, read_configs(arguments.config, context));
  // With --model FOLDER the cluster's file may come alone; the weights are then used as float32 unless --dtype says otherwise.
  const bool folder_alone = !arguments.model_folder.empty() && set.models().empty();
  ORRERY_TRY(resolved, folder_alone ? set.resolve_without_model(arguments.deployment) : set.resolve(arguments.deployment));
  planned.resolved = std::move(resolved);
  auto& model = planned.resolved.model;
  if (folder_alone) model.dtype = DType::f32;
  if (!arguments.quantisation.empty())
    model.quantisation = arguments.quantisation == "int8" ? topology::Quantisation::int8 : topology::Quantisation::none;
  if (!arguments.dtype.empty()) model.dtype = arguments.dtype == "bfloat16" ? DType::bf16 : DType::f32;
  if (!arguments.model_folder.empty()) {
    planned.model_folder = arguments.model_folder;
    // Its own files say what it is; the YAML's geometry was another's.
    model.folder = std::filesystem::absolute(arguments.model_folder).lexically_normal().string();
    model.name = std::filesystem::path(model.folder).filename().string();
    model.geometry.reset();
  } else {
    ORRERY_TRY(folder, topology::folder_of(model));
    planned.model_folder = folder;
  }
  std::error_code ignored;
  planned.model_folder = std::filesystem::absolute(planned.model_folder, ignored).lexically_normal().string();
  auto opened = compiler::open_model_folder(planned.model_folder);
  if (!opened.ok()) return actors::model_error(opened.error());
  const auto& folder = opened.value();
  planned.defaults = actors::defaults_of(folder);
  auto& requested = planned.defaults;
  auto& written = model.defaults;
  if (arguments.model_folder.empty() && !(written == topology::RequestDefaults{})) {
    requested.width = written.size.width;
    requested.height = written.size.height;
    requested.frames = written.num_frames;
    requested.steps = written.num_inference_steps;
    requested.fps = written.fps;
    requested.guidance = written.guidance_scale;
    requested.max_text_tokens = written.max_text_tokens;
    if (!written.negative_prompt.empty()) requested.negative_prompt = written.negative_prompt;
  } else {
    written.size = {requested.width, requested.height};
    written.num_frames = requested.frames;
    written.num_inference_steps = requested.steps;
    written.guidance_scale = requested.guidance;
    written.max_text_tokens = requested.max_text_tokens;
  }
  const auto& request = arguments.request;
  if (request.size) model.defaults.size = *request.size;
  if (request.frames) model.defaults.num_frames = *request.frames;
  if (request.steps) model.defaults.num_inference_steps = *request.steps;
  if (request.guidance) model.defaults.guidance_scale = *request.guidance;
  if (request.max_text_tokens) model.defaults.max_text_tokens = *request.max_text_tokens;
  ORRERY_TRY(demand, actors::demand_of_folder(folder, model, topology::shape_of(model.defaults)));
  ORRERY_TRY(plan, topology::make_plan(planned.resolved.cluster, planned.resolved.deployment, demand,
                                        {topology::spare_cards(planned.resolved.cluster, planned.resolved.deployment.resilience.spares), {}}));
  planned.demand = std::move(demand);
  planned.plan = std::move(plan);
  return planned;
}

Result<actors::CoordinatorOptions> coordinator_options(const PlannedCluster& planned) {
  const auto& cluster = planned.resolved.cluster;
  ORRERY_TRY(listen, actors::parse_address(cluster.control.listen));
  actors::CoordinatorOptions options;
  options.cluster = cluster.name;
  options.listen_host = listen.host;
  options.listen_port = listen.port;
  options.plan = planned.plan;
  for (const auto& node : cluster.nodes) options.nodes.push_back(node.name);
  options.model_name = planned.resolved.model.name;
  options.model_folder = planned.model_folder;
  options.dtype = planned.resolved.model.arithmetic_name();
  options.defaults = planned.defaults;
  if (const auto configs = shipped_configs(); !configs.empty()) options.guardrail_folders.push_back(configs + "/guardrail");
  const auto& admission = planned.resolved.deployment.admission;
  options.max_in_flight = admission.max_in_flight;
  options.max_queue = admission.max_queue;
  options.allow_faults = planned.allow_faults;
  const auto& wanted = planned.resolved.deployment.resilience;
  // Centuries are enough, and fit.
  const auto duration = [](double seconds) { return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(std::min(seconds, 9e9))); };
  auto& resilience = options.resilience;
  resilience.heartbeat_interval = duration(wanted.heartbeat.interval);
  resilience.heartbeat_timeout = duration(wanted.heartbeat.timeout);
  resilience.replan_on_loss = wanted.on_card_loss == topology::OnCardLoss::replan;
  resilience.restarts_max = wanted.restarts.max;
  resilience.restarts_within = duration(wanted.restarts.within);
  resilience.straggler_factor = wanted.straggler.factor;
  resilience.straggler_steps = wanted.straggler.steps;
  resilience.result_ttl = duration(admission.keep_results);
  resilience.request_deadline = duration(admission.request_deadline.value_or(0));
  options.spares = topology::spare_cards(cluster, wanted.spares);
  options.plan_without = [cluster = planned.resolved.cluster, deployment = planned.resolved.deployment, demand = planned.demand](
                             const std::set<std::uint32_t>& lost, const std::map<std::uint32_t, double>& slowdown) {
    auto plan = topology::make_plan(cluster, deployment, demand, {lost, slowdown});
    if (plan.ok()) return plan;
    // The degrees that were asked for need cards that are gone. Any others give the same bytes, and better than waiting.
    auto flexible = deployment;
    flexible.parallelism = {};
    auto degraded = topology::make_plan(cluster, flexible, demand, {lost, slowdown});
    return degraded.ok() ? std::move(degraded) : std::move(plan);
  };
  return options;
}

std::string digest_text(const topology::Plan& plan) {
  char text[24];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(plan.digest()));
  return text;
}

}  // namespace orrery::launch
