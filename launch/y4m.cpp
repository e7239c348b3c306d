#include "launch/y4m.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>

namespace orrery::launch {
namespace {

/// Y' = r R + (1-r-b) G + b B, scaled to the range; chroma likewise around 128.
struct Matrix {
  double luma_red, luma_blue;
  double luma_offset, luma_scale, chroma_scale;
};

constexpr Matrix matrix_of(ColorSpace space) {
  if (space == ColorSpace::bt601_full) return {0.299, 0.114, 0, 1, 1};
  return {0.2126, 0.0722, 16, 219.0 / 255, 224.0 / 255};
}

std::byte rounded(double value) {
  return static_cast<std::byte>(static_cast<unsigned>(std::clamp(std::floor(value + 0.5), 0.0, 255.0)));
}

}  // namespace

std::string y4m_header(std::uint32_t width, std::uint32_t height, double fps, ColorSpace space) {
  const auto thousandths = static_cast<std::uint64_t>(std::llround(fps * 1000));
  const auto divisor = std::gcd(thousandths, std::uint64_t{1000});
  return "YUV4MPEG2 W" + std::to_string(width) + " H" + std::to_string(height) + " F" + std::to_string(thousandths / divisor) + ":" +
         std::to_string(1000 / divisor) + " Ip A1:1 C444 XCOLORRANGE=" + (space == ColorSpace::bt601_full ? "FULL" : "LIMITED") + "\n";
}

void write_y4m_frame(std::span<const std::byte> rgb, ColorSpace space, std::vector<std::byte>& out) {
  constexpr std::string_view marker = "FRAME\n";
  const auto m = matrix_of(space);
  const double luma_green = 1 - m.luma_red - m.luma_blue;
  const double blue_scale = m.chroma_scale / (2 * (1 - m.luma_blue)), red_scale = m.chroma_scale / (2 * (1 - m.luma_red));
  const auto pixels = rgb.size() / 3;
  out.resize(marker.size() + 3 * pixels);
  std::transform(marker.begin(), marker.end(), out.begin(), [](char c) { return static_cast<std::byte>(c); });
  auto* y = out.data() + marker.size();
  auto* cb = y + pixels;
  auto* cr = cb + pixels;
  for (std::size_t i = 0; i < pixels; ++i) {
    const auto red = static_cast<double>(rgb[3 * i]);
    const auto green = static_cast<double>(rgb[3 * i + 1]);
    const auto blue = static_cast<double>(rgb[3 * i + 2]);
    const double luma = m.luma_red * red + luma_green * green + m.luma_blue * blue;
    y[i] = rounded(m.luma_offset + m.luma_scale * luma);
    cb[i] = rounded(128 + blue_scale * (blue - luma));
    cr[i] = rounded(128 + red_scale * (red - luma));
  }
}

}  // namespace orrery::launch
