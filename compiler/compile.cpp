#include "compiler/compile.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "base/slice_tree.hpp"
#include "cards/weight_loader.hpp"
#include "compiler/models/cosmos_transformer.hpp"
#include "compiler/models/t5_encoder.hpp"
#include "compiler/passes/passes.hpp"

namespace orrery::compiler {

namespace {

std::uint32_t largest_divisor(std::uint64_t number, std::uint32_t most) {
  for (std::uint32_t divisor = std::max(most, 1U); divisor > 1; --divisor)
    if (number % divisor == 0) return divisor;
  return 1;
}

constexpr std::uint64_t extent_max = 1 << 16;

Status check_size(const TransformerConfig& config, std::uint64_t frames, std::uint64_t height, std::uint64_t width) {
  const char* names[] = {"frames", "height", "width"};
  const std::uint64_t extents[] = {frames, height, width};
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const auto what = std::string("latent ") + names[axis] + " of " + std::to_string(extents[axis]);
    if (extents[axis] == 0 || extents[axis] > extent_max)
      return Error{ErrorCode::invalid_request, what + " cannot be used"};
    if (extents[axis] % config.patch[axis] != 0)
      return Error{ErrorCode::invalid_request,
                   what + " is not a multiple of the model's patch size " + std::to_string(config.patch[axis])};
    // Learnable positions end with their tables; rotary ones reach as far as the longest axis.
    std::uint64_t most = config.max_size[axis] / config.patch[axis];
    if (!config.learnable_positions)
      for (std::size_t other = 0; other < 3; ++other)
        most = std::max(most, config.max_size[other] / config.patch[other]);
    if (extents[axis] / config.patch[axis] > most)
      return Error{ErrorCode::invalid_request,
                   what + " is more than the model's max_size allows, " + std::to_string(most * config.patch[axis])};
  }
  return Done{};
}

Status check_slices(const Layout& layout, std::uint64_t heads, std::uint64_t feed_forward) {
  ORRERY_TRY_DONE(check_layout(layout));
  if (heads % layout.slice_count != 0 || feed_forward % layout.slice_count != 0)
    return Error{ErrorCode::internal,
                 std::to_string(layout.slice_count) + " slices do not divide the model's heads and feed-forward width"};
  return Done{};
}

Status check_denoiser(const TransformerConfig& config, const DenoiserShape& shape) {
  if (config.in_channels != config.out_channels)
    return Error{ErrorCode::unsupported,
                 "the transformer takes " + std::to_string(config.in_channels) + " channels and gives " +
                     std::to_string(config.out_channels) + ": a Video2World model",
                 "use a Text2World model"};
  ORRERY_TRY_DONE(check_size(config, shape.frames, shape.height, shape.width));
  const auto rows_fit = [&](std::uint64_t rows) { return rows >= 1 && rows <= shape.padded_rows; };
  if (shape.padded_rows > extent_max || !rows_fit(shape.prompt_rows) ||
      (shape.guidance && !rows_fit(shape.negative_rows)))
    return Error{ErrorCode::invalid_request, "text of " + std::to_string(shape.prompt_rows) + " and " +
                                                 std::to_string(shape.negative_rows) + " rows does not fit " +
                                                 std::to_string(shape.padded_rows)};
  if (shape.fps && !(*shape.fps > 0)) return Error{ErrorCode::invalid_request, "fps must be more than 0"};
  return Done{};
}

/// A small shape that every config of the family accepts: weights do not depend on it.
TransformerShape smallest_shape(const TransformerConfig& config) {
  TransformerShape shape;
  shape.frames = config.patch[0];
  shape.height = config.patch[1];
  shape.width = config.patch[2];
  shape.text_rows = 1;
  shape.condition_mask = config.in_channels == config.out_channels + 1;
  return shape;
}

}  // namespace

std::uint32_t slice_count_of(const TransformerConfig& config, std::uint32_t requested) {
  return largest_divisor(std::gcd(config.heads, config.feed_forward()), requested);
}
std::uint32_t slice_count_of(const TextEncoderConfig& config, std::uint32_t requested) {
  return largest_divisor(std::gcd(config.heads, config.feed_forward), requested);
}

