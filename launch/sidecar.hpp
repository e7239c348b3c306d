// OUTPUT.json beside every video: what it was made from, how, where, and its digest.
//
// The provenance that decides the bytes (model, prompt, seed, size, steps, guidance, dtype, slices, numerics class) and
// what does not (cluster, plan, timings) stand in separate objects.

#pragma once

#include <string>

#include "actors/client.hpp"
#include "base/result.hpp"
#include "launch/video_sink.hpp"

namespace orrery::launch {

struct SidecarFacts {
  std::string id;          // Of the request.
  actors::RequestSpec spec;
  actors::ClusterFacts facts;
  std::string account;     // JSON of the coordinator: seconds, stages with their verdicts and times.
  VideoResult video;
  std::string noise_file;  // Empty: noise from the seed.
  double seconds = 0;      // From submission to the finished file.
};

/// Writes VIDEO.json (for a folder: FOLDER.json beside it) and returns its path. Reads the model folder's small files,
/// and the headers of its weight files, to identify the model; data of many gigabytes are not digested.
Result<std::string> write_sidecar(const SidecarFacts& facts);

/// One digest for a model folder: SHA-256 over names and contents of its JSON and tokenizer files and over the headers
/// of its safetensors files, in name order.
Result<std::string> model_identity(const std::string& folder);

}  // namespace orrery::launch
