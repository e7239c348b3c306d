// Bad input of every kind through the program: one clear sentence, the right exit code, nothing left behind, no hang.

#include <catch2/catch.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "tests/support/program.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

constexpr auto soon = std::chrono::seconds(60);

/// A copy of the shipped miniature that may be damaged.
std::string copied_model(const ScratchFolder& scratch) {
  const auto folder = scratch.file("model");
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  for (const auto& entry : std::filesystem::directory_iterator(configs + "/models/cosmos-tiny"))
    if (entry.path().filename() != "train")
      std::filesystem::copy(entry.path(), std::filesystem::path(folder) / entry.path().filename(), std::filesystem::copy_options::recursive);
  return folder;
}

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void write_all(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes; }

/// Changes the JSON header of a safetensors file.
void edit_header(const std::string& path, const std::function<void(OrderedJson&)>& change) {
  const auto bytes = read_all(path);
  std::uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof size);
  const auto data = bytes.substr(8 + size);
  auto json = OrderedJson::parse(bytes.substr(8, size));
  change(json);
  auto header = json.dump();
  header.resize((header.size() + 7) / 8 * 8, ' ');
  size = header.size();
  write_all(path, std::string(reinterpret_cast<const char*>(&size), sizeof size) + header + data);
}

void edit_json(const std::string& path, const std::function<void(OrderedJson&)>& change) {
  auto json = OrderedJson::parse(read_all(path));
  change(json);
  write_all(path, json.dump());
}

CommandResult generate_with(const ScratchFolder& scratch, const std::string& prompt, const std::vector<std::string>& more,
                            const std::vector<std::string>& environment = {}) {
  return run_command(scratch, generate(prompt, scratch.file("v.y4m"), more), soon, {}, environment);
}

void check_nothing_made(const ScratchFolder& scratch) {
  CHECK(files_like(scratch, "v.").empty());
  check_clean(scratch);
}

/// A server on a free port of this machine; `talk` is called for each connection, which stays open until the end.
class Server {
public:
  explicit Server(std::function<void(int)> talk) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    REQUIRE(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) == 0);
    REQUIRE(::listen(listener_, 16) == 0);
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this, talk = std::move(talk)] {
      for (;;) {
        const int connection = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
        if (connection < 0) return;
        connections_.push_back(connection);
        talk(connection);
      }
    });
  }
  ~Server() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
    for (const int connection : connections_) ::close(connection);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

private:
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::vector<int> connections_;
  std::thread thread_;
};

}  // namespace

TEST_CASE("bad model folder: each kind of damage is named, exit code 3", "[system][bad_input]") {
  struct Damage {
    std::string name;
    std::function<void(const std::string& folder)> change;
    std::vector<std::string> words;
  };
  const std::string weights = "/transformer/diffusion_pytorch_model.safetensors";
  const auto header = [&](const std::function<void(OrderedJson&)>& change) {
    return [=](const std::string& folder) { edit_header(folder + weights, change); };
  };
  const std::vector<Damage> damages = {
      {"missing folder", [](const std::string& f) { std::filesystem::remove_all(f); }, {"model is not a folder"}},
      {"not a model", [](const std::string& f) { std::filesystem::remove_all(f); std::filesystem::create_directory(f); }, {"model_index.json"}},
      {"index is no JSON", [](const std::string& f) { write_all(f + "/model_index.json", "{ x"); }, {"model_index.json:1", "not valid JSON"}},
      {"unsupported class", [](const std::string& f) { edit_json(f + "/model_index.json", [](OrderedJson& j) { j["transformer"][1] = "FluxTransformer2DModel"; }); },
       {"FluxTransformer2DModel", "CosmosTransformer3DModel"}},
      {"no decoder", [](const std::string& f) { std::filesystem::remove_all(f + "/vae"); }, {"not a whole model", "vae"}},
      {"no tokenizer", [](const std::string& f) { std::filesystem::remove_all(f + "/tokenizer"); }, {"no tokenizer/"}},
      {"damaged tokenizer", [](const std::string& f) { write_all(f + "/tokenizer/spiece.model", "garbage"); }, {"spiece.model"}},
      {"no config", [](const std::string& f) { std::filesystem::remove(f + "/transformer/config.json"); }, {"transformer/config.json"}},
      {"absurd config", [](const std::string& f) { edit_json(f + "/transformer/config.json", [](OrderedJson& j) { j["num_layers"] = 400'000'000; }); },
       {"num_layers", "400000000"}},
      {"no weights", [&](const std::string& f) { std::filesystem::remove(f + weights); }, {"transformer has no weights"}},
      {"truncated", [&](const std::string& f) { std::filesystem::resize_file(f + weights, std::filesystem::file_size(f + weights) - 1000); }, {"cut short"}},
      {"five bytes", [&](const std::string& f) { std::filesystem::resize_file(f + weights, 5); }, {"5 bytes long"}},
      {"header longer than the file",
       [&](const std::string& f) { auto bytes = read_all(f + weights); bytes.resize(4096); const std::uint64_t size = 99'999'999; std::memcpy(bytes.data(), &size, 8); write_all(f + weights, bytes); },
       {"diffusion_pytorch_model.safetensors", "99999999"}},
      {"overlap", header([](OrderedJson& j) { const auto begin = j["proj_out.weight"]["data_offsets"][0].get<std::uint64_t>();
                                              const auto size = j["proj_out.weight"]["data_offsets"][1].get<std::uint64_t>() - begin;
                                              j["proj_out.weight"]["data_offsets"] = {begin - 4, begin - 4 + size}; }),
       {"overlaps"}},
      {"missing tensor", header([](OrderedJson& j) { j["renamed"] = j["proj_out.weight"]; j.erase("proj_out.weight"); }), {"'proj_out.weight' is missing"}},
      {"wrong shape", header([](OrderedJson& j) { auto& shape = j["proj_out.weight"]["shape"]; std::swap(shape[0], shape[1]); }), {"proj_out.weight", "shape"}},
      {"wrong type", header([](OrderedJson& j) { j["proj_out.weight"]["dtype"] = "I32"; }), {"proj_out.weight", "i32"}},
  };
  for (const auto& damage : damages) {
    ScratchFolder scratch;
    const auto folder = copied_model(scratch);
    damage.change(folder);
    INFO(damage.name);
    check_refused(generate_with(scratch, "x", {"-f", configs + "/clusters/two_nodes.yaml", "--model", folder}), 3, damage.words);
    check_nothing_made(scratch);
  }
}

