// SQLite is seen here and in storage.cpp only.

#include "actors/journal.hpp"

#include <sqlite3.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <type_traits>

#include "base/digest.hpp"
#include "base/fault_point.hpp"

namespace orrery::actors {
namespace {

constexpr int format_version = 1;
constexpr int application_id = 0x4f525259;  // "ORRY", for `file journal.sqlite`.
/// Pages of log (4 KiB each) after which they are folded into the main file.
constexpr int log_pages_max = 1000;

// The file must say exactly this: a foreign or prepared one (triggers, views) is refused before it is used.
constexpr const char* schema[][2] = {
    {"meta", "CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID"},
    {"epochs",
     "CREATE TABLE epochs(epoch INTEGER PRIMARY KEY, term INTEGER NOT NULL, why TEXT NOT NULL) STRICT"},
    {"requests",
     "CREATE TABLE requests(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, spec TEXT NOT NULL, accepted_at REAL "
     "NOT NULL, deadline_at REAL NOT NULL, outcome INTEGER NOT NULL, finished_at REAL NOT NULL, error_code INTEGER NOT "
     "NULL, reason TEXT NOT NULL, digest TEXT NOT NULL, details TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT"},
    {"incidents",
     "CREATE TABLE incidents(number INTEGER PRIMARY KEY, at REAL NOT NULL, json TEXT NOT NULL) STRICT"},
    {"requests_by_outcome", "CREATE INDEX requests_by_outcome ON requests(outcome, number)"},
};
constexpr const char* request_columns =
    "number, id, spec, accepted_at, deadline_at, outcome, finished_at, error_code, reason, digest, details, checksum";

bool lower_hex(std::string_view text, std::size_t digits) {
  return text.size() == digits && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

/// Over every column: SQLite's own checks do not see a flipped bit inside a value.
std::int64_t checksum_of(const JournaledRequest& request) {
  std::string all;
  const auto add_number = [&](auto value) {
    char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    all.append(bytes, sizeof bytes);
  };
  const auto add_text = [&](const std::string& text) {
    add_number(std::uint64_t{text.size()});
    all += text;
  };
  add_number(request.number);
  add_text(request.id);
  add_text(request.spec);
  add_number(request.accepted_at);
  add_number(request.deadline_at);
  add_number(static_cast<std::uint8_t>(request.outcome));
  add_number(request.finished_at);
  add_number(request.error_code);
  add_text(request.reason);
  add_text(request.digest);
  add_text(request.details);
  return static_cast<std::int64_t>(xxh3_of(std::as_bytes(std::span(all))));
}

/// Whether the log lost something in its middle. SQLite takes the first frame that fails its check for the torn end
/// of the last, unacknowledged transaction and drops what follows; but each transaction was synced before the next
/// began, so two whole ones behind the bad frame were acknowledged. Checks are chained: behind a frame whose page is
/// bad the chain goes on from the check that stands in its head. Format: https://www.sqlite.org/walformat.html
bool log_is_damaged(std::string_view log) {
  constexpr std::size_t head_bytes = 32, frame_head_bytes = 24;
  if (log.size() < head_bytes) return false;
  const auto word = [&](std::size_t at, bool big) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i)
      value |= std::uint32_t{static_cast<unsigned char>(log[at + i])} << (big ? 24 - 8 * i : 8 * i);
    return value;
  };
  const auto field = [&](std::size_t at) { return word(at, true); };
  if ((field(0) & ~1U) != 0x377f0682) return false;
  const bool big = (field(0) & 1) != 0;
  std::pair<std::uint32_t, std::uint32_t> check{0, 0};
  const auto add = [&](std::size_t from, std::size_t bytes) {
    for (std::size_t at = from; at < from + bytes; at += 8) {
      check.first += word(at, big) + check.second;
      check.second += word(at + 4, big) + check.first;
    }
  };
  const std::size_t page_bytes = field(8);
  if (page_bytes < 512 || page_bytes > 65536 || page_bytes % 512 != 0) return false;
  add(0, 24);
  if (check != std::pair{field(24), field(28)}) return false;  // Torn while the log began anew: it held nothing.
  int commits_behind = -1;  // Whole transactions behind the first bad frame; -1: there is none yet.
  for (std::size_t at = head_bytes; at + frame_head_bytes + page_bytes <= log.size(); at += frame_head_bytes + page_bytes) {
    if (field(at + 8) != field(16) || field(at + 12) != field(20)) return false;  // Left over from before.
    add(at, 8);
    add(at + frame_head_bytes, page_bytes);
    const std::pair stands{field(at + 16), field(at + 20)};
    if (check != stands) {
      if (commits_behind >= 0) return false;
      commits_behind = 0;
      check = stands;
      // The bad frame may be the last of its transaction.
    }
    if (commits_behind >= 0 && field(at + 4) != 0 && ++commits_behind == 2) return true;
  }
  return false;
}

bool may_become(RequestOutcome from, RequestOutcome to) {
  switch (from) {
    case RequestOutcome::open:
      return to == RequestOutcome::completed || to == RequestOutcome::failed || to == RequestOutcome::cancelled ||
             to == RequestOutcome::expired;
    case RequestOutcome::completed: return to == RequestOutcome::delivered || to == RequestOutcome::expired;
    default: return false;
  }
}

}  // namespace

