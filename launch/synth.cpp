#include "launch/synth.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "base/clock.hpp"
#include "base/digest.hpp"
#include "base/file.hpp"
#include "base/random.hpp"
#include "base/units.hpp"
#include "compiler/compile.hpp"
#include "compiler/model_folder.hpp"
#include "compiler/models/cosmos_codec.hpp"
#include "launch/paths.hpp"
#include "launch/progress.hpp"
#include "launch/signals.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {
namespace {

namespace fs = std::filesystem;

/// The configs of a model, as JSON; later sources replace earlier ones by component.
struct ModelConfigs {
  Json transformer, text_encoder, vae, scheduler, generation;
  std::string tokenizer;  // Folder to copy.
};

Json published_transformer(int heads, int layers, const std::vector<double>& rope_scale) {
  return {{"_class_name", "CosmosTransformer3DModel"}, {"in_channels", 16}, {"out_channels", 16}, {"num_attention_heads", heads},
          {"attention_head_dim", 128}, {"num_layers", layers}, {"mlp_ratio", 4.0}, {"text_embed_dim", 1024}, {"adaln_lora_dim", 256},
          {"max_size", {128, 240, 240}}, {"patch_size", {1, 2, 2}}, {"rope_scale", rope_scale}, {"concat_padding_mask", true},
          {"extra_pos_embed_type", "learnable"}};
}

ModelConfigs published(int heads, int layers, const std::vector<double>& rope_scale) {
  ModelConfigs configs;
  configs.transformer = published_transformer(heads, layers, rope_scale);
  configs.text_encoder = {{"architectures", {"T5EncoderModel"}}, {"model_type", "t5"}, {"vocab_size", 32128}, {"d_model", 1024}, {"d_kv", 128},
                          {"d_ff", 65536}, {"num_layers", 24}, {"num_heads", 128}, {"relative_attention_num_buckets", 32},
                          {"layer_norm_epsilon", 1e-6}, {"feed_forward_proj", "relu"}};
  configs.vae = {{"_class_name", "AutoencoderKLCosmos"}, {"in_channels", 3}, {"out_channels", 3}, {"latent_channels", 16},
                 {"encoder_block_out_channels", {128, 256, 512, 512}}, {"decode_block_out_channels", {256, 512, 512, 512}},
                 {"attention_resolutions", {32}}, {"resolution", 1024}, {"num_layers", 2}, {"patch_size", 4}, {"patch_type", "haar"},
                 {"spatial_compression_ratio", 8}, {"temporal_compression_ratio", 8}, {"latents_mean", nullptr}, {"latents_std", nullptr}};
  configs.scheduler = {{"_class_name", "EDMEulerScheduler"}, {"sigma_min", 0.002}, {"sigma_max", 80.0}, {"sigma_data", 0.5},
                       {"sigma_schedule", "karras"}, {"num_train_timesteps", 1000}, {"prediction_type", "epsilon"}, {"rho", 7.0},
                       {"final_sigmas_type", "sigma_min"}};
  return configs;
}

Status take_folder(const std::string& folder, ModelConfigs& configs) {
  const std::pair<const char*, Json*> parts[] = {{"transformer/config.json", &configs.transformer},
                                                 {"text_encoder/config.json", &configs.text_encoder},
                                                 {"vae/config.json", &configs.vae},
                                                 {"scheduler/scheduler_config.json", &configs.scheduler},
                                                 {"generation_config.json", &configs.generation}};
  std::error_code ignored;
  for (const auto& [name, into] : parts) {
    const auto path = folder + "/" + name;
    if (!fs::exists(path, ignored)) continue;
    ORRERY_TRY(json, read_json_file(path));
    *into = json;
  }
  if (fs::is_directory(folder + "/tokenizer", ignored)) configs.tokenizer = folder + "/tokenizer";
  return Done{};
}

/// A component's config file, told by its class.
Status take_file(const std::string& path, ModelConfigs& configs) {
  ORRERY_TRY(json, read_json_file(path));
  const auto named = json.is_object() ? json.value("_class_name", std::string()) : std::string();
  const bool text = json.is_object() && json.contains("d_model");
  if (named == "CosmosTransformer3DModel")
    configs.transformer = json;
  else if (named == "AutoencoderKLCosmos")
    configs.vae = json;
  else if (named == "EDMEulerScheduler")
    configs.scheduler = json;
  else if (text)
    configs.text_encoder = json;
  else
    return Error{ErrorCode::invalid_model, path + " is not the config of a component that Orrery has", "give the config.json of a transformer, text_encoder or vae, or scheduler_config.json"};
  return Done{};
}

Result<ModelConfigs> configs_of(const SynthOptions& options) {
  const auto shipped_tiny = shipped_configs() + "/models/cosmos-tiny";
  auto configs = published(32, 28, {2, 1, 1});
  configs.tokenizer = shipped_tiny + "/tokenizer";
  std::error_code ignored;
  for (const auto& like : options.like) {
    const auto tokenizer = configs.tokenizer;
    if (like == "published-7b" || like == "published-14b") {
      configs = like == "published-7b" ? published(32, 28, {2, 1, 1}) : published(40, 36, {2, 2, 2});
      configs.tokenizer = tokenizer;
    } else if (like == "tiny") {
      ORRERY_TRY_DONE(take_folder(shipped_tiny, configs));
    } else if (fs::is_directory(like, ignored)) {
      ORRERY_TRY_DONE(take_folder(like, configs));
    } else if (fs::exists(like, ignored)) {
      ORRERY_TRY_DONE(take_file(like, configs));
    } else {
      return Error{ErrorCode::usage, "--like: there is no model '" + like + "'", "published-7b, published-14b, tiny, a model folder, or a config.json"};
    }
  }
  for (const auto& [key, value] : options.transformer_keys) configs.transformer[key] = value;
  for (const auto& [key, value] : options.text_encoder_keys) configs.text_encoder[key] = value;
  if (!fs::is_directory(configs.tokenizer, ignored))
    return Error{ErrorCode::not_found, "the tokenizer folder " + configs.tokenizer + " is not there", "set ORRERY_CONFIGS to the folder of shipped configs"};
  return configs;
}

struct TensorPlan {
  std::string name;
  Shape shape;
  cards::WeightForm form = cards::WeightForm::matrix;
};

/// Tensors of weight sets for one card, each once, by name.
std::vector<TensorPlan> tensors_of(std::initializer_list<std::shared_ptr<const cards::WeightSet>> sets) {
  std::map<std::string, TensorPlan> by_name;
  for (const auto& set : sets)
    for (const auto& weight : set->weights)
      // The config holds these two itself.
      if (weight.tensor != "latents_mean" && weight.tensor != "latents_std") by_name[weight.tensor] = {weight.tensor, weight.shape, weight.form};
  std::vector<TensorPlan> tensors;
  for (auto& [name, tensor] : by_name) tensors.push_back(std::move(tensor));
  return tensors;
}

/// Values keep activations of ordinary size: norms near one, matrices scaled by their inputs.
struct Spread {
  float offset = 0, scale = 1;
};
Spread spread_of(const TensorPlan& tensor) {
  const bool is_weight = tensor.name.ends_with("weight");
  switch (tensor.form) {
    case cards::WeightForm::vector: return is_weight ? Spread{1, 0.02F} : Spread{0, 0.02F};
    case cards::WeightForm::table: return {0, 1};
    default: {
      const auto inputs = static_cast<double>(element_count(tensor.shape)) / static_cast<double>(std::max<std::uint64_t>(tensor.shape.front(), 1));
      return {0, static_cast<float>(1 / std::sqrt(std::max(inputs, 1.0)))};
    }
  }
}

class Synthesizer {
public:
  Synthesizer(const SynthOptions& options, const std::function<bool(std::uint64_t, std::uint64_t)>& progress) : options_(options), progress_(progress) {}

