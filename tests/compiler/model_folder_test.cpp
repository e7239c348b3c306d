// Configurations: defaults, ranges, classes, and options that would change the result.

#include "compiler/model_folder.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

using testing::TemporaryFolder;

template <class Config>
void refuses(Result<Config> (*read)(const std::string&), const std::string& json, ErrorCode code, const std::string& says) {
  TemporaryFolder folder;
  const auto path = folder.write("config.json", json);
  const auto config = read(path);
  INFO(json);
  REQUIRE(!config.ok());
  INFO(config.error().text());
  CHECK(config.error().code == code);
  CHECK(config.error().message.find(path) != std::string::npos);
  CHECK(config.error().text().find(says) != std::string::npos);
}

template <class Config>
Config accepts(Result<Config> (*read)(const std::string&), const std::string& json) {
  TemporaryFolder folder;
  auto config = read(folder.write("config.json", json));
  INFO((config.ok() ? json : config.error().text()));
  REQUIRE(config.ok());
  return config.value();
}

}  // namespace

TEST_CASE("model folder: a published pipeline is read whole", "[compiler]") {
  auto folder = open_model_folder(testing::golden("pipeline_text2world/model"));
  INFO((folder.ok() ? std::string() : folder.error().text()));
  REQUIRE(folder.ok());
  REQUIRE(folder.value().transformer);
  CHECK(folder.value().transformer->width() == 32);
  CHECK(folder.value().transformer->max_size == std::array<std::uint64_t, 3>{16, 24, 24});
  REQUIRE(folder.value().text_encoder);
  CHECK(folder.value().text_encoder->vocabulary == 160);
  REQUIRE(folder.value().codec);
  CHECK(folder.value().codec->frames_max() == 16);
  REQUIRE(folder.value().scheduler);
  CHECK(folder.value().scheduler->final_sigma == SchedulerConfig::FinalSigma::sigma_min);
  CHECK(folder.value().has_tokenizer);
  CHECK(folder.value().generation.steps == 36);
  CHECK(folder.value().generation.negative_prompt.starts_with("The video captures"));
  auto weights = open_weights(folder.value(), "transformer");
  REQUIRE(weights.ok());
  CHECK(weights.value()->has("proj_out.weight"));
}

TEST_CASE("model folder: a component folder can be opened alone", "[compiler]") {
  auto folder = open_model_folder(testing::golden("transformer_c_bf16_v2w/transformer/"));
  REQUIRE(folder.ok());
  CHECK(folder.value().single_component == "transformer");
  CHECK(!folder.value().transformer->learnable_positions);
  CHECK(folder.value().transformer->rope_scale == std::array<double, 3>{1, 3, 3});
  CHECK(open_model_folder(testing::golden("t5_encoder/text_encoder")).value().single_component == "text_encoder");
  CHECK(open_model_folder(testing::golden("vae_cv8x8x8/vae")).value().single_component == "vae");
  CHECK(open_model_folder(testing::golden("no_such_folder")).error().code == ErrorCode::not_found);
  TemporaryFolder empty;
  CHECK(open_model_folder(empty.path()).error().code == ErrorCode::not_found);
  empty.write("config.json", R"({"_class_name":"UNet2DConditionModel"})");
  CHECK(open_model_folder(empty.path()).error().code == ErrorCode::unsupported);
}

TEST_CASE("model folder: missing keys take the defaults, unknown keys are ignored", "[compiler]") {
  const auto config = accepts(read_transformer_config, R"({"_class_name":"CosmosTransformer3DModel","a_later_key":[1,{}]})");
  CHECK(config.width() == 4096);
  CHECK(config.feed_forward() == 16384);
  CHECK(config.token_inputs() == 68);
  CHECK(config.learnable_positions);
  CHECK(accepts(read_scheduler_config, "{}").final_sigma == SchedulerConfig::FinalSigma::zero);
  CHECK(accepts(read_codec_config, "{}").latents_mean.empty());
  CHECK(accepts(read_generation_config, R"({"num_frames":9,"guidance_scale":1.2,"negative_prompt":""})").negative_prompt.empty());
  CHECK(accepts(read_generation_config, "{}").frames == 121);
}

TEST_CASE("model folder: options of later generations are inert or refused", "[compiler]") {
  accepts(read_transformer_config, R"({"use_crossattn_projection":false,"crossattn_proj_in_channels":1024,"encoder_hidden_states_channels":1024,
      "controlnet_block_every_n":null,"img_context_dim_in":null,"img_context_num_tokens":256,"img_context_dim_out":2048})");
  refuses(read_transformer_config, R"({"use_crossattn_projection":true})", ErrorCode::unsupported, "use_crossattn_projection");
  refuses(read_transformer_config, R"({"controlnet_block_every_n":7})", ErrorCode::unsupported, "controlnet_block_every_n");
  refuses(read_transformer_config, R"({"img_context_dim_in":1152})", ErrorCode::unsupported, "img_context_dim_in");
  refuses(read_transformer_config, R"({"extra_pos_embed_type":"sinusoidal"})", ErrorCode::unsupported, "extra_pos_embed_type");
  refuses(read_text_encoder_config, R"({"feed_forward_proj":"gated-gelu"})", ErrorCode::unsupported, "feed_forward_proj");
}

