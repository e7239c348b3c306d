// JSON files of strangers (config.json, index files, headers), read with limits.

#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "base/result.hpp"

namespace orrery {

using Json = nlohmann::json;
/// Keeps the order in which keys were added; for what people read.
using OrderedJson = nlohmann::ordered_json;

/// Parses `text`, at most 64 levels deep. Fails with invalid_model: "PLACE:LINE: not valid JSON: ...".
/// Duplicate keys are refused.
Result<Json> parse_json(std::string_view text, const std::string& place);

/// A whole file of at most 64 MiB.
Result<Json> read_json_file(const std::string& path);

}  // namespace orrery
