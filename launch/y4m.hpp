// YUV4MPEG2, the plain video format that every encoder reads: a header line, then "FRAME" and three planes each.
//
// Written as 8-bit 4:4:4, so no colour is lost to subsampling. Two colour spaces:
//   bt601_full     files for people and scripts: Y'CbCr as in JPEG, marked XCOLORRANGE=FULL
//   bt709_limited  what mp4 players expect of HD video; ffmpeg then only has to halve the chroma planes
//
// Pure: frames in, bytes out.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace orrery::launch {

enum class ColorSpace : std::uint8_t { bt601_full, bt709_limited };

/// "YUV4MPEG2 W64 H64 F8:1 Ip A1:1 C444 XCOLORRANGE=FULL\n". `fps` above 0, kept to a thousandth.
std::string y4m_header(std::uint32_t width, std::uint32_t height, double fps, ColorSpace space);

/// One frame of the stream, marker line and all, into `out` (replaced). `rgb` is u8 [pixels][3].
void write_y4m_frame(std::span<const std::byte> rgb, ColorSpace space, std::vector<std::byte>& out);

}  // namespace orrery::launch
