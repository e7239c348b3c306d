// orrery plan: which card would do what, what that should cost, and what was rejected. Starts nothing.

#include <memory>

#include <CLI/CLI.hpp>

#include "actors/demand.hpp"
#include "actors/program_runner.hpp"
#include "base/json.hpp"
#include "compiler/compile.hpp"
#include "launch/config_files.hpp"
#include "launch/verb.hpp"
#include "topology/plan_text.hpp"
#include "topology/planner.hpp"

namespace orrery::launch {
namespace {

struct PlanArguments {
  ConfigArguments config;
  std::string deployment, size;
  std::uint32_t frames = 0, steps = 0;
  OutputFormat format = OutputFormat::table;
  bool explain = false, programs = false;
};

/// The denoiser's programs of every rank, as text.
Result<std::string> programs_text(const topology::Resolved& resolved, const topology::RequestShape& shape, const topology::Plan& plan) {
  ORRERY_TRY(path, topology::folder_of(resolved.model));
  ORRERY_TRY(folder, compiler::open_model_folder(path));
  if (!folder.transformer || !folder.codec) return Error{ErrorCode::invalid_model, path + " is not a whole model"};
  const auto compute = compiler::compute_named(resolved.model.arithmetic_name()).value_or(compiler::Compute::f32);
  compiler::DenoiserShape denoiser;
  denoiser.frames = (shape.num_frames - 1) / folder.codec->temporal_ratio + 1;
  denoiser.height = shape.size.height / folder.codec->spatial_ratio;
  denoiser.width = shape.size.width / folder.codec->spatial_ratio;
  denoiser.prompt_rows = denoiser.padded_rows = shape.max_text_tokens;
  denoiser.negative_rows = shape.guided ? shape.max_text_tokens : 0;
  denoiser.fps = resolved.model.defaults.fps;
  denoiser.guidance = shape.guided;

  std::string text;
  for (const auto& stage : plan.stages) {
    if (stage.kind != topology::StageKind::denoiser) continue;
    for (std::uint32_t group = 0; group < stage.groups.size(); ++group) {
      for (std::uint32_t rank = 0; rank < stage.groups[group].ranks.size(); ++rank) {
        const auto layout = actors::seat_of(plan, stage, group, rank).layout;
        ORRERY_TRY(weights, compiler::denoiser_weights(*folder.transformer, layout, compute));
        ORRERY_TRY(programs, compiler::compile_denoiser(*folder.transformer, weights, layout, compute, denoiser));
        const auto& card = plan.cards[stage.groups[group].ranks[rank].card];
        text += "\n# denoiser, group " + std::to_string(group) + " rank " + std::to_string(rank) + ", card " + card.node + ":" +
                std::to_string(card.index) + "\n" + programs->text();
      }
    }
  }
  return text;
}

Result<int> run_plan(const PlanArguments& arguments, const VerbContext& context) {
  ORRERY_TRY(set, read_configs(arguments.config, context));
  ORRERY_TRY(resolved, set.resolve(arguments.deployment));
  auto shape = topology::shape_of(resolved.model.defaults);
  if (!arguments.size.empty()) {
    auto size = topology::parse_frame_size(arguments.size);
    if (!size.ok()) return Error{ErrorCode::usage, "--size " + size.error().message, size.error().hint};
    shape.size = size.value();
  }
  if (arguments.frames > 0) shape.num_frames = arguments.frames;
  if (arguments.steps > 0) shape.num_inference_steps = arguments.steps;

  bool from_folder = false;
  ORRERY_TRY(demand, actors::demand_of(resolved.model, shape, &from_folder));
  if (!from_folder) warn(context, "the weights of model '" + resolved.model.name + "' are not on this machine; activation memory is estimated from its geometry");
  ORRERY_TRY(plan, topology::make_plan(resolved.cluster, resolved.deployment, demand));

  std::string text;
  switch (arguments.format) {
    case OutputFormat::json: text = topology::json_of(plan).dump(2) + "\n"; break;
    case OutputFormat::yaml: text = topology::yaml_of(plan); break;
    case OutputFormat::table: text = topology::text_of(plan, arguments.explain); break;
  }
  if (arguments.programs) {
    ORRERY_TRY(programs, programs_text(resolved, shape, plan));
    text += programs;
  }
  ORRERY_TRY_DONE(write_out(text));
  return 0;
}

}  // namespace

void add_plan(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("plan", "Prints which card would do what, and what that should cost");
  auto arguments = std::make_shared<PlanArguments>();
  add_config_options(*verb, arguments->config);
  add_output_option(*verb, arguments->format, {OutputFormat::table, OutputFormat::json, OutputFormat::yaml});
  verb->add_option("--deployment", arguments->deployment, "Which deployment, when the files hold several")->type_name("NAME");
  verb->add_option("--size", arguments->size, "Plan for frames of this size")->type_name("WIDTHxHEIGHT");
  verb->add_option("--frames", arguments->frames, "Plan for this many frames")->type_name("N")->check(CLI::Range(1U, 1'000'000U));
  verb->add_option("--steps", arguments->steps, "Plan for this many denoising steps")->type_name("N")->check(CLI::Range(1U, 10'000U));
  verb->add_flag("--explain", arguments->explain, "Also what was rejected, and why");
  verb->add_flag("--programs", arguments->programs, "Also the denoiser's program of every card, command by command");
  set_examples(*verb, {
      "orrery plan -f configs/clusters/two_nodes.yaml -f configs/models/cosmos-tiny.yaml --explain",
      "orrery plan -f configs/deployments/atom_max_7b.yaml -f configs/clusters -f configs/models -o json",
      "orrery plan -f configs/clusters/two_nodes.yaml -f configs/models/cosmos-tiny.yaml --set parallelism.tensor=4",
  });
  verb->callback([&context, arguments] { context.run = [&context, arguments] { return run_plan(*arguments, context); }; });
}

}  // namespace orrery::launch
