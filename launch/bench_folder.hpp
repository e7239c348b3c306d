// The folder of one benchmark run: there from the start, complete after every step, whatever ends the run.
//
//   config.yaml       what was asked for, as documents, after --set
//   configurations/   one file per configuration: the cluster, deployment and model that were run
//   env.json          the machine
//   events.jsonl      one line per run, appended as it ends
//   result.json       rewritten after every run; state "interrupted" until all is done
//   table.csv, report.md, plots/*.svg

#pragma once

#include <string>

#include "base/json.hpp"
#include "base/result.hpp"
#include "launch/bench_result.hpp"

namespace orrery::launch {

class BenchFolder {
public:
  /// Makes the folder; `{name}` and `{timestamp}` in `pattern` are replaced. Fails with io_failed, also when it exists already
  /// and is not empty.
  static Result<BenchFolder> create(const std::string& pattern, const std::string& name);

  const std::string& path() const { return path_; }
  /// A whole file below the folder, folders included.
  Status write(const std::string& name, const std::string& text) const;
  /// One line of events.jsonl.
  Status add_event(const OrderedJson& event) const;
  /// result.json, table.csv, report.md and the plots.
  Status write_result(const BenchResult& result) const;

private:
  std::string path_;
};

/// cpu, cores, kernel, memory, load average, frequency governor, this program's version.
OrderedJson machine_facts();
/// Of the last minute; nothing where the system does not say.
double load_average();
std::uint32_t core_count();

/// What makes numbers doubtful: a busy machine, a frequency governor that saves power, too few runs. Sentences with codes
/// (W401 ...).
std::vector<std::string> doubts_about_machine();

}  // namespace orrery::launch
