#include "actors/demand.hpp"

#include <filesystem>
#include <string>

#include "compiler/compile.hpp"
#include "compiler/models/cosmos_codec.hpp"

namespace orrery::actors {
namespace {

using topology::StageDemand;
using topology::StageKind;

StageDemand stage_of(StageKind kind, const compiler::ComponentFigures& figures) {
  StageDemand stage;
  stage.kind = kind;
  stage.slices = figures.slices;
  stage.blocks = figures.blocks;
  stage.rows = figures.rows;
  stage.width = figures.width;
  stage.text_rows = figures.text_rows;
  stage.weight_bytes_replicated = figures.weight_bytes_replicated;
  stage.weight_bytes_sliced = figures.weight_bytes_sliced;
  stage.weight_padding_replicated = figures.weight_padding_replicated;
  stage.weight_padding_sliced = figures.weight_padding_sliced;
  for (const auto& lane : figures.lanes)
    stage.lanes.push_back({lane.split == compiler::Split::sequence ? topology::Split::sequence : topology::Split::tensor,
                           lane.groups > 1, lane.slices, lane.pieces, lane.bytes});
  stage.flops_linear = figures.flops_linear;
  stage.flops_attention = figures.flops_attention;
  stage.reduce_element_bytes = figures.reduce_element_bytes;
  stage.gather_element_bytes = figures.gather_element_bytes;
  stage.reduces_per_block = figures.reduces_per_block;
  stage.all_to_alls_per_block = figures.all_to_alls_per_block;
  return stage;
}

StageDemand guardrail(StageKind kind) {
  StageDemand stage;
  stage.kind = kind;
  stage.reduces_per_block = stage.all_to_alls_per_block = 0;
  return stage;
}

void add_guardrails(topology::Demand& demand) {
  demand.stages.insert(demand.stages.begin(), guardrail(StageKind::text_guardrail));
  demand.stages.push_back(guardrail(StageKind::video_guardrail));
}

}  // namespace

Result<topology::Demand> demand_of_folder(const compiler::ModelFolder& folder, const topology::ModelSpec& model,
                                          const topology::RequestShape& shape) {
  const auto refused = [](std::string message, std::string hint) {
    return Error{ErrorCode::invalid_request, std::move(message), std::move(hint)};
  };
  if (!folder.transformer || !folder.text_encoder || !folder.codec)
    return Error{ErrorCode::invalid_model, folder.path + " is not a whole model: transformer, text_encoder and vae are needed"};
  const auto& transformer = *folder.transformer;
  const auto& codec = *folder.codec;
  const auto compute = compiler::compute_named(model.arithmetic_name()).value_or(compiler::Compute::f32);

  const auto unit_width = codec.spatial_ratio * transformer.patch[2], unit_height = codec.spatial_ratio * transformer.patch[1];
  if (shape.size.width == 0 || shape.size.height == 0 || shape.size.width % unit_width != 0 || shape.size.height % unit_height != 0)
    return refused("a frame of " + topology::text_of(shape.size) + " does not fit model '" + model.name + "'",
                   "use multiples of " + std::to_string(unit_width) + " by " + std::to_string(unit_height));
  if (shape.num_frames == 0 || (shape.num_frames - 1) % codec.temporal_ratio != 0)
    return refused(std::to_string(shape.num_frames) + " frames do not fit model '" + model.name + "'",
                   "use a multiple of " + std::to_string(codec.temporal_ratio) + ", plus 1");

  const compiler::CodecShape latents{(shape.num_frames - 1) / codec.temporal_ratio + 1, shape.size.height / codec.spatial_ratio,
                                     shape.size.width / codec.spatial_ratio};
  compiler::DenoiserShape denoiser;
  denoiser.frames = latents.frames;
  denoiser.height = latents.height;
  denoiser.width = latents.width;
  denoiser.prompt_rows = denoiser.padded_rows = shape.max_text_tokens;
  denoiser.negative_rows = shape.guided ? shape.max_text_tokens : 0;
  denoiser.guidance = shape.guided;

  const auto text_slices = compiler::slice_count_of(*folder.text_encoder, model.slices);
  const auto denoiser_slices = compiler::slice_count_of(transformer, model.slices);
  ORRERY_TRY(text_figures, compiler::text_encoder_figures(*folder.text_encoder, compute, shape.max_text_tokens, text_slices));
  ORRERY_TRY(denoiser_figures, compiler::denoiser_figures(transformer, compute, denoiser, denoiser_slices));
  ORRERY_TRY(decoder_figures, compiler::decoder_figures(codec, compute, latents));

  const std::uint32_t branches = shape.guided ? 2 : 1;
  topology::Demand demand;
  demand.model = model.name;
  demand.dtype = model.dtype_name();
  demand.latent_bytes = codec.latent_channels * latents.frames * latents.height * latents.width * sizeof(float);
  auto text = stage_of(StageKind::text_encoder, text_figures);
  // The whole stage: prompt and negative prompt, one after the other.
  text.rows *= branches;
  text.flops_linear *= branches;
  text.flops_attention *= branches;
  auto steps = stage_of(StageKind::denoiser, denoiser_figures);
  steps.branches = branches;
  steps.steps = shape.num_inference_steps;
  steps.sequence_split = denoiser_slices > 1;
  demand.stages = {std::move(text), std::move(steps), stage_of(StageKind::decoder, decoder_figures)};
  add_guardrails(demand);
  return demand;
}

Result<topology::Demand> demand_of(const topology::ModelSpec& model, const topology::RequestShape& shape, bool* from_folder) {
  const auto path = topology::folder_of(model);
  std::error_code ignored;
  const bool there = path.ok() && std::filesystem::is_directory(path.value(), ignored);
  if (from_folder != nullptr) *from_folder = there;
  if (there) {
    ORRERY_TRY(folder, compiler::open_model_folder(path.value()));
    return demand_of_folder(folder, model, shape);
  }
  if (!model.geometry) {
    if (!path.ok()) return path.error();
    return Error{ErrorCode::not_found, "model '" + model.name + "': folder " + path.value() + " is not there",
                 "put the model there, or give spec.geometry to plan without it"};
  }
  ORRERY_TRY(demand, topology::demand_of(model, shape));
  add_guardrails(demand);
  return demand;
}

}  // namespace orrery::actors
