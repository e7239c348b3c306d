// An exchange in conversation with an enemy who knows everything: cluster, epoch, sessions, checksums.
//
// The input is a script: frames whose fields are right but for some, then spoiled and given right checksums again, mixed
// with what an honest owner does (ticks, receives, sends, new epochs). Nothing may crash, hang, or take memory by what
// a header announces; what is received has the size that it says.

#include "base/clock.hpp"
#include "base/digest.hpp"
#include "base/log.hpp"
#include "protocol/exchange.hpp"
#include "protocol/loopback_transport.hpp"
#include "tests/fuzz/input.hpp"

namespace {

using namespace orrery;
using namespace orrery::protocol;
using fuzz::Input;

constexpr std::size_t preamble_bytes = 16;
constexpr int actions_max = 200;

enum Action : std::uint8_t { frame, raw_frame, tick, receive, send, next_epoch, forget, action_count };

class World {
public:
  explicit World(Input input) : input_(input) {
    ExchangeOptions options;
    options.cluster_id = 7;
    options.session = 77;
    options.chunk_bytes = 64;
    options.window_bytes = 4096;
    options.unclaimed_bytes_max = 16384;
    options.send_bytes_max = 65536;
    options.own_timer = false;
    exchange_ = Exchange::create(options, network_.make_transport(1), clock_).value();
    enemy_ = network_.make_transport(2);
    enemy_->start({.on_frame = [](PeerId, std::span<const std::byte>, Shard) {}, .on_hint = [](PeerId, PeerHint) {}});
    ORRERY_CHECK(exchange_->add_peer(2, enemy_->address()).ok());
    ORRERY_CHECK(enemy_->add_peer(1, exchange_->address()).ok());
    new_epoch();
    network_.deliver_all();
  }

  void run() {
    for (int i = 0; i < actions_max && !input_.empty(); ++i) {
      switch (input_.byte() % action_count) {
        case frame: say(); break;
        case raw_frame: {
          const auto header = input_.bytes(input_.byte());
          const auto payload = input_.bytes(input_.byte());
          (void)decode_header(header, payload.size());
          deliver(HeaderBytes(header), payload);
          break;
        }
        case tick:
          clock_.advance(std::chrono::milliseconds(input_.byte()));
          exchange_->tick();
          break;
        case receive: take(); break;
        case send: {
          const auto values = input_.bytes(input_.byte());
          (void)exchange_->send({input_.byte(), 0, 0, 0, input_.byte(), 1, 2}, DType::u8, {values.size()}, Shard::copy_of(values));
          break;
        }
        case next_epoch: new_epoch(); break;
        case forget: exchange_->forget(input_.byte()); break;
      }
      network_.deliver_all();
    }
    // Credit comes back, whatever happened: what is unclaimed is bounded.
    for (const auto& [peer, statistics] : exchange_->statistics().peers) ORRERY_CHECK(statistics.unclaimed_bytes <= (std::uint64_t{1} << 20));
  }

private:
  void new_epoch() { ORRERY_CHECK(exchange_->set_routes(++epoch_, 5, {{1, 1}, {2, 2}}).ok()); }

  void take() {
    const MessageKey key{input_.byte(), 0, 0, 0, input_.byte(), 2, 1};
    const auto message = exchange_->try_receive(key);
    if (!message) return;
    std::uint64_t size = size_of(message->dtype);
    for (const auto extent : message->shape) size *= extent;
    ORRERY_CHECK(message->bytes() == size);
    std::uint64_t at = 0;
    for (const auto& chunk : message->chunks) {
      ORRERY_CHECK(chunk.offset == at);
      at += chunk.bytes.size();
    }
    ORRERY_CHECK(at == size);
    std::vector<std::byte> copy(size);
    message->copy_to(copy);
  }

