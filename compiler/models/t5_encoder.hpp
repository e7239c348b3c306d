// The text encoder (T5 version 1.0, encoder half) as a logical graph.
//
//   ids ─ embedding ─▶ x ─▶ block: x += o(softmax(q k^T + bias) v), x += wo(relu(wi x)) ─▶ norm ─▶ last_hidden_state
//
// Source: huggingface/transformers, modeling_t5.py. No scale in attention, no biases; the relative bias of block 0
// serves all blocks.

#pragma once

#include "compiler/compile.hpp"

namespace orrery::compiler {

/// Program `forward`; rows > 0.
Graph text_encoder_graph(const TextEncoderConfig& config, Compute compute, std::uint64_t rows, bool attention_mask,
                         std::uint32_t slice_count);

}  // namespace orrery::compiler
