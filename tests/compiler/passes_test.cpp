// Passes: what they print, that no two live slots share bytes, that checks notice what is wrong.

#include <bit>
#include <chrono>
#include <iostream>
#include <set>

#include "base/random.hpp"
#include "compiler/compile.hpp"
#include "compiler/models/cosmos_transformer.hpp"
#include "compiler/passes/passes.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

using cards::Attr;
using cards::Op;

TransformerConfig tiny() {
  TransformerConfig config;
  config.in_channels = config.out_channels = 4;
  config.heads = 8;
  config.head_dim = 12;
  config.layers = 2;
  config.text_width = 32;
  config.adaln_width = 8;
  config.max_size = {8, 24, 24};
  return config;
}

DenoiserShape shape_of(std::uint64_t frames, std::uint64_t height, std::uint64_t width) {
  DenoiserShape shape;
  shape.frames = frames;
  shape.height = height;
  shape.width = width;
  shape.prompt_rows = 12;
  shape.negative_rows = 7;
  shape.padded_rows = 64;
  shape.fps = 30;
  return shape;
}

/// Layouts of V slices on 1 to 4 ranks, one or two groups, either split, as seen by every rank.
std::vector<Layout> layouts(std::uint32_t V, std::uint64_t seed) {
  Random random(seed);
  std::vector<Layout> all;
  for (const auto split : {Split::tensor, Split::sequence})
    for (std::uint32_t groups = 1; groups <= 2; ++groups)
      for (std::uint32_t ranks = 1; ranks <= std::min(4U, V); ++ranks) {
        Layout layout;
        layout.slice_count = V;
        layout.split = split;
        layout.owned.clear();
        for (std::uint32_t group = 0; group < groups; ++group) {
          std::vector<std::vector<std::uint32_t>> owned(ranks);
          for (std::uint32_t slice = 0; slice < V; ++slice)
            owned[slice < ranks ? slice : random.below(ranks)].push_back(slice);
          layout.owned.push_back(std::move(owned));
        }
        for (layout.group = 0; layout.group < groups; ++layout.group)
          for (layout.rank = 0; layout.rank < ranks; ++layout.rank) all.push_back(layout);
      }
  return all;
}

/// Bytes of slots that are live at one time, counted byte for byte, independently of ProgramSet::check.
void check_no_overlap(const cards::ProgramSet& set) {
  for (const auto& program : set.programs) {
    std::map<cards::SlotId, std::pair<std::size_t, std::size_t>> lives;
    std::set<cards::SlotId> inputs, outputs;
    for (const auto& [name, id] : set.inputs) inputs.insert(id);
    for (const auto& [name, id] : set.outputs) outputs.insert(id);
    for (std::size_t i = 0; i < program.commands.size(); ++i)
      for (const auto* list : {&program.commands[i].inputs, &program.commands[i].outputs})
        for (const auto id : *list) {
          const auto [at, added] = lives.try_emplace(id, inputs.contains(id) ? 0 : i, i);
          at->second.second = outputs.contains(id) ? program.commands.size() : i;
        }
    for (auto a = lives.begin(); a != lives.end(); ++a)
      for (auto b = std::next(a); b != lives.end(); ++b) {
        const auto& first = set.slots[a->first];
        const auto& second = set.slots[b->first];
        if (first.bytes() == 0 || second.bytes() == 0) continue;
        const bool together =
            first.state || second.state || (a->second.first <= b->second.second && b->second.first <= a->second.second);
        const bool overlaps =
            first.offset < second.offset + second.bytes() && second.offset < first.offset + first.bytes();
        if (together && overlaps) FAIL(first.name << " and " << second.name << " overlap in " << program.name);
      }
  }
}

