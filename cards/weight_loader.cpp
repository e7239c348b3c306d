#include "cards/weight_loader.hpp"

#include <algorithm>
#include <cstring>
#include <optional>

namespace orrery::cards {
namespace {

constexpr std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 63) / 64 * 64; }

bool is_matrix(WeightForm form) {
  return form == WeightForm::matrix || form == WeightForm::conv_spatial || form == WeightForm::conv_temporal;
}

std::uint64_t taps_of(WeightForm form) {
  return form == WeightForm::conv_spatial ? 9 : form == WeightForm::conv_temporal ? 3 : 1;
}

/// Rows and columns of the 2-D view [first extent, the rest].
std::uint64_t rows_of(const Shape& shape) { return shape.empty() ? 1 : shape[0]; }
std::uint64_t columns_of(const Shape& shape) { return shape.empty() ? 1 : element_count({shape.begin() + 1, shape.end()}); }

/// What the specification itself must satisfy, before any tensor is looked at.
Status check_spec(const WeightSpec& spec) {
  const auto complain = [&](const std::string& what) -> Status {
    return Error{ErrorCode::invalid_model, "weight " + spec.tensor + ": " + what};
  };
  if (!checked_bytes(spec.shape, DType::f64).has_value()) return complain("its shape " + text_of(spec.shape) + " is too large");
  const auto rows = rows_of(spec.shape), columns = columns_of(spec.shape);
  if (spec.row_begin >= spec.row_end || spec.row_end > rows || spec.column_begin >= spec.column_end || spec.column_end > columns)
    return complain("rows " + std::to_string(spec.row_begin) + " to " + std::to_string(spec.row_end) + " and columns " +
                    std::to_string(spec.column_begin) + " to " + std::to_string(spec.column_end) + " are not inside " +
                    text_of(spec.shape));
  const bool can = spec.dtype == DType::f32 || (spec.dtype == DType::bf16 && spec.form != WeightForm::vector) ||
                   (spec.dtype == DType::i8 && spec.form == WeightForm::matrix);
  if (!can) return Error{ErrorCode::unsupported, "weight " + spec.tensor + " cannot be kept as " + std::string(name_of(spec.dtype))};
  if (spec.dtype == DType::i8 && spec.columns() > int8_depth_max)
    return Error{ErrorCode::unsupported,
                 "weight " + spec.tensor + " has rows of " + std::to_string(spec.columns()) + " elements; int8 products may have " + std::to_string(int8_depth_max),
                 "use quantisation: none, or more slices"};
  const auto taps = taps_of(spec.form);
  if (taps > 1 && (spec.column_begin != 0 || spec.column_end != columns || columns % taps != 0))
    return complain("a convolution's columns cannot be split");
  return Done{};
}

}  // namespace

std::uint64_t bytes_on_card(const WeightSpec& spec) {
  return is_matrix(spec.form) ? PackedMatrix::packed_bytes(spec.rows(), spec.columns(), spec.dtype) : aligned(spec.bytes());
}

std::uint64_t bytes_on_card(const WeightSet& set) {
  std::uint64_t bytes = 0;
  for (const auto& spec : set.weights) bytes += bytes_on_card(spec);
  return bytes;
}

namespace {

/// Reads rows of one tensor's part in the dtype of its spec; as f32 where that is i8.
class RowSource {
public:
  RowSource(const WeightSpec& spec, const TensorView& tensor, const WeightSource& source)
      : spec_(spec),
        dtype_(spec.dtype == DType::i8 ? DType::f32 : spec.dtype),
        tensor_(tensor),
        source_(source),
        row_bytes_(columns_of(spec.shape) * size_of(tensor.dtype)) {}

  /// Rows [begin, end) of the part, compact. Their pages are released afterwards.
  void read(std::uint64_t begin, std::uint64_t end, std::byte* to) {
    const auto count = spec_.columns();
    const auto taps = taps_of(spec_.form);
    for (auto row = begin; row < end; ++row, to += count * size_of(dtype_)) {
      const auto* from = row_data(row) + spec_.column_begin * size_of(tensor_.dtype);
      if (taps == 1) {
        read_row(from, count, to);
        continue;
      }
      // (channel, tap) to (tap, channel).
      row_.resize(count * size_of(dtype_));
      read_row(from, count, row_.data());
      const auto channels = count / taps;
      if (dtype_ == DType::f32)
        transpose<std::uint32_t>(row_.data(), to, channels, taps);
      else
        transpose<std::uint16_t>(row_.data(), to, channels, taps);
    }
    release(begin, end);
  }

  void release_all() { release(0, spec_.rows()); }

private:
  const std::byte* row_data(std::uint64_t row) const { return tensor_.data + (spec_.row_begin + row) * row_bytes_; }
  void release(std::uint64_t begin, std::uint64_t end) {
    source_.release(std::span(row_data(begin), (end - begin) * row_bytes_));
  }

