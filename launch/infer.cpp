// orrery infer: one component of a model, files in, files out: on one card, or on the cards of a cluster file, all in
// this process. For whoever compares numbers with another implementation, or one cluster with another.

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>

#include <CLI/CLI.hpp>

#include "actors/denoise_schedule.hpp"
#include "actors/group_lane.hpp"
#include "base/clock.hpp"
#include "base/file.hpp"
#include "base/json.hpp"
#include "base/units.hpp"
#include "cards/card.hpp"
#include "compiler/run_component.hpp"
#include "compiler/tokenizer.hpp"
#include "compiler/weight_file.hpp"
#include "launch/config_files.hpp"
#include "launch/planned_cluster.hpp"
#include "launch/signals.hpp"
#include "launch/trace_option.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

namespace fs = std::filesystem;

struct InferArguments {
  ConfigArguments config;
  std::string folder, inputs, outputs, text, dtype = "float32", quantisation = "none", memory, deployment, trace;
  bool has_text = false;
  std::uint32_t steps = 0, threads = 0, slices = 8;
  std::uint64_t max_length = 0;
  OutputFormat format = OutputFormat::table;
};

/// Found out before the work and not after it.
Status check_output(const std::string& path) {
  if (path.empty()) return Error{ErrorCode::usage, "--outputs is required", "name a .safetensors file to write"};
  const auto parent = fs::path(path).parent_path();
  if (access(parent.empty() ? "." : parent.c_str(), W_OK) != 0)
    return Error{ErrorCode::io_failed, "cannot write " + path, "does the folder exist, and may you write there?"};
  return Done{};
}

Status write_tensors(const std::string& path, const compiler::NamedTensors& tensors, const VerbContext& context,
                     double seconds) {
  std::map<std::string, TensorView> views;
  for (const auto& [name, tensor] : tensors) views[name] = tensor.view();
  ORRERY_TRY_DONE(compiler::write_safetensors(path, views));
  if (context.quiet()) return Done{};
  std::string list;
  for (const auto& [name, view] : views)
    list += (list.empty() ? "" : ", ") + name + " " + std::string(name_of(view.dtype)) + text_of(view.shape);
  std::fprintf(stderr, "orrery: wrote %s: %s (%s)\n", path.c_str(), list.c_str(), text_of_seconds(seconds).c_str());
  return Done{};
}

Result<int> run_scheduler(const InferArguments& arguments, const VerbContext& context) {
  if (arguments.steps == 0) return Error{ErrorCode::usage, "a scheduler needs --steps", "e.g. --steps 36"};
  ORRERY_TRY_DONE(check_output(arguments.outputs));
  ORRERY_TRY(config, compiler::read_scheduler_config(arguments.folder + "/scheduler_config.json"));
  ORRERY_TRY(schedule, actors::make_schedule(config, arguments.steps));
  const auto column = [&](std::uint64_t count, auto value_of) {
    Tensor tensor(DType::f32, {count});
    auto values = tensor.as<float>();
    for (std::uint64_t i = 0; i < count; ++i) values[i] = value_of(i);
    return tensor;
  };
  const auto& steps = schedule.steps;
  const auto count = steps.size();
  compiler::NamedTensors tensors;
  tensors["sigmas"] =
      column(count + 1, [&](std::uint64_t i) { return i < count ? steps[i].sigma : steps.back().sigma_next; });
  tensors["timesteps"] = column(count, [&](std::uint64_t i) { return steps[i].timestep; });
  tensors["c_in"] = column(count, [&](std::uint64_t i) { return steps[i].c_in; });
  tensors["c_skip"] = column(count, [&](std::uint64_t i) { return steps[i].c_skip; });
  tensors["c_out"] = column(count, [&](std::uint64_t i) { return steps[i].c_out; });
  ORRERY_TRY_DONE(write_tensors(arguments.outputs, tensors, context, 0));
  return 0;
}

Result<int> run_tokenizer(const InferArguments& arguments) {
  if (!arguments.has_text) return Error{ErrorCode::usage, "a tokenizer needs --text", "e.g. --text \"a red circle\""};
  ORRERY_TRY(tokenizer, compiler::Tokenizer::open(arguments.folder));
  const auto limit = arguments.max_length > 0 ? arguments.max_length : tokenizer.recommended_length();
  ORRERY_TRY(tokens, tokenizer.encode(arguments.text, limit));
  std::string text;
  if (arguments.format == OutputFormat::json) {
    // Also as the encoder takes them: padded to the limit.
    auto padded = tokens.ids;
    padded.resize(limit, tokenizer.pad_id());
    std::vector<int> mask(limit, 0);
    std::fill_n(mask.begin(), tokens.ids.size(), 1);
    const OrderedJson document{{"ids", tokens.ids},   {"count", tokens.count()}, {"truncated", tokens.truncated},
                               {"max_length", limit}, {"input_ids", padded},     {"attention_mask", mask}};
    text = document.dump() + "\n";
  } else {
    for (const auto id : tokens.ids) text += (text.empty() ? "" : " ") + std::to_string(id);
    text += "\n";
  }
  ORRERY_TRY_DONE(write_out(text));
  return 0;
}

