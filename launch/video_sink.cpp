#include "launch/video_sink.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include <png.h>
#include <unistd.h>

#include "base/file.hpp"
#include "launch/processes.hpp"
#include "launch/y4m.hpp"

namespace orrery::launch {
namespace {

namespace fs = std::filesystem;
using Writer = VideoSink::Writer;

/// How long the encoder may take nothing, and how long it may need for the end of the file.
constexpr Duration patience = std::chrono::seconds(60);

class Y4mWriter final : public Writer {
public:
  static Result<std::unique_ptr<Writer>> open(const std::string& path, const VideoShape& shape) {
    ORRERY_TRY(file, AtomicFile::create(path));
    ORRERY_TRY_DONE(file.write(y4m_header(shape.width, shape.height, shape.fps, ColorSpace::bt601_full)));
    return std::unique_ptr<Writer>(new Y4mWriter(std::move(file)));
  }
  Status add_frame(std::span<const std::byte> rgb) override {
    write_y4m_frame(rgb, ColorSpace::bt601_full, frame_);
    return file_.write(frame_);
  }
  Status finish() override { return file_.commit(); }

private:
  explicit Y4mWriter(AtomicFile file) : file_(std::move(file)) {}
  AtomicFile file_;
  std::vector<std::byte> frame_;
};

/// Whether PATH has an executable ffmpeg (ORRERY_FFMPEG names another program).
std::string ffmpeg_program() {
  const char* named = std::getenv("ORRERY_FFMPEG");
  return named != nullptr && *named != '\0' ? named : "ffmpeg";
}

bool is_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return access(name.c_str(), X_OK) == 0;
  const char* path = std::getenv("PATH");
  std::string_view folders = path == nullptr ? "" : path;
  while (!folders.empty()) {
    const auto colon = std::min(folders.find(':'), folders.size());
    if (access((std::string(folders.substr(0, colon)) + "/" + name).c_str(), X_OK) == 0) return true;
    folders.remove_prefix(std::min(colon + 1, folders.size()));
  }
  return false;
}

class Mp4Writer final : public Writer {
public:
  static Result<std::unique_ptr<Writer>> open(const std::string& path, const VideoShape& shape) {
    if (shape.width % 2 != 0 || shape.height % 2 != 0)
      return Error{ErrorCode::usage, "mp4 needs an even width and height, not " + std::to_string(shape.width) + "x" + std::to_string(shape.height),
                   "write a .y4m file"};
    const auto program = ffmpeg_program();
    if (!is_program(program)) return Error{ErrorCode::io_failed, "ffmpeg, which encodes mp4, was not found", "install ffmpeg or write .y4m"};
    ORRERY_TRY(file, AtomicFile::create(path));
    const auto log = file.partial_path() + ".log";
    ProcessSpec spec{"ffmpeg", {program, "-hide_banner", "-nostdin", "-loglevel", "error", "-y", "-f", "yuv4mpegpipe", "-i", "pipe:0",
                                "-c:v", "libx264", "-preset", "medium", "-crf", "18", "-pix_fmt", "yuv420p",
                                "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv",
                                "-movflags", "+faststart", "-f", "mp4",
                                // "file:", or a name such as "a:b.mp4" would be a protocol.
                                "file:" + file.partial_path()}};
    spec.log_file = log;
    spec.with_input = true;
    auto process = Process::start(spec);
    if (!process.ok()) {
      unlink(log.c_str());
      return process.error();
    }
    std::unique_ptr<Mp4Writer> writer(new Mp4Writer(std::move(file), std::move(process).value(), log));
    const auto header = y4m_header(shape.width, shape.height, shape.fps, ColorSpace::bt709_limited);
    ORRERY_TRY_DONE(writer->feed(std::as_bytes(std::span(header))));
    return std::unique_ptr<Writer>(std::move(writer));
  }
  ~Mp4Writer() override {
    process_.reset();
    unlink(log_.c_str());
  }
  Status add_frame(std::span<const std::byte> rgb) override {
    write_y4m_frame(rgb, ColorSpace::bt709_limited, frame_);
    return feed(frame_);
  }
  Status finish() override {
    process_->close_input();
    const auto end = process_->wait(patience);
    if (!end) return Error{ErrorCode::timed_out, "ffmpeg did not finish the video within 60 s", "write .y4m to do without it"};
    if (!end->ok()) return with_log(Error{ErrorCode::io_failed, "ffmpeg " + end->text()});
    return file_.commit();
  }

private:
  Mp4Writer(AtomicFile file, Process process, std::string log) : file_(std::move(file)), process_(std::move(process)), log_(std::move(log)) {}
  Status feed(std::span<const std::byte> bytes) {
    const auto written = process_->write_input(bytes, patience);
    if (!written.ok()) return with_log(written.error());
    return Done{};
  }
  /// What ffmpeg itself says is the cause.
  Error with_log(Error error) const {
    const auto said = last_lines(log_, 3);
    if (!said.empty()) error.message += ": " + said;
    error.hint = "write .y4m to do without it";
    return error;
  }

