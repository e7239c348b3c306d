#include "compiler/run_component.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "compiler/models/cosmos_codec.hpp"

namespace orrery::compiler {

namespace {

Error bad_input(const std::string& what, const std::string& hint = {}) {
  return Error{ErrorCode::invalid_request, what, hint};
}

/// The inputs of one call: found by name, checked for rank and extents, as f32.
class Inputs {
public:
  explicit Inputs(const NamedTensors& tensors) : tensors_(tensors) {}

  bool has(const std::string& name) const { return tensors_.contains(name); }

  Status only(const std::string& component, const std::set<std::string>& known) const {
    for (const auto& [name, tensor] : tensors_)
      if (!known.contains(name)) {
        std::string names;
        for (const auto& one : known) names += (names.empty() ? "" : ", ") + one;
        return bad_input("'" + name.substr(0, 60) + "' is not an input of the " + component, "inputs: " + names);
      }
    return Done{};
  }

  /// `expected`: extents, 0 where any is right; `letters` names them: "[B,C,T,H,W]".
  Result<Tensor> floats(const std::string& name, const Shape& expected, const char* letters) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end())
      return bad_input("input '" + name + "' is missing", std::string("its shape is ") + letters);
    const auto& shape = found->second.shape();
    bool fits = shape.size() == expected.size();
    for (std::size_t i = 0; fits && i < shape.size(); ++i)
      fits = expected[i] == 0 ? shape[i] > 0 : shape[i] == expected[i];
    if (!fits) {
      std::string wanted = "[";
      for (const auto extent : expected)
        wanted += (wanted.size() > 1 ? ", " : "") + (extent == 0 ? std::string("any") : std::to_string(extent));
      wanted += "]";
      return bad_input("input '" + name + "' has shape " + text_of(shape) + ", expected " + wanted,
                       std::string("that is ") + letters);
    }
    auto copy = copy_as_f32(found->second.view());
    if (!copy.ok()) return bad_input("input '" + name + "': " + copy.error().message);
    return copy;
  }

private:
  const NamedTensors& tensors_;
};

template <class T>
std::span<const T> item(std::span<const T> all, std::uint64_t index, std::uint64_t count) {
  return all.subspan(index * (all.size() / count), all.size() / count);
}

/// [B,S] to 0 and 1; each item must keep something, or its softmax has nothing to weigh.
Status to_mask(Tensor& mask) {
  for (auto& value : mask.as<float>()) value = value != 0 ? 1.0F : 0.0F;
  const auto batch = mask.shape()[0];
  for (std::uint64_t i = 0; i < batch; ++i) {
    const auto row = item<float>(mask.as<float>(), i, batch);
    if (std::all_of(row.begin(), row.end(), [](float keep) { return keep == 0; }))
      return bad_input("input 'attention_mask' keeps no text row of item " + std::to_string(i));
  }
  return Done{};
}

Shape batched(std::uint64_t batch, const Shape& shape) {
  Shape all = {batch};
  all.insert(all.end(), shape.begin(), shape.end());
  return all;
}

/// Nearest neighbour as the reference resizes: source index floor(i * in / out) in f32.
void resize_nearest(std::span<const float> from, std::uint64_t from_height, std::uint64_t from_width,
                    std::span<float> to, std::uint64_t height, std::uint64_t width) {
  const float scale_y = static_cast<float>(from_height) / static_cast<float>(height);
  const float scale_x = static_cast<float>(from_width) / static_cast<float>(width);
  for (std::uint64_t y = 0; y < height; ++y)
    for (std::uint64_t x = 0; x < width; ++x) {
      const auto sy =
          std::min(static_cast<std::uint64_t>(std::floor(static_cast<float>(y) * scale_y)), from_height - 1);
      const auto sx = std::min(static_cast<std::uint64_t>(std::floor(static_cast<float>(x) * scale_x)), from_width - 1);
      to[y * width + x] = from[sy * from_width + sx];
    }
}

