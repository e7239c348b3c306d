#include "actors/client.hpp"

#include <sys/random.h>

#include <array>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "actors/board.hpp"
#include "actors/control_state.hpp"
#include "actors/edges.hpp"
#include "actors/trace_collector.hpp"
#include "base/digest.hpp"
#include "base/trace.hpp"
#include "protocol/exchange.hpp"
#include "protocol/host_transport.hpp"

namespace orrery::actors {

namespace {

constexpr Duration answer_timeout = std::chrono::seconds(5);
constexpr Duration rest_timeout = std::chrono::seconds(30);  // Of a request that is completed: for its last frames.
constexpr int fetched_tries_max = 3;
constexpr Duration facts_patience = std::chrono::seconds(10);

/// What has come and was not looked at yet.
struct ClientBoard {
  std::deque<RequestEvent> events;
  std::deque<ClusterRoutes> routes;
  std::deque<std::pair<protocol::MessageKey, protocol::Message>> messages;
  bool coordinator_lost = false;
};

caf::behavior client_actor(caf::event_based_actor* self, std::shared_ptr<Board<ClientBoard>> board, caf::actor coordinator) {
  self->monitor(coordinator);
  self->set_down_handler([board](const caf::down_msg&) { board->update([](ClientBoard& b) { b.coordinator_lost = true; }); });
  return {[board](const RequestEvent& event) { board->update([&](ClientBoard& b) { b.events.push_back(event); }); },
          [board](const ClusterRoutes& routes) { board->update([&](ClientBoard& b) { b.routes.push_back(routes); }); }};
}

std::string name_of(Edge edge) {
  switch (edge) {
    case Edge::prompt_embeds: return "prompt_embeds";
    case Edge::negative_prompt_embeds: return "negative_prompt_embeds";
    case Edge::step_latents: return "latents";
    case Edge::vae_input: return "vae_input";
    case Edge::video_raw: return "video_raw";
    case Edge::frames: return "frames";
    default: return "tensor";
  }
}

}  // namespace

std::string new_request_id() {
  std::array<unsigned char, 16> bytes{};
  ORRERY_CHECK(::getrandom(bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  std::string id;
  for (const auto byte : bytes) {
    id += "0123456789abcdef"[byte >> 4];
    id += "0123456789abcdef"[byte & 15];
  }
  return id;
}

struct Client::State {
  Control* control = nullptr;
  std::string host;
  std::uint16_t port = 0;
  caf::actor coordinator;

  template <class Answer, class Question>
  Result<Answer> ask(const Question& question, const std::string& doing, Duration limit = answer_timeout) {
    caf::scoped_actor self{control->state().system};
    std::optional<Result<Answer>> result;
    self->request(coordinator, limit, question)
        .receive([&](Answer& answer) { result.emplace(std::move(answer)); },
                 [&](const caf::error& error) { result.emplace(error_of(control->state().system, error, doing)); });
    return std::move(*result);
  }

  Result<std::string> fault(FaultVerb verb, const std::string& node, const std::string& order) {
    FaultCommand command;
    command.verb = static_cast<std::uint8_t>(verb);
    command.node = node;
    command.order = order;
    ORRERY_TRY(answer, ask<FaultAnswer>(command, "asking for a fault"));
    if (!answer.failure.ok()) return answer.failure.error();
    return answer.json;
  }
};

Client::Client(std::unique_ptr<State> state) : state_(std::move(state)) {}
Client::~Client() = default;

Result<std::unique_ptr<Client>> Client::connect(Control& control, const std::string& host, std::uint16_t port) {
  ORRERY_TRY(actor, actors::connect(control.state().system, host, port, std::chrono::seconds(5)));
  auto state = std::make_unique<State>();
  state->control = &control;
  state->host = host;
  state->port = port;
  state->coordinator = std::move(actor);
  return std::unique_ptr<Client>(new Client(std::move(state)));
}

Result<ClusterFacts> Client::facts() {
  // A coordinator that died a moment ago is started again at its address.
  SteadyClock clock;
  const auto until = clock.now() + facts_patience;
  auto asked = state_->ask<ClusterRoutes>(AskRoutes{}, "asking the coordinator", facts_patience / 4);
  while (!asked.ok() && clock.now() < until) {
    auto again = actors::connect(state_->control->state().system, state_->host, state_->port, std::chrono::seconds(1));
    if (again.ok()) {
      state_->coordinator = std::move(again).value();
      asked = state_->ask<ClusterRoutes>(AskRoutes{}, "asking the coordinator", facts_patience / 4);
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
  if (!asked.ok()) return asked.error();
  auto routes = std::move(asked).value();
  if (!routes.failure.ok()) return routes.failure.error();
  return ClusterFacts{routes.cluster, routes.model, routes.model_folder, routes.dtype, routes.numerics, routes.plan, routes.plan_digest,
                      routes.defaults};
}

Result<std::string> Client::status() {
  ORRERY_TRY(text, state_->ask<StatusText>(AskStatus{}, "asking the coordinator"));
  return text.json;
}

Result<std::uint32_t> Client::cancel(const std::string& id) {
  Cancel cancel;
  cancel.id = id;
  ORRERY_TRY(cancelled, state_->ask<Cancelled>(cancel, "cancelling"));
  if (!cancelled.failure.ok()) return cancelled.failure.error();
  return cancelled.count;
}

std::unique_ptr<TraceCollector> Client::record_trace() { return TraceCollector::start(*state_->control, state_->host, state_->port); }

Status Client::shut_down(const std::string& reason) {
  caf::anon_send(state_->coordinator, Shutdown{reason});
  return Done{};
}

Status Client::node_died(const std::string& node, std::int64_t pid, const std::string& how) {
  caf::anon_send(state_->coordinator, NodeDied{node, pid, how, false});
  return Done{};
}

Status Client::node_quarantined(const std::string& node, const std::string& why) {
  caf::anon_send(state_->coordinator, NodeDied{node, 0, why, true});
  return Done{};
}

Result<std::string> Client::inject_fault(const std::string& node, const std::string& order) {
  return state_->fault(FaultVerb::inject, node, order);
}
Result<std::string> Client::heal_faults(const std::string& node, const std::string& name) {
  return state_->fault(FaultVerb::heal, node, name);
}
Result<std::string> Client::list_faults(const std::string& node) { return state_->fault(FaultVerb::list, node, ""); }

// ---- one request --------------------------------------------------------------------------------------------------

namespace {

/// The client's end of one request: its data plane, what has come, and what is still missing.
class Fetch {
public:
  Fetch(const RequestSpec& asked, const std::optional<TensorView>& noise, const ClientHandlers& handlers)
      : asked_(asked), noise_(noise), handlers_(handlers), board_(std::make_shared<Board<ClientBoard>>()) {
    std::random_device random;
    endpoint_ = first_client_endpoint + random() % first_client_endpoint;
    // Embeddings of each prompt, latents of each step, the decoder's input; and the unclamped frames.
    tensors_due_ = asked.save_tensors ? 1U + (asked.guidance > 1 ? 1U : 0U) + asked.steps + 1U : 0U;
  }

  const std::shared_ptr<Board<ClientBoard>>& board() const { return board_; }
  std::uint32_t endpoint() const { return endpoint_; }
  std::string address() const { return exchange_->address(); }

  Status open(std::uint64_t cluster_id, const std::string& host, const Security& security) {
    protocol::HostTransportOptions way;
    way.wire.self = endpoint_;
    way.wire.bind = "tcp://" + host + ":0";
    way.wire.security = security;
    ORRERY_TRY(transport, protocol::make_host_transport(way));
    protocol::ExchangeOptions options;
    options.cluster_id = cluster_id;
    ORRERY_TRY(exchange, protocol::Exchange::create(options, std::move(transport), clock_));
    exchange_ = std::move(exchange);
    exchange_->subscribe(endpoint_, [board = board_](const protocol::MessageKey& key, protocol::Message message) {
      board->update([&](ClientBoard& b) { b.messages.emplace_back(key, std::move(message)); });
    });
    return Done{};
  }

  /// A new epoch: frames come from elsewhere, and noise is needed there once more.
  Status follow(const ClusterRoutes& routes, std::uint64_t request) {
    if (!routes.ready || routes.epoch <= exchange_->epoch()) return Done{};
    std::map<protocol::EndpointId, protocol::PeerId> table{{endpoint_, endpoint_}};
    for (const auto& peer : routes.peers) ORRERY_TRY_DONE(exchange_->add_peer(peer.peer, peer.data_address));
    for (std::uint32_t card = 0; card < routes.card_peers.size(); ++card)
      if (routes.card_peers[card] != 0) table[card] = routes.card_peers[card];
    ORRERY_TRY_DONE(exchange_->set_routes(routes.epoch, routes.plan_digest, table));
    if (!noise_) return Done{};
    const auto bytes = Shard::copy_of({noise_->data, noise_->bytes()});
    for (const auto card : routes.denoiser_cards) {
      const protocol::MessageKey key{request, 0, edge_stream, 0, static_cast<std::uint32_t>(Edge::noise), endpoint_, card};
      ORRERY_TRY_DONE(exchange_->send(key, noise_->dtype, noise_->shape, bytes));
    }
    return Done{};
  }

  /// Frames are handed on in order, each once: a piece that is made again after a failure has the same place.
  Status take(const protocol::MessageKey& key, const protocol::Message& message) {
    const auto edge = static_cast<Edge>(key.op);
    if (!seen_.insert({key.op, key.step}).second) return Done{};
    if (edge == Edge::frames && message.shape.size() == 4) {
      auto& piece = pieces_[key.step];
      piece.frames = message.shape[0];
      piece.rgb.resize(message.bytes());
      message.copy_to(piece.rgb);
      for (auto next = pieces_.find(next_piece_); next != pieces_.end(); next = pieces_.find(next_piece_)) {
        digest_.update(next->second.rgb);
        frames_ += next->second.frames;
        ORRERY_TRY_DONE(handlers_.on_frames(next->second.rgb, next->second.frames));
        pieces_.erase(next);
        ++next_piece_;
      }
    } else if (handlers_.on_tensor) {
      Tensor tensor(message.dtype, message.shape);
      message.copy_to({tensor.data(), tensor.bytes()});
      if (edge == Edge::video_raw && tensor.shape().size() == 4)
        raw_frames_ += tensor.shape()[1];
      else
        ++tensors_;
      handlers_.on_tensor(name_of(edge), key.step, std::move(tensor));
    }
    return Done{};
  }

  bool whole() const {
    return frames_ == asked_.frames && (!asked_.save_tensors || (tensors_ == tensors_due_ && raw_frames_ == asked_.frames));
  }
  std::string missing() const {
    return std::to_string(frames_) + " of " + std::to_string(asked_.frames) + " frames and " + std::to_string(tensors_) + " of " +
           std::to_string(tensors_due_) + " other tensors arrived";
  }
  std::string digest() { return digest_.finish(); }

private:
  struct Piece {
    std::uint64_t frames = 0;
    std::vector<std::byte> rgb;
  };
  const RequestSpec& asked_;
  const std::optional<TensorView>& noise_;
  const ClientHandlers& handlers_;
  std::shared_ptr<Board<ClientBoard>> board_;
  SteadyClock clock_;
  std::uint32_t endpoint_ = 0;
  std::unique_ptr<protocol::Exchange> exchange_;
  std::set<std::pair<std::uint32_t, std::uint32_t>> seen_;  // Edge and step.
  std::map<std::uint32_t, Piece> pieces_;                   // That came before their turn.
  std::uint32_t next_piece_ = 0;
  Sha256 digest_;
  std::uint64_t frames_ = 0, raw_frames_ = 0, tensors_ = 0, tensors_due_ = 0;
};

}  // namespace

Result<std::string> Client::generate(const std::string& id, const RequestSpec& asked, const std::optional<TensorView>& noise,
                                     const ClientHandlers& handlers, Duration patience) {
  SteadyClock clock;
  const auto row = trace::enabled() ? trace::track("generate") : trace::data_plane;
  const trace::Span whole(row, trace::Category::request, "generate");
  const auto asked_at = clock.now();
  auto answer = state_->ask<ClusterRoutes>(AskRoutes{}, "asking the coordinator");
  // It may be away for a moment.
  while (!answer.ok() && clock.now() - asked_at < patience && !(handlers.interrupted && handlers.interrupted())) {
    auto again = actors::connect(state_->control->state().system, state_->host, state_->port, std::chrono::seconds(1));
    if (again.ok()) {
      state_->coordinator = std::move(again).value();
      answer = state_->ask<ClusterRoutes>(AskRoutes{}, "asking the coordinator");
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
  if (!answer.ok()) return answer.error();
  const auto facts = std::move(answer).value();
  if (!facts.failure.ok()) return facts.failure.error();
  Fetch fetch(asked, noise, handlers);
  // Where the nodes reach us: from where we reach the coordinator.
  ORRERY_TRY(data_host, own_address_towards(state_->host, state_->port));
  ORRERY_TRY_DONE(fetch.open(facts.cluster_id, data_host, state_->control->state().config.security));
  const auto& board = fetch.board();
  auto& system = state_->control->state().system;
  struct Ending {
    caf::actor actor;
    ~Ending() { replace(nullptr); }
    void replace(caf::actor next) {
      if (actor) caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
      actor = std::move(next);
    }
  } listener{system.spawn(client_actor, board, state_->coordinator)};

  const auto submit = [&]() -> Result<std::uint64_t> {
    Submit message;
    message.id = id;
    message.spec = asked;
    message.spec.noise_from_client = noise.has_value();
    message.client_endpoint = fetch.endpoint();
    message.client_data_address = fetch.address();
    if (noise) message.noise_shape = noise->shape;
    message.client = listener.actor;
    ORRERY_TRY(submitted, state_->ask<Submitted>(message, "submitting the request", std::chrono::seconds(10)));
    if (!submitted.failure.ok()) return submitted.failure.error();
    return submitted.request;
  };
  std::uint64_t request = 0;
  bool alone = false;            // There is no coordinator ...
  Time alone_since{};            // ... since then.
  if (auto submitted = submit(); submitted.ok()) {
    request = submitted.value();
  } else if (submitted.error().code == ErrorCode::timed_out || submitted.error().code == ErrorCode::unreachable) {
    alone = true;  // It went away before it could answer: the same id may be submitted again.
    alone_since = clock.now();
  } else {
    return submitted.error();
  }

  std::optional<Error> failure;  // Ours: interrupted, or a handler's.
  std::optional<Time> give_up;   // After a cancel, or once completed: the rest must come until then.
  std::optional<RequestEvent> last;
  const auto cancel = [&](Error why) {
    if (failure) return;
    failure = std::move(why);
    caf::anon_send(state_->coordinator, Cancel{request, ""});
    give_up = clock.now() + std::chrono::seconds(10);
  };
  const auto tell = [&](const std::string& text) {
    trace::instant(row, trace::Category::incident, "told", {request, trace::no_step, 0, text});
    StageEvent notice;
    notice.kind = StageEvent::Kind::notice;
    notice.text = text;
    if (handlers.on_event) handlers.on_event(notice);
  };
  const auto complete = [&] { return last && (static_cast<EventKind>(last->kind) == EventKind::failed || failure || fetch.whole()); };
  while (!complete()) {
    board->wait_for(std::chrono::milliseconds(alone ? 20 : 100), [](const ClientBoard& b) {
      return !b.events.empty() || !b.messages.empty() || !b.routes.empty() || b.coordinator_lost;
    });
    ClientBoard news;
    board->update([&](ClientBoard& b) { std::swap(news, b); });
    for (const auto& routes : news.routes)
      if (auto status = fetch.follow(routes, request); !status.ok()) cancel(status.error());
    for (auto& event : news.events) {
      const auto kind = static_cast<EventKind>(event.kind);
      if (kind == EventKind::notice) {
        tell(event.details);
        continue;
      }
      if (kind == EventKind::completed || kind == EventKind::failed) {
        last = event;
        if (!give_up) give_up = clock.now() + rest_timeout;
        continue;
      }
      StageEvent told;
      told.kind = kind == EventKind::stage_started ? StageEvent::Kind::started
                  : kind == EventKind::stage_done  ? StageEvent::Kind::done
                                                   : StageEvent::Kind::progress;
      told.stage = event.stage;
      told.done = event.done;
      told.total = event.total;
      told.seconds = event.seconds;
      if (handlers.on_event) handlers.on_event(told);
    }
    for (const auto& [key, message] : news.messages) {
      if (failure) break;
      const trace::Span span(row, trace::Category::control, name_of(static_cast<Edge>(key.op)), {request, key.step, message.bytes(), {}});
      if (auto status = fetch.take(key, message); !status.ok()) cancel(status.error());
    }
    if (news.coordinator_lost && !alone) {
      alone = true;
      alone_since = clock.now();
      tell("the coordinator is away; waiting for it");
    }
    if (alone && !failure) {
      // The request is in its journal: it comes back with it, and submitting it again attaches us.
      auto again = actors::connect(system, state_->host, state_->port, std::chrono::seconds(1));
      if (again.ok()) {
        state_->coordinator = std::move(again).value();
        listener.replace(system.spawn(client_actor, board, state_->coordinator));
        auto number = submit();
        if (number.ok()) {
          request = number.value();
          alone = false;
          tell("the coordinator is back");
        } else if (number.error().code != ErrorCode::timed_out && number.error().code != ErrorCode::unreachable) {
          return number.error();
        }
      }
      if (alone && clock.now() - alone_since > patience)
        return Error{ErrorCode::peer_lost, "the coordinator went away while it worked on request " + id + " and did not come back within " +
                                               std::to_string(static_cast<int>(seconds_of(patience))) + " s",
                     "the request is in its journal: `orrery generate --id " + id + "` goes on with it"};
    }
    if (!failure && handlers.interrupted && handlers.interrupted()) cancel({ErrorCode::cancelled, "interrupted"});
    if (alone && failure) break;
    if (give_up && clock.now() > *give_up) break;
  }
  if (failure) return *failure;
  if (last && static_cast<EventKind>(last->kind) == EventKind::failed) return last->failure.error();
  if (!fetch.whole()) return Error{ErrorCode::timed_out, "request " + id + " was completed, but only " + fetch.missing()};
  if (handlers.on_complete) ORRERY_TRY_DONE(handlers.on_complete(last->details));
  // Written down by the coordinator: from now on the request is done, with these bytes and no others.
  Fetched fetched;
  fetched.request = request;
  fetched.digest = fetch.digest();
  // A disk that is full may have room again soon. What is never written down can be fetched until it expires.
  for (int tries = 0; tries < fetched_tries_max; ++tries) {
    if (tries > 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    auto written = state_->ask<Cancelled>(fetched, "reporting the end of the request", std::chrono::seconds(5));
    if (!written.ok() || written.value().failure.ok()) break;
    if (static_cast<ErrorCode>(written.value().failure.code) == ErrorCode::digest_mismatch) return written.value().failure.error();
  }
  return last->details;
}

}  // namespace orrery::actors
