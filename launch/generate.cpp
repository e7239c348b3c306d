// orrery generate: a prompt becomes a video, on a running cluster or on one brought up for it.

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>

#include "actors/client.hpp"
#include "actors/request_check.hpp"
#include "base/file.hpp"
#include "base/json.hpp"
#include "base/units.hpp"
#include "compiler/weight_file.hpp"
#include "launch/connect.hpp"
#include "launch/local_cluster.hpp"
#include "launch/paths.hpp"
#include "launch/progress.hpp"
#include "launch/registry.hpp"
#include "launch/security.hpp"
#include "launch/sidecar.hpp"
#include "launch/trace_option.hpp"
#include "launch/verb.hpp"
#include "launch/video_sink.hpp"
#include "topology/model_spec.hpp"

namespace orrery::launch {
namespace {

struct GenerateArguments {
  ClusterArguments cluster;
  ConnectArguments connect;
  std::string prompt, size, output = "video.mp4", noise, save_tensors, trace;
  std::optional<std::string> negative_prompt;
  std::optional<std::uint32_t> frames, steps, max_text_tokens;
  std::optional<double> guidance, fps;
  std::uint64_t seed = 42;
  std::string id, deadline;
};

/// 32 hex digits in small letters. Whoever names the same id again gets the same video.
Result<std::string> id_of(const GenerateArguments& arguments) {
  auto id = arguments.id;
  if (id.empty()) return actors::new_request_id();
  for (char& digit : id) digit = static_cast<char>(std::tolower(static_cast<unsigned char>(digit)));
  if (id.size() != 32 || id.find_first_not_of("0123456789abcdef") != std::string::npos)
    return Error{ErrorCode::usage, "--id '" + arguments.id.substr(0, 64) + "' is not a request id", "it has 32 hex digits, e.g. " + actors::new_request_id()};
  return id;
}

Result<double> deadline_of(const std::string& text) {
  if (text.empty()) return 0.0;
  auto seconds = parse_seconds(text);
  if (seconds.ok() && seconds.value() > 0) return seconds;
  return Error{ErrorCode::usage, "--deadline '" + text + "' is not a time", "write e.g. 30s or 10min"};
}

Result<topology::FrameSize> size_of(const std::string& text) {
  auto size = topology::parse_frame_size(text);
  if (!size.ok()) return Error{ErrorCode::usage, "--size " + size.error().message, size.error().hint};
  return size;
}

/// The request: what the command line says, the model's defaults for the rest.
Result<actors::RequestSpec> request_of(const GenerateArguments& arguments, const actors::RequestSpec& defaults) {
  auto spec = defaults;
  spec.prompt = arguments.prompt;
  spec.seed = arguments.seed;
  spec.save_tensors = !arguments.save_tensors.empty();
  ORRERY_TRY(deadline, deadline_of(arguments.deadline));
  spec.deadline_seconds = deadline;
  if (arguments.negative_prompt) spec.negative_prompt = *arguments.negative_prompt;
  if (arguments.frames) spec.frames = *arguments.frames;
  if (arguments.steps) spec.steps = *arguments.steps;
  if (arguments.max_text_tokens) spec.max_text_tokens = *arguments.max_text_tokens;
  if (arguments.guidance) spec.guidance = *arguments.guidance;
  if (arguments.fps) spec.fps = *arguments.fps;
  if (!arguments.size.empty()) {
    ORRERY_TRY(size, size_of(arguments.size));
    spec.width = size.width;
    spec.height = size.height;
  }
  return spec;
}

/// Intermediates in the shapes of the reference pipeline, batch dimension first.
class TensorCollector {
public:
  explicit TensorCollector(const actors::RequestSpec& spec) : spec_(spec) {}

  void add(const std::string& name, std::uint32_t step, Tensor tensor) {
    if (name == "prompt_embeds" || name == "negative_prompt_embeds") {
      // Only real rows travel; the rest is zero.
      Tensor padded(tensor.dtype(), {1, spec_.max_text_tokens, tensor.shape()[1]});
      std::copy_n(tensor.data(), std::min(tensor.bytes(), padded.bytes()), padded.data());
      tensors_[name] = std::move(padded);
    } else if (name == "video_raw") {
      pieces_[step] = std::move(tensor);
    } else {
      Shape shape{1};
      shape.insert(shape.end(), tensor.shape().begin(), tensor.shape().end());
      Tensor batch(tensor.dtype(), shape);
      std::copy_n(tensor.data(), tensor.bytes(), batch.data());
      tensors_[name == "latents" ? "step" + std::to_string(step) + ".latents" : name] = std::move(batch);
    }
  }
  void add_frames(std::span<const std::byte> rgb) { frames_.insert(frames_.end(), rgb.begin(), rgb.end()); }

