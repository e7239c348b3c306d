// The strict reader and the field table by themselves; whole files are in tests/topology/bad.

#include <catch2/catch.hpp>

#include "base/random.hpp"
#include "base/yaml_schema.hpp"

using namespace orrery;

namespace {

enum class Colour : std::uint8_t { red, green };

struct Wheel {
  std::uint64_t memory = 1024;
  double rate = 0;
};

struct Cart {
  std::string name = "cart";
  bool open = false;
  std::uint32_t count = 1;
  double weight = 0.5;
  Colour colour = Colour::red;
  std::optional<std::uint32_t> degree;
  std::optional<double> grace;
  std::vector<Wheel> wheels;
  std::map<std::string, std::string> labels;
  std::string folder;
};

const Schema<Cart>& cart_schema() {
  static const Schema<Wheel> wheel =
      Schema<Wheel>("wheel", "One wheel.")
          .field("memory", &Wheel::memory, bytes(), "What it remembers.", {.required = true})
          .field("rate", &Wheel::rate, bytes_per_second(), "How fast.");
  static const Schema<Cart> schema =
      Schema<Cart>("cart", "A cart.")
          .field("name", &Cart::name, text(), "Its name.", {.example = "truck"})
          .field("open", &Cart::open, boolean(), "Whether it is open.")
          .field("count", &Cart::count, whole<std::uint32_t>(1, 64), "How many.",
                 {.check = [](const std::uint32_t& n) { return n != 13 ? "" : "should not be 13"; }})
          .field("weight", &Cart::weight, number(0, 10), "How heavy.")
          .field("colour", &Cart::colour, choice<Colour>({{"red", Colour::red}, {"green", Colour::green}}),
                 "Which.")
          .field("degree", &Cart::degree, auto_or(whole<std::uint32_t>(1, 8)), "Or auto.")
          .optional("grace", &Cart::grace, seconds(), "May be absent.")
          .field("wheels", &Cart::wheels, one_or_list_of(object(wheel)), "One or several.")
          .field("labels", &Cart::labels, map_of(text(), "label"), "Free.")
          .field("folder", &Cart::folder, late_text(), "Expanded when used.");
  return schema;
}

struct Read {
  Cart cart;
  Findings findings;
  std::string first() const { return findings.empty() ? "" : findings.front().headline(); }
};

Read read(const std::string& text, std::map<std::string, std::string> variables = {}) {
  Read result;
  const auto documents = read_yaml("t.yaml", text, result.findings);
  YamlReader reader(result.findings, [variables](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
  if (documents.size() == 1) cart_schema().read(documents[0], "", result.cart, reader);
  return result;
}

}  // namespace

TEST_CASE("yaml: a document gives its fields their values and leaves the others at their defaults",
          "[base][yaml]") {
  const auto all = read(
      "name: \"7\"\nopen: true\ncount: 64\nweight: 2.5e-1\ncolour: green\ndegree: 4\ngrace: 1.5 min\n"
      "wheels:\n  - {memory: 64KiB, rate: 8 Gbit/s}\n  - {memory: 1GB}\nlabels: {a: b}\nfolder: ${X}/y\nx-note: "
      "[anything, 1]\n");
  INFO(text_of(all.findings));
  REQUIRE(all.findings.empty());
  CHECK(all.cart.name == "7");
  CHECK(all.cart.open);
  CHECK(all.cart.count == 64);
  CHECK(all.cart.weight == 0.25);
  CHECK(all.cart.colour == Colour::green);
  CHECK(all.cart.degree == 4U);
  CHECK(all.cart.grace == 90.0);
  REQUIRE(all.cart.wheels.size() == 2);
  CHECK(all.cart.wheels[0].memory == 65536);
  CHECK(all.cart.wheels[0].rate == 1e9);
  CHECK(all.cart.wheels[1].memory == 1'000'000'000);
  CHECK(all.cart.labels.at("a") == "b");
  CHECK(all.cart.folder == "${X}/y");
  const auto few = read("degree: auto\nwheels: {memory: 1B}\n");
  REQUIRE(few.findings.empty());
  CHECK_FALSE(few.cart.degree.has_value());
  CHECK(few.cart.wheels.size() == 1);
  CHECK(few.cart.count == 1);
  CHECK(few.cart.name == "cart");
}

TEST_CASE("yaml: documents, byte order marks, line ends and directives are read as YAML has them", "[base][yaml]") {
  Findings findings;
  CHECK(read_yaml("t", "a: 1\n---\nb: 2\n---\n---\nc: 3\n...\n", findings).size() == 3);
  const auto marked = read_yaml("t",
                                "\xEF\xBB\xBF"
                                "a: 1\r\nb: \"x\"\r\n",
                                findings);
  CHECK(findings.empty());
  REQUIRE(marked.size() == 1);
  CHECK(marked[0].find("a")->text == "1");
  CHECK(marked[0].find("b")->text == "x");
  CHECK(marked[0].find("b")->line == 2);
  CHECK(marked[0].find("b")->column == 4);
  const auto words =
      read_yaml("t", "a: |\n  two\n  lines\nb: >-\n  one\n  line\nc: 'it''s'\nd: \"\\u00e9\\n\"\n", findings);
  CHECK(findings.empty());
  CHECK(words[0].find("a")->text == "two\nlines\n");
  CHECK(words[0].find("b")->text == "one line");
  CHECK(words[0].find("c")->text == "it's");
  CHECK(words[0].find("d")->text == "\xC3\xA9\n");
}

TEST_CASE("yaml: a finding shows its place, even in long lines and behind wide letters", "[base][yaml]") {
  CHECK(read("name: x\nopen: yes\n").findings.at(0).text() ==
        "t.yaml:2:7: error: open should be true or false, not 'yes' [E111]\n"
        "    2 | open: yes\n"
        "      |       ^~~\n");
  CHECK(read("{name: \"\xC3\xA9\xC3\xA9\", open: no}\n").findings.at(0).text() ==
        "t.yaml:1:22: error: open should be true or false, not 'no' [E111]\n"
        "    1 | {name: \"\xC3\xA9\xC3\xA9\", open: no}\n"
        "      |                    ^~\n");
  const auto far = read("{name: \"" + std::string(5000, 'n') + "\", open: no}\n").findings.at(0).text();
  CHECK(far.size() < 400);
  CHECK(far.find("^~") != std::string::npos);
  const auto json = read("count: 13\n").findings.at(0).json();
  CHECK(
      json.dump() ==
      R"({"file":"t.yaml","line":1,"column":8,"end_column":10,"severity":"error","code":"E112","path":"count","message":"count should not be 13","hint":""})");
}

TEST_CASE("yaml: all findings of a document come in one run, in order of their place", "[base][yaml]") {
  const auto result = read("open: 1\ncount: 0\nwieght: 1\nwheels:\n  - {rate: 5}\ncolour: gren\n");
  std::string codes;
  for (const auto& finding : result.findings) codes += finding.code + " ";
  CHECK(result.findings.size() == 6);
  const auto text = text_of(result.findings);
  std::size_t last = 0;
  for (const auto* place : {"t.yaml:1:7", "t.yaml:2:8", "t.yaml:3:1", "t.yaml:5:5", "t.yaml:5:12", "t.yaml:6:9"}) {
    const auto at = text.find(place);
    CHECK(at != std::string::npos);
    CHECK(at >= last);
    last = at;
  }
  CHECK(text.find("(did you mean 'weight'?)") != std::string::npos);
  CHECK(text.find("(did you mean 'green'?)") != std::string::npos);
  CHECK(error_of(result.findings).message.ends_with(", and 5 more"));
}

TEST_CASE("yaml: variables are replaced in text only, once, and say what is missing", "[base][yaml]") {
  const auto environment = [](const std::string& name) -> std::optional<std::string> {
    if (name == "SET") return "value";
    if (name == "EMPTY") return "";
    if (name == "TRICK") return "${SET}";
    return std::nullopt;
  };
  const auto expanded = [&](const std::string& text) {
    const auto result = expand_variables(text, environment);
    return result.ok() ? result.value() : "error: " + result.error().text();
  };
  CHECK(expanded("a/${SET}/b") == "a/value/b");
  CHECK(expanded("${SET}${SET}") == "valuevalue");
  CHECK(expanded("${NONE:-other}") == "other");
  CHECK(expanded("${EMPTY:-other}") == "other");
  CHECK(expanded("${EMPTY}") == "");
  CHECK(expanded("${TRICK}") == "${SET}");
  CHECK(expanded("$SET $ {SET} $${SET}") == "$SET $ {SET} ${SET}");
  CHECK(expanded("${NONE}") == "error: needs the environment variable NONE (set it, or write ${NONE:-default})");
  CHECK(expanded("${NONE:?where the weights are}") ==
        "error: needs the environment variable NONE (where the weights are)");
  CHECK(expanded("${}") ==
        "error: has a malformed variable '${}' (write ${NAME}, ${NAME:-default} or ${NAME:?message})");
  CHECK(expanded("${A:+b}") ==
        "error: has a malformed variable '${A:+b}' (write ${NAME}, ${NAME:-default} or ${NAME:?message})");
  CHECK(expanded("${A") == "error: has a '${' without '}' (write ${NAME}, ${NAME:-default} or ${NAME:?message})");
  CHECK(read("name: ${SET}\n", {{"SET", "x"}}).cart.name == "x");
  CHECK(read("count: ${SET}\n", {{"SET", "2"}}).first().find("should be a whole number") != std::string::npos);
}

TEST_CASE("yaml: the nearest word is at most two edits away", "[base][yaml]") {
  const std::vector<std::string> words{"memory", "count", "type", "threads"};
  CHECK(nearest_word("memroy", words) == "memory");
  CHECK(nearest_word("coutn", words) == "count");
  CHECK(nearest_word("tpye", words) == "type");
  CHECK(nearest_word("thread", words) == "threads");
  CHECK(nearest_word("mem", words) == "");
  CHECK(nearest_word("x", words) == "");
  CHECK(nearest_word(std::string(100'000, 'm'), words) == "");
  CHECK(suggestion("colour", words) == "known: memory, count, type, threads");
  // Candidates may be names of a stranger's file.
  for (const std::string word : {"pcie5x16", "z"}) CHECK(suggestion(word, {"pcie5x\x1b" "6"}).find('\x1b') == std::string::npos);
}

TEST_CASE("yaml: a path sets a value, makes maps on the way, and is refused where it cannot go", "[base][yaml]") {
  Findings findings;
  auto document =
      read_yaml("t", "spec:\n  nodes:\n    - {count: 1}\n    - {count: 2}\n  name: x\n", findings).at(0);
  const auto set = [&](const std::string& path, const std::string& value) {
    const auto done = set_value(document, path, read_yaml_value("--set", value, findings));
    return done.ok() ? std::string() : done.error().message;
  };
  CHECK(set("spec.nodes[1].count", "7") == "");
  CHECK(document.nearest("spec.nodes[1].count").text == "7");
  CHECK(set("spec.parallelism.tensor", "4") == "");
  CHECK(document.nearest("spec.parallelism.tensor").text == "4");
  CHECK(set("spec.list", "[1, {a: b}]") == "");
  CHECK(document.nearest("spec.list[1].a").text == "b");
  CHECK(set("spec.nodes[2].count", "1") ==
        "cannot set 'spec.nodes[2].count': the list has 2 items; the first is [0]");
  CHECK(set("spec.name.more", "1") == "cannot set 'spec.name.more': 'more' would be a key of a single value");
  for (const auto* path : {"", ".", "a..b", "[0]x", "a[", "a[x]", "a[-1]", "a.[0]", "a]"}) {
    INFO(path);
    CHECK(set(path, "1") != "");
  }
  CHECK(findings.empty());
}

TEST_CASE("yaml: hostile texts end in findings, never in a crash", "[base][yaml]") {
  const auto repeated = [](const std::string& text, std::size_t times) {
    std::string all;
    for (std::size_t i = 0; i < times; ++i) all += text;
    return all;
  };
  for (const auto& text : {repeated("[", 200'000),
                           repeated("{a: ", 100'000),
                           repeated("- ", 100'000),
                           repeated("a:\n ", 1000),
                           repeated("? ", 50'000),
                           repeated("- a\n", 30'000),
                           repeated("---\na: b\n", 30'000),
                           std::string("\0", 1),
                           std::string("a: \"\\"),
                           std::string("%YAML 9.9\n---\na"),
                           std::string("%TAG ! tag:x,2000:\n---\n!a b"),
                           std::string("&"),
                           std::string("*"),
                           std::string("!"),
                           std::string("a: *b"),
                           std::string("<<: {a: b}"),
                           std::string("\t"),
                           std::string("? \n: \n"),
                           std::string("a: 'b\nc: d"),
                           repeated("\xF0\x9F\x98\x80", 100'000)}) {
    Findings findings;
    const auto documents = read_yaml("t", text, findings);
    CHECK((has_errors(findings) || documents.size() <= 1));
    CHECK(text_of(findings).size() < 10'000'000);
  }
  // Random bytes and random pieces of YAML.
  Random random(99);
  const std::vector<std::string> pieces{"a",     ": ", "\n", "  ",       "- ",   "[",    "]", "{", "}",
                                        "\"",    "'",  "#",  "&x ",      "*x",   "!t ",  "|", ">", "---\n",
                                        "...\n", "? ", ", ", "\xC3\xA9", "\x80", "<<: ", "%"};
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (auto n = random.below(40); n > 0; --n) text += pieces[random.below(pieces.size())];
    Findings findings;
    for (const auto& document : read_yaml("t", text, findings)) {
      Cart cart;
      YamlReader reader(findings, [](const std::string&) { return std::nullopt; });
      cart_schema().read(document, "", cart, reader);
    }
    for (const auto& finding : findings) {
      CHECK(!finding.code.empty());
      CHECK(finding.text().find('\0') == std::string::npos);
    }
  }
}

TEST_CASE("yaml: one declaration gives the JSON Schema and the reference page", "[base][yaml]") {
  const auto json = cart_schema().json_schema();
  CHECK(json["properties"]["count"].dump() ==
        R"({"type":"integer","minimum":1,"maximum":64,"description":"How many."})");
  CHECK(json["properties"]["colour"]["enum"].dump() == R"(["red","green"])");
  CHECK(json["properties"]["degree"]["anyOf"][0]["const"] == "auto");
  CHECK(json["properties"]["wheels"]["anyOf"][1]["items"]["required"][0] == "memory");
  CHECK(json["additionalProperties"] == false);
  const auto page = markdown_of(cart_schema().pages());
  CHECK(page.find("| `count` | whole number, 1 to 64 | 1 | How many. |") != std::string::npos);
  CHECK(page.find("| `name` | text, e.g. `truck` | cart | Its name. |") != std::string::npos);
  CHECK(page.find("| `memory` | bytes, e.g. `64GiB` | required | What it remembers. |") != std::string::npos);
}
