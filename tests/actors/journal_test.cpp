// - what returned OK is there after any crash, at every operation of the disk and at random ones; nothing else is
// - term and epoch never go back
// - a full disk refuses and goes on; a failed sync poisons until the journal is opened anew; a torn tail is cut
// - damage and foreign files are told, not repaired
// - one coordinator at a time; the one that was replaced finds out
// - ids make accept idempotent; outcomes follow the drawing in journal.hpp

#include "actors/journal.hpp"

#include <catch2/catch.hpp>

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "base/digest.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace orrery;
using namespace orrery::actors;
using orrery::testing::TemporaryFolder;

namespace {

using Opened = Result<std::unique_ptr<Journal>>;

std::string id_of(std::uint64_t number) {
  auto digits = std::to_string(number);
  return std::string(32 - digits.size(), '0') + digits;
}

/// The file of a journal in folder "f" of a simulated disk.
const std::string file = "f/journal.sqlite";

Opened open_on(Storage& storage, const std::string& folder = "f") { return Journal::open({folder, &storage}); }

/// What the journal must hold, as far as anybody was told; and what one call that failed may have done.
struct Expected {
  std::uint64_t term = 0, epoch = 0, number = 0;
  std::map<std::uint64_t, JournaledRequest> requests;
  std::vector<std::string> incidents;
  bool operator==(const Expected&) const = default;
};

Expected held_by(const Journal& journal) {
  Expected held;
  held.term = journal.term();
  held.epoch = journal.epoch();
  const auto requests = journal.latest_requests(1'000'000).value();
  for (const auto& request : requests) held.requests[request.number] = request;
  held.incidents = journal.incidents(1'000'000).value();
  return held;
}

/// Does random things, and knows what must be there afterwards.
class Workload {
public:
  explicit Workload(std::uint64_t seed) : random_(seed) {}

  /// One call. False when it failed, and then what it was after is in doubt.
  bool act(Journal& journal) {
    doubted_ = expected_;
    auto& wanted = *doubted_;
    now_ += 1;
    Status done = Done{};
    const auto kind = random_.below(10);
    const auto picked = pick();
    if (kind < 3 || (picked == 0 && kind < 8)) {
      JournaledRequest request;
      request.id = id_of(++ids_);
      request.spec = std::string(random_.below(8) == 0 ? 9000 : random_.below(300), static_cast<char>('a' + ids_ % 26));
      request.accepted_at = now_;
      request.number = ++wanted.number;
      wanted.requests[request.number] = request;
      const auto accepted = journal.accept(request.id, request.spec, now_, 0);
      if (!accepted.ok())
        done = accepted.error();
      else
        number_is_right_ &= accepted.value().is_new && accepted.value().request == request;
    } else if (kind == 3) {
      wanted.epoch += 1 + random_.below(3);
      done = journal.begin_epoch(wanted.epoch, "card n1:0 is lost");
    } else if (kind == 4) {
      wanted.requests[picked].digest = sha256_of(std::to_string(picked));
      done = journal.set_digest(picked, wanted.requests[picked].digest);
      if (!done.ok() && done.error().code == ErrorCode::out_of_step) return settle_unchanged();
    } else if (kind < 8) {
      auto& request = wanted.requests[picked];
      const auto outcome = static_cast<RequestOutcome>(1 + random_.below(5));
      request.outcome = outcome;
      request.finished_at = now_;
      request.error_code = outcome == RequestOutcome::failed ? 41 : 0;
      request.reason = "because";
      request.details = "{}";
      done = journal.finish(picked, outcome, request.error_code, "because", "{}", now_);
      if (!done.ok() && done.error().code == ErrorCode::out_of_step) return settle_unchanged();
    } else if (kind == 8) {
      wanted.incidents.push_back("{\"at\":" + std::to_string(now_) + "}");
      incident_at_[wanted.incidents.back()] = now_;
      done = journal.note_incident(wanted.incidents.back(), now_);
    } else {
      const auto before = now_ - static_cast<double>(random_.below(12));
      std::erase_if(wanted.requests, [&](const auto& entry) {
        const auto& request = entry.second;
        return request.outcome >= RequestOutcome::failed && request.finished_at < before;
      });
      std::erase_if(wanted.incidents, [&](const auto& text) { return incident_at_[text] < before; });
      done = journal.forget_before(before);
    }
    if (!done.ok()) return false;
    expected_ = *doubted_;
    doubted_.reset();
    return true;
  }

