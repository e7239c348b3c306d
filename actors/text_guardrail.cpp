#include "actors/text_guardrail.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "base/file.hpp"

namespace orrery::actors {

namespace {

constexpr std::uint64_t list_bytes_max = std::uint64_t{16} << 20;
constexpr std::size_t entry_letters_max = 200;

/// One character of a text after folding, and the bytes it stood in.
struct Letter {
  char32_t value = 0;
  std::uint32_t begin = 0, end = 0;
};
using Letters = std::vector<Letter>;

/// The plain spelling of U+00C0 ... U+017F; "." is not a letter.
constexpr std::string_view latin_plain[] = {
    "a", "a", "a", "a", "a", "a", "ae", "c", "e", "e", "e", "e", "i", "i", "i", "i",   // C0
    "d", "n", "o", "o", "o", "o", "o", ".", "o", "u", "u", "u", "u", "y", "th", "ss",  // D0
    "a", "a", "a", "a", "a", "a", "ae", "c", "e", "e", "e", "e", "i", "i", "i", "i",   // E0
    "d", "n", "o", "o", "o", "o", "o", ".", "o", "u", "u", "u", "u", "y", "th", "y",   // F0
    "a", "a", "a", "a", "a", "a", "c", "c", "c", "c", "c", "c", "c", "c", "d", "d",    // 100
    "d", "d", "e", "e", "e", "e", "e", "e", "e", "e", "e", "e", "g", "g", "g", "g",    // 110
    "g", "g", "g", "g", "h", "h", "h", "h", "i", "i", "i", "i", "i", "i", "i", "i",    // 120
    "i", "i", "ij", "ij", "j", "j", "k", "k", "k", "l", "l", "l", "l", "l", "l", "l",  // 130
    "l", "l", "l", "n", "n", "n", "n", "n", "n", "n", "n", "n", "o", "o", "o", "o",    // 140
    "o", "o", "oe", "oe", "r", "r", "r", "r", "r", "r", "s", "s", "s", "s", "s", "s",  // 150
    "s", "s", "t", "t", "t", "t", "t", "t", "u", "u", "u", "u", "u", "u", "u", "u",    // 160
    "u", "u", "u", "u", "w", "w", "y", "y", "y", "z", "z", "z", "z", "z", "z", "s",    // 170
};
static_assert(std::size(latin_plain) == 0xC0);

/// Greek and Cyrillic letters, lower case, that look like Latin ones.
char32_t look_alike(char32_t c) {
  switch (c) {
    case 0x3B1: case 0x430: return 'a';
    case 0x432: return 'b';
    case 0x441: return 'c';
    case 0x501: return 'd';
    case 0x3B5: case 0x435: case 0x451: return 'e';
    case 0x43D: case 0x4BB: return 'h';
    case 0x3B9: case 0x456: case 0x457: return 'i';
    case 0x458: return 'j';
    case 0x3BA: case 0x43A: return 'k';
    case 0x43C: return 'm';
    case 0x3BF: case 0x43E: return 'o';
    case 0x3C1: case 0x440: return 'p';
    case 0x51B: return 'q';
    case 0x455: return 's';
    case 0x3C4: case 0x442: return 't';
    case 0x3BD: return 'v';
    case 0x51D: return 'w';
    case 0x3C7: case 0x445: return 'x';
    case 0x3C5: case 0x443: return 'y';
    default: return c;
  }
}

bool is_invisible(char32_t c) {
  return c == 0xAD || (c >= 0x300 && c <= 0x36F) || c == 0x61C || (c >= 0x180B && c <= 0x180E) || (c >= 0x200B && c <= 0x200F) ||
         (c >= 0x202A && c <= 0x202E) || (c >= 0x2060 && c <= 0x206F) || (c >= 0xFE00 && c <= 0xFE0F) || c == 0xFEFF ||
         (c >= 0xE0000 && c <= 0xE01EF);
}

/// Reads one code point; a byte that is not UTF-8 counts as U+FFFD.
char32_t next_code_point(std::string_view text, std::size_t& at) {
  const auto lead = static_cast<unsigned char>(text[at++]);
  if (lead < 0x80) return lead;
  const std::size_t more = lead >= 0xF0 && lead < 0xF5 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC2 ? 1 : 0;
  if (more == 0 || lead >= 0xF5 || at + more > text.size()) return 0xFFFD;
  auto value = static_cast<char32_t>(lead & (0x3F >> more));
  for (std::size_t i = 0; i < more; ++i) {
    const auto next = static_cast<unsigned char>(text[at + i]);
    if ((next & 0xC0) != 0x80) return 0xFFFD;
    value = (value << 6) | (next & 0x3FU);
  }
  at += more;
  return value;
}

/// Plain lower-case letters, digits and signs; white space as ' ', what is neither as '.'.
Letters fold(std::string_view text) {
  Letters letters;
  letters.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const auto begin = static_cast<std::uint32_t>(at);
    char32_t c = next_code_point(text, at);
    const auto put = [&](char32_t value) { letters.push_back({value, begin, static_cast<std::uint32_t>(at)}); };
    if (is_invisible(c)) continue;
    if (c >= 0xFF01 && c <= 0xFF5E) c -= 0xFEE0;                                  // Full width.
    if (c >= 0x1D400 && c <= 0x1D6A3) c = 'a' + (c - 0x1D400) % 26;               // Mathematical alphabets.
    if (c >= 0x24B6 && c <= 0x24E9) c = 'a' + (c - 0x24B6) % 26;                  // Circled letters.
    if (c >= 0x1F130 && c <= 0x1F149) c = 'a' + (c - 0x1F130);                    // Squared letters.
    if (c >= 'A' && c <= 'Z') c += 32;
    if ((c >= 0x391 && c <= 0x3A9) || (c >= 0x410 && c <= 0x42F)) c += 32;        // Greek, Cyrillic capitals.
    if (c >= 0x400 && c <= 0x40F) c += 80;
    if (c >= 0xC0 && c <= 0x17F) {
      for (const char plain : latin_plain[c - 0xC0]) put(static_cast<unsigned char>(plain));
      continue;
    }
    c = look_alike(c);
    if (c < 0x80) {
      const bool space = c == ' ' || (c >= 9 && c <= 13);
      put(space ? U' ' : c < 0x20 || c == 0x7F ? U'.' : c);
    } else if (c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
               c == 0x3000) {
      put(U' ');
    } else if (c == 0x2018 || c == 0x2019) {
      put(U'\'');
    } else if (c < 0xC0 || (c >= 0x2000 && c <= 0x2BFF) || (c >= 0x3001 && c <= 0x303F) || c == 0xFFFD || c >= 0x1F000) {
      put(U'.');
    } else {
      put(c);
    }
  }
  return letters;
}

bool is_letter(char32_t c) { return (c >= 'a' && c <= 'z') || c >= 0x80; }
bool is_digit(char32_t c) { return c >= '0' && c <= '9'; }
bool is_word(char32_t c) { return is_letter(c) || is_digit(c); }
/// Scripts without spaces have no word boundaries to respect.
bool joins_words(char32_t c) { return is_word(c) && c < 0x2E80; }

/// Whether `seen` may stand for the letter `wanted`.
bool stands_for(char32_t seen, char32_t wanted) {
  if (seen == wanted) return true;
  switch (wanted) {
    case 'a': return seen == '@' || seen == '4' || seen == '*';
    case 'b': return seen == '8';
    case 'e': return seen == '3' || seen == '*';
    case 'g': return seen == '9' || seen == '6';
    case 'i': return seen == '1' || seen == '!' || seen == '|' || seen == '*' || seen == 'l';
    case 'l': return seen == '1' || seen == '|';
    case 'o': return seen == '0' || seen == '*' || seen == '@';
    case 's': return seen == '5' || seen == '$';
    case 't': return seen == '7' || seen == '+';
    case 'u': return seen == 'v' || seen == '*';
    case 'z': return seen == '2';
    default: return false;
  }
}

/// A listed word or phrase.
struct Entry {
  std::u32string letters;             // Without gaps.
  std::vector<bool> gap_before;       // Per letter: a new word begins here.
  std::string rule;
};

std::string text_of_place(const std::string& place, std::uint64_t line) { return place + ":" + std::to_string(line); }

bool boundary_before(const Letters& text, std::size_t at) { return at == 0 || !joins_words(text[at].value) || !joins_words(text[at - 1].value); }
bool boundary_after(const Letters& text, std::size_t end) {
  return end >= text.size() || !joins_words(text[end - 1].value) || !joins_words(text[end].value);
}

/// The end of the word that ends at `end`, with a plural or genitive ending if there is one; nothing when the word goes on.
std::size_t end_of_word(const Letters& text, std::size_t end) {
  if (boundary_after(text, end)) return end;
  std::size_t at = end;
  if (at < text.size() && text[at].value == 'e') ++at;
  if (at < text.size() && text[at].value == 's' && boundary_after(text, at + 1)) return at + 1;
  return 0;
}

/// How far a disguised match has come: how many of its letters were no substitutes, by letters matched (-1: not there).
struct Progress {
  using Counts = std::array<std::int16_t, entry_letters_max + 1>;
  Counts exact;    // The last letter was just now.
  Counts waiting;  // Separators have followed ...
  Counts gap;      // ... this many.

