// The table op -> kernel. Explicit: what is not listed here does not run on a card.

#include "cards/kernels/ops.hpp"

namespace orrery::cards {

Kernel kernel_of(Op op) {
  switch (op) {
    case Op::linear: return linear;
    case Op::linear_to_slices: return linear_to_slices;
    case Op::linear_from_slices: return linear_from_slices;
    case Op::attention: return attention;
    case Op::head_norm_rope: return head_norm_rope;
    case Op::relative_bias: return relative_bias;
    case Op::layer_norm_modulate: return layer_norm_modulate;
    case Op::rms_norm: return rms_norm;
    case Op::gate_add: return gate_add;
    case Op::add: return add_op;
    case Op::activate: return activate_op;
    case Op::slice_columns: return slice_columns;
    case Op::copy_rows: return copy_rows;
    case Op::embedding: return embedding;
    case Op::timestep_embedding: return timestep_embedding;
    case Op::rope_table: return rope_table;
    case Op::learnable_positions: return learnable_positions;
    case Op::patchify: return patchify;
    case Op::unpatchify: return unpatchify;
    case Op::scale_noise: return scale_noise;
    case Op::euler_step: return euler_step;
    case Op::to_decoder: return to_decoder;
    default: return video_kernel_of(op);
  }
}

}  // namespace orrery::cards