  Result<SynthResult> run() {
    ORRERY_TRY(configs, configs_of(options_));
    auto final_folder = options_.folder;
    while (final_folder.size() > 1 && final_folder.back() == '/') final_folder.pop_back();
    std::error_code failed;
    if (fs::exists(final_folder, failed) && !(fs::is_directory(final_folder, failed) && fs::is_empty(final_folder, failed)))
      return Error{ErrorCode::io_failed, "'" + final_folder + "' is there already", "name a new folder"};
    partial_ = final_folder + ".partial-" + std::to_string(getpid());
    const auto result = write_all(configs, final_folder);
    if (!result.ok()) fs::remove_all(partial_, failed);
    return result;
  }

private:
  Result<SynthResult> write_all(const ModelConfigs& configs, const std::string& final_folder) {
    std::error_code failed;
    for (const char* part : {"transformer", "text_encoder", "vae", "scheduler"})
      if (!fs::create_directories(partial_ + "/" + part, failed))
        return Error{ErrorCode::io_failed, "folder '" + partial_ + "' cannot be made: " + failed.message()};
    ORRERY_TRY_DONE(write_json("transformer/config.json", configs.transformer));
    ORRERY_TRY_DONE(write_json("text_encoder/config.json", configs.text_encoder));
    ORRERY_TRY_DONE(write_json("vae/config.json", configs.vae));
    ORRERY_TRY_DONE(write_json("scheduler/scheduler_config.json", configs.scheduler));
    if (!configs.generation.is_null()) ORRERY_TRY_DONE(write_json("generation_config.json", configs.generation));
    fs::copy(configs.tokenizer, partial_ + "/tokenizer", fs::copy_options::recursive, failed);
    if (failed) return Error{ErrorCode::io_failed, "the tokenizer could not be copied: " + failed.message()};

    // The readers of configs are the judges of ours.
    ORRERY_TRY(transformer, compiler::read_transformer_config(partial_ + "/transformer/config.json"));
    ORRERY_TRY(text_encoder, compiler::read_text_encoder_config(partial_ + "/text_encoder/config.json"));
    ORRERY_TRY(codec, compiler::read_codec_config(partial_ + "/vae/config.json"));
    const auto compute = options_.dtype == DType::bf16 ? compiler::Compute::bf16 : compiler::Compute::f32;
    ORRERY_TRY(denoiser_set, compiler::denoiser_weights(transformer, compiler::single_card(compiler::slice_count_of(transformer)), compute));
    ORRERY_TRY(text_set, compiler::text_encoder_weights(text_encoder, compiler::single_card(compiler::slice_count_of(text_encoder)), compute));
    ORRERY_TRY(decoder_set, compiler::decoder_weights(codec, compute));
    ORRERY_TRY(encoder_set, compiler::encoder_weights(codec, compute));
    const auto denoiser_tensors = tensors_of({denoiser_set}), text_tensors = tensors_of({text_set}), codec_tensors = tensors_of({decoder_set, encoder_set});

    for (const auto* list : {&denoiser_tensors, &text_tensors, &codec_tensors})
      for (const auto& tensor : *list) total_ += element_count(tensor.shape) * size_of(options_.dtype);
    const auto space = fs::space(partial_, failed);
    if (!failed && space.available < total_)
      return Error{ErrorCode::io_failed, "the model needs " + text_of_bytes(static_cast<double>(total_)) + " on disk, and " +
                                             text_of_bytes(static_cast<double>(space.available)) + " are free", "ask for fewer layers, or another disk"};
    ORRERY_TRY_DONE(write_component("transformer", "diffusion_pytorch_model", denoiser_tensors));
    ORRERY_TRY_DONE(write_component("text_encoder", "model", text_tensors));
    ORRERY_TRY_DONE(write_component("vae", "diffusion_pytorch_model", codec_tensors));
    const Json index{{"_class_name", "CosmosTextToWorldPipeline"}, {"safety_checker", {nullptr, nullptr}},
                     {"scheduler", {"diffusers", "EDMEulerScheduler"}}, {"text_encoder", {"transformers", "T5EncoderModel"}},
                     {"tokenizer", {"transformers", "T5TokenizerFast"}}, {"transformer", {"diffusers", "CosmosTransformer3DModel"}},
                     {"vae", {"diffusers", "AutoencoderKLCosmos"}}, {"_orrery_synthetic_seed", options_.seed}};
    ORRERY_TRY_DONE(write_json("model_index.json", index));
    fs::rename(partial_, final_folder, failed);
    if (failed) return Error{ErrorCode::io_failed, "the folder could not be moved to '" + final_folder + "': " + failed.message()};
    return result_;
  }

