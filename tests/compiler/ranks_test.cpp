// The same bits on every cluster: one card against several ranks, however slices are owned.

#include "base/random.hpp"
#include "compiler/compile.hpp"
#include "tests/support/local_exchange.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

using testing::Owned;

/// V slices, all on one card.
Owned one_card(std::uint32_t slices) { return single_card(slices).owned; }

std::vector<float> noise(std::uint64_t stream, std::size_t count) {
  std::vector<float> values(count);
  fill_normal(stream, RandomStream::noise, 0, values);
  return values;
}

struct DenoiserCase {
  std::string model = "transformer_tp8/transformer";
  DenoiserShape shape;
  Compute compute = Compute::f32;
  std::uint32_t steps = 2;
};

/// Latents after some steps, of every rank.
std::vector<std::vector<float>> denoise(const DenoiserCase& which, const Owned& owned, Split split) {
  auto folder = open_model_folder(testing::golden(which.model));
  REQUIRE(folder.ok());
  const auto config = *folder.value().transformer;
  auto files = open_weights(folder.value(), "transformer");
  REQUIRE(files.ok());
  const auto V = slice_count_of(config);
  const auto& shape = which.shape;
  const auto start = noise(1, config.out_channels * shape.frames * shape.height * shape.width);
  const auto prompt = noise(2, shape.prompt_rows * config.text_width);
  const auto negative = noise(3, shape.negative_rows * config.text_width);
  auto cluster = testing::LocalCluster::run(
      owned, split, V, *files.value(),
      [&](const Layout& layout) -> Result<std::shared_ptr<const cards::ProgramSet>> {
        ORRERY_TRY(weights, denoiser_weights(config, layout, which.compute));
        return compile_denoiser(config, weights, layout, which.compute, shape);
      },
      [&](testing::LocalRank& rank) -> Status {
        rank.write<float>("noise", start);
        rank.write<float>("text_prompt", prompt);
        rank.write<float>("text_negative", negative);
        cards::Scalars scalars{};
        const auto set = [&](cards::Scalar which_one, double value) {
          scalars[static_cast<std::size_t>(which_one)] = value;
        };
        set(cards::Scalar::sigma_max, 80);
        ORRERY_TRY_DONE(rank.run("prepare", scalars));
        double sigma = 80;
        for (std::uint32_t step = 0; step < which.steps; ++step) {
          const double next = sigma / 7, square = sigma * sigma;
          set(cards::Scalar::timestep, std::log(sigma) / 4);
          set(cards::Scalar::c_in, 1 / std::sqrt(square + 0.25));
          set(cards::Scalar::c_skip, 0.25 / (square + 0.25));
          set(cards::Scalar::c_out, sigma * 0.5 / std::sqrt(square + 0.25));
          set(cards::Scalar::sigma, sigma);
          set(cards::Scalar::sigma_next, next);
          set(cards::Scalar::guidance, 7);
          ORRERY_TRY_DONE(rank.run("step", scalars));
          sigma = next;
        }
        return Done{};
      });
  INFO((cluster.ok() ? std::string() : cluster.error().text()));
  REQUIRE(cluster.ok());
  std::vector<std::vector<float>> latents;
  for (auto& rank : cluster.value()->ranks()) latents.push_back(rank->read("latents"));
  return latents;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

DenoiserShape small_shape() {
  DenoiserShape shape;
  shape.frames = 3;
  shape.height = 6;
  shape.width = 10;
  shape.prompt_rows = 5;
  shape.negative_rows = 3;
  shape.padded_rows = 16;
  shape.fps = 24;
  return shape;
}

const std::vector<Owned> layouts_of_eight = {
    {{{0, 1, 2, 3}, {4, 5, 6, 7}}},              // Even.
    {{{0, 1, 2}, {3, 4, 5}, {6, 7}}},            // Uneven.
    {{{0, 3, 5}, {1, 2, 7}, {4, 6}}},            // Not contiguous.
    {{{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}}},  // One slice each.
    {{{6, 7}, {0, 1, 2, 3, 4, 5}}},              // Ranks against slice order.
};

}  // namespace

TEST_CASE("ranks: every split of every ownership gives the bits of one card", "[compiler][bits]") {
  for (const auto compute : {Compute::f32, Compute::bf16, Compute::f32_int8, Compute::bf16_int8}) {
    DenoiserCase which;
    which.shape = small_shape();
    which.compute = compute;
    const auto expected = denoise(which, one_card(8), Split::tensor).front();
    for (const float value : expected) REQUIRE(std::isfinite(value));
    for (const auto split : {Split::tensor, Split::sequence})
      for (std::size_t i = 0; i < layouts_of_eight.size(); ++i) {
        INFO("compute " << static_cast<int>(compute) << " split " << static_cast<int>(split) << " layout " << i);
        for (const auto& latents : denoise(which, layouts_of_eight[i], split)) CHECK(same_bits(latents, expected));
      }
  }
}

