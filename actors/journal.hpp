// What the coordinator remembers across its own death: who it is, which term and epoch, which requests it has taken.
//
// One SQLite file, `journal.sqlite`, in the coordinator's state folder, with a write-ahead log. A call that returns
// OK is on the disk; after kill -9 or a power cut the next `open` finds it.
//
//   accept ─▶ open ──┬─▶ completed ──┬─▶ delivered
//                    ├─▶ failed      └─▶ expired
//                    ├─▶ cancelled
//                    └─▶ expired
//
// What can go wrong with the disk:
//   disk full, I/O error   the call fails and has changed nothing; later calls work again when the disk does.
//   failed sync            nobody knows what is on the disk: every later write fails, until the journal is opened
//                          anew (which writes everything again that it can read). The failed call may have happened.
//   torn tail of the log   cut to the last commit, silently: it was never acknowledged.
//   damaged file           journal_damaged, with the path. Never repaired or replaced by itself.
//
// Cost: one sync of the disk per call that writes; `open` reads the whole file once to check it.
// Threads: one. Nothing here blocks but the disk.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "actors/storage.hpp"
#include "base/result.hpp"

namespace orrery::actors {

/// The numbers stand in the file.
enum class RequestOutcome : std::uint8_t { open, completed, failed, cancelled, expired, delivered };
std::string_view name_of(RequestOutcome outcome);

struct JournaledRequest {
  std::string id;            // The client's: 32 lower-case hex digits.
  std::uint64_t number = 0;  // Ours, never reused within the journal's life; > 0.
  std::string spec;          // Opaque text (JSON).
  double accepted_at = 0;    // Wall clock, seconds since 1970.
  double deadline_at = 0;    // 0: none.
  RequestOutcome outcome = RequestOutcome::open;
  double finished_at = 0;        // When the outcome was last changed; 0 while open.
  std::uint16_t error_code = 0;  // ErrorCode of what failed; 0: none.
  std::string reason;
  std::string digest;   // SHA-256 of the raw frames, 64 hex digits, once known.
  std::string details;  // JSON text of the account that the client was given.

  bool operator==(const JournaledRequest&) const = default;
};

struct JournalOptions {
  std::string folder;
  Storage* storage = nullptr;  // The real disk.
};

class Journal {
public:
  static constexpr std::size_t spec_bytes_max = std::size_t{1} << 20;
  static constexpr std::size_t text_bytes_max = std::size_t{256} << 10;  // Reasons, details, one incident.
  static constexpr std::size_t incidents_kept = 10'000;

  /// Makes the folder's journal or opens it, locks the folder, and raises the term by one.
  /// Fails with journal_busy (another coordinator lives; says which process), journal_damaged (the file is not what
  /// was written), version_mismatch (written by another version), journal_failed or io_failed (the disk).
  static Result<std::unique_ptr<Journal>> open(const JournalOptions& options);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  /// Random, made with the journal; never 0.
  std::uint64_t cluster_id() const;
  /// How often this journal was opened; this coordinator's number.
  std::uint64_t term() const;
  /// 0 before the first.
  std::uint64_t epoch() const;
  /// `journal.sqlite` with its folder.
  const std::string& path() const;

  /// Durable when it returns. Fails with stale_epoch when `epoch` is not above `epoch()`.
  /// This and every other call that writes also fails with stale_epoch when another coordinator has taken the
  /// folder over: whoever gets that must stop being coordinator.
  Status begin_epoch(std::uint64_t epoch, const std::string& why);

  struct Accepted {
    JournaledRequest request;
    bool is_new = false;
  };
  /// Durable when it returns. The same id again gives the request as it is now; with another spec: invalid_request.
  Result<Accepted> accept(const std::string& id, const std::string& spec, double now, double deadline_at);

  /// Compare-and-set along the drawing above; out_of_step when the request is elsewhere, not_found without it.
  Status finish(std::uint64_t number, RequestOutcome outcome, std::uint16_t error_code, const std::string& reason,
                const std::string& details, double now);
  /// Of an open, completed or delivered request. The same again is OK; another one fails with digest_mismatch and
  /// changes nothing.
  Status set_digest(std::uint64_t number, const std::string& digest);

  /// Open or completed: what a restarted coordinator has to care for. By number.
  Result<std::vector<JournaledRequest>> live_requests() const;
  /// The newest, whatever became of them; by number.
  Result<std::vector<JournaledRequest>> latest_requests(std::size_t count) const;
  Result<std::optional<JournaledRequest>> find(const std::string& id) const;
  Result<std::optional<JournaledRequest>> find(std::uint64_t number) const;

  /// Forgets what was delivered, failed, cancelled or expired before that time, and incidents older than it. Their
  /// space is used again. The id of a forgotten request is new again; its number is not.
  Status forget_before(double wall_time);

  /// Failures and recoveries, for people: JSON text. The newest `incidents_kept` stay.
  Status note_incident(const std::string& json, double now);
  /// The newest `count`, oldest of them first.
  Result<std::vector<std::string>> incidents(std::size_t count) const;

private:
  struct State;
  explicit Journal(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orrery::actors
