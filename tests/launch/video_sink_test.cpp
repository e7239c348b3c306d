// y4m is decoded again by its own rules; mp4 goes through ffmpeg both ways when ffmpeg is installed.

#include "launch/video_sink.hpp"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <png.h>

#include <catch2/catch.hpp>

#include "base/file.hpp"
#include "launch/processes.hpp"
#include "launch/y4m.hpp"
#include "tests/launch/scratch.hpp"

namespace orrery::launch {
namespace {

using Frame = std::vector<std::byte>;

/// Halves of two colours, moving with `index`.
Frame frame_of(std::uint32_t width, std::uint32_t height, unsigned index) {
  Frame frame;
  for (std::uint32_t y = 0; y < height; ++y)
    for (std::uint32_t x = 0; x < width; ++x) {
      const bool left = x < width / 2;
      for (const unsigned value : {left ? 230U : 20U, left ? 30U : 90U, left ? 40U + index : 200U}) frame.push_back(static_cast<std::byte>(value));
    }
  return frame;
}

std::string whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool has_ffmpeg() { return std::system("ffmpeg -version > /dev/null 2>&1") == 0; }

double clamped(double value) { return std::min(255.0, std::max(0.0, value)); }

}  // namespace

TEST_CASE("y4m: every colour comes back within two levels", "[launch]") {
  for (const auto space : {ColorSpace::bt601_full, ColorSpace::bt709_limited}) {
    Frame rgb;
    for (int r = 0; r <= 255; r += 17)
      for (int g = 0; g <= 255; g += 17)
        for (int b = 0; b <= 255; b += 17)
          for (const int value : {r, g, b}) rgb.push_back(static_cast<std::byte>(value));
    std::vector<std::byte> out;
    write_y4m_frame(rgb, space, out);
    const auto pixels = rgb.size() / 3;
    REQUIRE(out.size() == 6 + 3 * pixels);
    const bool full = space == ColorSpace::bt601_full;
    const double red = full ? 0.299 : 0.2126, blue = full ? 0.114 : 0.0722, green = 1 - red - blue;
    double worst = 0;
    for (std::size_t i = 0; i < pixels; ++i) {
      const auto plane = [&](std::size_t which) { return static_cast<double>(out[6 + which * pixels + i]); };
      const double y = full ? plane(0) : (plane(0) - 16) * 255 / 219;
      const double cb = (plane(1) - 128) * (full ? 1 : 255.0 / 224), cr = (plane(2) - 128) * (full ? 1 : 255.0 / 224);
      const double r = y + 2 * (1 - red) * cr, b = y + 2 * (1 - blue) * cb;
      const double g = (y - red * r - blue * b) / green;
      worst = std::max({worst, std::abs(clamped(r) - static_cast<double>(rgb[3 * i])), std::abs(clamped(g) - static_cast<double>(rgb[3 * i + 1])),
                        std::abs(clamped(b) - static_cast<double>(rgb[3 * i + 2]))});
    }
    INFO("worst " << worst);
    CHECK(worst < 2.2);
  }
}

TEST_CASE("y4m: the header says size, rate, chroma and range", "[launch]") {
  CHECK(y4m_header(64, 48, 8, ColorSpace::bt601_full) == "YUV4MPEG2 W64 H48 F8:1 Ip A1:1 C444 XCOLORRANGE=FULL\n");
  CHECK(y4m_header(2, 2, 23.976, ColorSpace::bt709_limited) == "YUV4MPEG2 W2 H2 F2997:125 Ip A1:1 C444 XCOLORRANGE=LIMITED\n");
}

TEST_CASE("video sink: a y4m file appears when it is finished, with the digest of its raw frames", "[launch]") {
  const Scratch scratch;
  const VideoShape shape{6, 4, 8};
  auto sink = VideoSink::open(scratch.path("clip.y4m"), shape);
  REQUIRE(sink.ok());
  Sha256 expected;
  for (unsigned i = 0; i < 3; ++i) {
    const auto frame = frame_of(6, 4, i);
    expected.update(frame);
    REQUIRE(sink.value().add_frame(frame).ok());
    CHECK_FALSE(std::filesystem::exists(scratch.path("clip.y4m")));
  }
  const auto result = sink.value().finish();
  REQUIRE(result.ok());
  CHECK(result.value().frames == 3);
  CHECK(result.value().frames_sha256 == expected.finish());
  CHECK(whole(scratch.path("clip.y4m")).size() == y4m_header(6, 4, 8, ColorSpace::bt601_full).size() + 3 * (6 + 6 * 4 * 3));
  CHECK(scratch.entry_count() == 1);
}

TEST_CASE("video sink: an unfinished video leaves nothing", "[launch]") {
  const Scratch scratch;
  for (const char* name : {"clip.y4m", "frames/", "f_%04d.png", "clip.mp4"}) {
    if (std::string(name) == "clip.mp4" && !has_ffmpeg()) continue;
    {
      auto sink = VideoSink::open(scratch.path(name), {6, 4, 8});
      REQUIRE(sink.ok());
      REQUIRE(sink.value().add_frame(frame_of(6, 4, 0)).ok());
    }
    INFO(name);
    CHECK(scratch.entry_count() == 0);
  }
}

TEST_CASE("video sink: PNG frames keep every byte", "[launch]") {
  const Scratch scratch;
  const auto read_png = [](const std::string& path) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    REQUIRE(png_image_begin_read_from_file(&image, path.c_str()) != 0);
    image.format = PNG_FORMAT_RGB;
    Frame frame(PNG_IMAGE_SIZE(image));
    REQUIRE(png_image_finish_read(&image, nullptr, frame.data(), 0, nullptr) != 0);
    return frame;
  };
  for (const std::string name : {"frames/", "f_%03d.png"}) {
    auto sink = VideoSink::open(scratch.path(name), {6, 4, 8});
    REQUIRE(sink.ok());
    for (unsigned i = 0; i < 2; ++i) REQUIRE(sink.value().add_frame(frame_of(6, 4, i)).ok());
    REQUIRE(sink.value().finish().ok());
  }
  CHECK(read_png(scratch.path("frames/frame_0001.png")) == frame_of(6, 4, 1));
  CHECK(read_png(scratch.path("f_001.png")) == frame_of(6, 4, 1));
  CHECK(scratch.entry_count() == 3);

