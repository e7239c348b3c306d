// The video autoencoder against the reference implementation, and against itself:
// - encode and decode of every golden case, f32 and bf16
// - frame by frame gives the bits of the whole clip, for published and for unusual configurations
// - sizes and configurations that do not work are refused with their key

#include "cards/card.hpp"
#include "compiler/models/cosmos_codec.hpp"
#include "compiler/run_component.hpp"
#include "base/random.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

struct Case {
  const char* model;
  const char* call;
};
constexpr Case cases[] = {{"vae_cv8x8x8", "enc17"}, {"vae_cv8x8x8", "dec3"},        {"vae_cv8x8x8", "image1"},     {"vae_attn_4x4x4", "enc9"},
                          {"vae_attn_4x4x4", "dec3"}, {"vae_rearrange_4x8x8", "enc9"}, {"vae_rearrange_4x8x8", "dec2"}};

std::unique_ptr<cards::Card> card_of(std::uint32_t threads) {
  auto card = cards::make_cpu_card({"test", std::uint64_t{1} << 30, threads});
  REQUIRE(card.ok());
  return std::move(card).value();
}

ModelFolder folder_of(const std::string& model) {
  auto folder = open_model_folder(testing::golden(model + "/vae"));
  INFO((folder.ok() ? model : folder.error().text()));
  REQUIRE(folder.ok());
  return std::move(folder).value();
}

/// Normal numbers for every tensor that a set names: small ones for matrices, about one for deviations and norms.
class RandomWeights final : public cards::WeightSource {
public:
  void make(const cards::WeightSet& set) {
    for (const auto& weight : set.weights) {
      Tensor tensor(DType::f32, weight.shape);
      auto values = tensor.as<float>();
      fill_normal(tensors_.size(), RandomStream::synthetic_weights, 0, values);
      const auto fan = static_cast<float>(weight.columns());
      for (auto& value : values)
        value = weight.form != cards::WeightForm::vector                        ? value / std::sqrt(fan)
                : weight.tensor.find("bias") != std::string::npos               ? 0.1F * value
                : weight.tensor == "latents_mean"                               ? value
                                                                                : 1 + 0.1F * value;
      tensors_[weight.tensor] = std::move(tensor);
    }
  }
  Result<TensorView> tensor(const std::string& name) const override { return tensors_.at(name).view(); }
  void release(std::span<const std::byte>) const override {}

private:
  std::map<std::string, Tensor> tensors_;
};

/// Runs programs of a set on a card of its own.
class Bench {
public:
  Bench(std::shared_ptr<const cards::ProgramSet> set, const cards::WeightSource& source, std::uint32_t threads)
      : set_(std::move(set)), card_(card_of(threads)) {
    const auto loaded = card_->load_weights(set_->weights, source, [](std::uint64_t) { return true; });
    INFO((loaded.ok() ? std::string() : loaded.error().text()));
    REQUIRE(loaded.ok());
    const auto lane = card_->open_lane(set_);
    INFO((lane.ok() ? std::string() : lane.error().text()));
    REQUIRE(lane.ok());
    lane_ = lane.value();
  }
  void put(const std::string& input, const Tensor& tensor) {
    const auto memory = card_->memory(lane_, set_->inputs.at(input));
    REQUIRE(memory.size() == tensor.bytes());
    std::memcpy(memory.data(), tensor.data(), tensor.bytes());
  }
  void run(const std::string& program, double latent_frame = 0) {
    cards::Scalars scalars{};
    scalars[static_cast<std::size_t>(cards::Scalar::latent_frame)] = latent_frame;
    const auto index = set_->index_of(program);
    const auto done = card_->run(lane_, index, 0, static_cast<std::uint32_t>(set_->programs[index].commands.size()), scalars);
    INFO((done.ok() ? std::string() : done.error().text()));
    REQUIRE(done.ok());
  }
  Tensor get(const std::string& output) {
    const auto slot = set_->outputs.at(output);
    Tensor tensor(set_->slots[slot].dtype, set_->slots[slot].shape);
    std::memcpy(tensor.data(), card_->memory(lane_, slot).data(), tensor.bytes());
    return tensor;
  }

private:
  std::shared_ptr<const cards::ProgramSet> set_;
  std::unique_ptr<cards::Card> card_;
  cards::LaneId lane_ = 0;
};

