// The noise schedule against the reference, number by number, and four Euler steps on the cpu card's arithmetic rule.

#include <cmath>

#include "actors/denoise_schedule.hpp"
#include "compiler/model_folder.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::actors {
namespace {

compiler::SchedulerConfig config_of(const std::string& name) {
  auto config = compiler::read_scheduler_config(testing::golden("scheduler/" + name + "/scheduler_config.json"));
  INFO((config.ok() ? name : config.error().text()));
  REQUIRE(config.ok());
  return config.value();
}

/// Within `tolerance` relative; zero must be met exactly.
void check_close(float got, float reference, double tolerance) {
  CAPTURE(got, reference);
  CHECK(std::abs(static_cast<double>(got) - static_cast<double>(reference)) <= tolerance * std::abs(static_cast<double>(reference)));
}

}  // namespace

TEST_CASE("scheduler: every schedule is that of the reference", "[golden][schedule]") {
  for (const char* name : {"published36", "karras4", "nvidia35_zero", "exponential10", "vpred5"}) {
    INFO(name);
    const auto reference = testing::tensors_of(testing::golden(std::string("scheduler/") + name + "/schedule.safetensors"));
    const auto values = [&](const char* tensor) { return reference.at(tensor).as<float>(); };
    const auto count = static_cast<std::uint32_t>(values("timesteps").size());
    const auto schedule = make_schedule(config_of(name), count);
    REQUIRE(schedule.ok());
    const auto& steps = schedule.value().steps;
    REQUIRE(values("sigmas").size() == count + 1);
    for (std::uint32_t i = 0; i < count; ++i) {
      INFO("step " << i);
      check_close(steps[i].sigma, values("sigmas")[i], 1e-6);
      check_close(steps[i].sigma_next, values("sigmas")[i + 1], 1e-6);
      // ln(sigma)/4 passes through zero: absolute there.
      CHECK(std::abs(steps[i].timestep - values("timesteps")[i]) <= 1e-6F * (1 + std::abs(values("timesteps")[i])));
      check_close(steps[i].c_in, values("c_in")[i], 1e-6);
      check_close(steps[i].c_skip, values("c_skip")[i], 1e-6);
      check_close(steps[i].c_out, values("c_out")[i], 1e-6);
    }
  }
}

TEST_CASE("scheduler: four guided Euler steps follow the reference", "[golden][schedule]") {
  const auto reference = testing::tensors_of(testing::golden("scheduler/trajectory.safetensors"));
  const auto schedule = make_schedule(config_of("published36"), 4);
  REQUIRE(schedule.ok());
  const auto initial = reference.at("latents_init").as<float>();
  std::vector<float> z(initial.begin(), initial.end());
  const float guidance = reference.at("guidance_scale").as<float>()[0];
  for (std::uint32_t i = 0; i < 4; ++i) {
    INFO("step " << i);
    const auto tensor = [&](const char* name) { return reference.at("step" + std::to_string(i) + "." + name).as<float>(); };
    const auto& step = schedule.value().steps[i];
    std::vector<float> input(z.size()), x0(z.size());
    for (std::size_t e = 0; e < z.size(); ++e) {
      input[e] = step.c_in * z[e];
      const float prompt = tensor("out_cond")[e], negative = tensor("out_uncond")[e];
      x0[e] = step.c_skip * z[e] + step.c_out * (prompt + guidance * (prompt - negative));
      z[e] += (z[e] - x0[e]) / step.sigma * (step.sigma_next - step.sigma);
    }
    CHECK(testing::worst_ratio(input, tensor("model_input"), 1e-5) <= 1);
    CHECK(testing::worst_ratio(x0, tensor("x0_guided"), 1e-5) <= 1);
    CHECK(testing::worst_ratio(z, tensor("latents"), 1e-5) <= 1);
    if (step.is_no_op()) CHECK(i == 3);
  }
}

}  // namespace orrery::actors
