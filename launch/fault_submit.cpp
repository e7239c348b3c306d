#include "launch/fault_submit.hpp"

#include <optional>
#include <thread>

#include "actors/client.hpp"
#include "base/clock.hpp"
#include "base/digest.hpp"
#include "base/json.hpp"
#include "launch/security.hpp"
#include "launch/verb.hpp"
#include "topology/model_spec.hpp"

namespace orrery::launch {
namespace {

Status say(const OrderedJson& line) { return write_out(line.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n"); }

OrderedJson failure_of(const char* event, const Error& error) {
  return {{"event", event}, {"code", std::string(name_of(error.code))}, {"message", error.text()}};
}

/// It did not happen, and may happen later.
bool refused(const Error& error) {
  switch (error.code) {
    case ErrorCode::io_failed:
    case ErrorCode::pool_exhausted:
    case ErrorCode::unreachable:
    case ErrorCode::journal_failed:
    case ErrorCode::peer_lost: return true;
    default: return false;
  }
}

Result<actors::RequestSpec> spec_of(const std::string& text, const actors::RequestSpec& defaults) {
  ORRERY_TRY(json, parse_json(text, "--request"));
  const Error wrong{ErrorCode::usage, "--request is not what `orrery fault run` writes"};
  if (!json.is_object()) return wrong;
  auto spec = defaults;
  for (const auto& [key, value] : json.items()) {
    if (key == "prompt" && value.is_string()) spec.prompt = value.get<std::string>();
    else if (key == "negative_prompt" && value.is_string()) spec.negative_prompt = value.get<std::string>();
    else if (key == "steps" && value.is_number_unsigned()) spec.steps = value.get<std::uint32_t>();
    else if (key == "frames" && value.is_number_unsigned()) spec.frames = value.get<std::uint32_t>();
    else if (key == "width" && value.is_number_unsigned()) spec.width = value.get<std::uint32_t>();
    else if (key == "height" && value.is_number_unsigned()) spec.height = value.get<std::uint32_t>();
    else if (key == "seed" && value.is_number_unsigned()) spec.seed = value.get<std::uint64_t>();
    else if (key == "guidance" && value.is_number()) spec.guidance = value.get<double>();
    else return wrong;
  }
  return spec;
}

}  // namespace

std::string submit_request_json(const topology::ScenarioRequest& request, std::uint64_t seed) {
  OrderedJson json{{"prompt", request.prompt}, {"seed", seed}};
  if (request.negative_prompt) json["negative_prompt"] = *request.negative_prompt;
  if (request.num_inference_steps) json["steps"] = *request.num_inference_steps;
  if (request.num_frames) json["frames"] = *request.num_frames;
  if (request.size)
    if (const auto size = topology::parse_frame_size(*request.size); size.ok()) {
      json["width"] = size.value().width;
      json["height"] = size.value().height;
    }
  if (request.guidance_scale) json["guidance"] = *request.guidance_scale;
  return json.dump();
}

Result<int> run_submit(const SubmitArguments& arguments) {
  ORRERY_TRY(where, actors::parse_address(arguments.address));
  const SteadyClock clock;
  const auto until = clock.now() + Duration(static_cast<std::int64_t>(arguments.patience_seconds * 1e9));
  actors::ControlOptions control_options;
  ORRERY_TRY(security, security_of(arguments.security, "client"));
  control_options.security = security;
  actors::Control control(control_options);
  std::optional<actors::RequestSpec> spec;
  for (;;) {
    const auto attempt = [&]() -> Status {
      ORRERY_TRY(client, actors::Client::connect(control, where.host, where.port));
      if (!spec) {
        ORRERY_TRY(facts, client->facts());
        ORRERY_TRY(read, spec_of(arguments.request, facts.defaults));
        spec = std::move(read);
      }
      Sha256 digest;
      std::uint64_t frames = 0;
      actors::ClientHandlers handlers;
      Status told = Done{};
      handlers.on_event = [&](const actors::StageEvent& event) {
        const char* kind = event.kind == actors::StageEvent::Kind::progress  ? "progress"
                           : event.kind == actors::StageEvent::Kind::started ? "started"
                           : event.kind == actors::StageEvent::Kind::done    ? "stage_done"
                                                                             : "notice";
        OrderedJson line{{"event", kind}, {"stage", event.stage}, {"done", event.done}, {"total", event.total}};
        if (!event.text.empty()) line["text"] = event.text;
        if (auto status = say(line); !status.ok()) told = status;
      };
      handlers.on_frames = [&](std::span<const std::byte> rgb, std::uint64_t count) -> Status {
        digest.update(rgb);
        frames += count;
        return Done{};
      };
      handlers.on_tensor = [](const std::string&, std::uint32_t, Tensor) {};
      handlers.interrupted = [] { return false; };
      // Said before the coordinator hears of it: who dies in between asks again.
      handlers.on_complete = [&](const std::string& account) -> Status {
        const auto surplus = frames > spec->frames ? frames - spec->frames : 0;
        OrderedJson line{{"event", "done"}, {"frames", frames}, {"expected_frames", spec->frames}, {"surplus_frames", surplus}, {"sha256", digest.finish()}};
        if (auto json = parse_json(account, "account"); json.ok()) line["account"] = OrderedJson::parse(json.value().dump());
        return say(line);
      };
      ORRERY_TRY_DONE(client->generate(arguments.id, *spec, std::nullopt, handlers, until - clock.now()));
      return told;
    };
    const auto status = attempt();
    if (status.ok()) return 0;
    if (!refused(status.error()) || clock.now() >= until) {
      ORRERY_TRY_DONE(say(failure_of("failed", status.error())));
      return 1;
    }
    ORRERY_TRY_DONE(say(failure_of("refused", status.error())));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace orrery::launch
