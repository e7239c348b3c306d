// A model as its YAML file describes it: where its weights are, how it is sliced, what a request gets by default.
//
// `geometry` holds the sizes that decide memory and work, so that a cluster can be planned without the weights.

#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/tensor.hpp"
#include "base/yaml_schema.hpp"

namespace orrery::topology {

/// Of CosmosTransformer3DModel (transformer/config.json); initialisers are its constructor's defaults.
struct TransformerGeometry {
  std::uint32_t in_channels = 16, out_channels = 16;
  std::uint32_t num_attention_heads = 32, attention_head_dim = 128;
  std::uint32_t num_layers = 28;
  double mlp_ratio = 4;
  std::uint32_t text_embed_dim = 1024;
  std::uint32_t adaln_lora_dim = 256;
  std::vector<std::uint32_t> max_size{128, 240, 240};
  std::vector<std::uint32_t> patch_size{1, 2, 2};
};

/// Of T5EncoderModel (text_encoder/config.json).
struct TextEncoderGeometry {
  std::uint32_t vocab_size = 32128;
  std::uint32_t d_model = 1024, d_kv = 128, d_ff = 65536;
  std::uint32_t num_layers = 24, num_heads = 128;
};

/// Of AutoencoderKLCosmos (vae/config.json), the decoder's side.
struct VaeGeometry {
  std::uint32_t out_channels = 3, latent_channels = 16;
  std::vector<std::uint32_t> decode_block_out_channels{256, 512, 512, 512};
  std::uint32_t num_layers = 2;
  std::uint32_t patch_size = 4;
  std::uint32_t spatial_compression_ratio = 8, temporal_compression_ratio = 8;
};

struct ModelGeometry {
  TransformerGeometry transformer;
  TextEncoderGeometry text_encoder;
  VaeGeometry vae;
};

struct FrameSize {
  std::uint32_t width = 1280, height = 704;
  bool operator==(const FrameSize&) const = default;
};
/// "1280x704".
std::string text_of(FrameSize size);
/// Fails with invalid_config and a sentence without subject.
Result<FrameSize> parse_frame_size(std::string_view text);

/// What a request gets when it says nothing.
struct RequestDefaults {
  FrameSize size;
  std::uint32_t num_frames = 121;
  std::uint32_t fps = 30;
  std::uint32_t num_inference_steps = 36;
  double guidance_scale = 7;
  std::string negative_prompt;
  std::uint32_t max_text_tokens = 512;
  bool operator==(const RequestDefaults&) const = default;
};

/// Folders of single components, where they do not lie in one folder.
struct ComponentFolders {
  std::string transformer, text_encoder, tokenizer, vae, scheduler;
};

/// How the sliced matrices are kept: as `dtype`, or as int8 with a scale for each output channel.
enum class Quantisation : std::uint8_t { none, int8 };

struct ModelSpec {
  std::string name;
  std::string pipeline = "cosmos-text2world";
  std::string folder;  // As written, variables and all: see folder_of.
  ComponentFolders components;
  DType dtype = DType::bf16;
  Quantisation quantisation = Quantisation::none;
  std::uint32_t slices = 8;
  RequestDefaults defaults;
  std::optional<ModelGeometry> geometry;
  std::string file;        // Where the model was read from; relative folders start at its folder.
  std::uint32_t line = 0;  // Of `folder`.

  /// "float32" or "bfloat16".
  std::string dtype_name() const { return dtype == DType::bf16 ? "bfloat16" : "float32"; }
  /// With the quantisation, as provenance has it: "bfloat16", "bfloat16+int8" ...
  std::string arithmetic_name() const { return dtype_name() + (quantisation == Quantisation::int8 ? "+int8" : ""); }
};

/// The model folder, or a component's ("transformer", "text_encoder", "tokenizer", "vae", "scheduler"):
/// variables replaced, relative paths resolved against the YAML file's folder. Does not look at the disk.
/// Fails with invalid_config naming the file, line and variable.
Result<std::string> folder_of(const ModelSpec& model, const Environment& environment = process_environment());
Result<std::string> component_folder_of(const ModelSpec& model, const std::string& component,
                                        const Environment& environment = process_environment());

ModelSpec read_model(const YamlNode& spec, const std::string& name, YamlReader& reader);

OrderedJson model_json_schema();
std::vector<SchemaPage> model_pages();
std::vector<std::string> model_keys();

}  // namespace orrery::topology
