// DenoiseSchedule: the numbers of every denoising step (EDM, Euler), worked out once per request.
//
// Step i takes the latent z from noise level sigma to sigma_next:
//
//   F = network(c_in z, timestep)      x0 = c_skip z + c_out F      z += (z - x0) / sigma * (sigma_next - sigma)
//
// Levels fall from sigma_max to sigma_min along the Karras ramp (rho) or exponentially, and a last one is appended:
// sigma_min again, which makes the last step an exact no-op, or zero. Worked out in double and rounded to f32 once, as
// the reference does, so that the last bit of a machine's pow() hardly ever shows; the stage works them out and
// the cards are told.
//
// Pure. Source: Karras et al., "Elucidating the design space of diffusion-based generative models", 2022;
// diffusers EDMEulerScheduler.

#pragma once

#include <cstdint>
#include <vector>

#include "base/result.hpp"
#include "cards/program.hpp"
#include "compiler/model_folder.hpp"

namespace orrery::actors {

struct DenoiseStep {
  float timestep = 0;  // ln(sigma) / 4
  float c_in = 0, c_skip = 0, c_out = 0;
  float sigma = 0, sigma_next = 0;

  /// z stays what it is, to the bit: the network need not run.
  bool is_no_op() const { return sigma == sigma_next; }
};

struct DenoiseSchedule {
  std::vector<DenoiseStep> steps;
  float sigma_max = 0;  // The first latent is noise * sigma_max.

  std::uint32_t count() const { return static_cast<std::uint32_t>(steps.size()); }
  /// Steps that are not no-ops.
  std::uint32_t working_count() const;
  /// What the denoiser's programs take at one step.
  cards::Scalars scalars(std::uint32_t step, double guidance) const;
};

/// `steps` from 1 to 10,000. Fails with invalid_request for another count, and with invalid_model when the scheduler's
/// numbers give no falling, finite levels.
Result<DenoiseSchedule> make_schedule(const compiler::SchedulerConfig& config, std::uint32_t steps);

}  // namespace orrery::actors