/// Chains and joins of elementwise operations over values of random size.
Graph random_graph(std::uint64_t seed) {
  Random random(seed);
  GraphBuilder builder("random", 1);
  builder.begin_program("forward");
  const std::uint64_t widths[] = {1, 3, 16, 33, 100};
  std::map<std::uint64_t, std::vector<ValueId>> by_width;
  for (const auto width : widths)
    by_width[width].push_back(builder.input("in" + std::to_string(width), DType::f32, {4, width}));
  const auto state = builder.state("state", DType::f32, {4, 16});
  for (int i = 0; i < 60; ++i) {
    const auto name = "n" + std::to_string(i);
    auto& pool = by_width[widths[random.below(5)]];
    const auto pick = [&] { return pool[random.below(pool.size())]; };
    switch (random.below(4)) {
      case 0: {
        GraphBuilder::Extra extra;
        extra.attrs[Attr::activation] = 3;
        pool.push_back(builder.node(Op::activate, name, {pick()}, DType::f32, extra));
        break;
      }
      case 1: pool.push_back(builder.node(Op::add, name, {pick(), pick()}, DType::f32)); break;
      case 2: {
        GraphBuilder::Extra extra;
        extra.into = state;
        extra.attrs[Attr::activation] = 3;
        builder.node(Op::activate, name, {by_width[16][random.below(by_width[16].size())]}, DType::f32, extra);
        break;
      }
      default: {
        const auto x = pick();
        const auto width = builder.shape_of(x).back();
        GraphBuilder::Extra extra;
        extra.shape = Shape{4, 1};
        extra.attrs[Attr::begin] = static_cast<double>(random.below(width));
        by_width[1].push_back(builder.node(Op::slice_columns, name, {x}, DType::f32, extra));
      }
    }
  }
  int outputs = 0;
  for (const auto& [width, pool] : by_width)
    if (pool.size() > 1) builder.name_output("out" + std::to_string(outputs++), pool.back());
  return std::move(builder).finish();
}

}  // namespace

TEST_CASE("passes: no two live slots share bytes, on random graphs", "[compiler]") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const auto graph = random_graph(seed);
    const auto layout = single_card(1);
    auto set = compile_graph(graph, weights_of(graph, layout), layout);
    INFO("seed " << seed << (set.ok() ? "" : ": " + set.error().text()));
    REQUIRE(set.ok());
    check_no_overlap(*set.value());
  }
}

TEST_CASE("passes: every set of a real model passes its check", "[compiler]") {
  const auto config = tiny();
  std::size_t sets = 0;
  for (const auto& layout : layouts(8, 3))
    for (const auto compute : {Compute::f32, Compute::bf16}) {
      auto weights = denoiser_weights(config, layout, compute);
      REQUIRE(weights.ok());
      auto set = compile_denoiser(config, weights.value(), layout, compute, shape_of(3, 6, 10));
      INFO((set.ok() ? std::string() : set.error().text()));
      REQUIRE(set.ok());
      check_no_overlap(*set.value());
      for (const auto& slot : set.value()->slots) CHECK(slot.offset % 64 == 0);
      ++sets;
    }
  CHECK(sets == 120);
  TextEncoderConfig text;
  text.width = 32;
  text.heads = 4;
  text.head_dim = 8;
  text.feed_forward = 96;
  text.layers = 2;
  text.vocabulary = 100;
  for (const auto& layout : layouts(4, 4)) {
    if (layout.owned.size() > 1) continue;
    auto weights = text_encoder_weights(text, layout, Compute::bf16);
    REQUIRE(weights.ok());
    auto set = compile_text_encoder(text, weights.value(), layout, Compute::bf16, 9, true);
    INFO((set.ok() ? std::string() : set.error().text()));
    REQUIRE(set.ok());
    check_no_overlap(*set.value());
  }
}