TEST_CASE("ranks: guidance branches on two groups give the bits of one card", "[compiler][bits]") {
  DenoiserCase which;
  which.shape = small_shape();
  const auto expected = denoise(which, one_card(8), Split::tensor).front();
  const std::vector<std::uint32_t> all = {0, 1, 2, 3, 4, 5, 6, 7};
  const std::vector<Owned> layouts = {{{all}, {all}},
                                      {{{0, 1, 2, 3}, {4, 5, 6, 7}}, {{0, 1, 2, 3}, {4, 5, 6, 7}}},
                                      {{{0, 2, 4}, {1, 3}, {5, 6, 7}}, {all}},
                                      {{all}, {{0, 1, 2, 3, 4}, {5, 6, 7}}}};
  for (const auto split : {Split::tensor, Split::sequence})
    for (std::size_t i = 0; i < layouts.size(); ++i) {
      INFO("split " << static_cast<int>(split) << " layout " << i);
      for (const auto& latents : denoise(which, layouts[i], split)) CHECK(same_bits(latents, expected));
    }
}

TEST_CASE("ranks: fewer rows than ranks, and no guidance, still give the bits of one card", "[compiler][bits]") {
  DenoiserCase which;
  which.shape = small_shape();
  which.shape.frames = 1;
  which.shape.height = 2;
  which.shape.width = 6;  // 3 tokens.
  which.shape.fps.reset();
  for (const bool guidance : {true, false}) {
    which.shape.guidance = guidance;
    const auto expected = denoise(which, one_card(8), Split::tensor).front();
    for (const auto split : {Split::tensor, Split::sequence})
      for (const auto& latents : denoise(which, layouts_of_eight[3], split)) CHECK(same_bits(latents, expected));
  }
}

TEST_CASE("ranks: a model of three slices gives the bits of one card", "[compiler][bits]") {
  DenoiserCase which;
  which.model = "transformer_b/transformer";
  which.shape = small_shape();
  which.steps = 1;
  const auto expected = denoise(which, one_card(3), Split::tensor).front();
  for (const auto split : {Split::tensor, Split::sequence}) {
    for (const auto& latents : denoise(which, {{{0, 2}, {1}}}, split)) CHECK(same_bits(latents, expected));
    for (const auto& latents : denoise(which, {{{1}, {2}, {0}}}, split)) CHECK(same_bits(latents, expected));
  }
}

TEST_CASE("ranks: the text encoder gives the bits of one card, complete on every rank", "[compiler][bits]") {
  auto folder = open_model_folder(testing::golden("pipeline_text2world/model"));
  REQUIRE(folder.ok());
  const auto config = *folder.value().text_encoder;
  auto files = open_weights(folder.value(), "text_encoder");
  REQUIRE(files.ok());
  const auto V = slice_count_of(config);
  REQUIRE(V == 4);
  const std::vector<std::int32_t> ids = {5, 17, 9, 33, 2, 71, 1};
  const auto encode = [&](const Owned& owned, Split split, Compute compute) {
    auto cluster = testing::LocalCluster::run(
        owned, split, V, *files.value(),
        [&](const Layout& layout) -> Result<std::shared_ptr<const cards::ProgramSet>> {
          ORRERY_TRY(weights, text_encoder_weights(config, layout, compute));
          return compile_text_encoder(config, weights, layout, compute, ids.size(), false);
        },
        [&](testing::LocalRank& rank) -> Status {
          rank.write<std::int32_t>("input_ids", ids);
          return rank.run("forward", cards::Scalars{});
        });
    INFO((cluster.ok() ? std::string() : cluster.error().text()));
    REQUIRE(cluster.ok());
    std::vector<std::vector<float>> hidden;
    for (auto& rank : cluster.value()->ranks()) hidden.push_back(rank->read("last_hidden_state"));
    return hidden;
  };
  for (const auto compute : {Compute::f32, Compute::bf16, Compute::bf16_int8}) {
    const auto expected = encode(one_card(4), Split::tensor, compute).front();
    REQUIRE(expected.size() == ids.size() * config.width);
    for (const auto split : {Split::tensor, Split::sequence})
      for (const Owned& owned : {Owned{{{0, 1}, {2, 3}}}, Owned{{{0, 3}, {1}, {2}}}, Owned{{{0, 1, 2}, {3}}}})
        for (const auto& hidden : encode(owned, split, compute)) CHECK(same_bits(hidden, expected));
  }
}

}  // namespace orrery::compiler