Status check_layout(const Layout& layout) {
  const auto fail = [](const std::string& what) { return Error{ErrorCode::internal, "layout: " + what}; };
  if (layout.slice_count == 0) return fail("no slices");
  if (layout.owned.empty() || layout.owned.size() > 2) return fail(std::to_string(layout.owned.size()) + " groups");
  if (layout.group >= layout.owned.size() || layout.rank >= layout.owned[layout.group].size())
    return fail("this rank does not exist");
  for (const auto& group : layout.owned) {
    std::set<std::uint32_t> seen;
    for (const auto& slices : group) {
      if (slices.empty()) return fail("a rank owns no slice");
      if (!std::is_sorted(slices.begin(), slices.end())) return fail("slices are not in ascending order");
      for (const auto slice : slices)
        if (slice >= layout.slice_count || !seen.insert(slice).second)
          return fail("slice " + std::to_string(slice) + " is owned twice or does not exist");
    }
    if (seen.size() != layout.slice_count) return fail("some slices have no owner");
  }
  return Done{};
}

std::shared_ptr<const cards::WeightSet> weights_of(const Graph& graph, const Layout& layout) {
  auto set = std::make_shared<cards::WeightSet>();
  set->component = graph.component;
  std::set<std::string> seen;
  const auto local = split(graph, layout);
  for (const auto& program : local.programs)
    for (const auto& node : program.nodes)
      for (const auto& weight : node.weights) {
        auto key = weight.tensor + '|' + std::to_string(static_cast<int>(weight.form)) + '|' +
                   std::to_string(weight.row_begin) + '|' + std::to_string(weight.column_begin);
        if (seen.insert(std::move(key)).second) set->weights.push_back(weight);
      }
  return set;
}

Result<std::shared_ptr<const cards::ProgramSet>> compile_graph(Graph graph,
                                                               std::shared_ptr<const cards::WeightSet> weights,
                                                               const Layout& layout, PassTrace* trace) {
  const auto note = [&](const char* pass, std::string text) {
    if (trace != nullptr) trace->entries.push_back({pass, std::move(text)});
  };
  ORRERY_TRY_DONE(check_layout(layout));
  if (trace != nullptr) note("front end", graph.text());
  if (auto problem = shape_problem(graph); !problem.empty())
    return Error{ErrorCode::internal, graph.component + ": " + problem};
  graph = fuse(std::move(graph));
  if (trace != nullptr) note("fuse", graph.text());
  graph = split(graph, layout);
  if (trace != nullptr) note("split", graph.text());
  graph = interleave(std::move(graph));
  if (trace != nullptr) note("interleave", graph.text());
  auto set = plan(graph, std::move(weights));
  if (trace != nullptr) note("plan", set->text());
  ORRERY_TRY_DONE(set->check());
  return std::shared_ptr<const cards::ProgramSet>(std::move(set));
}

Result<std::shared_ptr<const cards::WeightSet>> denoiser_weights(const TransformerConfig& config, const Layout& layout,
                                                                 Compute compute) {
  ORRERY_TRY_DONE(check_slices(layout, config.heads, config.feed_forward()));
  return weights_of(transformer_graph(config, compute, smallest_shape(config), layout.slice_count), layout);
}

Result<std::shared_ptr<const cards::ProgramSet>> compile_denoiser(const TransformerConfig& config,
                                                                  std::shared_ptr<const cards::WeightSet> weights,
                                                                  const Layout& layout, Compute compute,
                                                                  const DenoiserShape& shape, PassTrace* trace) {
  ORRERY_TRY_DONE(check_slices(layout, config.heads, config.feed_forward()));
  ORRERY_TRY_DONE(check_denoiser(config, shape));
  if (layout.owned.size() == 2 && !shape.guidance) return Error{ErrorCode::internal, "two groups without guidance"};
  return compile_graph(denoiser_graph(config, compute, shape, layout.slice_count), std::move(weights), layout, trace);
}

