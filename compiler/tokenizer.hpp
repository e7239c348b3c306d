// Tokenizer: from a prompt to the ids that the T5 text encoder takes.
//
// Reads a `tokenizer/` folder of a published model: spiece.model (sentencepiece, unigram) and, if there,
// tokenizer_config.json (model_max_length, extra_ids, the names of the special tokens). The pieces of a text,
// their normalisation (nmt_nfkc), the leading "▁" and the folding of white space are sentencepiece's.
//
// Special tokens that stand in the text ("</s>", "<pad>", "<unk>", "<extra_id_3>") become their own id, and what
// stands between them is tokenized piece by piece, as the published tokenizer does.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace orrery::compiler {

/// The ids of one text: what a mask of ones would cover. The last one is the end token.
struct TokenIds {
  std::vector<std::int32_t> ids;
  bool truncated = false;  // The text was longer than the limit; its end was left out.

  std::uint64_t count() const { return ids.size(); }
};

/// Threads: any; immutable after `open`.
class Tokenizer {
public:
  /// Reads the folder. Fails with not_found or invalid_model, naming the file; with unsupported for a folder that
  /// has only tokenizer.json.
  static Result<Tokenizer> open(const std::string& folder);

  /// At most `max_length` ids (at least 1), the end token last; longer texts lose their end. An empty text gives the
  /// end token alone. Fails with invalid_request when the text is not UTF-8 or larger than 1 MiB.
  Result<TokenIds> encode(std::string_view text, std::uint64_t max_length) const;

  std::int32_t pad_id() const;
  std::int32_t end_id() const;
  /// One more than the largest id: the encoder's table must have that many rows.
  std::uint64_t vocabulary_size() const;
  /// What the folder recommends as max_length; 512 if it names none.
  std::uint64_t recommended_length() const;

private:
  struct State;
  explicit Tokenizer(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

}  // namespace orrery::compiler
