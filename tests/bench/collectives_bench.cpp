// All-reduce of f32 over the data plane: ordered reduce-scatter, then all-gather (for short messages in one turn), each
// rank a process.
//
// Why this path: it is what a tensor-parallel group does twice per block of the denoiser. `tests/bench/collectives` runs
// it next to Open MPI and gloo.
// A good number: 2 ranks move each byte through memory about twice (sender's copy, receiver's sum or copy), so the time
// is near 2 x bytes / memcpy rate for large messages, and near two wake-ups of a sleeping thread for small ones.
//
//   bench_collectives ranks=2 transport=shm sizes=4096,262144 [spin_us=0] [budget=MIB_PER_SIZE]
//   bench_collectives memcpy sizes=...       and      bench_collectives wake
//
// Prints "bytes microseconds" per size, the mean over the iterations at rank 0.

#include <linux/futex.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/private_folder.hpp"
#include "protocol/collective/ordered_reduce_scatter.hpp"
#include "protocol/collective/transfer.hpp"
#include "protocol/exchange.hpp"
#include "protocol/host_transport.hpp"
#include "protocol/shm_transport.hpp"

using namespace orrery;
using namespace orrery::protocol;

extern char** environ;

namespace {

constexpr std::uint32_t slices = 8;
constexpr std::uint64_t width = 128;
constexpr auto patience = std::chrono::seconds(60);

using Arguments = std::map<std::string, std::string>;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "bench_collectives: %s\n", what.c_str());
  std::exit(1);
}
template <class T>
T must(Result<T> result) {
  if (!result.ok()) fail(result.error().text());
  return std::move(result).value();
}
void must(const Status& status) {
  if (!status.ok()) fail(status.error().text());
}

std::vector<std::uint64_t> sizes_of(const std::string& text) {
  std::vector<std::uint64_t> sizes;
  std::stringstream stream(text);
  for (std::string each; std::getline(stream, each, ',');) sizes.push_back(std::stoull(each));
  return sizes;
}
std::uint64_t iterations_of(std::uint64_t bytes, const Arguments& arguments) {
  if (arguments.contains("iterations")) return std::stoull(arguments.at("iterations"));
  const auto budget = arguments.contains("budget") ? std::stoull(arguments.at("budget")) : 128;  // MiB per size.
  return std::clamp<std::uint64_t>((budget << 20) / bytes, 4, 1000);
}
double microseconds_since(Time begin, const Clock& clock) { return seconds_of(clock.now() - begin) * 1e6; }

// The buffer of one rank, cut into blocks of rows that are reduced one after another, several at a time on the way.
class AllReduce {
public:
  AllReduce(Exchange& exchange, std::uint32_t self, std::uint32_t ranks, std::uint64_t bytes, std::uint64_t block_bytes)
      : exchange_(exchange), self_(self), ranks_(ranks) {
    const auto rows = bytes / (width * sizeof(float));
    const auto block_rows = std::max<std::uint64_t>(1, block_bytes / (width * sizeof(float)));
    for (std::uint64_t first = 0; first < rows; first += block_rows) blocks_.push_back(make_block(first, std::min(block_rows, rows - first)));
  }

  // `in` stays as it is until all are done; `out` until everybody has it, which `idle` tells.
  void run(std::uint32_t step, std::span<const float> in, std::span<float> out) {
    for (std::size_t i = 0; i < std::min(ahead, blocks_.size()); ++i) send_parts(step, i, in);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      if (i + ahead < blocks_.size()) send_parts(step, i + ahead, in);
      reduce(step, i, in, out);
      if (i > 0) gather(step, i - 1, out);
    }
    gather(step, blocks_.size() - 1, out);
  }
  bool idle(int buffer) const { return borrowed_[static_cast<std::size_t>(buffer)] == 0; }
  bool all_idle() const { return lent_ == 0 && idle(0) && idle(1); }
  void use(int buffer) { buffer_ = buffer; }

