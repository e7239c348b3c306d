// AutoencoderKLCosmos as a graph.
//
// Between operations the residual stream is f32; what enters a convolution or an attention product, and what two
// convolutions of a pair hand on, is in the compute dtype. Sizes of published CV8x8x8 at 121 frames of 704 x 1280:
//
//   latent 16 x 16 x 88 x 160 ─ conv_in ─ 512 ─ mid, up0 ─ up1 (time and space doubled) ─ up2 ─ 256 ─ conv_out ─ 192 ─ haar ─▶ 3
//
// Frame by frame (`first`, then `next`): a latent frame after the first becomes m = 2, 4 ... frames behind each
// upsampler that doubles time, the first one stays one frame. The reference repeats every frame and drops the very first
// copy; hence drop = 1 in `first` and 0 in `next`, and the same for the last patch. Each temporal convolution has a state
// slot with the two frames before, each temporal attention one with all keys and values.

#include "compiler/models/cosmos_codec.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "cards/weight_loader.hpp"
#include "compiler/passes/passes.hpp"

namespace orrery::compiler {

namespace {

using cards::Activation;
using cards::Attr;
using cards::Op;
using cards::WeightForm;

constexpr double norm_eps = 1e-6;
constexpr std::uint64_t extent_max = 1 << 16;  // Frames, height, width of a request: keeps products far from overflow.

std::uint64_t log2_of(std::uint64_t power) { return static_cast<std::uint64_t>(std::countr_zero(power)); }

/// One down or up block.
struct Block {
  std::uint64_t in = 0, out = 0;
  bool attention = false;
  bool spatial = false, temporal = false;  // Sampling at its end.
};

bool contains(const std::vector<std::uint64_t>& values, std::uint64_t value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

std::vector<Block> encoder_blocks(const CodecConfig& config) {
  const auto& channels = config.encoder_channels;
  const auto spatial = log2_of(config.spatial_ratio / config.patch), temporal = log2_of(config.temporal_ratio / config.patch);
  std::vector<Block> blocks;
  auto resolution = config.resolution / config.patch;
  for (std::size_t i = 0; i + 1 < channels.size(); ++i) {
    Block block{channels[i], channels[i + 1], contains(config.attention_resolutions, resolution), false, false};
    if (i + 2 < channels.size()) {
      block.spatial = i < spatial;
      block.temporal = i < temporal;
      resolution /= 2;
    }
    blocks.push_back(block);
  }
  return blocks;
}

std::vector<Block> decoder_blocks(const CodecConfig& config) {
  const std::vector<std::uint64_t> channels(config.decoder_channels.rbegin(), config.decoder_channels.rend());
  const auto spatial = log2_of(config.spatial_ratio / config.patch), temporal = log2_of(config.temporal_ratio / config.patch);
  std::vector<Block> blocks;
  auto resolution = config.resolution / config.patch >> (channels.size() - 2);
  for (std::size_t i = 0; i + 1 < channels.size(); ++i) {
    Block block{channels[i], channels[i + 1], contains(config.attention_resolutions, resolution), false, false};
    if (i + 2 < channels.size()) {
      block.temporal = i > 0 && i < temporal + 1;
      block.spatial = block.temporal || (i < spatial && spatial > temporal);
      resolution *= 2;
    }
    blocks.push_back(block);
  }
  return blocks;
}

std::uint64_t doublings(const std::vector<Block>& blocks, bool Block::*axis) {
  return static_cast<std::uint64_t>(std::count_if(blocks.begin(), blocks.end(), [&](const Block& block) { return block.*axis; }));
}

/// How much of a clip one program sees.
enum class Span : std::uint8_t { whole, first, next };

/// Writes the layers of one component into a graph.
class CodecGraph {
public:
  CodecGraph(std::string component, const CodecConfig& config, Compute compute)
      : config_(config), compute_(dtype_of(compute)), builder_(std::move(component), 1) {}

  GraphBuilder& builder() { return builder_; }
  Graph finish() && { return std::move(builder_).finish(); }

  void begin(const std::string& program, Span span, std::uint64_t latent_frames) {
    builder_.begin_program(program);
    span_ = span;
    latent_frames_ = latent_frames;
  }

  /// z [T,H,W,C] f32 to video f32[3,F,H,W].
  ValueId decode(ValueId z, const std::string& video) {
    auto h = pointwise("post_quant_conv", z, config_.latent_channels, compute_);
    const auto blocks = decoder_blocks(config_);
    h = conv_pair("decoder.conv_in", h, blocks.front().in);
    h = mid("decoder.mid_block", h);
    frames_factor_ = 1;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const auto name = "decoder.up_blocks." + std::to_string(i);
      h = layers(name, h, blocks[i], config_.layers + 1);
      if (blocks[i].spatial || blocks[i].temporal) h = upsample(name + ".upsamplers.0", h, blocks[i]);
    }
    h = norm("decoder.norm_out", h, Activation::silu);
    h = conv_pair("decoder.conv_out", h, config_.out_channels * config_.patch * config_.patch * config_.patch);
    const double drop = span_ == Span::next ? 0 : static_cast<double>(config_.patch - 1);
    return node(Op::unpatch_video, video, {h}, DType::f32, {.attrs = {{Attr::patch, as_number(config_.patch)}, {Attr::haar, config_.haar ? 1 : 0}, {Attr::drop, drop}}});
  }

  /// pixels f32[3,F,H,W] to latent [T,H,W,C] f32.
  ValueId encode(ValueId pixels) {
    const auto blocks = encoder_blocks(config_);
    auto h = node(Op::patch_video, "encoder.patch", {pixels}, compute_,
                  {.attrs = {{Attr::patch, as_number(config_.patch)}, {Attr::haar, config_.haar ? 1 : 0}, {Attr::repeat_first, as_number(config_.patch - 1)}}});
    h = conv_pair("encoder.conv_in", h, blocks.front().in);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const auto name = "encoder.down_blocks." + std::to_string(i);
      h = layers(name, h, blocks[i], config_.layers);
      if (blocks[i].spatial || blocks[i].temporal) h = downsample(name + ".downsamplers.0", h, blocks[i]);
    }
    h = mid("encoder.mid_block", h);
    h = norm("encoder.norm_out", h, Activation::silu);
    h = conv_pair("encoder.conv_out", h, config_.latent_channels);
    return pointwise("quant_conv", h, config_.latent_channels, DType::f32);
  }

