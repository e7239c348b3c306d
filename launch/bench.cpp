// orrery bench: how fast things are here. Links, kernels, one deployment end to end, a whole experiment, and two results beside
// each other.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>

#include "base/file.hpp"
#include "base/units.hpp"
#include "launch/bench_compare.hpp"
#include "launch/bench_experiment.hpp"
#include "launch/bench_kernels.hpp"
#include "launch/bench_links.hpp"
#include "launch/config_files.hpp"
#include "launch/paths.hpp"
#include "launch/trace_option.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

/// The report, the verdict, and the exit code.
Result<int> conclude(const ExperimentEnd& end, const std::string& folder, OutputFormat format, const std::string& text, const VerbContext& context) {
  const auto& result = end.result;
  ORRERY_TRY_DONE(write_out(format == OutputFormat::json ? result.json().dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n" : text));
  if (!context.quiet()) std::fprintf(stderr, "orrery: %s, %s\n", folder.c_str(), result.state.c_str());
  if (end.signal) return exit_code_of_signal(*end.signal);
  if (!result.digests_constant()) return Error{ErrorCode::digest_mismatch, "the same request gave different frames; see output_sha256 in " + folder + "/result.json"};
  return result.assertions_held() ? 0 : exit_code_of(ErrorCode::expectation_not_met);
}

// ---- bench -f EXPERIMENT ---------------------------------------------------------------------------------------

struct ExperimentArguments {
  ConfigArguments config;
  std::string experiment, dir, trace;
  OutputFormat format = OutputFormat::table;
};

Result<int> run_file(const ExperimentArguments& arguments, const VerbContext& context) {
  if (arguments.config.files.empty())
    return Error{ErrorCode::usage, "'orrery bench' needs an Experiment (-f FILE), or one of links, kernels, e2e, compare",
                 "e.g. orrery bench -f configs/experiments/strong_cards.yaml"};
  ORRERY_TRY(signals, SignalWatch::create());
  ORRERY_TRY(set, read_configs(arguments.config, context));
  const auto& all = set.experiments();
  std::vector<std::string> names;
  for (const auto& [name, experiment] : all) names.push_back(name);
  if (all.empty()) return Error{ErrorCode::invalid_config, "the files hold no Experiment", "add one with -f; configs/experiments has some"};
  if (arguments.experiment.empty() && all.size() > 1) return Error{ErrorCode::usage, "the files hold several Experiments", "name one with --experiment; " + suggestion("", names)};
  const auto found = arguments.experiment.empty() ? all.begin() : all.find(arguments.experiment);
  if (found == all.end()) return Error{ErrorCode::usage, "there is no Experiment '" + shown(arguments.experiment) + "'", suggestion(arguments.experiment, names)};
  ExperimentOptions options;
  options.spec = found->second;
  options.trace = arguments.trace;
  ORRERY_TRY(config, BenchConfig::create(set, options.spec.deployment, shipped_configs()));
  ORRERY_TRY(folder, BenchFolder::create(arguments.dir.empty() ? options.spec.report.dir : arguments.dir, options.spec.name));
  ORRERY_TRY(end, run_experiment(options, config, folder, context, signals));
  return conclude(end, folder.path(), arguments.format, end.result.table(), context);
}

// ---- bench e2e ---------------------------------------------------------------------------------------------------

struct EndToEndArguments {
  ConfigArguments config;
  std::string deployment, model, dtype, prompt = "a red ball rolls over green grass", size, dir = "runs/e2e/{timestamp}", video = "y4m", trace;
  std::optional<std::uint32_t> frames, steps;
  std::optional<double> guidance;
  std::uint64_t seed = 42;
  std::uint32_t warmup = 1, runs = 5, requests = 1;
  OutputFormat format = OutputFormat::table;
};

/// One line for each time that was measured.
std::string times_text(const BenchResult& result) {
  const auto& row = result.rows.front();
  std::vector<std::vector<std::string>> cells = {{"", "median", "p90", "min", "ci95 of median", "n"}};
  const auto add = [&](const std::string& what, const std::vector<double>& samples) {
    if (samples.empty()) return;
    const auto all = summary_of(samples);
    cells.push_back({what, text_of_seconds(all.median), text_of_seconds(all.p90), text_of_seconds(all.min),
                     text_of_seconds(all.ci95.low) + " .. " + text_of_seconds(all.ci95.high), std::to_string(all.count)});
  };
  const auto samples = [&](const std::string& metric) {
    const auto found = row.samples.find(metric);
    return found == row.samples.end() ? std::vector<double>{} : found->second;
  };
  add("time to latents", samples("latents_seconds"));
  add("time to frames", samples("frames_seconds"));
  add("time to video", samples("video_seconds"));
  for (const auto* stage : {"text_encoder", "denoiser", "decoder"}) add(std::string(stage), samples(std::string(stage) + "_seconds"));
  add("denoising step", row.step_seconds);
  return aligned(cells) + "\n" + result.table();
}

Result<int> run_end_to_end(const EndToEndArguments& given, const VerbContext& context) {
  auto arguments = given;
  ORRERY_TRY(signals, SignalWatch::create());
  ExperimentOptions options;
  auto& spec = options.spec;
  spec.name = "e2e";
  spec.points.emplace_back();
  spec.workload.requests = arguments.requests;
  auto& request = spec.workload.request;
  request.prompt = arguments.prompt;
  request.num_frames = arguments.frames;
  request.num_inference_steps = arguments.steps;
  request.guidance_scale = arguments.guidance;
  request.seed = arguments.seed;
  if (!arguments.size.empty()) {
    auto size = topology::parse_frame_size(arguments.size);
    if (!size.ok()) return Error{ErrorCode::usage, "--size " + size.error().message, size.error().hint};
    request.size = arguments.size;
  }
  spec.repeat.warmup = arguments.warmup;
  spec.repeat.min_runs = spec.repeat.max_runs = arguments.runs;
  options.trace = arguments.trace;
  options.video_ending = arguments.video == "none" ? "" : "." + arguments.video;
  auto& files = arguments.config.files;
  const bool is_file = arguments.model.ends_with(".yaml") || arguments.model.ends_with(".yml");
  if (files.empty()) files.push_back(resolve_config_path("clusters/laptop.yaml"));
  if (is_file) files.push_back(arguments.model);
  else if (files.size() == 1 && arguments.model.empty() && given.config.files.empty()) files.push_back(resolve_config_path("models/cosmos-tiny.yaml"));
  ORRERY_TRY(folder, BenchFolder::create(arguments.dir, "e2e"));
  if (!arguments.model.empty() && !is_file) {
    // A folder is a Model that says nothing else.
    std::error_code ignored;
    const auto path = std::filesystem::absolute(arguments.model, ignored).lexically_normal().string();
    const auto quoted = Json(path).dump(-1, ' ', false, Json::error_handler_t::replace);
    ORRERY_TRY_DONE(folder.write("configurations/model.yaml", "apiVersion: orrery/v1\nkind: Model\nmetadata: {name: given}\nspec: {folder: " + quoted +
                                                                  ", dtype: " + (arguments.dtype.empty() ? "float32" : arguments.dtype) + "}\n"));
    files.push_back(folder.path() + "/configurations/model.yaml");
  } else if (!arguments.dtype.empty()) {
    arguments.config.settings.push_back("spec.dtype=" + arguments.dtype);
  }
  ORRERY_TRY(set, read_configs(arguments.config, context));
  ORRERY_TRY(config, BenchConfig::create(set, arguments.deployment, shipped_configs()));
  ORRERY_TRY(end, run_experiment(options, config, folder, context, signals));
  return conclude(end, folder.path(), arguments.format, times_text(end.result), context);
}

// ---- bench links -------------------------------------------------------------------------------------------------

struct LinksArguments {
  LinksOptions options;
  std::string op = "all_reduce", least = "4KiB", most = "64MiB";
  OutputFormat format = OutputFormat::table;
};

Result<int> run_links_verb(const LinksArguments& arguments, const VerbContext& context) {
  auto options = arguments.options;
  ORRERY_TRY(op, link_op_of(arguments.op));
  options.op = op;
  const auto bytes_of = [](const char* flag, const std::string& text) -> Result<std::uint64_t> {
    auto bytes = parse_bytes(text);
    if (!bytes.ok()) return Error{ErrorCode::usage, std::string(flag) + " '" + shown(text) + "' " + bytes.error().message, "e.g. 4KiB"};
    if (bytes.value() < 4 || bytes.value() > (std::uint64_t{1} << 30)) return Error{ErrorCode::usage, std::string(flag) + " '" + shown(text) + "' should be from 4 B to 1 GiB"};
    return bytes;
  };
  ORRERY_TRY(least, bytes_of("--min", arguments.least));
  ORRERY_TRY(most, bytes_of("--max", arguments.most));
  options.bytes_min = least;
  options.bytes_max = most;
  if (least > most) return Error{ErrorCode::usage, "--min " + arguments.least + " is more than --max " + arguments.most};
  ORRERY_TRY(signals, SignalWatch::create());
  for (const auto& doubt : doubts_about_machine()) warn(context, doubt);
  const bool json = arguments.format == OutputFormat::json;
  if (!json) ORRERY_TRY_DONE(write_out(links_head(options, load_average(), core_count())));
  auto rows = run_links(options, signals, [&](const LinkRow& row) -> Status {
    if (json) return Done{};
    return write_out(text_of(row));
  });
  if (!rows.ok()) {
    if (const auto signal = signals.received()) return exit_code_of_signal(*signal);
    return rows.error();
  }
  std::uint64_t wrong = 0;
  OrderedJson list = OrderedJson::array();
  for (const auto& row : rows.value()) {
    wrong += row.wrong;
    list.push_back(row.json());
  }
  ORRERY_TRY_DONE(write_out(json ? list.dump(2) + "\n" : links_foot(rows.value())));
  if (wrong > 0) return Error{ErrorCode::digest_mismatch, std::to_string(wrong) + " values were wrong"};
  return 0;
}

// ---- bench kernels -----------------------------------------------------------------------------------------------

struct KernelsArguments {
  KernelsOptions options;
  std::string dtype;
  OutputFormat format = OutputFormat::table;
};

Result<int> run_kernels_verb(const KernelsArguments& arguments, const VerbContext& context) {
  auto options = arguments.options;
  if (arguments.dtype == "f32") options.dtypes = {DType::f32};
  if (arguments.dtype == "bf16") options.dtypes = {DType::bf16};
  if (options.threads == 0) options.threads = core_count();
  ORRERY_TRY(signals, SignalWatch::create());
  for (const auto& doubt : doubts_about_machine()) warn(context, doubt);
  const bool json = arguments.format == OutputFormat::json;
  if (!json) ORRERY_TRY_DONE(write_out(kernels_head(options, load_average(), core_count())));
  auto rows = run_kernels(options, signals, [&](const KernelRow& row) -> Status {
    if (json) return Done{};
    return write_out(text_of(row));
  });
  if (!rows.ok()) {
    if (const auto signal = signals.received()) return exit_code_of_signal(*signal);
    return rows.error();
  }
  if (rows.value().empty()) return Error{ErrorCode::usage, "no operation has '" + shown(options.only) + "' in its name"};
  if (json) {
    OrderedJson list = OrderedJson::array();
    for (const auto& row : rows.value()) list.push_back(row.json());
    ORRERY_TRY_DONE(write_out(list.dump(2) + "\n"));
  }
  return 0;
}

// ---- bench compare -----------------------------------------------------------------------------------------------

struct CompareArguments {
  std::string a, b, threshold = "5%", metric;
  OutputFormat format = OutputFormat::table;
};

Result<int> run_compare(const CompareArguments& arguments) {
  ORRERY_TRY(threshold, threshold_of(arguments.threshold));
  ORRERY_TRY(a, read_bench_result(arguments.a));
  ORRERY_TRY(b, read_bench_result(arguments.b));
  ORRERY_TRY(comparison, compare(a, b, arguments.metric, threshold));
  ORRERY_TRY_DONE(write_out(arguments.format == OutputFormat::json ? comparison.json().dump(2) + "\n" : comparison.text(threshold)));
  return comparison.worse() ? exit_code_of(ErrorCode::expectation_not_met) : 0;
}

// ---- the verbs ---------------------------------------------------------------------------------------------------

void add_links(CLI::App& verb, VerbContext& context) {
  auto arguments = std::make_shared<LinksArguments>();
  auto& options = arguments->options;
  auto* links = verb.add_subcommand("links", "Collectives between processes of this host, with the columns of nccl-tests");
  links->add_option("--op", arguments->op, "Which collective")
      ->check(CLI::IsMember({"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "sendrecv"}))
      ->capture_default_str();
  links->add_option("--min", arguments->least, "Smallest size")->type_name("BYTES")->capture_default_str();
  links->add_option("--max", arguments->most, "Largest size")->type_name("BYTES")->capture_default_str();
  links->add_option("--factor", options.factor, "From size to size")->type_name("N")->check(CLI::Range(1.05, 1024.0))->capture_default_str();
  links->add_option("--ranks", options.ranks, "Processes")->type_name("N")->check(CLI::Range(2U, 64U))->capture_default_str();
  links->add_option("--transport", options.transport, "Way between them; auto takes what node processes take")
      ->check(CLI::IsMember({"auto", "shm", "ipc", "tcp"}))
      ->capture_default_str();
  links->add_option("--iterations", options.iterations, "In one sample; default: as many as take about 50 ms")->type_name("N")->check(CLI::Range(1U, 1'000'000U));
  links->add_option("--warmup", options.warmup, "Iterations before the first sample")->type_name("N")->check(CLI::Range(0U, 1'000'000U))->capture_default_str();
  links->add_option("--repetitions", options.repetitions, "Samples; the median is shown")->type_name("N")->check(CLI::Range(1U, 1000U))->capture_default_str();
  add_output_option(*links, arguments->format, {OutputFormat::table, OutputFormat::json});
  links->callback([arguments, &context] { context.run = [arguments, &context] { return run_links_verb(*arguments, context); }; });
  set_examples(*links, {"orrery bench links --op all_reduce --ranks 2", "orrery bench links --op all_to_all --ranks 4 --transport tcp --min 64KiB --max 1MiB -o json"});

  // What `links` starts for each rank; not for people.
  auto rank = std::make_shared<LinkRankArguments>();
  auto* child = verb.add_subcommand("link-rank", "One rank of links, told by JSON lines")->group("");
  child->add_option("--rank", rank->rank)->required();
  child->add_option("--ranks", rank->ranks)->required();
  child->add_option("--transport", rank->transport)->required();
  child->add_option("--folder", rank->folder)->required();
  child->add_option("--cluster-id", rank->cluster_id)->required();
  child->callback([rank, &context] { context.run = [rank] { return run_link_rank(*rank); }; });
}

void add_kernels(CLI::App& verb, VerbContext& context) {
  auto arguments = std::make_shared<KernelsArguments>();
  auto& options = arguments->options;
  auto* kernels = verb.add_subcommand("kernels", "Operations of the cpu card, as a part of what oneDNN or memcpy reach in the same run");
  options.threads = 0;
  kernels->add_option("--threads", options.threads, "Of the card; default: all cores")->type_name("N")->check(CLI::Range(1U, 256U));
  kernels->add_option("--dtype", arguments->dtype, "Of weights and activations; default: both")->check(CLI::IsMember({"f32", "bf16"}));
  kernels->add_option("--repetitions", options.repetitions, "Samples; the median is shown")->type_name("N")->check(CLI::Range(1U, 1000U))->capture_default_str();
  kernels->add_option("--only", options.only, "Operations that have this in their name")->type_name("TEXT");
  add_output_option(*kernels, arguments->format, {OutputFormat::table, OutputFormat::json});
  kernels->callback([arguments, &context] { context.run = [arguments, &context] { return run_kernels_verb(*arguments, context); }; });
  set_examples(*kernels, {"orrery bench kernels --threads 1 --dtype f32", "orrery bench kernels --only attention -o json"});
}

void add_end_to_end(CLI::App& verb, VerbContext& context) {
  auto arguments = std::make_shared<EndToEndArguments>();
  auto& a = *arguments;
  auto* one = verb.add_subcommand("e2e", "The same video again and again on one deployment: time to latents, frames and file");
  add_config_options(*one, a.config, false);
  one->add_option("--deployment", a.deployment, "Which deployment, when the files hold several")->type_name("NAME");
  one->add_option("--model", a.model, "A model folder, or a Model YAML file")->type_name("FOLDER|FILE");
  one->add_option("--dtype", a.dtype, "Type of weights and activations in place of the model file's")->type_name("DTYPE")->check(CLI::IsMember({"float32", "bfloat16"}));
  one->add_option("--prompt", a.prompt, "What the video should show")->type_name("TEXT");
  one->add_option("--size", a.size, "Frame size; default: the model's")->type_name("WIDTHxHEIGHT");
  one->add_option("--frames", a.frames, "Number of frames, 8k+1; default: the model's")->type_name("N")->check(CLI::Range(1U, 100'000U));
  one->add_option("--steps", a.steps, "Denoising steps; default: the model's")->type_name("N")->check(CLI::Range(1U, 1000U));
  one->add_option("--guidance", a.guidance, "Guidance scale; default: the model's")->type_name("G");
  one->add_option("--seed", a.seed, "Seed of the noise")->type_name("N")->capture_default_str();
  one->add_option("--requests", a.requests, "Submitted at once in each run")->type_name("N")->check(CLI::Range(1U, 256U))->capture_default_str();
  one->add_option("--warmup", a.warmup, "Runs that are not counted")->type_name("N")->check(CLI::Range(0U, 100U))->capture_default_str();
  one->add_option("--runs", a.runs, "Runs that are")->type_name("N")->check(CLI::Range(1U, 1000U))->capture_default_str();
  one->add_option("--video", a.video, "What frames are encoded to, for the time to the video")->check(CLI::IsMember({"mp4", "y4m", "none"}))->capture_default_str();
  one->add_option("--dir", a.dir, "Folder of the run's files")->type_name("FOLDER")->capture_default_str();
  add_trace_option(*one, a.trace);
  add_output_option(*one, a.format, {OutputFormat::table, OutputFormat::json});
  one->callback([arguments, &context] { context.run = [arguments, &context] { return run_end_to_end(*arguments, context); }; });
  set_examples(*one, {"orrery bench e2e", "orrery bench e2e -f configs/deployments/tensor.yaml --steps 8 --runs 9"});
}

void add_compare(CLI::App& verb, VerbContext& context) {
  auto arguments = std::make_shared<CompareArguments>();
  auto* compared = verb.add_subcommand("compare", "Two results of one experiment; exit code 7 when the second is slower");
  compared->add_option("a", arguments->a, "A run's folder, or its result.json")->required()->type_name("A");
  compared->add_option("b", arguments->b, "The one that may be slower")->required()->type_name("B");
  compared->add_option("--threshold", arguments->threshold, "What is no regression yet")->type_name("PART")->capture_default_str();
  compared->add_option("--metric", arguments->metric, "Which time; default: the experiment's")->type_name("NAME");
  add_output_option(*compared, arguments->format, {OutputFormat::table, OutputFormat::json});
  compared->callback([arguments, &context] { context.run = [arguments] { return run_compare(*arguments); }; });
  set_examples(*compared, {"orrery bench compare runs/strong-cards/20260101T100000Z runs/strong-cards/20260102T100000Z --threshold 3%"});
}

}  // namespace

void add_bench(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("bench", "Measures: an Experiment (-f), links, kernels, or one deployment end to end");
  verb->require_subcommand(0, 1);
  auto arguments = std::make_shared<ExperimentArguments>();
  add_config_options(*verb, arguments->config, false);
  verb->add_option("--experiment", arguments->experiment, "Which one, when the files hold several")->type_name("NAME");
  verb->add_option("--dir", arguments->dir, "Folder of the run's files; default: report.dir of the experiment")->type_name("FOLDER");
  add_trace_option(*verb, arguments->trace);
  add_output_option(*verb, arguments->format, {OutputFormat::table, OutputFormat::json});
  verb->callback([verb, arguments, &context] {
    if (verb->get_subcommands().empty()) context.run = [arguments, &context] { return run_file(*arguments, context); };
  });
  add_links(*verb, context);
  add_kernels(*verb, context);
  add_end_to_end(*verb, context);
  add_compare(*verb, context);
  set_examples(*verb, {"orrery bench -f configs/experiments/strong_cards.yaml", "orrery bench links --op all_reduce --ranks 2 --transport shm",
                       "orrery bench compare runs/a runs/b --threshold 5%"});
}

}  // namespace orrery::launch
