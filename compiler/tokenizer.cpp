#include "compiler/tokenizer.hpp"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <optional>
#include <span>
#include <utility>

#include "base/file.hpp"
#include "base/json.hpp"

namespace orrery::compiler {

namespace {

constexpr std::uint64_t text_bytes_max = std::uint64_t{1} << 20;
constexpr std::uint64_t model_bytes_max = std::uint64_t{64} << 20;
constexpr std::int64_t token_count_max = 1 << 24;  // Ids of added tokens; no vocabulary is near it.

/// A token that is looked for in the text itself.
struct SpecialToken {
  std::string text;
  std::int32_t id = 0;
};

Error broken(const std::string& place, const std::string& what, std::string hint = {}) {
  return Error{ErrorCode::invalid_model, place + ": " + what, std::move(hint)};
}

/// The first byte that does not belong to well-formed UTF-8 (no overlong forms, no surrogates), if any.
std::optional<std::size_t> first_bad_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (length == 0 || at + length > text.size()) return at;
    for (std::size_t i = 1; i < length; ++i) {
      const auto next = static_cast<unsigned char>(text[at + i]);
      if ((next & 0xC0) != 0x80) return at;
      if (i == 1 && ((lead == 0xE0 && next < 0xA0) || (lead == 0xED && next > 0x9F) || (lead == 0xF0 && next < 0x90) ||
                     (lead == 0xF4 && next > 0x8F)))
        return at;
    }
    at += length;
  }
  return std::nullopt;
}

using Bytes = std::span<const std::byte>;

/// One field of a protobuf message: its number, and its bytes when it is length-delimited.
struct Field {
  std::uint64_t number = 0;
  Bytes bytes;
};

/// Reads a varint, or nothing at the end of the bytes.
std::optional<std::uint64_t> next_varint(Bytes& message) {
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (message.empty()) return std::nullopt;
    const auto byte = static_cast<std::uint64_t>(message.front());
    message = message.subspan(1);
    value |= (byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

/// Takes the next field off a message; nothing when the rest is not one.
std::optional<Field> next_field(Bytes& message) {
  const auto key = next_varint(message);
  if (!key) return std::nullopt;
  std::uint64_t length = 0;
  switch (*key & 7) {
    case 0:
      if (!next_varint(message)) return std::nullopt;
      return Field{*key >> 3, {}};
    case 1: length = 8; break;
    case 2: {
      const auto stated = next_varint(message);
      if (!stated) return std::nullopt;
      length = *stated;
      break;
    }
    case 5: length = 4; break;
    default: return std::nullopt;
  }
  if (length > message.size()) return std::nullopt;
  const Field field{*key >> 3, message.subspan(0, length)};
  message = message.subspan(length);
  return field;
}

/// Checks the table of character replacements, which sentencepiece follows without looking: u32 bytes of a double-array
/// trie, the trie, then zero-terminated texts that its leaves point at. True when no text can lead it astray.
bool is_sound_charsmap(Bytes map) {
  if (map.empty()) return true;
  std::uint32_t trie_bytes = 0;
  if (map.size() < 4) return false;
  std::memcpy(&trie_bytes, map.data(), 4);
  if (trie_bytes % 4 != 0 || trie_bytes == 0 || trie_bytes > map.size() - 4) return false;
  std::vector<std::uint32_t> units(trie_bytes / 4);
  std::memcpy(units.data(), map.data() + 4, trie_bytes);
  const auto texts = map.subspan(4 + trie_bytes);
  if (texts.empty() || texts.back() != std::byte{0}) return false;

  std::vector<bool> seen(units.size(), false);
  std::vector<std::uint32_t> open = {0};
  seen[0] = true;
  while (!open.empty()) {
    const auto node = open.back();
    open.pop_back();
    const auto unit = units[node];
    const std::uint64_t base = node ^ (std::uint64_t{unit >> 10} << ((unit & 0x200U) >> 6));
    if ((base | 0xFF) >= units.size()) return false;
    if ((unit & 0x100U) != 0 && (units[base] & 0x7FFFFFFFU) >= texts.size()) return false;
    for (std::uint64_t label = 1; label < 256; ++label) {
      const auto child = static_cast<std::uint32_t>(base ^ label);
      if ((units[child] & 0x800000FFU) != label || seen[child]) continue;
      seen[child] = true;
      open.push_back(child);
    }
  }
  return true;
}

/// What sentencepiece does not check itself of a model: ModelProto.normalizer_spec (3).precompiled_charsmap (2), and the
/// same of denormalizer_spec (5).
bool is_sound_model(Bytes model) {
  while (!model.empty()) {
    const auto field = next_field(model);
    if (!field) return false;
    if (field->number != 3 && field->number != 5) continue;
    for (auto spec = field->bytes; !spec.empty();) {
      const auto part = next_field(spec);
      if (!part || (part->number == 2 && !is_sound_charsmap(part->bytes))) return false;
    }
  }
  return true;
}

/// A token's text: written as a string or as {"content": "..."}.
std::optional<std::string> token_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object()) {
    const auto content = value.find("content");
    if (content != value.end() && content->is_string()) return content->get<std::string>();
  }
  return std::nullopt;
}

}  // namespace