  ValueId node(Op op, const std::string& label, std::vector<ValueId> inputs, DType dtype, GraphBuilder::Extra extra = {}) {
    return builder_.node(op, label, std::move(inputs), dtype, std::move(extra));
  }

private:
  static double as_number(std::uint64_t count) { return static_cast<double>(count); }
  const Shape& shape_of(ValueId value) const { return builder_.shape_of(value); }
  static cards::WeightSpec vector_of(const std::string& tensor, std::uint64_t count) {
    return whole_weight(tensor, WeightForm::vector, DType::f32, {count});
  }

  /// The state slot `name`, made when the first program asks for it and shared by the others.
  ValueId state(const std::string& name, DType dtype, const Shape& shape) {
    const auto found = states_.find(name);
    if (found != states_.end()) return found->second;
    return states_[name] = builder_.state(name, dtype, shape);
  }

  ValueId pointwise(const std::string& name, ValueId x, std::uint64_t out, DType dtype, std::optional<Shape> shape = {}) {
    const auto in = shape_of(x).back();
    return node(Op::linear, name, {x}, dtype,
                {.weights = {whole_weight(name + ".weight", WeightForm::matrix, compute_, {out, in, 1, 1, 1}), vector_of(name + ".bias", out)},
                 .shape = std::move(shape)});
  }

  ValueId conv_spatial(const std::string& name, ValueId x, std::uint64_t out, DType dtype, int stride = 1) {
    const auto in = shape_of(x).back();
    return node(Op::conv_spatial, name, {x}, dtype,
                {.weights = {whole_weight(name + ".weight", WeightForm::conv_spatial, compute_, {out, in, 1, 3, 3}), vector_of(name + ".bias", out)},
                 .attrs = {{Attr::stride, stride}}});
  }

