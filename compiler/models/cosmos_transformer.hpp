// The denoiser's network (CosmosTransformer3DModel) as a logical graph.
//
//   latents ─ patchify ─ patch_embed ─▶ h ─▶ block 0 .. L-1 ─▶ norm_out ─ proj_out ─ unpatchify ─▶ F
//   timestep ─ embedding ─ MLP ─▶ shift, scale, gate of every norm (shared by both guidance branches)
//   text ─ to_k, to_v of every block ─▶ state, once per request
//
// Source: huggingface/diffusers, transformer_cosmos.py.

#pragma once

#include "compiler/compile.hpp"

namespace orrery::compiler {

/// Programs `prepare` and `step`. The shape was checked.
Graph denoiser_graph(const TransformerConfig& config, Compute compute, const DenoiserShape& shape,
                     std::uint32_t slice_count);
/// Program `forward`. The shape was checked.
Graph transformer_graph(const TransformerConfig& config, Compute compute, const TransformerShape& shape,
                        std::uint32_t slice_count);

}  // namespace orrery::compiler
