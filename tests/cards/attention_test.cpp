// Holds: attention, head norm with rotation and relative bias against plain loops in double; bits independent of
// which queries, heads and slices are computed together and of threads.
//
// Tolerance of attention in f32: scores carry about head_dim roundings, weights as many relative errors as the score
// is off, and values are averages: 1e-5 of the largest value covers the sizes here. In bf16 the softmax's weights may be
// rounded, each by 2^-9 relative, which moves an average of values by at most 2^-9 of the largest; outputs add 2^-8.

#include "cards/kernels/kernels.hpp"
#include "tests/support/one_op.hpp"

using namespace orrery;
using namespace orrery::cards;

namespace {

struct Attention {
  Tensor q, k, v;
  std::uint64_t head_dim = 16;
  double scale = 1;
  double zero_keys = 0;
  std::optional<Tensor> bias, mask;

  Tensor run(std::uint32_t threads = 1) const {
    OneOp op(Op::attention);
    op.input(q);
    op.input(k);
    op.input(v);
    if (bias) op.input(*bias);
    if (mask) op.input(*mask);
    op.attr(Attr::head_dim, static_cast<double>(head_dim)).attr(Attr::scale, scale).attr(Attr::zero_keys, zero_keys);
    op.attr(Attr::has_bias, bias ? 1 : 0).attr(Attr::has_mask, mask ? 1 : 0);
    const auto o = op.output(q.dtype(), q.shape());
    op.run(threads);
    return op.result(o);
  }

  std::vector<double> exact() const {
    const auto S = q.shape()[0], Nq = q.shape()[1], w = q.shape()[2], Nk = k.shape()[1], heads = w / head_dim;
    const auto n = std::max(Nq, Nk);
    const auto qs = floats_of(q), ks = floats_of(k), vs = floats_of(v);
    const auto biases = bias ? floats_of(*bias) : std::vector<float>();
    const auto masks = mask ? floats_of(*mask) : std::vector<float>();
    std::vector<double> out(S * Nq * w);
    for (std::uint64_t s = 0; s < S; ++s)
      for (std::uint64_t h = 0; h < heads; ++h)
        for (std::uint64_t i = 0; i < Nq; ++i) {
          std::vector<double> scores(Nk);
          double most = zero_keys > 0 ? 0 : -1e300;
          for (std::uint64_t j = 0; j < Nk; ++j) {
            double sum = 0;
            for (std::uint64_t d = 0; d < head_dim; ++d)
              sum += double{qs[(s * Nq + i) * w + h * head_dim + d]} * double{ks[(s * Nk + j) * w + h * head_dim + d]};
            scores[j] = sum * scale;
            if (bias) scores[j] += double{biases[(s * heads + h) * (2 * n - 1) + j + n - 1 - i]};
            if (mask && masks[j] == 0) scores[j] = -1e300;
            most = std::max(most, scores[j]);
          }
          double total = zero_keys * std::exp(-most);
          std::vector<double> o(head_dim, 0);
          for (std::uint64_t j = 0; j < Nk; ++j) {
            const auto weight = scores[j] == -1e300 ? 0 : std::exp(scores[j] - most);
            total += weight;
            for (std::uint64_t d = 0; d < head_dim; ++d) o[d] += weight * double{vs[(s * Nk + j) * w + h * head_dim + d]};
          }
          for (std::uint64_t d = 0; d < head_dim; ++d) out[(s * Nq + i) * w + h * head_dim + d] = o[d] / total;
        }
    return out;
  }
};

Attention random_attention(DType dtype, std::uint64_t S, std::uint64_t Nq, std::uint64_t Nk, std::uint64_t heads, std::uint64_t head_dim) {
  Attention attention;
  attention.q = random_tensor(dtype, {S, Nq, heads * head_dim}, 1);
  attention.k = random_tensor(dtype, {S, Nk, heads * head_dim}, 2);
  attention.v = random_tensor(dtype, {S, Nk, heads * head_dim}, 3);
  attention.head_dim = head_dim;
  attention.scale = 1 / std::sqrt(static_cast<double>(head_dim));
  return attention;
}

/// Rows [begin, end) of every slice, columns [first, last).
Tensor cut(const Tensor& x, std::uint64_t s_begin, std::uint64_t s_end, std::uint64_t begin, std::uint64_t end, std::uint64_t first, std::uint64_t last) {
  const auto N = x.shape()[1], w = x.shape()[2], size = size_of(x.dtype());
  Tensor part(x.dtype(), {s_end - s_begin, end - begin, last - first});
  auto* to = part.data();
  for (auto s = s_begin; s < s_end; ++s)
    for (auto i = begin; i < end; ++i, to += (last - first) * size)
      std::memcpy(to, x.data() + ((s * N + i) * w + first) * size, (last - first) * size);
  return part;
}

}  // namespace