  ValueId conv_temporal(const std::string& name, ValueId x, std::uint64_t out, DType dtype, int stride = 1) {
    const auto shape = shape_of(x);
    std::vector<ValueId> inputs = {x};
    if (span_ != Span::whole) inputs.push_back(state(name + ".history", builder_.dtype_of(x), {2, shape[1], shape[2], shape[3]}));
    return node(Op::conv_temporal, name, std::move(inputs), dtype,
                {.weights = {whole_weight(name + ".weight", WeightForm::conv_temporal, compute_, {out, shape[3], 3, 1, 1}), vector_of(name + ".bias", out)},
                 .attrs = {{Attr::stride, stride}, {Attr::first, span_ == Span::next ? 0 : 1}}});
  }

  ValueId conv_pair(const std::string& name, ValueId x, std::uint64_t out) {
    return conv_temporal(name + ".conv_t", conv_spatial(name + ".conv_s", x, out, compute_), out, DType::f32);
  }

  ValueId norm(const std::string& name, ValueId x, Activation activation) {
    const auto channels = shape_of(x).back();
    return node(Op::group_norm, name, {x}, compute_,
                {.weights = {vector_of(name + ".norm.weight", channels), vector_of(name + ".norm.bias", channels)},
                 .attrs = {{Attr::eps, norm_eps}, {Attr::activation, static_cast<double>(activation)}}});
  }

  ValueId add(const std::string& label, ValueId a, ValueId b) { return node(Op::add, label, {a, b}, DType::f32); }

  ValueId resnet(const std::string& name, ValueId x, std::uint64_t out) {
    auto y = norm(name + ".norm1", x, Activation::silu);
    y = conv_pair(name + ".conv1", y, out);
    y = norm(name + ".norm2", y, Activation::silu);
    y = conv_pair(name + ".conv2", y, out);
    const auto shortcut = shape_of(x).back() == out ? x : pointwise(name + ".conv_shortcut", x, out, DType::f32);
    return add(name + ".sum", shortcut, y);
  }

  /// Every pixel of a frame with every other; a frame is a slice with one head.
  ValueId attention_in_frame(const std::string& name, ValueId x) {
    const auto shape = shape_of(x);
    const auto channels = shape[3];
    const Shape flat = {shape[0], shape[1] * shape[2], channels};
    const auto n = norm(name + ".norm", x, Activation::none);
    const auto q = pointwise(name + ".to_q", n, channels, compute_, flat);
    const auto k = pointwise(name + ".to_k", n, channels, compute_, flat);
    const auto v = pointwise(name + ".to_v", n, channels, compute_, flat);
    const auto o = node(Op::attention, name + ".attention", {q, k, v}, compute_,
                        {.attrs = {{Attr::head_dim, as_number(channels)}, {Attr::scale, 1 / std::sqrt(as_number(channels))}}});
    return add(name + ".sum", x, pointwise(name + ".to_out.0", o, channels, DType::f32, shape));
  }

  /// Every pixel with itself in earlier frames.
  ValueId attention_in_time(const std::string& name, ValueId x) {
    const auto shape = shape_of(x);
    const auto channels = shape[3];
    const auto n = norm(name + ".norm", x, Activation::none);
    std::vector<ValueId> inputs = {pointwise(name + ".to_q", n, channels, compute_), pointwise(name + ".to_k", n, channels, compute_),
                                   pointwise(name + ".to_v", n, channels, compute_)};
    if (span_ != Span::whole) {
      const Shape cache = {1 + (latent_frames_ - 1) * frames_factor_, shape[1], shape[2], channels};
      inputs.push_back(state(name + ".keys", compute_, cache));
      inputs.push_back(state(name + ".values", compute_, cache));
    }
    const auto o = node(Op::temporal_attention, name + ".attention", std::move(inputs), compute_,
                        {.attrs = {{Attr::scale, 1 / std::sqrt(as_number(channels))}, {Attr::has_caches, span_ == Span::whole ? 0 : 1}}});
    return add(name + ".sum", x, pointwise(name + ".to_out.0", o, channels, DType::f32));
  }

