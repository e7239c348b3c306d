// The text encoder alone against the reference implementation.

#include "cards/card.hpp"
#include "compiler/run_component.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

NamedTensors run(const std::string& model, Compute compute) {
  auto folder = open_model_folder(testing::golden(model + "/text_encoder"));
  INFO((folder.ok() ? model : folder.error().text()));
  REQUIRE(folder.ok());
  auto card = cards::make_cpu_card({"test", std::uint64_t{1} << 30, 2});
  REQUIRE(card.ok());
  auto outputs = run_component(folder.value(), "text_encoder", testing::tensors_of(testing::golden(model + "/in.safetensors")), *card.value(),
                               {compute, 8});
  INFO((outputs.ok() ? std::string() : outputs.error().text()));
  REQUIRE(outputs.ok());
  return std::move(outputs).value();
}

}  // namespace

TEST_CASE("text encoder: its f32 output is that of the reference", "[golden]") {
  for (const char* model : {"t5_encoder", "t5_encoder_long"}) {
    const auto outputs = run(model, Compute::f32);
    const auto reference = testing::tensors_of(testing::golden(std::string(model) + "/out.safetensors"));
    for (const char* name : {"last_hidden_state", "prompt_embeds"}) {
      INFO(model << " " << name);
      CHECK(testing::worst_ratio(outputs.at(name).as<float>(), reference.at(name).as<float>(), 3e-5) <= 1.0);
    }
  }
}

TEST_CASE("text encoder: its bf16 output is near that of the reference", "[golden]") {
  for (const char* model : {"t5_encoder", "t5_encoder_long"}) {
    const auto outputs = run(model, Compute::bf16);
    const auto reference = testing::tensors_of(testing::golden(std::string(model) + "/out.safetensors"));
    INFO(model);
    CHECK(testing::relative_l2(outputs.at("prompt_embeds").as<float>(), reference.at("prompt_embeds").as<float>()) <= 3e-2);
  }
}

}  // namespace orrery::compiler
