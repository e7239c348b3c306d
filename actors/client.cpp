#include "actors/client.hpp"

#include <deque>
#include <map>
#include <random>

#include "actors/board.hpp"
#include "actors/control_state.hpp"
#include "actors/coordinator_actor.hpp"
#include "actors/edges.hpp"
#include "protocol/exchange.hpp"
#include "protocol/zmq_transport.hpp"

namespace orrery::actors {

namespace {

constexpr Duration answer_timeout = std::chrono::seconds(30);

/// What has come and was not looked at yet.
struct ClientBoard {
  std::deque<RequestEvent> events;
  std::deque<std::pair<protocol::MessageKey, protocol::Message>> messages;
  bool coordinator_lost = false;
};

caf::behavior client_actor(caf::event_based_actor* self, std::shared_ptr<Board<ClientBoard>> board, caf::actor coordinator) {
  self->monitor(coordinator);
  self->set_down_handler([board](const caf::down_msg&) { board->update([](ClientBoard& b) { b.coordinator_lost = true; }); });
  return {[board](const RequestEvent& event) { board->update([&](ClientBoard& b) { b.events.push_back(event); }); }};
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

struct Client::State {
  Control* control = nullptr;
  caf::actor coordinator;
  std::string data_host = "127.0.0.1";

  template <class Answer, class Question>
  Result<Answer> ask(const Question& question, const std::string& doing) {
    caf::scoped_actor self{control->state().system};
    std::optional<Result<Answer>> result;
    self->request(coordinator, answer_timeout, question)
        .receive([&](Answer& answer) { result.emplace(std::move(answer)); },
                 [&](const caf::error& error) { result.emplace(error_of(control->state().system, error, doing)); });
    return std::move(*result);
  }
};

Client::Client(std::unique_ptr<State> state) : state_(std::move(state)) {}
Client::~Client() = default;

Result<std::unique_ptr<Client>> Client::connect(Control& control, const std::string& host, std::uint16_t port) {
  ORRERY_TRY(actor, actors::connect(control.state().system, host, port, std::chrono::seconds(5)));
  auto state = std::make_unique<State>();
  state->control = &control;
  state->coordinator = std::move(actor);
  return std::unique_ptr<Client>(new Client(std::move(state)));
}

Result<std::unique_ptr<Client>> Client::local(Control& control, Coordinator& coordinator) {
  auto state = std::make_unique<State>();
  state->control = &control;
  state->coordinator = coordinator.state().actor;
  return std::unique_ptr<Client>(new Client(std::move(state)));
}

Result<ClusterFacts> Client::facts() {
  ORRERY_TRY(routes, state_->ask<ClusterRoutes>(AskRoutes{}, "asking the coordinator"));
  if (!routes.failure.ok()) return routes.failure.error();
  return ClusterFacts{routes.cluster, routes.model, routes.model_folder, routes.dtype, routes.numerics, routes.plan, routes.plan_digest,
                      routes.defaults};
}

Result<std::string> Client::status() {
  ORRERY_TRY(text, state_->ask<StatusText>(AskStatus{}, "asking the coordinator"));
  return text.json;
}

Status Client::shut_down(const std::string& reason) {
  caf::anon_send(state_->coordinator, Shutdown{reason});
  return Done{};
}

Result<std::string> Client::generate(const RequestSpec& asked, const std::optional<TensorView>& noise, const ClientHandlers& handlers) {
  ORRERY_TRY(routes, state_->ask<ClusterRoutes>(AskRoutes{}, "asking the coordinator"));
  if (!routes.failure.ok()) return routes.failure.error();

  // Our end of the data plane.
  SteadyClock clock;
  std::random_device random;
  const std::uint32_t endpoint = first_client_endpoint + random() % first_client_endpoint;
  protocol::ZmqOptions wire;
  wire.self = endpoint;
  wire.bind = "tcp://" + state_->data_host + ":0";
  ORRERY_TRY(transport, protocol::make_zmq_transport(wire));
  protocol::ExchangeOptions exchange_options;
  exchange_options.cluster_id = routes.cluster_id;
  ORRERY_TRY(exchange, protocol::Exchange::create(exchange_options, std::move(transport), clock));
  std::map<protocol::EndpointId, protocol::PeerId> table{{endpoint, endpoint}};
  for (std::size_t i = 0; i < routes.peers.size(); ++i)
    ORRERY_TRY_DONE(exchange->add_peer(static_cast<protocol::PeerId>(i + 1), routes.peers[i].data_address));
  for (std::uint32_t card = 0; card < routes.card_peers.size(); ++card) table[card] = routes.card_peers[card] + 1;
  ORRERY_TRY_DONE(exchange->set_routes(routes.epoch, routes.plan_digest, table));

  auto board = std::make_shared<Board<ClientBoard>>();
  exchange->subscribe(endpoint, [board](const protocol::MessageKey& key, protocol::Message message) {
    board->update([&](ClientBoard& b) { b.messages.emplace_back(key, std::move(message)); });
  });
  auto& system = state_->control->state().system;
  const auto listener = system.spawn(client_actor, board, state_->coordinator);
  struct Ending {
    caf::actor actor;
    ~Ending() { caf::anon_send_exit(actor, caf::exit_reason::user_shutdown); }
  } ending{listener};

  Submit submit;
  submit.spec = asked;
  submit.spec.noise_from_client = noise.has_value();
  submit.client_endpoint = endpoint;
  submit.client_data_address = exchange->address();
  if (noise) submit.noise_shape = noise->shape;
  submit.client = listener;
  ORRERY_TRY(submitted, state_->ask<Submitted>(submit, "submitting the request"));
  if (!submitted.failure.ok()) return submitted.failure.error();
  const auto request = submitted.request;

  if (noise) {
    const auto bytes = Shard::copy_of({noise->data, noise->bytes()});
    for (const auto card : routes.denoiser_cards) {
      const protocol::MessageKey key{request, 0, edge_stream, 0, static_cast<std::uint32_t>(Edge::noise), endpoint, card};
      ORRERY_TRY_DONE(exchange->send(key, noise->dtype, noise->shape, bytes));
    }
  }

  std::optional<Error> failure;    // Ours: interrupted, or a handler's.
  std::optional<Time> give_up;     // After a cancel, or once completed: the rest must come until then.
  std::optional<RequestEvent> last;
  std::uint64_t frames_received = 0, raw_frames_received = 0, tensors_received = 0;
  // Embeddings of each prompt, latents of each step, the decoder's input; and the unclamped frames.
  const std::uint64_t tensors_due = asked.save_tensors ? 1U + (asked.guidance > 1 ? 1U : 0U) + asked.steps + 1U : 0U;
  std::vector<std::byte> rgb;
  const auto cancel = [&](Error why) {
    if (failure) return;
    failure = std::move(why);
    caf::anon_send(state_->coordinator, Cancel{request});
    give_up = clock.now() + std::chrono::seconds(10);
  };
  const auto complete = [&] {
    const bool all = frames_received == asked.frames &&
                     (!asked.save_tensors || (tensors_received == tensors_due && raw_frames_received == asked.frames));
    return last && (static_cast<EventKind>(last->kind) == EventKind::failed || failure || all);
  };
  while (!complete()) {
    board->wait_for(std::chrono::milliseconds(100),
                    [](const ClientBoard& b) { return !b.events.empty() || !b.messages.empty() || b.coordinator_lost; });
    ClientBoard news;
    board->update([&](ClientBoard& b) {
      std::swap(news.events, b.events);
      std::swap(news.messages, b.messages);
      news.coordinator_lost = b.coordinator_lost;
    });
    for (auto& event : news.events) {
      const auto kind = static_cast<EventKind>(event.kind);
      if (kind == EventKind::completed || kind == EventKind::failed) {
        last = event;
        if (!give_up) give_up = clock.now() + answer_timeout;
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
    for (auto& [key, message] : news.messages) {
      if (failure) break;
      const auto edge = static_cast<Edge>(key.op);
      if (edge == Edge::frames && message.shape.size() == 4) {
        rgb.resize(message.bytes());
        message.copy_to(rgb);
        frames_received += message.shape[0];
        if (auto status = handlers.on_frames(rgb, message.shape[0]); !status.ok()) cancel(status.error());
      } else if (handlers.on_tensor) {
        Tensor tensor(message.dtype, message.shape);
        message.copy_to({tensor.data(), tensor.bytes()});
        if (edge == Edge::video_raw && tensor.shape().size() == 4)
          raw_frames_received += tensor.shape()[1];
        else
          ++tensors_received;
        handlers.on_tensor(name_of(edge), key.step, std::move(tensor));
      }
    }
    if (news.coordinator_lost) return Error{ErrorCode::peer_lost, "the coordinator went away while it worked on request " + std::to_string(request)};
    if (!failure && handlers.interrupted && handlers.interrupted()) cancel({ErrorCode::cancelled, "interrupted"});
    if (give_up && clock.now() > *give_up) break;
  }
  caf::anon_send(state_->coordinator, Fetched{request});
  if (failure) return *failure;
  if (last && static_cast<EventKind>(last->kind) == EventKind::failed) return last->failure.error();
  if (!complete() || frames_received != asked.frames)
    return Error{ErrorCode::timed_out, "request " + std::to_string(request) + " was completed, but only " + std::to_string(frames_received) +
                                           " of " + std::to_string(asked.frames) + " frames and " + std::to_string(tensors_received) + " of " +
                                           std::to_string(tensors_due) + " other tensors arrived"};
  return last->details;
}

}  // namespace orrery::actors
