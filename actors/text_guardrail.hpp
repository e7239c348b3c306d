// TextGuardrail: refuses prompts that contain a listed word or phrase.
//
// A list is a text file: one word or phrase a line, '#' begins a comment, and a heading "[name]" names the rule that
// the lines below it belong to. Lines below "[allow]" are words that are always fine, whatever they resemble.
//
// Both prompt and list are folded before they are compared: case, accents and look-alike letters to plain a-z,
// zero-width characters dropped. A phrase matches at word boundaries only, so "grape" holds no shorter word. Then the
// usual tricks are undone, one after the other:
//
//   digits and signs for letters   "b0mb", "$hoot"       repeated letters         "bommmb"
//   letters set apart              "b o m b", "b.o.m.b"  plural and genitive s    "bombs", "bomb's"
//
// What it is not: an understanding of the text. It knows words, not meanings; a model that judges prompts is another
// guardrail. Cost: each word of the prompt is compared with the entries that begin with its letter; hundredths of a
// millisecond for a prompt and the shipped list, and bounded for a megabyte of signs.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace orrery::actors {

struct Verdict {
  bool allowed = true;
  std::string rule;     // "weapons"; empty when allowed.
  std::string matched;  // The piece of the prompt that was refused, as it was written.
};

/// Threads: any; immutable after it was made.
class TextGuardrail {
public:
  /// Reads every *.txt file of each folder, in the order of their names. Fails with not_found or io_failed for a folder
  /// or file that cannot be read, and with invalid_config, naming file and line, for a line that folds to nothing, or
  /// when all files together list no word: a guardrail that stops nothing is a mistake.
  static Result<TextGuardrail> open(const std::vector<std::string>& folders);

  /// The same from one list given as text; `place` names it in messages.
  static Result<TextGuardrail> parse(std::string_view text, const std::string& place);

  Verdict check(std::string_view prompt) const;

  /// Listed words and phrases, without the allowed ones.
  std::uint64_t size() const;

private:
  struct Lists;
  explicit TextGuardrail(std::shared_ptr<const Lists> lists) : lists_(std::move(lists)) {}
  std::shared_ptr<const Lists> lists_;
};

}  // namespace orrery::actors
