// Programs: what a card is told to do. Ordered commands over named memory slots, explicit and printable.
//
// compiler/ writes them, a Card (card.hpp) runs their compute commands, actors/program_runner runs their
// exchange commands. A ProgramSet holds all programs of one component for one rank of one group and one
// request shape (denoiser: prepare, step ...; decoder: first, next ...). They share a table of slots:
//
//   state slots       live as long as the request: latents, text keys and values, decoder histories
//   activation slots  live inside one program; the memory planner lets dead ones share bytes
//
//   lane memory:  [ state ........ | activations (offsets reused by lifetime) ........ ]
//
// Every kernel works on canonical tiles (design: one result on every cluster), so the bits of an output never
// depend on threads, on the other rows of a call, or on which slices are computed beside it.
//
// Shapes: R rows (tokens or pixels), D width, V slices of the component, S slices owned by this rank,
// w = width of a slice. A "sliced" tensor is slice-major and compact: [S][R][w]. Video tensors are channels
// last: [T][H][W][C], so a frame's pixels are rows of C.
//
// Arithmetic: norms, softmax, residuals and sums in f32; matrix products take their operands in the slot's
// or weight's dtype (f32 or bf16; an f32 source against a bf16 weight is rounded to bf16 first), accumulate
// in f32, and round to the output slot's dtype once. An i8 weight rounds each row of a source to 255 steps of the row's own
// size and adds whole numbers, exactly, which are scaled to f32 once for each (slice of the) sum.

#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/tensor.hpp"

