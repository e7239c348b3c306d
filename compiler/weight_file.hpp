// Safetensors: one file or several with an index, memory-mapped; and a writer.
//
//   u64 header length | JSON: name -> {"dtype", "shape", "data_offsets": [begin, end)} | data
//
// Nothing in a file is trusted: lengths, offsets (no gap, no overlap, inside the file), shape times dtype, names,
// dtypes and the index are checked when the file is opened; afterwards every tensor is a plain view. Opening costs
// the header only; pages come in as cards read them.

#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "base/result.hpp"
#include "base/tensor.hpp"
#include "cards/card.hpp"

namespace orrery::compiler {

/// The tensors of one safetensors file. Views live as long as this object. Threads: any.
class TensorFile {
public:
  /// Fails with not_found, io_failed or invalid_model, naming file, tensor and what to do.
  static Result<TensorFile> open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const MappedFile& file() const { return file_; }

private:
  MappedFile file_;
  std::map<std::string, TensorView> tensors_;
};

/// All weights of a component. Threads: any.
class WeightFiles final : public cards::WeightSource {
public:
  /// FOLDER/STEM.safetensors.index.json with its shards, else FOLDER/STEM.safetensors, for the stems
  /// "diffusion_pytorch_model" and "model".
  static Result<std::shared_ptr<const WeightFiles>> open_folder(const std::string& folder);
  static Result<std::shared_ptr<const WeightFiles>> open_file(const std::string& path);

  /// The same files and a small f32 tensor more, whose numbers stand elsewhere in the model folder (latents_mean of
  /// vae/config.json); kept in memory.
  std::shared_ptr<const WeightFiles> with_numbers(const std::string& name, std::span<const float> numbers) const;

  /// A tied table may be stored under either of its names: "shared.weight", "encoder.embed_tokens.weight".
  Result<TensorView> tensor(const std::string& name) const override;
  void release(std::span<const std::byte> part) const override;

  bool has(const std::string& name) const { return where_.contains(name); }
  std::vector<std::string> names() const;
  std::uint64_t bytes() const;  // Of all tensors.

private:
  std::string place_;  // Folder or file, for messages.
  std::vector<TensorFile> files_;
  std::map<std::string, std::size_t> where_;
  std::map<std::string, std::shared_ptr<const Tensor>> numbers_;
};

/// Writes a file whole or not at all; data starts 64-byte aligned. Fails with io_failed.
Status write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                         const std::map<std::string, std::string>& metadata = {});

}  // namespace orrery::compiler
