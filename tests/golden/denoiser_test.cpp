// The denoiser's programs (prepare, step) against the latents of the reference pipeline: prompt ids in, latents of
// every step out. The text goes through the zero-row shortcut: only real rows are given, the rest counts as zero keys.

#include <numeric>

#include "cards/card.hpp"
#include "compiler/run_component.hpp"
#include "tests/support/local_exchange.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

/// The reference's schedule (karras), computed here for itself.
std::vector<double> sigmas_of(std::uint32_t steps) {
  const double most = std::pow(80.0, 1 / 7.0), least = std::pow(0.002, 1 / 7.0);
  std::vector<double> sigmas;
  for (std::uint32_t i = 0; i < steps; ++i) {
    const double u = steps == 1 ? 0.0 : static_cast<double>(i) / (steps - 1);
    sigmas.push_back(static_cast<float>(std::pow(most + u * (least - most), 7.0)));
  }
  sigmas.push_back(sigmas.back());
  return sigmas;
}

std::vector<float> real_rows(const Tensor& embeds, std::uint64_t rows) {
  const auto all = embeds.as<float>();
  return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(rows * embeds.shape().back())};
}

/// Latents after each step on one card.
std::vector<std::vector<float>> denoise(Compute compute) {
  auto folder = open_model_folder(testing::golden("pipeline_text2world/model"));
  REQUIRE(folder.ok());
  const auto config = *folder.value().transformer;
  auto files = open_weights(folder.value(), "transformer");
  REQUIRE(files.ok());
  const auto in = testing::tensors_of(testing::golden("pipeline_text2world/in.safetensors"));
  const auto out = testing::tensors_of(testing::golden("pipeline_text2world/out.safetensors"));
  const auto mask = in.at("attention_mask").as<std::int64_t>();
  const auto padded = in.at("attention_mask").shape()[1];
  DenoiserShape shape;
  const auto& noise = in.at("noise");
  shape.frames = noise.shape()[2];
  shape.height = noise.shape()[3];
  shape.width = noise.shape()[4];
  shape.padded_rows = padded;
  shape.prompt_rows = static_cast<std::uint64_t>(
      std::accumulate(mask.begin(), mask.begin() + static_cast<std::ptrdiff_t>(padded), std::int64_t{0}));
  shape.negative_rows = static_cast<std::uint64_t>(
      std::accumulate(mask.begin() + static_cast<std::ptrdiff_t>(padded), mask.end(), std::int64_t{0}));
  shape.fps = 30;
  const auto prompt = real_rows(out.at("prompt_embeds"), shape.prompt_rows);
  const auto negative = real_rows(out.at("negative_prompt_embeds"), shape.negative_rows);

  std::vector<std::vector<float>> latents;
  const auto V = slice_count_of(config);
  auto cluster = testing::LocalCluster::run(
      single_card(V).owned, Split::tensor, V, *files.value(),
      [&](const Layout& layout) -> Result<std::shared_ptr<const cards::ProgramSet>> {
        ORRERY_TRY(weights, denoiser_weights(config, layout, compute));
        return compile_denoiser(config, weights, layout, compute, shape);
      },
      [&](testing::LocalRank& rank) -> Status {
        rank.write<float>("noise", noise.as<float>());
        rank.write<float>("text_prompt", prompt);
        rank.write<float>("text_negative", negative);
        cards::Scalars scalars{};
        const auto set = [&](cards::Scalar which, double value) { scalars[static_cast<std::size_t>(which)] = value; };
        set(cards::Scalar::sigma_max, 80);
        ORRERY_TRY_DONE(rank.run("prepare", scalars));
        const auto sigmas = sigmas_of(4);
        for (std::size_t step = 0; step + 1 < sigmas.size(); ++step) {
          const double sigma = sigmas[step], square = sigma * sigma;
          set(cards::Scalar::timestep, std::log(sigma) / 4);
          set(cards::Scalar::c_in, 1 / std::sqrt(square + 0.25));
          set(cards::Scalar::c_skip, 0.25 / (square + 0.25));
          set(cards::Scalar::c_out, sigma * 0.5 / std::sqrt(square + 0.25));
          set(cards::Scalar::sigma, sigma);
          set(cards::Scalar::sigma_next, sigmas[step + 1]);
          set(cards::Scalar::guidance, 7);
          ORRERY_TRY_DONE(rank.run("step", scalars));
          latents.push_back(rank.read("latents"));
        }
        return Done{};
      });
  INFO((cluster.ok() ? std::string() : cluster.error().text()));
  REQUIRE(cluster.ok());
  return latents;
}

}  // namespace

TEST_CASE("denoiser: its latents are those of the reference pipeline after every step", "[golden]") {
  const auto latents = denoise(Compute::f32);
  const auto out = testing::tensors_of(testing::golden("pipeline_text2world/out.safetensors"));
  REQUIRE(latents.size() == 4);
  for (std::size_t step = 0; step < latents.size(); ++step) {
    INFO("step " << step);
    CHECK(testing::worst_ratio(latents[step], out.at("step" + std::to_string(step) + ".latents").as<float>(), 1e-4) <=
          1.0);
  }
  // Equal sigmas at the end: the last step changes nothing, bit for bit.
  CHECK(std::memcmp(latents[2].data(), latents[3].data(), latents[2].size() * sizeof(float)) == 0);
}

TEST_CASE("denoiser: its bf16 latents are near those of the reference pipeline", "[golden]") {
  const auto latents = denoise(Compute::bf16);
  const auto out = testing::tensors_of(testing::golden("pipeline_text2world/out.safetensors"));
  CHECK(testing::relative_l2(latents[3], out.at("step3.latents").as<float>()) <= 3e-2);
}

}  // namespace orrery::compiler
