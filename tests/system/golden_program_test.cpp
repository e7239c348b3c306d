// The program against the reference implementation: `orrery infer` on every component's goldens, `orrery generate` on
// the complete pipelines, as a user would run them.

#include <catch2/catch.hpp>

#include "base/json.hpp"
#include "tests/support/command.hpp"
#include "tests/support/tensor_files.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

struct Component {
  std::string folder, input, output;
  std::vector<std::string> tensors;
  double tolerance = 3e-5;
};

const std::vector<Component> components = {
    {"transformer_a/transformer", "transformer_a/fps30.in", "transformer_a/fps30.out", {"sample"}},
    {"transformer_a/transformer", "transformer_a/fps24_t1.in", "transformer_a/fps24_t1.out", {"sample"}},
    {"transformer_a/transformer", "transformer_a/nofps.in", "transformer_a/nofps.out", {"sample"}},
    {"transformer_b/transformer", "transformer_b/padmask.in", "transformer_b/padmask.out", {"sample"}},
    {"transformer_c_bf16_v2w/transformer", "transformer_c_bf16_v2w/cond.in", "transformer_c_bf16_v2w/cond.out", {"sample"}},
    {"transformer_eps/transformer", "transformer_eps/small.in", "transformer_eps/small.out", {"sample"}},
    {"transformer_tp8/transformer", "transformer_tp8/t8.in", "transformer_tp8/t8.out", {"sample"}},
    {"vae_cv8x8x8/vae", "vae_cv8x8x8/enc17.in", "vae_cv8x8x8/enc17.out", {"latent"}},
    {"vae_cv8x8x8/vae", "vae_cv8x8x8/dec3.in", "vae_cv8x8x8/dec3.out", {"video"}},
    {"vae_cv8x8x8/vae", "vae_cv8x8x8/image1.in", "vae_cv8x8x8/image1.out", {"latent", "video"}},
    {"vae_attn_4x4x4/vae", "vae_attn_4x4x4/enc9.in", "vae_attn_4x4x4/enc9.out", {"latent"}},
    {"vae_attn_4x4x4/vae", "vae_attn_4x4x4/dec3.in", "vae_attn_4x4x4/dec3.out", {"video"}},
    {"vae_rearrange_4x8x8/vae", "vae_rearrange_4x8x8/enc9.in", "vae_rearrange_4x8x8/enc9.out", {"latent"}},
    {"vae_rearrange_4x8x8/vae", "vae_rearrange_4x8x8/dec2.in", "vae_rearrange_4x8x8/dec2.out", {"video"}},
    {"t5_encoder/text_encoder", "t5_encoder/in", "t5_encoder/out", {"last_hidden_state", "prompt_embeds"}},
    {"t5_encoder_long/text_encoder", "t5_encoder_long/in", "t5_encoder_long/out", {"last_hidden_state", "prompt_embeds"}},
};

void check_near(const Tensor& got, const Tensor& expected, double tolerance) {
  CHECK(got.shape() == expected.shape());
  CHECK(worst_ratio(got.as<float>(), expected.as<float>(), tolerance) <= 1.0);
}

/// Runs a whole pipeline and compares every tensor that both sides have.
void check_pipeline(const std::string& name, const std::string& model, const std::string& folder, const std::vector<std::string>& more,
                    const char* dtype) {
  INFO(name << " " << dtype);
  ScratchFolder scratch;
  const auto request = read_json_file(golden(folder + "/request.json"));
  REQUIRE(request.ok());
  const auto& json = request.value();
  const auto text = [&](const char* a, const char* b) { return std::to_string(json.contains(a) ? json[a].get<int>() : json[b].get<int>()); };
  const auto guidance = json.contains("guidance") ? json["guidance"].get<double>() : json["guidance_scale"].get<double>();
  std::vector<std::string> command = {ORRERY_BINARY, "--progress", "none", "generate", json["prompt"].get<std::string>(), "--model", model,
                                      "--negative-prompt", json["negative_prompt"].get<std::string>(), "--size",
                                      std::to_string(json["width"].get<int>()) + "x" + std::to_string(json["height"].get<int>()), "--frames",
                                      std::to_string(json["num_frames"].get<int>()), "--steps", text("steps", "num_inference_steps"), "--guidance",
                                      std::to_string(guidance), "--fps", std::to_string(json["fps"].get<int>()), "--max-text-tokens",
                                      text("L", "max_sequence_length"), "--dtype", dtype, "--noise", golden(folder + "/in.safetensors"),
                                      "--save-tensors", scratch.file("out.safetensors"), "-o", scratch.file("v.y4m")};
  command.insert(command.end(), more.begin(), more.end());
  const auto result = run_command(scratch, command);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const auto got = tensors_of(scratch.file("out.safetensors"));
  const auto expected = tensors_of(golden(folder + "/out.safetensors"));
  std::size_t compared = 0;
  for (const auto& [key, tensor] : expected) {
    // The tiny model's file numbers steps with two digits.
    auto ours = key;
    if (ours.starts_with("step0") && ours.size() > 7 && ours[6] == '.') ours.erase(4, 1);
    if (key == "sigmas" || key == "timesteps" || key == "final_latents") continue;
    INFO(key);
    REQUIRE(got.contains(ours));
    ++compared;
    if (key == "frames_u8") {
      const auto a = got.at(ours).as<std::uint8_t>();
      const auto b = tensor.as<std::uint8_t>();
      REQUIRE(a.size() == b.size());
      std::size_t different = 0;
      int worst = 0;
      for (std::size_t i = 0; i < a.size(); ++i) {
        different += a[i] != b[i] ? 1 : 0;
        worst = std::max(worst, std::abs(int{a[i]} - int{b[i]}));
      }
      if (std::string(dtype) == "float32") {
        CHECK(worst <= 1);
        CHECK(static_cast<double>(different) <= 0.005 * static_cast<double>(a.size()));
      }
    } else if (std::string(dtype) == "float32") {
      check_near(got.at(ours), tensor, key.find("embeds") != std::string::npos ? 3e-5 : 1e-4);
    } else {
      CHECK(relative_l2(got.at(ours).as<float>(), tensor.as<float>()) <= 3e-2);
    }
  }
  CHECK(compared >= 7);
}

}  // namespace

