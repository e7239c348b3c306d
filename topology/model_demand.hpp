// What a model asks of a cluster, from its sizes: no weights are read.

#pragma once

#include "base/result.hpp"
#include "topology/demand.hpp"
#include "topology/model_spec.hpp"

namespace orrery::topology {

/// The work of one request; the model's defaults unless the request says otherwise.
struct RequestShape {
  FrameSize size;
  std::uint32_t num_frames = 121;
  std::uint32_t num_inference_steps = 36;
  bool guided = true;  // Two branches per step.
  std::uint32_t max_text_tokens = 512;
};
RequestShape shape_of(const RequestDefaults& defaults);

/// Text encoder, denoiser and decoder. Operations and weights follow the published architectures exactly;
/// activations are an estimate from above. Fails with invalid_config when `geometry` is absent or a size does not
/// fit it, and with invalid_request when a product overflows.
Result<Demand> demand_of(const ModelSpec& model, const RequestShape& shape);

}  // namespace orrery::topology
