#include "launch/fault_order.hpp"

#include <charconv>
#include <functional>

#include "base/json.hpp"
#include "base/units.hpp"
#include "base/yaml.hpp"

namespace orrery::launch {
namespace {

Error wrong(const std::string& what, const std::string& hint = "") { return {ErrorCode::usage, what, hint}; }

/// A number as JSON has it: what is out of range is told where the order is checked.
Result<OrderedJson> plain_number(const std::string& text) {
  auto json = parse_json(text, "number");
  if (!json.ok() || !json.value().is_number()) return wrong("'" + shown(text) + "' is no number");
  return OrderedJson::parse(json.value().dump());
}

Result<OrderedJson> value_of(const std::string& key, const std::string& text) {
  if (key == "latency" || key == "jitter") {
    ORRERY_TRY(seconds, parse_seconds(text));
    return OrderedJson(seconds);
  }
  if (key == "bytes_per_second") {
    ORRERY_TRY(rate, parse_bytes_per_second(text));
    return OrderedJson(rate);
  }
  if (key == "bytes") {
    ORRERY_TRY(bytes, parse_bytes(text));
    return OrderedJson(bytes);
  }
  if (key == "point" || key == "effect") return OrderedJson(text);
  return plain_number(text);
}

}  // namespace

Result<ToldFault> order_from_words(const FaultWords& words) {
  if (!actors::fault_action_of(words.action))
    return wrong("'" + shown(words.action) + "' is not an action", suggestion(words.action, actors::fault_action_names()));
  ToldFault told;
  OrderedJson json{{"name", words.name.empty() ? words.action + "-" + words.target : words.name}, {"action", words.action}};

  const auto slash = words.target.find('/');
  const auto colon = words.target.find(':');
  told.node = words.target.substr(0, std::min(slash, colon));
  if (told.node.empty()) return wrong("'" + shown(words.target) + "' is no target", "write NODE, NODE:CARD, NODE/NODE or coordinator");
  if (slash != std::string::npos) {
    json["peer"] = words.target.substr(slash + 1);
    if (json["peer"].get<std::string>().empty()) return wrong("'" + shown(words.target) + "' names one end of a link only");
    if (words.one_way) json["direction"] = "out";
  } else if (words.one_way) {
    return wrong("--one-way is for links", "write NODE/NODE");
  }
  if (slash == std::string::npos && colon != std::string::npos) {
    std::uint32_t card = 0;
    const auto* end = words.target.data() + words.target.size();
    const auto read = std::from_chars(words.target.data() + colon + 1, end, card);
    if (read.ec != std::errc() || read.ptr != end) return wrong("'" + shown(words.target) + "' has no card number after ':'");
    json["card"] = card;
  }

  OrderedJson when{{"event", words.event}};
  if (words.request != 0) when["request"] = words.request;
  if (words.step != 0) when["step"] = words.step;
  if (words.block) when["block"] = *words.block;
  json["when"] = when;
  if (!words.duration.empty()) {
    const auto seconds = parse_seconds(words.duration);
    if (!seconds.ok()) return wrong("--for " + seconds.error().message, seconds.error().hint);
    json["for_seconds"] = seconds.value();
  }
  json["seed"] = words.seed;
  OrderedJson parameters = OrderedJson::object();
  for (const auto& each : words.parameters) {
    const auto equals = each.find('=');
    if (equals == std::string::npos || equals == 0) return wrong("'" + shown(each) + "' is not KEY=VALUE", "e.g. factor=4");
    auto key = each.substr(0, equals);
    if (key == "rate") key = "bytes_per_second";
    auto value = value_of(key, each.substr(equals + 1));
    if (!value.ok()) return wrong(each.substr(0, equals) + ": " + value.error().message, value.error().hint);
    parameters[key] = std::move(value).value();
  }
  if (!parameters.empty()) json["parameters"] = parameters;
  ORRERY_TRY(order, actors::fault_order_from_json(json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace)));
  told.order = std::move(order);
  return told;
}

}  // namespace orrery::launch