  /// Opens until it works; what is found must be what was promised.
  std::unique_ptr<Journal> open(Storage& storage) {
    auto opened = open_on(storage);
    if (!opened.ok()) return nullptr;
    auto journal = std::move(opened).value();
    auto held = held_by(*journal);
    const auto same = [&](const Expected& expected) {
      return held.epoch == expected.epoch && held.requests == expected.requests && held.incidents == expected.incidents;
    };
    if (held.term <= expected_.term) broken_ = "the term went back";
    if (!same(expected_)) {
      if (!doubted_ || !same(*doubted_))
        broken_ = "what was promised is not there, or more is";
      else
        expected_ = *doubted_;
    }
    expected_.term = held.term;
    // The next number cannot be seen from outside; a failed accept may have used one only if it happened.
    doubted_.reset();
    return journal;
  }

  /// What the failed call was after is known not to have happened.
  bool settle_unchanged() {
    doubted_.reset();
    return true;
  }
  const std::string& broken() const { return broken_; }
  bool number_is_right() const { return number_is_right_; }
  const Expected& expected() const { return expected_; }
  Random& random() { return random_; }

private:
  std::uint64_t pick() {
    if (expected_.requests.empty()) return 0;
    auto at = expected_.requests.begin();
    std::advance(at, static_cast<std::ptrdiff_t>(random_.below(expected_.requests.size())));
    return at->first;
  }
  Random random_;
  Expected expected_;
  std::optional<Expected> doubted_;
  std::map<std::string, double> incident_at_;
  std::string broken_;
  std::uint64_t ids_ = 0;
  double now_ = 1000;
  bool number_is_right_ = true;
};

}  // namespace

