#include "actors/request_check.hpp"

#include <cmath>

#include "actors/messages.hpp"

namespace orrery::actors {

namespace {

Error wrong(std::string message, std::string hint = {}) {
  return {ErrorCode::invalid_request, std::move(message), std::move(hint)};
}

// "96 or 112": the neighbours of `value` on the grid offset + k * step.
std::string neighbours(std::uint64_t value, std::uint64_t step, std::uint64_t offset) {
  const auto below = value <= offset ? offset : (value - offset) / step * step + offset;
  const auto above = below + step;
  return value <= offset ? std::to_string(offset == 0 ? step : offset)
                         : (below == 0 ? std::to_string(above) : std::to_string(below) + " or " + std::to_string(above));
}

bool is_blank(const std::string& text) { return text.find_first_not_of(" \t\r\n\v\f") == std::string::npos; }

}  // namespace

Error model_error(Error error) {
  if (error.code == ErrorCode::not_found || error.code == ErrorCode::io_failed) error.code = ErrorCode::invalid_model;
  if (error.hint.empty()) error.hint = "is the model folder complete?";
  return error;
}

Status check_whole(const compiler::ModelFolder& model) {
  std::string missing;
  const auto need = [&](bool there, const char* part) {
    if (!there) missing += (missing.empty() ? "" : ", ") + std::string(part) + "/";
  };
  need(model.text_encoder.has_value(), "text_encoder");
  need(model.has_tokenizer, "tokenizer");
  need(model.transformer.has_value(), "transformer");
  need(model.scheduler.has_value(), "scheduler");
  need(model.codec.has_value(), "vae");
  if (missing.empty()) return Done{};
  return Error{ErrorCode::invalid_model, model.path + " is not a whole text-to-video model: it has no " + missing, "is the download complete?"};
}

RequestSpec defaults_of(const compiler::ModelFolder& model) {
  const auto& generation = model.generation;
  RequestSpec spec;
  spec.width = static_cast<std::uint32_t>(generation.width);
  spec.height = static_cast<std::uint32_t>(generation.height);
  spec.frames = static_cast<std::uint32_t>(generation.frames);
  spec.steps = static_cast<std::uint32_t>(generation.steps);
  spec.fps = generation.fps;
  spec.guidance = generation.guidance;
  spec.max_text_tokens = static_cast<std::uint32_t>(generation.text_rows);
  spec.negative_prompt = generation.negative_prompt;
  return spec;
}

Status check_request(const RequestSpec& request, const compiler::ModelFolder& model) {
  const auto& transformer = *model.transformer;
  const auto& codec = *model.codec;
  if (is_blank(request.prompt)) return wrong("the prompt is empty", "say what the video should show");
  if (request.prompt.size() > (std::size_t{1} << 20) || request.negative_prompt.size() > (std::size_t{1} << 20))
    return wrong("a prompt is longer than 1 MiB");

  const auto grid_h = codec.spatial_ratio * transformer.patch[1];
  const auto grid_w = codec.spatial_ratio * transformer.patch[2];
  if (request.width == 0 || request.width % grid_w != 0)
    return wrong("width " + std::to_string(request.width) + " is not a multiple of " + std::to_string(grid_w),
                 "use " + neighbours(request.width, grid_w, 0));
  if (request.height == 0 || request.height % grid_h != 0)
    return wrong("height " + std::to_string(request.height) + " is not a multiple of " + std::to_string(grid_h),
                 "use " + neighbours(request.height, grid_h, 0));
  const auto ratio = codec.temporal_ratio;
  const auto grid_t = ratio * transformer.patch[0];
  if (request.frames == 0 || (request.frames - 1) % grid_t != 0)
    return wrong("frames " + std::to_string(request.frames) + " is not " + std::to_string(grid_t) + "k+1",
                 "use " + neighbours(request.frames, grid_t, 1));

  const std::uint64_t latent[3] = {(request.frames - 1) / ratio + 1, request.height / codec.spatial_ratio,
                                   request.width / codec.spatial_ratio};
  static constexpr const char* what[3] = {"frames", "height", "width"};
  if (transformer.learnable_positions)
    for (int axis = 0; axis < 3; ++axis)
      if (latent[axis] > transformer.max_size[static_cast<std::size_t>(axis)]) {
        const auto most = transformer.max_size[static_cast<std::size_t>(axis)];
        return wrong(std::string(what[axis]) + " is too large for this model",
                     "at most " + std::to_string(axis == 0 ? (most - 1) * ratio + 1 : most * codec.spatial_ratio));
      }
  if (codec.frames_max() > 0 && latent[0] > codec.frames_max())
    return wrong("frames " + std::to_string(request.frames) + " is more than the model's latent statistics cover",
                 "at most " + std::to_string((codec.frames_max() - 1) * ratio + 1));
  if (latent[0] * latent[1] * latent[2] > (std::uint64_t{1} << 28)) return wrong("the video is too large");

  if (request.steps < 1 || request.steps > 10'000)
    return wrong("steps " + std::to_string(request.steps) + " is out of range", "1 to 10000");
  if (!std::isfinite(request.guidance) || request.guidance < 0 || request.guidance > 100)
    return wrong("guidance is out of range", "0 to 100; 1 or less switches it off");
  if (!std::isfinite(request.fps) || request.fps <= 0 || request.fps > 1000) return wrong("fps is out of range", "above 0, at most 1000");
  if (request.max_text_tokens < 1 || request.max_text_tokens > 4096)
    return wrong("max text tokens " + std::to_string(request.max_text_tokens) + " is out of range", "1 to 4096");
  return Done{};
}

Status check_noise(const Shape& noise, const RequestSpec& request, const compiler::ModelFolder& model) {
  const auto& codec = *model.codec;
  const Shape expected{codec.latent_channels, (request.frames - 1) / codec.temporal_ratio + 1, request.height / codec.spatial_ratio,
                       request.width / codec.spatial_ratio};
  if (noise == expected) return Done{};
  return wrong("the noise is " + text_of(noise) + ", but " + std::to_string(request.frames) + " frames of " + std::to_string(request.width) + "x" +
                   std::to_string(request.height) + " need " + text_of(expected),
               "channels, latent frames, height, width");
}

OrderedJson json_of(const RequestSpec& request) {
  OrderedJson json;
  json["prompt"] = request.prompt;
  json["negative_prompt"] = request.negative_prompt;
  json["width"] = request.width;
  json["height"] = request.height;
  json["frames"] = request.frames;
  json["steps"] = request.steps;
  json["fps"] = request.fps;
  json["guidance"] = request.guidance;
  json["seed"] = request.seed;
  json["max_text_tokens"] = request.max_text_tokens;
  json["noise_from_client"] = request.noise_from_client;
  json["save_tensors"] = request.save_tensors;
  json["deadline_seconds"] = request.deadline_seconds;
  return json;
}

Result<RequestSpec> request_spec_from(const std::string& text) {
  ORRERY_TRY(json, parse_json(text, "request"));
  RequestSpec request;
  try {
    request.prompt = json.at("prompt").get<std::string>();
    request.negative_prompt = json.at("negative_prompt").get<std::string>();
    request.width = json.at("width").get<std::uint32_t>();
    request.height = json.at("height").get<std::uint32_t>();
    request.frames = json.at("frames").get<std::uint32_t>();
    request.steps = json.at("steps").get<std::uint32_t>();
    request.fps = json.at("fps").get<double>();
    request.guidance = json.at("guidance").get<double>();
    request.seed = json.at("seed").get<std::uint64_t>();
    request.max_text_tokens = json.at("max_text_tokens").get<std::uint32_t>();
    request.noise_from_client = json.at("noise_from_client").get<bool>();
    request.save_tensors = json.at("save_tensors").get<bool>();
    request.deadline_seconds = json.at("deadline_seconds").get<double>();
  } catch (const Json::exception& failed) {
    return Error{ErrorCode::invalid_request, std::string("the text of a request cannot be read: ") + failed.what()};
  }
  return request;
}

}  // namespace orrery::actors
