// What the planner believes of a rank's memory, against what the rank's own programs and weights take: never less, and at most
// 5 % more, whatever slices it owns.

#include <catch2/catch.hpp>

#include <algorithm>

#include "actors/demand.hpp"
#include "actors/program_runner.hpp"
#include "cards/weight_loader.hpp"
#include "compiler/compile.hpp"
#include "topology/planner.hpp"

using namespace orrery;
using namespace orrery::actors;
using topology::Split;
using topology::StageKind;

namespace {

/// Slices [begin, end) on one rank, what is before and behind on one more each.
topology::PlannedGroup group_with(std::uint32_t begin, std::uint32_t end, std::uint32_t slices, std::uint32_t first_card) {
  topology::PlannedGroup group;
  const std::uint32_t bounds[] = {0, begin, end, slices};
  for (int i = 0; i < 3; ++i) {
    if (bounds[i] == bounds[i + 1]) continue;
    topology::PlannedRank rank{first_card + static_cast<std::uint32_t>(i), {}};
    for (auto slice = bounds[i]; slice < bounds[i + 1]; ++slice) rank.slices.push_back(slice);
    group.ranks.push_back(std::move(rank));
  }
  return group;
}

struct Checked {
  std::size_t ranks = 0, low = 0, wrong_weights = 0;
  double most = 1;  // Planned by taken, weights and lane.
};

Checked check_denoiser(std::uint32_t slices, topology::FrameSize size, std::uint32_t frames, DType dtype, topology::Quantisation quantisation) {
  auto folder = compiler::open_model_folder(ORRERY_SOURCE_DIR "/configs/models/cosmos-tiny").value();
  auto& config = *folder.transformer;
  config.heads = slices;  // One each: the width goes along.
  topology::ModelSpec model;
  model.name = "cosmos-tiny";
  model.slices = slices;
  model.dtype = dtype;
  model.quantisation = quantisation;
  topology::RequestShape request;
  request.size = size;
  request.num_frames = frames;
  request.guided = true;
  request.max_text_tokens = 64;
  const auto demand = demand_of_folder(folder, model, request).value();
  const auto stage = std::find_if(demand.stages.begin(), demand.stages.end(), [](const auto& each) { return each.kind == StageKind::denoiser; });
  REQUIRE(stage != demand.stages.end());
  REQUIRE(stage->slices == slices);
  const auto compute = compiler::compute_named(model.arithmetic_name()).value();
  compiler::DenoiserShape shape;
  shape.frames = (frames - 1) / folder.codec->temporal_ratio + 1;
  shape.height = size.height / folder.codec->spatial_ratio;
  shape.width = size.width / folder.codec->spatial_ratio;
  shape.prompt_rows = shape.negative_rows = shape.padded_rows = 64;
  shape.fps = 8;

  topology::Plan plan;
  plan.cards.resize(6);
  Checked checked;
  for (const auto split : {Split::tensor, Split::sequence})
    for (std::uint32_t groups = 1; groups <= 2; ++groups)
      for (std::uint32_t begin = 0; begin < slices; ++begin)
        for (auto end = begin + 1; end <= slices; ++end) {
          if (slices > 8 && (begin + 3 * end) % 7 > 0) continue;  // A part of many.
          topology::PlannedStage placed{StageKind::denoiser, split, slices, {}};
          for (std::uint32_t group = 0; group < groups; ++group) placed.groups.push_back(group_with(begin, end, slices, 3 * group));
          for (std::uint32_t group = 0; group < groups; ++group)
            for (std::uint32_t rank = 0; rank < placed.groups[group].ranks.size(); ++rank) {
              const auto layout = seat_of(plan, placed, group, rank).layout;
              const auto weights = compiler::denoiser_weights(config, layout, compute).value();
              const auto lane = compiler::compile_denoiser(config, weights, layout, compute, shape).value()->lane_bytes();
              const auto bill = topology::bill_of(demand, *stage, placed, group, rank);
              ++checked.ranks;
              checked.wrong_weights += bill.weights != cards::bytes_on_card(*weights);
              checked.low += bill.activations < lane;
              checked.most = std::max(checked.most, static_cast<double>(bill.total()) / static_cast<double>(bill.weights + lane));
            }
        }
  return checked;
}

}  // namespace

TEST_CASE("demand: the planner never believes that a rank takes less than its programs and weights do", "[actors][memory]") {
  using topology::Quantisation;
  for (const auto& [slices, size, frames, dtype, quantisation] :
       {std::tuple(8U, topology::FrameSize{64, 64}, 9U, DType::f32, Quantisation::none), std::tuple(8U, topology::FrameSize{64, 64}, 9U, DType::bf16, Quantisation::int8),
        std::tuple(8U, topology::FrameSize{176, 112}, 33U, DType::bf16, Quantisation::none), std::tuple(6U, topology::FrameSize{96, 80}, 17U, DType::f32, Quantisation::none),
        std::tuple(16U, topology::FrameSize{64, 64}, 9U, DType::bf16, Quantisation::none)}) {
    CAPTURE(slices, frames);
    const auto checked = check_denoiser(slices, size, frames, dtype, quantisation);
    CHECK(checked.ranks > 100);
    CHECK(checked.wrong_weights == 0);
    CHECK(checked.low == 0);
    CHECK(checked.most < 1.05);
  }
}
