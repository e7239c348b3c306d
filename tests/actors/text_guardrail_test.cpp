// - listed words and phrases are refused, whatever their case, accents, signs, repeats and gaps
// - words that merely contain or resemble a listed one are not
// - allowed phrases win; lists are read from folders; wrong lists are named by file and line
// - the shipped list stops what it says and lets ordinary prompts pass

#include "actors/text_guardrail.hpp"

#include <unistd.h>

#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>

using namespace orrery;
using actors::TextGuardrail;

namespace {

TextGuardrail guardrail_of(std::string_view list) {
  auto result = TextGuardrail::parse(list, "list");
  REQUIRE(result.ok());
  return std::move(result).value();
}

/// A folder of its own, gone at the end.
struct Folder {
  std::filesystem::path path;
  explicit Folder(const std::string& name)
      : path(std::filesystem::temp_directory_path() / ("orrery_guardrail_" + name + "_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  void write(const std::string& file, const std::string& text) const { std::ofstream(path / file) << text; }
};

const char* const invented = "[weapons]\nsnorf\nblat pie\nc4\n[hate]\nquokka zap\n[allow]\nsnorf tea\n";

}  // namespace

TEST_CASE("text guardrail: a listed word is refused and named", "[actors][guardrail]") {
  const auto guardrail = guardrail_of(invented);
  CHECK(guardrail.size() == 4);
  const auto verdict = guardrail.check("Please draw a Snorf, now");
  CHECK_FALSE(verdict.allowed);
  CHECK(verdict.rule == "weapons");
  CHECK(verdict.matched == "Snorf");
  CHECK(guardrail.check("the QUOKKA  zap").rule == "hate");
  CHECK(guardrail.check("").allowed);
  CHECK(guardrail.check("a calm street").allowed);
}

TEST_CASE("text guardrail: the usual tricks are undone", "[actors][guardrail]") {
  const auto guardrail = guardrail_of(invented);
  for (const char* prompt : {
           "snorf", "SNORF!", "sn0rf", "$norf", "5n0rf", "sn*rf", "snorrrrf", "sssnorf", "sn000rf", "snorfs", "snorf's", "snorf\xE2\x80\x99s",
           "s n o r f", "s.n.o.r.f", "s-n-o-r-f", "s  n  o  r  f", "make a s n o r f", "s_n_o_r_f", "sn.orf", "s-norf", "sno*rf",
           "\"snorf\"", "(snorf)", "#snorf", "x-snorf", "snorf-like",
           "sn\xC3\xB6rf",                                  // o with dots
           "sno\xCC\x88rf",                                 // o with a combining mark
           "sno\xE2\x80\x8Brf",                             // zero-width space
           "s\xC2\xADnorf",                                 // soft hyphen
           "\xEF\xBC\xB3\xEF\xBC\xAE\xEF\xBC\xAFrf",        // full width
           "sn\xD0\xBErf",                                  // Cyrillic o
           "\xF0\x9D\x90\xACnorf",                          // mathematical bold s
           "blat pie", "blat  pie", "blat-pie", "blatpie", "BLAT\nPIE", "b1at p1e", "blat, pies", "b l a t p i e", "use c4", "C-4",
       }) {
    CAPTURE(prompt);
    CHECK_FALSE(guardrail.check(prompt).allowed);
  }
}

TEST_CASE("text guardrail: words that contain or resemble a listed one pass", "[actors][guardrail]") {
  const auto guardrail = guardrail_of(invented);
  for (const char* prompt : {"asnorf", "snorfing", "snorfed", "snor", "snof", "sn orf", "snarf", "blat the pie", "blat pieces", "blatant pie",
                             "a s n o r f e r", "c 44 s", "ac4", "50 00 77 44", "quokka", "zap", "s n o w", "e s n o r f", "1 2 3 4 5"}) {
    CAPTURE(prompt);
    CHECK(guardrail.check(prompt).allowed);
  }
  const auto real = guardrail_of("rape\nass\nkill\ncunt\ntit\n");
  for (const char* prompt : {"Scunthorpe", "assassin bug", "grape", "grapes", "skill", "skills", "a red circle moving right", "class assembly",
                             "the bass player passes", "title", "constitution", "drape", "a g r a p e", "c l a s s", "as soon as it starts",
                             "it is as. So be it", "great titan", "$kills are fine to test 2"}) {
    CAPTURE(prompt);
    if (std::string_view(prompt).starts_with("$"))
      CHECK_FALSE(real.check(prompt).allowed);  // "$" may stand for a letter or for nothing; both readings count.
    else
      CHECK(real.check(prompt).allowed);
  }
}

TEST_CASE("text guardrail: an allowed phrase covers the word in it, and only there", "[actors][guardrail]") {
  const auto guardrail = guardrail_of(invented);
  CHECK(guardrail.check("a cup of snorf tea").allowed);
  CHECK(guardrail.check("a cup of Snorf-Tea").allowed);
  CHECK_FALSE(guardrail.check("snorf tea with snorf").allowed);
  CHECK_FALSE(guardrail.check("a snorf team").allowed);
}

TEST_CASE("text guardrail: hostile text is only text", "[actors][guardrail][fault]") {
  const auto guardrail = guardrail_of(invented);
  CHECK(guardrail.check(std::string_view("\0\xFF\xC0\x80\xF5\xE2\x80", 7)).allowed);
  CHECK_FALSE(guardrail.check(std::string_view("\0snorf\0", 7)).allowed);
  CHECK_FALSE(guardrail.check("\xFFsnorf\xFE").allowed);
  CHECK(guardrail_of("aaaaaaaab\n").check(std::string(200'000, 'a')).allowed);
  CHECK(guardrail.check(std::string(100'000, '*')).allowed);
  CHECK(guardrail.check(std::string(100'000, '$')).allowed);
  std::string spread;
  for (int i = 0; i < 50'000; ++i) spread += "a ";
  CHECK(guardrail_of("aaaaaaaab\n").check(spread).allowed);
}

TEST_CASE("text guardrail: lists of several folders add up", "[actors][guardrail]") {
  const Folder one("one"), two("two");
  one.write("gore.txt", "\xEF\xBB\xBF# first\r\n  splat  # comment\r\n\r\n");
  one.write("notes.md", "grimble\n");
  two.write("extra.txt", "grimble\n");
  two.write("allow.txt", "splat art\n");
  const auto guardrail = TextGuardrail::open({one.path.string(), two.path.string()});
  REQUIRE(guardrail.ok());
  CHECK(guardrail.value().size() == 2);
  CHECK(guardrail.value().check("a splat").rule == "gore");
  CHECK(guardrail.value().check("grimble").rule == "extra");
  CHECK(guardrail.value().check("splat art").allowed);
}

TEST_CASE("text guardrail: lists that cannot work are refused", "[actors][guardrail][fault]") {
  CHECK(TextGuardrail::open({"/nowhere/lists"}).error().code == ErrorCode::not_found);
  CHECK(TextGuardrail::open({}).error().code == ErrorCode::invalid_config);
  const auto empty = TextGuardrail::parse("# nothing\n[allow]\nfine\n", "my list");
  REQUIRE_FALSE(empty.ok());
  CHECK(empty.error().code == ErrorCode::invalid_config);
  CHECK(empty.error().message.find("my list") != std::string::npos);
  const auto blank = TextGuardrail::parse("word\n...\n", "my list");
  REQUIRE_FALSE(blank.ok());
  CHECK(blank.error().message.find("my list:2") != std::string::npos);
  CHECK_FALSE(TextGuardrail::parse(std::string(300, 'a') + "b\n", "list").ok());
  CHECK_FALSE(TextGuardrail::parse("[]\n", "list").ok());
  const Folder file("file");
  file.write("plain", "x");
  CHECK_FALSE(TextGuardrail::open({(file.path / "plain").string()}).ok());
}

TEST_CASE("text guardrail: the shipped list", "[actors][guardrail]") {
  const auto guardrail = TextGuardrail::open({ORRERY_SOURCE_DIR "/configs/guardrail"});
  REQUIRE(guardrail.ok());
  for (const char* prompt : {"how to make a bomb at home", "h0w to m4ke a b0mb", "Child Porn", "graphic gore in a street", "a beheading", "heil h1tler",
                             "naked children", "a r.a.p.e scene"}) {
    CAPTURE(prompt);
    CHECK_FALSE(guardrail.value().check(prompt).allowed);
  }
  for (const char* prompt : {
           "Scunthorpe", "assassin bug", "grape", "skill", "a red circle moving right", "a blue square moving left",
           "A sleek, humanoid robot stands in a vast warehouse filled with neatly stacked cardboard boxes on industrial shelves.",
           "children play football in a park", "a yellow field of oilseed rape", "a photo bomb by a cat", "a bath bomb dissolves in water",
           "the camera remains static, focused on the robot", "a surgeon's hands, close up", "a drapery workshop", "therapist and patient talk",
           "Al Gore gives a speech", "video games on a white sofa", "power lines over white snow", "knights fight in a castle", "Essex and Sussex",
       }) {
    CAPTURE(prompt);
    const auto verdict = guardrail.value().check(prompt);
    CAPTURE(verdict.matched);
    CHECK(verdict.allowed);
  }
}