TEST_CASE("passes: ranks agree on exchange ids without talking", "[compiler]") {
  const auto config = tiny();
  // id -> op and output, as each rank of a group that takes part sees it.
  for (const auto split : {Split::tensor, Split::sequence}) {
    std::map<std::pair<std::uint32_t, double>, std::set<std::string>> seen;
    std::map<double, std::set<std::string>> across;
    std::size_t gathers = 0;
    for (const auto& layout : layouts(8, 5)) {
      if (layout.split != split || layout.owned.size() != 2 || layout.rank_count() != 3) continue;
      auto set = compile_denoiser(config, denoiser_weights(config, layout, Compute::f32).value(), layout, Compute::f32,
                                  shape_of(2, 4, 6));
      REQUIRE(set.ok());
      std::set<double> ids;
      for (const auto& program : set.value()->programs)
        for (const auto& command : program.commands) {
          if (command.queue != cards::Queue::exchange) continue;
          const auto id = command.attr(Attr::exchange);
          CHECK(ids.insert(id).second);
          const auto what = std::string(name_of(command.op)) + command.label;
          if (command.attr(Attr::source_group, -1) >= 0) {
            across[id].insert(what);
            ++gathers;
          } else {
            seen[{layout.group, id}].insert(what);
          }
        }
    }
    CHECK(gathers == 2 * 6);  // Both branches' rows, on every rank of both groups.
    for (const auto& [id, what] : across) CHECK(what.size() == 1);
    for (const auto& [id, what] : seen) CHECK(what.size() == 1);
    CHECK(!seen.empty());
  }
}

TEST_CASE("passes: one card needs no exchange, and a slice's weights are on one rank only", "[compiler]") {
  const auto config = tiny();
  const auto whole = single_card(8);
  auto set = compile_denoiser(config, denoiser_weights(config, whole, Compute::f32).value(), whole, Compute::f32,
                              shape_of(2, 4, 6));
  REQUIRE(set.ok());
  for (const auto& program : set.value()->programs)
    for (const auto& command : program.commands) CHECK(command.queue == cards::Queue::compute);
  CHECK(set.value()->inputs.at("noise") == set.value()->outputs.at("latents"));

  Layout layout = whole;
  layout.owned = {{{0, 1, 2}, {3, 4, 5}, {6, 7}}};
  std::uint64_t sum = 0, replicated = 0;
  for (layout.rank = 0; layout.rank < 3; ++layout.rank) {
    const auto weights = denoiser_weights(config, layout, Compute::f32).value();
    for (const auto& weight : weights->weights) {
      const bool part =
          weight.rows() < weight.shape[0] || (weight.shape.size() > 1 && weight.columns() < weight.shape[1]);
      sum += part ? weight.bytes() : 0;
      replicated += !part && layout.rank == 0 ? weight.bytes() : 0;
    }
  }
  CHECK(sum + replicated == denoiser_weights(config, whole, Compute::f32).value()->bytes());
  layout.rank = 1;
  layout.split = Split::sequence;
  CHECK(denoiser_weights(config, layout, Compute::f32).value()->bytes() ==
        denoiser_weights(config, whole, Compute::f32).value()->bytes());
}

TEST_CASE("passes: activations join what makes them", "[compiler]") {
  PassTrace trace;
  const auto config = tiny();
  const auto layout = single_card(8);
  REQUIRE(compile_denoiser(config, denoiser_weights(config, layout, Compute::f32).value(), layout, Compute::f32,
                           shape_of(2, 4, 6), &trace)
              .ok());
  REQUIRE(trace.entries.size() == 5);
  CHECK(trace.entries[0].pass == "front end");
  CHECK(trace.entries[0].text.find("block0.prompt.ff.gelu") != std::string::npos);
  CHECK(trace.entries[1].text.find("block0.prompt.ff.up+gelu") != std::string::npos);
  CHECK(trace.entries[4].text.find("linear_to_slices block0.prompt.ff.up+gelu") != std::string::npos);
  // The condition of all norms is used many times: it stays by itself.
  CHECK(trace.entries[1].text.find("activate") != std::string::npos);
}