  auto single = VideoSink::open(scratch.path("one.png"), {6, 4, 8});
  REQUIRE(single.ok());
  REQUIRE(single.value().add_frame(frame_of(6, 4, 0)).ok());
  CHECK_FALSE(single.value().add_frame(frame_of(6, 4, 1)).ok());
  // The folder is not empty any more.
  CHECK(VideoSink::open(scratch.path("frames/"), {6, 4, 8}).error().code == ErrorCode::io_failed);
}

TEST_CASE("video sink: what cannot be written is refused before any work", "[launch]") {
  const Scratch scratch;
  const auto code_of = [&](const std::string& path, VideoShape shape) {
    const auto sink = VideoSink::open(path, shape);
    REQUIRE_FALSE(sink.ok());
    return sink.error().code;
  };
  CHECK(code_of(scratch.path("clip.gif"), {6, 4, 8}) == ErrorCode::usage);
  CHECK(code_of(scratch.path("none/clip.y4m"), {6, 4, 8}) == ErrorCode::io_failed);
  CHECK(code_of(scratch.path("none/frames/"), {6, 4, 8}) == ErrorCode::io_failed);
  CHECK(code_of(scratch.path("f_%s.png"), {6, 4, 8}) == ErrorCode::usage);
  CHECK(code_of(scratch.path("f_%n%d.png"), {6, 4, 8}) == ErrorCode::usage);
  CHECK(code_of(scratch.path("clip.y4m"), {0, 4, 8}) == ErrorCode::usage);
  CHECK(code_of(scratch.path("clip.y4m"), {6, 4, std::nan("")}) == ErrorCode::usage);
  CHECK(code_of(scratch.path("clip.mp4"), {5, 4, 8}) == ErrorCode::usage);
  setenv("ORRERY_FFMPEG", "/nowhere/ffmpeg", 1);
  const auto missing = VideoSink::open(scratch.path("clip.mp4"), {6, 4, 8});
  unsetenv("ORRERY_FFMPEG");
  REQUIRE_FALSE(missing.ok());
  CHECK(missing.error().hint == "install ffmpeg or write .y4m");
  CHECK(scratch.entry_count() == 0);

  auto sink = VideoSink::open(scratch.path("clip.y4m"), {6, 4, 8});
  CHECK(sink.value().add_frame(frame_of(6, 3, 0)).error().code == ErrorCode::invalid_request);
  CHECK_FALSE(sink.value().finish().ok());
}

