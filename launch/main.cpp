// orrery: plans clusters of NPU cards, starts them, and makes videos on them.
//
// Each verb is a file beside this one; verb.hpp says what a verb is.

#include <csignal>

#include <CLI/CLI.hpp>

#include "launch/verb.hpp"

int main(int argc, char** argv) {
  using namespace orrery::launch;
  // A reader that goes away is an error of the write, not the end of the process.
  std::signal(SIGPIPE, SIG_IGN);

  CLI::App app("Runs the Cosmos text-to-video model over clusters of NPU cards.", "orrery");
  VerbContext context;
  add_global_options(app, context);

  // What one looks at before anything runs.
  add_check(app, context);
  add_plan(app, context);
  add_schema(app, context);

  // One card, one component, no cluster.
  add_infer(app, context);
  add_synth(app, context);

  // A cluster.
  add_up(app, context);
  add_status(app, context);
  add_cancel(app, context);
  add_down(app, context);
  add_generate(app, context);
  add_node(app, context);
  add_coordinator(app, context);
  add_fault(app, context);
  add_bench(app, context);

  add_keys(app, context);
  add_version(app, context);
  set_examples(app, {
      "orrery check configs/clusters/two_nodes.yaml",
      "orrery plan -f configs/clusters/two_nodes.yaml -f configs/models/cosmos-tiny.yaml --explain",
      "orrery generate \"a red circle moving right\" -f configs/clusters/two_nodes.yaml -f configs/models/cosmos-tiny.yaml -o video.mp4",
  });
  return run_command_line(app, context, argc, argv);
}
