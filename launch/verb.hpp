// What a verb of the `orrery` program is, and what all verbs share.
//
// A verb is one file launch/NAME.cpp with one function `add_NAME(CLI::App& app, VerbContext& context)`: it
// declares its flags on a subcommand and, when the command line chose it, leaves the work in `context.run`.
// main.cpp lists the verbs; command_line.cpp parses, runs the chosen one and turns its result into an exit code.
//
// Data goes to stdout (write_out), everything else to stderr. CLI11 is not included here.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace orrery::launch {

/// auto: on a terminal, unless NO_COLOR is set or TERM is "dumb"; CLICOLOR_FORCE switches it on.
enum class ColorMode : std::uint8_t { automatic, always, never };
/// automatic: a block redrawn on a terminal, plain lines on a pipe.
enum class ProgressMode : std::uint8_t { automatic, plain, json, none };
enum class OutputFormat : std::uint8_t { table, json, yaml };

/// The global flags, and the chosen verb's work. Lives in main; verbs hold a reference. Threads: one.
struct VerbContext {
  int verbosity = 0;  // -1 with -q; 1, 2 ... with -v, -vv.
  ColorMode color = ColorMode::automatic;
  ProgressMode progress = ProgressMode::automatic;
  /// Set by the chosen verb while the command line is parsed; called once afterwards. Returns the exit code of
  /// work that was done but has a verdict (7, 130 ...), 0, or an error (base/errors.hpp names its exit code).
  std::function<Result<int>()> run;

  bool quiet() const { return verbosity < 0; }
  bool verbose() const { return verbosity > 0; }
  /// Whether to write colours to this descriptor (1: stdout, 2: stderr).
  bool colors_on(int descriptor) const;
};

/// -f/--file (repeatable; environment ORRERY_FILES, separated by ':') and --set PATH=VALUE (repeatable).
struct ConfigArguments {
  std::vector<std::string> files;
  std::vector<std::string> settings;
};
void add_config_options(CLI::App& verb, ConfigArguments& arguments, bool files_required = true);

/// -o/--output, environment ORRERY_OUTPUT, restricted to `allowed`.
void add_output_option(CLI::App& verb, OutputFormat& format, std::vector<OutputFormat> allowed);
std::string_view name_of(OutputFormat format);

/// The paragraph "Examples:" at the end of --help.
void set_examples(CLI::App& verb, std::initializer_list<std::string_view> lines);

/// Writes data to stdout, whole. Fails with io_failed (a closed pipe, a full disk).
Status write_out(std::string_view text);
/// "orrery: warning: MESSAGE" on stderr, unless -q.
void warn(const VerbContext& context, std::string_view message);

/// Declares -q, -v, --color, --progress, --version on the program itself.
void add_global_options(CLI::App& app, VerbContext& context);
/// Parses, runs the chosen verb, prints what went wrong, and returns the exit code.
int run_command_line(CLI::App& app, VerbContext& context, int argc, const char* const* argv);

/// The sentence on stderr: "orrery: error: MESSAGE (HINT)". `colors` paints the word "error".
std::string error_line(const Error& error, bool colors);

void add_check(CLI::App& app, VerbContext& context);
void add_plan(CLI::App& app, VerbContext& context);
void add_schema(CLI::App& app, VerbContext& context);
void add_infer(CLI::App& app, VerbContext& context);
void add_synth(CLI::App& app, VerbContext& context);
void add_keys(CLI::App& app, VerbContext& context);
void add_version(CLI::App& app, VerbContext& context);
// The verbs that work on a running cluster.
void add_up(CLI::App& app, VerbContext& context);
void add_down(CLI::App& app, VerbContext& context);
void add_status(CLI::App& app, VerbContext& context);
void add_cancel(CLI::App& app, VerbContext& context);
void add_generate(CLI::App& app, VerbContext& context);
void add_node(CLI::App& app, VerbContext& context);
void add_coordinator(CLI::App& app, VerbContext& context);
void add_fault(CLI::App& app, VerbContext& context);
void add_bench(CLI::App& app, VerbContext& context);

}  // namespace orrery::launch