namespace orrery::cards {

enum class Queue : std::uint8_t { compute, copy_in, copy_out, exchange };

using SlotId = std::uint32_t;
using WeightId = std::uint32_t;

enum class Activation : std::uint8_t { none, gelu, relu, silu };  // gelu: exact erf form.

// In the table: "in" are `Command::inputs` in order, "w" `Command::weights`, "out" `Command::outputs`.
// [x] is optional. An output may name the same slot as an input where "in place" is said.
enum class Op : std::uint8_t {
  // --- matrix products ---------------------------------------------------------------------------------
  linear,              // in x[R,K]  w matrix[N,K], [vector bias[N]]  out y[R,N] = act(x W^T + bias)
  linear_to_slices,    // in x[R,K]  w matrix[w,K] per owned slice  out y[S,R,w] = act(...): column parallel
  linear_from_slices,  // in x[S,R,w]  w matrix[D,w] per owned slice  out pieces[P,R,D] f32: row parallel;
                       //   `Command::slices` are the owned slice numbers, attr slice_count = V. One piece per
                       //   maximal complete subtree (base/slice_tree.hpp), left to right, summed in tree order.
  // --- attention and its surroundings ------------------------------------------------------------------
  attention,       // in q[S,Nq,w] k[S,Nk,w] v[S,Nk,w] [bias f32[S*heads, 2*max(Nq,Nk)-1]] [key_mask f32[Nk]]
                   //   out o[S,Nq,w]. attrs head_dim (w = heads*head_dim), scale, zero_keys.
                   //   o = softmax(scale q k^T + bias + mask) v per head; no [Nq,Nk] matrix in memory: key blocks of
                   //   fixed size in index order with online softmax. bias[h, j - i + (n-1)] with n = max(Nq,Nk) is
                   //   added to score (i, j). key_mask 0 removes the key. zero_keys: that many further keys whose
                   //   score and value are 0 take part in the softmax (exact shortcut for zero text rows).
  head_norm_rope,  // in x[S,R,w] [cos f32[R,head_dim/2] sin f32[R,head_dim/2]]  w [vector[head_dim]]  out x in place.
                   //   RMS norm over each head (attr eps) times weight; then halves j, j+head_dim/2 rotated.
  relative_bias,   // w table[buckets, V*heads]  out bias f32[S*heads, 2n-1] for distances -(n-1)..n-1 (T5 buckets,
                   //   bidirectional); attrs rows = n, buckets, max_distance, heads (per slice); `slices` = owned.
  // --- norms and elementwise ---------------------------------------------------------------------------
  layer_norm_modulate,  // in x f32[R,D] shift f32[D] scale f32[D]  out y[R,D] = ln(x) (1+scale) + shift; attr eps
  rms_norm,             // in x f32[R,D]  w vector[D]  out y[R,D]; attr eps
  group_norm,           // in x[T,H,W,C]  w vector[C], vector[C]  out y; one group per frame; attr eps, activation
  gate_add,             // in h f32[R,D] gate f32[D] y f32[R,D]  out h in place: h += gate * y
  add,                  // in a[..] b[..]  out a + b (in place allowed)
  activate,             // in x  out act(x); attr activation
  slice_columns,        // in x[R,D]  out y[R,n] = columns [begin, begin+n); attr begin
  copy_rows,            // in x[N,D]  out y[R,D] = rows [begin, begin+R); attr begin
  // --- denoiser ----------------------------------------------------------------------------------------
  embedding,            // in ids i32[R]  w table[vocabulary, D]  out x f32[R,D]
  timestep_embedding,   // out s[1,D] = [cos(c w_k), sin(c w_k)], c = scalar timestep; bf16 output rounds c too
  rope_table,           // out cos f32[R,head_dim/2], sin; attrs begin (first row), frames, height, width (in patches),
                        //   head_dim, scale_t/h/w, fps (<= 0: not given)
  learnable_positions,  // w table[t,D], table[h,D], table[w,D]  out P f32[R,D] normalised; attrs begin, frames, height, width
  patchify,             // in z f32[C,T,H,W] [condition f32[1,T,H,W]] [padding f32[H,W]]  out x[R, (C+..)*pt*ph*pw] =
                        //   rows begin.. of the token matrix; z is multiplied by scalar c_in. attrs begin, patch_t/h/w.
                        //   attr has_condition / has_padding say which of the optional inputs are there.
  unpatchify,           // in y[N, ph*pw*pt*C]  out z f32[C,T,H,W]; attrs patch_t/h/w
  scale_noise,          // in z f32  out z in place: z *= scalar sigma_max
  euler_step,           // in z f32[n] F_prompt f32[n] [F_negative f32[n]]  out z in place, with scalars guidance, c_skip,
                        //   c_out, sigma, sigma_next: F = Fp + g (Fp - Fn); x0 = c_skip z + c_out F;
                        //   z += (z - x0) / sigma * (sigma_next - sigma)
  to_decoder,           // in z f32[C,T,H,W]  w [vector[C*frames_max] mean] [vector std]  out f32[C,T,H,W] = z std / sigma_data + mean;
                        //   attrs sigma_data, frames_max (columns of the [C][frames_max] tables)
  // --- video autoencoder -------------------------------------------------------------------------------
  take_frame,        // in x[T,H,W,C]  out y[1,H,W,C] = frame number scalar latent_frame
  channels_last,     // in f32[C,T,H,W]  out [T,H,W,C]
  channels_first,    // in [T,H,W,C]  out f32[C,T,H,W]
  conv_spatial,      // in x[T,H,W,K]  w conv matrix[N, 3*3*K], vector bias  out y[T,H',W',N]; attr stride 1: zero pad 1 on
                     //   all sides; stride 2: zero pad 1 right and below only
  conv_temporal,     // in x[T,H,W,K] [history]  w conv matrix[N, 3*K], vector bias  out y[T',H,W,N]; causal; attr stride.
                     //   stride 1: two copies of the first frame stand before it, or the two frames in the state slot
                     //   `history`[2,H,W,K] when attr first = 0; history is rewritten with the last two frames.
                     //   stride 2 (encoder): y[t] sees x[2t-2], x[2t-1], x[2t], where frames before the first are copies of it;
                     //   T' = (T-1)/2 + 1; no history.
  temporal_attention,  // in q[T,H,W,C] k v [k_cache v_cache state [Tmax,H,W,C]]  out o; per pixel, causal along T; attr scale.
                       //   With caches: frames are appended (at 0 when scalar latent_frame is 0, else at 1 + (latent_frame - 1) T),
                       //   and attention sees all up to its own.
  avg_pool_spatial,    // in x[T,H,W,C]  out [T,floor((H+1)/2),floor((W+1)/2),C] of x zero-padded right and below by 1
  avg_pool_temporal,   // in x[T,H,W,C]  out pairs averaged after one copy of the first frame was put before
  repeat_temporal,     // in x[T,..]  out every frame twice; attr drop = frames dropped at the start (1 or 0)
  upsample_spatial,    // in x[T,H,W,C]  out [T,2H,2W,C] nearest
  patch_video,         // in f32[3,T,H,W]  out [T/p,H/p,W/p,3*p^3]; attrs patch, haar 1|0, repeat_first = copies put before
  unpatch_video,       // in [T,H,W,3*p^3]  out f32[3,T*p - drop,H*p,W*p]; attrs patch, haar, drop
  frames_u8,           // in f32[3,F,H,W]  out u8[F,H,W,3] = trunc(255 clamp(v/2 + 0.5, 0, 1))
  // --- exchange with the other ranks (attr exchange = id, the same on every rank) ------------------------
  all_gather_rows,  // in [x[R,D]]  out y[N,D]: rows of all ranks of the source group in rank order. attr source_group:
                    //   -1 = this rank's own group; else the ranks of that group send to the ranks of all groups, and only
                    //   they have the input.
  reduce_scatter,   // in pieces f32[P,N,D]  out y f32[R,D]: tree-ordered sum over all slices, this rank's rows
  to_heads,         // in x[V,R,w]  out y[S,N,w]: Ulysses, tokens to heads
  to_tokens,        // in x[S,N,w]  out y[V,R,w]: and back
};
std::string_view name_of(Op op);

/// Named numbers of a command; which ones an op needs stands in the table above.
enum class Attr : std::uint8_t {
  activation, eps, scale, head_dim, heads, zero_keys, slice_count, rows, buckets, max_distance, begin,
  frames, height, width, scale_t, scale_h, scale_w, fps, patch_t, patch_h, patch_w, has_condition, has_padding,
  sigma_data, frames_max, stride, first, drop, patch, haar, repeat_first, exchange, source_group, has_bias,
  has_mask, has_caches,
};
std::string_view name_of(Attr attr);

/// Numbers that change from run to run of the same program.
enum class Scalar : std::uint8_t { timestep, c_in, c_skip, c_out, sigma, sigma_next, sigma_max, guidance, latent_frame, count };
using Scalars = std::array<double, static_cast<std::size_t>(Scalar::count)>;

struct Command {
  Op op = Op::add;
  Queue queue = Queue::compute;
  std::vector<SlotId> inputs, outputs;
  std::vector<WeightId> weights;
  std::vector<std::uint32_t> slices;  // Owned slice numbers, where the op needs them.
  std::map<Attr, double> attrs;
  std::string label;                  // "block3.attn1.q": for people, traces and error messages.
  std::vector<std::uint32_t> after;   // Earlier commands of the same program that must be done first.
  /// Activation slots whose bytes this command overwrites and that an earlier exchange command sent from: their
  /// sends must have been released.
  std::vector<SlotId> reuses;

