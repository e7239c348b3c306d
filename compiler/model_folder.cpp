#include "compiler/model_folder.hpp"

#include <cmath>
#include <filesystem>

#include "base/json.hpp"

namespace orrery::compiler {

namespace {

namespace fs = std::filesystem;

/// The published negative prompt of the text-to-world pipeline.
constexpr const char* published_negative_prompt =
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, "
    "shaky footage, low resolution, "
    "grainy texture, pixelated images, poorly lit areas, underexposed and overexposed scenes, poor color balance, "
    "washed out colors, choppy "
    "sequences, jerky movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special "
    "effects, fake elements, "
    "unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. Overall, the video is of "
    "poor quality.";

/// Reads keys of one JSON file; the first complaint is kept and ends in the Result.
class ConfigReader {
public:
  static Result<ConfigReader> open(const std::string& file) {
    ORRERY_TRY(json, read_json_file(file));
    if (!json.is_object()) return Error{ErrorCode::invalid_model, file + ": is not a JSON object"};
    return ConfigReader(file, std::move(json));
  }

  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  const Json& json() const { return json_; }

  std::uint64_t count(const char* key, std::uint64_t otherwise, std::uint64_t least, std::uint64_t most) {
    if (!has(key)) return otherwise;
    return count_of(json_[key], key, otherwise, least, most);
  }
  double number(const char* key, double otherwise, double least, double most) {
    if (!has(key)) return otherwise;
    return number_of(json_[key], key, otherwise, least, most);
  }
  bool flag(const char* key, bool otherwise) {
    if (!has(key)) return otherwise;
    if (!json_[key].is_boolean()) {
      fail(key, "should be true or false, is " + short_text(json_[key]));
      return otherwise;
    }
    return json_[key].get<bool>();
  }
  std::string text(const char* key, const std::string& otherwise) {
    if (!has(key)) return otherwise;
    if (!json_[key].is_string()) {
      fail(key, "should be text, is " + short_text(json_[key]));
      return otherwise;
    }
    return json_[key].get<std::string>();
  }
  std::vector<std::uint64_t> counts(const char* key, std::vector<std::uint64_t> otherwise, std::size_t least_items,
                                    std::size_t most_items, std::uint64_t least, std::uint64_t most) {
    if (!has(key)) return otherwise;
    if (!items(key, least_items, most_items)) return otherwise;
    std::vector<std::uint64_t> values;
    for (const auto& item : json_[key]) values.push_back(count_of(item, key, least, least, most));
    return values;
  }
  std::vector<double> numbers(const char* key, std::vector<double> otherwise, std::size_t least_items,
                              std::size_t most_items, double least, double most) {
    if (!has(key)) return otherwise;
    if (!items(key, least_items, most_items)) return otherwise;
    std::vector<double> values;
    for (const auto& item : json_[key]) values.push_back(number_of(item, key, least, least, most));
    return values;
  }

  void fail(const char* key, const std::string& what, const std::string& hint = {}) {
    if (!error_) error_ = Error{ErrorCode::invalid_model, file_ + ": " + key + " " + what, hint};
  }
  void unsupported(const char* key, const std::string& what, const std::string& hint = {}) {
    if (!error_) error_ = Error{ErrorCode::unsupported, file_ + ": " + key + " " + what, hint};
  }
  /// The class, when the file names one.
  void expect_class(const char* key, const std::string& expected) {
    if (!has(key)) return;
    const auto name = text(key, expected);
    if (name != expected) unsupported(key, "is '" + name.substr(0, 60) + "'", "supported here: " + expected);
  }
  Status status() const {
    if (error_) return *error_;
    return Done{};
  }
  const std::string& file() const { return file_; }

private:
  ConfigReader(std::string file, Json json) : file_(std::move(file)), json_(std::move(json)) {}

  static std::string short_text(const Json& value) {
    auto text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 40) text = text.substr(0, 40) + "...";
    return text;
  }
  std::uint64_t count_of(const Json& value, const char* key, std::uint64_t otherwise, std::uint64_t least,
                         std::uint64_t most) {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() < least || value.get<std::uint64_t>() > most) {
      fail(key, "should be a whole number from " + std::to_string(least) + " to " + std::to_string(most) + ", is " +
                    short_text(value));
      return otherwise;
    }
    return value.get<std::uint64_t>();
  }
  double number_of(const Json& value, const char* key, double otherwise, double least, double most) {
    const double number = value.is_number() ? value.get<double>() : NAN;
    if (!(number >= least && number <= most)) {
      char range[80];
      std::snprintf(range, sizeof range, "should be a number from %g to %g, is ", least, most);
      fail(key, range + short_text(value));
      return otherwise;
    }
    return number;
  }
  bool items(const char* key, std::size_t least, std::size_t most) {
    if (json_[key].is_array() && json_[key].size() >= least && json_[key].size() <= most) return true;
    fail(key, "should be a list of " + std::to_string(least) + (most > least ? " to " + std::to_string(most) : "") +
                  " items, is " + short_text(json_[key]));
    return false;
  }