std::string_view name_of(RequestOutcome outcome) {
  switch (outcome) {
    case RequestOutcome::open: return "open";
    case RequestOutcome::completed: return "completed";
    case RequestOutcome::failed: return "failed";
    case RequestOutcome::cancelled: return "cancelled";
    case RequestOutcome::expired: return "expired";
    case RequestOutcome::delivered: return "delivered";
  }
  return "unknown";
}

struct Journal::State {
  std::string folder, path;
  std::unique_ptr<FolderLock> lock;
  sqlite3* database = nullptr;
  std::uint64_t cluster_id = 0, term = 0, epoch = 0;
  /// What made the journal unusable: a sync that failed.
  std::string poison;
  int log_pages = 0;

  ~State() { sqlite3_close_v2(database); }

  // ---- Errors ---------------------------------------------------------------------------------------------------

  Error damaged(const std::string& what) const {
    return Error{ErrorCode::journal_damaged, "the journal " + path + " is damaged: " + what,
                 "move its folder aside and start anew, or bring back a copy"};
  }

  Error failure(int code, const std::string& doing) {
    switch (code & 0xff) {
      case SQLITE_CORRUPT:
      case SQLITE_NOTADB: return damaged(sqlite3_errmsg(database));
      case SQLITE_BUSY:
      case SQLITE_LOCKED:
        return Error{ErrorCode::journal_busy, "another program has the journal " + path + " open",
                     "end it; `fuser` names it"};
      case SQLITE_FULL:
        return Error{ErrorCode::journal_failed, "cannot " + doing + ": no space left for the journal " + path,
                     "free space on that disk; the coordinator goes on by itself"};
      default: break;
    }
    if (code == SQLITE_IOERR_FSYNC || code == SQLITE_IOERR_DIR_FSYNC) {
      // What the kernel still has of it may never reach the disk, whatever a second fsync says.
      poison = "a sync of " + path + " failed";
      return Error{ErrorCode::journal_failed, "cannot " + doing + ": " + poison + ", and it is not known what was written",
                   "restart the coordinator; look after the disk"};
    }
    return Error{ErrorCode::journal_failed,
                 "cannot " + doing + ": the journal " + path + " says '" +
                     (database != nullptr ? sqlite3_errmsg(database) : sqlite3_errstr(code)) + "'",
                 "look after the disk"};
  }

  // ---- Statements -----------------------------------------------------------------------------------------------

  /// One statement while it is used.
  class Statement {
  public:
    Statement(State& journal, const char* sql) : journal_(journal) {
      code_ = sqlite3_prepare_v2(journal.database, sql, -1, &statement_, nullptr);
    }
    Statement(const Statement&) = delete;
    Statement& operator=(const Statement&) = delete;
    ~Statement() { sqlite3_finalize(statement_); }

