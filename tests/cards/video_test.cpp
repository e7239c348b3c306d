// Kernels of the video autoencoder, each against plain loops in double, and:
// - bits do not depend on threads, nor on how many frames a call has
// - frame by frame with history or caches gives the bits of one call
// - Haar patches come back; a picture of NaN is black

#include <catch2/catch.hpp>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/random.hpp"
#include "cards/kernels/kernels.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

using Attrs = std::map<Attr, double>;

Tensor normal(DType dtype, Shape shape, std::uint64_t seed) {
  std::vector<float> values(element_count(shape));
  fill_normal(seed, RandomStream::synthetic_weights, 0, values);
  Tensor tensor(dtype, std::move(shape));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32)
      tensor.as<float>()[i] = values[i];
    else
      tensor.as<std::uint16_t>()[i] = bf16_of(values[i]);
  }
  return tensor;
}

double at(const Tensor& tensor, std::uint64_t i) {
  return tensor.dtype() == DType::f32 ? static_cast<double>(tensor.as<float>()[i]) : static_cast<double>(f32_of_bf16(tensor.as<std::uint16_t>()[i]));
}

bool same_bits(const Tensor& a, const Tensor& b) { return a.bytes() == b.bytes() && std::memcmp(a.data(), b.data(), a.bytes()) == 0; }

/// A weight of a test: a vector or a packed matrix.
struct TestWeight {
  Tensor values;
  std::vector<float> padding;
  std::vector<std::byte> memory;
  std::unique_ptr<PackedMatrix> matrix;

  static TestWeight vector(std::uint64_t count, std::uint64_t seed) { return {normal(DType::f32, {count}, seed), {}, {}, nullptr}; }
  /// Scaled so that outputs are of order one.
  static TestWeight packed(std::uint64_t N, std::uint64_t K, DType dtype, std::uint64_t seed) {
    TestWeight weight{normal(DType::f32, {N, K}, seed), {}, {}, nullptr};
    for (auto& value : weight.values.as<float>()) value /= std::sqrt(static_cast<float>(K));
    if (dtype == DType::bf16)
      for (auto& value : weight.values.as<float>()) value = f32_of_bf16(bf16_of(value));
    weight.memory.resize(PackedMatrix::packed_bytes(N, K, dtype) + 64);
    auto* start = reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(weight.memory.data()) + 63) / 64 * 64);
    const auto read = [&](std::uint64_t begin, std::uint64_t end, std::byte* to) {
      convert(weight.values.data() + begin * K * 4, DType::f32, to, dtype, (end - begin) * K);
    };
    weight.matrix = std::make_unique<PackedMatrix>(PackedMatrix::pack(N, K, dtype, read, {start, PackedMatrix::packed_bytes(N, K, dtype)}));
    return weight;
  }
};

struct Run {
  Op op;
  std::vector<Tensor*> inputs;
  std::vector<Tensor*> outputs;
  std::vector<const TestWeight*> weights = {};
  Attrs attrs = {};
  std::uint32_t threads = 1;
  double latent_frame = 0;
};

Status run(const Run& run) {
  Command command;
  command.op = run.op;
  command.label = "test";
  command.attrs = run.attrs;
  const auto operands = [](const std::vector<Tensor*>& tensors) {
    std::vector<Operand> result;
    for (auto* tensor : tensors) result.push_back({tensor->data(), tensor->dtype(), &tensor->shape()});
    return result;
  };
  std::vector<WeightSpec> specs(run.weights.size());
  std::vector<Weight> weights;
  for (std::size_t i = 0; i < run.weights.size(); ++i) {
    const auto& values = run.weights[i]->values;
    specs[i].row_end = values.shape()[0];
    specs[i].column_end = element_count(values.shape()) / values.shape()[0];
    weights.push_back({&specs[i], values.data(), run.weights[i]->matrix.get()});
  }
  const auto inputs = operands(run.inputs), outputs = operands(run.outputs);
  Scalars scalars{};
  scalars[static_cast<std::size_t>(Scalar::latent_frame)] = run.latent_frame;
  ThreadPool pool(run.threads);
  const auto kernel = video_kernel_of(run.op);
  REQUIRE(kernel != nullptr);
  return kernel({command, inputs, outputs, weights, scalars, pool});
}