  Status write_json(const std::string& name, const Json& json) {
    ORRERY_TRY(file, AtomicFile::create(partial_ + "/" + name));
    ORRERY_TRY_DONE(file.write(json.dump(2) + "\n"));
    return file.commit();
  }

  Status write_component(const std::string& component, const std::string& stem, const std::vector<TensorPlan>& tensors) {
    // Cut into files where the next tensor would make one too large.
    std::vector<std::vector<const TensorPlan*>> shards;
    std::uint64_t in_shard = 0, all = 0;
    for (const auto& tensor : tensors) {
      const auto bytes = element_count(tensor.shape) * size_of(options_.dtype);
      if (shards.empty() || (in_shard + bytes > options_.shard_bytes && in_shard > 0)) {
        shards.emplace_back();
        in_shard = 0;
      }
      shards.back().push_back(&tensor);
      in_shard += bytes;
      all += bytes;
    }
    Json map = Json::object();
    for (std::size_t i = 0; i < shards.size(); ++i) {
      char part[40] = "";
      if (shards.size() > 1) std::snprintf(part, sizeof part, "-%05zu-of-%05zu", i + 1, shards.size());
      const auto name = stem + part + ".safetensors";
      ORRERY_TRY_DONE(write_shard(partial_ + "/" + component + "/" + name, shards[i]));
      for (const auto* tensor : shards[i]) map[tensor->name] = name;
    }
    if (shards.size() > 1)
      ORRERY_TRY_DONE(write_json(component + "/" + stem + ".safetensors.index.json", Json{{"metadata", {{"total_size", all}}}, {"weight_map", map}}));
    return Done{};
  }

