#include "base/json.hpp"

#include <algorithm>
#include <set>

#include "base/file.hpp"

namespace orrery {

Result<Json> parse_json(std::string_view text, const std::string& place) {
  constexpr int depth_max = 64;
  std::string complaint;
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > depth_max && complaint.empty()) complaint = "nested more than 64 levels deep";
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.empty() && !keys.back().insert(value.get<std::string>()).second &&
        complaint.empty())
      complaint = "key '" + value.get<std::string>() + "' appears twice";
    return complaint.empty();
  };
  try {
    auto json = Json::parse(text.begin(), text.end(), watch);
    if (complaint.empty()) return json;
  } catch (const Json::parse_error& error) {
    const auto byte = std::min<std::size_t>(error.byte, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(byte), '\n');
    return Error{ErrorCode::invalid_model, place + ":" + std::to_string(line) + ": not valid JSON",
                 "the mistake is at byte " + std::to_string(error.byte)};
  } catch (const Json::exception& error) {
    return Error{ErrorCode::invalid_model, place + ": not valid JSON: " + error.what()};
  }
  return Error{ErrorCode::invalid_model, place + ": " + complaint};
}

Result<Json> read_json_file(const std::string& path) {
  ORRERY_TRY(text, read_text_file(path, std::uint64_t{64} << 20));
  return parse_json(text, path);
}

}  // namespace orrery
