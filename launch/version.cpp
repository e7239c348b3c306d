// orrery version: what to write into a bug report.

#include "launch/version.hpp"

#include <memory>
#include <sstream>

#include <CLI/CLI.hpp>

#include "base/json.hpp"
#include "launch/verb.hpp"

namespace orrery::launch {

std::string version() { return ORRERY_VERSION; }
std::string commit() { return ORRERY_COMMIT; }
std::string version_line() {
  return "orrery " + version() + (commit().empty() ? "" : " (" + commit() + ")");
}

namespace {

Result<int> run_version(OutputFormat format) {
  OrderedJson libraries = OrderedJson::object();
  std::istringstream words(ORRERY_LIBRARIES);
  for (std::string word; words >> word;) {
    const auto equals = word.find('=');
    libraries[word.substr(0, equals)] = word.substr(equals + 1);
  }
  std::string text;
  if (format == OutputFormat::json) {
    const OrderedJson document{{"version", version()}, {"commit", commit()}, {"compiler", __VERSION__}, {"libraries", libraries}};
    text = document.dump(2) + "\n";
  } else {
    text = version_line() + "\ncompiler   " __VERSION__ "\nlibraries  ";
    for (const auto& [name, number] : libraries.items()) text += name + " " + number.get<std::string>() + "  ";
    text.erase(text.find_last_not_of(' ') + 1);
    text += "\n";
  }
  ORRERY_TRY_DONE(write_out(text));
  return 0;
}

}  // namespace

void add_version(CLI::App& app, VerbContext& context) {
  auto* verb = app.add_subcommand("version", "Prints version, commit and libraries");
  auto format = std::make_shared<OutputFormat>(OutputFormat::table);
  add_output_option(*verb, *format, {OutputFormat::table, OutputFormat::json});
  set_examples(*verb, {"orrery version", "orrery version -o json"});
  verb->callback([&context, format] { context.run = [format] { return run_version(*format); }; });
}

}  // namespace orrery::launch