  ValueId mid(const std::string& name, ValueId x) {
    const auto channels = shape_of(x).back();
    x = resnet(name + ".resnets.0", x, channels);
    x = attention_in_frame(name + ".attentions.0", x);
    x = attention_in_time(name + ".temp_attentions.0", x);
    return resnet(name + ".resnets.1", x, channels);
  }

  ValueId layers(const std::string& name, ValueId x, const Block& block, std::uint64_t count) {
    for (std::uint64_t j = 0; j < count; ++j) {
      const auto index = std::to_string(j);
      x = resnet(name + ".resnets." + index, x, block.out);
      if (!block.attention) continue;
      x = attention_in_frame(name + ".attentions." + index, x);
      x = attention_in_time(name + ".temp_attentions." + index, x);
    }
    return x;
  }

  ValueId upsample(const std::string& name, ValueId x, const Block& block) {
    const auto channels = shape_of(x).back();
    if (block.temporal) {
      frames_factor_ *= 2;
      x = node(Op::repeat_temporal, name + ".repeat", {x}, DType::f32, {.attrs = {{Attr::drop, span_ == Span::next ? 0 : 1}}});
      x = add(name + ".sum1", x, conv_temporal(name + ".conv1", x, channels, DType::f32));
    }
    if (block.spatial) {
      x = node(Op::upsample_spatial, name + ".nearest", {x}, DType::f32);
      x = add(name + ".sum2", x, conv_spatial(name + ".conv2", x, channels, DType::f32));
    }
    return pointwise(name + ".conv3", x, channels, DType::f32);
  }

  ValueId downsample(const std::string& name, ValueId x, const Block& block) {
    const auto channels = shape_of(x).back();
    if (block.spatial) {
      const auto pooled = node(Op::avg_pool_spatial, name + ".pool1", {x}, DType::f32);
      x = add(name + ".sum1", pooled, conv_spatial(name + ".conv1", x, channels, DType::f32, 2));
    }
    if (block.temporal) {
      const auto pooled = node(Op::avg_pool_temporal, name + ".pool2", {x}, DType::f32);
      x = add(name + ".sum2", pooled, conv_temporal(name + ".conv2", x, channels, DType::f32, 2));
    }
    return pointwise(name + ".conv3", x, channels, DType::f32);
  }