  void clear(std::size_t low, std::size_t high) {
    for (auto k = low; k <= high; ++k) exact[k] = waiting[k] = -1;
  }
};

/// Where `entry` ends when it begins at `begin`, or 0. Letters may be repeated, replaced by signs, or have a little
/// punctuation between them.
std::size_t match_disguised(const Letters& text, std::size_t begin, const Entry& entry, std::array<Progress, 2>& progress) {
  const std::size_t count = entry.letters.size();
  if (count > 1 && begin + 1 < text.size()) {  // Nearly all candidates end here.
    const char32_t second = text[begin + 1].value;
    if (is_word(second) && !stands_for(second, entry.letters[0]) && !stands_for(second, entry.letters[1])) return 0;
  }
  const std::size_t limit = std::min(text.size(), begin + 12 * count + 32);
  auto *now = &progress[0], *next = &progress[1];
  now->clear(0, 0);
  now->exact[0] = 0;
  std::size_t low = 0, high = 0;  // The letters matched so far lie in [low, high].
  for (std::size_t at = begin; at < limit; ++at) {
    const char32_t seen = text[at].value;
    next->clear(low, std::min(high + 1, count));
    std::size_t next_low = count + 1, next_high = 0;
    const auto reach = [&](std::size_t k) {
      next_low = std::min(next_low, k);
      next_high = std::max(next_high, k);
    };
    for (std::size_t k = low; k <= high; ++k) {
      const auto here = std::max(now->exact[k], now->waiting[k]);
      if (here < 0) continue;
      if (k < count && stands_for(seen, entry.letters[k])) {
        const auto exact = static_cast<std::int16_t>(here + (seen == entry.letters[k] ? 1 : 0));
        next->exact[k + 1] = std::max(next->exact[k + 1], exact);
        reach(k + 1);
      }
      if (k > 0 && now->exact[k] >= 0 && is_letter(entry.letters[k - 1]) && stands_for(seen, entry.letters[k - 1])) {
        next->exact[k] = std::max(next->exact[k], now->exact[k]);
        reach(k);
      }
      if (k > 0 && k < count && !is_word(seen)) {
        const std::int16_t before = now->exact[k] >= 0 ? std::int16_t{0} : now->gap[k];
        if (entry.gap_before[k] ? before < 4 : (seen != U' ' && before < 2)) {
          next->waiting[k] = here;
          next->gap[k] = static_cast<std::int16_t>(before + 1);
          reach(k);
        }
      }
    }
    if (next_low > count) return 0;
    std::swap(now, next);
    low = next_low;
    high = next_high;
    if (high == count && now->exact[count] >= 0 && 2 * now->exact[count] >= static_cast<int>(count))
      if (const auto end = end_of_word(text, at + 1); end != 0) return end;
  }
  return 0;
}

/// The index of the single letter that stands alone next to `at`, looking by `direction` over one to three separators; or
/// text.size() when there is none.
std::size_t lone_neighbour(const Letters& text, std::size_t at, int direction) {
  const auto none = text.size();
  std::size_t separators = 0;
  for (auto i = static_cast<std::ptrdiff_t>(at) + direction; i >= 0 && i < static_cast<std::ptrdiff_t>(text.size()); i += direction) {
    const auto index = static_cast<std::size_t>(i);
    if (!is_word(text[index].value) && text[index].value != '@' && text[index].value != '$') {
      if (++separators > 3) return none;
      continue;
    }
    if (separators == 0) return none;
    const auto beyond = i + direction;
    const bool alone = beyond < 0 || beyond >= static_cast<std::ptrdiff_t>(text.size()) || !is_word(text[static_cast<std::size_t>(beyond)].value);
    return alone ? index : none;
  }
  return none;
}

/// The same for letters that are set apart ("b o m b"): each stands alone, and no further lone letter belongs to them.
std::size_t match_spread(const Letters& text, std::size_t begin, const Entry& entry) {
  const std::size_t count = entry.letters.size();
  if (count < 3) return 0;
  // "a" and "i" are words of their own: "make a b o m b".
  const auto belongs = [&](std::size_t index) { return index < text.size() && text[index].value != 'a' && text[index].value != 'i'; };
  if (belongs(lone_neighbour(text, begin, -1))) return 0;
  std::size_t at = begin;
  int exact = 0;
  for (std::size_t k = 0; k < count; ++k) {
    if (k > 0) at = lone_neighbour(text, at, +1);
    if (at >= text.size() || !stands_for(text[at].value, entry.letters[k])) return 0;
    exact += text[at].value == entry.letters[k] ? 1 : 0;
  }
  if (2 * exact < static_cast<int>(count) || (at + 1 < text.size() && is_word(text[at + 1].value))) return 0;
  return belongs(lone_neighbour(text, at, +1)) ? 0 : at + 1;
}

/// The same without any tricks but the plural; for allowed phrases.
std::size_t match_plain(const Letters& text, std::size_t begin, const Entry& entry) {
  std::size_t at = begin;
  for (std::size_t k = 0; k < entry.letters.size(); ++k) {
    if (k > 0 && entry.gap_before[k]) {
      const auto gap = at;
      while (at < text.size() && !is_word(text[at].value) && at - gap < 4) ++at;
      if (at == gap) return 0;
    }
    if (at >= text.size() || text[at].value != entry.letters[k]) return 0;
    ++at;
  }
  return end_of_word(text, at);
}

}  // namespace