/// Decodes a clip frame by frame and at once, and compares all bits.
void check_stream(const CodecConfig& config, const cards::WeightSource& source, Compute compute, const CodecShape& shape, std::uint32_t threads) {
  auto weights = decoder_weights(config, compute);
  REQUIRE(weights.ok());
  auto stream = compile_decoder(config, weights.value(), compute, shape, 0.5);
  INFO((stream.ok() ? std::string() : stream.error().text()));
  REQUIRE(stream.ok());
  const auto whole = compile_decode_whole(config, weights.value(), compute, shape);
  REQUIRE(whole.ok());

  Tensor latents(DType::f32, {config.latent_channels, shape.frames, shape.height, shape.width});
  fill_normal(5, RandomStream::noise, 0, latents.as<float>());
  Bench bench(stream.value(), source, threads);
  bench.put("latents", latents);
  bench.run("prepare");
  const auto vae_input = bench.get("vae_input");
  Bench reference(whole.value(), source, 1);
  reference.put("z", vae_input);
  reference.run("forward");
  const auto expected = reference.get("video");
  const auto size = decoded_shape(config, shape);
  REQUIRE(expected.shape() == Shape{3, size.frames, size.height, size.width});

  std::uint64_t at = 0;
  for (std::uint64_t frame = 0; frame < shape.frames; ++frame) {
    const std::string which = frame == 0 ? "first" : "next";
    bench.run(which, static_cast<double>(frame));
    const auto video = bench.get(which + ".video");
    const auto frames = bench.get(which + ".frames");
    const auto count = video.shape()[1], pixels = size.height * size.width;
    REQUIRE(count == (frame == 0 ? 1 : frames_per_latent(config)));
    REQUIRE(frames.shape() == Shape{count, size.height, size.width, 3});
    for (std::uint64_t c = 0; c < 3; ++c) {
      INFO("latent frame " << frame << ", channel " << c);
      CHECK(std::memcmp(video.as<float>().data() + c * count * pixels, expected.as<float>().data() + (c * size.frames + at) * pixels, count * pixels * 4) == 0);
      const float value = video.as<float>()[c * count * pixels] / 2 + 0.5F;
      CHECK(frames.as<std::uint8_t>()[c] == static_cast<std::uint8_t>(255 * std::min(1.0F, std::max(0.0F, value))));
    }
    at += count;
  }
  CHECK(at == size.frames);
}

}  // namespace

TEST_CASE("vae: f32 outputs are those of the reference", "[golden][vae]") {
  for (const auto& [model, call] : cases) {
    INFO(model << " " << call);
    auto card = card_of(2);
    const auto outputs = run_component(folder_of(model), "vae", testing::tensors_of(testing::golden(std::string(model) + "/" + call + ".in.safetensors")), *card, {Compute::f32, 8});
    INFO((outputs.ok() ? std::string() : outputs.error().text()));
    REQUIRE(outputs.ok());
    const auto reference = testing::tensors_of(testing::golden(std::string(model) + "/" + call + ".out.safetensors"));
    for (const auto& [name, tensor] : outputs.value()) {
      INFO(name);
      REQUIRE(tensor.shape() == reference.at(name).shape());
      CHECK(testing::worst_ratio(tensor.as<float>(), reference.at(name).as<float>(), 3e-5) <= 1.0);
    }
    CHECK(card->use().weights == 0);
  }
}

