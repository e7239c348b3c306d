#include "protocol/channel.hpp"

#include <algorithm>
#include <span>

#include "base/digest.hpp"

namespace orrery::protocol {
namespace {

// How far a sequence may run ahead of what arrived without gaps, and how many frames are in flight at most.
constexpr std::uint64_t flight_frames_max = 1024;
// A frame counts as lost when this many transmissions after it were acked: transports reorder a little.
constexpr std::uint64_t reorder_frames = 3;
// Acks within a long message: at least one per so many frames.
constexpr std::uint32_t ack_every_frames = 4;
constexpr std::uint64_t plenty = std::uint64_t{1} << 40;

// Keeps a received payload alive and returns its credit when the last copy is gone.
struct CreditedPayload {
  Shard bytes;
  std::shared_ptr<CreditAccount> account;
  std::uint64_t charge;

  CreditedPayload(Shard b, std::shared_ptr<CreditAccount> a, std::uint64_t c)
      : bytes(std::move(b)), account(std::move(a)), charge(c) {}
  CreditedPayload(const CreditedPayload&) = delete;
  CreditedPayload& operator=(const CreditedPayload&) = delete;
  ~CreditedPayload() {
    const auto released = account->released.fetch_add(charge) + charge;
    if (released >= account->ring_at.load() && account->bell) account->bell->ring();
  }
};

}  // namespace

Channel::Channel(ChannelOptions options, ChannelIdentity identity, PeerStatistics& statistics,
                 std::shared_ptr<Bell> bell)
    : options_(options),
      identity_(identity),
      statistics_(statistics),
      bell_(std::move(bell)),
      granted_(options.window_bytes),
      account_(std::make_shared<CreditAccount>()) {
  account_->bell = bell_;
}

std::uint64_t Channel::chunk_size(const OutgoingMessage& message, std::uint64_t chunk) {
  const auto offset = chunk * message.chunk_bytes;
  return std::min(message.chunk_bytes, message.bytes.size() - offset);
}

Duration Channel::backed_off(std::uint32_t tries) const {
  return std::min<Duration>(options_.resend_after * (1LL << std::min(tries, 16U)), options_.resend_after_max);
}

void Channel::queue(OutgoingMessage message) {
  ORRERY_CHECK(message.checksums.size() ==
               std::max<std::uint64_t>(1, (message.bytes.size() + message.chunk_bytes - 1) / message.chunk_bytes));
  if (lost_) {
    released_shards_.push_back(std::move(message.bytes));
    return;
  }
  unacked_bytes_ += message.bytes.size();
  queue_.push_back({std::make_shared<const OutgoingMessage>(std::move(message)), 0});
}

// --- What to send.

bool Channel::may_send_new() const {
  return !queue_.empty() && sent_charge_ < peer_granted_ && flight_.size() < flight_frames_max;
}

std::optional<std::size_t> Channel::first_due() const {
  if (due_count_ == 0) return std::nullopt;
  const auto found = std::find_if(flight_.begin(), flight_.end(), [](const auto& flight) { return flight.due; });
  return static_cast<std::size_t>(found - flight_.begin());
}

void Channel::fill(FrameKind kind, FrameHeader& header) {
  update_grant();
  header.kind = kind;
  header.cluster_id = identity_.cluster_id;
  header.epoch = identity_.epoch;
  header.plan_digest = identity_.plan_digest;
  header.sender = identity_.self;
  header.receiver = identity_.peer;
  header.session = identity_.session;
  header.receiver_session = peer_session_;
  header.sequence = 0;
  header.acked = received_through_;
  header.acked_after = 0;
  for (const auto sequence : received_after_) {
    const auto bit = sequence - received_through_ - 1;
    if (bit >= 64) break;
    header.acked_after |= std::uint64_t{1} << bit;
  }
  header.granted = granted_;
  header.key = {};
  header.shape.clear();
  header.message_bytes = header.chunk_offset = header.payload_bytes = 0;
  header.checksum = 0;
  header.refusal = ErrorCode::internal;
}

void Channel::fill_chunk(const OutgoingMessage& message, std::uint64_t chunk, std::uint64_t sequence,
                         FrameHeader& header, Shard& payload) const {
  header.sequence = sequence;
  header.key = message.key;
  header.dtype = message.dtype;
  header.shape = message.shape;
  header.message_bytes = message.bytes.size();
  header.chunk_offset = chunk * message.chunk_bytes;
  header.payload_bytes = chunk_size(message, chunk);
  header.checksum = message.checksums[chunk];
  payload = message.bytes.part(header.chunk_offset, header.payload_bytes);
}

bool Channel::next(Time now, FrameHeader& header, Shard& payload) {
  offer_ = Offer::none;
  payload = {};
  if (refusal_to_send_) {
    fill(FrameKind::refusal, header);
    header.receiver_session = refused_session_;
    header.refusal = refusal_to_send_->code;
    const auto text = std::as_bytes(std::span(refusal_to_send_->message));
    payload = Shard::copy_of(text.first(std::min<std::size_t>(text.size(), 300)));
    header.payload_bytes = payload.size();
    header.checksum = xxh3_of(payload.bytes());
    offer_ = Offer::refusal;
    return true;
  }
  if (lost_) return false;
  if (hello_due_ || (!established_ && now >= hello_at_)) {
    fill(FrameKind::hello, header);
    offer_ = Offer::hello;
    return true;
  }
  if (!established_) return false;

  check_resend_timer(now);
  if (const auto due = first_due(); due && resend_allowance_ > 0) {
    fill(FrameKind::data, header);
    fill_chunk(*flight_[*due].message, flight_[*due].chunk, flight_base_ + *due, header, payload);
    offer_ = Offer::resend;
    offered_flight_ = *due;
    return true;
  } else if (!due && may_send_new()) {
    fill(FrameKind::data, header);
    fill_chunk(*queue_.front().message, queue_.front().next_chunk, flight_base_ + flight_.size(), header, payload);
    offer_ = Offer::data;
    return true;
  }
  update_grant();
  if (ack_due_ || (ack_at_ && now >= *ack_at_)) {
    fill(FrameKind::ack, header);
    offer_ = Offer::ack;
    return true;
  }
  const bool stuck = flight_.empty() && !queue_.empty() && !may_send_new();
  if ((stuck || probe_) && now >= std::max(heard_at_, probed_at_) + options_.probe_after) {
    fill(FrameKind::probe, header);
    offer_ = Offer::probe;
    return true;
  }
  return false;
}

void Channel::sent(Time now) {
  switch (offer_) {
    case Offer::none: return;
    case Offer::refusal: refusal_to_send_.reset(); break;
    case Offer::hello:
      hello_due_ = false;
      hello_at_ = now + backed_off(hello_tries_++);
      break;
    case Offer::resend: {
      auto& flight = flight_[offered_flight_];
      flight.due = false;
      flight.transmission = ++transmissions_;
      --due_count_;
      --resend_allowance_;
      progress_at_ = std::max(progress_at_, now);
      ++statistics_.frames_resent;
      break;
    }
    case Offer::data: {
      auto& queued = queue_.front();
      const auto bytes = chunk_size(*queued.message, queued.next_chunk);
      if (flight_.empty()) progress_at_ = now;
      flight_.push_back({.message = queued.message, .chunk = queued.next_chunk, .transmission = ++transmissions_});
      sent_charge_ += charge_of(bytes);
      ++statistics_.frames_sent;
      statistics_.bytes_sent += bytes;
      if (++queued.next_chunk == queued.message->checksums.size()) queue_.pop_front();
      break;
    }
    case Offer::probe: probed_at_ = now; break;
    case Offer::ack: break;
  }
  if (offer_ != Offer::refusal) {
    // Every frame carries the acknowledgement.
    ack_due_ = false;
    ack_at_.reset();
    unacked_frames_ = 0;
    announced_ = granted_;
    account_->ring_at = account_->released.load() + options_.window_bytes / 4;
  }
  offer_ = Offer::none;
}

Time Channel::next_due(Time now) const {
  if (refusal_to_send_) return now;
  if (lost_) return Time::max();
  if (hello_due_) return now;
  if (!established_) return hello_at_;
  Time due = Time::max();
  if (ack_due_) due = now;
  if (ack_at_) due = std::min(due, *ack_at_);
  if (flight_.size() > due_count_ || (due_count_ > 0 && resend_allowance_ == 0))
    due = std::min(due, progress_at_ + backed_off(tries_));
  if (probe_ || (flight_.empty() && !queue_.empty()))
    due = std::min(due, std::max(heard_at_, probed_at_) + options_.probe_after);
  return due;
}

void Channel::check_resend_timer(Time now) {
  if (flight_.empty() || now < progress_at_ + backed_off(tries_)) return;
  for (auto& flight : flight_) {
    if (flight.acked || flight.due) continue;
    flight.due = true;
    ++due_count_;
  }
  resend_allowance_ = 1;
  progress_at_ = now;
  ++tries_;
}

// --- What came.

Channel::Event Channel::lose(Event why) {
  lost_ = true;
  for (auto& flight : flight_) released_shards_.push_back(flight.message->bytes);
  for (auto& queued : queue_) released_shards_.push_back(queued.message->bytes);
  flight_.clear();
  queue_.clear();
  unacked_bytes_ = due_count_ = 0;
  return why;
}

void Channel::refuse(ErrorCode code, std::string text) {
  ++statistics_.frames_bad;
  refusal_to_send_ = Error{code, std::move(text)};
}

Channel::Event Channel::on_frame(const FrameHeader& header, Shard& payload, Time now) {
  if (header.sender != identity_.peer || header.receiver != identity_.self) {
    ++statistics_.frames_bad;
    return Event::nothing;
  }
  if (header.kind == FrameKind::refusal) {
    if (header.receiver_session != identity_.session || lost_) return Event::nothing;
    const auto text = payload.bytes();
    std::string reason(reinterpret_cast<const char*>(text.data()), text.size());
    for (auto& letter : reason)
      if (static_cast<unsigned char>(letter) < 0x20) letter = '?';
    refusal_ = Error{ErrorCode::version_mismatch,
                     "process " + std::to_string(identity_.peer) + " refuses to talk to us: " + reason,
                     "all nodes of a cluster run one release and one plan"};
    return lose(Event::refused);
  }
  if (header.cluster_id != identity_.cluster_id) {
    refused_session_ = header.session;
    refuse(ErrorCode::version_mismatch, "it belongs to cluster " + std::to_string(identity_.cluster_id) +
                                            ", the frame to cluster " + std::to_string(header.cluster_id));
    return Event::nothing;
  }
  if (header.epoch != identity_.epoch) {
    // A later epoch is not an error: the peer was told of it before us, and says it again.
    if (header.epoch < identity_.epoch) ++statistics_.frames_stale;
    return Event::nothing;
  }
  if (header.plan_digest != identity_.plan_digest) {
    refused_session_ = header.session;
    refuse(ErrorCode::version_mismatch, "its plan of epoch " + std::to_string(identity_.epoch) + " is another one");
    return Event::nothing;
  }
  if (lost_) {
    ++statistics_.frames_stale;
    return Event::nothing;
  }
  if (peer_session_ == 0) {
    peer_session_ = header.session;
  } else if (peer_session_ != header.session) {
    // Only a hello begins a life, and only one that knows this epoch's peers afresh.
    ++statistics_.frames_stale;
    return header.kind == FrameKind::hello ? lose(Event::peer_restarted) : Event::nothing;
  }
  heard_at_ = now;
  if (header.receiver_session != identity_.session) {
    if (header.kind != FrameKind::hello) ++statistics_.frames_stale;
    hello_due_ = true;
    return Event::nothing;
  }
  if (!established_) {
    established_ = true;
    ack_due_ = true;
  }
  on_ack(header, now);
  switch (header.kind) {
    case FrameKind::hello:
      ack_due_ = true;
      // The connection is back: no need to wait for the timer, which has backed off meanwhile.
      if (tries_ > 0) {
        tries_ = 0;
        progress_at_ = now - options_.resend_after;
        check_resend_timer(now);
        tries_ = 0;
        resend_allowance_ = plenty;
      }
      return Event::nothing;
    case FrameKind::probe: ack_due_ = true; return Event::nothing;
    case FrameKind::data: return on_data(header, payload, now);
    default: return Event::nothing;
  }
}

// Marks a frame as delivered; false if it was already.
bool Channel::settle(std::size_t index, std::uint64_t& newest) {
  auto& flight = flight_[index];
  if (flight.acked) return false;
  flight.acked = true;
  if (flight.due) --due_count_;
  flight.due = false;
  newest = std::max(newest, flight.transmission);
  unacked_bytes_ -= chunk_size(*flight.message, flight.chunk);
  return true;
}

void Channel::on_ack(const FrameHeader& header, Time now) {
  const auto end = flight_base_ + flight_.size();  // First sequence never sent.
  if (header.acked >= end) {
    ++statistics_.frames_bad;
    return;
  }
  peer_granted_ = std::max(peer_granted_, header.granted);
  std::uint64_t settled = 0, newest = 0;
  for (auto sequence = flight_base_; sequence <= header.acked; ++sequence)
    settled += settle(sequence - flight_base_, newest);
  for (std::uint64_t bit = 1; bit < 64; ++bit) {
    const auto sequence = header.acked + 1 + bit;
    if ((header.acked_after >> bit & 1) && sequence >= flight_base_ && sequence < end)
      settled += settle(sequence - flight_base_, newest);
  }
  while (!flight_.empty() && flight_.front().acked) {
    auto& message = flight_.front().message;
    // The message's bytes go back when its last chunk is settled; the Shard is let go of outside.
    if (message.use_count() == 1) released_shards_.push_back(message->bytes);
    flight_.pop_front();
    ++flight_base_;
  }
  if (settled == 0) return;
  progress_at_ = now;
  tries_ = 0;
  resend_allowance_ += 2 * settled;
  for (auto& flight : flight_) {
    if (flight.acked || flight.due || flight.transmission + reorder_frames > newest) continue;
    flight.due = true;
    ++due_count_;
    ++resend_allowance_;
  }
}

Channel::Event Channel::on_data(const FrameHeader& header, Shard& payload, Time now) {
  if (header.sequence <= received_through_ || received_after_.contains(header.sequence)) {
    ++statistics_.frames_duplicate;
    ack_due_ = true;
    return Event::nothing;
  }
  // An honest sender is never more than one frame beyond its grant, in whatever order its frames come.
  const auto charge = charge_of(header.payload_bytes);
  if (header.sequence > received_through_ + flight_frames_max ||
      received_charge_ + charge > granted_ + charge_of(payload_bytes_limit)) {
    ++statistics_.frames_bad;
    ack_due_ = true;
    return Event::nothing;
  }
  const bool had_gap = !received_after_.empty();
  if (header.sequence == received_through_ + 1) {
    ++received_through_;
    while (!received_after_.empty() && *received_after_.begin() == received_through_ + 1) {
      received_after_.erase(received_after_.begin());
      ++received_through_;
    }
  } else {
    received_after_.insert(header.sequence);
  }
  received_charge_ += charge;
  ++statistics_.frames_received;
  statistics_.bytes_received += header.payload_bytes;
  const auto view = payload.bytes();
  payload = Shard(std::make_shared<const CreditedPayload>(std::move(payload), account_, charge), view);

  const bool last = header.chunk_offset + header.payload_bytes == header.message_bytes;
  const bool waits_for_it = last && header.message_bytes > small_message_bytes;
  if (waits_for_it || had_gap || !received_after_.empty() || ++unacked_frames_ >= ack_every_frames)
    ack_due_ = true;
  else
    ack_at_ = std::min(ack_at_.value_or(Time::max()), now + (last ? options_.small_ack_delay : options_.ack_delay));
  return Event::chunk;
}

void Channel::update_grant() {
  const auto released = account_->released.load();
  auto grant = released + options_.window_bytes;
  if (demand_)
    grant = std::max(grant, std::min(received_charge_ + options_.window_bytes, released + options_.unclaimed_bytes_max));
  granted_ = std::max(granted_, grant);
  // Worth a frame of its own: a quarter of the window, or anything for a peer that has used up its grant.
  if (granted_ >= announced_ + options_.window_bytes / 4 || (announced_ <= received_charge_ && granted_ > announced_))
    ack_due_ = true;
}

bool Channel::exhausted() const {
  return unclaimed_bytes() >= options_.unclaimed_bytes_max && received_charge_ >= granted_;
}

}  // namespace orrery::protocol
