// What a client asks for; stages are told the same.

#pragma once

#include <cstdint>
#include <string>

namespace orrery::actors {

/// One video. Sizes in pixels; frames are 8k+1 (the model's temporal ratio).
struct RequestSpec {
  std::string prompt, negative_prompt;
  std::uint32_t width = 0, height = 0, frames = 0, steps = 0;
  double fps = 0, guidance = 1;
  std::uint64_t seed = 0;
  std::uint32_t max_text_tokens = 512;
  bool noise_from_client = false;  // The initial noise comes over the data plane instead of from the seed.
  bool save_tensors = false;       // Intermediates go to the client's data endpoint as well.
  double deadline_seconds = 0;     // From acceptance; then the request is cancelled. 0: none.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RequestSpec& x) {
  return f(x.prompt, x.negative_prompt, x.width, x.height, x.frames, x.steps, x.fps, x.guidance, x.seed, x.max_text_tokens,
           x.noise_from_client, x.save_tensors, x.deadline_seconds);
}

}  // namespace orrery::actors