Result<std::shared_ptr<const cards::ProgramSet>> compile_transformer(const TransformerConfig& config,
                                                                     std::shared_ptr<const cards::WeightSet> weights,
                                                                     const Layout& layout, Compute compute,
                                                                     const TransformerShape& shape, PassTrace* trace) {
  ORRERY_TRY_DONE(check_slices(layout, config.heads, config.feed_forward()));
  ORRERY_TRY_DONE(check_size(config, shape.frames, shape.height, shape.width));
  if (shape.text_rows == 0 || shape.text_rows > extent_max)
    return Error{ErrorCode::invalid_request, "text of " + std::to_string(shape.text_rows) + " rows cannot be used"};
  if (shape.condition_mask && config.in_channels < 2)
    return Error{ErrorCode::invalid_request, "this transformer has no channel for a condition mask"};
  return compile_graph(transformer_graph(config, compute, shape, layout.slice_count), std::move(weights), layout,
                       trace);
}

Result<std::shared_ptr<const cards::WeightSet>> text_encoder_weights(const TextEncoderConfig& config,
                                                                     const Layout& layout, Compute compute) {
  ORRERY_TRY_DONE(check_slices(layout, config.heads, config.feed_forward));
  return weights_of(text_encoder_graph(config, compute, 1, false, layout.slice_count), layout);
}

Result<std::shared_ptr<const cards::ProgramSet>> compile_text_encoder(const TextEncoderConfig& config,
                                                                      std::shared_ptr<const cards::WeightSet> weights,
                                                                      const Layout& layout, Compute compute,
                                                                      std::uint64_t rows, bool attention_mask,
                                                                      PassTrace* trace) {
  ORRERY_TRY_DONE(check_slices(layout, config.heads, config.feed_forward));
  if (rows == 0 || rows > extent_max)
    return Error{ErrorCode::invalid_request, "a text of " + std::to_string(rows) + " tokens cannot be encoded"};
  return compile_graph(text_encoder_graph(config, compute, rows, attention_mask, layout.slice_count),
                       std::move(weights), layout, trace);
}

namespace {

/// A rank that owns `count` slices, the last ones or the first, among ranks that own as many (the one at the other end: what is
/// left); alike in all groups.
Layout end_of_many(std::uint32_t slice_count, std::uint32_t count, bool last, Split split, std::uint32_t groups) {
  Layout layout;
  layout.slice_count = slice_count;
  layout.split = split;
  layout.owned.assign(groups, {});
  for (auto& group : layout.owned)
    for (std::uint32_t slice = 0; slice < slice_count; ++slice) {
      if (slice == 0 || (last ? slice_count - slice : slice) % count == 0) group.emplace_back();
      group.back().push_back(slice);
    }
  if (last) layout.rank = layout.rank_count() - 1;
  return layout;
}

/// Up to here each number of slices has a size of its own; then the powers of two, all but one, and all.
constexpr std::uint32_t lane_each_max = 8;

/// Fills in bytes of weights and lanes; the arguments say in which splits, and in how many groups at most, the component may run.
template <class GraphOf>
Status fill_sizes(ComponentFigures& figures, std::uint32_t slice_count, std::initializer_list<Split> splits, std::uint32_t groups_max,
                  const GraphOf& graph_of) {
  figures.slices = slice_count;
  const Graph graph = graph_of();
  const auto weights = weights_of(graph, single_card(slice_count));
  for (const auto& weight : weights->weights) {
    const bool part = weight.form == cards::WeightForm::matrix &&
                      (weight.rows() < weight.shape[0] || weight.columns() < weight.shape[1]);
    (part ? figures.weight_bytes_sliced : figures.weight_bytes_replicated) += weight.bytes();
    (part ? figures.weight_padding_sliced : figures.weight_padding_replicated) += cards::bytes_on_card(weight) - weight.bytes();
  }
  const auto add_lane = [&](Split split, std::uint32_t groups, std::uint32_t count) -> Status {
    LaneSize lane{split, groups, count, 0, 0};
    // The last rank has the most rows, since shares are rounded down. Without pieces, one row less can take more: slots are
    // placed by their sizes.
    for (const bool last : {true, false}) {
      if (!last && split == Split::tensor) continue;
      const auto layout = end_of_many(slice_count, count, last, split, groups);
      ORRERY_TRY(set, compile_graph(graph, weights_of(graph, layout), layout));
      lane.pieces = static_cast<std::uint32_t>(pieces_of(layout.slices(), slice_count).size());
      lane.bytes = std::max(lane.bytes, set->lane_bytes());
    }
    figures.lanes.push_back(lane);
    return Done{};
  };
  for (const auto split : splits)
    for (std::uint32_t groups = 1; groups <= groups_max; ++groups) {
      for (std::uint32_t count = 1; count < slice_count; count = count < lane_each_max ? count + 1 : 2 * count)
        ORRERY_TRY_DONE(add_lane(split, groups, count));
      // With nearly everything there still is an exchange, so that the line does not go on to everything.
      if (slice_count > lane_each_max + 1) ORRERY_TRY_DONE(add_lane(split, groups, slice_count - 1));
      ORRERY_TRY_DONE(add_lane(split, groups, slice_count));
    }
  return Done{};
}

}  // namespace

