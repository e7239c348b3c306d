// The transformer alone against the reference implementation.

#include "cards/card.hpp"
#include "compiler/run_component.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

struct Case {
  const char* model;
  const char* name;
};
constexpr Case cases[] = {{"transformer_a", "fps30"}, {"transformer_a", "fps24_t1"},        {"transformer_a", "nofps"}, {"transformer_b", "padmask"},
                          {"transformer_c_bf16_v2w", "cond"}, {"transformer_eps", "small"}, {"transformer_tp8", "t8"}};

NamedTensors run(const Case& which, const ComponentOptions& options) {
  auto folder = open_model_folder(testing::golden(std::string(which.model) + "/transformer"));
  INFO((folder.ok() ? std::string(which.model) : folder.error().text()));
  REQUIRE(folder.ok());
  auto card = cards::make_cpu_card({"test", std::uint64_t{1} << 30, 2});
  REQUIRE(card.ok());
  auto inputs = testing::tensors_of(testing::golden(std::string(which.model) + "/" + which.name + ".in.safetensors"));
  auto outputs = run_component(folder.value(), "transformer", inputs, *card.value(), options);
  INFO((outputs.ok() ? std::string() : outputs.error().text()));
  REQUIRE(outputs.ok());
  return std::move(outputs).value();
}

Tensor reference(const Case& which) {
  return std::move(testing::tensors_of(testing::golden(std::string(which.model) + "/" + which.name + ".out.safetensors")).at("sample"));
}

}  // namespace

TEST_CASE("transformer: its f32 output is that of the reference", "[golden]") {
  for (const auto& which : cases) {
    const auto outputs = run(which, {Compute::f32, 8});
    const auto expected = reference(which);
    INFO(which.model << "/" << which.name);
    CHECK(outputs.at("sample").shape() == expected.shape());
    CHECK(testing::worst_ratio(outputs.at("sample").as<float>(), expected.as<float>(), 3e-5) <= 1.0);
  }
}

TEST_CASE("transformer: its bf16 output is near that of the reference", "[golden]") {
  for (const auto& which : cases) {
    const auto outputs = run(which, {Compute::bf16, 8});
    INFO(which.model << "/" << which.name);
    const auto expected = reference(which);
    CHECK(testing::relative_l2(outputs.at("sample").as<float>(), expected.as<float>()) <= 3e-2);
  }
}

TEST_CASE("transformer: the number of slices is no part of the meaning", "[golden]") {
  const Case which = {"transformer_tp8", "t8"};
  for (const std::uint32_t slices : {1U, 2U, 4U}) {
    const auto outputs = run(which, {Compute::f32, slices});
    const auto expected = reference(which);
    CHECK(testing::worst_ratio(outputs.at("sample").as<float>(), expected.as<float>(), 3e-5) <= 1.0);
  }
}

}  // namespace orrery::compiler