TEST_CASE("attention: agrees with plain softmax over all keys", "[cards][attention]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  struct Size { std::uint64_t S, Nq, Nk, heads, head_dim; };
  for (const auto& size : {Size{1, 1, 1, 1, 4}, Size{2, 65, 130, 2, 16}, Size{1, 300, 300, 1, 64}, Size{3, 10, 257, 1, 24}, Size{1, 70, 128, 2, 128}}) {
    const auto attention = random_attention(dtype, size.S, size.Nq, size.Nk, size.heads, size.head_dim);
    float largest = 0;
    for (const auto value : floats_of(attention.v)) largest = std::max(largest, std::abs(value));
    const auto rounded = dtype == DType::bf16;
    require_near(floats_of(attention.run()), attention.exact(), rounded ? 0x1p-8 : 0, 3e-5 + (rounded ? 0x1p-9 * largest : 0));
  }
}

TEST_CASE("attention: a bias by distance, a key mask and zero keys take part", "[cards][attention]") {
  auto attention = random_attention(DType::f32, 2, 140, 140, 2, 16);
  SECTION("bias") { attention.bias = random_tensor(DType::f32, {4, 279}, 9); }
  SECTION("mask") {
    std::vector<float> mask(140, 0);
    for (std::size_t j = 0; j < 77; ++j) mask[j] = 1;
    attention.mask = tensor_of(DType::f32, {140}, mask);
  }
  SECTION("masked first block") {
    std::vector<float> mask(140, 0);
    for (std::size_t j = 130; j < 140; ++j) mask[j] = 1;
    attention.mask = tensor_of(DType::f32, {140}, mask);
  }
  SECTION("zero keys") { attention.zero_keys = 372; }
  SECTION("all") {
    attention.bias = random_tensor(DType::f32, {4, 279}, 9);
    std::vector<float> mask(140, 1);
    mask[5] = 0;
    attention.mask = tensor_of(DType::f32, {140}, mask);
    attention.zero_keys = 3;
  }
  SECTION("large scores") { attention.scale = 40; }
  require_near(floats_of(attention.run()), attention.exact(), 0, attention.scale > 1 ? 1e-3 : 3e-5);
}

TEST_CASE("attention: zero keys give the same as key rows of zeros", "[cards][attention]") {
  auto shortcut = random_attention(DType::f32, 1, 33, 20, 2, 16);
  auto padded = shortcut;
  padded.k = Tensor(DType::f32, {1, 512, 32});
  padded.v = Tensor(DType::f32, {1, 512, 32});
  std::memcpy(padded.k.data(), shortcut.k.data(), shortcut.k.bytes());
  std::memcpy(padded.v.data(), shortcut.v.data(), shortcut.v.bytes());
  shortcut.zero_keys = 492;
  const auto wanted = floats_of(padded.run());
  require_near(floats_of(shortcut.run()), {wanted.begin(), wanted.end()}, 0, 1e-6);
}

TEST_CASE("attention: bits depend on no other query, head, slice or thread", "[cards][attention][bits]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const auto attention = random_attention(dtype, 3, 700, 300, 2, 32);
  const auto whole = attention.run();
  for (const std::uint32_t threads : {2, 3}) CHECK(same_bits(attention.run(threads), whole));
  const auto part_of = [&](std::uint64_t s0, std::uint64_t s1, std::uint64_t i0, std::uint64_t i1, std::uint64_t c0, std::uint64_t c1) {
    auto part = attention;
    part.q = cut(attention.q, s0, s1, i0, i1, c0, c1);
    part.k = cut(attention.k, s0, s1, 0, 300, c0, c1);
    part.v = cut(attention.v, s0, s1, 0, 300, c0, c1);
    return same_bits(part.run(), cut(whole, s0, s1, i0, i1, c0, c1));
  };
  CHECK(part_of(1, 2, 0, 700, 0, 64));    // One slice.
  CHECK(part_of(0, 3, 0, 700, 32, 64));   // One head.
  CHECK(part_of(0, 3, 0, 1, 0, 64));      // One query.
  CHECK(part_of(0, 3, 101, 333, 0, 64));  // Queries at other places of their tiles.
}

