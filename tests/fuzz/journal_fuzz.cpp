// A journal folder made of any bytes is opened, or refused with a reason; if opened, it works as a journal.
//
// Input: one byte c, then the main file and its log: the main file has the first c/255 of the rest (c = 255: no log).
// Runs want -max_len=100000. The corpus is made of real journals; `ORRERY_FUZZ_MAKE_CORPUS=FOLDER` writes them there and ends.

#include <cstdlib>
#include <fstream>
#include <string>

#include "actors/journal.hpp"

namespace {

using namespace orrery;
using namespace orrery::actors;

const std::string file = "f/journal.sqlite";

std::string id_of(char digit) { return std::string(32, digit); }

void write_seed(const std::string& path, const SimulatedDisk& disk) {
  const auto main = disk.contents(file).value_or(""), log = disk.contents(file + "-wal").value_or("");
  const auto rest = static_cast<double>(main.size() + log.size());
  // Rounded: seeds whose cut is not exact still open after a few mutations.
  const auto share = static_cast<unsigned char>(log.empty() ? 255 : static_cast<double>(main.size()) / rest * 255 + 0.5);
  std::ofstream(path, std::ios::binary) << static_cast<char>(share) << main << log;
}

void make_corpus(const std::string& folder) {
  SimulatedDisk disk(1);
  {
    const auto journal = Journal::open({"f", &disk}).value();
    write_seed(folder + "/new", disk);
    for (char digit = '1'; digit <= '2'; ++digit) ORRERY_CHECK(journal->accept(id_of(digit), "{\"prompt\":\"sea\"}", 1, 0).ok());
    ORRERY_CHECK(journal->begin_epoch(3, "card n1:0 is lost").ok());
    ORRERY_CHECK(journal->set_digest(1, std::string(64, 'a')).ok());
    ORRERY_CHECK(journal->finish(1, RequestOutcome::completed, 0, "", "{}", 2).ok());
    ORRERY_CHECK(journal->finish(2, RequestOutcome::failed, 41, "no cards", "{}", 2).ok());
    ORRERY_CHECK(journal->note_incident("{\"card\":\"n1:0\"}", 2).ok());
    write_seed(folder + "/with_log", disk);
  }
  ORRERY_CHECK(Journal::open({"f", &disk}).ok());
  disk.put(file + "-wal", "");
  write_seed(folder + "/folded", disk);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  if (const char* folder = std::getenv("ORRERY_FUZZ_MAKE_CORPUS")) {
    make_corpus(folder);
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  auto main_bytes = static_cast<std::size_t>(static_cast<double>(data[0]) / 255 * static_cast<double>(rest.size()));
  // Whole pages, so that the seeds are cut where they were joined.
  if (data[0] != 255) main_bytes = std::min(rest.size(), (main_bytes + 2048) / 4096 * 4096);
  SimulatedDisk disk(1);
  if (main_bytes > 0) disk.put(file, rest.substr(0, main_bytes));
  if (main_bytes < rest.size()) disk.put(file + "-wal", rest.substr(main_bytes));
  auto opened = Journal::open({"f", &disk});
  if (!opened.ok()) {
    ORRERY_CHECK(!opened.error().message.empty());
    return 0;
  }
  auto journal = std::move(opened).value();
  const auto term = journal->term(), epoch = journal->epoch();
  // What passed the checks at opening is readable; a read may find damage that they do not see, never crash.
  for (const auto& requests : {journal->live_requests(), journal->latest_requests(100)})
    if (requests.ok())
      for (const auto& request : requests.value()) ORRERY_CHECK(request.number > 0);
  (void)journal->incidents(10);
  const bool began = epoch < std::uint64_t{1} << 61 && journal->begin_epoch(epoch + 1, "fuzz").ok();
  const auto accepted = journal->accept(id_of('f'), "spec", 10, 0);
  if (accepted.ok() && accepted.value().is_new) {
    const auto number = accepted.value().request.number;
    (void)journal->set_digest(number, std::string(64, 'b'));
    ORRERY_CHECK(!journal->finish(number, RequestOutcome::delivered, 0, "", "", 11).ok());
    (void)journal->finish(number, RequestOutcome::completed, 0, "", "{}", 11);
  }
  (void)journal->forget_before(5);
  journal.reset();
  Random random(size);
  disk.crash(random);
  const auto again = Journal::open({"f", &disk});
  if (!again.ok()) return 0;
  ORRERY_CHECK(again.value()->term() == term + 1);
  if (began) ORRERY_CHECK(again.value()->epoch() == epoch + 1);
  if (accepted.ok() && accepted.value().is_new) {
    const auto found = again.value()->find(id_of('f'));
    if (found.ok()) ORRERY_CHECK(found.value().has_value());
  }
  return 0;
}