  const CodecConfig& config_;
  DType compute_;
  GraphBuilder builder_;
  Span span_ = Span::whole;
  std::uint64_t latent_frames_ = 1;
  std::uint64_t frames_factor_ = 1;  // Frames here for each latent frame after the first.
  std::map<std::string, ValueId> states_;
};

Error not_decodable(const std::string& what, std::string hint = {}) { return Error{ErrorCode::invalid_request, what, std::move(hint)}; }

Status check_extents(const char* what, std::uint64_t frames, std::uint64_t height, std::uint64_t width) {
  if (frames < 1 || height < 1 || width < 1 || frames > extent_max || height > extent_max || width > extent_max)
    return not_decodable(std::string(what) + " of " + std::to_string(frames) + " x " + std::to_string(height) + " x " + std::to_string(width) +
                             " (frames, height, width) cannot be computed",
                         "each is 1 to 65536");
  return Done{};
}

/// The frame-by-frame decoder's graph.
Graph stream_graph(const CodecConfig& config, Compute compute, const CodecShape& shape, double sigma_data) {
  CodecGraph codec("vae.decoder", config, compute);
  auto& builder = codec.builder();
  codec.begin("prepare", Span::first, shape.frames);
  const Shape clip = {config.latent_channels, shape.frames, shape.height, shape.width};
  const auto latents = builder.input("latents", DType::f32, clip);
  const auto vae_input = builder.state("vae_input", DType::f32, clip);
  const auto rows = builder.state("vae_rows", DType::f32, {shape.frames, shape.height, shape.width, config.latent_channels});
  GraphBuilder::Extra units{.attrs = {{Attr::sigma_data, sigma_data}, {Attr::frames_max, static_cast<double>(config.frames_max())}}, .into = vae_input};
  if (!config.latents_mean.empty())
    for (const char* table : {"latents_mean", "latents_std"})
      units.weights.push_back(whole_weight(table, WeightForm::vector, DType::f32, {config.latents_mean.size()}));
  codec.node(Op::to_decoder, "to_decoder", {latents}, DType::f32, std::move(units));
  codec.node(Op::channels_last, "vae_rows", {vae_input}, DType::f32, {.into = rows});
  builder.name_output("vae_input", vae_input);
  for (const auto& [name, span] : {std::pair("first", Span::first), std::pair("next", Span::next)}) {
    if (span == Span::next && shape.frames == 1) break;
    codec.begin(name, span, shape.frames);
    const auto z = codec.node(Op::take_frame, "z", {rows}, DType::f32, {.shape = Shape{1, shape.height, shape.width, config.latent_channels}});
    const auto video = codec.decode(z, std::string(name) + ".video");
    builder.name_output(std::string(name) + ".video", video);
    builder.name_output(std::string(name) + ".frames", codec.node(Op::frames_u8, std::string(name) + ".frames", {video}, DType::u8));
  }
  return std::move(codec).finish();
}

Graph encode_graph(const CodecConfig& config, Compute compute, const PixelShape& shape) {
  CodecGraph codec("vae.encoder", config, compute);
  codec.begin("forward", Span::whole, 1);
  const auto pixels = codec.builder().input("pixels", DType::f32, {config.in_channels, shape.frames, shape.height, shape.width});
  const auto latent = codec.node(Op::channels_first, "latent", {codec.encode(pixels)}, DType::f32);
  codec.builder().name_output("latent", latent);
  return std::move(codec).finish();
}

}  // namespace

std::uint64_t frames_per_latent(const CodecConfig& config) {
  return config.patch << doublings(decoder_blocks(config), &Block::temporal);
}

PixelShape decoded_shape(const CodecConfig& config, const CodecShape& latents) {
  const auto scale = config.patch << doublings(decoder_blocks(config), &Block::spatial);
  return {1 + (latents.frames - 1) * frames_per_latent(config), latents.height * scale, latents.width * scale};
}

Result<std::shared_ptr<const cards::WeightSet>> decoder_weights(const CodecConfig& config, Compute compute) {
  return weights_of(stream_graph(config, compute, {1, 1, 1}, 1), single_card(1));
}

Result<std::shared_ptr<const cards::WeightSet>> encoder_weights(const CodecConfig& config, Compute compute) {
  const auto edge = config.patch << doublings(encoder_blocks(config), &Block::spatial);
  return weights_of(encode_graph(config, compute, {1, edge, edge}), single_card(1));
}

Result<std::shared_ptr<const cards::ProgramSet>> compile_decoder(const CodecConfig& config, std::shared_ptr<const cards::WeightSet> weights,
                                                                 Compute compute, const CodecShape& shape, double sigma_data,
                                                                 PassTrace* trace) {
  ORRERY_TRY_DONE(check_extents("latents", shape.frames, shape.height, shape.width));
  const auto blocks = decoder_blocks(config);
  for (const auto& [key, ratio, axis] : {std::tuple("temporal_compression_ratio", config.temporal_ratio, &Block::temporal),
                                         std::tuple("spatial_compression_ratio", config.spatial_ratio, &Block::spatial)})
    if (config.patch << doublings(blocks, axis) != ratio)
      return Error{ErrorCode::unsupported, "vae/config.json: " + std::string(key) + " is " + std::to_string(ratio) +
                                               ", but patch_size and the " + std::to_string(blocks.size()) + " blocks of decode_block_out_channels give " +
                                               std::to_string(config.patch << doublings(blocks, axis))};
  if (!config.latents_mean.empty() && shape.frames > config.frames_max())
    return not_decodable("a video of " + std::to_string(decoded_shape(config, shape).frames) + " frames is too long: vae/config.json has latents_mean for " +
                             std::to_string(config.frames_max()) + " latent frames",
                         "at most " + std::to_string(decoded_shape(config, {config.frames_max(), 1, 1}).frames) + " frames");
  return compile_graph(stream_graph(config, compute, shape, sigma_data), std::move(weights), single_card(1), trace);
}

