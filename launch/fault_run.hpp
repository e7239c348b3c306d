// Runs one scenario on real processes: a cluster of its own, a workload, faults at their moments, a verdict.
//
//   plan ─▶ `orrery up --allow-faults` ─▶ steady state ─▶ reference run ─▶ arm ─▶ workload ─▶ heal ─▶ evaluate
//             (state and sockets in a private folder)      (no faults)          │
//                        nodes fire what they hold; the launcher watches ───────┘
//                        progress, processes and incidents, and fires the rest
//
// Each request is a process of its own (`orrery fault submit`), so that a client can die and come back.
//
// Times: when a fault fired is seen by the launcher (a dead process through its pidfd, all else when a node reports
// it); what followed comes from the coordinator's incidents. One clock, that of this machine.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "actors/request_spec.hpp"
#include "base/json.hpp"
#include "base/result.hpp"
#include "launch/fault_plan.hpp"
#include "launch/planned_cluster.hpp"
#include "launch/signals.hpp"
#include "launch/verb.hpp"
#include "topology/scenario_spec.hpp"

namespace orrery::launch {

enum class Verdict : std::uint8_t { pass, fail, inconclusive };
std::string_view name_of(Verdict verdict);
/// 0, 7, 8.
int exit_code_of(Verdict verdict);

/// What became of one fault. Seconds since the workload began; empty: not seen.
struct FaultRecord {
  std::string name, action, target;
  std::optional<double> fired;
  // Of the first incident after it, in seconds from `fired` (detected) and from the detection (the others).
  std::optional<double> detected, fenced, replanned, loaded, resumed;
  std::uint32_t steps_repeated = 0;
  std::string note;  // Why it could not be done.
};

struct ExpectationRecord {
  std::string text, shown;
  bool held = false;
};

struct RequestRecord {
  std::string id, sha256, failure;
  std::uint64_t frames = 0, surplus_frames = 0;
  std::uint32_t refusals = 0, attempts = 1;
  bool accepted = false, ended = false, completed = false;
};

struct FaultReport {
  std::string scenario;
  std::uint64_t seed = 0;
  Verdict verdict = Verdict::inconclusive;
  std::string reason;  // Of an inconclusive one.
  std::vector<FaultRecord> faults;
  std::vector<ExpectationRecord> expectations;
  std::vector<RequestRecord> requests;
  std::map<std::string, topology::Measured> counters;
  OrderedJson incidents = OrderedJson::array();

  OrderedJson json() const;
  /// The table, the expectations and the verdict, for people.
  std::string text() const;
};

struct FaultRunOptions {
  ClusterArguments cluster;  // Of the scenario's deployment.
  topology::ScenarioSpec scenario;
  std::string keep_logs;     // Folder; empty: none are kept.
};

/// Fails only for what is no verdict: the cluster does not come up, the files are wrong, a signal.
Result<FaultReport> run_scenario(const FaultRunOptions& options, const PlannedCluster& planned, const VerbContext& context, SignalWatch& signals);

/// The counters of a finished run, and the verdict on them; fills in `expectations`, `verdict` and `reason`. Plain.
void evaluate(const topology::ScenarioSpec& scenario, FaultReport& report);

/// Fits each incident (JSON of `orrery status`, times on the wall clock) to the fault that fired last before it.
/// `began`: wall time of the workload's begin, in seconds since 1970.
void match_incidents(const Json& incidents, double began, FaultReport& report);

}  // namespace orrery::launch
