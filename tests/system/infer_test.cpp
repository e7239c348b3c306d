// `orrery infer -f`: a component over the cards of a cluster file gives the file that one card gives.

#include <catch2/catch.hpp>

#include "base/file.hpp"
#include "tests/support/command.hpp"
#include "tests/support/tensor_files.hpp"

using namespace orrery;
using namespace orrery::testing;

namespace {

struct Component {
  std::string folder, input, output;
  std::vector<std::string> tensors;
};
const Component transformer = {
    "transformer_tp8/transformer", "transformer_tp8/t8.in", "transformer_tp8/t8.out", {"sample"}};
const Component text_encoder = {"t5_encoder_long/text_encoder",
                                "t5_encoder_long/in",
                                "t5_encoder_long/out",
                                {"last_hidden_state", "prompt_embeds"}};
const Component codec = {"vae_cv8x8x8/vae", "vae_cv8x8x8/image1.in", "vae_cv8x8x8/image1.out", {"latent", "video"}};

CommandResult infer(const ScratchFolder& scratch, const Component& component, const std::string& outputs,
                    const std::vector<std::string>& more) {
  std::vector<std::string> command = {ORRERY_BINARY, "-v",
                                      "infer",       golden(component.folder),
                                      "--inputs",    golden(component.input + ".safetensors"),
                                      "--outputs",   scratch.file(outputs)};
  command.insert(command.end(), more.begin(), more.end());
  return run_command(scratch, command);
}

std::string bytes_of(const std::string& path) {
  const auto file = MappedFile::open(path);
  REQUIRE(file.ok());
  const auto bytes = file.value().bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Cards that took part, by the report of -v.
std::size_t cards_in(const std::string& text) {
  std::size_t count = 0;
  for (auto at = text.find(": slices "); at != std::string::npos; at = text.find(": slices ", at + 1)) ++count;
  return count;
}

void check_same(const Component& component, std::size_t cards, const std::vector<std::string>& flags) {
  ScratchFolder scratch;
  const auto one = infer(scratch, component, "one.safetensors", {});
  INFO(one.err);
  REQUIRE(one.exit_code == 0);
  const auto many = infer(scratch, component, "many.safetensors", flags);
  INFO(many.err);
  REQUIRE(many.exit_code == 0);
  CHECK(cards_in(many.err) == cards);
  CHECK(bytes_of(scratch.file("one.safetensors")) == bytes_of(scratch.file("many.safetensors")));
  const auto got = tensors_of(scratch.file("many.safetensors"));
  const auto expected = tensors_of(golden(component.output + ".safetensors"));
  for (const auto& name : component.tensors) {
    INFO(name);
    REQUIRE(got.contains(name));
    CHECK(got.at(name).shape() == expected.at(name).shape());
    CHECK(worst_ratio(got.at(name).as<float>(), expected.at(name).as<float>(), 3e-5) <= 1.0);
  }
  CHECK(scratch.leftovers().empty());
}

void check_refused(const std::vector<std::string>& flags, int exit_code, const std::string& says,
                   const Component& component = transformer) {
  ScratchFolder scratch;
  const auto result = infer(scratch, component, "out.safetensors", flags);
  INFO(says << "\n" << result.err);
  CHECK(result.exit_code == exit_code);
  CHECK(result.err.find(says) != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(scratch.file("out.safetensors")));
  CHECK(scratch.leftovers().empty());
}

}  // namespace

TEST_CASE("infer: the transformer on two nodes writes the file that one card writes", "[system]") {
  const std::vector<std::string> two_nodes = {"-f", "clusters/two_nodes.yaml"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), two_nodes.begin(), two_nodes.end());
    return more;
  };
  check_same(transformer, 4, two_nodes);
  check_same(transformer, 4, with({"--set", "data.transport=tcp"}));
  check_same(transformer, 4, with({"--set", "data.transport=ipc"}));
  check_same(transformer, 3, {"-f", "deployments/tensor.yaml", "--set", "parallelism.tensor=3"});
  check_same(transformer, 4, {"-f", "deployments/sequence.yaml"});
  check_same(transformer, 4, {"-f", "deployments/uneven.yaml"});
  check_same(transformer, 2, {"-f", "deployments/cfg.yaml"});
  check_same(transformer, 2,
             {"-f", "clusters/laptop.yaml", "-f", "models/cosmos-predict1-7b.yaml"});  // Another's model file.
}