TEST_CASE("model folder: numbers out of range are refused by key", "[compiler][hostile]") {
  const auto bad = ErrorCode::invalid_model;
  refuses(read_transformer_config, R"({"num_layers":0})", bad, "num_layers");
  refuses(read_transformer_config, R"({"num_layers":-1})", bad, "num_layers");
  refuses(read_transformer_config, R"({"num_layers":1e30})", bad, "num_layers");
  refuses(read_transformer_config, R"({"num_layers":2.5})", bad, "num_layers");
  refuses(read_transformer_config, R"({"num_layers":"28"})", bad, "num_layers");
  refuses(read_transformer_config, R"({"num_attention_heads":1000000000})", bad, "num_attention_heads");
  refuses(read_transformer_config, R"({"attention_head_dim":13})", bad, "attention_head_dim");
  refuses(read_transformer_config, R"({"attention_head_dim":8})", ErrorCode::unsupported, "attention_head_dim");
  refuses(read_transformer_config, R"({"num_attention_heads":1024,"attention_head_dim":1024,"mlp_ratio":1e300})", bad, "mlp_ratio");
  refuses(read_transformer_config, R"({"patch_size":[1,2]})", bad, "patch_size");
  refuses(read_transformer_config, R"({"patch_size":[1,0,2]})", bad, "patch_size");
  refuses(read_transformer_config, R"({"patch_size":2})", bad, "patch_size");
  refuses(read_transformer_config, R"({"rope_scale":[1,0,1]})", bad, "rope_scale");
  refuses(read_transformer_config, R"({"max_size":[1,1,1]})", bad, "max_size");
  refuses(read_transformer_config, R"({"concat_padding_mask":"yes"})", bad, "concat_padding_mask");
  refuses(read_transformer_config, R"([])", bad, "not a JSON object");
  refuses(read_transformer_config, R"({"num_layers":2,"num_layers":3})", bad, "twice");
  refuses(read_text_encoder_config, R"({"relative_attention_num_buckets":30})", bad, "relative_attention_num_buckets");
  refuses(read_text_encoder_config, R"({"d_model":0})", bad, "d_model");
  refuses(read_codec_config, R"({"patch_size":3})", bad, "patch_size");
  refuses(read_codec_config, R"({"spatial_compression_ratio":2})", bad, "spatial_compression_ratio");
  refuses(read_codec_config, R"({"latents_mean":[1,2,3]})", bad, "latents_mean");
  refuses(read_codec_config, R"({"latent_channels":1,"latents_mean":[1,2],"latents_std":[1]})", bad, "latents_std");
  refuses(read_codec_config, R"({"latent_channels":1,"latents_mean":[1],"latents_std":[0]})", bad, "latents_std");
  refuses(read_scheduler_config, R"({"sigma_min":5,"sigma_max":1})", bad, "sigma_min");
  refuses(read_scheduler_config, R"({"rho":0})", bad, "rho");
  refuses(read_scheduler_config, R"({"prediction_type":"sample"})", ErrorCode::unsupported, "prediction_type");
  refuses(read_generation_config, R"({"fps":0})", bad, "fps");
}

TEST_CASE("model folder: a wrong class is named with the supported ones", "[compiler]") {
  TemporaryFolder folder;
  folder.write("model_index.json", R"({"_class_name":"CosmosTextToWorldPipeline","transformer":["diffusers","SD3Transformer2DModel"]})");
  auto opened = open_model_folder(folder.path());
  REQUIRE(!opened.ok());
  CHECK(opened.error().code == ErrorCode::unsupported);
  CHECK(opened.error().text().find("SD3Transformer2DModel") != std::string::npos);
  CHECK(opened.error().text().find("CosmosTransformer3DModel") != std::string::npos);
  folder.write("model_index.json", R"({"_class_name":"CosmosTextToWorldPipeline","safety_checker":[null,null],"something_new":["a","B"]})");
  CHECK(open_model_folder(folder.path()).ok());
  folder.write("model_index.json", R"({"_class_name":"StableDiffusionPipeline"})");
  CHECK(open_model_folder(folder.path()).error().code == ErrorCode::unsupported);
}

}  // namespace orrery::compiler