Result<NamedTensors> run_transformer(const TransformerConfig& config, const WeightFiles& files,
                                     const NamedTensors& tensors, Lanes& lanes, const ComponentOptions& options) {
  const Inputs inputs(tensors);
  ORRERY_TRY_DONE(inputs.only("transformer", {"hidden_states", "timestep", "encoder_hidden_states", "fps",
                                              "padding_mask", "condition_mask", "attention_mask"}));
  TransformerShape shape;
  shape.condition_mask = inputs.has("condition_mask");
  shape.attention_mask = inputs.has("attention_mask");
  if (shape.condition_mask && config.in_channels < 2)
    return bad_input("this transformer has no channel for a condition_mask");
  ORRERY_TRY(latents, inputs.floats("hidden_states", {0, config.in_channels - (shape.condition_mask ? 1 : 0), 0, 0, 0},
                                    "[B,C,T,H,W]"));
  const auto batch = latents.shape()[0];
  shape.frames = latents.shape()[2];
  shape.height = latents.shape()[3];
  shape.width = latents.shape()[4];
  ORRERY_TRY(timestep, inputs.floats("timestep", {batch}, "[B]"));
  ORRERY_TRY(text, inputs.floats("encoder_hidden_states", {batch, 0, config.text_width}, "[B,S,E]"));
  shape.text_rows = text.shape()[1];
  if (inputs.has("fps")) {
    ORRERY_TRY(fps, inputs.floats("fps", {1}, "[1]"));
    const float value = fps.as<float>()[0];
    if (value > 0)
      shape.fps = value;
    else if (value != -1)
      return bad_input("input 'fps' is " + std::to_string(value), "more than 0, or -1 when it is not given");
  }
  Tensor condition, key_mask, padding(DType::f32, {shape.height, shape.width});
  if (shape.condition_mask) {
    ORRERY_TRY(given,
               inputs.floats("condition_mask", {batch, 1, shape.frames, shape.height, shape.width}, "[B,1,T,H,W]"));
    condition = std::move(given);
  }
  if (shape.attention_mask) {
    ORRERY_TRY(given, inputs.floats("attention_mask", {batch, shape.text_rows}, "[B,S]"));
    ORRERY_TRY_DONE(to_mask(given));
    key_mask = std::move(given);
  }
  if (inputs.has("padding_mask")) {
    if (!config.padding_mask) return bad_input("this transformer takes no padding_mask");
    ORRERY_TRY(given, inputs.floats("padding_mask", {1, 1, 0, 0}, "[1,1,H,W]"));
    resize_nearest(given.as<float>(), given.shape()[2], given.shape()[3], padding.as<float>(), shape.height,
                   shape.width);
  }

  const auto compile = [&](const Layout& layout) -> Result<std::shared_ptr<const cards::ProgramSet>> {
    ORRERY_TRY(weights, denoiser_weights(config, layout, options.compute));
    return compile_transformer(config, weights, layout, options.compute, shape);
  };
  ORRERY_TRY(lane, lanes.open(slice_count_of(config, options.slices), compile, files));
  Tensor sample(DType::f32, batched(batch, lane->shape_of("sample")));
  for (std::uint64_t i = 0; i < batch; ++i) {
    lane->write("hidden_states", std::as_bytes(item<float>(latents.as<float>(), i, batch)));
    lane->write("encoder_hidden_states", std::as_bytes(item<float>(text.as<float>(), i, batch)));
    if (shape.condition_mask)
      lane->write("condition_mask", std::as_bytes(item<float>(condition.as<float>(), i, batch)));
    if (shape.attention_mask) lane->write("attention_mask", std::as_bytes(item<float>(key_mask.as<float>(), i, batch)));
    if (config.padding_mask) lane->write("padding_mask", std::as_bytes(std::span<const float>(padding.as<float>())));
    cards::Scalars scalars{};
    scalars[static_cast<std::size_t>(cards::Scalar::timestep)] = timestep.as<float>()[i];
    scalars[static_cast<std::size_t>(cards::Scalar::c_in)] = 1;
    ORRERY_TRY_DONE(lane->run("forward", scalars));
    const auto size = sample.as<float>().size() / batch;
    lane->read("sample", std::as_writable_bytes(sample.as<float>().subspan(i * size, size)));
  }
  NamedTensors outputs;
  outputs.emplace("sample", std::move(sample));
  return outputs;
}

Result<NamedTensors> run_text_encoder(const TextEncoderConfig& config, const WeightFiles& files,
                                      const NamedTensors& tensors, Lanes& lanes, const ComponentOptions& options) {
  const Inputs inputs(tensors);
  ORRERY_TRY_DONE(inputs.only("text_encoder", {"input_ids", "attention_mask"}));
  ORRERY_TRY(id_values, inputs.floats("input_ids", {0, 0}, "[B,S]"));
  const auto batch = id_values.shape()[0], rows = id_values.shape()[1];
  std::vector<std::int32_t> ids;
  for (const float value : id_values.as<float>()) {
    // f32 holds every id of a vocabulary below 2^24 exactly.
    if (!(value >= 0 && value < static_cast<float>(config.vocabulary)) || value != std::floor(value))
      return bad_input("input 'input_ids' holds " + std::to_string(value) + ", the vocabulary has " +
                       std::to_string(config.vocabulary) + " entries");
    ids.push_back(static_cast<std::int32_t>(value));
  }
  const bool masked = inputs.has("attention_mask");
  Tensor mask(DType::f32, {batch, rows});
  std::fill(mask.as<float>().begin(), mask.as<float>().end(), 1.0F);
  if (masked) {
    ORRERY_TRY(given, inputs.floats("attention_mask", {batch, rows}, "[B,S]"));
    ORRERY_TRY_DONE(to_mask(given));
    mask = std::move(given);
  }
  const auto compile = [&](const Layout& layout) -> Result<std::shared_ptr<const cards::ProgramSet>> {
    ORRERY_TRY(weights, text_encoder_weights(config, layout, options.compute));
    return compile_text_encoder(config, weights, layout, options.compute, rows, masked);
  };
  ORRERY_TRY(lane, lanes.open(slice_count_of(config, options.slices), compile, files));
  Tensor hidden(DType::f32, {batch, rows, config.width}), embeds(DType::f32, {batch, rows, config.width});
  for (std::uint64_t i = 0; i < batch; ++i) {
    lane->write("input_ids", std::as_bytes(item<std::int32_t>(ids, i, batch)));
    const auto keep = item<float>(mask.as<float>(), i, batch);
    if (masked) lane->write("attention_mask", std::as_bytes(keep));
    ORRERY_TRY_DONE(lane->run("forward", cards::Scalars{}));
    const auto size = rows * config.width;
    const auto to = hidden.as<float>().subspan(i * size, size);
    lane->read("last_hidden_state", std::as_writable_bytes(to));
    for (std::uint64_t row = 0; row < rows; ++row)
      if (keep[row] != 0)
        std::copy_n(to.begin() + static_cast<std::ptrdiff_t>(row * config.width), config.width,
                    embeds.as<float>().begin() + static_cast<std::ptrdiff_t>(i * size + row * config.width));
  }
  NamedTensors outputs;
  outputs.emplace("last_hidden_state", std::move(hidden));
  outputs.emplace("prompt_embeds", std::move(embeds));
  return outputs;
}

