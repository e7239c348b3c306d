// Makes a model folder of any size with seeded random weights: for memory tests, load tests and demonstrations.
//
// The folder has the published layout; every tensor that the compiler asks of such a config is there, with values of
// a sensible size. Tensor values depend only on the seed and the tensor's name. Weights stream to disk: memory use
// stays at a few MiB, whatever the model's size.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/json.hpp"
#include "base/result.hpp"
#include "base/tensor.hpp"

namespace orrery::launch {

struct SynthOptions {
  std::string folder;             // Must not exist, or be empty.
  std::vector<std::string> like;  // "published-7b", "published-14b", "tiny", a model folder, or a component's config file.
  std::map<std::string, Json> transformer_keys, text_encoder_keys;  // Replace keys of the configs: "num_layers" -> 2.
  std::uint64_t seed = 0;
  DType dtype = DType::bf16;
  std::uint64_t shard_bytes = 5'000'000'000;  // Files are cut where they would grow larger.
};

struct SynthResult {
  std::uint64_t tensors = 0, bytes = 0, files = 0;
};

/// `progress` hears bytes written and their total, and says whether to go on. The folder appears under its name when
/// it is complete; otherwise nothing is left. Fails with usage, invalid_model (a config that is none), io_failed (also
/// when the disk is too small, before anything is written) or cancelled.
Result<SynthResult> synthesize_model(const SynthOptions& options, const std::function<bool(std::uint64_t done, std::uint64_t total)>& progress);

}  // namespace orrery::launch
