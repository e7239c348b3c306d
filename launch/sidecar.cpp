#include "launch/sidecar.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <vector>

#include "base/digest.hpp"
#include "base/file.hpp"
#include "base/json.hpp"
#include "launch/version.hpp"

namespace orrery::launch {

namespace {

std::string now_text() {
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace

Result<std::string> model_identity(const std::string& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (const char* part : {"", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"})
    for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(folder) / part, error))
      if (entry.is_regular_file(error)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  Sha256 digest;
  const auto add = [&](std::string_view text) { digest.update(std::as_bytes(std::span(text))); };
  for (const auto& path : files) {
    const auto extension = path.extension().string();
    if (extension != ".json" && extension != ".model" && extension != ".safetensors") continue;
    ORRERY_TRY(file, MappedFile::open(path.string()));
    auto bytes = file.bytes();
    if (extension == ".safetensors" && bytes.size() >= 8) {
      std::uint64_t header = 0;
      std::memcpy(&header, bytes.data(), 8);
      bytes = bytes.first(static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), 8 + std::min<std::uint64_t>(header, bytes.size()))));
    }
    add(std::filesystem::relative(path, folder, error).string() + "\n");
    digest.update(bytes);
  }
  return digest.finish();
}

Result<std::string> write_sidecar(const SidecarFacts& facts) {
  const auto& spec = facts.spec;
  OrderedJson json;
  json["orrery"] = version_line();
  json["created"] = now_text();
  json["video"] = std::filesystem::path(facts.video.path).filename().string();
  json["frames_sha256"] = facts.video.frames_sha256;
  json["frames"] = facts.video.frames;
  if (!facts.id.empty()) json["request"] = facts.id;
  auto& made = json["made_from"];
  made["prompt"] = spec.prompt;
  made["negative_prompt"] = spec.negative_prompt;
  made["seed"] = spec.seed;
  if (!facts.noise_file.empty()) made["noise_file"] = facts.noise_file;
  made["width"] = spec.width;
  made["height"] = spec.height;
  made["num_frames"] = spec.frames;
  made["fps"] = spec.fps;
  made["num_inference_steps"] = spec.steps;
  made["guidance_scale"] = spec.guidance;
  made["max_text_tokens"] = spec.max_text_tokens;
  made["model"] = facts.facts.model;
  made["model_folder"] = facts.facts.model_folder;
  // The client may run where the folder is not.
  if (auto identity = model_identity(facts.facts.model_folder); identity.ok()) made["model_sha256"] = identity.value();
  made["dtype"] = facts.facts.dtype;
  made["numerics"] = facts.facts.numerics;
  auto plan = OrderedJson::parse(facts.facts.plan, nullptr, false);
  if (plan.is_object() && plan.contains("stages"))
    for (const auto& stage : plan["stages"])
      if (stage.contains("kind") && stage.contains("slices")) made["slices"][stage["kind"].get<std::string>()] = stage["slices"];
  auto& ran = json["ran_on"];
  ran["cluster"] = facts.facts.cluster;
  char digest[32];
  std::snprintf(digest, sizeof digest, "%016llx", static_cast<unsigned long long>(facts.facts.plan_digest));
  ran["plan_digest"] = digest;
  if (plan.is_object() && plan.contains("cards")) ran["cards"] = plan["cards"].size();
  ran["seconds"] = facts.seconds;
  auto account = OrderedJson::parse(facts.account, nullptr, false);
  if (account.is_object() && account.contains("stages") && account["stages"].is_object()) {
    ran["stages"] = account["stages"];
    // Adding to `json` moves what it holds: `made` and `ran` are not to be used any more.
    OrderedJson guardrails;
    for (const char* guardrail : {"text_guardrail", "video_guardrail"})
      if (account["stages"].contains(guardrail)) guardrails[guardrail] = account["stages"][guardrail];
    if (!guardrails.empty()) json["guardrails"] = std::move(guardrails);
  }
  auto path = facts.video.path;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  path += ".json";
  ORRERY_TRY(file, AtomicFile::create(path));
  ORRERY_TRY_DONE(file.write(json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n"));
  ORRERY_TRY_DONE(file.commit());
  return path;
}

}  // namespace orrery::launch