TEST_CASE("orrery infer: every component's float32 output is that of the reference", "[system][golden]") {
  for (const auto& component : components) {
    INFO(component.input);
    ScratchFolder scratch;
    const auto result = run_command(scratch, {ORRERY_BINARY, "infer", golden(component.folder), "--inputs", golden(component.input + ".safetensors"),
                                              "--outputs", scratch.file("out.safetensors")});
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    const auto got = tensors_of(scratch.file("out.safetensors"));
    const auto expected = tensors_of(golden(component.output + ".safetensors"));
    for (const auto& name : component.tensors) check_near(got.at(name), expected.at(name), component.tolerance);
  }
}

TEST_CASE("orrery infer: every component's bfloat16 output is near that of the reference", "[system][golden]") {
  for (const auto& component : components) {
    INFO(component.input);
    ScratchFolder scratch;
    const auto result = run_command(scratch, {ORRERY_BINARY, "infer", golden(component.folder), "--inputs", golden(component.input + ".safetensors"),
                                              "--outputs", scratch.file("out.safetensors"), "--dtype", "bfloat16"});
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    const auto got = tensors_of(scratch.file("out.safetensors"));
    const auto expected = tensors_of(golden(component.output + ".safetensors"));
    for (const auto& name : component.tensors) CHECK(relative_l2(got.at(name).as<float>(), expected.at(name).as<float>()) <= 3e-2);
  }
}

TEST_CASE("orrery infer scheduler: every schedule is that of the reference", "[system][golden]") {
  const std::vector<std::pair<std::string, int>> cases = {
      {"published36", 36}, {"karras4", 4}, {"nvidia35_zero", 35}, {"exponential10", 10}, {"vpred5", 5}};
  for (const auto& [name, steps] : cases) {
    INFO(name);
    ScratchFolder scratch;
    const auto result = run_command(
        scratch, {ORRERY_BINARY, "infer", golden("scheduler/" + name), "--steps", std::to_string(steps), "--outputs", scratch.file("out.safetensors")});
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    const auto got = tensors_of(scratch.file("out.safetensors"));
    for (const auto& [key, expected] : tensors_of(golden("scheduler/" + name + "/schedule.safetensors"))) {
      const auto a = got.at(key).as<float>();
      const auto b = expected.as<float>();
      REQUIRE(a.size() == b.size());
      for (std::size_t i = 0; i < a.size(); ++i) CHECK(a[i] == Approx(b[i]).epsilon(1e-6).margin(1e-9));
    }
  }
}

TEST_CASE("orrery infer tokenizer: prints the reference ids", "[system][golden]") {
  const auto json = read_json_file(golden("tokenizer/cases.json"));
  REQUIRE(json.ok());
  std::size_t compared = 0;
  for (const auto& each : json.value()["cases"]) {
    const auto text = each["text"].get<std::string>();
    // A few through the program, as a shell can give them; all in test_golden.
    if (text.empty() || text.find('\0') != std::string::npos || compared == 12) continue;
    ScratchFolder scratch;
    const auto result = run_command(scratch, {ORRERY_BINARY, "infer", golden("tokenizer/tokenizer"), "--text=" + text, "-o", "json"});
    INFO(text << "\n" << result.err);
    REQUIRE(result.exit_code == 0);
    const auto got = parse_json(result.out, "output");
    REQUIRE(got.ok());
    CHECK(got.value()["ids"] == each["ids_unpadded_with_eos"]);
    ++compared;
  }
  CHECK(compared >= 5);
}

TEST_CASE("orrery generate: the complete pipeline follows the reference step by step", "[system][golden][slow]") {
  const std::string tiny = ORRERY_SOURCE_DIR "/configs/models/cosmos-tiny";
  const std::vector<std::string> two_nodes = {"-f", ORRERY_SOURCE_DIR "/configs/clusters/two_nodes.yaml"};
  check_pipeline("reference pipeline on one node", golden("pipeline_text2world/model"), "pipeline_text2world", {}, "float32");
  check_pipeline("reference pipeline on two nodes", golden("pipeline_text2world/model"), "pipeline_text2world", two_nodes, "float32");
  check_pipeline("tiny model, red circle", tiny, "cosmos_tiny/red_circle_right", two_nodes, "float32");
  check_pipeline("tiny model, blue square", tiny, "cosmos_tiny/big_blue_square_up_dark", {}, "float32");
  check_pipeline("tiny model in bfloat16", tiny, "cosmos_tiny/red_circle_right", two_nodes, "bfloat16");
  check_pipeline("reference pipeline in bfloat16", golden("pipeline_text2world/model"), "pipeline_text2world", {}, "bfloat16");
}
