// VideoSink: finished frames to a file, one by one; the file appears under its name only when it is complete.
//
//   NAME.mp4             H.264 by ffmpeg, a child process fed with y4m on its stdin (yuv420p, BT.709, limited range)
//   NAME.y4m             uncompressed, 4:4:4, BT.601, full range: every colour survives within rounding
//   NAME/                a folder of frame_0000.png ...
//   NAME_%04d.png        numbered PNG files; NAME.png for a single frame
//
// `open` finds out before any work begins whether the file can be written at all: the folder, the size, ffmpeg.
// Whatever was written is removed again unless `finish` succeeded. Frames are digested on the way: SHA-256 over the
// raw RGB bytes of all frames in order is what two runs compare, because encoders differ.
//
// Cost: one frame in memory. Waiting: only for ffmpeg or the disk, at most 60 s at a time.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/digest.hpp"
#include "base/result.hpp"

namespace orrery::launch {

struct VideoShape {
  std::uint32_t width = 0;   // Pixels, 1 to 16384.
  std::uint32_t height = 0;
  double fps = 30;           // Above 0, at most 1000; kept to a thousandth.
  std::uint64_t frames = 0;  // How many will come; 0: not known.
  std::uint64_t frame_bytes() const { return std::uint64_t{width} * height * 3; }
};

enum class VideoKind : std::uint8_t { mp4, y4m, png };

/// From the path's ending. Fails with usage, naming the endings that are known.
Result<VideoKind> video_kind_of(const std::string& path);

struct VideoResult {
  std::string path;
  std::uint64_t frames = 0;
  std::string frames_sha256;
};

/// One file being written. Threads: one, which lives until the sink is gone (ffmpeg dies with it).
class VideoSink {
public:
  /// Fails with usage (unknown ending, a size that the format cannot have) or io_failed (folder missing or not
  /// writable, ffmpeg missing, a PNG folder that is not empty).
  static Result<VideoSink> open(const std::string& path, const VideoShape& shape);
  VideoSink(VideoSink&&) noexcept;
  VideoSink& operator=(VideoSink&&) noexcept;
  ~VideoSink();

  /// One frame, u8 [height][width][3], borrowed for the call. Fails with invalid_request for another size, with
  /// io_failed or timed_out when the encoder or the disk gives up; then nothing further is accepted.
  Status add_frame(std::span<const std::byte> rgb);

  /// Completes the file and gives it its name. At least one frame must have come.
  Result<VideoResult> finish();

  /// What a format has to do; implemented in video_sink.cpp.
  class Writer {
  public:
    virtual ~Writer() = default;
    virtual Status add_frame(std::span<const std::byte> rgb) = 0;
    virtual Status finish() = 0;
  };

private:
  VideoSink() = default;
  std::string path_;
  VideoShape shape_;
  std::unique_ptr<Writer> writer_;
  Sha256 digest_;
  std::uint64_t frames_ = 0;
  bool failed_ = false;
};

}  // namespace orrery::launch
