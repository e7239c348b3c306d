#include "topology/model_demand.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

namespace orrery::topology {
namespace {

/// Sizes of a request inside the model.
struct Inside {
  double latent_frames, latent_height, latent_width;
  double video_tokens;
  double text_tokens;
  double branches;
  double element_bytes;
  double sliced_bytes;  // Of an element of a sliced matrix.
};

/// Past this a figure is no real request, and integers might overflow.
constexpr double figure_max = 1e18;

std::uint64_t rounded(double value) { return static_cast<std::uint64_t>(value); }

StageDemand text_encoder_of(const TextEncoderGeometry& g, const Inside& in, std::uint32_t slices) {
  StageDemand stage;
  stage.kind = StageKind::text_encoder;
  stage.slices = std::gcd(slices, g.num_heads);
  stage.blocks = g.num_layers;
  const double rows = in.text_tokens * in.branches, width = g.d_model,
               inner = static_cast<double>(g.num_heads) * g.d_kv, hidden = g.d_ff;
  stage.rows = rounded(rows);
  stage.width = g.d_model;
  stage.text_rows = rounded(in.text_tokens);
  const double block_weights = 4 * width * inner + 2 * width * hidden;
  stage.weight_bytes_sliced = rounded(g.num_layers * block_weights * in.sliced_bytes);
  stage.weight_bytes_replicated = rounded((g.vocab_size * width + 2 * g.num_layers * width) * in.element_bytes);
  stage.activation_bytes_fixed = rounded(rows * width * (in.element_bytes + 4));
  stage.activation_bytes_split = rounded(rows * (4 * inner + hidden) * in.element_bytes);
  stage.flops_linear = g.num_layers * 2 * rows * block_weights;
  stage.flops_attention = g.num_layers * 4 * rows * in.text_tokens * inner;
  stage.gather_element_bytes = static_cast<std::uint32_t>(in.element_bytes);
  stage.reduces_per_block = 2;
  return stage;
}

StageDemand denoiser_of(const TransformerGeometry& g, const Inside& in, std::uint32_t slices, std::uint32_t steps) {
  StageDemand stage;
  stage.kind = StageKind::denoiser;
  stage.slices = slices;
  stage.blocks = g.num_layers;
  const double layers = g.num_layers, tokens = in.video_tokens, text = in.text_tokens;
  const double width = static_cast<double>(g.num_attention_heads) * g.attention_head_dim;
  const double patch = static_cast<double>(g.patch_size[0]) * g.patch_size[1] * g.patch_size[2];
  stage.rows = rounded(tokens);
  stage.width = rounded(width);
  stage.text_rows = rounded(text);
  stage.sequence_split = slices > 1;
  stage.branches = static_cast<std::uint32_t>(in.branches);
  stage.steps = steps;
  // Self-attention 4 D^2, cross-attention 2 D^2 and keys and values of the text, MLP 2 r D^2.
  stage.weight_bytes_sliced =
      rounded(layers * ((6 + 2 * g.mlp_ratio) * width * width + 2 * width * g.text_embed_dim) * in.sliced_bytes);
  const double embeddings = (g.in_channels + 1 + g.out_channels) * patch * width + 4 * width * width + width;
  const double positions = (g.max_size[0] / std::max(1U, g.patch_size[0]) + g.max_size[1] / g.patch_size[1] +
                            g.max_size[2] / g.patch_size[2]) *
                           width;
  stage.weight_bytes_replicated = rounded(
      (layers * 12 * g.adaln_lora_dim * width + 3 * g.adaln_lora_dim * width + embeddings) * in.element_bytes +
      positions * 4);
  // Gathered norm output and f32 partial sums are whole on every card; residual, positions, q, k, v, attention
  // output and MLP hidden are shared out. Rotation tables are f32.
  stage.activation_bytes_fixed =
      rounded(tokens * width * (in.element_bytes + 4) + tokens * g.attention_head_dim * 8);
  stage.activation_bytes_split =
      rounded(tokens * width * in.element_bytes * (6 + g.mlp_ratio) + layers * 2 * text * width * in.element_bytes);
  stage.flops_linear =
      layers * (2 * tokens * (6 + 2 * g.mlp_ratio) * width * width + 4 * text * width * g.text_embed_dim) +
      2 * tokens * (g.in_channels + 1 + g.out_channels) * patch * width;
  stage.flops_attention = layers * (4 * tokens * tokens * width + 4 * tokens * text * width);
  stage.gather_element_bytes = static_cast<std::uint32_t>(in.element_bytes);
  return stage;
}

/// Sums up the decoder's layers: convolutions as two-dimensional (1,3,3) and temporal (3,1,1) halves.
StageDemand decoder_of(const VaeGeometry& g, const Inside& in) {
  std::vector<double> channels(g.decode_block_out_channels.rbegin(), g.decode_block_out_channels.rend());
  double frames = in.latent_frames, height = in.latent_height, width = in.latent_width;
  double weights = 0, flops = 0, peak = 0;
  const auto use = [&](double parameters) {
    weights += parameters;
    flops += 2 * parameters * frames * height * width;
  };
  const auto convolution = [&](double from, double to) { use(9 * from * to + 3 * to * to); };
  const auto residual = [&](double from, double to) {
    convolution(from, to);
    convolution(to, to);
    if (from != to) use(from * to);
    peak = std::max(peak, frames * height * width * std::max(from, to));
  };
  const double first = channels.front();
  convolution(g.latent_channels, first);
  residual(first, first);
  use(8 * first * first);  // Spatial and temporal attention: q, k, v, out.
  flops += 4 * frames * (height * width) * (height * width) * first + 4 * height * width * frames * frames * first;
  residual(first, first);
  const auto levels = [&](std::uint32_t ratio) {
    const auto all = std::bit_width(ratio), by_patch = std::bit_width(g.patch_size);
    return static_cast<std::size_t>(all > by_patch ? all - by_patch : 0);
  };
  const auto spatial = levels(g.spatial_compression_ratio), temporal = levels(g.temporal_compression_ratio);
  for (std::size_t level = 0; level + 1 < channels.size(); ++level) {
    const double from = channels[level], to = channels[level + 1];
    for (std::uint32_t i = 0; i <= g.num_layers; ++i) residual(i == 0 ? from : to, to);
    const bool last = level + 2 == channels.size();
    const bool in_time = !last && level > 0 && level < temporal + 1;
    const bool in_space = !last && (in_time || (level < spatial && spatial > temporal));
    if (in_time && frames > 1) frames = 2 * frames - 1;
    if (in_time) use(3 * to * to);
    if (in_space) {
      height *= 2;
      width *= 2;
      use(9 * to * to);
    }
    if (in_time || in_space) use(to * to);
  }
  const double patched = static_cast<double>(g.out_channels) * g.patch_size * g.patch_size * g.patch_size;
  convolution(channels.back(), patched);
  StageDemand stage;
  stage.kind = StageKind::decoder;
  stage.weight_bytes_replicated = rounded(weights * in.element_bytes);
  stage.activation_bytes_fixed = rounded(3 * peak * in.element_bytes);
  stage.flops_linear = flops;
  return stage;
}

}  // namespace

RequestShape shape_of(const RequestDefaults& defaults) {
  return {defaults.size, defaults.num_frames, defaults.num_inference_steps, defaults.guidance_scale > 1,
          defaults.max_text_tokens};
}

Result<Demand> demand_of(const ModelSpec& model, const RequestShape& shape) {
  if (!model.geometry)
    return Error{ErrorCode::invalid_config, model.file + ": model '" + model.name + "' has no geometry",
                 "add spec.geometry, or its weights"};
  const auto& g = *model.geometry;
  const auto wrong = [&](std::string message, std::string hint) {
    return Error{ErrorCode::invalid_request, std::move(message), std::move(hint)};
  };
  const auto in_space = g.vae.spatial_compression_ratio, in_time = g.vae.temporal_compression_ratio;
  if (g.transformer.patch_size.size() != 3 || g.transformer.max_size.size() != 3 ||
      g.vae.decode_block_out_channels.size() < 2)
    return Error{ErrorCode::invalid_config, "model '" + model.name + "' has an incomplete geometry"};
  const auto step_width = in_space * g.transformer.patch_size[2],
             step_height = in_space * g.transformer.patch_size[1];
  if (shape.size.width == 0 || shape.size.height == 0 || shape.size.width % step_width != 0 ||
      shape.size.height % step_height != 0)
    return wrong("a frame of " + text_of(shape.size) + " does not fit model '" + model.name + "'",
                 "use multiples of " + std::to_string(step_width) + " by " + std::to_string(step_height));
  if (shape.num_frames % in_time != 1 % in_time)
    return wrong(std::to_string(shape.num_frames) + " frames do not fit model '" + model.name + "'",
                 "use a multiple of " + std::to_string(in_time) + ", plus 1");
  Inside in{};
  in.latent_frames = (shape.num_frames - 1) / in_time + 1;
  in.latent_height = shape.size.height / in_space;
  in.latent_width = shape.size.width / in_space;
  in.video_tokens = in.latent_frames * in.latent_height * in.latent_width /
                    (static_cast<double>(g.transformer.patch_size[0]) * g.transformer.patch_size[1] *
                     g.transformer.patch_size[2]);
  in.text_tokens = shape.max_text_tokens;
  in.branches = shape.guided ? 2 : 1;
  in.element_bytes = static_cast<double>(size_of(model.dtype));
  in.sliced_bytes = model.quantisation == Quantisation::int8 ? 1 : in.element_bytes;
  Demand demand;
  demand.model = model.name;
  demand.dtype = model.dtype_name();
  demand.latent_bytes = rounded(in.latent_frames * in.latent_height * in.latent_width * g.vae.latent_channels * 4);
  demand.stages = {text_encoder_of(g.text_encoder, in, model.slices),
                   denoiser_of(g.transformer, in, model.slices, shape.num_inference_steps), decoder_of(g.vae, in)};
  for (const auto& stage : demand.stages) {
    const double bytes =
        static_cast<double>(stage.weight_bytes_sliced) + static_cast<double>(stage.weight_bytes_replicated) +
        static_cast<double>(stage.activation_bytes_fixed) + static_cast<double>(stage.activation_bytes_split);
    if (!(bytes < figure_max))
      return wrong("the request is too large for any cluster", "ask for fewer or smaller frames");
  }
  return demand;
}

}  // namespace orrery::topology