/// Frames [begin, end) of a [T,...] tensor.
Tensor frames_of(const Tensor& x, std::uint64_t begin, std::uint64_t end) {
  auto shape = x.shape();
  const auto bytes = x.bytes() / shape[0];
  shape[0] = end - begin;
  Tensor part(x.dtype(), shape);
  std::memcpy(part.data(), x.data() + begin * bytes, part.bytes());
  return part;
}

void put_frames(Tensor& x, std::uint64_t begin, const Tensor& part) {
  std::memcpy(x.data() + begin * (x.bytes() / x.shape()[0]), part.data(), part.bytes());
}

/// |got - expected| <= tolerance * (1 + |expected|) for all elements.
void check_near(const Tensor& got, const std::vector<double>& expected, double tolerance) {
  REQUIRE(element_count(got.shape()) == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto value = at(got, i);
    if (!(std::abs(value - expected[i]) <= tolerance * (1 + std::abs(expected[i])))) {
      CAPTURE(i, value, expected[i]);
      FAIL("element differs");
    }
  }
}

std::vector<double> plain_conv_spatial(const Tensor& x, const TestWeight& w, const TestWeight& bias, std::uint64_t stride, bool round) {
  const auto T = x.shape()[0], H = x.shape()[1], W = x.shape()[2], K = x.shape()[3], N = w.values.shape()[0];
  const auto out_h = stride == 1 ? H : H / 2, out_w = stride == 1 ? W : W / 2;
  std::vector<double> y;
  for (std::uint64_t t = 0; t < T; ++t)
    for (std::uint64_t h = 0; h < out_h; ++h)
      for (std::uint64_t v = 0; v < out_w; ++v)
        for (std::uint64_t n = 0; n < N; ++n) {
          double sum = at(bias.values, n);
          for (std::uint64_t i = 0; i < 3; ++i)
            for (std::uint64_t j = 0; j < 3; ++j) {
              const auto row = static_cast<std::int64_t>(h * stride + i) - (stride == 1 ? 1 : 0);
              const auto column = static_cast<std::int64_t>(v * stride + j) - (stride == 1 ? 1 : 0);
              if (row < 0 || column < 0 || row >= static_cast<std::int64_t>(H) || column >= static_cast<std::int64_t>(W)) continue;
              for (std::uint64_t k = 0; k < K; ++k) {
                auto value = at(x, ((t * H + static_cast<std::uint64_t>(row)) * W + static_cast<std::uint64_t>(column)) * K + k);
                if (round) value = static_cast<double>(f32_of_bf16(bf16_of(static_cast<float>(value))));
                sum += value * at(w.values, n * 9 * K + (i * 3 + j) * K + k);
              }
            }
          y.push_back(sum);
        }
  return y;
}

std::vector<double> plain_conv_temporal(const Tensor& x, const TestWeight& w, const TestWeight& bias, std::int64_t stride) {
  const auto T = x.shape()[0], pixels = x.shape()[1] * x.shape()[2], K = x.shape()[3], N = w.values.shape()[0];
  std::vector<double> y;
  for (std::int64_t t = 0; t < static_cast<std::int64_t>(T); t += stride)
    for (std::uint64_t p = 0; p < pixels; ++p)
      for (std::uint64_t n = 0; n < N; ++n) {
        double sum = at(bias.values, n);
        for (std::int64_t i = 0; i < 3; ++i)
          for (std::uint64_t k = 0; k < K; ++k)
            sum += at(x, (static_cast<std::uint64_t>(std::max<std::int64_t>(0, t + i - 2)) * pixels + p) * K + k) *
                   at(w.values, n * 3 * K + static_cast<std::uint64_t>(i) * K + k);
        y.push_back(sum);
      }
  return y;
}

}  // namespace