  Status write_shard(const std::string& path, const std::vector<const TensorPlan*>& tensors) {
    OrderedJson header = OrderedJson::object();
    header["__metadata__"] = {{"format", "pt"}};
    std::uint64_t offset = 0;
    for (const auto* tensor : tensors) {
      const auto bytes = element_count(tensor->shape) * size_of(options_.dtype);
      header[tensor->name] = {{"dtype", options_.dtype == DType::bf16 ? "BF16" : "F32"}, {"shape", tensor->shape}, {"data_offsets", {offset, offset + bytes}}};
      offset += bytes;
    }
    auto text = header.dump();
    text.append((64 - (text.size() + 8) % 64) % 64, ' ');  // Data starts 64-byte aligned.
    std::array<std::byte, 8> length{};
    for (std::size_t i = 0; i < length.size(); ++i) length[i] = static_cast<std::byte>(text.size() >> (8 * i));
    ORRERY_TRY(file, AtomicFile::create(path));
    ORRERY_TRY_DONE(file.write(length));
    ORRERY_TRY_DONE(file.write(text));
    for (const auto* tensor : tensors) ORRERY_TRY_DONE(write_tensor(file, *tensor));
    ORRERY_TRY_DONE(file.commit());
    ++result_.files;
    return Done{};
  }

  Status write_tensor(AtomicFile& file, const TensorPlan& tensor) {
    constexpr std::uint64_t chunk = 1 << 18;
    const auto spread = spread_of(tensor);
    const auto seed = options_.seed ^ xxh3_of(std::as_bytes(std::span(tensor.name)));
    const auto count = element_count(tensor.shape);
    values_.resize(chunk);
    halves_.resize(chunk);
    for (std::uint64_t first = 0; first < count; first += chunk) {
      const auto now = std::min(chunk, count - first);
      const auto values = std::span(values_).first(now);
      fill_normal(seed, RandomStream::synthetic_weights, first, values);
      for (auto& value : values) value = spread.offset + spread.scale * value;
      if (options_.dtype == DType::bf16) {
        std::transform(values.begin(), values.end(), halves_.begin(), bf16_of);
        ORRERY_TRY_DONE(file.write(std::as_bytes(std::span(halves_).first(now))));
      } else {
        ORRERY_TRY_DONE(file.write(std::as_bytes(values)));
      }
      result_.bytes += now * size_of(options_.dtype);
      if (!progress_(result_.bytes, total_)) return Error{ErrorCode::cancelled, "stopped after " + text_of_bytes(static_cast<double>(result_.bytes))};
    }
    ++result_.tensors;
    return Done{};
  }