TEST_CASE("infer: what cannot be shared out runs on one card of the cluster", "[system]") {
  check_same(text_encoder, 1, {"-f", "clusters/two_nodes.yaml"});
  check_same(codec, 1, {"-f", "clusters/two_nodes.yaml", "--set", "data.transport=ipc"});
}

TEST_CASE("infer: an interrupt ends a run on a cluster, and nothing is left", "[system]") {
  ScratchFolder scratch;
  // A batch that would take the best part of a minute.
  auto inputs = tensors_of(golden(transformer.input + ".safetensors"));
  std::map<std::string, TensorView> views;
  for (auto& [name, tensor] : inputs) {
    auto shape = tensor.shape();
    if (name == "hidden_states" || name == "timestep" || name == "encoder_hidden_states") {
      shape[0] = 5'000;
      Tensor batch(tensor.dtype(), shape);
      for (std::uint64_t item = 0; item < shape[0]; ++item)
        std::memcpy(batch.data() + item * tensor.bytes(), tensor.data(), tensor.bytes());
      tensor = std::move(batch);
    }
    views[name] = tensor.view();
  }
  REQUIRE(compiler::write_safetensors(scratch.file("in.safetensors"), views).ok());
  bool sent = false;
  const auto result = run_command(
      scratch,
      {ORRERY_BINARY, "infer", golden(transformer.folder), "--inputs", scratch.file("in.safetensors"), "--outputs",
       scratch.file("out.safetensors"), "-f", "clusters/two_nodes.yaml", "--set", "data.transport=ipc"},
      std::chrono::minutes(3), [&](int pid, const std::string&, const std::string&) {
        // Its sockets are there, so it is at work.
        if (!sent && !scratch.leftovers().empty()) sent = ::kill(pid, SIGINT) == 0;
      });
  INFO(result.err);
  CHECK(sent);
  CHECK(result.exit_code == 130);
  CHECK(scratch.leftovers().empty());
  CHECK_FALSE(std::filesystem::exists(scratch.file("out.safetensors")));
}

TEST_CASE("infer: clusters and flags that do not go together are refused in clear words", "[system]") {
  check_refused({"-f", "deployments/tensor.yaml", "--set", "parallelism.tensor=9"}, 4,
                "parallelism.tensor=9 is more than the 8 slices");
  check_refused({"-f", "deployments/tensor.yaml", "--set", "parallelism.tensor=5"}, 4,
                "needs 5 cards, and 4 are usable");
  check_refused({"-f", "deployments/tensor.yaml"}, 4, "is more than the 1 slices", text_encoder);
  check_refused({"-f", "clusters/rack_of_atom_max.yaml"}, 3, "this machine has only the profile");
  ScratchFolder files;
  const auto small =
      files.write("small.yaml",
                  "apiVersion: orrery/v1\nkind: Cluster\nmetadata: {name: small}\nspec:\n  nodes:\n"
                  "    - {hosts: big, cards: {type: cpu}}\n    - {hosts: small, cards: {type: cpu, memory: 1MiB}}\n"
                  "  data: {transport: ipc}\n");
  check_refused({"-f", small}, 4, "small:0");
  check_refused({"-f", "clusters/two_nodes.yaml", "--memory", "1GiB"}, 2, "--threads and --memory are for one card");
  check_refused({"-f", "clusters/two_nodes.yaml", "--deployment", "other"}, 3, "no Deployment 'other'");
  check_refused({"-f", "clusters/nowhere.yaml"}, 3, "nowhere.yaml");
  check_refused({"--set", "parallelism.tensor=2"}, 2, "name some with -f");
}