private:
  static constexpr std::size_t ahead = 2;
  struct Block {
    std::uint64_t first = 0, rows = 0;
    std::optional<OrderedReduceScatter> reduce;
    TransferList gather;
  };

  Block make_block(std::uint64_t first, std::uint64_t rows) const {
    std::vector<ReduceRank> group;
    std::vector<RowHolder> holders;
    const bool in_one_turn = OrderedReduceScatter::in_one_turn(rows * width * sizeof(float), ranks_);
    for (std::uint32_t rank = 0; rank < ranks_; ++rank) {
      ReduceRank each{.endpoint = rank, .slices = {}, .rows = {rows * rank / ranks_, rows * (rank + 1) / ranks_}};
      for (std::uint32_t slice = slices * rank / ranks_; slice < slices * (rank + 1) / ranks_; ++slice) each.slices.push_back(slice);
      if (in_one_turn)
        each.rows = {0, rows};
      else
        holders.push_back({rank, each.rows});
      group.push_back(std::move(each));
    }
    Block block{first, rows, {}, {}};
    if (!in_one_turn) block.gather = all_gather_rows(holders, rows, self_, width * sizeof(float));
    block.reduce = must(OrderedReduceScatter::create(slices, group, self_, width));
    return block;
  }
  MessageKey key(std::uint32_t step, std::size_t block, bool gathers, std::uint32_t source, std::uint32_t target) const {
    return {.request = 1, .step = step, .op = static_cast<std::uint32_t>(2 * block + gathers), .source = source, .target = target};
  }
  std::uint64_t offset(const Block& block) const { return block.first * width; }

  void send_parts(std::uint32_t step, std::size_t index, std::span<const float> in) {
    const auto& block = blocks_[index];
    const auto bytes = std::as_bytes(in.subspan(offset(block), block.rows * width));
    for (const auto& send : block.reduce->sends()) {
      ++lent_;
      must(exchange_.send(key(step, index, false, self_, send.target), DType::f32, {send.rows.count(), width},
                          Shard(bytes.subspan(send.offset, send.bytes), [this] { --lent_; })));
    }
  }
  void reduce(std::uint32_t step, std::size_t index, std::span<const float> in, std::span<float> out) {
    const auto& block = blocks_[index];
    std::vector<Message> received;
    for (const auto& each : block.reduce->receives())
      received.push_back(must(exchange_.receive(key(step, index, false, each.source, self_), clock_.now() + patience)));
    const auto own = in.subspan(offset(block), block.rows * width);
    const auto rows = block.reduce->rows();
    const auto result = out.subspan(offset(block) + rows.begin * width, rows.count() * width);
    must(block.reduce->combine(std::vector<std::span<const float>>{own}, received, result));
    received.clear();
    if (block.gather.sends.empty()) return;
    auto& borrowed = borrowed_[static_cast<std::size_t>(buffer_)];
    ++borrowed;
    const Shard shard(std::as_bytes(result), [&borrowed] { --borrowed; });
    for (const auto& send : block.gather.sends)
      must(exchange_.send(key(step, index, true, self_, send.target), DType::f32, {rows.count(), width}, shard));
  }
  void gather(std::uint32_t step, std::size_t index, std::span<float> out) {
    const auto& block = blocks_[index];
    const auto target = std::as_writable_bytes(out.subspan(offset(block), block.rows * width));
    for (const auto& each : block.gather.receives)
      must(copy_in(must(exchange_.receive(key(step, index, true, each.source, self_), clock_.now() + patience)), each.region, target));
  }

  Exchange& exchange_;
  const std::uint32_t self_, ranks_;
  const SteadyClock clock_;
  std::vector<Block> blocks_;
  std::array<std::atomic<int>, 2> borrowed_{};
  std::atomic<int> lent_{0};
  int buffer_ = 0;
};

