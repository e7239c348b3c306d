#include "compiler/weight_file.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/json.hpp"

namespace orrery::compiler {

namespace {

constexpr std::uint64_t header_bytes_max = 100'000'000;

struct DTypeName {
  const char* name;
  DType dtype;
};
constexpr DTypeName dtype_names[] = {
    {"F64", DType::f64}, {"F32", DType::f32}, {"F16", DType::f16},     {"BF16", DType::bf16}, {"I64", DType::i64},
    {"I32", DType::i32}, {"I16", DType::i16}, {"I8", DType::i8},       {"U64", DType::u64},   {"U32", DType::u32},
    {"U16", DType::u16}, {"U8", DType::u8},   {"BOOL", DType::boolean}};

const char* name_in_file(DType dtype) {
  for (const auto& entry : dtype_names)
    if (entry.dtype == dtype) return entry.name;
  return "F32";
}

/// Names of strangers in one line of a message.
std::string shown_name(const std::string& name) {
  std::string text;
  for (const char c : name.substr(0, 100)) text += c >= 0x20 && c < 0x7f ? c : '?';
  return text;
}

constexpr const char* download_hint = "download the file again";

}  // namespace

Result<TensorFile> TensorFile::open(const std::string& path) {
  ORRERY_TRY(file, MappedFile::open(path));
  const auto bad = [&](const std::string& what, const char* hint = download_hint) {
    return Error{ErrorCode::invalid_model, path + ": " + what, hint};
  };
  const auto bytes = file.bytes();
  if (bytes.size() < 8)
    return bad("is " + std::to_string(bytes.size()) + " bytes long, too short for a safetensors file");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > header_bytes_max)
    return bad("its header claims " + std::to_string(header_bytes) + " bytes, more than 100 MB",
               "is this a safetensors file?");
  if (header_bytes > bytes.size() - 8)
    return bad("its header claims " + std::to_string(header_bytes) + " bytes but only " +
               std::to_string(bytes.size() - 8) + " follow");
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  if (text.empty() || text.front() != '{')
    return bad("its header does not start with '{'", "is this a safetensors file?");
  ORRERY_TRY(header, parse_json(text, path + " (header)"));
  if (!header.is_object()) return bad("its header is not a JSON object");

  const auto data = bytes.subspan(8 + header_bytes);
  TensorFile result;
  struct Extent {
    std::uint64_t begin, end;
    std::string name;
  };
  std::vector<Extent> extents;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return bad("__metadata__ is not an object");
      for (const auto& [key, value] : entry.items())
        if (!value.is_string()) return bad("__metadata__ '" + shown_name(key) + "' is not text");
      continue;
    }
    const auto bad_tensor = [&, &name = name](const std::string& what, const char* hint = download_hint) {
      return bad("tensor '" + shown_name(name) + "' " + what, hint);
    };
    if (name.empty()) return bad("a tensor has an empty name");
    if (!entry.is_object()) return bad_tensor("is not described by an object");
    for (const char* key : {"dtype", "shape", "data_offsets"})
      if (!entry.contains(key)) return bad_tensor(std::string("has no ") + key);
    if (!entry["dtype"].is_string()) return bad_tensor("has a dtype that is not text");
    const auto dtype_text = entry["dtype"].get<std::string>();
    const auto* known = std::find_if(std::begin(dtype_names), std::end(dtype_names),
                                     [&](const auto& n) { return n.name == dtype_text; });
    if (known == std::end(dtype_names)) {
      Error error = bad_tensor("has dtype '" + shown_name(dtype_text) + "', which cannot be read",
                               "known: F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL");
      error.code = ErrorCode::unsupported;
      return error;
    }
    if (!entry["shape"].is_array() || entry["shape"].size() > 16) return bad_tensor("has no valid shape");
    Shape shape;
    for (const auto& extent : entry["shape"]) {
      if (!extent.is_number_unsigned()) return bad_tensor("has a shape with something else than whole numbers");
      shape.push_back(extent.get<std::uint64_t>());
    }
    const auto& offsets = entry["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned())
      return bad_tensor("needs data_offsets of two whole numbers");
    const auto begin = offsets[0].get<std::uint64_t>(), end = offsets[1].get<std::uint64_t>();
    if (begin > end) return bad_tensor("ends before it begins");
    if (end > data.size())
      return bad_tensor("reaches byte " + std::to_string(end) + " of the data, but the file has only " +
                            std::to_string(data.size()) + " there",
                        "the file is cut short: download it again");
    const auto size = checked_bytes(shape, known->dtype);
    if (!size) return bad_tensor("has a shape that overflows");
    if (*size != end - begin)
      return bad_tensor("has " + std::to_string(end - begin) + " bytes, but " + dtype_text + text_of(shape) +
                        " needs " + std::to_string(*size));
    extents.push_back({begin, end, name});
    result.tensors_.emplace(name, TensorView{data.data() + begin, known->dtype, std::move(shape)});
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t due = 0;
  for (const auto& extent : extents) {
    if (extent.begin < due) return bad("tensor '" + shown_name(extent.name) + "' overlaps another one");
    if (extent.begin > due) return bad("there is a gap before tensor '" + shown_name(extent.name) + "'");
    due = extent.end;
  }
  if (due != data.size()) return bad(std::to_string(data.size() - due) + " bytes at the end belong to no tensor");
  result.file_ = std::move(file);
  return result;
}