struct Inferred {
  compiler::NamedTensors outputs;
  std::string use;            // What it took, for -v.
  std::optional<int> signal;  // That ended it before there were outputs.
};

Result<Inferred> on_one_card(const InferArguments& arguments, const compiler::ModelFolder& folder,
                             const compiler::NamedTensors& inputs, const compiler::ComponentOptions& component) {
  cards::CardOptions options;
  options.name = "local";
  options.threads = arguments.threads > 0 ? arguments.threads : std::max(1U, std::thread::hardware_concurrency());
  options.memory_bytes =
      static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  if (!arguments.memory.empty()) {
    auto bytes = parse_bytes(arguments.memory);
    if (!bytes.ok()) return Error{ErrorCode::usage, "--memory " + bytes.error().message, bytes.error().hint};
    options.memory_bytes = bytes.value();
  }
  ORRERY_TRY(card, cards::make_cpu_card(options));
  ORRERY_TRY(outputs, compiler::run_component(folder, folder.single_component, inputs, *card, component));
  return Inferred{std::move(outputs),
                  "orrery: most card memory used: " + text_of_bytes(static_cast<double>(card->use().high_water)) + "\n",
                  {}};
}

Result<actors::GroupOptions> group_of(const InferArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(set, read_configs(arguments.config, context));
  ORRERY_TRY(resolved, set.resolve_without_model(arguments.deployment));
  actors::GroupOptions group;
  group.cluster = resolved.cluster;
  group.deployment = resolved.deployment;
  group.dtype = arguments.dtype;
  return group;
}

Result<Inferred> on_cluster(const InferArguments& arguments, const compiler::ModelFolder& folder,
                            const compiler::NamedTensors& inputs, const compiler::ComponentOptions& component,
                            const VerbContext& context) {
  ORRERY_TRY(group, group_of(arguments, context));
  group.component = folder.single_component;
  ORRERY_TRY(signals, SignalWatch::create());
  actors::GroupLanes lanes(std::move(group));
  Result<compiler::NamedTensors> outputs = compiler::NamedTensors{};
  const int done = ::eventfd(0, EFD_CLOEXEC);
  if (done < 0) return Error{ErrorCode::io_failed, "no eventfd: " + errno_text()};
  std::thread work([&] {
    outputs = compiler::run_component(folder, folder.single_component, inputs, lanes, component);
    ORRERY_CHECK(::eventfd_write(done, 1) == 0);
  });
  while (signals.wait_for_signal_or({&done, 1}, std::chrono::hours(1)) == SignalWatch::Woken::timed_out) {
  }
  if (signals.received()) lanes.cancel();
  work.join();
  ::close(done);
  if (!outputs.ok()) {
    if (const auto signal = signals.received(); signal && outputs.error().code == ErrorCode::cancelled)
      return Inferred{{}, {}, signal};
    return outputs.error();
  }
  std::string use;
  for (const auto& card : lanes.cards()) {
    std::string slices;
    for (const auto slice : card.slices) slices += " " + std::to_string(slice);
    use += "orrery: " + card.name + ": slices" + slices +
           "; most card memory used: " + text_of_bytes(static_cast<double>(card.use.high_water)) + "\n";
  }
  return Inferred{std::move(outputs).value(), std::move(use), {}};
}

Status check_cluster_flags(const InferArguments& arguments) {
  if (arguments.config.files.empty()) {
    if (!arguments.deployment.empty() || !arguments.config.settings.empty())
      return Error{ErrorCode::usage, "--deployment and --set are about configuration files, and there are none",
                   "name some with -f"};
  } else if (arguments.threads > 0 || !arguments.memory.empty()) {
    return Error{ErrorCode::usage,
                 "--threads and --memory are for one card; with -f the cluster file says what its cards have",
                 "change it there, or drop -f"};
  }
  return Done{};
}

