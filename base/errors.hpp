// The one table of things that can go wrong: stable number, name, exit code of the `orrery` program.
//
// Numbers travel on the wire and stand in scripts: append, never renumber.

#pragma once

#include <cstdint>
#include <string_view>

namespace orrery {

enum class ErrorCode : std::uint16_t {
  internal = 1,             // A bug in Orrery.
  usage = 2,                // The command line is wrong.
  invalid_config = 3,       // A YAML file is wrong.
  no_feasible_plan = 4,     // The model does not fit the cluster.
  unreachable = 5,          // A process or port cannot be reached.
  timed_out = 6,            // A deadline passed.
  expectation_not_met = 7,  // A scenario, assertion or comparison failed.
  inconclusive = 8,         // The steady state was never reached.

  invalid_model = 20,         // A model folder, tensor file or tokenizer is wrong.
  unsupported = 21,           // Well formed, but a class, option or dtype that Orrery does not have.
  invalid_request = 22,       // Size, frames, prompt ... of a request.
  refused_by_guardrail = 23,  // A guardrail said no.
  io_failed = 24,             // The operating system refused a file operation.
  port_in_use = 25,
  cancelled = 26,
  not_found = 27,

  card_memory_exhausted = 40,  // The card's hard memory budget.
  peer_lost = 41,              // A node or card died or fell silent.
  bad_frame = 42,              // A frame failed a check; it was not used.
  stale_epoch = 43,            // A message of a former plan.
  out_of_step = 44,            // A message that is not due (lost, repeated or early).
  pool_exhausted = 45,         // A bounded queue or pool is full: back-pressure.
  version_mismatch = 46,
  numerics_mismatch = 47,  // The machine's kernels do not keep the promise of equal bits.

  journal_failed = 60,   // The disk below the coordinator's journal refused; nothing was accepted.
  journal_damaged = 61,  // The journal's file is not what was written.
  journal_busy = 62,     // Another coordinator has the journal.
  digest_mismatch = 63,  // The same work gave other bytes.
};

/// "invalid_model" for `ErrorCode::invalid_model`; stable, used in JSON output.
constexpr std::string_view name_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::internal: return "internal";
    case ErrorCode::usage: return "usage";
    case ErrorCode::invalid_config: return "invalid_config";
    case ErrorCode::no_feasible_plan: return "no_feasible_plan";
    case ErrorCode::unreachable: return "unreachable";
    case ErrorCode::timed_out: return "timed_out";
    case ErrorCode::expectation_not_met: return "expectation_not_met";
    case ErrorCode::inconclusive: return "inconclusive";
    case ErrorCode::invalid_model: return "invalid_model";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::invalid_request: return "invalid_request";
    case ErrorCode::refused_by_guardrail: return "refused_by_guardrail";
    case ErrorCode::io_failed: return "io_failed";
    case ErrorCode::port_in_use: return "port_in_use";
    case ErrorCode::cancelled: return "cancelled";
    case ErrorCode::not_found: return "not_found";
    case ErrorCode::card_memory_exhausted: return "card_memory_exhausted";
    case ErrorCode::peer_lost: return "peer_lost";
    case ErrorCode::bad_frame: return "bad_frame";
    case ErrorCode::stale_epoch: return "stale_epoch";
    case ErrorCode::out_of_step: return "out_of_step";
    case ErrorCode::pool_exhausted: return "pool_exhausted";
    case ErrorCode::version_mismatch: return "version_mismatch";
    case ErrorCode::numerics_mismatch: return "numerics_mismatch";
    case ErrorCode::journal_failed: return "journal_failed";
    case ErrorCode::journal_damaged: return "journal_damaged";
    case ErrorCode::journal_busy: return "journal_busy";
    case ErrorCode::digest_mismatch: return "digest_mismatch";
  }
  return "unknown";
}

/// The exit code that `orrery` ends with (README.md, "Exit codes").
constexpr int exit_code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::usage:
    case ErrorCode::invalid_request: return 2;
    case ErrorCode::invalid_config:
    case ErrorCode::invalid_model:
    case ErrorCode::unsupported: return 3;
    case ErrorCode::no_feasible_plan:
    case ErrorCode::card_memory_exhausted: return 4;
    case ErrorCode::unreachable:
    case ErrorCode::port_in_use:
    case ErrorCode::journal_busy: return 5;
    case ErrorCode::timed_out: return 6;
    case ErrorCode::expectation_not_met: return 7;
    case ErrorCode::inconclusive: return 8;
    default: return 1;
  }
}

}  // namespace orrery
