#include "launch/announcement.hpp"

#include <charconv>
#include <filesystem>

#include "base/file.hpp"
#include "base/json.hpp"

namespace orrery::launch {
namespace {

Status write(const std::string& path, const OrderedJson& json) {
  ORRERY_TRY(file, AtomicFile::create(path));
  ORRERY_TRY_DONE(file.write(json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n"));
  return file.commit();
}

template <class T>
T member(const Json& json, const char* name, T otherwise) {
  const auto found = json.find(name);
  if (found == json.end()) return otherwise;
  if constexpr (std::is_same_v<T, std::string>)
    return found->is_string() ? found->template get<std::string>() : otherwise;
  else
    return found->is_number() ? found->template get<T>() : otherwise;
}

}  // namespace

Status announce(const std::string& path, const Announcement& announcement) {
  OrderedJson json;
  json["address"] = announcement.address;
  json["pid"] = announcement.pid;
  json["cluster_id"] = std::to_string(announcement.cluster_id);  // More than a double holds.
  json["term"] = announcement.term;
  return write(path, json);
}

Status announce(const std::string& path, const Error& failure) {
  OrderedJson json;
  json["failure"] = {{"code", static_cast<std::uint16_t>(failure.code)}, {"message", failure.message}, {"hint", failure.hint}};
  return write(path, json);
}

Result<std::optional<Announcement>> read_announcement(const std::string& path) {
  std::error_code unknown;
  if (!std::filesystem::exists(path, unknown)) return std::optional<Announcement>{};
  const auto strange = [&path] { return Error{ErrorCode::io_failed, path + " is no announcement of a coordinator"}; };
  const auto json = read_json_file(path);
  if (!json.ok() || !json.value().is_object()) return strange();
  if (const auto failure = json.value().find("failure"); failure != json.value().end()) {
    if (auto error = error_of_json(failure->dump())) return *error;
    return strange();
  }
  Announcement read;
  read.address = member(json.value(), "address", std::string());
  read.pid = member<std::int64_t>(json.value(), "pid", 0);
  read.term = member<std::uint64_t>(json.value(), "term", 0);
  const auto id = member(json.value(), "cluster_id", std::string());
  const auto [rest, wrong] = std::from_chars(id.data(), id.data() + id.size(), read.cluster_id);
  if (read.address.empty() || id.empty() || wrong != std::errc() || rest != id.data() + id.size()) return strange();
  return std::optional(read);
}

std::optional<Error> error_of_json(const std::string& text) {
  const auto json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return {};
  Error error;
  error.message = member(json, "message", std::string());
  error.hint = member(json, "hint", std::string());
  const auto code = member<std::uint32_t>(json, "code", 0);
  // Also by name.
  const auto named = member(json, "code", std::string());
  for (std::uint16_t number = 1; number < 256; ++number)
    if (const auto known = static_cast<ErrorCode>(number); name_of(known) != "unknown" && (number == code || name_of(known) == named))
      error.code = known;
  return error.message.empty() ? std::nullopt : std::optional(error);
}

}  // namespace orrery::launch