Result<std::shared_ptr<const WeightFiles>> WeightFiles::open_file(const std::string& path) {
  auto weights = std::make_shared<WeightFiles>();
  weights->place_ = path;
  ORRERY_TRY(file, TensorFile::open(path));
  for (const auto& [name, tensor] : file.tensors()) weights->where_.emplace(name, 0);
  weights->files_.push_back(std::move(file));
  return std::shared_ptr<const WeightFiles>(std::move(weights));
}

Result<std::shared_ptr<const WeightFiles>> WeightFiles::open_folder(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  for (const char* stem : {"diffusion_pytorch_model", "model"}) {
    const auto base = folder + "/" + stem + ".safetensors";
    const auto index_path = base + ".index.json";
    if (!fs::exists(index_path, ignored)) {
      if (fs::exists(base, ignored)) return open_file(base);
      continue;
    }
    ORRERY_TRY(index, read_json_file(index_path));
    const auto bad = [&](const std::string& what, const char* hint = "download the model again") {
      return Error{ErrorCode::invalid_model, index_path + ": " + what, hint};
    };
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
      return bad("has no weight_map");
    auto weights = std::make_shared<WeightFiles>();
    weights->place_ = folder;
    std::map<std::string, std::size_t> opened;
    for (const auto& [name, file] : index["weight_map"].items()) {
      if (!file.is_string()) return bad("tensor '" + shown_name(name) + "' has no file name");
      const auto file_name = file.get<std::string>();
      if (file_name.empty() || file_name.find('/') != std::string::npos || file_name.find('\0') != std::string::npos)
        return bad("tensor '" + shown_name(name) + "' names the file '" + shown_name(file_name) +
                   "', which is not in this folder");
      auto found = opened.find(file_name);
      if (found == opened.end()) {
        auto shard = TensorFile::open(folder + "/" + file_name);
        if (!shard.ok() && shard.error().code == ErrorCode::not_found)
          return bad("names the file " + shown_name(file_name) + ", which is missing");
        if (!shard.ok()) return shard.error();
        found = opened.emplace(file_name, weights->files_.size()).first;
        weights->files_.push_back(std::move(shard).value());
      }
      if (!weights->files_[found->second].tensors().contains(name))
        return bad("tensor '" + shown_name(name) + "' is not in " + shown_name(file_name));
      weights->where_.emplace(name, found->second);
    }
    std::set<std::string> seen;
    for (const auto& file : weights->files_)
      for (const auto& [name, tensor] : file.tensors())
        if (!seen.insert(name).second) return bad("tensor '" + shown_name(name) + "' is in two files");
    return std::shared_ptr<const WeightFiles>(std::move(weights));
  }
  return Error{ErrorCode::not_found, folder + " has no weights",
               "expected diffusion_pytorch_model.safetensors, model.safetensors, or their index.json"};
}

std::shared_ptr<const WeightFiles> WeightFiles::with_numbers(const std::string& name,
                                                             std::span<const float> numbers) const {
  auto more = std::make_shared<WeightFiles>(*this);
  auto tensor = std::make_shared<Tensor>(DType::f32, Shape{numbers.size()});
  std::copy(numbers.begin(), numbers.end(), tensor->as<float>().begin());
  more->numbers_[name] = std::move(tensor);
  return more;
}

Result<TensorView> WeightFiles::tensor(const std::string& name) const {
  if (const auto number = numbers_.find(name); number != numbers_.end()) return number->second->view();
  auto found = where_.find(name);
  if (found == where_.end() && name == "shared.weight") found = where_.find("encoder.embed_tokens.weight");
  if (found == where_.end())
    return Error{ErrorCode::invalid_model, place_ + ": tensor '" + name + "' is missing",
                 "do config.json and weights belong together?"};
  return files_[found->second].tensors().at(name);
}

void WeightFiles::release(std::span<const std::byte> part) const {
  for (const auto& file : files_) {
    const auto whole = file.file().bytes();
    if (part.data() >= whole.data() && part.data() < whole.data() + whole.size()) file.file().release_pages(part);
  }
}

std::vector<std::string> WeightFiles::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : where_) names.push_back(name);
  return names;
}

std::uint64_t WeightFiles::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [name, file] : where_) sum += files_[file].tensors().at(name).bytes();
  return sum;
}

Status write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                         const std::map<std::string, std::string>& metadata) {
  OrderedJson header = OrderedJson::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  // Wide elements first, so that each tensor stays aligned to its element.
  std::vector<const std::pair<const std::string, TensorView>*> order;
  for (const auto& entry : tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return size_of(a->second.dtype) > size_of(b->second.dtype); });
  std::uint64_t offset = 0;
  for (const auto* entry : order) {
    const auto& tensor = entry->second;
    header[entry->first] = {{"dtype", name_in_file(tensor.dtype)},
                            {"shape", tensor.shape},
                            {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  auto text = header.dump();
  while ((8 + text.size()) % 64 != 0) text += ' ';
  const std::uint64_t length = text.size();
  ORRERY_TRY(file, AtomicFile::create(path));
  ORRERY_TRY_DONE(file.write(std::as_bytes(std::span(&length, 1))));
  ORRERY_TRY_DONE(file.write(text));
  for (const auto* entry : order) ORRERY_TRY_DONE(file.write(std::span(entry->second.data, entry->second.bytes())));
  return file.commit();
}

}  // namespace orrery::compiler