  const SynthOptions& options_;
  const std::function<bool(std::uint64_t, std::uint64_t)>& progress_;
  std::string partial_;
  std::uint64_t total_ = 0;
  SynthResult result_;
  std::vector<float> values_;
  std::vector<std::uint16_t> halves_;
};

Result<int> run_synth(const SynthOptions& options, const VerbContext& context) {
  ORRERY_TRY(signals, SignalWatch::create());
  const SteadyClock clock;
  ProgressWriter progress(context, clock);
  const auto event = [](ProgressEvent::Kind kind, std::uint64_t done, std::uint64_t total) {
    ProgressEvent one;
    one.kind = kind;
    one.stage = "write";
    one.detail = "weights";
    one.completed = done;
    one.total = total;
    one.unit = {"bytes"};
    return one;
  };
  const auto result = synthesize_model(options, [&](std::uint64_t done, std::uint64_t total) {
    progress.on_event(event(ProgressEvent::Kind::advanced, done, total));
    return !signals.received();
  });
  if (const auto signal = signals.received()) return exit_code_of_signal(*signal);
  if (!result.ok()) return result.error();
  progress.on_event(event(ProgressEvent::Kind::done, result.value().bytes, result.value().bytes));
  progress.finish();
  const auto& made = result.value();
  ORRERY_TRY_DONE(write_out(options.folder + ": " + std::to_string(made.tensors) + " tensors, " + text_of_bytes(static_cast<double>(made.bytes)) + " in " +
                            std::to_string(made.files) + " files\n"));
  return 0;
}

}  // namespace

Result<SynthResult> synthesize_model(const SynthOptions& options, const std::function<bool(std::uint64_t, std::uint64_t)>& progress) {
  return Synthesizer(options, progress).run();
}

void add_synth(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("synth", "Makes a model folder of any size with seeded random weights");
  auto options = std::make_shared<SynthOptions>();
  verb->add_option("folder", options->folder, "Folder to make")->type_name("FOLDER")->required();
  verb->add_option("--like", options->like, "published-7b (default), published-14b, tiny, a model folder, or a component's config file; repeatable, later ones replace parts")
      ->type_name("MODEL")
      ->allow_extra_args(false);
  const auto number = [verb](const std::string& flag, std::map<std::string, Json>& into, const std::string& key, const std::string& help) {
    verb->add_option_function<std::uint32_t>(flag, [&into, key](std::uint32_t value) { into[key] = value; }, help)
        ->type_name("N")
        ->check(CLI::Range(1U, 1U << 20));
  };
  number("--layers", options->transformer_keys, "num_layers", "Denoiser: blocks");
  number("--heads", options->transformer_keys, "num_attention_heads", "Denoiser: attention heads");
  number("--head-dim", options->transformer_keys, "attention_head_dim", "Denoiser: width of a head");
  number("--text-layers", options->text_encoder_keys, "num_layers", "Text encoder: blocks");
  number("--text-heads", options->text_encoder_keys, "num_heads", "Text encoder: attention heads");
  number("--text-feed-forward", options->text_encoder_keys, "d_ff", "Text encoder: inner width");
  verb->add_option("--seed", options->seed, "Seed of all weights; default 0")->type_name("N");
  verb->add_option_function<std::string>(
          "--dtype", [options](const std::string& text) { options->dtype = text == "float32" ? DType::f32 : DType::bf16; }, "Of the weights; default bfloat16")
      ->type_name("float32|bfloat16")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  verb->add_option_function<std::string>(
          "--shard-size",
          [options](const std::string& text) {
            const auto bytes = parse_bytes(text);
            if (!bytes.ok()) throw CLI::ValidationError("--shard-size", bytes.error().text());
            options->shard_bytes = std::max<std::uint64_t>(bytes.value(), 1);
          },
          "Largest weight file; default 5GB")
      ->type_name("5GB");
  set_examples(*verb, {
      "orrery synth /tmp/model --like published-7b --layers 2 --text-layers 2",
      "orrery synth /tmp/model --like tiny --seed 3 --dtype float32",
      "orrery synth /tmp/model --like my/transformer/config.json --shard-size 1GB",
  });
  verb->callback([&context, options] { context.run = [&context, options] { return run_synth(*options, context); }; });
}

}  // namespace orrery::launch