  std::string file_;
  Json json_;
  std::optional<Error> error_;
};

bool is_power_of_two(std::uint64_t value) { return value != 0 && (value & (value - 1)) == 0; }

struct KnownClass {
  const char* component;
  std::vector<std::string> classes;
};

Status check_index(const std::string& file) {
  ORRERY_TRY(reader, ConfigReader::open(file));
  reader.expect_class("_class_name", "CosmosTextToWorldPipeline");
  static const std::vector<KnownClass> known = {{"transformer", {"CosmosTransformer3DModel"}},
                                                {"text_encoder", {"T5EncoderModel"}},
                                                {"vae", {"AutoencoderKLCosmos"}},
                                                {"scheduler", {"EDMEulerScheduler"}},
                                                {"tokenizer", {"T5TokenizerFast", "T5Tokenizer"}}};
  for (const auto& [component, classes] : known) {
    if (!reader.has(component)) continue;
    const auto& entry = reader.json()[component];
    if (!entry.is_array() || entry.size() != 2) {
      reader.fail(component, "should be [library, class]");
      continue;
    }
    if (entry[1].is_null()) continue;
    const auto name = entry[1].is_string() ? entry[1].get<std::string>() : std::string("?");
    bool fits = false;
    std::string names;
    for (const auto& supported : classes) {
      fits = fits || name == supported;
      names += (names.empty() ? "" : ", ") + supported;
    }
    if (!fits) reader.unsupported(component, "has class '" + name.substr(0, 60) + "'", "supported: " + names);
  }
  return reader.status();
}

}  // namespace

Result<TransformerConfig> read_transformer_config(const std::string& file) {
  ORRERY_TRY(reader, ConfigReader::open(file));
  reader.expect_class("_class_name", "CosmosTransformer3DModel");
  TransformerConfig config;
  config.in_channels = reader.count("in_channels", config.in_channels, 1, 4096);
  config.out_channels = reader.count("out_channels", config.out_channels, 1, 4096);
  config.heads = reader.count("num_attention_heads", config.heads, 1, 1024);
  config.head_dim = reader.count("attention_head_dim", config.head_dim, 2, 1024);
  config.layers = reader.count("num_layers", config.layers, 1, 1024);
  config.mlp_ratio = reader.number("mlp_ratio", config.mlp_ratio, 0.01, 64);
  config.text_width = reader.count("text_embed_dim", config.text_width, 1, 1 << 20);
  config.adaln_width = reader.count("adaln_lora_dim", config.adaln_width, 1, 1 << 16);
  const auto size = reader.counts("max_size", {config.max_size.begin(), config.max_size.end()}, 3, 3, 1, 1 << 16);
  const auto patch = reader.counts("patch_size", {config.patch.begin(), config.patch.end()}, 3, 3, 1, 64);
  const auto scale =
      reader.numbers("rope_scale", {config.rope_scale.begin(), config.rope_scale.end()}, 3, 3, 0.01, 1000);
  config.padding_mask = reader.flag("concat_padding_mask", config.padding_mask);
  if (reader.json().contains("extra_pos_embed_type")) {
    const auto& type = reader.json()["extra_pos_embed_type"];
    if (type.is_null())
      config.learnable_positions = false;
    else if (reader.text("extra_pos_embed_type", "learnable") != "learnable")
      reader.unsupported("extra_pos_embed_type", "is not \"learnable\" or null");
  }
  // Options of later generations: harmless only at the value that changes nothing.
  if (reader.flag("use_crossattn_projection", false))
    reader.unsupported("use_crossattn_projection", "is true", "Predict2.5 models cannot be run yet");
  if (reader.has("controlnet_block_every_n"))
    reader.unsupported("controlnet_block_every_n", "is set", "Transfer models cannot be run yet");
  if (reader.has("img_context_dim_in") &&
      !(reader.json()["img_context_dim_in"].is_number() && reader.json()["img_context_dim_in"] == 0))
    reader.unsupported("img_context_dim_in", "is set", "models with an image context cannot be run yet");
  ORRERY_TRY_DONE(reader.status());
  for (std::size_t i = 0; i < 3; ++i) {
    config.max_size[i] = size[i];
    config.patch[i] = patch[i];
    config.rope_scale[i] = scale[i];
    if (size[i] < patch[i]) reader.fail("max_size", "is smaller than patch_size in place " + std::to_string(i));
  }
  if (config.head_dim % 2 != 0)
    reader.fail("attention_head_dim", "should be even, is " + std::to_string(config.head_dim),
                "rotary positions turn pairs");
  if (config.width() > (1U << 20)) reader.fail("num_attention_heads", "times attention_head_dim is more than 2^20");
  if (config.width() % 2 != 0) reader.fail("num_attention_heads", "times attention_head_dim should be even");
  if (config.feed_forward() == 0) reader.fail("mlp_ratio", "leaves no feed-forward width");
  ORRERY_TRY_DONE(reader.status());
  // An axis needs two rotary pairs: with one, 2k/d of its frequencies divides by d - 2 = 0.
  const auto axis = 2 * (config.head_dim / 6);
  if (axis < 4 || config.head_dim - 2 * axis < 4)
    reader.unsupported("attention_head_dim",
                       "is " + std::to_string(config.head_dim) + ", too small for rotary positions on three axes",
                       "at least 12");
  ORRERY_TRY_DONE(reader.status());
  return config;
}