  template <class T>
  static void transpose(const std::byte* from, std::byte* to, std::uint64_t channels, std::uint64_t taps) {
    for (std::uint64_t tap = 0; tap < taps; ++tap)
      for (std::uint64_t channel = 0; channel < channels; ++channel)
        std::memcpy(to + (tap * channels + channel) * sizeof(T), from + (channel * taps + tap) * sizeof(T), sizeof(T));
  }

  void read_row(const std::byte* from, std::uint64_t count, std::byte* to) {
    if (tensor_.dtype == DType::f16) {
      const auto wide = copy_as_f32({from, DType::f16, {count}});
      convert(wide.value().data(), DType::f32, to, dtype_, count);
      return;
    }
    // A file may place its tensors at any byte.
    if (reinterpret_cast<std::uintptr_t>(from) % size_of(tensor_.dtype) != 0) {
      aligned_.resize(count * size_of(tensor_.dtype));
      std::memcpy(aligned_.data(), from, aligned_.size());
      from = aligned_.data();
    }
    convert(from, tensor_.dtype, to, dtype_, count);
  }

  const WeightSpec& spec_;
  const DType dtype_;
  const TensorView& tensor_;
  const WeightSource& source_;
  const std::uint64_t row_bytes_;
  std::vector<std::byte> row_, aligned_;
};

}  // namespace

Status check(const WeightSet& set, const WeightSource& source) {
  for (const auto& spec : set.weights) {
    ORRERY_TRY_DONE(check_spec(spec));
    ORRERY_TRY(tensor, source.tensor(spec.tensor));
    if (tensor.shape != spec.shape)
      return Error{ErrorCode::invalid_model, "tensor " + spec.tensor + " has shape " + text_of(tensor.shape) + ", but " +
                                                 set.component + " needs " + text_of(spec.shape),
                   "the config.json and the weights do not belong together"};
    if (tensor.dtype != DType::f32 && tensor.dtype != DType::bf16 && tensor.dtype != DType::f16)
      return Error{ErrorCode::unsupported, "tensor " + spec.tensor + " has type " + std::string(name_of(tensor.dtype)) +
                                               "; weights may be f32, bf16 or f16"};
  }
  return Done{};
}

Result<PlacedWeight> place(const WeightSpec& spec, const WeightSource& source, std::span<std::byte> memory,
                           const std::function<bool(std::uint64_t bytes)>& progress) {
  ORRERY_TRY(tensor, source.tensor(spec.tensor));
  RowSource rows(spec, tensor, source);
  bool cancelled = false;
  const auto read = [&](std::uint64_t begin, std::uint64_t end, std::byte* target) {
    if (cancelled) return;
    rows.read(begin, end, target);
    cancelled = progress && !progress((end - begin) * spec.columns() * size_of(spec.dtype));
  };
  PlacedWeight placed{{&spec, nullptr, nullptr}, nullptr};
  if (is_matrix(spec.form)) {
    placed.matrix = std::make_unique<PackedMatrix>(PackedMatrix::pack(spec.rows(), spec.columns(), spec.dtype, read, memory));
    placed.weight.matrix = placed.matrix.get();
  } else {
    for (std::uint64_t begin = 0; begin < spec.rows() && !cancelled; begin += block_columns)
      read(begin, std::min(spec.rows(), begin + block_columns), memory.data() + begin * spec.columns() * size_of(spec.dtype));
    placed.weight.data = memory.data();
  }
  rows.release_all();
  if (cancelled) return Error{ErrorCode::cancelled, "loading the weights was cancelled"};
  return placed;
}

Result<std::shared_ptr<const LoadedWeights>> load(std::shared_ptr<const WeightSet> set, const WeightSource& source,
                                                  DeviceMemory& memory,
                                                  const std::function<bool(std::uint64_t bytes_done)>& progress) {
  for (const auto& spec : set->weights) ORRERY_TRY_DONE(check_spec(spec));
  auto loaded = std::make_shared<LoadedWeights>();
  ORRERY_TRY(block, memory.reserve(bytes_on_card(*set), "the weights of " + set->component));
  loaded->block = std::move(block);
  ORRERY_TRY_DONE(check(*set, source));
  loaded->set = set;
  loaded->weights.reserve(set->weights.size());
  std::uint64_t offset = 0, done = 0;
  for (const auto& spec : set->weights) {
    const auto bytes = bytes_on_card(spec);
    auto placed = place(spec, source, loaded->block.bytes().subspan(offset, bytes), [&](std::uint64_t more) {
      done += more;
      return !progress || progress(done);
    });
    if (!placed.ok()) {
      if (placed.error().code != ErrorCode::cancelled) return placed.error();
      return Error{ErrorCode::cancelled, "loading the weights of " + set->component + " was cancelled"};
    }
    loaded->weights.push_back(placed.value().weight);
    if (placed.value().matrix) loaded->matrices.push_back(std::move(placed.value().matrix));
    offset += bytes;
  }
  return std::shared_ptr<const LoadedWeights>(std::move(loaded));
}

}  // namespace orrery::cards
