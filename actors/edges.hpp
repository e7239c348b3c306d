// Named tensors that travel between stages, or from a stage to the client.
//
// An Edge is the `op` of a data-plane message outside any program; `stream` is then `edge_stream`.

#pragma once

#include <cstdint>
#include <string>

namespace orrery::actors {

/// Programs use their index as stream; this one is for edges.
inline constexpr std::uint16_t edge_stream = 0xffff;

/// Endpoints of clients are numbered from here; cards have the plan's numbers, below.
inline constexpr std::uint32_t first_client_endpoint = 0x40000000;

/// Endpoints of keepers (keeper.hpp) are numbered from here, by their node's number on the data plane.
inline constexpr std::uint32_t first_keeper_endpoint = 0x20000000;

enum class Edge : std::uint32_t {
  noise = 1,               // client -> denoiser, when the client brings its own
  prompt_embeds = 2,       // encoder -> denoiser (and client)
  negative_prompt_embeds = 3,
  latents = 4,             // denoiser -> decoder, after the last step
  step_latents = 5,        // denoiser -> client, after each step (saved tensors)
  vae_input = 6,           // decoder -> client (saved tensors)
  video_raw = 7,           // decoder -> client (saved tensors), a piece per latent frame
  frames = 8,              // decoder -> client, u8 [F,H,W,3], a piece per latent frame
  restart_latents = 9,     // denoiser -> keepers, after each step; keeper -> denoiser, to go on
};

}  // namespace orrery::actors