struct TextGuardrail::Lists {
  std::vector<Entry> refused;
  std::map<char32_t, std::vector<std::uint32_t>> by_first;  // Indices into `refused`.
  std::vector<Entry> allowed;

  Status add(std::string_view text, const std::string& place, std::string rule);
  Status finish(const std::string& place);
};

Status TextGuardrail::Lists::add(std::string_view text, const std::string& place, std::string rule) {
  std::uint64_t number = 0;
  while (!text.empty()) {
    ++number;
    const auto end = std::min(text.find('\n'), text.size());
    auto line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (const auto comment = line.find('#'); comment != std::string_view::npos) line = line.substr(0, comment);
    while (!line.empty() && static_cast<unsigned char>(line.back()) <= ' ') line.remove_suffix(1);
    while (!line.empty() && static_cast<unsigned char>(line.front()) <= ' ') line.remove_prefix(1);
    if (number == 1 && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
    if (line.empty()) continue;
    if (line.front() == '[' && line.back() == ']') {
      rule = std::string(line.substr(1, line.size() - 2));
      if (rule.empty()) return Error{ErrorCode::invalid_config, text_of_place(place, number) + ": the heading names no rule"};
      continue;
    }
    Entry entry;
    entry.rule = rule;
    bool gap = false;
    for (const auto& letter : fold(line)) {
      if (!is_word(letter.value)) {
        gap = true;
        continue;
      }
      entry.letters.push_back(letter.value);
      entry.gap_before.push_back(gap);
      gap = false;
    }
    if (entry.letters.empty())
      return Error{ErrorCode::invalid_config, text_of_place(place, number) + ": the line holds no letter or digit to look for"};
    if (entry.letters.size() > entry_letters_max)
      return Error{ErrorCode::invalid_config, text_of_place(place, number) + ": the phrase has more than 200 letters"};
    (rule == "allow" ? allowed : refused).push_back(std::move(entry));
  }
  return Done{};
}

Status TextGuardrail::Lists::finish(const std::string& place) {
  if (refused.empty())
    return Error{ErrorCode::invalid_config, "the guardrail's word lists in " + place + " name no word",
                 "one word or phrase a line, in files that end in .txt"};
  for (std::uint32_t i = 0; i < refused.size(); ++i) by_first[refused[i].letters.front()].push_back(i);
  return Done{};
}

Result<TextGuardrail> TextGuardrail::open(const std::vector<std::string>& folders) {
  auto lists = std::make_shared<Lists>();
  std::string places;
  for (const auto& folder : folders) {
    places += places.empty() ? folder : ", " + folder;
    std::error_code failure;
    std::vector<std::filesystem::path> files;
    auto entries = std::filesystem::directory_iterator(folder, failure);
    for (; !failure && entries != std::filesystem::directory_iterator(); entries.increment(failure)) {
      std::error_code ignored;
      if (entries->path().extension() == ".txt" && entries->is_regular_file(ignored)) files.push_back(entries->path());
    }
    if (failure)
      return Error{failure == std::errc::no_such_file_or_directory ? ErrorCode::not_found : ErrorCode::io_failed,
                   "cannot read the guardrail's folder " + folder + ": " + failure.message()};
    std::sort(files.begin(), files.end());
    for (const auto& file : files) {
      ORRERY_TRY(text, read_text_file(file.string(), list_bytes_max));
      ORRERY_TRY_DONE(lists->add(text, file.string(), file.stem().string()));
    }
  }
  ORRERY_TRY_DONE(lists->finish(places.empty() ? "no folder" : places));
  return TextGuardrail(std::move(lists));
}

Result<TextGuardrail> TextGuardrail::parse(std::string_view text, const std::string& place) {
  auto lists = std::make_shared<Lists>();
  ORRERY_TRY_DONE(lists->add(text, place, "list"));
  ORRERY_TRY_DONE(lists->finish(place));
  return TextGuardrail(std::move(lists));
}

Verdict TextGuardrail::check(std::string_view prompt) const {
  const Letters text = fold(prompt);

  // Letters that belong to an allowed phrase: free_until[i] is the end of the longest one that begins at or before i.
  std::vector<std::size_t> free_until(text.size() + 1, 0);
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (at > 0 && free_until[at - 1] > at) free_until[at] = free_until[at - 1];
    if (!is_word(text[at].value) || !boundary_before(text, at)) continue;
    for (const auto& entry : lists_->allowed)
      if (entry.letters.front() == text[at].value) free_until[at] = std::max(free_until[at], match_plain(text, at, entry));
  }

  // Signs that begin a word in disguise ("$hot") stand for a letter.
  constexpr std::u32string_view possible_firsts = U"abegilostuz";
  std::array<Progress, 2> progress;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const char32_t seen = text[at].value;
    if (!boundary_before(text, at) || !(is_word(seen) || seen == '@' || seen == '$')) continue;
    if (at > 0 && !is_word(seen) && text[at - 1].value == seen) continue;  // A repeat: tried from its first.
    std::u32string firsts(1, seen);
    for (const auto letter : possible_firsts)
      if (letter != seen && stands_for(seen, letter)) firsts.push_back(letter);
    for (const auto first : firsts) {
      const auto candidates = lists_->by_first.find(first);
      if (candidates == lists_->by_first.end()) continue;
      for (const auto index : candidates->second) {
        const auto& entry = lists_->refused[index];
        auto end = match_disguised(text, at, entry, progress);
        if (end == 0) end = match_spread(text, at, entry);
        if (end == 0 || free_until[at] >= end) continue;
        return {false, entry.rule, std::string(prompt.substr(text[at].begin, text[end - 1].end - text[at].begin))};
      }
    }
  }
  return {};
}

std::uint64_t TextGuardrail::size() const { return lists_->refused.size(); }

}  // namespace orrery::actors