  double attr(Attr name, double otherwise = 0) const {
    const auto found = attrs.find(name);
    return found == attrs.end() ? otherwise : found->second;
  }
  std::uint64_t count(Attr name, std::uint64_t otherwise = 0) const {
    return static_cast<std::uint64_t>(attr(name, static_cast<double>(otherwise)));
  }
};

struct Slot {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  bool state = false;        // Lives as long as the request.
  std::uint64_t offset = 0;  // In the lane's memory; multiple of 64.
  std::uint64_t bytes() const { return element_count(shape) * size_of(dtype); }
};

struct Program {
  std::string name;  // "prepare", "step", "first" ...
  std::vector<Command> commands;
};

/// How one weight is kept on the card.
enum class WeightForm : std::uint8_t {
  vector,         // f32, any shape flattened: norms, biases, means.
  table,          // Plain rows in its own dtype (f32 or bf16): embeddings, positions.
  matrix,         // [N,K] packed for matrix products, in the compute dtype or as i8 with a scale for each row.
  conv_spatial,   // Conv3d [N,K,1,3,3] packed as matrix [N, (ky,kx,k)].
  conv_temporal,  // Conv3d [N,K,3,1,1] packed as matrix [N, (kt,k)].
};

/// A part of one tensor of the model folder: rows and columns of its 2-D view [first extent, the rest].
struct WeightSpec {
  std::string tensor;
  WeightForm form = WeightForm::matrix;
  DType dtype = DType::f32;  // On the card.
  Shape shape;               // Of the whole tensor, as the folder must have it.
  std::uint64_t row_begin = 0, row_end = 0, column_begin = 0, column_end = 0;

  std::uint64_t rows() const { return row_end - row_begin; }
  std::uint64_t columns() const { return column_end - column_begin; }
  /// Bytes of the elements (and of the rows' scales and sums with i8); the packed form may pad a little.
  std::uint64_t bytes() const { return rows() * (columns() * size_of(dtype) + (dtype == DType::i8 ? 8 : 0)); }
};

/// All weights that one rank needs for one component; a WeightId is an index.
struct WeightSet {
  std::string component;  // "transformer", "text_encoder", "vae.decoder", "vae.encoder"
  std::vector<WeightSpec> weights;
  std::uint64_t bytes() const;
};
/// Whether programs made for `wanted` may run on weights that were loaded as `loaded`.
bool same_weights(const WeightSet& wanted, const WeightSet& loaded);

struct ProgramSet {
  std::string component;
  std::shared_ptr<const WeightSet> weights;
  std::vector<Slot> slots;
  std::vector<Program> programs;
  std::uint64_t state_bytes = 0;       // Slots with state = true lie in [0, state_bytes).
  std::uint64_t activation_bytes = 0;  // The others in [state_bytes, state_bytes + activation_bytes).
  std::map<std::string, SlotId> inputs, outputs;  // By public name: "latents", "text", "sample" ...

  std::uint64_t lane_bytes() const { return state_bytes + activation_bytes; }
  /// Index in `programs`; checks that it exists.
  std::uint32_t index_of(std::string_view program) const;
  /// The whole set as text, one line a command; stable.
  std::string text() const;
  /// Says what is wrong: a slot out of range or of the wrong shape for its op, a use before any write, memory of
  /// live slots that overlaps, a missing dependency. A set from our own compiler never fails.
  Status check() const;
};

}  // namespace orrery::cards
