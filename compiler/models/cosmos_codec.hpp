// The video autoencoder (AutoencoderKLCosmos): front end and public functions, for one card.
//
//   decoder   z ─ post_quant ─ conv_in ─ mid ─ up blocks ─ norm, conv_out ─ unpatch ─▶ video
//   encoder   pixels ─ patch ─ conv_in ─ down blocks ─ mid ─ norm, conv_out ─ quant ─▶ latent
//
// Everything in the decoder is causal in time, exactly. So it runs latent frame by latent frame, with the last two
// frames of each temporal convolution and the keys and values of each temporal attention kept as state, and gives the
// bits of a decode of the whole clip in the memory of one latent frame.
//
// The codec is not sliced: group norms need whole frames, and one card decodes faster than cards exchange.

#pragma once

#include <memory>

#include "base/result.hpp"
#include "compiler/compile.hpp"
#include "compiler/model_folder.hpp"

namespace orrery::compiler {

/// Size of the latents of one clip.
struct CodecShape {
  std::uint64_t frames = 0, height = 0, width = 0;
};
/// Size of a clip in pixels.
struct PixelShape {
  std::uint64_t frames = 0, height = 0, width = 0;
};

/// What the decoder makes of latents of this size.
PixelShape decoded_shape(const CodecConfig& config, const CodecShape& latents);
/// Video frames that one latent frame after the first gives; the first gives one.
std::uint64_t frames_per_latent(const CodecConfig& config);

/// Component "vae.decoder"; for `compile_decoder` and `compile_decode_whole`. Names latents_mean and latents_std, which
/// open_weights adds to the files' tensors, unless the config has none.
Result<std::shared_ptr<const cards::WeightSet>> decoder_weights(const CodecConfig& config, Compute compute);
/// Component "vae.encoder"; for `compile_encode`.
Result<std::shared_ptr<const cards::WeightSet>> encoder_weights(const CodecConfig& config, Compute compute);

/// Programs `prepare`, then `first`, then `next` once for each further latent frame (absent when there is none).
///   inputs   latents f32[C,T,H,W] (denoiser's units)
///   outputs  vae_input f32[C,T,H,W] (state: latents in the codec's units);
///            first.video f32[3,1,H,W], first.frames u8[1,H,W,3]; next.video f32[3,F,H,W], next.frames u8[F,H,W,3]
///   scalars  first, next: latent_frame (0; 1, 2 ... in order)
/// Fails with invalid_request when the size does not suit the config, and with unsupported, naming the key, when the
/// config's blocks do not give its compression ratios.
Result<std::shared_ptr<const cards::ProgramSet>> compile_decoder(const CodecConfig& config,
                                                                 std::shared_ptr<const cards::WeightSet> weights,
                                                                 Compute compute, const CodecShape& shape, double sigma_data,
                                                                 PassTrace* trace = nullptr);

/// Program `forward`: input z f32[C,T,H,W] (the codec's units), output video f32[3,F,H,W].
Result<std::shared_ptr<const cards::ProgramSet>> compile_decode_whole(const CodecConfig& config,
                                                                      std::shared_ptr<const cards::WeightSet> weights,
                                                                      Compute compute, const CodecShape& shape,
                                                                      PassTrace* trace = nullptr);

/// Program `forward`: input pixels f32[3,F,H,W] in [-1,1], output latent f32[C,T,H,W] (mean of the distribution).
/// Frames are one more than a multiple of the patch size; height and width multiples of the spatial ratio.
Result<std::shared_ptr<const cards::ProgramSet>> compile_encode(const CodecConfig& config,
                                                                std::shared_ptr<const cards::WeightSet> weights,
                                                                Compute compute, const PixelShape& shape,
                                                                PassTrace* trace = nullptr);

/// The decoder on one card, for one clip; work of the whole clip.
Result<ComponentFigures> decoder_figures(const CodecConfig& config, Compute compute, const CodecShape& shape);

}  // namespace orrery::compiler