TEST_CASE("journal: what was accepted is there after it is opened again, with a higher term", "[actors][journal]") {
  TemporaryFolder folder;
  const auto place = folder.path() + "/state/of/coordinator/";
  std::uint64_t cluster = 0;
  {
    const auto journal = Journal::open({place, nullptr}).value();
    cluster = journal->cluster_id();
    CHECK(cluster != 0);
    CHECK(journal->term() == 1);
    CHECK(journal->epoch() == 0);
    CHECK(journal->accept(id_of(7), "{\"prompt\":\"a\\u0000b\"}", 12.5, 99).value().request.number == 1);
    CHECK(journal->begin_epoch(3, "first plan").ok());
    CHECK(journal->set_digest(1, sha256_of("x")).ok());
    CHECK(journal->finish(1, RequestOutcome::completed, 0, "", "{\"steps\":3}", 20).ok());
  }
  const auto journal = Journal::open({place, nullptr}).value();
  CHECK(journal->cluster_id() == cluster);
  CHECK(journal->term() == 2);
  CHECK(journal->epoch() == 3);
  const auto live = journal->live_requests().value();
  REQUIRE(live.size() == 1);
  CHECK(live[0] == JournaledRequest{id_of(7), 1, "{\"prompt\":\"a\\u0000b\"}", 12.5, 99, RequestOutcome::completed, 20, 0, "", sha256_of("x"), "{\"steps\":3}"});
  CHECK(journal->find(id_of(7)).value() == live[0]);
  CHECK(journal->find(1).value() == live[0]);
  CHECK_FALSE(journal->find(2).value());
  struct stat status {};
  REQUIRE(::stat(journal->path().c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
}

TEST_CASE("journal: the same id is one request, whatever became of it", "[actors][journal]") {
  SimulatedDisk disk(1);
  const auto journal = open_on(disk).value();
  const auto first = journal->accept(id_of(1), "spec", 1, 0).value();
  CHECK(first.is_new);
  CHECK(journal->finish(1, RequestOutcome::failed, 41, "no cards", "{}", 5).ok());
  const auto again = journal->accept(id_of(1), "spec", 9, 0).value();
  CHECK_FALSE(again.is_new);
  CHECK(again.request.outcome == RequestOutcome::failed);
  CHECK(again.request.accepted_at == 1);
  const auto other = journal->accept(id_of(1), "another spec", 9, 0);
  REQUIRE_FALSE(other.ok());
  CHECK(other.error().code == ErrorCode::invalid_request);
  // A forgotten id is new, its number is not used again.
  CHECK(journal->forget_before(6).ok());
  const auto anew = journal->accept(id_of(1), "another spec", 9, 0).value();
  CHECK(anew.is_new);
  CHECK(anew.request.number == 2);
}

TEST_CASE("journal: what is not a request is refused and leaves nothing", "[actors][journal]") {
  SimulatedDisk disk(1);
  const auto journal = open_on(disk).value();
  for (const auto& id : {std::string(), std::string(31, 'a'), std::string(33, 'a'), std::string(32, 'A'), std::string(32, '\0')})
    CHECK(journal->accept(id, "", 1, 0).error().code == ErrorCode::invalid_request);
  CHECK(journal->accept(id_of(1), std::string(Journal::spec_bytes_max + 1, 'x'), 1, 0).error().code == ErrorCode::invalid_request);
  CHECK(journal->accept(id_of(1), "", 1, -1).error().code == ErrorCode::invalid_request);
  CHECK(journal->accept(id_of(1), "", 0.0 / 0.0, 1).error().code == ErrorCode::invalid_request);
  CHECK(journal->latest_requests(9).value().empty());
  CHECK(journal->accept(id_of(1), std::string(Journal::spec_bytes_max, 'x'), 1, 0).ok());
}

TEST_CASE("journal: outcomes follow their order, and a digest is given once", "[actors][journal]") {
  SimulatedDisk disk(1);
  const auto journal = open_on(disk).value();
  const auto outcomes = {RequestOutcome::open, RequestOutcome::completed, RequestOutcome::failed,
                             RequestOutcome::cancelled, RequestOutcome::expired, RequestOutcome::delivered};
  std::uint64_t id = 0;
  int allowed = 0;
  for (const auto from : outcomes)
    for (const auto to : outcomes) {
      const auto number = journal->accept(id_of(++id), "", 1, 0).value().request.number;
      if (from == RequestOutcome::delivered) REQUIRE(journal->finish(number, RequestOutcome::completed, 0, "", "", 2).ok());
      if (from != RequestOutcome::open) REQUIRE(journal->finish(number, from, 0, "", "", 3).ok());
      const auto before = journal->find(number).value();
      const auto done = journal->finish(number, to, 6, "x", "y", 4);
      if (done.ok())
        ++allowed;
      else
        CHECK((done.error().code == ErrorCode::out_of_step && journal->find(number).value() == before));
    }
  CHECK(allowed == 6);
  CHECK(journal->finish(999, RequestOutcome::failed, 0, "", "", 1).error().code == ErrorCode::not_found);
  const auto number = journal->accept(id_of(++id), "", 1, 0).value().request.number;
  CHECK(journal->set_digest(number, sha256_of("a")).ok());
  CHECK(journal->set_digest(number, sha256_of("a")).ok());
  CHECK(journal->set_digest(number, sha256_of("b")).error().code == ErrorCode::digest_mismatch);
  CHECK(journal->find(number).value()->digest == sha256_of("a"));
}

TEST_CASE("journal: an epoch comes after the last one", "[actors][journal]") {
  SimulatedDisk disk(1);
  auto journal = open_on(disk).value();
  CHECK(journal->begin_epoch(5, "").ok());
  for (const std::uint64_t late : {0U, 4U, 5U}) CHECK(journal->begin_epoch(late, "").error().code == ErrorCode::stale_epoch);
  CHECK(journal->epoch() == 5);
  CHECK(journal->begin_epoch(6, "").ok());
}

TEST_CASE("journal: incidents are read oldest first and are bounded by time and number", "[actors][journal]") {
  SimulatedDisk disk(1);
  const auto journal = open_on(disk).value();
  for (int i = 0; i < 5; ++i) REQUIRE(journal->note_incident(std::to_string(i), i).ok());
  CHECK(journal->incidents(2).value() == std::vector<std::string>{"3", "4"});
  CHECK(journal->forget_before(4).ok());
  CHECK(journal->incidents(100).value() == std::vector<std::string>{"4"});
}

TEST_CASE("journal: forgetting keeps the file bounded and never touches what is live", "[actors][journal]") {
  SimulatedDisk disk(1);
  auto journal = open_on(disk).value();
  const auto kept = journal->accept(id_of(0), "keep", 0, 0).value().request;
  std::size_t after_100 = 0;
  for (int i = 1; i <= 1000; ++i) {
    const auto number = journal->accept(id_of(static_cast<std::uint64_t>(i)), std::string(5000, 'x'), i, 0).value().request.number;
    REQUIRE(journal->finish(number, RequestOutcome::cancelled, 0, "", "", i).ok());
    REQUIRE(journal->forget_before(i - 10).ok());
    if (i == 100) after_100 = disk.contents(file)->size() + disk.contents(file + "-wal")->size();
  }
  CHECK(disk.contents(file)->size() + disk.contents(file + "-wal")->size() < std::max<std::size_t>(2 * after_100, 6 << 20));
  CHECK(journal->live_requests().value() == std::vector<JournaledRequest>{kept});
}

TEST_CASE("journal: a second coordinator is refused and told who has it", "[actors][journal]") {
  TemporaryFolder folder;
  const auto journal = Journal::open({folder.path(), nullptr}).value();
  const auto second = Journal::open({folder.path(), nullptr});
  REQUIRE_FALSE(second.ok());
  CHECK(second.error().code == ErrorCode::journal_busy);
  CHECK(second.error().message == "another coordinator, process " + std::to_string(::getpid()) + ", has the journal in " + folder.path());
  CHECK(journal->accept(id_of(1), "", 1, 0).ok());
}

TEST_CASE("journal: a coordinator that was replaced finds out at its next write", "[actors][journal]") {
  SECTION("simulated") {
    SimulatedDisk disk(1);
    auto old = open_on(disk).value();
    REQUIRE(old->begin_epoch(1, "").ok());
    disk.revoke_locks();
    const auto successor = open_on(disk).value();
    CHECK(successor->term() == 2);
    for (const auto code : {old->begin_epoch(2, "").error().code, old->accept(id_of(1), "", 1, 0).error().code,
                            old->note_incident("{}", 1).error().code})
      CHECK(code == ErrorCode::stale_epoch);
    CHECK(successor->begin_epoch(2, "").ok());
    old.reset();
    CHECK(open_on(disk).error().code == ErrorCode::journal_busy);
    CHECK(successor->accept(id_of(1), "", 1, 0).value().is_new);
  }
  SECTION("real: the folder was moved away below it") {
    TemporaryFolder folder;
    const auto old = Journal::open({folder.path() + "/a", nullptr}).value();
    std::filesystem::rename(folder.path() + "/a", folder.path() + "/b");
    const auto successor = Journal::open({folder.path() + "/a", nullptr}).value();
    CHECK(old->begin_epoch(1, "").error().code == ErrorCode::stale_epoch);
    CHECK(successor->begin_epoch(1, "").ok());
  }
}

TEST_CASE("journal: a coordinator killed by signal 9 leaves everything that it had accepted", "[actors][journal]") {
  TemporaryFolder folder;
  int told[2];
  REQUIRE(::pipe(told) == 0);
  const auto child = ::fork();
  if (child == 0) {
    const auto journal = Journal::open({folder.path(), nullptr}).value();
    for (std::uint64_t i = 1;; ++i) {
      if (!journal->accept(id_of(i), "spec", 1, 0).ok()) ::_exit(1);
      const char one = 'x';
      if (::write(told[1], &one, 1) != 1) ::_exit(1);
    }
  }
  ::close(told[1]);
  char taken[30];
  std::size_t known = 0;
  while (known < sizeof taken) {
    const auto got = ::read(told[0], taken, sizeof taken - known);
    REQUIRE(got > 0);
    known += static_cast<std::size_t>(got);
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(told[0]);
  const auto journal = Journal::open({folder.path(), nullptr}).value();
  CHECK(journal->term() == 2);
  const auto requests = journal->live_requests().value();
  CHECK(requests.size() >= known);
  for (std::size_t i = 0; i < requests.size(); ++i) CHECK(requests[i].number == i + 1);
}

TEST_CASE("journal: a full disk refuses, changes nothing, and goes on when there is space", "[actors][journal]") {
  TemporaryFolder folder;
  SimulatedDisk simulated(1);
  FaultyStorage faulty;
  for (const bool real : {false, true}) {
    auto& faults = real ? faulty.faults() : simulated.faults();
    Storage& storage = real ? static_cast<Storage&>(faulty) : simulated;
    auto journal = open_on(storage, real ? folder.path() : "f").value();
    REQUIRE(journal->accept(id_of(1), "before", 1, 0).ok());
    faults.full = true;
    const auto refused = journal->accept(id_of(2), "during", 1, 0);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::journal_failed);
    CHECK(refused.error().message == "cannot accept request " + id_of(2) + ": no space left for the journal " + journal->path());
    CHECK(journal->begin_epoch(1, "").error().code == ErrorCode::journal_failed);
    CHECK(journal->epoch() == 0);
    CHECK_FALSE(journal->find(id_of(2)).value());
    CHECK_FALSE(journal->accept(id_of(1), "before", 1, 0).value().is_new);
    CHECK(faults.fired >= 2);
    faults.full = false;
    faults.short_writes = 1;
    CHECK(journal->accept(id_of(3), "short", 1, 0).error().code == ErrorCode::journal_failed);
    CHECK(journal->accept(id_of(4), "after", 1, 0).value().request.number == 2);
    CHECK(journal->begin_epoch(1, "").ok());
    journal.reset();
    journal = open_on(storage, real ? folder.path() : "f").value();
    const auto requests = journal->live_requests().value();
    REQUIRE(requests.size() == 2);
    CHECK(requests[1].spec == "after");
  }
}

TEST_CASE("journal: after a failed sync nothing is written until it is opened anew", "[actors][journal]") {
  TemporaryFolder folder;
  SimulatedDisk simulated(1);
  FaultyStorage faulty;
  for (const bool real : {false, true}) {
    auto& faults = real ? faulty.faults() : simulated.faults();
    Storage& storage = real ? static_cast<Storage&>(faulty) : simulated;
    auto journal = open_on(storage, real ? folder.path() : "f").value();
    REQUIRE(journal->accept(id_of(1), "", 1, 0).ok());
    faults.failed_syncs = 1;
    CHECK(journal->accept(id_of(2), "", 1, 0).error().code == ErrorCode::journal_failed);
    CHECK(journal->accept(id_of(3), "", 1, 0).error().code == ErrorCode::journal_failed);
    CHECK(journal->begin_epoch(1, "").error().code == ErrorCode::journal_failed);
    CHECK(journal->find(id_of(1)).value());
    journal.reset();
    journal = open_on(storage, real ? folder.path() : "f").value();
    CHECK(journal->accept(id_of(3), "", 1, 0).ok());
    CHECK(journal->find(id_of(1)).value());
  }
}

TEST_CASE("journal: what is accepted after a failed sync and a new start survives a power cut", "[actors][journal]") {
  // The log's lost pages are still readable after the new start: whoever appends to them loses both.
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    SimulatedDisk disk(seed);
    Random random(seed);
    auto journal = open_on(disk).value();
    REQUIRE(journal->accept(id_of(1), "", 1, 0).ok());
    disk.faults().failed_syncs = 1;
    REQUIRE_FALSE(journal->accept(id_of(2), "", 1, 0).ok());
    journal.reset();
    journal = open_on(disk).value();
    REQUIRE(journal->accept(id_of(3), "", 1, 0).ok());
    disk.crash(random);
    journal.reset();
    journal = open_on(disk).value();
    CHECK(journal->find(id_of(1)).value());
    CHECK(journal->find(id_of(3)).value());
  }
}

TEST_CASE("journal: a power cut at any moment of the new start after a failed sync harms nothing", "[actors][journal]") {
  SimulatedDisk before(1);
  {
    const auto journal = open_on(before).value();
    for (std::uint64_t i = 0; i < 30; ++i) REQUIRE(journal->accept(id_of(i), std::string(300, 's'), 1, 0).ok());
  }
  REQUIRE(open_on(before).ok());  // Folds the log in: nothing there can mend the main file.
  const auto whole = *before.contents(file);
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    for (std::uint64_t at = 0; at < 20; ++at) {
      SimulatedDisk disk(seed);
      disk.put(file, whole);
      Random random(seed * 100 + at);
      auto journal = open_on(disk).value();
      // Many pages, which stay readable and are not on the disk.
      disk.faults().failed_syncs = 1;
      REQUIRE_FALSE(journal->accept(id_of(99), std::string(9000, 's'), 1, 0).ok());
      journal.reset();
      disk.halt_after(at);
      (void)open_on(disk);
      disk.crash(random);
      const auto opened = open_on(disk);
      INFO("seed " << seed << ", operation " << at);
      REQUIRE(opened.ok());
      CHECK(opened.value()->live_requests().value().size() >= 30);
    }
}

TEST_CASE("journal: a write torn by the end of the process is cut off", "[actors][journal]") {
  TemporaryFolder folder;
  int died = 0;
  FaultyStorage storage([&] { ++died; });
  auto journal = open_on(storage, folder.path()).value();
  REQUIRE(journal->accept(id_of(1), "", 1, 0).ok());
  storage.faults().torn_write = true;
  CHECK_FALSE(journal->accept(id_of(2), "", 1, 0).ok());
  CHECK(died == 1);
  journal.reset();
  journal = open_on(storage, folder.path()).value();
  CHECK(journal->find(id_of(1)).value());
  CHECK_FALSE(journal->find(id_of(2)).value());
}

TEST_CASE("journal: a damaged or foreign file is told and left as it is", "[actors][journal]") {
  TemporaryFolder folder;
  const auto path = folder.path() + "/journal.sqlite";
  const auto refused = [&](const std::string& bytes) {
    folder.write("journal.sqlite", bytes);
    const auto opened = Journal::open({folder.path(), nullptr});
    REQUIRE_FALSE(opened.ok());
    CHECK(opened.error().message.find(path) != std::string::npos);
    CHECK_FALSE(opened.error().hint.empty());
    std::ifstream in(path, std::ios::binary);
    CHECK(std::string(std::istreambuf_iterator<char>(in), {}) == bytes);
    return opened.error().code;
  };
  CHECK(refused(std::string(8192, 'x')) == ErrorCode::journal_damaged);
  CHECK(refused("SQLite format 3") == ErrorCode::journal_damaged);
  SimulatedDisk disk(1);
  {
    const auto journal = open_on(disk).value();
    for (std::uint64_t i = 0; i < 20; ++i) REQUIRE(journal->accept(id_of(i), std::string(3000, 's'), 1, 0).ok());
  }
  REQUIRE(open_on(disk).ok());  // Folds the log in.
  auto whole = *disk.contents(file);
  auto version = whole;
  version[63] = 9;  // user_version: 4 bytes, big-endian, at 60.
  CHECK(refused(version) == ErrorCode::version_mismatch);
  CHECK(refused(whole.substr(0, whole.size() / 2)) == ErrorCode::journal_damaged);
  auto renamed = whole;
  const auto at = renamed.find("CREATE TABLE incidents(number");
  REQUIRE(at != std::string::npos);
  renamed.replace(at, 29, "CREATE TABLE incidents(nvmber");
  CHECK(refused(renamed) == ErrorCode::journal_damaged);
}

TEST_CASE("journal: an empty file beside a log is damage, not a new journal", "[actors][journal]") {
  SimulatedDisk disk(1);
  REQUIRE(open_on(disk).value()->accept(id_of(1), "", 1, 0).ok());
  disk.put(file, "");
  CHECK(open_on(disk).error().code == ErrorCode::journal_damaged);
}

TEST_CASE("journal: a flipped bit is told, or changes nothing", "[actors][journal]") {
  SimulatedDisk disk(1);
  {
    const auto journal = open_on(disk).value();
    for (std::uint64_t i = 0; i < 6; ++i) REQUIRE(journal->accept(id_of(i), std::string(900, 's'), 1, 0).ok());
    REQUIRE(journal->begin_epoch(4, "why").ok());
  }
  const auto before = held_by(*open_on(disk).value());
  const auto whole = *disk.contents(file);
  Random random(3);
  int told = 0, harmless = 0;
  for (int i = 0; i < 600; ++i) {
    SimulatedDisk other(static_cast<std::uint64_t>(i));
    other.put(file, whole);
    REQUIRE(other.flip_bit(file, random.below(whole.size() * 8)));
    const auto opened = open_on(other);
    if (!opened.ok()) {
      ++told;
      continue;
    }
    ++harmless;
    auto held = held_by(*opened.value());
    CHECK(held.requests == before.requests);
    CHECK(held.epoch == before.epoch);
    CHECK(held.incidents == before.incidents);
  }
  CHECK(told > 50);
  CHECK(harmless > 50);
  CHECK_FALSE(disk.flip_bit(file, whole.size() * 8));
}

TEST_CASE("journal: a flipped bit in the middle of the log is told, not taken for its torn end", "[actors][journal]") {
  SimulatedDisk disk(1);
  {
    const auto journal = open_on(disk).value();
    for (std::uint64_t i = 0; i < 8; ++i) REQUIRE(journal->accept(id_of(i), std::string(900, 's'), 1, 0).ok());
  }
  const auto whole = *disk.contents(file), log = *disk.contents(file + "-wal");
  const std::size_t frame = 24 + 4096, frames = (log.size() - 32) / frame;
  REQUIRE(frames > 16);
  Random random(4);
  for (std::size_t at = 0; at < frames; ++at) {
    SimulatedDisk other(at);
    other.put(file, whole);
    other.put(file + "-wal", log);
    REQUIRE(other.flip_bit(file + "-wal", 8 * (32 + at * frame + 24 + random.below(4096)) + random.below(8)));
    const auto opened = open_on(other);
    INFO("frame " << at << " of " << frames);
    // The last transaction alone could be one that nobody was told of.
    if (at + 4 < frames) {
      REQUIRE_FALSE(opened.ok());
      CHECK(opened.error().code == ErrorCode::journal_damaged);
    } else if (opened.ok()) {
      CHECK(opened.value()->live_requests().value().size() >= 6);
    }
  }
}

TEST_CASE("journal: what returned OK survives a crash at every operation of the disk", "[actors][journal]") {
  // The same calls again and again, the power gone one operation later each time.
  for (std::uint64_t script = 0; script < 5; ++script) {
    std::uint64_t total = 0;
    for (std::uint64_t at = 0; at == 0 || at < total; ++at) {
      SimulatedDisk disk(script);
      Workload work(script);
      Random random(at);
      disk.halt_after(at == 0 ? 1'000'000 : at - 1);
      auto journal = work.open(disk);
      for (int i = 0; i < 12 && journal && work.act(*journal); ++i) {
      }
      if (at == 0) total = disk.operations();
      disk.crash(random);
      journal.reset();
      journal = work.open(disk);
      REQUIRE(journal);
      INFO("script " << script << ", operation " << at);
      REQUIRE(work.broken() == "");
      REQUIRE(work.number_is_right());
      REQUIRE(work.act(*journal));
    }
    CHECK(total > 40);
  }
}

TEST_CASE("journal: what returned OK survives crash after crash, full disks and failed syncs", "[actors][journal]") {
  std::uint64_t crashes = 0, acts = 0, doubts = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    SimulatedDisk disk(seed);
    Workload work(seed);
    auto& random = work.random();
    std::unique_ptr<Journal> journal;
    for (int round = 0; round < 80; ++round) {
      INFO("seed " << seed << ", round " << round);
      if (!journal) {
        disk.halt_after(random.below(4) == 0 ? random.below(30) : 1'000'000);
        journal = work.open(disk);
        REQUIRE((journal || disk.halted()));
      }
      REQUIRE(work.broken() == "");
      disk.halt_after(random.below(160));
      for (int i = 0; journal && i < 60; ++i, ++acts) {
        const auto fault = random.below(24);
        if (fault == 0) disk.faults().full = true;
        if (fault == 1) disk.faults().short_writes = 1;
        if (fault == 2) disk.faults().torn_write = true;
        if (fault == 3) disk.faults().failed_syncs = 1;
        const bool done = work.act(*journal);
        const bool in_doubt = disk.halted() || fault == 3;
        disk.faults().full = false;
        disk.faults().short_writes = 0;
        disk.faults().torn_write = false;
        disk.faults().failed_syncs = 0;
        if (done) continue;
        // A full disk and a short write are known to have changed nothing, and the journal goes on.
        if (!in_doubt) {
          work.settle_unchanged();
          continue;
        }
        ++doubts;
        break;
      }
      if (random.below(8) != 0) {
        disk.crash(random);
        ++crashes;
      } else if (disk.halted()) {
        disk.crash(random);
        ++crashes;
      }
      journal.reset();
    }
    disk.crash(random);
    journal = work.open(disk);
    REQUIRE(journal);
    REQUIRE(work.broken() == "");
    REQUIRE(work.number_is_right());
  }
  CHECK(crashes > 1500);
  CHECK(doubts > 500);
  CHECK(acts > 5000);
}

