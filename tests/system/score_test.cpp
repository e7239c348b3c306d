// What the video shows: 16 prompts, colour x motion x shape, each with its own seed, judged by score_clip.py, which looks
// at the clip and knows nothing of how it was made. Colour and motion must be right every time.

#include <catch2/catch.hpp>

#include "tests/support/command.hpp"

using namespace orrery::testing;

TEST_CASE("video: it shows the colour and the motion of the prompt", "[system][slow]") {
  const std::vector<std::string> colours = {"red", "green", "blue", "yellow"};
  const std::vector<std::string> motions = {"left", "right", "up", "down"};
  const std::vector<std::string> shapes = {"circle", "square", "triangle"};
  ScratchFolder scratch;
  const auto up = run_command(scratch, {ORRERY_BINARY, "--progress", "none", "up", "-d", "-f", ORRERY_SOURCE_DIR "/configs/clusters/two_nodes.yaml", "-f",
                                        ORRERY_SOURCE_DIR "/configs/models/cosmos-tiny.yaml"});
  INFO(up.err);
  REQUIRE(up.exit_code == 0);
  int right = 0;
  for (std::size_t i = 0; i < 16; ++i) {
    const auto prompt = "a " + colours[i % 4] + " " + shapes[i % 3] + " moving " + motions[i / 4];
    const auto made = run_command(scratch, {ORRERY_BINARY, "--progress", "none", "generate", prompt, "--seed", std::to_string(3000 + i), "-o", scratch.file("v.y4m")});
    INFO(prompt << "\n" << made.err);
    CHECK(made.exit_code == 0);
    const auto score = run_command(scratch, {"/usr/bin/python3", ORRERY_SOURCE_DIR "/configs/models/cosmos-tiny/train/score_clip.py", scratch.file("v.y4m"),
                                             prompt, "--only", "colour,motion"});
    INFO(score.out << score.err);
    CHECK(score.exit_code == 0);
    right += score.exit_code == 0 ? 1 : 0;
  }
  WARN(right << " of 16 clips show what the prompt says");
  CHECK(run_command(scratch, {ORRERY_BINARY, "down"}).exit_code == 0);
  CHECK(processes_of(scratch).empty());
}
