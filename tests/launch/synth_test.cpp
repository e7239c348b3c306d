#include "launch/synth.hpp"

#include <cstring>
#include <filesystem>

#include <catch2/catch.hpp>

#include "compiler/model_folder.hpp"
#include "tests/launch/scratch.hpp"

namespace orrery::launch {
namespace {

const std::string tiny = std::string(ORRERY_SOURCE_DIR) + "/configs/models/cosmos-tiny";

SynthOptions options_for(const std::string& folder) {
  SynthOptions options;
  options.folder = folder;
  options.like = {tiny};
  options.transformer_keys["num_layers"] = 1;
  options.seed = 3;
  return options;
}

bool go_on(std::uint64_t, std::uint64_t) { return true; }

}  // namespace

TEST_CASE("synth: the folder is a whole model with every tensor, and the seed decides its bytes", "[launch]") {
  const Scratch scratch;
  const auto made = synthesize_model(options_for(scratch.path("a")), go_on);
  REQUIRE(made.ok());
  auto sharded = options_for(scratch.path("b"));
  sharded.shard_bytes = 100'000;
  REQUIRE(synthesize_model(sharded, go_on).ok());
  auto other = options_for(scratch.path("c"));
  other.seed = 4;
  REQUIRE(synthesize_model(other, go_on).ok());

  const auto open = [&](const std::string& name) { return compiler::open_model_folder(scratch.path(name)); };
  const auto a = open("a"), b = open("b"), c = open("c");
  REQUIRE((a.ok() && b.ok() && c.ok()));
  CHECK(a.value().has_tokenizer);
  CHECK(a.value().transformer->layers == 1);
  std::uint64_t bytes = 0;
  for (const char* component : {"transformer", "text_encoder", "vae"}) {
    const auto of_a = compiler::open_weights(a.value(), component), of_b = compiler::open_weights(b.value(), component),
               of_c = compiler::open_weights(c.value(), component);
    REQUIRE((of_a.ok() && of_b.ok() && of_c.ok()));
    CHECK(of_a.value()->names() == of_b.value()->names());
    bytes += of_a.value()->bytes();
    for (const auto& name : of_a.value()->names()) {
      if (name == "latents_mean" || name == "latents_std") continue;
      const auto first = of_a.value()->tensor(name), second = of_b.value()->tensor(name), third = of_c.value()->tensor(name);
      REQUIRE((first.ok() && second.ok() && third.ok()));
      INFO(name);
      CHECK(std::memcmp(first.value().data, second.value().data, first.value().bytes()) == 0);
      CHECK(std::memcmp(first.value().data, third.value().data, first.value().bytes()) != 0);
    }
  }
  CHECK(bytes >= made.value().bytes);
}

TEST_CASE("synth: a stop, a taken name or an unknown model leaves nothing", "[launch]") {
  const Scratch scratch;
  const auto stopped = synthesize_model(options_for(scratch.path("a")), [](std::uint64_t done, std::uint64_t) { return done < 10'000; });
  CHECK(stopped.error().code == ErrorCode::cancelled);
  CHECK(scratch.entry_count() == 0);
  auto unknown = options_for(scratch.path("a"));
  unknown.like = {"nothing-like-it"};
  CHECK(synthesize_model(unknown, go_on).error().code == ErrorCode::usage);
  auto bad = options_for(scratch.path("a"));
  bad.transformer_keys["num_layers"] = -1;
  CHECK_FALSE(synthesize_model(bad, go_on).ok());
  CHECK(scratch.entry_count() == 0);
  CHECK(synthesize_model(options_for(tiny), go_on).error().code == ErrorCode::io_failed);
}

}  // namespace orrery::launch