    template <class... Values>
    Statement& with(const Values&... values) {
      int place = 0;
      (bind(++place, values), ...);
      return *this;
    }
    /// Whether there is a row.
    Result<bool> step(const std::string& doing) {
      if (code_ == SQLITE_OK) code_ = sqlite3_step(statement_);
      if (code_ == SQLITE_ROW) {
        code_ = SQLITE_OK;
        return true;
      }
      if (code_ == SQLITE_DONE) return false;
      return journal_.failure(sqlite3_extended_errcode(journal_.database), doing);
    }
    std::int64_t number(int column) const { return sqlite3_column_int64(statement_, column); }
    double real(int column) const { return sqlite3_column_double(statement_, column); }
    std::string text(int column) const {
      const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
      return bytes == nullptr ? std::string() : std::string(bytes, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
    }

  private:
    template <class Value>
    void bind(int place, const Value& value) {
      if (code_ != SQLITE_OK) return;
      if constexpr (std::is_floating_point_v<Value>)
        code_ = sqlite3_bind_double(statement_, place, value);
      else if constexpr (std::is_integral_v<Value> || std::is_enum_v<Value>)
        code_ = sqlite3_bind_int64(statement_, place, static_cast<sqlite3_int64>(value));
      else
        code_ = sqlite3_bind_text64(statement_, place, value.data(), value.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
    }
    State& journal_;
    sqlite3_stmt* statement_ = nullptr;
    int code_ = SQLITE_OK;
  };

  /// A statement without rows that matter; gives how many rows it changed.
  template <class... Values>
  Result<int> run(const std::string& doing, const char* sql, const Values&... values) {
    Statement statement(*this, sql);
    statement.with(values...);
    for (;;) {
      ORRERY_TRY(more, statement.step(doing));
      if (!more) return sqlite3_changes(database);
    }
  }

  Result<std::int64_t> number_of(const std::string& doing, const char* sql) {
    Statement statement(*this, sql);
    ORRERY_TRY(there, statement.step(doing));
    if (!there) return damaged("an entry is missing");
    return statement.number(0);
  }

  // ---- Transactions ---------------------------------------------------------------------------------------------

  Status check_ours() const {
    if (!lock->held())
      return Error{ErrorCode::stale_epoch, "another coordinator has taken over the journal in " + folder,
                   "this coordinator has to end"};
    return Done{};
  }

  /// All of `body` or nothing; on the disk when this returns OK.
  template <class Body>
  Status write(const std::string& doing, Body body) {
    if (!poison.empty())
      return Error{ErrorCode::journal_failed, "cannot " + doing + ": " + poison + " before",
                   "restart the coordinator; look after the disk"};
    ORRERY_TRY_DONE(check_ours());
    const auto done = [&]() -> Status {
      ORRERY_TRY_DONE(run(doing, "BEGIN IMMEDIATE"));
      ORRERY_TRY_DONE(body());
      ORRERY_TRY_DONE(run(doing, "COMMIT"));
      return Done{};
    }();
    // Some failures end the transaction by themselves.
    if (!done.ok() && sqlite3_get_autocommit(database) == 0) sqlite3_exec(database, "ROLLBACK", nullptr, nullptr, nullptr);
    // Committed is committed: a disk that is full keeps the log longer, no more.
    if (done.ok() && log_pages >= log_pages_max) (void)fold_log(SQLITE_CHECKPOINT_PASSIVE);
    return done;
  }

  Status fold_log(int manner) {
    const int code = sqlite3_wal_checkpoint_v2(database, nullptr, manner, nullptr, nullptr);
    if (code != SQLITE_OK) return failure(sqlite3_extended_errcode(database), "fold the journal's log into its file");
    return Done{};
  }

  // ---- Opening --------------------------------------------------------------------------------------------------

  Status open_file(Storage& storage) {
    const std::string doing = "open the journal";
    const auto log_bytes = storage.file_size(path + "-wal");
    ORRERY_TRY_DONE(storage.make_file(path));
    // SQLite would take an empty file for a new database and delete the log beside it.
    if (storage.file_size(path).value_or(0) == 0 && log_bytes.value_or(0) > 0)
      return damaged("it is empty, but its log is not");
    if (log_bytes.value_or(0) > 0) {
      // After a failed sync the log may be in the page cache and not on the disk. Folded in like that, a power cut
      // could leave a part of a transaction in the main file, and no log to mend it with.
      ORRERY_TRY(log, write_again(storage, path + "-wal"));
      if (log_is_damaged(log)) return damaged("its log has lost what was acknowledged");
    }
    const int code = sqlite3_open_v2(path.c_str(), &database, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_FULLMUTEX,
                                     storage.vfs_name().c_str());
    if (code != SQLITE_OK) return failure(database == nullptr ? code : sqlite3_extended_errcode(database), doing);
    sqlite3_extended_result_codes(database, 1);
    sqlite3_busy_timeout(database, 1000);
    sqlite3_limit(database, SQLITE_LIMIT_LENGTH, 8 << 20);
    sqlite3_limit(database, SQLITE_LIMIT_ATTACHED, 0);
    sqlite3_db_config(database, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
    sqlite3_db_config(database, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
    // Closing writes nothing: an end in good order and kill -9 leave the same.
    sqlite3_db_config(database, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
    sqlite3_wal_hook(
        database,
        [](void* journal, sqlite3*, const char*, int pages) {
          static_cast<State*>(journal)->log_pages = pages;
          return SQLITE_OK;
        },
        this);
    for (const char* setting :
         {"PRAGMA locking_mode = EXCLUSIVE", "PRAGMA temp_store = MEMORY", "PRAGMA mmap_size = 0",
          "PRAGMA cell_size_check = ON"})
      ORRERY_TRY_DONE(run(doing, setting));
    ORRERY_TRY(tables, number_of(doing, "SELECT count(*) FROM sqlite_schema"));
    if (tables > 0) ORRERY_TRY_DONE(check_schema());
    // EXTRA: as FULL, and the deleted rollback journal of the first moment does not come back.
    ORRERY_TRY_DONE(run(doing, "PRAGMA synchronous = EXTRA"));
    ORRERY_TRY_DONE(run(doing, "PRAGMA journal_mode = WAL"));
    // The same for the main file: everything since its last good sync is in the log, and written again here.
    ORRERY_TRY_DONE(fold_log(SQLITE_CHECKPOINT_TRUNCATE));
    if (tables == 0) return make_schema(storage);
    return check_contents();
  }

  Status check_schema() {
    const std::string doing = "read the journal";
    ORRERY_TRY(version, number_of(doing, "PRAGMA user_version"));
    ORRERY_TRY(owner, number_of(doing, "PRAGMA application_id"));
    if (owner != application_id) return damaged("it is an SQLite file, but not a journal of Orrery");
    if (version != format_version)
      return Error{ErrorCode::version_mismatch,
                   "the journal " + path + " has format " + std::to_string(version) + ", this program writes format " +
                       std::to_string(format_version),
                   "use the program that made it, or another state folder"};
    Statement statement(*this, "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name");
    std::size_t found = 0;
    for (;;) {
      ORRERY_TRY(more, statement.step(doing));
      if (!more) break;
      const auto name = statement.text(0), sql = statement.text(1);
      const bool ours = std::any_of(std::begin(schema), std::end(schema),
                                    [&](const auto& one) { return name == one[0] && sql == one[1]; });
      if (!ours) return damaged("its tables are not those of a journal");
      ++found;
    }
    if (found != std::size(schema)) return damaged("tables are missing");
    return Done{};
  }

  Status make_schema(Storage& storage) {
    const std::string doing = "make the journal";
    return write(doing, [&]() -> Status {
      for (const auto& [name, sql] : schema) ORRERY_TRY_DONE(run(doing, sql));
      const auto identity = std::max<std::uint64_t>(1, storage.random());
      for (const auto& [key, value] : {std::pair<std::string, std::uint64_t>{"cluster_id", identity},
                                       {"term", 0},
                                       {"epoch", 0},
                                       {"number", 0}})
        ORRERY_TRY_DONE(run(doing, "INSERT INTO meta VALUES(?, ?)", key, value));
      ORRERY_TRY_DONE(run(doing, ("PRAGMA application_id = " + std::to_string(application_id)).c_str()));
      ORRERY_TRY_DONE(run(doing, ("PRAGMA user_version = " + std::to_string(format_version)).c_str()));
      return Done{};
    });
  }

  Status check_contents() {
    {
      Statement check(*this, "PRAGMA quick_check(1)");
      ORRERY_TRY(there, check.step("check the journal"));
      if (there && check.text(0) != "ok") return damaged(check.text(0));
    }
    ORRERY_TRY(known, number_of("read the journal",
                                "SELECT count(*) FROM meta WHERE key IN ('cluster_id', 'term', 'epoch', 'number')"));
    if (known != 4) return damaged("an entry is missing");
    Statement all(*this, ("SELECT " + std::string(request_columns) + " FROM requests").c_str());
    for (;;) {
      ORRERY_TRY(more, all.step("read the journal"));
      if (!more) return Done{};
      ORRERY_TRY_DONE(request_at(all));
    }
  }

  Status begin_term() {
    return write("begin a term", [&]() -> Status {
      ORRERY_TRY_DONE(run("begin a term", "UPDATE meta SET value = value + 1 WHERE key = 'term'"));
      ORRERY_TRY(read_term, number_of("begin a term", "SELECT value FROM meta WHERE key = 'term'"));
      ORRERY_TRY(read_epoch, number_of("begin a term", "SELECT value FROM meta WHERE key = 'epoch'"));
      ORRERY_TRY(read_cluster, number_of("begin a term", "SELECT value FROM meta WHERE key = 'cluster_id'"));
      ORRERY_TRY(read_number, number_of("begin a term", "SELECT value FROM meta WHERE key = 'number'"));
      ORRERY_TRY(largest, number_of("begin a term", "SELECT coalesce(max(number), 0) FROM requests"));
      ORRERY_TRY(newest, number_of("begin a term", "SELECT coalesce(max(epoch), 0) FROM epochs"));
      if (read_term < 1 || read_cluster == 0 || read_number < largest || read_number < 0 || read_epoch != newest || read_epoch < 0)
        return damaged("its counters contradict its entries");
      term = static_cast<std::uint64_t>(read_term);
      epoch = static_cast<std::uint64_t>(read_epoch);
      cluster_id = static_cast<std::uint64_t>(read_cluster);
      return Done{};
    });
  }

  // ---- Requests -------------------------------------------------------------------------------------------------

  Result<JournaledRequest> request_at(const Statement& row) const {
    JournaledRequest request;
    request.number = static_cast<std::uint64_t>(row.number(0));
    request.id = row.text(1);
    request.spec = row.text(2);
    request.accepted_at = row.real(3);
    request.deadline_at = row.real(4);
    request.outcome = static_cast<RequestOutcome>(row.number(5));
    request.finished_at = row.real(6);
    request.error_code = static_cast<std::uint16_t>(row.number(7));
    request.reason = row.text(8);
    request.digest = row.text(9);
    request.details = row.text(10);
    if (row.number(5) < 0 || row.number(5) > 5 || row.number(0) < 1 || row.number(11) != checksum_of(request))
      return damaged("request " + std::to_string(row.number(0)) + " is not what was written");
    return request;
  }

  template <class... Values>
  Result<std::vector<JournaledRequest>> select(const std::string& rest, const Values&... values) {
    std::vector<JournaledRequest> requests;
    Statement statement(*this, ("SELECT " + std::string(request_columns) + " FROM requests " + rest).c_str());
    statement.with(values...);
    for (;;) {
      ORRERY_TRY(more, statement.step("read the journal"));
      if (!more) return requests;
      ORRERY_TRY(request, request_at(statement));
      requests.push_back(std::move(request));
    }
  }

  template <class Key>
  Result<std::optional<JournaledRequest>> find(const char* where, const Key& key) {
    ORRERY_TRY(found, select(where, key));
    return found.empty() ? std::optional<JournaledRequest>() : std::move(found.front());
  }

  Result<JournaledRequest> known(std::uint64_t number) {
    ORRERY_TRY(found, find("WHERE number = ?", number));
    if (!found) return Error{ErrorCode::not_found, "the journal has no request " + std::to_string(number)};
    return std::move(*found);
  }

  Status replace(const std::string& doing, const JournaledRequest& request) {
    ORRERY_TRY_DONE(run(doing,
                        "UPDATE requests SET outcome = ?, finished_at = ?, error_code = ?, reason = ?, digest = ?, "
                        "details = ?, checksum = ? WHERE number = ?",
                        request.outcome, request.finished_at, request.error_code, request.reason, request.digest,
                        request.details, checksum_of(request), request.number));
    return Done{};
  }
};

Journal::Journal(std::unique_ptr<State> state) : state_(std::move(state)) {}
Journal::~Journal() = default;

Result<std::unique_ptr<Journal>> Journal::open(const JournalOptions& options) {
  auto& storage = options.storage != nullptr ? *options.storage : real_storage();
  auto state = std::make_unique<State>();
  state->folder = options.folder;
  while (state->folder.size() > 1 && state->folder.back() == '/') state->folder.pop_back();
  state->path = state->folder + "/journal.sqlite";
  ORRERY_TRY(lock, storage.lock_folder(state->folder));
  state->lock = std::move(lock);
  ORRERY_TRY_DONE(state->open_file(storage));
  ORRERY_TRY_DONE(state->begin_term());
  return std::unique_ptr<Journal>(new Journal(std::move(state)));
}

std::uint64_t Journal::cluster_id() const { return state_->cluster_id; }
std::uint64_t Journal::term() const { return state_->term; }
std::uint64_t Journal::epoch() const { return state_->epoch; }
const std::string& Journal::path() const { return state_->path; }

Status Journal::begin_epoch(std::uint64_t epoch, const std::string& why) {
  auto& journal = *state_;
  const std::string doing = "begin epoch " + std::to_string(epoch);
  if (why.size() > text_bytes_max) return Error{ErrorCode::internal, "the reason of an epoch is too long"};
  ORRERY_TRY_DONE(journal.check_ours());
  if (epoch <= journal.epoch || epoch > std::uint64_t{1} << 62)
    return Error{ErrorCode::stale_epoch, "epoch " + std::to_string(epoch) + " does not come after epoch " + std::to_string(journal.epoch)};
  ORRERY_FAULT_STATUS("journal.before_epoch");
  const auto done = journal.write(doing, [&]() -> Status {
    // The term in the file is ours, or somebody else has written there.
    ORRERY_TRY(changed, journal.run(doing,
                                    "UPDATE meta SET value = ? WHERE key = 'epoch' AND value < ? AND "
                                    "(SELECT value FROM meta WHERE key = 'term') = ?",
                                    epoch, epoch, journal.term));
    if (changed != 1)
      return Error{ErrorCode::stale_epoch, "another coordinator has taken over the journal in " + journal.folder,
                   "this coordinator has to end"};
    ORRERY_TRY_DONE(journal.run(doing, "INSERT INTO epochs VALUES(?, ?, ?)", epoch, journal.term, why));
    ORRERY_TRY_DONE(journal.run(doing,
                                "DELETE FROM epochs WHERE epoch < (SELECT min(epoch) FROM (SELECT epoch FROM epochs "
                                "ORDER BY epoch DESC LIMIT ?))",
                                incidents_kept));
    return Done{};
  });
  if (done.ok()) journal.epoch = epoch;
  ORRERY_FAULT_POINT("journal.after_epoch");
  return done;
}

Result<Journal::Accepted> Journal::accept(const std::string& id, const std::string& spec, double now,
                                          double deadline_at) {
  auto& journal = *state_;
  const auto wrong = [](const std::string& what) { return Error{ErrorCode::invalid_request, what}; };
  if (!lower_hex(id, 32)) return wrong("a request's id has 32 digits from 0 to 9 and a to f");
  if (spec.size() > spec_bytes_max)
    return wrong("the request has " + std::to_string(spec.size()) + " bytes; " + std::to_string(spec_bytes_max) + " are allowed");
  if (!std::isfinite(now) || !std::isfinite(deadline_at) || now < 0 || deadline_at < 0)
    return wrong("the request's deadline is not a time");
  ORRERY_TRY_DONE(journal.check_ours());
  ORRERY_TRY(present, find(id));
  if (present) {
    if (present->spec != spec)
      return Error{ErrorCode::invalid_request, "request " + id + " was accepted before with other contents",
                   "a new request needs a new id"};
    return Accepted{std::move(*present), false};
  }
  Accepted accepted{{}, true};
  auto& request = accepted.request;
  request.id = id;
  request.spec = spec;
  request.accepted_at = now;
  request.deadline_at = deadline_at;
  ORRERY_FAULT_STATUS("journal.before_accept");
  const auto done = journal.write("accept request " + id, [&]() -> Status {
    ORRERY_TRY_DONE(journal.run("accept request " + id, "UPDATE meta SET value = value + 1 WHERE key = 'number'"));
    ORRERY_TRY(number, journal.number_of("accept request " + id, "SELECT value FROM meta WHERE key = 'number'"));
    request.number = static_cast<std::uint64_t>(number);
    ORRERY_TRY_DONE(journal.run("accept request " + id, "INSERT INTO requests VALUES(?,?,?,?,?,?,?,?,?,?,?,?)",
                                request.number, request.id, request.spec, request.accepted_at, request.deadline_at,
                                request.outcome, request.finished_at, request.error_code, request.reason,
                                request.digest, request.details, checksum_of(request)));
    return Done{};
  });
  if (!done.ok()) return done.error();
  ORRERY_FAULT_POINT("journal.after_accept");
  return accepted;
}

Status Journal::finish(std::uint64_t number, RequestOutcome outcome, std::uint16_t error_code,
                       const std::string& reason, const std::string& details, double now) {
  auto& journal = *state_;
  const auto doing = "end request " + std::to_string(number) + " as " + std::string(name_of(outcome));
  if (reason.size() > text_bytes_max || details.size() > text_bytes_max || !std::isfinite(now))
    return Error{ErrorCode::internal, "cannot " + doing + ": the account of it is too long or has no time"};
  ORRERY_FAULT_STATUS("journal.before_finish");
  const auto done = journal.write(doing, [&]() -> Status {
    ORRERY_TRY(request, journal.known(number));
    if (!may_become(request.outcome, outcome))
      return Error{ErrorCode::out_of_step, "cannot " + doing + ": it is " + std::string(name_of(request.outcome))};
    request.outcome = outcome;
    request.finished_at = now;
    request.error_code = error_code;
    request.reason = reason;
    request.details = details;
    return journal.replace(doing, request);
  });
  ORRERY_FAULT_POINT("journal.after_finish");
  return done;
}

Status Journal::set_digest(std::uint64_t number, const std::string& digest) {
  auto& journal = *state_;
  const auto doing = "note the digest of request " + std::to_string(number);
  if (!lower_hex(digest, 64)) return Error{ErrorCode::internal, "cannot " + doing + ": it is no SHA-256"};
  ORRERY_TRY_DONE(journal.check_ours());
  ORRERY_TRY(before, journal.known(number));
  if (before.digest == digest) return Done{};
  if (!before.digest.empty())
    return Error{ErrorCode::digest_mismatch, "request " + std::to_string(number) + " gave other bytes than before: SHA-256 " +
                                                 digest + ", not " + before.digest,
                 "a card or a disk computes or stores wrongly"};
  return journal.write(doing, [&]() -> Status {
    ORRERY_TRY(request, journal.known(number));
    if (request.outcome != RequestOutcome::open && request.outcome != RequestOutcome::completed &&
        request.outcome != RequestOutcome::delivered)
      return Error{ErrorCode::out_of_step, "cannot " + doing + ": it is " + std::string(name_of(request.outcome))};
    request.digest = digest;
    return journal.replace(doing, request);
  });
}

Result<std::vector<JournaledRequest>> Journal::live_requests() const {
  return state_->select("WHERE outcome IN (0, 1) ORDER BY number");
}

Result<std::vector<JournaledRequest>> Journal::latest_requests(std::size_t count) const {
  ORRERY_TRY(requests, state_->select("ORDER BY number DESC LIMIT ?", std::min<std::size_t>(count, 1'000'000)));
  std::reverse(requests.begin(), requests.end());
  return std::move(requests);
}

Result<std::optional<JournaledRequest>> Journal::find(const std::string& id) const { return state_->find("WHERE id = ?", id); }
Result<std::optional<JournaledRequest>> Journal::find(std::uint64_t number) const {
  return state_->find("WHERE number = ?", number);
}

Status Journal::forget_before(double wall_time) {
  auto& journal = *state_;
  const std::string doing = "forget what is over";
  return journal.write(doing, [&]() -> Status {
    ORRERY_TRY_DONE(
        journal.run(doing, "DELETE FROM requests WHERE outcome IN (2, 3, 4, 5) AND finished_at < ?", wall_time));
    ORRERY_TRY_DONE(journal.run(doing, "DELETE FROM incidents WHERE at < ?", wall_time));
    return Done{};
  });
}

Status Journal::note_incident(const std::string& json, double now) {
  auto& journal = *state_;
  const std::string doing = "note an incident";
  if (json.size() > text_bytes_max || !std::isfinite(now))
    return Error{ErrorCode::internal, "an incident's account is too long or has no time"};
  return journal.write(doing, [&]() -> Status {
    ORRERY_TRY_DONE(journal.run(doing, "INSERT INTO incidents(at, json) VALUES(?, ?)", now, json));
    ORRERY_TRY_DONE(journal.run(doing, "DELETE FROM incidents WHERE number <= (SELECT max(number) FROM incidents) - ?",
                                incidents_kept));
    return Done{};
  });
}

Result<std::vector<std::string>> Journal::incidents(std::size_t count) const {
  std::vector<std::string> texts;
  State::Statement statement(*state_, "SELECT json FROM incidents ORDER BY number DESC LIMIT ?");
  statement.with(std::min(count, incidents_kept));
  for (;;) {
    ORRERY_TRY(more, statement.step("read the journal"));
    if (!more) break;
    texts.push_back(statement.text(0));
  }
  std::reverse(texts.begin(), texts.end());
  return texts;
}

}  // namespace orrery::actors