TEST_CASE("conv_spatial: agrees with plain loops", "[cards][video]") {
  struct Size {
    std::uint64_t T, H, W, K, N, stride;
  };
  for (const auto& s : {Size{1, 1, 1, 1, 1, 1}, Size{2, 3, 5, 4, 7, 1}, Size{1, 9, 8, 20, 33, 1}, Size{3, 1, 7, 8, 5, 1}, Size{2, 4, 6, 5, 3, 2},
                        Size{1, 8, 2, 16, 8, 2}})
    for (const auto dtype : {DType::f32, DType::bf16}) {
      CAPTURE(s.T, s.H, s.W, s.K, s.N, s.stride, name_of(dtype));
      auto x = normal(DType::f32, {s.T, s.H, s.W, s.K}, 1);
      const auto w = TestWeight::packed(s.N, 9 * s.K, dtype, 2), bias = TestWeight::vector(s.N, 3);
      Tensor y(DType::f32, {s.T, s.stride == 1 ? s.H : s.H / 2, s.stride == 1 ? s.W : s.W / 2, s.N});
      REQUIRE(run({Op::conv_spatial, {&x}, {&y}, {&w, &bias}, {{Attr::stride, static_cast<double>(s.stride)}}}).ok());
      check_near(y, plain_conv_spatial(x, w, bias, s.stride, dtype == DType::bf16), 1e-5);
    }
}

TEST_CASE("conv_temporal: agrees with plain loops", "[cards][video]") {
  for (const std::uint64_t T : {1U, 2U, 3U, 5U, 6U})
    for (const std::uint64_t stride : {1U, 2U}) {
      CAPTURE(T, stride);
      auto x = normal(DType::f32, {T, 3, 5, 6}, 4);
      const auto w = TestWeight::packed(9, 18, DType::f32, 5), bias = TestWeight::vector(9, 6);
      Tensor y(DType::f32, {(T - 1) / stride + 1, 3, 5, 9});
      REQUIRE(run({Op::conv_temporal, {&x}, {&y}, {&w, &bias}, {{Attr::stride, static_cast<double>(stride)}}}).ok());
      check_near(y, plain_conv_temporal(x, w, bias, static_cast<std::int64_t>(stride)), 1e-5);
    }
}

TEST_CASE("convolutions: bits do not depend on threads or frames per call", "[cards][video]") {
  for (const auto dtype : {DType::f32, DType::bf16}) {
    const std::uint64_t T = 5, H = 7, W = 11, K = 12, N = 40;
    auto x = normal(dtype, {T, H, W, K}, 7);
    const auto space = TestWeight::packed(N, 9 * K, dtype, 8), time = TestWeight::packed(N, 3 * K, dtype, 9), bias = TestWeight::vector(N, 10);
    Tensor y(dtype, {T, H, W, N}), z(dtype, {T, H, W, N});
    REQUIRE(run({Op::conv_spatial, {&x}, {&y}, {&space, &bias}, {{Attr::stride, 1}}}).ok());
    REQUIRE(run({Op::conv_temporal, {&x}, {&z}, {&time, &bias}, {{Attr::stride, 1}}}).ok());
    for (const std::uint32_t threads : {1U, 2U, 3U})
      for (const auto& cuts : {std::vector<std::uint64_t>{5}, {1, 1, 1, 1, 1}, {1, 2, 2}, {3, 2}, {1, 4}}) {
        Tensor y_parts(dtype, y.shape()), z_parts(dtype, z.shape()), history(dtype, {2, H, W, K});
        std::uint64_t begin = 0;
        for (const auto count : cuts) {
          auto part = frames_of(x, begin, begin + count);
          Tensor out(dtype, {count, H, W, N});
          REQUIRE(run({Op::conv_spatial, {&part}, {&out}, {&space, &bias}, {{Attr::stride, 1}}, threads}).ok());
          put_frames(y_parts, begin, out);
          REQUIRE(run({Op::conv_temporal, {&part, &history}, {&out}, {&time, &bias}, {{Attr::stride, 1}, {Attr::first, begin == 0 ? 1 : 0}}, threads}).ok());
          put_frames(z_parts, begin, out);
          begin += count;
        }
        CHECK(same_bits(y_parts, y));
        CHECK(same_bits(z_parts, z));
        CHECK(same_bits(history, frames_of(x, T - 2, T)));
      }
  }
}

