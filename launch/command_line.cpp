// The parts that all verbs share: global flags, the parse, errors as sentences, exit codes. CLI11 throws; its
// exceptions end in `run_command_line` and in the option callbacks here.

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "base/file.hpp"
#include "base/log.hpp"
#include "base/yaml.hpp"
#include "launch/verb.hpp"
#include "launch/version.hpp"

namespace orrery::launch {
namespace {

constexpr int usage_exit_code = exit_code_of(ErrorCode::usage);

std::string in_quotes(std::string_view text) { return "'" + shown(text) + "'"; }

/// An option whose text must be one of `words`; `store` gets the index.
CLI::Option* add_choice(CLI::App& app, const std::string& names, std::vector<std::string> words,
                        std::function<void(std::size_t)> store, const std::string& description) {
  std::string list;
  for (const auto& word : words) list += (list.empty() ? "" : "|") + word;
  auto* option = app.add_option_function<std::string>(
      names,
      [words, list, store = std::move(store), names](const std::string& text) {
        for (std::size_t i = 0; i < words.size(); ++i)
          if (words[i] == text) return store(i);
        const auto near = nearest_word(text, words);
        const auto name = names.substr(names.rfind(',') == std::string::npos ? 0 : names.rfind(',') + 1);
        throw CLI::ValidationError(name, in_quotes(text) + " is not one of " + list +
                                             (near.empty() ? "" : "; did you mean '" + near + "'?"));
      },
      description);
  option->type_name(list);
  return option;
}

/// The subcommand that the command line chose, however deep; the program itself when none.
const CLI::App& chosen(const CLI::App& app) {
  const auto parsed = app.get_subcommands();
  return parsed.empty() ? app : chosen(*parsed.back());
}

std::string command_of(const CLI::App& app) {
  return app.get_parent() == nullptr ? app.get_name() : command_of(*app.get_parent()) + " " + app.get_name();
}

std::string help_hint(const CLI::App& app) { return "try '" + command_of(chosen(app)) + " --help'"; }

/// An argument that no verb knows.
Error unknown_argument(const CLI::App& app, const std::string& argument) {
  const auto& verb = chosen(app);
  std::vector<std::string> candidates;
  if (argument.starts_with("-") && argument.size() > 1) {
    for (const auto* level = &verb; level != nullptr; level = level->get_parent())
      for (const auto* option : level->get_options())
        for (const auto& name : option->get_lnames()) candidates.push_back("--" + name);
    const auto flag = argument.substr(0, argument.find('='));
    const auto near = nearest_word(flag, candidates);
    return Error{ErrorCode::usage, "unknown flag " + in_quotes(flag) + " of '" + command_of(verb) + "'",
                 near.empty() ? help_hint(app) : "did you mean '" + near + "'?"};
  }
  const auto subcommands = verb.get_subcommands([](const CLI::App*) { return true; });
  if (subcommands.empty())
    return Error{ErrorCode::usage, "'" + command_of(verb) + "' does not take the argument " + in_quotes(argument),
                 help_hint(app)};
  for (const auto* subcommand : subcommands) candidates.push_back(subcommand->get_name());
  const auto near = nearest_word(argument, candidates);
  return Error{ErrorCode::usage, "unknown verb " + in_quotes(argument),
               near.empty() ? help_hint(app) : "did you mean '" + near + "'?"};
}

/// CLI11's complaint in our words.
Error error_of(const CLI::App& app, const CLI::ParseError& complaint) {
  const auto extras = app.remaining(true);
  if (!extras.empty()) return unknown_argument(app, extras.front());
  std::string message = complaint.what();
  if (const auto* conversion = dynamic_cast<const CLI::ConversionError*>(&complaint); conversion != nullptr) {
    const auto equals = message.find(" = ");
    const auto colon = message.find(": ");
    if (equals != std::string::npos && colon != std::string::npos && colon < equals)
      message = in_quotes(message.substr(equals + 3)) + " is not a valid value of " +
                message.substr(colon + 2, equals - colon - 2);
  }
  while (!message.empty() && (message.back() == '.' || message.back() == '\n')) message.pop_back();
  return Error{ErrorCode::usage, message, help_hint(app)};
}

int fail(const VerbContext& context, const Error& error) {
  std::fprintf(stderr, "%s\n", error_line(error, context.colors_on(2)).c_str());
  if (context.verbose() && error.file != nullptr) std::fprintf(stderr, "  at %s:%d\n", error.file, error.line);
  return exit_code_of(error.code);
}

bool environment_is_set(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0';
}

}  // namespace

std::string_view name_of(OutputFormat format) {
  switch (format) {
    case OutputFormat::table: return "table";
    case OutputFormat::json: return "json";
    case OutputFormat::yaml: return "yaml";
  }
  return "unknown";
}

bool VerbContext::colors_on(int descriptor) const {
  if (color != ColorMode::automatic) return color == ColorMode::always;
  if (environment_is_set("NO_COLOR")) return false;
  if (environment_is_set("CLICOLOR_FORCE")) return true;
  const char* terminal = std::getenv("TERM");
  return isatty(descriptor) == 1 && (terminal == nullptr || std::strcmp(terminal, "dumb") != 0);
}

std::string error_line(const Error& error, bool colors) {
  return std::string("orrery: ") + (colors ? "\033[1;31merror:\033[0m " : "error: ") + error.text();
}

void warn(const VerbContext& context, std::string_view message) {
  if (context.quiet()) return;
  const bool colors = context.colors_on(2);
  std::fprintf(stderr, "orrery: %swarning:%s %.*s\n", colors ? "\033[1;33m" : "", colors ? "\033[0m" : "",
               static_cast<int>(message.size()), message.data());
}

Status write_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    return Error{ErrorCode::io_failed, "standard output could not be written: " + errno_text()};
  return Done{};
}