TEST_CASE("vae: bf16 outputs are near those of the reference", "[golden][vae]") {
  for (const auto& [model, call] : cases) {
    INFO(model << " " << call);
    auto card = card_of(2);
    const auto outputs = run_component(folder_of(model), "vae", testing::tensors_of(testing::golden(std::string(model) + "/" + call + ".in.safetensors")), *card, {Compute::bf16, 8});
    REQUIRE(outputs.ok());
    const auto reference = testing::tensors_of(testing::golden(std::string(model) + "/" + call + ".out.safetensors"));
    for (const auto& [name, tensor] : outputs.value()) {
      INFO(name);
      CHECK(testing::relative_l2(tensor.as<float>(), reference.at(name).as<float>()) <= 3e-2);
    }
  }
}

TEST_CASE("vae: frame by frame gives the bits of the whole clip", "[golden][vae]") {
  for (const char* model : {"vae_cv8x8x8", "vae_attn_4x4x4", "vae_rearrange_4x8x8"})
    for (const auto compute : {Compute::f32, Compute::bf16})
      for (const std::uint32_t threads : {1U, 3U}) {
        INFO(model << (compute == Compute::f32 ? " f32, " : " bf16, ") << threads << " threads");
        const auto folder = folder_of(model);
        const auto files = open_weights(folder, "vae");
        REQUIRE(files.ok());
        check_stream(*folder.codec, *files.value(), compute, {4, 3, 5}, threads);
      }
  const auto folder = folder_of("vae_cv8x8x8");
  const auto files = open_weights(folder, "vae");
  REQUIRE(files.ok());
  check_stream(*folder.codec, *files.value(), Compute::f32, {1, 4, 4}, 2);  // A picture.
}

TEST_CASE("vae: unusual configurations also stream exactly", "[golden][vae]") {
  struct Kind {
    std::uint64_t patch, spatial, temporal;
    bool haar;
    std::vector<std::uint64_t> decoder;
    std::vector<std::uint64_t> attention;
    bool means;
  };
  const Kind kinds[] = {
      {2, 8, 8, true, {4, 6, 6, 8, 8}, {2, 4, 8, 16, 32}, true},  // Two doublings of time, attention everywhere.
      {1, 4, 4, true, {4, 4, 5, 6, 6}, {}, false},                // No patches, no means.
      {4, 8, 4, false, {4, 6, 8}, {8}, true},                     // Space only.
      {2, 2, 2, true, {5, 5}, {16}, false},                       // One block, no sampling.
  };
  for (const auto& kind : kinds)
    for (const auto compute : {Compute::f32, Compute::bf16}) {
      CodecConfig config;
      config.latent_channels = 3;
      config.decoder_channels = config.encoder_channels = kind.decoder;
      config.attention_resolutions = kind.attention;
      config.resolution = 32;
      config.layers = 1;
      config.patch = kind.patch;
      config.haar = kind.haar;
      config.spatial_ratio = kind.spatial;
      config.temporal_ratio = kind.temporal;
      if (kind.means) {
        config.latents_mean.assign(3 * 5, 0);
        config.latents_std.assign(3 * 5, 1);
      }
      INFO("patch " << kind.patch << ", ratios " << kind.spatial << " and " << kind.temporal);
      RandomWeights source;
      const auto weights = decoder_weights(config, compute);
      REQUIRE(weights.ok());
      source.make(*weights.value());
      check_stream(config, source, compute, {4, 2, 3}, 2);
    }
}

TEST_CASE("vae: prepare turns latents into the codec's units", "[golden][vae]") {
  const auto folder = folder_of("vae_attn_4x4x4");
  auto config = *folder.codec;
  const auto files = open_weights(folder, "vae");
  REQUIRE(files.ok());
  Tensor latents(DType::f32, {4, 3, 2, 2});
  fill_normal(6, RandomStream::noise, 0, latents.as<float>());
  for (const bool means : {true, false}) {
    if (!means) config.latents_mean = config.latents_std = {};
    const auto weights = decoder_weights(config, Compute::f32);
    REQUIRE(weights.ok());
    const auto set = compile_decoder(config, weights.value(), Compute::f32, {3, 2, 2}, 0.5);
    REQUIRE(set.ok());
    Bench bench(set.value(), *files.value(), 1);
    bench.put("latents", latents);
    bench.run("prepare");
    const auto got = bench.get("vae_input");
    for (std::size_t i = 0; i < 48; ++i) {
      const auto column = i / 12 * 5 + i / 4 % 3;  // [channel][frame] of tables with 5 frames.
      const double z = static_cast<double>(latents.as<float>()[i]);
      const double expected = means ? z * static_cast<double>(config.latents_std[column]) / 0.5 + static_cast<double>(config.latents_mean[column]) : z / 0.5;
      CHECK(got.as<float>()[i] == Approx(expected).epsilon(1e-6));
    }
  }
}