TEST_CASE("group_norm: agrees with plain loops, whatever the threads and frames per call", "[cards][video]") {
  for (const std::uint64_t H : {1U, 5U, 40U}) {
    const std::uint64_t T = 3, W = 17, C = 20;
    auto x = normal(DType::f32, {T, H, W, C}, 11);
    for (std::uint64_t i = 0; i < H * W * C; ++i) x.as<float>()[i] = 3 * x.as<float>()[i] + 5;  // Frames of different moments.
    const auto weight = TestWeight::vector(C, 12), bias = TestWeight::vector(C, 13);
    const Attrs silu = {{Attr::eps, 1e-6}, {Attr::activation, static_cast<double>(Activation::silu)}};
    Tensor y(DType::f32, x.shape());
    REQUIRE(run({Op::group_norm, {&x}, {&y}, {&weight, &bias}, silu}).ok());
    std::vector<double> expected;
    for (std::uint64_t t = 0; t < T; ++t) {
      const auto n = H * W * C;
      double mean = 0, variance = 0;
      for (std::uint64_t i = 0; i < n; ++i) mean += at(x, t * n + i) / static_cast<double>(n);
      for (std::uint64_t i = 0; i < n; ++i) variance += std::pow(at(x, t * n + i) - mean, 2) / static_cast<double>(n);
      for (std::uint64_t i = 0; i < n; ++i) {
        const double v = (at(x, t * n + i) - mean) / std::sqrt(variance + 1e-6) * at(weight.values, i % C) + at(bias.values, i % C);
        expected.push_back(v / (1 + std::exp(-v)));
      }
    }
    check_near(y, expected, 1e-5);
    for (const std::uint32_t threads : {1U, 3U})
      for (std::uint64_t t = 0; t < T; ++t) {
        auto frame = frames_of(x, t, t + 1);
        Tensor out(DType::f32, frame.shape());
        REQUIRE(run({Op::group_norm, {&frame}, {&out}, {&weight, &bias}, silu, threads}).ok());
        CHECK(same_bits(out, frames_of(y, t, t + 1)));
      }
  }
}

TEST_CASE("temporal_attention: agrees with plain loops, and with caches frame by frame", "[cards][video]") {
  for (const auto dtype : {DType::f32, DType::bf16}) {
    const std::uint64_t T = 5, H = 3, W = 13, C = 20;
    auto q = normal(dtype, {T, H, W, C}, 14), k = normal(dtype, {T, H, W, C}, 15), v = normal(dtype, {T, H, W, C}, 16);
    Tensor o(dtype, q.shape());
    const Attrs attrs = {{Attr::scale, 0.3}};
    REQUIRE(run({Op::temporal_attention, {&q, &k, &v}, {&o}, {}, attrs}).ok());
    std::vector<double> expected(T * H * W * C);
    for (std::uint64_t t = 0; t < T; ++t)
      for (std::uint64_t p = 0; p < H * W; ++p) {
        double total = 0;
        std::vector<double> sum(C);
        for (std::uint64_t s = 0; s <= t; ++s) {
          double score = 0;
          for (std::uint64_t c = 0; c < C; ++c) score += at(q, (t * H * W + p) * C + c) * at(k, (s * H * W + p) * C + c);
          total += std::exp(0.3 * score);
          for (std::uint64_t c = 0; c < C; ++c) sum[c] += std::exp(0.3 * score) * at(v, (s * H * W + p) * C + c);
        }
        for (std::uint64_t c = 0; c < C; ++c) expected[(t * H * W + p) * C + c] = sum[c] / total;
      }
    check_near(o, expected, dtype == DType::f32 ? 1e-5 : 8e-3);

    // One frame, then `step` at a time: what an upsampled block has.
    for (const std::uint64_t step : {1U, 2U, 4U})
      for (const std::uint32_t threads : {1U, 2U}) {
        Tensor keys(dtype, q.shape()), values(dtype, q.shape()), parts(dtype, q.shape());
        std::uint64_t begin = 0;
        for (std::uint64_t latent = 0; begin < T; ++latent) {
          const auto end = latent == 0 ? 1 : begin + step;
          auto q1 = frames_of(q, begin, end), k1 = frames_of(k, begin, end), v1 = frames_of(v, begin, end);
          Tensor out(dtype, q1.shape());
          REQUIRE(run({Op::temporal_attention, {&q1, &k1, &v1, &keys, &values}, {&out}, {}, attrs, threads, static_cast<double>(latent)}).ok());
          put_frames(parts, begin, out);
          begin = end;
        }
        CHECK(same_bits(parts, o));
        CHECK(same_bits(keys, k));
      }
    Tensor keys(dtype, q.shape()), values(dtype, q.shape());
    CHECK_FALSE(run({Op::temporal_attention, {&q, &k, &v, &keys, &values}, {&o}, {}, attrs, 1, 1}).ok());  // Past the end of the caches.
  }
}