/// One direction of the codec for every item of a batch. The codec is not sliced: one card.
Status run_codec(const CompileFor& compile, const WeightFiles& files, Lanes& lanes, const Tensor& input,
                 const std::string& input_name, const std::string& output_name, NamedTensors& outputs) {
  ORRERY_TRY(lane, lanes.open(1, compile, files));
  const auto batch = input.shape()[0];
  Tensor output(DType::f32, batched(batch, lane->shape_of(output_name)));
  for (std::uint64_t i = 0; i < batch; ++i) {
    lane->write(input_name, std::as_bytes(item<float>(input.as<float>(), i, batch)));
    ORRERY_TRY_DONE(lane->run("forward", cards::Scalars{}));
    const auto size = output.as<float>().size() / batch;
    lane->read(output_name, std::as_writable_bytes(output.as<float>().subspan(i * size, size)));
  }
  outputs.emplace(output_name, std::move(output));
  return Done{};
}

Result<NamedTensors> run_vae(const CodecConfig& config, const WeightFiles& files, const NamedTensors& tensors,
                             Lanes& lanes, const ComponentOptions& options) {
  const Inputs inputs(tensors);
  ORRERY_TRY_DONE(inputs.only("vae", {"pixels", "z"}));
  if (tensors.empty())
    return bad_input("the vae needs an input", "pixels [B,3,F,H,W] to encode, z [B,C,T,H,W] to decode");
  NamedTensors outputs;
  if (inputs.has("pixels")) {
    ORRERY_TRY(pixels, inputs.floats("pixels", {0, 3, 0, 0, 0}, "[B,3,F,H,W]"));
    const PixelShape shape = {pixels.shape()[2], pixels.shape()[3], pixels.shape()[4]};
    const auto compile = [&](const Layout&) -> Result<std::shared_ptr<const cards::ProgramSet>> {
      ORRERY_TRY(weights, encoder_weights(config, options.compute));
      return compile_encode(config, weights, options.compute, shape);
    };
    ORRERY_TRY_DONE(run_codec(compile, files, lanes, pixels, "pixels", "latent", outputs));
  }
  if (inputs.has("z")) {
    ORRERY_TRY(z, inputs.floats("z", {0, config.latent_channels, 0, 0, 0}, "[B,C,T,H,W]"));
    const CodecShape shape = {z.shape()[2], z.shape()[3], z.shape()[4]};
    const auto compile = [&](const Layout&) -> Result<std::shared_ptr<const cards::ProgramSet>> {
      ORRERY_TRY(weights, decoder_weights(config, options.compute));
      return compile_decode_whole(config, weights, options.compute, shape);
    };
    ORRERY_TRY_DONE(run_codec(compile, files, lanes, z, "z", "video", outputs));
  }
  return outputs;
}

}  // namespace

Result<NamedTensors> run_component(const ModelFolder& folder, const std::string& component, const NamedTensors& inputs,
                                   Lanes& lanes, const ComponentOptions& options) {
  if (component != "transformer" && component != "text_encoder" && component != "vae")
    return bad_input("'" + component.substr(0, 60) + "' is not a component",
                     "components: transformer, text_encoder, vae");
  const bool there = component == "transformer" ? folder.transformer.has_value()
                     : component == "vae"       ? folder.codec.has_value()
                                                : folder.text_encoder.has_value();
  if (!there) return Error{ErrorCode::not_found, folder.path + " has no " + component};
  ORRERY_TRY(files, open_weights(folder, component));
  if (component == "transformer") return run_transformer(*folder.transformer, *files, inputs, lanes, options);
  if (component == "vae") return run_vae(*folder.codec, *files, inputs, lanes, options);
  return run_text_encoder(*folder.text_encoder, *files, inputs, lanes, options);
}

Result<NamedTensors> run_component(const ModelFolder& folder, const std::string& component, const NamedTensors& inputs,
                                   cards::Card& card, const ComponentOptions& options) {
  LocalLanes lanes(card);
  return run_component(folder, component, inputs, lanes, options);
}

}  // namespace orrery::compiler