  AtomicFile file_;
  std::optional<Process> process_;  // Optional, so that it can go before its files do.
  std::string log_;
  std::vector<std::byte> frame_;
};

/// NAME/ or NAME_%04d.png or NAME.png. Frames lie in one hidden folder beside their final place until the end.
class PngWriter final : public Writer {
public:
  static Result<std::unique_ptr<Writer>> open(const std::string& path, const VideoShape& shape) {
    std::unique_ptr<PngWriter> writer(new PngWriter(shape));
    const auto bare = path.ends_with('/') ? path.substr(0, path.find_last_not_of('/') + 1) : path;
    if (bare.empty()) return Error{ErrorCode::usage, "'" + path + "' cannot be a folder of frames"};
    std::error_code failed;
    if (path.ends_with('/')) {
      if (fs::exists(bare, failed) && (!fs::is_directory(bare, failed) || !fs::is_empty(bare, failed)))
        return Error{ErrorCode::io_failed, "'" + path + "' is there already and not an empty folder", "name a new one"};
      writer->folder_ = bare;
    } else {
      const auto percent = path.find('%');
      writer->prefix_ = path.substr(0, percent == std::string::npos ? path.size() - 4 : percent);
      if (percent != std::string::npos) {
        // %d, %4d or %04d, once; nothing else, because this is text of strangers and not a format to run.
        const auto d = path.find('d', percent);
        const auto digits = d == std::string::npos ? "x" : path.substr(percent + 1, d - percent - 1);
        if (digits.size() > 2 || !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }) ||
            path.find('%', percent + 1) != std::string::npos || path.find('/', percent) != std::string::npos)
          return Error{ErrorCode::usage, "'" + path + "' is not a pattern for numbered frames", "write e.g. frame_%04d.png"};
        writer->digits_ = digits.empty() ? 1 : std::max(1, std::atoi(digits.c_str()));
        writer->suffix_ = path.substr(d + 1);
      } else {
        writer->suffix_ = ".png";
        writer->single_ = true;
        if (shape.frames > 1) return only_one();
      }
    }
    writer->partial_ = bare + ".partial-" + std::to_string(getpid());
    if (!fs::create_directory(writer->partial_, failed))
      return Error{ErrorCode::io_failed, "folder '" + writer->partial_ + "' cannot be made: " + (failed ? failed.message() : "it is there already"),
                   "check that the folder above it exists and can be written"};
    writer->made_ = true;
    return std::unique_ptr<Writer>(std::move(writer));
  }
  ~PngWriter() override {
    std::error_code ignored;
    if (made_) fs::remove_all(partial_, ignored);
  }
  Status add_frame(std::span<const std::byte> rgb) override {
    if (single_ && count_ == 1) return only_one();
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = shape_.width;
    image.height = shape_.height;
    image.format = PNG_FORMAT_RGB;
    const auto name = partial_name(count_);
    if (png_image_write_to_file(&image, name.c_str(), 0, rgb.data(), 0, nullptr) == 0)
      return Error{ErrorCode::io_failed, "'" + name + "' could not be written: " + image.message};
    ++count_;
    return Done{};
  }
  Status finish() override {
    std::error_code failed;
    if (!folder_.empty()) {
      fs::rename(partial_, folder_, failed);  // Over an empty folder too.
      if (failed) return Error{ErrorCode::io_failed, "the frames could not be moved to '" + folder_ + "': " + failed.message()};
      made_ = false;
      return Done{};
    }
    for (std::uint64_t i = 0; i < count_; ++i) {
      fs::rename(partial_name(i), single_ ? prefix_ + suffix_ : prefix_ + numbered(i, digits_) + suffix_, failed);
      if (failed) return Error{ErrorCode::io_failed, "frame " + std::to_string(i) + " could not be moved into place: " + failed.message()};
    }
    return Done{};
  }