Result<TextEncoderConfig> read_text_encoder_config(const std::string& file) {
  ORRERY_TRY(reader, ConfigReader::open(file));
  if (reader.has("architectures")) {
    const auto& classes = reader.json()["architectures"];
    bool fits = false;
    if (classes.is_array())
      for (const auto& name : classes)
        fits = fits || name == "T5EncoderModel" || name == "T5ForConditionalGeneration" ||
               name == "T5WithLMHeadModel" || name == "T5Model";
    if (!fits) reader.unsupported("architectures", "does not name a T5 encoder", "supported: T5EncoderModel");
  }
  if (reader.has("model_type") && reader.text("model_type", "t5") != "t5")
    reader.unsupported("model_type", "is not \"t5\"", "supported: t5");
  TextEncoderConfig config;
  config.vocabulary = reader.count("vocab_size", config.vocabulary, 1, 1 << 24);
  config.width = reader.count("d_model", 512, 1, 1 << 20);
  config.head_dim = reader.count("d_kv", 64, 1, 1024);
  config.feed_forward = reader.count("d_ff", 2048, 1, 1 << 20);
  config.layers = reader.count("num_layers", 6, 1, 1024);
  config.heads = reader.count("num_heads", 8, 1, 1024);
  config.buckets = reader.count("relative_attention_num_buckets", config.buckets, 4, 4096);
  config.max_distance = reader.count("relative_attention_max_distance", config.max_distance, 2, 1 << 20);
  config.eps = reader.number("layer_norm_epsilon", config.eps, 0, 1);
  const auto activation = reader.text("feed_forward_proj", "relu");
  if (activation != "relu")
    reader.unsupported("feed_forward_proj", "is '" + activation.substr(0, 40) + "'", "supported: relu");
  if (reader.flag("is_gated_act", false)) reader.unsupported("is_gated_act", "is true", "supported: T5 version 1.0");
  if (config.buckets % 4 != 0) reader.fail("relative_attention_num_buckets", "should be a multiple of 4");
  if (config.max_distance <= config.buckets / 4)
    reader.fail("relative_attention_max_distance", "should be more than a quarter of the buckets");
  if (config.heads * config.head_dim > (1U << 20)) reader.fail("num_heads", "times d_kv is more than 2^20");
  ORRERY_TRY_DONE(reader.status());
  return config;
}

