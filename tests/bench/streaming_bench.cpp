// How well copies of weights hide behind the arithmetic: denoising steps of a model four times as large as its card.
//
// Why: a step cannot be faster than its arithmetic, nor than the copies that it needs at the link's rate. A good number is
// a step within 5 % of the larger of the two at any rate, and next to no stall where the link is twice as fast as needed.
// The caps are 0.5, 1 and 2 times the rate at which both take the same time; the step with all weights resident is measured
// again before every sample.
//
//   bench_streaming [--threads N] [--layers N] [--tokens N] [--share 0.25] [--steps 5]

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cards/card.hpp"
#include "compiler/compile.hpp"
#include "tests/bench/bench_support.hpp"
#include "tests/bench/pooled_weights.hpp"

using namespace orrery;
using namespace orrery::cards;
using bench::median;
using bench::must;

namespace {

/// One card with one request; runs steps.
class Denoiser {
public:
  Denoiser(std::shared_ptr<const ProgramSet> programs, std::shared_ptr<const WeightSource> source, CardOptions options, bool streamed)
      : programs_(std::move(programs)), step_(programs_->index_of("step")) {
    card_ = must(make_cpu_card(options));
    if (streamed)
      must(card_->stream_weights(programs_->weights, source));
    else
      must(card_->load_weights(programs_->weights, *source, {}));
    lane_ = must(card_->open_lane(programs_));
    run(programs_->index_of("prepare"), 0);
  }
  double step() { return run(step_, 1000); }
  CardUse use() const { return card_->use(); }

private:
  double run(std::uint32_t program, std::uint32_t runs_left) {
    Scalars scalars{};
    scalars[static_cast<std::size_t>(Scalar::timestep)] = 0.4;
    scalars[static_cast<std::size_t>(Scalar::c_in)] = scalars[static_cast<std::size_t>(Scalar::sigma)] = 1;
    const auto begun = std::chrono::steady_clock::now();
    card_->expect(lane_, program, runs_left);
    must(card_->run(lane_, program, 0, static_cast<std::uint32_t>(programs_->programs[program].commands.size()), scalars));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  }

  const std::shared_ptr<const ProgramSet> programs_;
  const std::uint32_t step_;
  std::unique_ptr<Card> card_;
  LaneId lane_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
  std::uint32_t threads = 1, layers = 8, tokens = 256;
  double share = 0.25;
  int steps = 5;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string name = arguments[i];
    if (name == "--threads") threads = static_cast<std::uint32_t>(std::atoi(arguments[i + 1]));
    if (name == "--layers") layers = static_cast<std::uint32_t>(std::atoi(arguments[i + 1]));
    if (name == "--tokens") tokens = static_cast<std::uint32_t>(std::atoi(arguments[i + 1]));
    if (name == "--share") share = std::atof(arguments[i + 1]);
    if (name == "--steps") steps = std::atoi(arguments[i + 1]);
  }
  compiler::TransformerConfig config;
  config.heads = 16;
  config.head_dim = 64;
  config.layers = layers;
  config.in_channels = config.out_channels = 16;
  config.learnable_positions = false;
  const auto layout = compiler::single_card(compiler::slice_count_of(config));
  compiler::DenoiserShape shape;
  shape.frames = 1;
  shape.height = 32;
  shape.width = std::max(2U, tokens / 16 * 2);
  shape.prompt_rows = 64;
  shape.negative_rows = 64;
  shape.fps = 24;
  const auto compute = compiler::Compute::f32;
  const auto weights = must(compiler::denoiser_weights(config, layout, compute));
  const auto programs = must(compiler::compile_denoiser(config, weights, layout, compute, shape));
  const auto source = std::make_shared<PooledWeights>(*weights);

  CardOptions large;
  large.threads = threads;
  large.memory_bytes = std::uint64_t{16} << 30;
  Denoiser resident(programs, source, large, false);
  resident.step();
  const double compute_seconds = median({resident.step(), resident.step(), resident.step()});

  CardOptions small = large;
  const auto total = static_cast<double>(weights->bytes());
  small.memory_bytes = static_cast<std::uint64_t>(total * share) + programs->lane_bytes();
  // The least that has to come again in every step.
  const double missing = total * (1 - share);
  const double balance = missing / compute_seconds;
  double load = 0;
  ::getloadavg(&load, 1);
  std::printf("weights %.0f MB, card %.0f MB for weights and %.0f MB for a request, %u threads, load %.1f; balance at %.0f MB/s\n\n", total / 1e6,
              total * share / 1e6, static_cast<double>(programs->lane_bytes()) / 1e6, threads, load, balance / 1e6);
  std::printf("%-10s %10s %10s %10s %8s %8s %10s %8s %9s %10s\n", "LINK", "COMPUTE", "COPY", "STEP", "/BOUND", "STALL", "COPIED", "HIDDEN", "AHEAD", "HIGH-WATER");
  for (const double factor : {0.5, 1.0, 2.0, 0.0}) {
    small.copy_bandwidth = balance * factor;
    Denoiser streamed(programs, source, small, true);
    for (int i = 0; i < 3; ++i) streamed.step();
    std::vector<double> step_times, computes, ratios, stalls, copied, hidden;
    for (int i = 0; i < steps; ++i) {
      const double alone = resident.step();
      const auto before = streamed.use().stream;
      const double seconds = streamed.step();
      const auto after = streamed.use().stream;
      const auto bytes = static_cast<double>(after.copied_bytes - before.copied_bytes);
      const double copy = factor > 0 ? missing / small.copy_bandwidth : 0;
      const double stall = after.stall_seconds - before.stall_seconds, copying = after.copy_seconds - before.copy_seconds;
      step_times.push_back(seconds);
      computes.push_back(alone);
      ratios.push_back(seconds / std::max(alone, copy));
      stalls.push_back(stall / seconds);
      copied.push_back(bytes);
      hidden.push_back(copying > 0 ? 1 - std::min(1.0, stall / copying) : 1);
    }
    const auto use = streamed.use();
    const std::string name = factor > 0 ? std::to_string(factor).substr(0, 3) + " x" : "no cap";
    std::printf("%-10s %8.0fms %8.0fms %8.0fms %8.3f %7.1f%% %8.0fMB %7.1f%% %7.0fMB %8.1f%%\n", name.c_str(), median(computes) * 1e3,
                factor > 0 ? missing / small.copy_bandwidth * 1e3 : 0.0, median(step_times) * 1e3, median(ratios), median(stalls) * 100,
                median(copied) / 1e6, median(hidden) * 100, static_cast<double>(use.stream.look_ahead_bytes_max) / 1e6,
                100 * static_cast<double>(use.high_water) / static_cast<double>(use.budget));
  }
}