TEST_CASE("attention: working memory does not grow with queries and keys", "[cards][attention]") {
  // 14,080 tokens are a video of 121 frames at 704 x 1280, 56,320 four times that; a matrix of scores would take 12 GB.
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const std::uint64_t head_dim = 128;
  Command command;
  command.op = Op::attention;
  command.attrs = {{Attr::head_dim, static_cast<double>(head_dim)}, {Attr::scale, 0.1}};
  const auto scratch_of = [&](std::uint64_t queries, std::uint64_t keys) {
    Tensor q(dtype, {1, queries, head_dim}), k(dtype, {1, keys, head_dim}), v(dtype, {1, keys, head_dim}), o(dtype, {1, queries, head_dim});
    const Operand inputs[] = {{q.data(), dtype, &q.shape()}, {k.data(), dtype, &k.shape()}, {v.data(), dtype, &v.shape()}};
    const Operand outputs[] = {{o.data(), dtype, &o.shape()}};
    ThreadPool pool(2);
    const Scalars scalars{};
    REQUIRE(kernel_of(Op::attention)({command, inputs, outputs, {}, scalars, pool}).ok());
    return pool.scratch_bytes();
  };
  const auto least = scratch_of(1, 128);
  CHECK(scratch_of(1, 14'080) == least);
  CHECK(scratch_of(1, 56'320) == least);
  for (const std::uint64_t queries : {14'080, 56'320}) CHECK(scratch_of(queries, 128) <= 2 * (std::uint64_t{1} << 20));  // 1 MiB a thread.
}

TEST_CASE("head_norm_rope: normalises each head and rotates its halves", "[cards][attention]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const auto head_dim = GENERATE(std::uint64_t{4}, std::uint64_t{24}, std::uint64_t{128});
  const bool rotate = GENERATE(true, false);
  const std::uint64_t S = 2, R = 67, heads = 2, width = heads * head_dim, half = head_dim / 2;
  const auto x = random_tensor(dtype, {S, R, width}, 1);
  const auto weight = random_tensor(DType::f32, {head_dim}, 2);
  const auto cos = random_tensor(DType::f32, {R, half}, 3), sin = random_tensor(DType::f32, {R, half}, 4);
  OneOp op(Op::head_norm_rope);
  const auto slot = op.input(x);
  if (rotate) {
    op.input(cos);
    op.input(sin);
  }
  op.weight(weight, WeightForm::vector, DType::f32);
  op.attr(Attr::eps, 1e-5).attr(Attr::head_dim, static_cast<double>(head_dim));
  op.output_in(slot);
  op.run(2);
  const auto in = floats_of(x), w = floats_of(weight), c = floats_of(cos), s = floats_of(sin);
  std::vector<double> wanted(in.size()), bound(in.size());
  for (std::uint64_t row = 0; row < S * R; ++row)
    for (std::uint64_t h = 0; h < heads; ++h) {
      const auto at = row * width + h * head_dim;
      double squares = 0;
      for (std::uint64_t d = 0; d < head_dim; ++d) squares += double{in[at + d]} * double{in[at + d]};
      const auto factor = 1 / std::sqrt(squares / static_cast<double>(head_dim) + 1e-5);
      for (std::uint64_t d = 0; d < head_dim; ++d) wanted[at + d] = in[at + d] * factor * w[d];
      if (rotate)
        for (std::uint64_t d = 0; d < half; ++d) {
          const auto a = wanted[at + d], b = wanted[at + half + d], cc = double{c[row % R * half + d]}, ss = double{s[row % R * half + d]};
          wanted[at + d] = a * cc - b * ss;
          wanted[at + half + d] = b * cc + a * ss;
        }
      for (std::uint64_t d = 0; d < head_dim; ++d) bound[at + d] = std::abs(wanted[at + d]) * (dtype == DType::bf16 ? 0x1p-8 : 1e-6) + 2e-5;
    }
  require_near(op.values(slot), wanted, bound);
}

TEST_CASE("relative_bias: places table columns of the owned heads by T5's buckets", "[cards][attention]") {
  const std::uint64_t n = 200, buckets = 32, V = 4, heads = 2;
  const auto table = random_tensor(DType::f32, {buckets, V * heads}, 1);
  OneOp op(Op::relative_bias);
  op.weight(table, WeightForm::table, DType::f32);
  op.attr(Attr::rows, n).attr(Attr::buckets, buckets).attr(Attr::max_distance, 128).attr(Attr::heads, heads);
  op.slices({1, 3});
  const auto slot = op.output(DType::f32, {2 * heads, 2 * n - 1});
  op.run();
  const auto got = op.values(slot), values = floats_of(table);
  // Buckets of a distance d > 0 by hand: 0-7 alone; then 8 log steps up to 128; keys after the query have 16 more.
  const std::map<int, std::uint64_t> known = {{0, 0},   {-1, 1},  {-7, 7},   {-8, 8},   {-11, 8},  {-12, 9},  {-15, 9},  {-16, 10},
                                              {-23, 11}, {-32, 12}, {-64, 14}, {-91, 15}, {-127, 15}, {-199, 15}, {1, 17}, {7, 23},
                                              {8, 24},  {20, 26}, {127, 31}, {199, 31}};
  for (const auto& [distance, bucket] : known)
    for (std::uint64_t s = 0; s < 2; ++s)
      for (std::uint64_t h = 0; h < heads; ++h) {
        INFO("distance " << distance);
        CHECK(got[(s * heads + h) * (2 * n - 1) + static_cast<std::uint64_t>(distance + static_cast<int>(n) - 1)] ==
              values[bucket * V * heads + (s == 0 ? 1u : 3u) * heads + h]);
      }
}
