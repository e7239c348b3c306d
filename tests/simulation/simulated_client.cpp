#include "simulated_client.hpp"

#include "actors/edges.hpp"

namespace orrery::simulation {

using namespace actors;

namespace {
constexpr Duration patience = std::chrono::seconds(30);  // As actors/client.cpp, for frames after the completion.
}

SimulatedClient::SimulatedClient(World& world, ProcessPointer process, ClientHistory& history, ClientOptions options, Observer& observer)
    : world_(world),
      process_(std::move(process)),
      history_(history),
      options_(std::move(options)),
      observer_(observer),
      endpoint_(first_client_endpoint + static_cast<std::uint32_t>(world.random().below(first_client_endpoint))) {
  ++history_.lives;
  world_.make_exchange(process_, endpoint_, options_.cluster_id);
  process_->exchange->subscribe(endpoint_, [this](const protocol::MessageKey& key, protocol::Message message) { take(key, message); });
}

SimulatedClient::~SimulatedClient() {
  if (process_->exchange) process_->exchange->subscribe(endpoint_, {});
}

void SimulatedClient::start() {
  actor_ = world_.spawn_in(process_, [this](caf::event_based_actor* self) { return behavior(self); });
}

caf::behavior SimulatedClient::behavior(caf::event_based_actor* self) {
  self_ = self;
  self->set_down_handler([this](const caf::down_msg& down) {
    if (!coordinator_ || down.source != coordinator_.address()) return;
    coordinator_ = nullptr;
    seek();
  });
  seek();
  return {[this](const RequestEvent& event) { on_event(event); }, [this](const ClusterRoutes& routes) { follow(routes); },
          [this](const CoordinatorFound& found) {
            seeking_ = false;
            coordinator_ = found.coordinator.front();
            self_->monitor(coordinator_);
            if (!history_.over()) submit();
          },
          [this](const Tick&) { finish(); }};
}

void SimulatedClient::seek() {
  if (seeking_ || given_up_) return;
  seeking_ = true;
  // Asks again and again, like a connect that fails.
  const auto look = std::make_shared<std::function<void()>>();
  *look = [this, weak = std::weak_ptr(look)] {
    const auto coordinator = options_.coordinator();
    if (!coordinator || world_.is_cut(process_->host, "coordinator") || world_.is_cut("coordinator", process_->host)) {
      if (const auto again = weak.lock()) world_.at(process_, std::chrono::milliseconds(50), [again] { (*again)(); });
      return;
    }
    CoordinatorFound found;
    found.coordinator = {world_.wire(process_, *coordinator)};
    caf::anon_send(actor_, found);
  };
  world_.at(process_, world_.between(std::chrono::milliseconds(1), std::chrono::milliseconds(40)), [look] { (*look)(); });
}

void SimulatedClient::submit() {
  Submit message;
  message.id = history_.id;
  message.spec = history_.spec;
  message.client_endpoint = endpoint_;
  message.client_data_address = process_->exchange->address();
  message.client = actor_;
  ++history_.submits;
  const auto asked = coordinator_.address();
  const auto again = [this, asked] {
    if (!coordinator_ || coordinator_.address() != asked || history_.over() || given_up_) return;
    world_.at(process_, std::chrono::milliseconds(500), [this, asked] {
      if (!coordinator_ || coordinator_.address() != asked || history_.over()) return;
      CoordinatorFound found;
      found.coordinator = {coordinator_};
      caf::anon_send(actor_, found);
    });
  };
  self_->request(coordinator_, std::chrono::seconds(10), message)
      .then(
          [this, again](const Submitted& submitted) {
            if (given_up_) return;
            if (!submitted.failure.ok()) {
              const auto code = static_cast<ErrorCode>(submitted.failure.code);
              if (code == ErrorCode::not_found)
                return observer_.violated("ends once", "request " + history_.id + " counts as delivered, but no client has had it");
              if (code == ErrorCode::invalid_request) observer_.violated("one request", "request " + history_.id + ": " + submitted.failure.message);
              return again();
            }
            if (history_.accepted && *history_.accepted != submitted.request)
              observer_.violated("accepted is journaled", "request " + history_.id + " was accepted as number " + std::to_string(*history_.accepted) +
                                                              ", and later as number " + std::to_string(submitted.request));
            history_.accepted = submitted.request;
            request_ = submitted.request;
          },
          [again](const caf::error&) { again(); });
}

void SimulatedClient::cancel() {
  history_.cancel_asked = true;
  if (coordinator_ && request_ != 0 && !history_.over()) caf::anon_send(coordinator_, Cancel{request_, ""});
}

void SimulatedClient::follow(const ClusterRoutes& routes) {
  auto& exchange = *process_->exchange;
  if (!routes.ready || routes.epoch <= exchange.epoch()) return;
  std::map<protocol::EndpointId, protocol::PeerId> table{{endpoint_, endpoint_}};
  for (const auto& peer : routes.peers) ORRERY_CHECK(exchange.add_peer(peer.peer, peer.data_address).ok());
  for (std::uint32_t card = 0; card < routes.card_peers.size(); ++card)
    if (routes.card_peers[card] != 0) table[card] = routes.card_peers[card];
  if (auto status = exchange.set_routes(routes.epoch, routes.plan_digest, table); !status.ok())
    observer_.violated("one plan per epoch", "client " + process_->host + ": " + status.error().text());
}

void SimulatedClient::take(const protocol::MessageKey& key, const protocol::Message& message) {
  if (static_cast<Edge>(key.op) != Edge::frames || message.shape.size() != 4) return;
  if (key.request != request_ && request_ != 0)
    return observer_.violated("right request", "client " + process_->host + " got frames of request " + std::to_string(key.request));
  if (!handed_over_.insert({process_->exchange->epoch(), key}).second)
    return observer_.violated("each message once", "client " + process_->host + " was handed " + protocol::text_of(key) + " twice in one epoch");
  if (!seen_.insert({key.op, key.step}).second) return;
  auto& piece = pieces_[key.step];
  piece.frames = message.shape[0];
  piece.rgb.resize(message.bytes());
  message.copy_to(piece.rgb);
  for (auto next = pieces_.find(next_piece_); next != pieces_.end(); next = pieces_.find(next_piece_)) {
    digest_.update(next->second.rgb);
    frames_ += next->second.frames;
    pieces_.erase(next);
    ++next_piece_;
  }
  if (completed_ && frames_ == history_.spec.frames) caf::anon_send(actor_, Tick{});
}

void SimulatedClient::on_event(const RequestEvent& event) {
  const auto kind = static_cast<EventKind>(event.kind);
  if (given_up_ || (kind != EventKind::completed && kind != EventKind::failed)) return;
  if (history_.fetched) return observer_.violated("ends once", "request " + history_.id + " was delivered, and then ended again: " + event.failure.message);
  if (kind == EventKind::failed) {
    if (!finishing_ && !history_.over()) history_.failed = event.failure;
    return;
  }
  ++history_.completions;
  if (history_.failed) return observer_.violated("ends once", "request " + history_.id + " failed, and then was completed");
  completed_ = true;
  if (frames_ == history_.spec.frames) return finish();
  world_.at(process_, patience, [this] {
    if (!history_.over() && !finishing_) give_up("frames are missing");
  });
}

// A person would call the program again, with the same id.
void SimulatedClient::give_up(const std::string& why) {
  world_.trace(process_->host + " gives up: " + why);
  given_up_ = true;
  options_.come_back(process_->host);
}

void SimulatedClient::finish() {
  if (finishing_ || history_.over()) return;
  finishing_ = true;
  history_.digest = digest_.finish();
  history_.delivered = true;
  if (!history_.expected.empty() && history_.digest != history_.expected)
    observer_.violated("right bytes", "request " + history_.id + " was delivered with digest " + history_.digest.substr(0, 16) + ", expected " +
                                          history_.expected.substr(0, 16));
  report();
}

// As the real one: a coordinator whose disk is full is told again.
void SimulatedClient::report() {
  if (!coordinator_) return;
  Fetched fetched;
  fetched.request = request_;
  fetched.digest = history_.digest;
  self_->request(coordinator_, std::chrono::seconds(5), fetched)
      .then(
          [this](const Cancelled& written) {
            if (static_cast<ErrorCode>(written.failure.code) == ErrorCode::digest_mismatch)
              observer_.violated("right bytes", "request " + history_.id + ": " + written.failure.message);
            else if (!written.failure.ok() && static_cast<ErrorCode>(written.failure.code) != ErrorCode::not_found)
              world_.at(process_, std::chrono::milliseconds(200), [this] { report(); });
            if (written.failure.ok()) history_.fetched = true;
          },
          [](const caf::error&) {});
}

}  // namespace orrery::simulation
