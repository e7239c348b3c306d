// One function for each operation of cards/program.hpp outside the video section. What each does is said in the
// table there; each checks its operands with ORRERY_OPERANDS and shares tiles out to `Call::pool`.

#pragma once

#include "cards/kernels/kernels.hpp"

namespace orrery::cards {

// linear.cpp
Status linear(const Call& call);
Status linear_to_slices(const Call& call);
Status linear_from_slices(const Call& call);

// attention.cpp
Status attention(const Call& call);
Status head_norm_rope(const Call& call);
Status relative_bias(const Call& call);

// pointwise.cpp
Status layer_norm_modulate(const Call& call);
Status rms_norm(const Call& call);
Status gate_add(const Call& call);
Status add_op(const Call& call);
Status activate_op(const Call& call);
Status slice_columns(const Call& call);
Status copy_rows(const Call& call);

// denoiser.cpp
Status embedding(const Call& call);
Status timestep_embedding(const Call& call);
Status rope_table(const Call& call);
Status learnable_positions(const Call& call);
Status patchify(const Call& call);
Status unpatchify(const Call& call);
Status scale_noise(const Call& call);
Status euler_step(const Call& call);
Status to_decoder(const Call& call);

}  // namespace orrery::cards