TEST_CASE("simulated disk: the same seed and calls give the same bytes, and disks do not share anything",
          "[actors][journal]") {
  const auto play = [](std::uint64_t seed) {
    SimulatedDisk disk(seed), other(seed + 1);
    Workload work(seed), elsewhere(9);
    auto journal = work.open(disk);
    const auto beside = elsewhere.open(other);
    for (int i = 0; i < 30; ++i) {
      REQUIRE(work.act(*journal));
      REQUIRE(elsewhere.act(*beside));
    }
    Random random(seed);
    disk.crash(random);
    journal.reset();
    journal = work.open(disk);
    REQUIRE(journal);
    return disk.digest();
  };
  CHECK(play(1) == play(1));
  CHECK(play(1) != play(2));
}

TEST_CASE("simulated disk: a crash keeps what was synced, and only what was written", "[actors][journal]") {
  SimulatedDisk disk(5);
  auto journal = open_on(disk).value();
  REQUIRE(journal->accept(id_of(1), "", 1, 0).ok());
  const auto syncs = disk.syncs();
  REQUIRE(journal->accept(id_of(2), "", 1, 0).ok());
  CHECK(disk.syncs() == syncs + 1);
  disk.halt_after(0);
  CHECK_FALSE(journal->accept(id_of(3), "", 1, 0).ok());
  CHECK(disk.halted());
  CHECK(open_on(disk).error().code == ErrorCode::io_failed);
  Random random(1);
  disk.crash(random);
  CHECK_FALSE(disk.halted());
  CHECK_FALSE(journal->accept(id_of(4), "", 1, 0).ok());
  CHECK(open_on(disk).value()->live_requests().value().size() == 2);
}