TEST_CASE("passes: a set that was tampered with does not pass its check", "[compiler]") {
  const auto config = tiny();
  Layout layout = single_card(8);
  layout.owned = {{{0, 1, 2}, {3, 4, 5}, {6, 7}}};
  const auto good = compile_denoiser(config, denoiser_weights(config, layout, Compute::f32).value(), layout,
                                     Compute::f32, shape_of(3, 6, 10))
                        .value();
  const auto refuses = [&](const char* what, const std::function<void(cards::ProgramSet&)>& change) {
    auto set = *good;
    change(set);
    INFO(what);
    CHECK(!set.check().ok());
  };
  const auto step = good->index_of("step");
  const auto first_of = [&](cards::ProgramSet& set, Op op) -> cards::Command& {
    for (auto& command : set.programs[step].commands)
      if (command.op == op) return command;
    FAIL("no such command");
    return set.programs[step].commands[0];
  };
  CHECK(good->check().ok());
  refuses("slot out of range", [&](auto& set) { first_of(set, Op::gate_add).inputs[2] = 1 << 20; });
  refuses("weight out of range", [&](auto& set) { first_of(set, Op::linear).weights[0] = 1 << 20; });
  refuses("weight of another shape",
          [&](auto& set) { first_of(set, Op::linear).weights[0] = first_of(set, Op::linear_to_slices).weights[0]; });
  refuses("an input is missing", [&](auto& set) { first_of(set, Op::attention).inputs.pop_back(); });
  refuses("not in place",
          [&](auto& set) { first_of(set, Op::gate_add).outputs[0] = first_of(set, Op::patchify).outputs[0]; });
  refuses("unaligned", [&](auto& set) { set.slots[first_of(set, Op::patchify).outputs[0]].offset += 4; });
  refuses("outside of its memory", [&](auto& set) { set.activation_bytes -= 64; });
  refuses("waits for the future", [&](auto& set) { first_of(set, Op::linear).after.push_back(1 << 20); });
  refuses("does not wait for its input", [&](auto& set) { first_of(set, Op::reduce_scatter).after.clear(); });
  refuses("reads what nobody wrote",
          [&](auto& set) { set.programs[step].commands.erase(set.programs[step].commands.begin()); });
  refuses("all in one place", [&](auto& set) {
    for (auto& slot : set.slots)
      if (!slot.state) slot.offset = set.state_bytes;
  });
  refuses("no exchange id", [&](auto& set) { first_of(set, Op::all_gather_rows).attrs.erase(Attr::exchange); });
  refuses("no such slice", [&](auto& set) { first_of(set, Op::linear_from_slices).slices[0] = 99; });
}

// For README.md: `test_compiler "[print]"`.
TEST_CASE("passes: one block on the second of two cards, printed", "[.][print]") {
  auto config = tiny();
  config.layers = 1;
  auto shape = shape_of(2, 4, 8);
  shape.guidance = false;
  Layout layout = single_card(8);
  layout.owned = {{{0, 1, 2, 3}, {4, 5, 6, 7}}};
  layout.rank = 1;
  for (const auto split : {Split::tensor, Split::sequence}) {
    layout.split = split;
    PassTrace trace;
    REQUIRE(compile_denoiser(config, denoiser_weights(config, layout, Compute::bf16).value(), layout, Compute::bf16,
                             shape, &trace)
                .ok());
    for (const auto& [pass, text] : trace.entries) std::cout << "=== " << pass << "\n" << text;
  }
}