  /// A frame as an honest peer would send it, but for the fields that the mask names.
  void say() {
    FrameHeader header;
    header.kind = static_cast<FrameKind>(1 + input_.byte() % 5);
    const bool has_data = header.kind == FrameKind::data;
    const auto mask = input_.number<std::uint32_t>();
    const auto payload = has_data ? input_.bytes(input_.byte()) : std::span<const std::byte>{};
    int bit = 0;
    const auto field = [&]<class T>(T& value, std::uint64_t honest) {
      value = (mask >> bit++ & 1) != 0 ? input_.number<T>() : static_cast<T>(honest);
    };
    field(header.cluster_id, 7);
    field(header.epoch, epoch_);
    field(header.plan_digest, 5);
    field(header.sender, 2);
    field(header.receiver, 1);
    field(header.session, 22);
    field(header.receiver_session, 77);
    field(header.acked, 0);
    field(header.acked_after, 0);
    field(header.granted, 1 << 20);
    if (has_data) {
      field(header.sequence, sequence_ + 1);
      if (header.sequence == sequence_ + 1) ++sequence_;
      field(header.key.request, 1);
      field(header.key.step, 0);
      field(header.key.op, header.sequence);
      field(header.key.source, 2);
      field(header.key.target, 1);
      field(header.message_bytes, payload.size());
      field(header.chunk_offset, 0);
      header.dtype = DType::u8;
      if ((mask >> bit++ & 1) != 0) header.dtype = static_cast<DType>(1 + input_.byte() % 13);
      header.shape = {payload.size()};
      if ((mask >> bit++ & 1) != 0) {
        header.shape.clear();
        for (int extents = input_.byte() % 9; extents > 0; --extents) header.shape.push_back(input_.number<std::uint64_t>() >> (input_.byte() % 64));
      }
    }
    header.payload_bytes = payload.size();
    header.checksum = xxh3_of(payload);
    if ((mask >> bit++ & 1) != 0) header.checksum ^= 1;
    auto bytes = encode_header(header);
    if (const auto read = decode_header(bytes.bytes(), payload.size()); read.ok()) ORRERY_CHECK(encode_header(read.value()).bytes().size() == bytes.bytes().size());
    for (int spoils = input_.byte() % 4; spoils > 0 && bytes.bytes().size() > preamble_bytes; --spoils) {
      const auto at = preamble_bytes + input_.byte() % (bytes.bytes().size() - preamble_bytes);
      bytes.bytes()[at] ^= std::byte{input_.byte()};
    }
    const auto checksum = xxh3_of(bytes.bytes().subspan(preamble_bytes));
    std::memcpy(bytes.bytes().data() + 8, &checksum, sizeof checksum);
    deliver(bytes, payload);
  }

  void deliver(const HeaderBytes& header, std::span<const std::byte> payload) {
    (void)enemy_->send(1, header, Shard::copy_of(payload));
    network_.deliver_all();
  }

  Input input_;
  ManualClock clock_;
  LoopbackNetwork network_;
  std::unique_ptr<Exchange> exchange_;
  std::unique_ptr<Transport> enemy_;
  std::uint64_t epoch_ = 0, sequence_ = 0;
};

void make_corpus(const std::string& folder) {
  const std::string no_mask(4, '\0'), honest_end(1, '\0');
  const auto simple = [&](char kind) { return std::string{frame, kind} + no_mask + honest_end; };
  const auto data = [&](const std::string& payload) {
    return std::string{frame, 1} + no_mask + static_cast<char>(payload.size()) + payload + honest_end;
  };
  fuzz::write_seed(folder, "hello", simple(0));
  fuzz::write_seed(folder, "conversation", simple(0) + data("0123456789") + std::string{tick, 50} + data("more") + std::string{receive, 1, 1, receive, 1, 2} + simple(2) + simple(3));
  fuzz::write_seed(folder, "refusal", simple(0) + simple(4));
  fuzz::write_seed(folder, "epochs", simple(0) + data("a") + std::string{next_epoch} + simple(0) + data("b") + std::string{forget, 1} + data("c"));
  fuzz::write_seed(folder, "both_ways", simple(0) + std::string{send, 5} + "hello" + std::string{1, 1, tick, 10} + simple(2) + std::string{tick, '\xff', tick, '\xff'});
  FrameHeader header;
  header.cluster_id = 7;
  header.epoch = 1;
  header.plan_digest = 5;
  header.sender = 2;
  header.receiver = 1;
  header.session = 22;
  const auto bytes = encode_header(header);
  fuzz::write_seed(folder, "raw", std::string{raw_frame, static_cast<char>(bytes.bytes().size())} + std::string(reinterpret_cast<const char*>(bytes.bytes().data()), bytes.bytes().size()) + '\0');
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  orrery::set_log(orrery::Level::error, "fuzz");
  return fuzz::initialize(make_corpus);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  World(Input(data, size)).run();
  return 0;
}