TEST_CASE("pools and repeats: agree with plain loops", "[cards][video]") {
  const std::uint64_t T = 4, H = 5, W = 6, C = 3;
  auto x = normal(DType::f32, {T, H, W, C}, 17);
  const auto value = [&](std::uint64_t t, std::uint64_t h, std::uint64_t w, std::uint64_t c) {
    return h < H && w < W ? at(x, ((t * H + h) * W + w) * C + c) : 0.0;
  };
  std::vector<double> expected;
  for (std::uint64_t t = 0; t < T; ++t)
    for (std::uint64_t h = 0; h < 3; ++h)
      for (std::uint64_t w = 0; w < 3; ++w)
        for (std::uint64_t c = 0; c < C; ++c)
          expected.push_back((value(t, 2 * h, 2 * w, c) + value(t, 2 * h + 1, 2 * w, c) + value(t, 2 * h, 2 * w + 1, c) + value(t, 2 * h + 1, 2 * w + 1, c)) / 4);
  Tensor pooled(DType::f32, {T, 3, 3, C});
  REQUIRE(run({Op::avg_pool_spatial, {&x}, {&pooled}, {}, {}, 2}).ok());
  check_near(pooled, expected, 1e-6);

  for (const std::uint64_t frames : {1U, 3U, 4U}) {
    auto part = frames_of(x, 0, frames);
    Tensor halved(DType::f32, {(frames + 1) / 2, H, W, C});
    REQUIRE(run({Op::avg_pool_temporal, {&part}, {&halved}, {}, {}, 2}).ok());
    expected.clear();
    for (std::uint64_t t = 0; t < (frames + 1) / 2; ++t)
      for (std::uint64_t i = 0; i < H * W * C; ++i) expected.push_back((at(x, (t == 0 ? 0 : 2 * t - 1) * H * W * C + i) + at(x, 2 * t * H * W * C + i)) / 2);
    check_near(halved, expected, 1e-6);
  }

  for (const std::uint64_t drop : {0U, 1U}) {
    Tensor repeated(DType::f32, {2 * T - drop, H, W, C});
    REQUIRE(run({Op::repeat_temporal, {&x}, {&repeated}, {}, {{Attr::drop, static_cast<double>(drop)}}, 2}).ok());
    for (std::uint64_t t = 0; t < 2 * T - drop; ++t) CHECK(same_bits(frames_of(repeated, t, t + 1), frames_of(x, (t + drop) / 2, (t + drop) / 2 + 1)));
  }

  Tensor doubled(DType::f32, {T, 2 * H, 2 * W, C});
  REQUIRE(run({Op::upsample_spatial, {&x}, {&doubled}, {}, {}, 2}).ok());
  for (std::uint64_t t = 0; t < T; ++t)
    for (std::uint64_t h = 0; h < 2 * H; ++h)
      for (std::uint64_t w = 0; w < 2 * W; ++w)
        for (std::uint64_t c = 0; c < C; ++c) CHECK(at(doubled, ((t * 2 * H + h) * 2 * W + w) * C + c) == value(t, h / 2, w / 2, c));

  Tensor frame(DType::f32, {1, H, W, C});
  REQUIRE(run({Op::take_frame, {&x}, {&frame}, {}, {}, 1, 2}).ok());
  CHECK(same_bits(frame, frames_of(x, 2, 3)));
  CHECK_FALSE(run({Op::take_frame, {&x}, {&frame}, {}, {}, 1, 4}).ok());
}

TEST_CASE("layouts: channels last and first are inverse", "[cards][video]") {
  auto x = normal(DType::f32, {5, 3, 7, 11}, 18);
  Tensor last(DType::f32, {3, 7, 11, 5}), back(DType::f32, x.shape());
  REQUIRE(run({Op::channels_last, {&x}, {&last}, {}, {}, 2}).ok());
  for (std::uint64_t c = 0; c < 5; ++c)
    for (std::uint64_t i = 0; i < 231; ++i) CHECK(at(last, i * 5 + c) == at(x, c * 231 + i));
  REQUIRE(run({Op::channels_first, {&last}, {&back}, {}, {}, 2}).ok());
  CHECK(same_bits(back, x));
}

