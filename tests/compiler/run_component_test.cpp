// One component on one card: inputs that do not fit are refused in clear words, and batches are done item by item.

#include <limits>

#include "compiler/run_component.hpp"
#include "tests/support/tensor_files.hpp"

namespace orrery::compiler {
namespace {

/// A component of a golden folder on a small card.
class Component {
public:
  Component(const std::string& path, std::string component, std::uint64_t memory = std::uint64_t{1} << 28)
      : component_(std::move(component)) {
    auto folder = open_model_folder(testing::golden(path));
    REQUIRE(folder.ok());
    folder_ = std::move(folder).value();
    auto card = cards::make_cpu_card({"test", memory, 1});
    REQUIRE(card.ok());
    card_ = std::move(card).value();
  }
  Result<NamedTensors> operator()(const NamedTensors& inputs) {
    auto outputs = run_component(folder_, component_, inputs, *card_, {});
    CHECK(card_->use().weights == 0);
    CHECK(card_->use().lanes == 0);
    return outputs;
  }
  void refuses(const NamedTensors& inputs, const std::string& says, ErrorCode code = ErrorCode::invalid_request) {
    const auto outputs = (*this)(inputs);
    INFO(says);
    REQUIRE(!outputs.ok());
    INFO(outputs.error().text());
    CHECK(outputs.error().code == code);
    CHECK(outputs.error().text().find(says) != std::string::npos);
  }

private:
  ModelFolder folder_;
  std::string component_;
  std::unique_ptr<cards::Card> card_;
};

NamedTensors with(NamedTensors inputs, const std::string& name, Tensor tensor) {
  inputs[name] = std::move(tensor);
  return inputs;
}
NamedTensors without(NamedTensors inputs, const std::string& name) {
  inputs.erase(name);
  return inputs;
}
Tensor filled(DType dtype, Shape shape, float value) {
  Tensor tensor(dtype, std::move(shape));
  if (dtype == DType::f32) std::fill(tensor.as<float>().begin(), tensor.as<float>().end(), value);
  if (dtype == DType::i64)
    std::fill(tensor.as<std::int64_t>().begin(), tensor.as<std::int64_t>().end(), static_cast<std::int64_t>(value));
  return tensor;
}

}  // namespace

TEST_CASE("component: inputs of the transformer that do not fit are refused", "[compiler][hostile]") {
  Component run("transformer_a/transformer", "transformer");
  const auto good = testing::tensors_of(testing::golden("transformer_a/nofps.in.safetensors"));
  REQUIRE(run(good).ok());
  run.refuses({}, "'hidden_states' is missing");
  run.refuses(without(good, "timestep"), "'timestep' is missing");
  run.refuses(without(good, "encoder_hidden_states"), "[B,S,E]");
  run.refuses(with(good, "surprise", Tensor(DType::f32, {1})), "'surprise' is not an input");
  run.refuses(with(good, "hidden_states", Tensor(DType::f32, {1, 4, 2, 6})), "has shape [1, 4, 2, 6]");
  run.refuses(with(good, "hidden_states", Tensor(DType::f32, {1, 5, 2, 6, 8})), "expected [any, 4, any, any, any]");
  run.refuses(with(good, "hidden_states", Tensor(DType::f32, {0, 4, 2, 6, 8})), "has shape [0");
  run.refuses(with(good, "hidden_states", Tensor(DType::f32, {1, 4, 2, 7, 8})), "multiple of the model's patch size");
  run.refuses(with(good, "hidden_states", Tensor(DType::f32, {1, 4, 9, 6, 8})), "max_size");
  run.refuses(with(good, "hidden_states", Tensor(DType::u16, {1, 4, 2, 6, 8})), "cannot be read as f32");
  run.refuses(with(good, "timestep", Tensor(DType::f32, {2})), "'timestep' has shape [2]");
  run.refuses(with(good, "encoder_hidden_states", Tensor(DType::f32, {1, 5, 33})), "expected [1, any, 32]");
  run.refuses(with(good, "fps", filled(DType::f32, {1}, -2)), "'fps' is -2");
  run.refuses(with(good, "fps", filled(DType::f32, {1}, std::numeric_limits<float>::quiet_NaN())), "'fps' is nan");
  run.refuses(with(good, "padding_mask", Tensor(DType::f32, {2, 1, 48, 64})), "'padding_mask'");
  run.refuses(with(good, "condition_mask", Tensor(DType::f32, {1, 1, 2, 6, 8})), "expected [any, 3");
  run.refuses(with(good, "attention_mask", Tensor(DType::f32, {1, 5})), "keeps no text row");
  Component other("t5_encoder/text_encoder", "transformer");
  other.refuses(good, "has no transformer", ErrorCode::not_found);
  Component nothing("transformer_a/transformer", "unet");
  nothing.refuses(good, "components: transformer", ErrorCode::invalid_request);
}

TEST_CASE("component: a card that is too small says so and keeps nothing", "[compiler]") {
  Component run("transformer_a/transformer", "transformer", 1 << 16);
  run.refuses(testing::tensors_of(testing::golden("transformer_a/nofps.in.safetensors")), "",
              ErrorCode::card_memory_exhausted);
}

TEST_CASE("component: ids outside of the vocabulary are refused", "[compiler][hostile]") {
  Component run("t5_encoder/text_encoder", "text_encoder");
  const auto good = testing::tensors_of(testing::golden("t5_encoder/in.safetensors"));
  run.refuses(with(good, "input_ids", filled(DType::i64, {2, 24}, 64)), "vocabulary has 64");
  run.refuses(with(good, "input_ids", filled(DType::i64, {2, 24}, -1)), "vocabulary has 64");
  run.refuses(with(good, "input_ids", filled(DType::f32, {2, 24}, 1.5F)), "vocabulary has 64");
  run.refuses(with(good, "input_ids", filled(DType::f32, {2, 24}, std::numeric_limits<float>::infinity())),
              "vocabulary has 64");
  run.refuses(with(good, "input_ids", Tensor(DType::i64, {24})), "[B,S]");
  run.refuses(with(good, "attention_mask", Tensor(DType::i64, {2, 23})), "'attention_mask' has shape [2, 23]");
  run.refuses(with(good, "attention_mask", Tensor(DType::i64, {2, 24})), "keeps no text row");
  run.refuses({}, "'input_ids' is missing");
}

TEST_CASE("component: each item of a batch gets what it gets alone", "[compiler]") {
  Component run("transformer_a/transformer", "transformer");
  const auto one = testing::tensors_of(testing::golden("transformer_a/nofps.in.safetensors"));
  auto two = one;
  for (const char* name : {"hidden_states", "timestep", "encoder_hidden_states"}) {
    auto shape = one.at(name).shape();
    shape[0] = 2;
    Tensor both(DType::f32, shape);
    const auto from = one.at(name).as<float>();
    const auto to = both.as<float>();
    for (std::size_t i = 0; i < from.size(); ++i) {
      to[i] = -0.5F * from[i];
      to[from.size() + i] = from[i];
    }
    two[name] = std::move(both);
  }
  const auto alone = run(one);
  const auto batch = run(two);
  REQUIRE(alone.ok());
  REQUIRE(batch.ok());
  const auto expected = alone.value().at("sample").as<float>();
  const auto got = batch.value().at("sample").as<float>();
  REQUIRE(got.size() == 2 * expected.size());
  CHECK(std::memcmp(got.data() + expected.size(), expected.data(), expected.size_bytes()) == 0);
  CHECK(std::memcmp(got.data(), expected.data(), expected.size_bytes()) != 0);
}

TEST_CASE("component: text keys outside of the mask have no influence", "[compiler]") {
  Component run("transformer_a/transformer", "transformer");
  auto inputs = testing::tensors_of(testing::golden("transformer_a/nofps.in.safetensors"));
  inputs["attention_mask"] = filled(DType::f32, {1, 5}, 1);
  const auto all = run(inputs);
  inputs["attention_mask"].as<float>()[4] = 0;
  const auto masked = run(inputs);
  for (std::size_t i = 4 * 32; i < 5 * 32; ++i) inputs["encoder_hidden_states"].as<float>()[i] = 1000;
  const auto changed = run(inputs);
  REQUIRE(changed.ok());
  const auto bytes = all.value().at("sample").bytes();
  CHECK(std::memcmp(masked.value().at("sample").data(), changed.value().at("sample").data(), bytes) == 0);
  CHECK(std::memcmp(masked.value().at("sample").data(), all.value().at("sample").data(), bytes) != 0);
}

}  // namespace orrery::compiler