TEST_CASE("compile: sizes that the model cannot make are refused", "[compiler][hostile]") {
  const auto config = tiny();
  const auto layout = single_card(8);
  const auto weights = denoiser_weights(config, layout, Compute::f32).value();
  const auto code = [&](const DenoiserShape& shape) {
    auto set = compile_denoiser(config, weights, layout, Compute::f32, shape);
    return set.ok() ? ErrorCode{} : set.error().code;
  };
  CHECK(code(shape_of(2, 4, 6)) == ErrorCode{});
  CHECK(code(shape_of(0, 4, 6)) == ErrorCode::invalid_request);
  CHECK(code(shape_of(2, 5, 6)) == ErrorCode::invalid_request);
  CHECK(code(shape_of(9, 4, 6)) == ErrorCode::invalid_request);
  CHECK(code(shape_of(2, 4, UINT64_MAX - 1)) == ErrorCode::invalid_request);
  auto shape = shape_of(2, 4, 6);
  shape.prompt_rows = 65;
  CHECK(code(shape) == ErrorCode::invalid_request);
  shape.prompt_rows = 0;
  CHECK(code(shape) == ErrorCode::invalid_request);
  shape = shape_of(2, 4, 6);
  shape.fps = -1;
  CHECK(code(shape) == ErrorCode::invalid_request);
  auto world = config;
  world.in_channels = 5;
  CHECK(compile_denoiser(world, weights, layout, Compute::f32, shape_of(2, 4, 6)).error().code ==
        ErrorCode::unsupported);
  Layout bad = layout;
  bad.owned = {{{0, 1, 2}, {2, 3, 4, 5, 6, 7}}};
  CHECK(denoiser_weights(config, bad, Compute::f32).error().code == ErrorCode::internal);
  // Weights of another layout.
  Layout half = layout;
  half.owned = {{{0, 1, 2, 3}, {4, 5, 6, 7}}};
  CHECK(!compile_denoiser(config, denoiser_weights(config, half, Compute::f32).value(), layout, Compute::f32,
                          shape_of(2, 4, 6))
             .ok());
}

TEST_CASE("compile: the published 7B model has the published figures", "[compiler]") {
  const TransformerConfig config;
  DenoiserShape shape;
  shape.frames = 16;
  shape.height = 88;
  shape.width = 160;
  shape.prompt_rows = shape.negative_rows = 512;
  shape.fps = 30;
  const auto V = slice_count_of(config);
  CHECK(V == 8);
  const auto figures = denoiser_figures(config, Compute::bf16, shape, V).value();
  CHECK(figures.rows == 56320);
  CHECK(figures.blocks == 28);
  // 7,236,192,256 parameters in bf16; norms and positions stay f32.
  const auto bytes = figures.weight_bytes_replicated + figures.weight_bytes_sliced;
  const auto f32_kept = (2 * 28 * 2 * 128 + 4096 + (128 + 120 + 120) * 4096ULL) * 2;
  CHECK(bytes == 7'236'192'256ULL * 2 + f32_kept);
  // Slices are whole panels.
  CHECK(figures.weight_padding_replicated + figures.weight_padding_sliced < bytes / 1000);
  CHECK(figures.flops_linear == Approx(740.8e12).epsilon(0.01));
  CHECK(figures.flops_attention == Approx(1455.1e12 + 13.2e12).epsilon(0.01));
  // Both splits, one group and two, 1 to 8 slices: the fewer, the less.
  REQUIRE(figures.lanes.size() == 2 * 2 * 8);
  for (std::size_t i = 0; i < figures.lanes.size(); ++i) {
    CHECK(figures.lanes[i].slices == 1 + i % 8);
    CHECK(figures.lanes[i].pieces == static_cast<unsigned>(std::popcount(1 + i % 8)));
    if (i % 8 == 7) CHECK(figures.lanes[i].bytes > figures.lanes[i - 7].bytes);
  }

  TextEncoderConfig text;
  const auto text_figures = text_encoder_figures(text, Compute::bf16, 512, slice_count_of(text)).value();
  // The bias table stays f32, and so do the norms.
  CHECK(text_figures.weight_bytes_replicated + text_figures.weight_bytes_sliced ==
        4'864'791'552ULL * 2 + (32 * 128 + 49 * 1024) * 2);
  CHECK(text_figures.flops_linear == Approx(24.0 * 2 * 512 * 201'326'592.0).epsilon(0.01));
}

}  // namespace orrery::compiler
