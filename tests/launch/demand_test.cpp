// The bridge from a model's programs to the planner (actors/demand.hpp).

#include "actors/demand.hpp"

#include <catch2/catch.hpp>

namespace orrery::actors {
namespace {

using topology::StageKind;

topology::ModelSpec tiny_model() {
  topology::ModelSpec model;
  model.name = "cosmos-tiny";
  model.folder = std::string(ORRERY_SOURCE_DIR) + "/configs/models/cosmos-tiny";
  model.dtype = DType::f32;
  return model;
}

const topology::RequestShape shape{{64, 64}, 9, 16, true, 64};

}  // namespace

TEST_CASE("demand: a model folder gives all five stages with its own sizes", "[launch]") {
  bool from_folder = false;
  const auto demand = actors::demand_of(tiny_model(), shape, &from_folder);
  REQUIRE(demand.ok());
  CHECK(from_folder);
  const auto& stages = demand.value().stages;
  REQUIRE(stages.size() == 5);
  CHECK(stages[0].kind == StageKind::text_guardrail);
  CHECK(stages[1].kind == StageKind::text_encoder);
  CHECK(stages[2].kind == StageKind::denoiser);
  CHECK(stages[3].kind == StageKind::decoder);
  CHECK(stages[4].kind == StageKind::video_guardrail);
  CHECK(stages[2].slices == 8);
  CHECK(stages[2].rows == 2 * 4 * 4);  // 2 latent frames, 8x8 latents, 2x2 patches.
  CHECK(stages[2].branches == 2);
  CHECK(stages[2].steps == 16);
  CHECK(stages[1].slices == 4);  // Four heads.
  CHECK(demand.value().latent_bytes == 16 * 2 * 8 * 8 * 4);
  CHECK(stages[2].weight_bytes_sliced > 0);
  CHECK(stages[3].weight_bytes_replicated > 0);
}

TEST_CASE("demand: without guidance there is one branch and half the text work", "[launch]") {
  auto unguided = shape;
  unguided.guided = false;
  const auto with = actors::demand_of(tiny_model(), shape), without = actors::demand_of(tiny_model(), unguided);
  REQUIRE((with.ok() && without.ok()));
  CHECK(without.value().stages[2].branches == 1);
  CHECK(without.value().stages[1].flops_linear * 2 == Approx(with.value().stages[1].flops_linear));
}

TEST_CASE("demand: sizes that do not suit the model are refused with what does", "[launch]") {
  auto odd = shape;
  odd.size = {72, 64};
  CHECK(actors::demand_of(tiny_model(), odd).error().hint == "use multiples of 16 by 16");
  auto frames = shape;
  frames.num_frames = 10;
  CHECK(actors::demand_of(tiny_model(), frames).error().hint == "use a multiple of 8, plus 1");
  auto missing = tiny_model();
  missing.folder = "/nowhere/model";
  CHECK(actors::demand_of(missing, shape).error().code == ErrorCode::not_found);
}

}  // namespace orrery::actors