private:
  explicit PngWriter(const VideoShape& shape) : shape_(shape) {}
  static Error only_one() {
    return {ErrorCode::usage, "one .png file holds one frame only", "write a folder/ or a pattern such as frame_%04d.png"};
  }
  static std::string numbered(std::uint64_t number, int digits) {
    auto text = std::to_string(number);
    if (text.size() < static_cast<std::size_t>(digits)) text.insert(0, static_cast<std::size_t>(digits) - text.size(), '0');
    return text;
  }
  std::string partial_name(std::uint64_t number) const { return partial_ + "/frame_" + numbered(number, 4) + ".png"; }

  VideoShape shape_;
  std::string folder_;           // NAME/: the final folder.
  std::string prefix_, suffix_;  // Else: what stands around the number.
  int digits_ = 4;
  bool single_ = false, made_ = false;
  std::string partial_;
  std::uint64_t count_ = 0;
};

}  // namespace

Result<VideoKind> video_kind_of(const std::string& path) {
  if (path.ends_with(".mp4")) return VideoKind::mp4;
  if (path.ends_with(".y4m")) return VideoKind::y4m;
  if (path.ends_with(".png") || path.ends_with('/')) return VideoKind::png;
  return Error{ErrorCode::usage, "'" + path + "' does not say which kind of video to write", "end it with .mp4, .y4m, _%04d.png, or / for a folder of PNG files"};
}

Result<VideoSink> VideoSink::open(const std::string& path, const VideoShape& shape) {
  ORRERY_TRY(kind, video_kind_of(path));
  constexpr std::uint32_t side_max = 16384;
  if (shape.width == 0 || shape.height == 0 || shape.width > side_max || shape.height > side_max)
    return Error{ErrorCode::usage, "a video of " + std::to_string(shape.width) + "x" + std::to_string(shape.height) + " cannot be written", "each side 1 to 16384"};
  if (!(shape.fps >= 0.001 && shape.fps <= 1000)) return Error{ErrorCode::usage, "the frame rate must lie between 0.001 and 1000"};
  std::error_code unknown;
  if (kind != VideoKind::png && fs::is_directory(path, unknown)) return Error{ErrorCode::io_failed, "'" + path + "' is a folder", "name a file"};
  const auto bare = path.ends_with('/') ? path.substr(0, path.find_last_not_of('/') + 1) : path;
  if (!bare.empty()) remove_abandoned_partials(bare);
  auto writer = kind == VideoKind::mp4   ? Mp4Writer::open(path, shape)
                : kind == VideoKind::y4m ? Y4mWriter::open(path, shape)
                                         : PngWriter::open(path, shape);
  if (!writer.ok()) return writer.error();
  VideoSink sink;
  sink.path_ = path;
  sink.shape_ = shape;
  sink.writer_ = std::move(writer).value();
  return sink;
}

VideoSink::VideoSink(VideoSink&&) noexcept = default;
VideoSink& VideoSink::operator=(VideoSink&&) noexcept = default;
VideoSink::~VideoSink() = default;

Status VideoSink::add_frame(std::span<const std::byte> rgb) {
  if (failed_) return Error{ErrorCode::io_failed, "the video '" + path_ + "' failed before"};
  if (rgb.size() != shape_.frame_bytes())
    return Error{ErrorCode::invalid_request, "a frame of " + std::to_string(rgb.size()) + " bytes for a video of " + std::to_string(shape_.width) + "x" +
                                                 std::to_string(shape_.height) + " RGB pixels"};
  auto added = writer_->add_frame(rgb);
  failed_ = !added.ok();
  if (failed_) return added;
  digest_.update(rgb);
  ++frames_;
  return Done{};
}

Result<VideoResult> VideoSink::finish() {
  if (failed_ || frames_ == 0) return Error{ErrorCode::io_failed, "the video '" + path_ + "' has no complete frames"};
  failed_ = true;  // Nothing is accepted from here on.
  ORRERY_TRY_DONE(writer_->finish());
  writer_.reset();
  return VideoResult{path_, frames_, digest_.finish()};
}

}  // namespace orrery::launch