void add_config_options(CLI::App& verb, ConfigArguments& arguments, bool files_required) {
  auto* files = verb.add_option("-f,--file", arguments.files,
                                "Configuration file; repeatable. Found as given, else among the shipped configs")
                    ->type_name("FILE")
                    ->allow_extra_args(false)
                    ->envname("ORRERY_FILES")
                    ->delimiter(':');
  if (files_required) files->required();
  verb.add_option("--set", arguments.settings, "Change one value, e.g. spec.parallelism.tensor=2; repeatable, last wins")
      ->type_name("PATH=VALUE")
      ->allow_extra_args(false)
      ->envname("ORRERY_SET");
}

void add_output_option(CLI::App& verb, OutputFormat& format, std::vector<OutputFormat> allowed) {
  std::vector<std::string> words;
  for (const auto one : allowed) words.emplace_back(name_of(one));
  add_choice(verb, "-o,--output", words, [&format, allowed](std::size_t i) { format = allowed[i]; },
             "How to print the result; default " + std::string(name_of(format)))
      ->envname("ORRERY_OUTPUT");
}

void set_examples(CLI::App& verb, std::initializer_list<std::string_view> lines) {
  std::string text = "Examples:\n";
  for (const auto line : lines) text += "  " + std::string(line) + "\n";
  if (verb.get_parent() != nullptr) text += "Flags of every verb: 'orrery --help'.";
  verb.footer(text);
}

void add_global_options(CLI::App& app, VerbContext& context) {
  app.add_flag_function(
         "-q,--quiet", [&context](std::int64_t) { context.verbosity = -1; }, "Print errors only")
      ->envname("ORRERY_QUIET");
  app.add_flag_function(
         "-v,--verbose", [&context](std::int64_t count) { context.verbosity = static_cast<int>(count); },
         "Print events as JSON lines on stderr; -vv prints more")
      ->envname("ORRERY_VERBOSE");
  add_choice(app, "--color", {"auto", "always", "never"},
             [&context](std::size_t i) { context.color = static_cast<ColorMode>(i); }, "Colours; default auto")
      ->envname("ORRERY_COLOR");
  add_choice(app, "--progress", {"auto", "plain", "json", "none"},
             [&context](std::size_t i) { context.progress = static_cast<ProgressMode>(i); },
             "Progress of long work, on stderr; default auto")
      ->envname("ORRERY_PROGRESS");
  app.set_version_flag("--version", version_line());
  app.get_formatter()->label("SUBCOMMAND", "VERB");
}

int run_command_line(CLI::App& app, VerbContext& context, int argc, const char* const* argv) {
  try {
    app.fallthrough();
    app.require_subcommand(0, 1);
    for (auto* verb : app.get_subcommands([](CLI::App*) { return true; })) verb->fallthrough()->group("Verbs");
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const auto written = write_out(app.help());
    return written.ok() ? 0 : fail(context, written.error());
  } catch (const CLI::CallForVersion&) {
    const auto written = write_out(version_line() + "\n");
    return written.ok() ? 0 : fail(context, written.error());
  } catch (const CLI::ParseError& complaint) {
    return fail(context, error_of(app, complaint));
  } catch (const CLI::Error& bug) {
    return fail(context, Error{ErrorCode::internal, bug.what()});
  }
  if (app.get_subcommands().empty()) {
    std::fprintf(stderr, "%s", app.help().c_str());
    return usage_exit_code;
  }
  if (!context.run) return fail(context, Error{ErrorCode::usage, "'" + command_of(chosen(app)) + "' needs a verb", help_hint(app)});

  set_log(context.quiet() ? Level::error : context.verbosity == 0 ? Level::warn : context.verbosity == 1 ? Level::info : Level::trace,
          "orrery");
  try {
    const auto code = context.run();
    return code.ok() ? code.value() : fail(context, code.error());
  } catch (const std::exception& bug) {
    // Nothing of ours throws; what arrives here is the machine out of memory or a package's surprise.
    return fail(context, Error{ErrorCode::internal, std::string("unexpected: ") + bug.what(), "please report this"});
  }
}

}  // namespace orrery::launch