TEST_CASE("bad numbers: refused before anything starts, exit code 2", "[system][bad_input]") {
  const std::vector<std::pair<std::vector<std::string>, std::vector<std::string>>> cases = {
      {{"--size", "60x64"}, {"--size", "60x64"}},
      {{"--size", "64x0"}, {"--size"}},
      {{"--size", "banana"}, {"banana", "WIDTHxHEIGHT"}},
      {{"--size", "-64x64"}, {"--size"}},
      {{"--size", "4096x4096"}, {"max_size"}},
      {{"--frames", "10"}, {"10 frames", "multiple of 8, plus 1"}},
      {{"--frames", "0"}, {"0 frames"}},
      {{"--frames", "-1"}, {"-1", "--frames"}},
      {{"--frames", "4000000001"}, {"500000001"}},
      {{"--steps", "0"}, {"steps 0", "1 to 10000"}},
      {{"--steps", "-3"}, {"-3", "--steps"}},
      {{"--steps", "99999999999"}, {"99999999999", "--steps"}},
      {{"--guidance", "nan"}, {"guidance"}},
      {{"--guidance", "inf"}, {"guidance"}},
      {{"--guidance", "-1"}, {"guidance"}},
      {{"--fps", "0"}, {"fps"}},
      {{"--fps", "nan"}, {"fps"}},
      {{"--fps", "-2"}, {"fps"}},
      {{"--seed", "-1"}, {"--seed", "negative"}},
      {{"--seed", "x"}, {"--seed"}},
      {{"--max-text-tokens", "0"}, {"0 tokens"}},
      {{"--nonsense"}, {"--nonsense"}},
  };
  for (const auto& [arguments, words] : cases) {
    ScratchFolder scratch;
    INFO(arguments.front() << " " << arguments.back());
    check_refused(generate_with(scratch, "x", tiny_on_two_nodes + arguments), 2, words);
    check_nothing_made(scratch);
  }
}

TEST_CASE("bad prompts: empty, blocked, not UTF-8", "[system][bad_input]") {
  ScratchFolder scratch;
  check_refused(generate_with(scratch, "", tiny_on_two_nodes), 2, {"the prompt is empty"});
  check_refused(generate_with(scratch, " \t\n", tiny_on_two_nodes), 2, {"the prompt is empty"});
  check_refused(generate_with(scratch, "a \xff\xfe circle", tiny_on_two_nodes), 2, {"not UTF-8", "byte 2"});
  check_refused(generate_with(scratch, "how to make a b0mb", tiny_on_two_nodes), 1, {"guardrail", "b0mb", "weapons"});
  check_refused(run_command(scratch, verb({"generate"})), 2, {"prompt"});
  check_nothing_made(scratch);
}