Result<CodecConfig> read_codec_config(const std::string& file) {
  ORRERY_TRY(reader, ConfigReader::open(file));
  reader.expect_class("_class_name", "AutoencoderKLCosmos");
  CodecConfig config;
  config.in_channels = reader.count("in_channels", 3, 3, 3);
  config.out_channels = reader.count("out_channels", 3, 3, 3);
  config.latent_channels = reader.count("latent_channels", config.latent_channels, 1, 4096);
  config.encoder_channels = reader.counts("encoder_block_out_channels", config.encoder_channels, 2, 16, 1, 1 << 16);
  config.decoder_channels = reader.counts("decode_block_out_channels", config.decoder_channels, 2, 16, 1, 1 << 16);
  config.attention_resolutions =
      reader.counts("attention_resolutions", config.attention_resolutions, 0, 16, 1, 1 << 20);
  config.resolution = reader.count("resolution", config.resolution, 1, 1 << 20);
  config.layers = reader.count("num_layers", config.layers, 1, 64);
  config.patch = reader.count("patch_size", config.patch, 1, 32);
  const auto type = reader.text("patch_type", "haar");
  if (type != "haar" && type != "rearrange")
    reader.unsupported("patch_type", "is '" + type.substr(0, 40) + "'", "supported: haar, rearrange");
  config.haar = type == "haar";
  config.spatial_ratio = reader.count("spatial_compression_ratio", config.spatial_ratio, 1, 256);
  config.temporal_ratio = reader.count("temporal_compression_ratio", config.temporal_ratio, 1, 256);
  const auto table = [&](const char* key, double least) {
    std::vector<float> values;
    for (const double value : reader.numbers(key, {}, 1, 1 << 22, least, 1e6))
      values.push_back(static_cast<float>(value));
    return values;
  };
  config.latents_mean = table("latents_mean", -1e6);
  config.latents_std = table("latents_std", 1e-9);
  ORRERY_TRY_DONE(reader.status());
  if (!is_power_of_two(config.patch))
    reader.fail("patch_size", "should be a power of two, is " + std::to_string(config.patch));
  for (const auto& [key, ratio] : {std::pair("spatial_compression_ratio", config.spatial_ratio),
                                   std::pair("temporal_compression_ratio", config.temporal_ratio)}) {
    if (!is_power_of_two(ratio))
      reader.fail(key, "should be a power of two, is " + std::to_string(ratio));
    else if (ratio < config.patch)
      reader.fail(key, "is smaller than patch_size");
  }
  if (config.resolution % config.patch != 0) reader.fail("resolution", "should be a multiple of patch_size");
  if (config.latents_mean.size() % config.latent_channels != 0)
    reader.fail("latents_mean", "has " + std::to_string(config.latents_mean.size()) +
                                    " numbers, which latent_channels does not divide");
  if (config.latents_mean.size() != config.latents_std.size())
    reader.fail("latents_std", "and latents_mean differ in length");
  ORRERY_TRY_DONE(reader.status());
  return config;
}

Result<SchedulerConfig> read_scheduler_config(const std::string& file) {
  ORRERY_TRY(reader, ConfigReader::open(file));
  reader.expect_class("_class_name", "EDMEulerScheduler");
  SchedulerConfig config;
  config.sigma_min = reader.number("sigma_min", config.sigma_min, 1e-9, 1e6);
  config.sigma_max = reader.number("sigma_max", config.sigma_max, 1e-9, 1e6);
  config.sigma_data = reader.number("sigma_data", config.sigma_data, 1e-6, 1e6);
  config.rho = reader.number("rho", config.rho, 0.01, 1000);
  const auto schedule = reader.text("sigma_schedule", "karras");
  if (schedule == "exponential")
    config.schedule = SchedulerConfig::Schedule::exponential;
  else if (schedule != "karras")
    reader.unsupported("sigma_schedule", "is '" + schedule.substr(0, 40) + "'", "supported: karras, exponential");
  const auto prediction = reader.text("prediction_type", "epsilon");
  if (prediction == "v_prediction")
    config.prediction = SchedulerConfig::Prediction::v_prediction;
  else if (prediction != "epsilon")
    reader.unsupported("prediction_type", "is '" + prediction.substr(0, 40) + "'", "supported: epsilon, v_prediction");
  const auto final_sigma = reader.text("final_sigmas_type", "zero");
  if (final_sigma == "sigma_min")
    config.final_sigma = SchedulerConfig::FinalSigma::sigma_min;
  else if (final_sigma != "zero")
    reader.unsupported("final_sigmas_type", "is '" + final_sigma.substr(0, 40) + "'", "supported: zero, sigma_min");
  if (config.sigma_min > config.sigma_max) reader.fail("sigma_min", "is more than sigma_max");
  ORRERY_TRY_DONE(reader.status());
  return config;
}