struct Tokenizer::State {
  sentencepiece::SentencePieceProcessor processor;
  std::vector<SpecialToken> special;  // Longest first, so that of two that match the longer one wins.
  std::array<bool, 256> starts_special{};  // By first byte.
  std::int32_t pad_id = 0, end_id = 1;
  std::uint64_t vocabulary_size = 0;
  std::uint64_t recommended_length = 512;

  Status read_model(const std::string& folder, const std::string& path);
  Status read_config(const std::string& path);
  Result<std::int32_t> id_of(const std::string& place, const std::string& token) const;
  void add_special(std::string text, std::int32_t id);
  Status append_pieces(std::string_view text, std::vector<std::int32_t>& ids) const;
};

Status Tokenizer::State::read_model(const std::string& folder, const std::string& path) {
  const auto file = MappedFile::open(path);
  if (!file) {
    if (file.error().code == ErrorCode::not_found && MappedFile::open(folder + "/tokenizer.json").ok())
      return Error{ErrorCode::unsupported, folder + " has only tokenizer.json; Orrery reads spiece.model",
                   "copy spiece.model from the model's original folder"};
    return file.error();
  }
  const auto bytes = file.value().bytes();
  if (bytes.empty() || bytes.size() > model_bytes_max)
    return broken(path, "has " + std::to_string(bytes.size()) + " bytes; a sentencepiece model has 1 to " +
                            std::to_string(model_bytes_max));
  if (!is_sound_model(bytes)) return broken(path, "not a sentencepiece model, or a damaged one", "is the download complete?");
  // The processor keeps its own copy of the model.
  std::string why;
  try {
    const auto status = processor.LoadFromSerializedProto({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (!status.ok()) why = status.ToString();
  } catch (const std::exception& error) {
    why = error.what();
  }
  if (!why.empty()) return broken(path, "not a sentencepiece model: " + why, "is the download complete?");
  if (processor.GetPieceSize() <= 0) return broken(path, "the model has no pieces");
  vocabulary_size = static_cast<std::uint64_t>(processor.GetPieceSize());
  return Done{};
}

Result<std::int32_t> Tokenizer::State::id_of(const std::string& place, const std::string& token) const {
  const int id = processor.PieceToId(token);
  if (id < 0 || id >= processor.GetPieceSize() || processor.IdToPiece(id) != token)
    return broken(place, "token '" + token + "' is not among the pieces of spiece.model");
  return std::int32_t{id};
}

void Tokenizer::State::add_special(std::string text, std::int32_t id) {
  if (text.empty()) return;
  vocabulary_size = std::max(vocabulary_size, static_cast<std::uint64_t>(id) + 1);
  for (auto& known : special)
    if (known.text == text) {
      known.id = id;
      return;
    }
  starts_special[static_cast<unsigned char>(text.front())] = true;
  special.push_back({std::move(text), id});
}

Status Tokenizer::State::read_config(const std::string& path) {
  Json config = Json::object();
  if (auto file = read_json_file(path); file.ok()) {
    config = std::move(file).value();
  } else if (file.error().code != ErrorCode::not_found) {
    return file.error();
  }
  if (!config.is_object()) return broken(path, "should be a JSON object");

  const auto name_of_token = [&](const char* key, const char* otherwise) -> Result<std::string> {
    const auto found = config.find(key);
    if (found == config.end() || found->is_null()) return std::string(otherwise);
    const auto text = token_text(*found);
    if (!text) return broken(path, std::string(key) + " should be text");
    return *text;
  };
  ORRERY_TRY(end_name, name_of_token("eos_token", "</s>"));
  ORRERY_TRY(pad_name, name_of_token("pad_token", "<pad>"));
  ORRERY_TRY(unknown_name, name_of_token("unk_token", "<unk>"));
  ORRERY_TRY(end, id_of(path, end_name));
  ORRERY_TRY(pad, id_of(path, pad_name));
  ORRERY_TRY(unknown, id_of(path, unknown_name));
  end_id = end;
  pad_id = pad;
  add_special(end_name, end);
  add_special(pad_name, pad);
  add_special(unknown_name, unknown);

  if (const auto length = config.find("model_max_length"); length != config.end() && length->is_number()) {
    // "No limit" is written as 1e30.
    const double value = length->get<double>();
    if (!(value >= 1)) return broken(path, "model_max_length should be at least 1");
    recommended_length = static_cast<std::uint64_t>(std::min(value, 1e9));
  }
  std::int64_t extra_ids = 100;  // The class default.
  if (const auto extra = config.find("extra_ids"); extra != config.end() && !extra->is_null()) {
    if (!extra->is_number_integer()) return broken(path, "extra_ids should be a number");
    extra_ids = extra->is_number_unsigned() && extra->get<std::uint64_t>() > 2'000 ? -1 : extra->get<std::int64_t>();
    if (extra_ids < 0 || extra_ids > 2'000) return broken(path, "extra_ids should be 0 to 2000");
  }
  const auto pieces = static_cast<std::int64_t>(processor.GetPieceSize());
  for (std::int64_t k = 0; k < extra_ids; ++k)
    add_special("<extra_id_" + std::to_string(k) + ">", static_cast<std::int32_t>(pieces + extra_ids - 1 - k));

  if (const auto added = config.find("added_tokens_decoder"); added != config.end() && added->is_object()) {
    if (added->size() > 2'000) return broken(path, "added_tokens_decoder has more than 2000 entries");
    for (const auto& [key, value] : added->items()) {
      const auto text = token_text(value);
      const bool digits = !key.empty() && key.size() <= 8 && std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
      const std::int64_t id = digits ? std::stoll(key) : -1;
      if (!text || id < 0 || id >= token_count_max)
        return broken(path, "added_tokens_decoder: each entry should be an id with its 'content'");
      add_special(*text, static_cast<std::int32_t>(id));
    }
  }
  std::stable_sort(special.begin(), special.end(),
                   [](const SpecialToken& a, const SpecialToken& b) { return a.text.size() > b.text.size(); });
  return Done{};
}

Status Tokenizer::State::append_pieces(std::string_view text, std::vector<std::int32_t>& ids) const {
  if (text.empty()) return Done{};
  std::vector<int> pieces;
  std::string why;
  try {
    const auto status = processor.Encode({text.data(), text.size()}, &pieces);
    if (!status.ok()) why = status.ToString();
  } catch (const std::exception& error) {
    why = error.what();
  }
  if (!why.empty()) return Error{ErrorCode::invalid_request, "the prompt could not be tokenized: " + why};
  ids.insert(ids.end(), pieces.begin(), pieces.end());
  return Done{};
}

Result<Tokenizer> Tokenizer::open(const std::string& folder) {
  auto state = std::make_shared<State>();
  ORRERY_TRY_DONE(state->read_model(folder, folder + "/spiece.model"));
  ORRERY_TRY_DONE(state->read_config(folder + "/tokenizer_config.json"));
  return Tokenizer(std::move(state));
}

Result<TokenIds> Tokenizer::encode(std::string_view text, std::uint64_t max_length) const {
  ORRERY_CHECK(max_length >= 1);
  if (text.size() > text_bytes_max)
    return Error{ErrorCode::invalid_request,
                 "the prompt has " + std::to_string(text.size()) + " bytes; at most " + std::to_string(text_bytes_max) + " are read"};
  if (const auto bad = first_bad_utf8(text))
    return Error{ErrorCode::invalid_request, "the prompt is not UTF-8: byte " + std::to_string(*bad) + " is wrong",
                 "save the text as UTF-8"};

  TokenIds result;
  std::size_t plain = 0;  // Start of the text not yet tokenized.
  for (std::size_t at = 0; at < text.size();) {
    if (!state_->starts_special[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const auto match = std::find_if(state_->special.begin(), state_->special.end(),
                                    [&](const SpecialToken& token) { return text.compare(at, token.text.size(), token.text) == 0; });
    if (match == state_->special.end()) {
      ++at;
      continue;
    }
    ORRERY_TRY_DONE(state_->append_pieces(text.substr(plain, at - plain), result.ids));
    result.ids.push_back(match->id);
    at += match->text.size();
    plain = at;
  }
  ORRERY_TRY_DONE(state_->append_pieces(text.substr(plain), result.ids));
  if (result.ids.size() > max_length - 1) {
    result.ids.resize(max_length - 1);
    result.truncated = true;
  }
  result.ids.push_back(state_->end_id);
  return result;
}

std::int32_t Tokenizer::pad_id() const { return state_->pad_id; }
std::int32_t Tokenizer::end_id() const { return state_->end_id; }
std::uint64_t Tokenizer::vocabulary_size() const { return state_->vocabulary_size; }
std::uint64_t Tokenizer::recommended_length() const { return state_->recommended_length; }

}  // namespace orrery::compiler