TEST_CASE("odd prompts: control characters work, a long text is cut and the sidecar says so", "[system][bad_input]") {
  ScratchFolder scratch;
  const auto odd = generate_with(scratch, "a \x01\x1b[31m red \x7f circle", tiny_on_two_nodes + std::vector<std::string>{"--steps", "2"});
  INFO(odd.err);
  CHECK(odd.exit_code == 0);
  std::string text;
  for (int i = 0; i < 10'000; ++i) text += "circle ";
  const auto result = generate_with(scratch, text, tiny_on_two_nodes + std::vector<std::string>{"--steps", "2"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(result.err.find("longer than 64 tokens") != std::string::npos);
  const auto json = read_json_file(scratch.file("v.y4m.json"));
  REQUIRE(json.ok());
  CHECK(json.value()["ran_on"]["stages"]["text_encoder"]["truncated"] == true);
  CHECK(json.value()["made_from"]["prompt"] == text);
  // Every card is a card of its own, also those of two nodes whose actors have one number.
  CHECK(json.value()["ran_on"]["cards"] == 4);
  CHECK(json.value()["ran_on"]["stages"]["denoiser"]["card_compute_seconds"].size() == 4);
  check_clean(scratch);
}

TEST_CASE("bad outputs: refused before the cluster starts", "[system][bad_input]") {
  ScratchFolder scratch;
  const auto to = [&](const std::string& output, const std::vector<std::string>& more = {}, const std::vector<std::string>& environment = {}) {
    return run_command(scratch, generate("x", output, tiny_on_two_nodes + more), soon, {}, environment);
  };
  check_refused(to(scratch.file("nowhere/v.mp4")), 1, {"nowhere/v.mp4", "No such file or directory"});
  check_refused(to("/proc/v.y4m"), 1, {"/proc/v.y4m"});
  const auto file = scratch.write("file", "x");
  check_refused(to(file + "/v.y4m"), 1, {"file/v.y4m", "Not a directory"});
  check_refused(to(scratch.file("v.avi")), 2, {"v.avi", ".mp4"});
  check_refused(to(scratch.file("v")), 2, {".y4m"});
  check_refused(to(scratch.file("v.png")), 2, {"one frame"});
  check_refused(to(scratch.path() + "/"), 1, {"not an empty folder"});
  check_refused(to(scratch.file("v.y4m"), {"--save-tensors", scratch.file("nowhere/t.safetensors")}), 1, {"nowhere/t.safetensors"});
  check_refused(to(scratch.file("v.mp4"), {}, {"PATH=/nonexistent"}), 1, {"ffmpeg", ".y4m"});
  check_nothing_made(scratch);
  const auto without = to(scratch.file("v.y4m"), {"--steps", "1"}, {"PATH=/nonexistent"});
  INFO(without.err);
  CHECK(without.exit_code == 0);
  check_clean(scratch);
}

TEST_CASE("bad noise: missing, damaged, another tensor, another shape; never a hang", "[system][bad_input]") {
  ScratchFolder scratch;
  const auto path = scratch.file("noise.safetensors");
  const auto with = [&](const std::vector<std::string>& more = {}) {
    return generate_with(scratch, "x", tiny_on_two_nodes + std::vector<std::string>{"--steps", "1", "--noise", path} + more);
  };
  const auto write = [&](const std::string& name, const std::string& dtype, const std::vector<std::uint64_t>& shape) {
    std::uint64_t bytes = dtype == "F32" ? 4 : 2;
    for (const auto size : shape) bytes *= size;
    OrderedJson header;
    header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {0, bytes}}};
    auto text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const std::uint64_t size = text.size();
    write_all(path, std::string(reinterpret_cast<const char*>(&size), sizeof size) + text + std::string(bytes, '\0'));
  };
  check_refused(with(), 1, {"noise.safetensors", "No such file"});
  write_all(path, "garbage that is no tensor file");
  check_refused(with(), 2, {"noise.safetensors"});
  write("other", "F32", {1, 16, 2, 8, 8});
  check_refused(with(), 2, {"no tensor 'noise'"});
  write("noise", "BF16", {1, 16, 2, 8, 8});
  check_refused(with(), 2, {"bf16"});
  write("noise", "F32", {2, 16, 2, 8, 8});
  check_refused(with(), 2, {"[1,C,T,H,W]"});
  write("noise", "F32", {1, 16, 2, 4, 8});
  check_refused(with(), 2, {"[16, 2, 4, 8]", "[16, 2, 8, 8]"});
  check_nothing_made(scratch);

  // The coordinator checks too: a client need not be ours.
  REQUIRE(run_command(scratch, verb({"up", "-d"}) + tiny_on_two_nodes, soon).exit_code == 0);
  const auto refused = run_command(scratch, generate("x", scratch.file("v.y4m"), {"--connect", "two_nodes", "--noise", path}), soon);
  CHECK(run_command(scratch, verb({"down"}), soon).exit_code == 0);
  check_refused(refused, 2, {"[16, 2, 4, 8]", "[16, 2, 8, 8]"});
  CHECK(all_gone(scratch));
}

TEST_CASE("bad addresses: closed, silent and foreign ports end quickly", "[system][bad_input]") {
  ScratchFolder scratch;
  const auto at = [&](const std::string& address) {
    return run_command(scratch, generate("x", scratch.file("v.y4m"), {"--connect", address}), std::chrono::seconds(20));
  };
  check_refused(at("127.0.0.1:1"), 5, {"127.0.0.1:1", "Connection refused"});
  check_refused(at("127.0.0.1:99999"), 2, {"127.0.0.1:99999", "not an address"});
  check_refused(at("no.such.host.invalid:7700"), 5, {"no.such.host.invalid:7700"});
  check_refused(at("nobody"), 5, {"nobody"});
  {
    Server silent([](int) {});
    check_refused(at(silent.address()), 6, {silent.address(), "says nothing"});
    check_refused(run_command(scratch, verb({"status", silent.address()}), std::chrono::seconds(20)), 6, {silent.address()});
    check_refused(generate_with(scratch, "x", tiny_on_two_nodes + std::vector<std::string>{"--set", "spec.control.listen=" + silent.address()}), 5,
                  {silent.address()});
  }
  {
    Server web([](int connection) {
      const std::string text(5000, 'H');
      [[maybe_unused]] const auto sent = ::send(connection, text.data(), text.size(), MSG_NOSIGNAL);
    });
    check_refused(at(web.address()), 5, {web.address()});
  }
  {
    Server rude([](int connection) { ::shutdown(connection, SHUT_RDWR); });
    check_refused(at(rude.address()), 5, {rude.address()});
  }
  check_nothing_made(scratch);
}

TEST_CASE("a node that never comes is named", "[system][bad_input]") {
  ScratchFolder scratch;
  const auto cluster = scratch.write("cluster.yaml",
                                     "apiVersion: orrery/v1\nkind: Cluster\nmetadata: {name: c}\nspec:\n  nodes: [{hosts: 'n[1-2]', cards: {type: cpu}}]\n"
                                     "  launch: {via: ssh, program: 'false', ready_timeout: 2s}\n");
  // What stands for ssh: it finds no host; it runs the program here; it never comes back.
  const auto with_ssh = [&](const std::string& script) {
    const auto ssh = scratch.write("bin/ssh", "#!/bin/sh\n" + script + "\n");
    std::filesystem::permissions(ssh, std::filesystem::perms::owner_all);
    return generate_with(scratch, "x", {"-f", cluster, "-f", configs + "/models/cosmos-tiny.yaml"},
                         {"PATH=" + scratch.file("bin") + ":" + std::getenv("PATH")});
  };
  check_refused(with_ssh("echo \"ssh: Could not resolve hostname n1\" >&2; exit 255"), 1, {"node n", "255", "Could not resolve"});
  check_refused(with_ssh("for command; do :; done; eval \"exec $command\""), 1, {"node n", "exit code 1"});
  check_refused(with_ssh("exec sleep 100"), 6, {"nodes n1, n2 did not come up within 2 s"});
  check_nothing_made(scratch);
}

TEST_CASE("strange nodes: a wrong cluster number and an unknown name are refused, the cluster goes on", "[system][bad_input]") {
  ScratchFolder scratch;
  REQUIRE(run_command(scratch, verb({"up", "-d"}) + tiny_on_two_nodes, soon).exit_code == 0);
  const auto status = run_command(scratch, verb({"status", "-o", "json"}), soon);
  INFO(status.err);
  REQUIRE(status.exit_code == 0);
  const auto json = parse_json(status.out, "status");
  REQUIRE(json.ok());
  CHECK(json.value()["phase"] == "ready");
  CHECK(json.value()["nodes"].size() == 2);
  const auto registered = read_json_file(scratch.file("state/orrery/two_nodes.json"));
  REQUIRE(registered.ok());
  const auto address = registered.value()["address"].get<std::string>();
  const auto node = [&](const std::string& name, const std::string& id) {
    return run_command(scratch, verb({"node", "--name", name, "--coordinator", address, "--cluster-id", id, "--peer", "1", "--join-timeout", "5"}), soon);
  };
  check_refused(node("n1", "12345"), 1, {"node n1", "another cluster"});
  check_refused(node("stranger", "12345"), 1, {"stranger"});
  const auto result = run_command(scratch, generate("x", scratch.file("v.y4m"), {"--connect", address, "--steps", "2"}), soon);
  INFO(result.err);
  CHECK(result.exit_code == 0);
  CHECK(run_command(scratch, verb({"down"}), soon).exit_code == 0);
  CHECK(all_gone(scratch));
}

TEST_CASE("up, status, generate, down: the life of a cluster in the background", "[system][bad_input]") {
  ScratchFolder scratch;
  check_refused(run_command(scratch, verb({"down"})), 5, {"no cluster is running"});
  check_refused(run_command(scratch, verb({"status"})), 5, {"no cluster is running"});
  const auto up = run_command(scratch, verb({"up", "-d"}) + tiny_on_two_nodes, soon);
  INFO(up.err);
  REQUIRE(up.exit_code == 0);
  CHECK(up.out.find("cluster two_nodes is up at 127.0.0.1:") != std::string::npos);
  check_refused(run_command(scratch, verb({"up", "-d"}) + tiny_on_two_nodes, soon), 3, {"'two_nodes' runs already"});
  check_refused(run_command(scratch, verb({"up"}) + tiny_on_two_nodes, soon), 3, {"'two_nodes' runs already"});
  const auto table = run_command(scratch, verb({"status"}), soon);
  CHECK(table.exit_code == 0);
  CHECK(table.err.empty());
  CHECK(table.out.find("n1") != std::string::npos);
  CHECK(table.out.find("n2") != std::string::npos);

  // What the running cluster cannot do is refused, not passed over.
  const std::vector<std::vector<std::string>> not_here = {{"--dtype", "float32"}, {"--quantisation", "int8"}, {"--set", "spec.dtype=float32"},
                                                          {"--deployment", "other"}, {"--allow-faults"}};
  for (const auto& words : not_here) {
    check_refused(run_command(scratch, generate("x", scratch.file("v.y4m"), words), soon), 2, {words[0], "runs already"});
    check_refused(run_command(scratch, generate("x", scratch.file("v.y4m"), words + std::vector<std::string>{"--connect", "two_nodes"}), soon), 2, {words[0]});
  }

  // Two at once, and one alone: the same bytes.
  const std::vector<std::string> here = {"--connect", "two_nodes"};
  CommandResult first, second;
  std::thread other([&] { second = run_command(scratch, generate("a red circle", scratch.file("b.y4m"), here), soon); });
  first = run_command(scratch, generate("a red circle", scratch.file("a.y4m"), here), soon);
  other.join();
  INFO(first.err << second.err);
  REQUIRE(first.exit_code == 0);
  REQUIRE(second.exit_code == 0);
  REQUIRE(run_command(scratch, generate("a red circle", scratch.file("c.y4m"), {}), soon).exit_code == 0);  // The only one that runs.
  CHECK(frames_digest(scratch.file("a.y4m")) == frames_digest(scratch.file("c.y4m")));
  CHECK(frames_digest(scratch.file("b.y4m")) == frames_digest(scratch.file("c.y4m")));

  const auto down = run_command(scratch, verb({"down", "two_nodes"}), soon);
  CHECK(down.exit_code == 0);
  CHECK(all_gone(scratch));
  check_refused(run_command(scratch, verb({"down", "two_nodes"})), 5, {"two_nodes"});
  CHECK(files_like(scratch, "a.y4m").size() == 2);
}

TEST_CASE("help: every verb explains itself on stdout", "[system][bad_input]") {
  ScratchFolder scratch;
  for (const std::string name : {"check", "plan", "up", "down", "status", "generate", "infer", "synth", "schema", "node", "coordinator", "cancel", "version"}) {
    const auto result = run_command(scratch, verb({name, "--help"}));
    INFO(name);
    CHECK(result.exit_code == 0);
    CHECK(result.err.empty());
    CHECK(result.out.find("Usage") != std::string::npos);
    CHECK(result.out.find("orrery " + name) != std::string::npos);
  }
  check_refused(run_command(scratch, verb({"genrate", "x"})), 2, {"genrate", "generate"});
  const auto nothing = run_command(scratch, verb({}));
  CHECK(nothing.exit_code == 2);
  CHECK(nothing.out.empty());
}
