// ModelFolder: a model as published, in diffusers layout, read and checked.
//
//   FOLDER/model_index.json             class of each component
//   FOLDER/{transformer,text_encoder,vae,scheduler}/config.json or scheduler_config.json
//   FOLDER/COMPONENT/*.safetensors      one file, or shards with an index (weight_file.hpp)
//   FOLDER/generation_config.json       defaults of a request; published defaults where absent
//
// Every number is checked (range, divisibility) and every complaint names file and key. Missing keys take the
// constructor defaults, unknown keys are ignored; options of later generations that would change the result are
// refused as `unsupported`. Weights are not touched here.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "compiler/weight_file.hpp"

namespace orrery::compiler {

/// CosmosTransformer3DModel.
struct TransformerConfig {
  std::uint64_t in_channels = 16;  // Counts the condition mask, not the padding mask.
  std::uint64_t out_channels = 16;
  std::uint64_t heads = 32;
  std::uint64_t head_dim = 128;
  std::uint64_t layers = 28;
  double mlp_ratio = 4.0;
  std::uint64_t text_width = 1024;
  std::uint64_t adaln_width = 256;
  std::array<std::uint64_t, 3> max_size = {128, 240, 240};
  std::array<std::uint64_t, 3> patch = {1, 2, 2};
  std::array<double, 3> rope_scale = {2, 1, 1};
  bool padding_mask = true;
  bool learnable_positions = true;

  std::uint64_t width() const { return heads * head_dim; }
  std::uint64_t feed_forward() const { return static_cast<std::uint64_t>(static_cast<double>(width()) * mlp_ratio); }
  /// Elements of one token as patchify writes them.
  std::uint64_t token_inputs() const { return (in_channels + (padding_mask ? 1 : 0)) * patch[0] * patch[1] * patch[2]; }
  std::uint64_t token_outputs() const { return out_channels * patch[0] * patch[1] * patch[2]; }
};

/// T5EncoderModel, v1.0 ("relu").
struct TextEncoderConfig {
  std::uint64_t vocabulary = 32128;
  std::uint64_t width = 1024;
  std::uint64_t head_dim = 128;
  std::uint64_t feed_forward = 65536;
  std::uint64_t layers = 24;
  std::uint64_t heads = 128;
  std::uint64_t buckets = 32;
  std::uint64_t max_distance = 128;
  double eps = 1e-6;
};

/// AutoencoderKLCosmos.
struct CodecConfig {
  std::uint64_t in_channels = 3, out_channels = 3, latent_channels = 16;
  std::vector<std::uint64_t> encoder_channels = {128, 256, 512, 512};
  std::vector<std::uint64_t> decoder_channels = {256, 512, 512, 512};
  std::vector<std::uint64_t> attention_resolutions = {32};
  std::uint64_t resolution = 1024;
  std::uint64_t layers = 2;
  std::uint64_t patch = 4;
  bool haar = true;  // Else "rearrange".
  std::uint64_t spatial_ratio = 8, temporal_ratio = 8;
  /// [latent_channels][frames_max] each; empty when the file says null.
  std::vector<float> latents_mean, latents_std;

  std::uint64_t frames_max() const { return latents_mean.size() / latent_channels; }
};

/// EDMEulerScheduler.
struct SchedulerConfig {
  enum class Schedule : std::uint8_t { karras, exponential };
  enum class Prediction : std::uint8_t { epsilon, v_prediction };
  enum class FinalSigma : std::uint8_t { zero, sigma_min };
  double sigma_min = 0.002, sigma_max = 80.0, sigma_data = 0.5, rho = 7.0;
  Schedule schedule = Schedule::karras;
  Prediction prediction = Prediction::epsilon;
  FinalSigma final_sigma = FinalSigma::zero;
};

/// Defaults of a request.
struct GenerationConfig {
  std::uint64_t height = 704, width = 1280, frames = 121, steps = 36;
  double guidance = 7.0;
  double fps = 30;
  std::uint64_t text_rows = 512;  // max_sequence_length
  std::string negative_prompt;    // The published one where the file is absent.
};

struct ModelFolder {
  std::string path;
  GenerationConfig generation;
  std::optional<TransformerConfig> transformer;
  std::optional<TextEncoderConfig> text_encoder;
  std::optional<CodecConfig> codec;
  std::optional<SchedulerConfig> scheduler;
  bool has_tokenizer = false;  // FOLDER/tokenizer/

  /// The folder that holds a component's files: FOLDER/transformer, or FOLDER itself when it was opened alone.
  std::string component_path(const std::string& component) const;
  std::string single_component;  // "transformer" when a component folder was opened alone; else empty.
};

/// Opens a whole model or one component's folder. Fails with not_found, invalid_model or unsupported.
Result<ModelFolder> open_model_folder(const std::string& path);

/// Each reads and checks one file.
Result<TransformerConfig> read_transformer_config(const std::string& file);
Result<TextEncoderConfig> read_text_encoder_config(const std::string& file);
Result<CodecConfig> read_codec_config(const std::string& file);
Result<SchedulerConfig> read_scheduler_config(const std::string& file);
Result<GenerationConfig> read_generation_config(const std::string& file);

/// The weights of "transformer", "text_encoder" or "vae"; the latter with latents_mean and latents_std of its config,
/// unless they are null, as tensors of those names.
Result<std::shared_ptr<const WeightFiles>> open_weights(const ModelFolder& folder, const std::string& component);

}  // namespace orrery::compiler