  Status write(const std::string& path) {
    Tensor frames(DType::u8, {1, spec_.frames, spec_.height, spec_.width, 3});
    std::copy_n(frames_.data(), std::min<std::size_t>(frames_.size(), frames.bytes()), frames.data());
    tensors_["frames_u8"] = std::move(frames);
    // The pieces are [3][f][H][W]; the whole is [1][3][F][H][W].
    Tensor video(DType::f32, {1, 3, spec_.frames, spec_.height, spec_.width});
    const std::uint64_t plane = std::uint64_t{spec_.height} * spec_.width;
    std::uint64_t at = 0;
    for (const auto& [step, piece] : pieces_) {
      const auto count = piece.shape()[1];
      for (std::uint64_t channel = 0; channel < 3 && at + count <= spec_.frames; ++channel)
        std::copy_n(piece.as<float>().data() + channel * count * plane, count * plane,
                    video.as<float>().data() + (channel * spec_.frames + at) * plane);
      at += count;
    }
    tensors_["video_raw"] = std::move(video);
    std::map<std::string, TensorView> views;
    for (const auto& [name, tensor] : tensors_) views[name] = tensor.view();
    return compiler::write_safetensors(path, views);
  }

private:
  actors::RequestSpec spec_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::uint32_t, Tensor> pieces_;
  std::vector<std::byte> frames_;
};

Result<std::optional<compiler::TensorFile>> open_noise(const std::string& path) {
  if (path.empty()) return std::optional<compiler::TensorFile>{};
  auto opened = compiler::TensorFile::open(path);
  if (!opened.ok()) {
    auto error = opened.error();
    if (error.code == ErrorCode::invalid_model) error.code = ErrorCode::invalid_request;
    error.hint = "--noise takes a safetensors file with noise [1,C,T,H,W], f32";
    return error;
  }
  auto file = std::move(opened).value();
  if (!file.tensors().contains("noise"))
    return Error{ErrorCode::invalid_request, path + " has no tensor 'noise'", "it must hold noise [1,C,T,H,W], f32"};
  return std::optional<compiler::TensorFile>(std::move(file));
}

/// The noise as the denoiser takes it: [C,T,H,W].
Result<TensorView> noise_view(const compiler::TensorFile& file) {
  auto view = file.tensors().at("noise");
  if (view.dtype != DType::f32 || view.shape.size() < 4 || view.shape.size() > 5 || (view.shape.size() == 5 && view.shape[0] != 1))
    return Error{ErrorCode::invalid_request, "noise in " + file.path() + " is " + std::string(name_of(view.dtype)) + text_of(view.shape),
                 "it must be f32 [1,C,T,H,W]"};
  if (view.shape.size() == 5) view.shape.erase(view.shape.begin());
  return view;
}

void show(ProgressWriter& progress, const actors::StageEvent& event) {
  if (event.kind == actors::StageEvent::Kind::notice) {
    ProgressEvent note;
    note.kind = ProgressEvent::Kind::note;
    note.text = event.text;
    return progress.on_event(note);
  }
  static const std::map<std::string, std::pair<std::string, std::string>> names = {
      {"text_encoder", {"encode", "prompts"}}, {"denoiser", {"denoise", "steps"}}, {"decoder", {"decode", "chunks"}}};
  const auto found = names.find(event.stage);
  if (found == names.end()) return;
  ProgressEvent shown;
  shown.kind = event.kind == actors::StageEvent::Kind::started ? ProgressEvent::Kind::started
               : event.kind == actors::StageEvent::Kind::done  ? ProgressEvent::Kind::done
                                                               : ProgressEvent::Kind::advanced;
  shown.stage = found->second.first;
  shown.completed = event.done;
  shown.total = event.total;
  shown.unit = {found->second.second};
  progress.on_event(shown);
}

/// A file that is written at the end fails before the work, not after it.
Status check_writable(const std::string& path) {
  if (const auto trial = AtomicFile::create(path); !trial.ok()) return trial.error();
  return Done{};
}

/// What the video's frames go to.
Result<VideoSink> open_sink(const GenerateArguments& arguments, const actors::RequestSpec& spec) {
  VideoShape shape;
  shape.width = spec.width;
  shape.height = spec.height;
  shape.fps = spec.fps;
  shape.frames = spec.frames;
  if (!arguments.save_tensors.empty()) ORRERY_TRY_DONE(check_writable(arguments.save_tensors));
  return VideoSink::open(arguments.output, shape);
}

/// What generate needs of the user's files, opened before any process starts. `sink` is opened later, when only the
/// running cluster knows the model.
struct Files {
  std::optional<compiler::TensorFile> noise_file;
  std::optional<TensorView> noise;
  std::optional<VideoSink> sink;
};

Result<int> generate_on(actors::Client& client, const GenerateArguments& arguments, Files& files, const VerbContext& context,
                        SignalWatch& signals, ProgressWriter& progress, const SteadyClock& clock, LocalCluster* cluster) {
  ORRERY_TRY(facts, client.facts());
  ORRERY_TRY(id, id_of(arguments));
  ORRERY_TRY(spec, request_of(arguments, facts.defaults));
  if (!files.sink) {
    ORRERY_TRY(opened, open_sink(arguments, spec));
    files.sink = std::move(opened);
  }
  auto& sink = *files.sink;
  const auto frame_bytes = std::uint64_t{spec.width} * spec.height * 3;
  TensorCollector tensors(spec);

  actors::ClientHandlers handlers;
  handlers.on_event = [&](const actors::StageEvent& event) { show(progress, event); };
  handlers.on_frames = [&](std::span<const std::byte> rgb, std::uint64_t) -> Status {
    if (spec.save_tensors) tensors.add_frames(rgb);
    for (std::size_t at = 0; at + frame_bytes <= rgb.size(); at += frame_bytes)
      ORRERY_TRY_DONE(sink.add_frame(rgb.subspan(at, frame_bytes)));
    return Done{};
  };
  handlers.on_tensor = [&](const std::string& name, std::uint32_t step, Tensor tensor) { tensors.add(name, step, std::move(tensor)); };
  std::optional<Error> broken;
  handlers.interrupted = [&] {
    progress.refresh();
    if (cluster != nullptr) {
      for (const auto& line : cluster->take_news())
        if (context.verbose()) progress.say(line);
      if (const auto over = cluster->ended()) broken = over->ok() ? Error{ErrorCode::cancelled, "the cluster was told to end"} : over->error();
    }
    return signals.received().has_value() || broken.has_value();
  };
  if (context.verbose()) progress.say("request " + id);
  const auto started = clock.now();
  SidecarFacts sidecar;
  std::string written;
  handlers.on_complete = [&](const std::string& account) -> Status {
    // What ran it in the end; the plan may have changed on the way.
    if (auto now = client.facts(); now.ok() && !now.value().plan.empty()) facts = std::move(now).value();
    progress.finish();
    ORRERY_TRY(result, sink.finish());
    if (spec.save_tensors) ORRERY_TRY_DONE(tensors.write(arguments.save_tensors));
    sidecar.id = id;
    sidecar.spec = spec;
    sidecar.facts = facts;
    sidecar.account = account;
    sidecar.video = result;
    sidecar.noise_file = arguments.noise;
    sidecar.seconds = seconds_of(clock.now() - started);
    ORRERY_TRY(path, write_sidecar(sidecar));
    written = path;
    return Done{};
  };
  auto account = client.generate(id, spec, files.noise, handlers);
  if (broken) return *broken;
  if (!account.ok()) return account.error();
  const auto& result = sidecar.video;
  if (const auto json = parse_json(account.value(), "account"); json.ok())
    if (json.value().value(Json::json_pointer("/stages/text_encoder/truncated"), false))
      warn(context, "a prompt is longer than " + std::to_string(spec.max_text_tokens) + " tokens; what comes after them has no effect");

  if (!context.quiet())
    ORRERY_TRY_DONE(write_out(result.path + ": " + std::to_string(result.frames) + " frames of " + std::to_string(spec.width) + "x" +
                              std::to_string(spec.height) + " in " + text_of_seconds(sidecar.seconds) + "\nsha256 " + result.frames_sha256 +
                              " of the raw frames; provenance in " + written + "\n"));
  return 0;
}

/// What shapes a cluster cannot change one that runs already, and must not be passed over in silence.
Status check_for_running(const ClusterArguments& cluster) {
  const std::pair<const char*, bool> flags[] = {{"--set", !cluster.config.settings.empty()}, {"--deployment", !cluster.deployment.empty()},
                                                {"--dtype", !cluster.dtype.empty()}, {"--quantisation", !cluster.quantisation.empty()},
                                                {"--allow-faults", cluster.allow_faults}};
  for (const auto& [flag, given] : flags)
    if (given)
      return Error{ErrorCode::usage, std::string(flag) + " is for a cluster that is brought up for one video, and this one runs already",
                   "say it to `orrery up`, or name a cluster file with -f"};
  return Done{};
}

Result<int> run_generate(const GenerateArguments& given, const VerbContext& context) {
  auto arguments = given;
  // What can be told before any process starts.
  if (arguments.prompt.find_first_not_of(" \t\r\n") == std::string::npos)
    return Error{ErrorCode::usage, "the prompt is empty", "say what the video should show: orrery generate \"a red circle moving right\""};
  ORRERY_TRY_DONE([&]() -> Status {
    auto kind = video_kind_of(arguments.output);
    if (!kind.ok()) return kind.error();
    return Done{};
  }());
  ORRERY_TRY(id, id_of(arguments));
  arguments.id = id;
  ORRERY_TRY(noise_file, open_noise(arguments.noise));
  Files files;
  files.noise_file = std::move(noise_file);
  if (files.noise_file) {
    ORRERY_TRY(view, noise_view(*files.noise_file));
    files.noise = view;
  }
  ORRERY_TRY(timeline, TraceSession::open(arguments.trace));
  ORRERY_TRY(signals, SignalWatch::create());
  SteadyClock clock;
  ProgressWriter progress(context, clock);
  // The trace is written also of what failed: it shows why.
  const auto generate = [&](actors::Client& client, LocalCluster* cluster) -> Result<int> {
    timeline.follow(client);
    auto result = generate_on(client, arguments, files, context, signals, progress, clock, cluster);
    progress.finish();
    return timeline.finish(context, std::move(result));
  };
  const auto ended = [&](Result<int> result) -> Result<int> {
    progress.finish();
    if (!result.ok() && result.error().code == ErrorCode::cancelled)
      if (const auto signal = signals.received()) return exit_code_of_signal(*signal);
    return result;
  };

  if (!arguments.connect.cluster.empty() || (arguments.cluster.config.files.empty() && arguments.cluster.model_folder.empty())) {
    ORRERY_TRY(running, running_clusters());
    if (!arguments.connect.cluster.empty() || !running.empty()) {
      ORRERY_TRY_DONE(check_for_running(arguments.cluster));
      ORRERY_TRY(client, connect_to(arguments.connect));
      return ended(generate(*client.client, nullptr));
    }
  }
  if (arguments.connect.security.tls == topology::TlsUse::always || arguments.connect.security.insecure)
    return Error{ErrorCode::usage, "--tls and --insecure are for a cluster that runs already, and none was named",
                 "name it with --connect, or write `security:` into the cluster file"};
  if (arguments.cluster.config.files.empty()) {
    arguments.cluster.config.files = {resolve_config_path("clusters/laptop.yaml")};
    if (arguments.cluster.model_folder.empty()) arguments.cluster.config.files.push_back(resolve_config_path("models/cosmos-tiny.yaml"));
  }
  auto& request = arguments.cluster.request;
  request = {{}, arguments.frames, arguments.steps, arguments.max_text_tokens, arguments.guidance};
  if (!arguments.size.empty()) {
    ORRERY_TRY(size, size_of(arguments.size));
    request.size = size;
  }
  ORRERY_TRY(planned, plan_cluster(arguments.cluster, context));
  ORRERY_TRY(model, compiler::open_model_folder(planned.model_folder));
  ORRERY_TRY_DONE(actors::check_whole(model));
  ORRERY_TRY(spec, request_of(arguments, planned.defaults));
  ORRERY_TRY_DONE(actors::check_request(spec, model));
  if (files.noise) ORRERY_TRY_DONE(actors::check_noise(files.noise->shape, spec, model));
  ORRERY_TRY(sink, open_sink(arguments, spec));
  files.sink = std::move(sink);
  LocalClusterOptions options;
  options.end_when_starved = true;
  options.on_load = [&](std::uint64_t done, std::uint64_t total) {
    progress.on_event(load_event(planned.resolved.model.name, done, total));
  };
  auto cluster = LocalCluster::start(planned, arguments.cluster, options, signals);
  if (!cluster.ok()) return ended(cluster.error());
  auto client = cluster.value()->connect();
  if (!client.ok()) return ended(client.error());
  return ended(generate(*client.value(), cluster.value().get()));
}

}  // namespace

void add_generate(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("generate", "Makes a video from a prompt");
  auto arguments = std::make_shared<GenerateArguments>();
  auto& a = *arguments;
  verb->add_option("prompt", a.prompt, "What the video should show")->required()->type_name("PROMPT");
  add_config_options(*verb, a.cluster.config, false);
  verb->add_option("--deployment", a.cluster.deployment, "Which deployment, when the files hold several")->type_name("NAME");
  auto* connect = verb->add_option("--connect", a.connect.cluster, "A running cluster: HOST:PORT or a name")->type_name("CLUSTER");
  connect->excludes("--file");
  auto* model = verb->add_option("--model", a.cluster.model_folder, "A model folder, or a Model YAML file")->type_name("FOLDER|FILE");
  connect->excludes(model);
  add_security_options(*verb, a.connect.security);
  verb->add_option("--dtype", a.cluster.dtype, "Type of weights and activations in place of the model file's")->type_name("DTYPE")->check(CLI::IsMember({"float32", "bfloat16"}));
  add_quantisation_option(*verb, a.cluster.quantisation);
  verb->add_option("--size", a.size, "Frame size; default: the model's")->type_name("WIDTHxHEIGHT");
  verb->add_option("--frames", a.frames, "Number of frames, 8k+1; default: the model's")->type_name("N");
  verb->add_option("--steps", a.steps, "Denoising steps; default: the model's")->type_name("N");
  verb->add_option("--guidance", a.guidance, "Guidance scale, 1 or less: off; default: the model's")->type_name("G");
  verb->add_option("--fps", a.fps, "Frames per second; default: the model's")->type_name("N");
  verb->add_option("--seed", a.seed, "Seed of the noise")->type_name("N")->capture_default_str()->check([](const std::string& text) {
    return text.starts_with("-") ? "'" + text + "' is negative" : std::string();  // Else it would wrap around.
  });
  verb->add_option("--negative-prompt", a.negative_prompt, "What it should not show; default: the model's")->type_name("TEXT");
  verb->add_option("--max-text-tokens", a.max_text_tokens, "Text rows the denoiser sees; default: the model's")->type_name("N");
  verb->add_option("-o,--output", a.output, "NAME.mp4, NAME.y4m, NAME.png or a folder NAME/ of PNG files")->type_name("FILE")->capture_default_str();
  verb->add_option("--id", a.id, "The request's id, 32 hex digits; default: a new one. The same id and prompt again: the same request goes on")->type_name("ID");
  verb->add_option("--deadline", a.deadline, "Give up after this time, e.g. 30s; default: admission.request_deadline of the deployment")->type_name("TIME");
  verb->add_flag("--allow-faults", a.cluster.allow_faults, "A cluster started for this obeys `orrery fault`: for tests");
  verb->add_option("--noise", a.noise, "Initial noise (tensor `noise` [1,C,T,H,W]) in place of the seed's")->type_name("FILE");
  verb->add_option("--save-tensors", a.save_tensors, "Write all intermediates to a safetensors file")->type_name("FILE");
  add_trace_option(*verb, a.trace);
  verb->callback([arguments, &context] {
    // A Model file is one more configuration file.
    const auto& model_path = arguments->cluster.model_folder;
    if (model_path.ends_with(".yaml") || model_path.ends_with(".yml")) {
      arguments->cluster.config.files.push_back(model_path);
      arguments->cluster.model_folder.clear();
      if (arguments->cluster.config.files.size() == 1)
        arguments->cluster.config.files.insert(arguments->cluster.config.files.begin(), resolve_config_path("clusters/laptop.yaml"));
    }
    context.run = [arguments, &context] { return run_generate(*arguments, context); };
  });
  set_examples(*verb, {"orrery generate \"a red circle moving right\" -o video.mp4",
                       "orrery generate \"a blue square moving up\" -f configs/clusters/two_nodes.yaml -f configs/models/cosmos-tiny.yaml --seed 7",
                       "orrery generate \"a green triangle moving left\" --connect two_nodes -o frames/"});
}

}  // namespace orrery::launch