TEST_CASE("video sink: an encoder that dies is named with what it said", "[launch]") {
  const Scratch scratch;
  std::ofstream(scratch.path("ffmpeg")) << "#!/bin/sh\necho 'disk on fire' >&2\nexit 9\n";
  std::filesystem::permissions(scratch.path("ffmpeg"), std::filesystem::perms::owner_all);
  setenv("ORRERY_FFMPEG", scratch.path("ffmpeg").c_str(), 1);
  auto sink = VideoSink::open(scratch.path("clip.mp4"), {64, 64, 8});
  unsetenv("ORRERY_FFMPEG");
  Error error;
  if (!sink.ok()) {
    error = sink.error();
  } else {
    for (int i = 0; i < 10'000 && error.message.empty(); ++i)
      if (const auto added = sink.value().add_frame(frame_of(64, 64, 0)); !added.ok()) error = added.error();
  }
  CHECK(error.message == "ffmpeg ended with exit code 9: disk on fire");
  sink = error;
  CHECK(scratch.entry_count() == 1);  // The stand-in for ffmpeg.
}

TEST_CASE("video sink: mp4 keeps size, count and colours", "[launch]") {
  if (!has_ffmpeg()) {
    WARN("ffmpeg is not installed: mp4 was not tried");
    return;
  }
  const Scratch scratch;
  auto sink = VideoSink::open(scratch.path("clip.mp4"), {64, 48, 8});
  REQUIRE(sink.ok());
  for (unsigned i = 0; i < 9; ++i) REQUIRE(sink.value().add_frame(frame_of(64, 48, i)).ok());
  REQUIRE(sink.value().finish().ok());
  CHECK(scratch.entry_count() == 1);

  // Back to RGB by ffmpeg itself, with the matrix that the file names.
  auto decoder = Process::start({"ffmpeg", {"ffmpeg", "-nostdin", "-loglevel", "error", "-i", scratch.path("clip.mp4"), "-vf",
                                            "scale=in_color_matrix=bt709:in_range=tv", "-f", "rawvideo", "-pix_fmt", "rgb24", scratch.path("raw")}});
  REQUIRE(decoder.ok());
  REQUIRE(decoder.value().wait(std::chrono::seconds(60))->ok());
  const auto raw = whole(scratch.path("raw"));
  REQUIRE(raw.size() == 9U * 64 * 48 * 3);
  const auto pixel = [&](std::size_t frame, std::size_t y, std::size_t x, std::size_t channel) {
    return static_cast<int>(static_cast<unsigned char>(raw[((frame * 48 + y) * 64 + x) * 3 + channel]));
  };
  const int left[] = {230, 30, 44}, right[] = {20, 90, 200};
  for (std::size_t channel = 0; channel < 3; ++channel) {
    CHECK(std::abs(pixel(4, 20, 10, channel) - left[channel]) <= 10);
    CHECK(std::abs(pixel(4, 20, 50, channel) - right[channel]) <= 10);
  }
}

}  // namespace orrery::launch