Result<ComponentFigures> denoiser_figures(const TransformerConfig& config, Compute compute, const DenoiserShape& shape,
                                          std::uint32_t slice_count) {
  ORRERY_TRY_DONE(check_slices(single_card(slice_count), config.heads, config.feed_forward()));
  ORRERY_TRY_DONE(check_denoiser(config, shape));
  ComponentFigures figures;
  ORRERY_TRY_DONE(fill_sizes(figures, slice_count, {Split::tensor, Split::sequence}, shape.guidance ? 2 : 1,
                             [&] { return denoiser_graph(config, compute, shape, slice_count); }));
  figures.blocks = static_cast<std::uint32_t>(config.layers);
  figures.rows = shape.frames / config.patch[0] * (shape.height / config.patch[1]) * (shape.width / config.patch[2]);
  figures.width = config.width();
  figures.text_rows = shape.prompt_rows;
  const auto N = static_cast<double>(figures.rows), D = static_cast<double>(config.width()),
             F = static_cast<double>(config.feed_forward());
  const auto S = static_cast<double>(shape.prompt_rows), L = static_cast<double>(config.layers);
  figures.flops_linear = L * (12 * N * D * D + 4 * N * D * F) +
                         2 * N * D * static_cast<double>(config.token_inputs() + config.token_outputs());
  figures.flops_attention = L * (4 * N * N * D + 4 * S * N * D);
  figures.reduces_per_block = 3;
  figures.all_to_alls_per_block = 4;
  figures.gather_element_bytes = static_cast<std::uint32_t>(size_of(dtype_of(compute)));
  return figures;
}

Result<ComponentFigures> text_encoder_figures(const TextEncoderConfig& config, Compute compute, std::uint64_t rows,
                                              std::uint32_t slice_count) {
  ORRERY_TRY_DONE(check_slices(single_card(slice_count), config.heads, config.feed_forward));
  if (rows == 0 || rows > extent_max)
    return Error{ErrorCode::invalid_request, "a text of " + std::to_string(rows) + " tokens cannot be encoded"};
  ComponentFigures figures;
  ORRERY_TRY_DONE(fill_sizes(figures, slice_count, {Split::tensor}, 1,
                             [&] { return text_encoder_graph(config, compute, rows, false, slice_count); }));
  figures.blocks = static_cast<std::uint32_t>(config.layers);
  figures.rows = rows;
  figures.width = config.width;
  figures.text_rows = rows;
  const auto N = static_cast<double>(rows), D = static_cast<double>(config.width),
             F = static_cast<double>(config.feed_forward);
  const auto inner = static_cast<double>(config.heads * config.head_dim), L = static_cast<double>(config.layers);
  figures.flops_linear = L * (8 * N * D * inner + 4 * N * D * F);
  figures.flops_attention = L * 4 * N * N * inner;
  figures.reduces_per_block = 2;
  figures.all_to_alls_per_block = 4;
  figures.gather_element_bytes = static_cast<std::uint32_t>(size_of(dtype_of(compute)));
  return figures;
}

}  // namespace orrery::compiler
