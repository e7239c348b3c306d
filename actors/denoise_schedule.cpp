#include "actors/denoise_schedule.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace orrery::actors {

namespace {

/// `count` levels from sigma_max down to sigma_min.
std::vector<float> falling_levels(const compiler::SchedulerConfig& config, std::uint32_t count) {
  std::vector<float> levels;
  levels.reserve(count + 1);
  const double inverse_rho = 1 / config.rho;
  const double high = std::pow(config.sigma_max, inverse_rho), low = std::pow(config.sigma_min, inverse_rho);
  for (std::uint32_t i = 0; i < count; ++i) {
    const double ramp = count == 1 ? 0 : static_cast<double>(i) / (count - 1);
    if (config.schedule == compiler::SchedulerConfig::Schedule::karras)
      levels.push_back(static_cast<float>(std::pow(high + ramp * (low - high), config.rho)));
    else  // The reference ramps from the low end and turns the list round: with one level that one is sigma_min.
      levels.push_back(static_cast<float>(std::exp(std::log(config.sigma_min) +
                                                   (count == 1 ? 0 : 1 - ramp) * std::log(config.sigma_max / config.sigma_min))));
  }
  return levels;
}

}  // namespace

std::uint32_t DenoiseSchedule::working_count() const {
  return static_cast<std::uint32_t>(std::count_if(steps.begin(), steps.end(), [](const DenoiseStep& step) { return !step.is_no_op(); }));
}

cards::Scalars DenoiseSchedule::scalars(std::uint32_t step, double guidance) const {
  ORRERY_CHECK(step < steps.size());
  const auto& now = steps[step];
  cards::Scalars scalars{};
  const auto set = [&](cards::Scalar which, double value) { scalars[static_cast<std::size_t>(which)] = value; };
  set(cards::Scalar::timestep, now.timestep);
  set(cards::Scalar::c_in, now.c_in);
  set(cards::Scalar::c_skip, now.c_skip);
  set(cards::Scalar::c_out, now.c_out);
  set(cards::Scalar::sigma, now.sigma);
  set(cards::Scalar::sigma_next, now.sigma_next);
  set(cards::Scalar::sigma_max, sigma_max);
  set(cards::Scalar::guidance, guidance);
  return scalars;
}

Result<DenoiseSchedule> make_schedule(const compiler::SchedulerConfig& config, std::uint32_t steps) {
  if (steps < 1 || steps > 10'000)
    return Error{ErrorCode::invalid_request, "a video takes 1 to 10000 denoising steps, not " + std::to_string(steps)};
  if (!(config.sigma_min > 0 && config.sigma_max > config.sigma_min && config.sigma_data > 0 && config.rho > 0) ||
      !std::isfinite(config.sigma_max) || !std::isfinite(config.sigma_data) || !std::isfinite(config.rho))
    return Error{ErrorCode::invalid_model, "the scheduler's sigma_min, sigma_max, sigma_data and rho give no falling noise levels"};

  auto levels = falling_levels(config, steps);
  levels.push_back(config.final_sigma == compiler::SchedulerConfig::FinalSigma::sigma_min ? levels.back() : 0.0F);
  DenoiseSchedule schedule;
  schedule.sigma_max = static_cast<float>(config.sigma_max);
  schedule.steps.reserve(steps);
  for (std::uint32_t i = 0; i < steps; ++i) {
    const auto sigma = static_cast<double>(levels[i]);
    const double data = config.sigma_data, total = sigma * sigma + data * data, root = std::sqrt(total);
    DenoiseStep step;
    step.timestep = static_cast<float>(0.25 * std::log(sigma));
    step.c_in = static_cast<float>(1 / root);
    step.c_skip = static_cast<float>(data * data / total);
    step.c_out = static_cast<float>(sigma * data / root);
    if (config.prediction == compiler::SchedulerConfig::Prediction::v_prediction) step.c_out = -step.c_out;
    step.sigma = levels[i];
    step.sigma_next = levels[i + 1];
    if (!(step.sigma > 0) || !std::isfinite(step.timestep) || !std::isfinite(step.c_in) || step.sigma_next > step.sigma)
      return Error{ErrorCode::invalid_model, "the scheduler's numbers give a noise level at step " + std::to_string(i) +
                                                 " that f32 cannot hold or that does not fall"};
    schedule.steps.push_back(step);
  }
  return schedule;
}

}  // namespace orrery::actors