Result<int> run_one_component(const InferArguments& arguments, const VerbContext& context) {
  ORRERY_TRY_DONE(check_cluster_flags(arguments));
  if (arguments.inputs.empty())
    return Error{ErrorCode::usage, "--inputs is required", "name a .safetensors file with the component's inputs"};
  ORRERY_TRY_DONE(check_output(arguments.outputs));
  ORRERY_TRY(folder, compiler::open_model_folder(arguments.folder));
  if (folder.single_component.empty())
    return Error{ErrorCode::usage, arguments.folder + " is a whole model",
                 "name one component: " + arguments.folder + "/transformer, text_encoder, vae, scheduler or tokenizer"};
  ORRERY_TRY(file, compiler::TensorFile::open(arguments.inputs));
  compiler::NamedTensors inputs;
  for (const auto& [name, view] : file.tensors()) {
    Tensor copy(view.dtype, view.shape);
    if (copy.bytes() > 0) std::memcpy(copy.data(), view.data, copy.bytes());
    inputs.emplace(name, std::move(copy));
  }

  compiler::ComponentOptions component;
  component.compute = compiler::compute_named(arguments.dtype + (arguments.quantisation == "int8" ? "+int8" : "")).value_or(compiler::Compute::f32);
  component.slices = arguments.slices;
  const SteadyClock clock;
  const auto start = clock.now();
  ORRERY_TRY(inferred, arguments.config.files.empty() ? on_one_card(arguments, folder, inputs, component)
                                                      : on_cluster(arguments, folder, inputs, component, context));
  if (inferred.signal) return exit_code_of_signal(*inferred.signal);
  ORRERY_TRY_DONE(write_tensors(arguments.outputs, inferred.outputs, context, seconds_of(clock.now() - start)));
  if (context.verbose()) std::fputs(inferred.use.c_str(), stderr);
  return 0;
}

Result<int> run_infer(const InferArguments& arguments, const VerbContext& context) {
  std::error_code ignored;
  const auto on_host = [&](const char* what) {
    if (!arguments.config.files.empty()) warn(context, std::string("-f has no effect: a ") + what + " runs on no card");
  };
  if (fs::exists(arguments.folder + "/scheduler_config.json", ignored)) {
    on_host("scheduler");
    return run_scheduler(arguments, context);
  }
  const bool has_config = fs::exists(arguments.folder + "/config.json", ignored) ||
                          fs::exists(arguments.folder + "/model_index.json", ignored);
  if (!has_config && (arguments.has_text || fs::exists(arguments.folder + "/spiece.model", ignored))) {
    on_host("tokenizer");
    return run_tokenizer(arguments);
  }
  ORRERY_TRY(timeline, TraceSession::open(arguments.trace));
  timeline.record_here();
  return timeline.finish(context, run_one_component(arguments, context));
}

}  // namespace

void add_infer(CLI::App& app, VerbContext& context) {
  auto* verb =
      app.add_subcommand("infer", "Runs one component of a model, on one card or on a cluster's, from files to files");
  auto arguments = std::make_shared<InferArguments>();
  verb->add_option("folder", arguments->folder, "MODEL/transformer, text_encoder, vae, scheduler or tokenizer")
      ->type_name("FOLDER")
      ->required();
  verb->add_option("--inputs", arguments->inputs, "Tensors to feed, with the reference pipeline's names")
      ->type_name("IN.safetensors");
  verb->add_option("--outputs", arguments->outputs, "Tensors to write")->type_name("OUT.safetensors");
  add_config_options(*verb, arguments->config, false);
  verb->add_option("--deployment", arguments->deployment, "Which deployment, when the files hold several")
      ->type_name("NAME");
  verb->add_option("--dtype", arguments->dtype, "Of matrix products; default float32")
      ->type_name("float32|bfloat16")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  add_quantisation_option(*verb, arguments->quantisation);
  verb->add_option("--threads", arguments->threads, "Cores to use; default all. The result does not depend on it")
      ->type_name("N")
      ->check(CLI::Range(1U, 1024U));
  verb->add_option("--slices", arguments->slices,
                   "Slices to cut the component into, at most; part of the numerics class; default 8")
      ->type_name("V")
      ->check(CLI::Range(1U, 1024U));
  verb->add_option("--memory", arguments->memory, "Hard budget of the card; default this machine's memory")
      ->type_name("8GiB");
  add_trace_option(*verb, arguments->trace);
  verb->add_option("--steps", arguments->steps, "scheduler: number of denoising steps")->type_name("N");
  verb->add_option_function<std::string>(
          "--text",
          [arguments](const std::string& text) {
            arguments->text = text;
            arguments->has_text = true;
          },
          "tokenizer: what to tokenize")
      ->type_name("TEXT");
  verb->add_option("--max-length", arguments->max_length, "tokenizer: most ids; default what the folder recommends")
      ->type_name("N")
      ->check(CLI::Range(1U, 1U << 20));
  add_output_option(*verb, arguments->format, {OutputFormat::table, OutputFormat::json});
  set_examples(*verb,
               {
                   "orrery infer MODEL/transformer --inputs in.safetensors --outputs out.safetensors --dtype bfloat16",
                   "orrery infer MODEL/transformer --inputs in.safetensors --outputs out.safetensors -f "
                   "configs/clusters/two_nodes.yaml",
                   "orrery infer MODEL/text_encoder --inputs in.safetensors --outputs out.safetensors -f "
                   "configs/deployments/sequence.yaml",
                   "orrery infer MODEL/scheduler --steps 36 --outputs schedule.safetensors",
                   "orrery infer MODEL/tokenizer --text \"a red circle\" --max-length 64 -o json",
               });
  verb->callback(
      [&context, arguments] { context.run = [&context, arguments] { return run_infer(*arguments, context); }; });
}

}  // namespace orrery::launch
