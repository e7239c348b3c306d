// What a request gets when it says nothing: flags before the Model document before the folder's generation_config.json.

#include <catch2/catch.hpp>

#include "base/json.hpp"
#include "tests/support/command.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

Json made_from(const ScratchFolder& scratch, const std::vector<std::string>& more) {
  std::vector<std::string> command = {ORRERY_BINARY, "--progress", "none", "generate", "a red circle", "-f", ORRERY_SOURCE_DIR "/configs/clusters/laptop.yaml",
                                      "--steps", "2", "-o", scratch.file("v.y4m")};
  command.insert(command.end(), more.begin(), more.end());
  const auto result = run_command(scratch, command);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const auto json = read_json_file(scratch.file("v.y4m.json"));
  REQUIRE(json.ok());
  return json.value()["made_from"];
}

}  // namespace

TEST_CASE("request: flags come before the model's YAML, and that before its folder", "[system]") {
  ScratchFolder scratch;
  const std::string folder = ORRERY_SOURCE_DIR "/configs/models/cosmos-tiny";
  const auto yaml = [&](const std::string& defaults) {
    return scratch.write("model.yaml", "apiVersion: orrery/v1\nkind: Model\nmetadata: {name: m}\nspec:\n  folder: " + folder + "\n  dtype: float32\n" + defaults);
  };
  const auto alone = made_from(scratch, {"--model", folder});
  CHECK(alone["num_frames"] == 9);
  CHECK(alone["guidance_scale"] == 1.2);
  CHECK(alone["fps"] == 8.0);

  const auto silent = made_from(scratch, {"-f", yaml("")});
  CHECK(silent["num_frames"] == 9);
  CHECK(silent["max_text_tokens"] == 64);

  const auto written = made_from(scratch, {"-f", yaml("  defaults: {size: 32x48, num_frames: 1, fps: 5, guidance_scale: 1, max_text_tokens: 16}\n")});
  CHECK(written["width"] == 32);
  CHECK(written["height"] == 48);
  CHECK(written["num_frames"] == 1);
  CHECK(written["fps"] == 5.0);
  CHECK(written["max_text_tokens"] == 16);

  const auto flagged = made_from(scratch, {"-f", yaml("  defaults: {size: 32x48, num_frames: 1}\n"), "--size", "64x64", "--frames", "17"});
  CHECK(flagged["width"] == 64);
  CHECK(flagged["num_frames"] == 17);
}
