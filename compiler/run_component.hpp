// Runs one component, on one card or on whatever `Lanes` stand for: named tensors in, named tensors out.
//
// For `orrery infer`, for tests and for whoever wants to compare numbers with another implementation. Names and
// shapes are those of the reference pipeline:
//
//   transformer   hidden_states [B,C,T,H,W], timestep [B], encoder_hidden_states [B,S,E], fps [1] (-1: not given),
//                 padding_mask [1,1,H,W] (pixels), condition_mask [B,1,T,H,W], attention_mask [B,S]  ->  sample
//   text_encoder  input_ids [B,S], attention_mask [B,S]  ->  last_hidden_state, prompt_embeds (rows past the prompt 0)
//   vae           pixels [B,3,F,H,W] -> latent; z [B,C,T,H,W] -> video
//
// Batch items run one after the other.

#pragma once

#include <map>
#include <string>

#include "base/result.hpp"
#include "base/tensor.hpp"
#include "cards/card.hpp"
#include "compiler/compile.hpp"
#include "compiler/component_lane.hpp"

namespace orrery::compiler {

struct ComponentOptions {
  Compute compute = Compute::f32;
  std::uint32_t slices = 8;  // At most; see slice_count_of.
};

using NamedTensors = std::map<std::string, Tensor>;

/// `component`: "transformer", "text_encoder" or "vae"; its weights are loaded for this call only. The outputs' bytes
/// do not depend on the cards. Fails with invalid_request (an input is missing, of the wrong shape or unknown),
/// invalid_model, unsupported, and with what opening and running the lanes fails with.
Result<NamedTensors> run_component(const ModelFolder& folder, const std::string& component, const NamedTensors& inputs,
                                   Lanes& lanes, const ComponentOptions& options);
/// On one card of this process.
Result<NamedTensors> run_component(const ModelFolder& folder, const std::string& component, const NamedTensors& inputs,
                                   cards::Card& card, const ComponentOptions& options);

}  // namespace orrery::compiler
