#include "protocol/collective/tree_sum.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <string>

namespace orrery::protocol {
namespace {

// Values per block: one input block and one scratch block per tree level fit into the second-level cache.
constexpr std::size_t block_values = 2048;
// Slice counts are 32-bit, so no tree is deeper.
constexpr std::size_t depth_max = 33;
constexpr std::uint32_t none = ~std::uint32_t{0};

// The tree over the summands, flattened: a leaf is a summand, an inner node adds two nodes.
struct Node {
  std::uint32_t left = none, right = none;
  std::uint32_t summand = none;
};

// Runs of one summand, walked from front to back.
struct Cursor {
  const std::vector<std::span<const std::byte>>* runs;
  std::size_t run = 0;
  std::size_t offset = 0;  // Bytes within the run.

  void skip_empty() {
    while (run < runs->size() && offset == (*runs)[run].size()) {
      ++run;
      offset = 0;
    }
  }
  std::size_t values_left() const { return ((*runs)[run].size() - offset) / sizeof(float); }
  const std::byte* data() const { return (*runs)[run].data() + offset; }
};

// Network buffers promise no alignment for floats: loads go through memcpy, which compiles to plain ones.
inline float load(const std::byte* data, std::size_t i) {
  float value;
  std::memcpy(&value, data + i * sizeof(float), sizeof value);
  return value;
}

// Wide vectors where the processor has them: each value is one addition, so the bits do not depend on it. Without them a
// sum whose parts lie in the cache is slower than its memory.
#if defined(__x86_64__)
#define ORRERY_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ORRERY_WIDE
#endif
ORRERY_WIDE void add_into(float* __restrict out, const std::byte* __restrict a, const std::byte* __restrict b, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = load(a, i) + load(b, i);
}
ORRERY_WIDE void add_right(float* __restrict out, const std::byte* __restrict b, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] += load(b, i);
}
#undef ORRERY_WIDE

class Adder {
public:
  Adder(const std::vector<Node>& nodes, std::vector<Cursor>& cursors, std::size_t depth)
      : nodes_(nodes), cursors_(cursors), scratch_(std::make_unique_for_overwrite<float[]>(depth * block_values)) {}

  void add_block(std::uint32_t root, float* out, std::size_t count) { add(root, out, count, 0); }

private:
  void add(std::uint32_t index, float* __restrict out, std::size_t count, std::size_t level) {
    const auto& node = nodes_[index];
    if (node.summand != none) {
      std::memcpy(out, cursors_[node.summand].data(), count * sizeof(float));
      return;
    }
    const auto& left = nodes_[node.left];
    const auto& right = nodes_[node.right];
    if (left.summand != none && right.summand != none)
      return add_into(out, cursors_[left.summand].data(), cursors_[right.summand].data(), count);
    if (right.summand != none) {
      add(node.left, out, count, level);
      return add_right(out, cursors_[right.summand].data(), count);
    }
    float* __restrict other = scratch_.get() + level * block_values;
    add(node.right, other, count, level + 1);
    const auto* summed = reinterpret_cast<const std::byte*>(other);
    if (left.summand != none) return add_into(out, cursors_[left.summand].data(), summed, count);
    add(node.left, out, count, level + 1);
    add_right(out, summed, count);
  }

  const std::vector<Node>& nodes_;
  std::vector<Cursor>& cursors_;
  const std::unique_ptr<float[]> scratch_;  // Written before it is read: not zeroed, for sums are often short.
};

// Appends the subtree over summands [first, last), sorted by slices, which must tile `range`. Returns its node,
// or `none` when they do not.
std::uint32_t build(SliceRange range, std::span<const std::uint32_t> order, std::span<const Summand> summands,
                    std::vector<Node>& nodes) {
  if (order.empty()) return none;
  if (order.size() == 1 && summands[order[0]].slices == range) {
    nodes.push_back({.summand = order[0]});
    return static_cast<std::uint32_t>(nodes.size() - 1);
  }
  if (range.count() < 2) return none;
  const auto split = split_of(range);
  const auto middle = static_cast<std::size_t>(
      std::find_if(order.begin(), order.end(), [&](auto i) { return summands[i].slices.begin >= split; }) -
      order.begin());
  const auto left = build({range.begin, split}, order.first(middle), summands, nodes);
  const auto right = build({split, range.end}, order.subspan(middle), summands, nodes);
  if (left == none || right == none) return none;
  nodes.push_back({.left = left, .right = right});
  return static_cast<std::uint32_t>(nodes.size() - 1);
}

}  // namespace

Status tree_sum(SliceRange whole, std::span<const Summand> summands, std::span<float> out) {
  std::vector<std::uint32_t> order(summands.size());
  for (std::uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](auto a, auto b) { return summands[a].slices.begin < summands[b].slices.begin; });
  std::vector<Node> nodes;
  const auto root = whole.begin < whole.end ? build(whole, order, summands, nodes) : none;
  if (root == none)
    return Error{ErrorCode::bad_frame, "partial sums do not cover slices " + std::to_string(whole.begin) + " to " +
                                           std::to_string(whole.end) + " exactly once"};
  std::vector<Cursor> cursors;
  for (const auto& summand : summands) {
    std::uint64_t bytes = 0;
    for (const auto& run : summand.runs) {
      if (run.size() % sizeof(float) != 0)
        return Error{ErrorCode::bad_frame, "a partial sum is cut inside a value"};
      bytes += run.size();
    }
    if (bytes != out.size_bytes())
      return Error{ErrorCode::bad_frame, "a partial sum of slices " + std::to_string(summand.slices.begin) + " to " +
                                             std::to_string(summand.slices.end) + " has " + std::to_string(bytes) +
                                             " bytes, expected " + std::to_string(out.size_bytes())};
    cursors.push_back({.runs = &summand.runs});
  }

  const auto depth = std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(whole.count())) + 1, depth_max);
  Adder adder(nodes, cursors, depth);
  for (std::size_t done = 0; done < out.size();) {
    std::size_t count = std::min(block_values, out.size() - done);
    for (auto& cursor : cursors) {
      cursor.skip_empty();
      count = std::min(count, cursor.values_left());
    }
    adder.add_block(root, out.data() + done, count);
    for (auto& cursor : cursors) cursor.offset += count * sizeof(float);
    done += count;
  }
  return Done{};
}

}  // namespace orrery::protocol