TEST_CASE("vae: figures of the published decoder are those of the specification", "[golden][vae]") {
  CodecConfig config;
  config.latents_mean.assign(256, 0);
  config.latents_std.assign(256, 1);
  const auto figures = decoder_figures(config, Compute::bf16, {16, 88, 160});
  REQUIRE(figures.ok());
  CHECK(figures.value().flops_linear + figures.value().flops_attention == Approx(61.3e12).epsilon(0.01));
  CHECK(figures.value().flops_attention == Approx(6.5e12).epsilon(0.02));
  const auto weights = decoder_weights(config, Compute::bf16);
  REQUIRE(weights.ok());
  std::uint64_t parameters = 0;
  for (const auto& weight : weights.value()->weights)
    if (!weight.tensor.starts_with("latents_")) parameters += weight.rows() * weight.columns();
  CHECK(parameters == 62'738'560 + 272);  // With post_quant_conv.
  CHECK(figures.value().weight_bytes_replicated == weights.value()->bytes());
  REQUIRE(figures.value().lanes.size() == 1);
  CHECK(figures.value().lanes[0].bytes < std::uint64_t{8} << 30);
  const auto encoder = encoder_weights(config, Compute::bf16);
  REQUIRE(encoder.ok());
  parameters = 0;
  for (const auto& weight : encoder.value()->weights) parameters += weight.rows() * weight.columns();
  CHECK(parameters == 42'914'592 + 272);  // With quant_conv.
}

TEST_CASE("vae: what cannot be computed is refused", "[golden][vae][fault]") {
  const auto folder = folder_of("vae_cv8x8x8");
  const auto& config = *folder.codec;
  const auto decoder = decoder_weights(config, Compute::f32), encoder = encoder_weights(config, Compute::f32);
  REQUIRE((decoder.ok() && encoder.ok()));
  const auto code = [](const auto& result) { return result.ok() ? ErrorCode::internal : result.error().code; };
  CHECK(code(compile_decoder(config, decoder.value(), Compute::f32, {0, 4, 4}, 0.5)) == ErrorCode::invalid_request);
  CHECK(code(compile_decoder(config, decoder.value(), Compute::f32, {1, 4, std::uint64_t{1} << 40}, 0.5)) == ErrorCode::invalid_request);
  CHECK(code(compile_decoder(config, decoder.value(), Compute::f32, {config.frames_max() + 1, 4, 4}, 0.5)) == ErrorCode::invalid_request);
  CHECK(code(compile_decode_whole(config, decoder.value(), Compute::f32, {1, 0, 4})) == ErrorCode::invalid_request);
  CHECK(code(compile_encode(config, encoder.value(), Compute::f32, {9, 32, 36})) == ErrorCode::invalid_request);
  CHECK(code(compile_encode(config, encoder.value(), Compute::f32, {8, 32, 32})) == ErrorCode::invalid_request);
  CHECK(code(compile_encode(config, encoder.value(), Compute::f32, {0, 32, 32})) == ErrorCode::invalid_request);
  auto short_of_blocks = config;
  short_of_blocks.temporal_ratio = 64;
  const auto refused = compile_decoder(short_of_blocks, decoder.value(), Compute::f32, {1, 4, 4}, 0.5);
  CHECK(code(refused) == ErrorCode::unsupported);
  CHECK(refused.error().message.find("temporal_compression_ratio") != std::string::npos);
}

}  // namespace orrery::compiler