std::string read_when_there(const std::string& path) {
  for (int i = 0; i < 20000; ++i) {
    std::ifstream file(path);
    std::string line;
    if (file && std::getline(file, line)) return line;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  fail(path + " never came");
}

std::unique_ptr<Transport> transport_of(const Arguments& arguments, std::uint32_t self, const std::string& folder) {
  auto options = must(host_transport_of(arguments.at("transport"), self, "127.0.0.1", folder));
  if (!arguments.contains("spin_us") || options.path == HostPath::zmq) return must(make_host_transport(options));
  auto inner = must(make_zmq_transport(options.wire));
  return must(make_shm_transport(inner, {.spin = std::chrono::microseconds(std::stoull(arguments.at("spin_us")))}));
}

void run_rank(const Arguments& arguments) {
  const auto self = static_cast<std::uint32_t>(std::stoul(arguments.at("rank")));
  const auto ranks = static_cast<std::uint32_t>(std::stoul(arguments.at("ranks")));
  const auto& folder = arguments.at("folder");
  const SteadyClock clock;
  ExchangeOptions options;
  options.cluster_id = 1;
  auto* transport = static_cast<Transport*>(nullptr);
  auto made = transport_of(arguments, self, folder);
  transport = made.get();
  const auto exchange = must(Exchange::create(options, std::move(made), clock));
  {
    std::ofstream(folder + "/address" + std::to_string(self) + ".new") << exchange->address() << "\n";
    std::filesystem::rename(folder + "/address" + std::to_string(self) + ".new", folder + "/address" + std::to_string(self));
  }
  std::map<EndpointId, PeerId> routes;
  for (std::uint32_t rank = 0; rank < ranks; ++rank) {
    routes[rank] = rank;
    if (rank != self) must(exchange->add_peer(rank, read_when_there(folder + "/address" + std::to_string(rank))));
  }
  must(exchange->set_routes(1, 1, routes));

  const auto block_bytes = arguments.contains("block") ? std::stoull(arguments.at("block")) : std::uint64_t{2} << 20;
  std::uint32_t step = 0;
  for (const auto bytes : sizes_of(arguments.at("sizes"))) {
    const auto count = bytes / sizeof(float);
    std::vector<float> in(count), outs[2] = {std::vector<float>(count), std::vector<float>(count)};
    for (std::size_t i = 0; i < count; ++i) in[i] = static_cast<float>((i * 7 + self) % 1000);
    AllReduce all_reduce(*exchange, self, ranks, bytes, block_bytes);
    const auto once = [&](int turn) {
      // The buffer is written again: whoever was sent it must have it.
      while (!all_reduce.idle(turn % 2)) std::this_thread::sleep_for(std::chrono::microseconds(20));
      all_reduce.use(turn % 2);
      all_reduce.run(step++, in, outs[turn % 2]);
    };
    const auto iterations = iterations_of(bytes, arguments);
    const auto warm = std::max<std::uint64_t>(2, iterations / 10);
    for (std::uint64_t i = 0; i < warm; ++i) once(static_cast<int>(i % 2));
    for (std::size_t i = 0; i < count; ++i) {
      float expected = 0;
      for (std::uint32_t rank = 0; rank < ranks; ++rank) expected += static_cast<float>((i * 7 + rank) % 1000);
      if (outs[(warm - 1) % 2][i] != expected) fail("a sum is wrong");
    }
    const auto begin = clock.now();
    for (std::uint64_t i = 0; i < iterations; ++i) once(static_cast<int>(i % 2));
    const auto each = microseconds_since(begin, clock) / static_cast<double>(iterations);
    if (self == 0) std::printf("%llu %.2f\n", static_cast<unsigned long long>(bytes), each);
    std::fflush(stdout);
    while (!all_reduce.all_idle()) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  const auto statistics = transport->statistics();
  if (self == 0 && arguments.contains("verbose"))
    std::fprintf(stderr, "frames sent %llu, through memory %llu\n", static_cast<unsigned long long>(statistics.frames_sent),
                 static_cast<unsigned long long>(statistics.memory_frames_sent));
  // Nobody leaves while another may still want a frame again.
  std::ofstream(folder + "/done" + std::to_string(self)) << "done\n";
  for (std::uint32_t rank = 0; rank < ranks; ++rank) read_when_there(folder + "/done" + std::to_string(rank));
}

// How fast memory copies `bytes`, warm: the bound of everything that copies once.
void run_memcpy(const Arguments& arguments) {
  const SteadyClock clock;
  for (const auto bytes : sizes_of(arguments.at("sizes"))) {
    std::vector<std::byte> from(bytes, std::byte{1}), to(bytes);
    const auto iterations = iterations_of(bytes, arguments) * 4;
    Time begin{};
    for (std::uint64_t i = 0; i < iterations + 2; ++i) {
      if (i == 2) begin = clock.now();
      std::memcpy(to.data(), from.data(), bytes);
      asm volatile("" ::"r"(to.data()) : "memory");
    }
    std::printf("%llu %.3f\n", static_cast<unsigned long long>(bytes), microseconds_since(begin, clock) / static_cast<double>(iterations));
  }
}

// One way of a ping-pong between two threads that sleep on futexes: what a wake-up costs here.
void run_wake() {
  std::atomic<std::uint32_t> words[2]{};
  constexpr std::uint32_t rounds = 3000;
  const auto wait = [](std::atomic<std::uint32_t>& word, std::uint32_t until) {
    for (auto seen = word.load(); seen < until; seen = word.load()) ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr);
  };
  const auto wake = [](std::atomic<std::uint32_t>& word) {
    ++word;
    ::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1);
  };
  const SteadyClock clock;
  std::thread other([&] {
    for (std::uint32_t i = 1; i <= rounds; ++i) {
      wait(words[0], i);
      wake(words[1]);
    }
  });
  const auto begin = clock.now();
  for (std::uint32_t i = 1; i <= rounds; ++i) {
    wake(words[0]);
    wait(words[1], i);
  }
  std::printf("%.2f\n", microseconds_since(begin, clock) / (2.0 * rounds));
  other.join();
}

}  // namespace

int main(int count, char** words) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto mark = word.find('=');
    arguments[word.substr(0, mark)] = mark == std::string::npos ? "1" : word.substr(mark + 1);
  }
  if (arguments.contains("wake")) return run_wake(), 0;
  if (arguments.contains("memcpy")) return run_memcpy(arguments), 0;
  if (arguments.contains("rank")) return run_rank(arguments), 0;

  const auto folder = must(PrivateFolder::create());
  std::vector<pid_t> children;
  for (unsigned rank = 0; rank < std::stoul(arguments.at("ranks")); ++rank) {
    std::vector<std::string> texts(words, words + count);
    texts.push_back("rank=" + std::to_string(rank));
    texts.push_back("folder=" + folder.path());
    std::vector<char*> pointers;
    for (auto& text : texts) pointers.push_back(text.data());
    pointers.push_back(nullptr);
    pid_t child = 0;
    if (::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, pointers.data(), environ) != 0) fail("no process");
    children.push_back(child);
  }
  int worst = 0;
  for (const auto child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    if (status != 0) worst = 1;
  }
  return worst;
}