Result<std::shared_ptr<const cards::ProgramSet>> compile_decode_whole(const CodecConfig& config,
                                                                      std::shared_ptr<const cards::WeightSet> weights, Compute compute,
                                                                      const CodecShape& shape, PassTrace* trace) {
  ORRERY_TRY_DONE(check_extents("latents", shape.frames, shape.height, shape.width));
  CodecGraph codec("vae.decoder", config, compute);
  codec.begin("forward", Span::whole, shape.frames);
  const auto z = codec.builder().input("z", DType::f32, {config.latent_channels, shape.frames, shape.height, shape.width});
  codec.builder().name_output("video", codec.decode(codec.node(Op::channels_last, "rows", {z}, DType::f32), "video"));
  return compile_graph(std::move(codec).finish(), std::move(weights), single_card(1), trace);
}

Result<std::shared_ptr<const cards::ProgramSet>> compile_encode(const CodecConfig& config, std::shared_ptr<const cards::WeightSet> weights,
                                                                Compute compute, const PixelShape& shape, PassTrace* trace) {
  ORRERY_TRY_DONE(check_extents("pixels", shape.frames, shape.height, shape.width));
  const auto edge = config.patch << doublings(encoder_blocks(config), &Block::spatial);
  if (shape.height % edge != 0 || shape.width % edge != 0)
    return not_decodable("a video of " + std::to_string(shape.width) + " x " + std::to_string(shape.height) +
                             " pixels cannot be encoded: width and height should be multiples of " + std::to_string(edge));
  if ((shape.frames - 1) % config.patch != 0)
    return not_decodable("a video of " + std::to_string(shape.frames) + " frames cannot be encoded: frames should be one more than a multiple of " +
                             std::to_string(config.patch));
  return compile_graph(encode_graph(config, compute, shape), std::move(weights), single_card(1), trace);
}

Result<ComponentFigures> decoder_figures(const CodecConfig& config, Compute compute, const CodecShape& shape) {
  ORRERY_TRY(weights, decoder_weights(config, compute));
  ORRERY_TRY(programs, compile_decoder(config, weights, compute, shape, 1));
  ComponentFigures figures;
  figures.weight_bytes_replicated = weights->bytes();
  figures.weight_padding_replicated = cards::bytes_on_card(*weights) - weights->bytes();
  figures.lanes = {{Split::tensor, 1, 1, 1, programs->lane_bytes()}};
  for (const auto& program : programs->programs) {
    const double times = program.name == "next" ? static_cast<double>(shape.frames - 1) : 1;
    for (const auto& command : program.commands) {
      const auto elements = [&](cards::SlotId slot) { return static_cast<double>(element_count(programs->slots[slot].shape)); };
      const auto& shape_in = command.inputs.empty() ? Shape{} : programs->slots[command.inputs[0]].shape;
      switch (command.op) {
        case Op::linear:
        case Op::conv_spatial:
        case Op::conv_temporal:
          figures.flops_linear += times * 2 * elements(command.outputs[0]) * static_cast<double>(weights->weights[command.weights[0]].columns());
          break;
        case Op::attention: figures.flops_attention += times * 4 * elements(command.inputs[0]) * static_cast<double>(shape_in[1]); break;
        case Op::temporal_attention:  // A frame sees half of the clip on average.
          figures.flops_attention += times * 2 * elements(command.inputs[0]) * (static_cast<double>(programs->slots[command.inputs[3]].shape[0]) + 1);
          break;
        default: break;
      }
    }
  }
  return figures;
}

}  // namespace orrery::compiler