TEST_CASE("patches: Haar follows its definition, and both kinds come back", "[cards][video]") {
  for (const bool haar : {true, false})
    for (const std::uint64_t p : {1U, 2U, 4U}) {
      CAPTURE(haar, p);
      const std::uint64_t frames = 1 + 2 * p, H = 3 * p, W = 2 * p;
      auto video = normal(DType::f32, {3, frames, H, W}, 19);
      Tensor patches(DType::f32, {3, 3, 2, 3 * p * p * p}), back(DType::f32, video.shape());
      const Attrs attrs = {{Attr::patch, static_cast<double>(p)}, {Attr::haar, haar ? 1 : 0}, {Attr::repeat_first, static_cast<double>(p - 1)}, {Attr::drop, static_cast<double>(p - 1)}};
      REQUIRE(run({Op::patch_video, {&video}, {&patches}, {}, attrs, 2}).ok());
      REQUIRE(run({Op::unpatch_video, {&patches}, {&back}, {}, attrs, 2}).ok());
      std::vector<double> expected;
      for (const auto value : video.as<float>()) expected.push_back(static_cast<double>(value));
      check_near(back, expected, 1e-5);
      const auto pixel = [&](std::uint64_t c, std::uint64_t t, std::uint64_t h, std::uint64_t w) {
        return at(video, ((c * frames + (t < p - 1 ? 0 : t - (p - 1))) * H + h) * W + w);
      };
      if (p == 2)
        for (std::uint64_t b = 0; b < 8; ++b)
          for (std::uint64_t c = 0; c < 3; ++c) {
            double sum = 0;
            for (std::uint64_t i = 0; i < 8; ++i) {
              const auto odd = ((b & i) >> 2 ^ (b & i) >> 1 ^ (b & i)) & 1;
              sum += (haar ? (odd ? -0.125 : 0.125) : (b == i ? 1 : 0)) * pixel(c, 2 + (i >> 2), 4 + (i >> 1 & 1), 2 + (i & 1));
            }
            // Patch (1, 2, 1).
            const auto channel = haar ? b * 3 + c : c * 8 + b;
            CHECK(at(patches, ((1 * 3 + 2) * 2 + 1) * 24 + channel) == Approx(sum).margin(1e-6));
          }
    }
}

TEST_CASE("frames_u8: truncates, clamps, and makes NaN black", "[cards][video]") {
  Tensor video(DType::f32, {3, 1, 1, 5});
  const float values[] = {-1, 1, 0, 5, -5, 0.999F, -0.999F, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 0.5F, 0, 0, 0, 0, 0};
  std::copy(std::begin(values), std::end(values), video.as<float>().begin());
  Tensor frames(DType::u8, {1, 1, 5, 3});
  REQUIRE(run({Op::frames_u8, {&video}, {&frames}}).ok());
  const std::uint8_t red[] = {0, 255, 127, 255, 0}, green[] = {254, 0, 0, 255, 191};
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(frames.as<std::uint8_t>()[3 * i] == red[i]);
    CHECK(frames.as<std::uint8_t>()[3 * i + 1] == green[i]);
    CHECK(frames.as<std::uint8_t>()[3 * i + 2] == 127);
  }
}

TEST_CASE("video kernels: operands that do not fit are refused", "[cards][video][fault]") {
  auto x = normal(DType::f32, {2, 4, 4, 3}, 20);
  const auto w = TestWeight::packed(5, 27, DType::f32, 21), bias = TestWeight::vector(5, 22);
  Tensor small(DType::f32, {2, 4, 4, 4}), odd(DType::f32, {2, 3, 4, 5});
  CHECK_FALSE(run({Op::conv_spatial, {&x}, {&small}, {&w, &bias}, {{Attr::stride, 1}}}).ok());
  CHECK_FALSE(run({Op::conv_spatial, {&x}, {&odd}, {&w, &bias}, {{Attr::stride, 1}}}).ok());
  CHECK_FALSE(run({Op::conv_spatial, {&x}, {&x}, {&w}, {{Attr::stride, 1}}}).ok());
  CHECK_FALSE(run({Op::conv_temporal, {&x}, {&odd}, {&w, &bias}, {{Attr::stride, 1}}}).ok());
  CHECK_FALSE(run({Op::upsample_spatial, {&x}, {&small}}).ok());
  CHECK_FALSE(run({Op::group_norm, {&x}, {&small}, {&bias, &bias}}).ok());
}