Result<GenerationConfig> read_generation_config(const std::string& file) {
  ORRERY_TRY(reader, ConfigReader::open(file));
  GenerationConfig config;
  config.negative_prompt = published_negative_prompt;
  config.height = reader.count("height", config.height, 1, 1 << 16);
  config.width = reader.count("width", config.width, 1, 1 << 16);
  config.frames = reader.count(reader.has("num_frames") ? "num_frames" : "frames", config.frames, 1, 1 << 16);
  config.steps =
      reader.count(reader.has("num_inference_steps") ? "num_inference_steps" : "steps", config.steps, 1, 10000);
  config.guidance =
      reader.number(reader.has("guidance_scale") ? "guidance_scale" : "guidance", config.guidance, 0, 1000);
  config.fps = reader.number("fps", config.fps, 0.1, 1000);
  config.text_rows = reader.count("max_sequence_length", config.text_rows, 1, 1 << 16);
  config.negative_prompt = reader.text("negative_prompt", config.negative_prompt);
  ORRERY_TRY_DONE(reader.status());
  return config;
}

std::string ModelFolder::component_path(const std::string& component) const {
  return single_component.empty() ? path + "/" + component : path;
}

namespace {

Status read_component(ModelFolder& folder, const std::string& component) {
  const auto at = folder.component_path(component) + "/";
  if (component == "transformer") {
    ORRERY_TRY(config, read_transformer_config(at + "config.json"));
    folder.transformer = config;
  } else if (component == "text_encoder") {
    ORRERY_TRY(config, read_text_encoder_config(at + "config.json"));
    folder.text_encoder = config;
  } else if (component == "vae") {
    ORRERY_TRY(config, read_codec_config(at + "config.json"));
    folder.codec = config;
  } else {
    ORRERY_TRY(config, read_scheduler_config(at + "scheduler_config.json"));
    folder.scheduler = config;
  }
  return Done{};
}

/// The component that a config.json belongs to, by its class.
Result<std::string> component_of(const std::string& file) {
  ORRERY_TRY(json, read_json_file(file));
  std::string name = "?";
  if (json.is_object() && json.contains("_class_name") && json["_class_name"].is_string())
    name = json["_class_name"].get<std::string>();
  else if (json.is_object() && json.contains("architectures") && json["architectures"].is_array() &&
           !json["architectures"].empty() && json["architectures"][0].is_string())
    name = json["architectures"][0].get<std::string>();
  if (name == "CosmosTransformer3DModel") return std::string("transformer");
  if (name == "AutoencoderKLCosmos") return std::string("vae");
  if (name == "T5EncoderModel") return std::string("text_encoder");
  return Error{ErrorCode::unsupported, file + ": class '" + name.substr(0, 60) + "' is not known",
               "supported: CosmosTransformer3DModel, AutoencoderKLCosmos, T5EncoderModel"};
}

}  // namespace

Result<ModelFolder> open_model_folder(const std::string& path) {
  std::error_code ignored;
  ModelFolder folder;
  folder.path = path;
  while (folder.path.size() > 1 && folder.path.back() == '/') folder.path.pop_back();
  folder.generation.negative_prompt = published_negative_prompt;
  if (!fs::is_directory(path, ignored))
    return Error{ErrorCode::not_found, path + " is not a folder", "give the folder that holds model_index.json"};
  if (fs::exists(folder.path + "/model_index.json", ignored)) {
    ORRERY_TRY_DONE(check_index(folder.path + "/model_index.json"));
    for (const char* component : {"transformer", "text_encoder", "vae", "scheduler"})
      if (fs::is_directory(folder.path + "/" + component, ignored)) ORRERY_TRY_DONE(read_component(folder, component));
    folder.has_tokenizer = fs::is_directory(folder.path + "/tokenizer", ignored);
    if (fs::exists(folder.path + "/generation_config.json", ignored)) {
      ORRERY_TRY(generation, read_generation_config(folder.path + "/generation_config.json"));
      folder.generation = generation;
    }
  } else if (fs::exists(folder.path + "/config.json", ignored)) {
    ORRERY_TRY(component, component_of(folder.path + "/config.json"));
    folder.single_component = component;
    ORRERY_TRY_DONE(read_component(folder, component));
  } else {
    return Error{ErrorCode::not_found, path + " holds neither model_index.json nor config.json",
                 "give a model in diffusers layout, or one of its component folders"};
  }
  return folder;
}

Result<std::shared_ptr<const WeightFiles>> open_weights(const ModelFolder& folder, const std::string& component) {
  ORRERY_TRY(files, WeightFiles::open_folder(folder.component_path(component)));
  if (component != "vae" || !folder.codec || folder.codec->latents_mean.empty()) return files;
  return files->with_numbers("latents_mean", folder.codec->latents_mean)
      ->with_numbers("latents_std", folder.codec->latents_std);
}

}  // namespace orrery::compiler
