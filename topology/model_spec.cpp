#include "topology/model_spec.hpp"

#include <charconv>
#include <filesystem>

namespace orrery::topology {
namespace {

Value<FrameSize> frame_size() {
  Value<FrameSize> value;
  value.type = "WIDTHxHEIGHT in pixels";
  value.json = {{"type", "string"}, {"pattern", "^[0-9]+x[0-9]+$"}};
  value.text = [](const FrameSize& size) { return text_of(size); };
  value.read = [](const YamlNode& node, const std::string& path, FrameSize& into, YamlReader& reader) {
    if (!node.is_scalar()) {
      reader.complain(node, "E105", path, "should be WIDTHxHEIGHT, not " + std::string(node.kind_text()));
      return false;
    }
    auto read = parse_frame_size(node.text);
    if (!read.ok()) {
      reader.complain(node, "E112", path, read.error().message, read.error().hint);
      return false;
    }
    into = read.value();
    return true;
  };
  return value;
}

std::string three_sizes(const std::vector<std::uint32_t>& sizes) {
  return sizes.size() == 3 ? "" : "should be three numbers: time, height, width";
}

const Schema<ModelGeometry>& geometry_schema() {
  const auto count = whole<std::uint32_t>(1, 1'000'000);
  static const Schema<TransformerGeometry> transformer =
      Schema<TransformerGeometry>("transformer", "As in the model's `transformer/config.json`.")
          .field("in_channels", &TransformerGeometry::in_channels, count, "Latent channels in.")
          .field("out_channels", &TransformerGeometry::out_channels, count, "Latent channels out.")
          .field("num_attention_heads", &TransformerGeometry::num_attention_heads, count, "Heads.")
          .field("attention_head_dim", &TransformerGeometry::attention_head_dim, count, "Width of a head.")
          .field("num_layers", &TransformerGeometry::num_layers, whole<std::uint32_t>(1, 1000), "Blocks.")
          .field("mlp_ratio", &TransformerGeometry::mlp_ratio, number(0.1, 100),
                 "Hidden width of the MLP, by model width.")
          .field("text_embed_dim", &TransformerGeometry::text_embed_dim, count, "Width of a text token.")
          .field("adaln_lora_dim", &TransformerGeometry::adaln_lora_dim, count, "Rank of the modulation layers.")
          .field("max_size", &TransformerGeometry::max_size, list_of(count, 3),
                 "Largest latent: time, height, width.", {.check = three_sizes})
          .field("patch_size", &TransformerGeometry::patch_size, list_of(whole<std::uint32_t>(1, 64), 3),
                 "Latent values per token: time, height, width.", {.check = three_sizes});
  static const Schema<TextEncoderGeometry> text_encoder =
      Schema<TextEncoderGeometry>("text_encoder", "As in `text_encoder/config.json`.")
          .field("vocab_size", &TextEncoderGeometry::vocab_size, whole<std::uint32_t>(1, 10'000'000), "Tokens.")
          .field("d_model", &TextEncoderGeometry::d_model, count, "Width.")
          .field("d_kv", &TextEncoderGeometry::d_kv, count, "Width of a head.")
          .field("d_ff", &TextEncoderGeometry::d_ff, count, "Hidden width of the MLP.")
          .field("num_layers", &TextEncoderGeometry::num_layers, whole<std::uint32_t>(1, 1000), "Blocks.")
          .field("num_heads", &TextEncoderGeometry::num_heads, count, "Heads.");
  static const Schema<VaeGeometry> vae =
      Schema<VaeGeometry>("vae", "As in `vae/config.json`.")
          .field("out_channels", &VaeGeometry::out_channels, count, "Colours.")
          .field("latent_channels", &VaeGeometry::latent_channels, count, "Latent channels.")
          .field("decode_block_out_channels", &VaeGeometry::decode_block_out_channels, list_of(count, 8),
                 "Channels per decoder level.",
                 {.check =
                      [](const std::vector<std::uint32_t>& all) {
                        return all.size() >= 2 ? "" : "should have at least two levels";
                      }})
          .field("num_layers", &VaeGeometry::num_layers, whole<std::uint32_t>(1, 64),
                 "Residual blocks per level, less one.")
          .field("patch_size", &VaeGeometry::patch_size, whole<std::uint32_t>(1, 64), "Haar patch.")
          .field("spatial_compression_ratio", &VaeGeometry::spatial_compression_ratio, whole<std::uint32_t>(1, 64),
                 "Pixels per latent value, each way.")
          .field("temporal_compression_ratio", &VaeGeometry::temporal_compression_ratio,
                 whole<std::uint32_t>(1, 64), "Frames per latent frame.");
  static const Schema<ModelGeometry> schema =
      Schema<ModelGeometry>("geometry", "Sizes that decide memory and work; for planning without the weights.")
          .field("transformer", &ModelGeometry::transformer, object(transformer), "The denoiser.",
                 {.standard = "as published, 7B"})
          .field("text_encoder", &ModelGeometry::text_encoder, object(text_encoder), "The text encoder.",
                 {.standard = "T5-11B"})
          .field("vae", &ModelGeometry::vae, object(vae), "The decoder.", {.standard = "CV8x8x8"});
  return schema;
}

const Schema<ModelSpec>& model_schema() {
  static const Schema<ComponentFolders> components =
      Schema<ComponentFolders>("components", "Folders of single components, where they do not lie in one folder.")
          .field("transformer", &ComponentFolders::transformer, late_text(), "The denoiser.",
                 {.standard = "FOLDER/transformer"})
          .field("text_encoder", &ComponentFolders::text_encoder, late_text(), "The text encoder.",
                 {.standard = "FOLDER/text_encoder"})
          .field("tokenizer", &ComponentFolders::tokenizer, late_text(), "The tokenizer.",
                 {.standard = "FOLDER/tokenizer"})
          .field("vae", &ComponentFolders::vae, late_text(), "The decoder.", {.standard = "FOLDER/vae"})
          .field("scheduler", &ComponentFolders::scheduler, late_text(), "The scheduler.",
                 {.standard = "FOLDER/scheduler"});
  static const Schema<RequestDefaults> defaults =
      Schema<RequestDefaults>("defaults", "What a request gets when it says nothing.")
          .field("size", &RequestDefaults::size, frame_size(), "Of a frame; multiples of 16.")
          .field("num_frames", &RequestDefaults::num_frames, whole<std::uint32_t>(1, 10'000),
                 "Frames; a multiple of 8, plus 1.",
                 {.check =
                      [](const std::uint32_t& n) {
                        return n % 8 == 1 ? "" : "should be a multiple of 8, plus 1 (9, 17, ... 121)";
                      }})
          .field("fps", &RequestDefaults::fps, whole<std::uint32_t>(1, 240), "Frames per second.")
          .field("num_inference_steps", &RequestDefaults::num_inference_steps, whole<std::uint32_t>(1, 1000),
                 "Denoising steps.")
          .field("guidance_scale", &RequestDefaults::guidance_scale, number(0, 100),
                 "Weight of the prompt; at 1 or below there is no negative branch.")
          .field("negative_prompt", &RequestDefaults::negative_prompt, text(), "What the video should not show.",
                 {.standard = "empty"})
          .field("max_text_tokens", &RequestDefaults::max_text_tokens, whole<std::uint32_t>(1, 8192),
                 "Text tokens that the denoiser sees.");
  static const Schema<ModelSpec> schema =
      Schema<ModelSpec>("Model", "A text-to-video model. The keys of `spec`:")
          .field("pipeline", &ModelSpec::pipeline,
                 choice<std::string>({{"cosmos-text2world", "cosmos-text2world"}}),
                 "What the components do together.")
          .field("folder", &ModelSpec::folder, late_text(),
                 "Folder in diffusers layout; relative paths start at this file's folder.",
                 {.example = "${ORRERY_COSMOS_7B:?folder of the weights}", .standard = "none"})
          .field("components", &ModelSpec::components, object(components), "Folders of single components.",
                 {.standard = "parts of `folder`"})
          .field("dtype", &ModelSpec::dtype, choice<DType>({{"float32", DType::f32}, {"bfloat16", DType::bf16}}),
                 "Type of weights and activations on the cards.")
          .field("quantisation", &ModelSpec::quantisation,
                 choice<Quantisation>({{"none", Quantisation::none}, {"int8", Quantisation::int8}}),
                 "Of the attention and feed-forward matrices of denoiser and text encoder: `int8` keeps them in a quarter of float32's "
                 "memory, one scale per output channel; another numerics class.")
          .field("slices", &ModelSpec::slices, whole<std::uint32_t>(1, 256),
                 "Into how many slices the model is cut; part of its numerics, not of the cluster.")
          .field("defaults", &ModelSpec::defaults, object(defaults), "What a request gets when it says nothing.",
                 {.standard = "the published ones"})
          .optional("geometry", &ModelSpec::geometry, object(geometry_schema()),
                    "Sizes, for planning without the weights.", {.standard = "read from the folder"});
  return schema;
}

Result<std::string> resolved(const ModelSpec& model, const std::string& written, const Environment& environment) {
  const auto place = model.file + (model.line > 0 ? ":" + std::to_string(model.line) : "");
  auto expanded = expand_variables(written, environment);
  if (!expanded.ok())
    return Error{ErrorCode::invalid_config,
                 place + ": the folder of model '" + model.name + "' " + expanded.error().message,
                 expanded.error().hint};
  const std::filesystem::path path(expanded.value());
  if (path.is_absolute()) return path.lexically_normal().string();
  return (std::filesystem::path(model.file).parent_path() / path).lexically_normal().string();
}

}  // namespace

std::string text_of(FrameSize size) { return std::to_string(size.width) + "x" + std::to_string(size.height); }

Result<FrameSize> parse_frame_size(std::string_view text) {
  FrameSize size;
  const auto wrong = [&](std::string message) {
    return Error{ErrorCode::invalid_config, std::move(message), "write e.g. 1280x704"};
  };
  const char* end = text.data() + text.size();
  auto [at, status] = std::from_chars(text.data(), end, size.width);
  if (status != std::errc{} || at == end || *at != 'x')
    return wrong("should be WIDTHxHEIGHT, not '" + shown(text) + "'");
  const auto second = std::from_chars(at + 1, end, size.height);
  if (second.ec != std::errc{} || second.ptr != end)
    return wrong("should be WIDTHxHEIGHT, not '" + shown(text) + "'");
  if (size.width == 0 || size.height == 0 || size.width % 16 != 0 || size.height % 16 != 0)
    return wrong("should have a width and height that are multiples of 16, not '" + shown(text) + "'");
  if (size.width > 8192 || size.height > 8192)
    return wrong("should be at most 8192 pixels each way, not '" + shown(text) + "'");
  return size;
}

Result<std::string> folder_of(const ModelSpec& model, const Environment& environment) {
  if (model.folder.empty())
    return Error{ErrorCode::invalid_config, model.file + ": model '" + model.name + "' names no folder",
                 "add spec.folder"};
  return resolved(model, model.folder, environment);
}

Result<std::string> component_folder_of(const ModelSpec& model, const std::string& component,
                                        const Environment& environment) {
  const auto& own = model.components;
  const std::string* written = component == "transformer"    ? &own.transformer
                               : component == "text_encoder" ? &own.text_encoder
                               : component == "tokenizer"    ? &own.tokenizer
                               : component == "vae"          ? &own.vae
                               : component == "scheduler"    ? &own.scheduler
                                                             : nullptr;
  if (written != nullptr && !written->empty()) return resolved(model, *written, environment);
  ORRERY_TRY(folder, folder_of(model, environment));
  return (std::filesystem::path(folder) / component).string();
}

ModelSpec read_model(const YamlNode& spec, const std::string& name, YamlReader& reader) {
  ModelSpec model;
  model_schema().read(spec, "spec", model, reader);
  model.name = name;
  model.file = spec.file();
  model.line = spec.nearest("folder").line;
  // A folder from the command line (--set folder=...) starts where the user stands.
  if (!model.folder.empty() && model.line == 0 && !model.folder.starts_with("${")) {
    std::error_code failed;
    const auto here = std::filesystem::absolute(model.folder, failed);
    if (!failed) model.folder = here.string();
  }
  const auto& parts = model.components;
  const bool all_parts = !parts.transformer.empty() && !parts.text_encoder.empty() && !parts.tokenizer.empty() &&
                         !parts.vae.empty() && !parts.scheduler.empty();
  if (spec.is_map() && spec.find("folder") == nullptr && !all_parts && !model.geometry)
    reader.complain(spec, "E104", "spec.folder", "is missing",
                    "or name all components, or a geometry for planning only");
  if (model.geometry && model.geometry->transformer.num_attention_heads % model.slices != 0)
    reader.complain(spec.nearest("slices"), "E112", "spec.slices",
                    "should divide the " + std::to_string(model.geometry->transformer.num_attention_heads) +
                        " attention heads, not " + std::to_string(model.slices));
  return model;
}

OrderedJson model_json_schema() { return model_schema().json_schema(); }
std::vector<SchemaPage> model_pages() { return model_schema().pages(); }
std::vector<std::string> model_keys() { return model_schema().keys(); }

}  // namespace orrery::topology
