#include "apps/needle_export/inspect.h"

#include <cstring>
#include <fstream>
#include <string_view>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/core/pickle.h"
#include "needle/core/safetensors.h"
#include "needle/data/packed_dataset.h"
#include "needle/quant/released_params.h"
#include "needle/quant/weights_file.h"
#include "needle/text/tokenizer.h"
#include "needle/train/checkpoint_folder.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

std::string first_bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw FileError(format("{}: cannot be read", path));
  }
  std::string bytes(16, '\0');
  file.read(bytes.data(), std::ssize(bytes));
  bytes.resize(static_cast<std::size_t>(file.gcount()));
  return bytes;
}

Json tensor_row(std::string_view name, std::string_view type,
                const std::vector<std::int64_t>& shape, std::size_t bytes) {
  return {{"name", name}, {"type", type}, {"shape", shape}, {"bytes", bytes}};
}

Json tokenizer_facts(const Tokenizer& tokenizer) {
  return {{"pieces", tokenizer.vocab_size()},
          {"bytes", tokenizer.model_bytes().size()},
          {"sha256", tokenizer.fingerprint()}};
}

Json inspect_weights(const fs::path& path) {
  const WeightsFile file(path);
  Json result{{"kind", "weights file"},
              {"format_version", kWeightsFileVersion},
              {"parameters", file.model_config().parameter_count()},
              {"config", file.config()}};
  if (!file.tokenizer_model().empty()) {
    result["tokenizer"] = tokenizer_facts(Tokenizer::from_bytes(file.tokenizer_model()));
  }
  result["checksums"] = "all right";
  result["tensors"] = Json::array();
  for (const WeightsSection& section : file.sections()) {
    result["tensors"].push_back(tensor_row(section.name, kSectionTypeNames.name(section.type),
                                           section.shape, section.size));
  }
  return result;
}

Json inspect_safetensors(const fs::path& path) {
  const SafetensorsFile file(path);
  Json result{{"kind", "safetensors"}};
  for (const auto& [key, value] : file.metadata()) {
    const Json parsed = Json::parse(value, nullptr, /*allow_exceptions=*/false);
    result["metadata"][key] = parsed.is_discarded() ? Json(value) : parsed;
  }
  try {
    const PackedDataset dataset = PackedDataset::open(path);
    result["kind"] = "data set";
    result["rows"] = dataset.row_count();
    result["examples"] = dataset.example_count();
  } catch (const Error&) {
    // Any other safetensors file.
  }
  result["tensors"] = Json::array();
  for (const auto& [name, tensor] : file.tensors()) {
    result["tensors"].push_back(
        tensor_row(name, kDtypeNames.name(tensor.dtype), tensor.shape, tensor.bytes.size()));
  }
  return result;
}

// A pickle of anything: containers become JSON, arrays go to the table.
Json pickle_tree(const PickleValue& value, const std::string& path, Json& tensors) {
  if (const auto* dict = std::get_if<PickleValue::Dict>(&value.value)) {
    Json result = Json::object();
    for (const auto& [key, item] : *dict) {
      const Json child = pickle_tree(item, path.empty() ? key : path + "/" + key, tensors);
      if (!child.is_discarded()) {
        result[key] = child;
      }
    }
    return result.empty() && !dict->empty() ? Json(Json::value_t::discarded) : result;
  }
  if (const auto* list = std::get_if<PickleValue::List>(&value.value)) {
    Json result = Json::array();
    for (const PickleValue& item : *list) {
      const Json child = pickle_tree(item, format("{}/{}", path, result.size()), tensors);
      result.push_back(child.is_discarded() ? Json("array") : child);
    }
    return result;
  }
  if (const auto* array = std::get_if<PickleArray>(&value.value)) {
    tensors.push_back(
        tensor_row(path, kDtypeNames.name(array->dtype), array->shape, array->bytes.size()));
    return Json(Json::value_t::discarded);
  }
  if (const auto* text = std::get_if<std::string>(&value.value)) {
    return *text;
  }
  if (const auto* number = std::get_if<std::int64_t>(&value.value)) {
    return *number;
  }
  if (const auto* number = std::get_if<double>(&value.value)) {
    return *number;
  }
  if (const auto* flag = std::get_if<bool>(&value.value)) {
    return *flag;
  }
  return nullptr;
}

Json inspect_pickle(const fs::path& path) {
  const PickleValue value = read_pickle_file(path);
  Json tensors = Json::array();
  const Json contents = pickle_tree(value, "", tensors);
  Json result{{"kind", "pickle"}};
  try {
    const ReleasedCheckpoint checkpoint = read_released_checkpoint(path);
    result["kind"] = "published checkpoint";
    result["parameters"] = checkpoint.config.parameter_count();
    result["config"]["model"] = to_json(checkpoint.config);
  } catch (const Error& error) {
    result["not_a_checkpoint_because"] = error.what();
  }
  result["contents"] = contents.is_discarded() ? Json::object() : contents;
  result["tensors"] = tensors;
  return result;
}

Json inspect_folder(const fs::path& folder) {
  const fs::path checkpoint = resolve_checkpoint(folder);
  Json result{{"kind", "checkpoint"}, {"checkpoint", checkpoint.string()}};
  if (fs::exists(checkpoint / "manifest.json")) {
    const std::string damage = checkpoint_damage(checkpoint);
    result["damage"] = damage.empty() ? "none" : damage;
  }
  result["config"] = read_json_file(checkpoint / "model.json");
  if (fs::exists(checkpoint / "state.json")) {
    result["state"] = read_json_file(checkpoint / "state.json");
  }
  if (fs::exists(checkpoint / "tokenizer.model")) {
    result["tokenizer"] = tokenizer_facts(Tokenizer::load(checkpoint / "tokenizer.model"));
  }
  for (const auto& entry : fs::directory_iterator(checkpoint)) {
    if (entry.is_regular_file()) {
      result["files"][entry.path().filename().string()] = entry.file_size();
    }
  }
  result["tensors"] = inspect_safetensors(checkpoint / "model.safetensors").at("tensors");
  return result;
}

bool looks_like_safetensors(const std::string& bytes, std::uint64_t file_size) {
  std::uint64_t header = 0;
  if (bytes.size() < sizeof header + 1) {
    return false;
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  return bytes[sizeof header] == '{' && header <= file_size;
}

Json inspect_file(const fs::path& path) {
  const std::string bytes = first_bytes(path);
  if (bytes.starts_with("\x89NDL")) {
    return inspect_weights(path);
  }
  if (looks_like_safetensors(bytes, fs::file_size(path))) {
    return inspect_safetensors(path);
  }
  if (path.extension() == ".pkl" || bytes.starts_with('\x80')) {
    return inspect_pickle(path);
  }
  if (path.extension() == ".model") {
    return {{"kind", "tokenizer"}, {"tokenizer", tokenizer_facts(Tokenizer::load(path))}};
  }
  throw FormatError(format(
      "{}: not a weights file, safetensors file, pickle or SentencePiece model; a checkpoint "
      "is a folder",
      path));
}

std::string shape_text(const Json& shape) {
  std::string text;
  for (const Json& side : shape) {
    text += (text.empty() ? "" : " x ") + side.dump();
  }
  return text;
}

void append_facts(const Json& value, const std::string& indent, std::string& text) {
  for (const auto& [key, item] : value.items()) {
    if (item.is_object() && !item.empty()) {
      text += format("{}{}\n", indent, key);
      append_facts(item, indent + "  ", text);
    } else {
      const std::string shown = item.is_string() ? item.get<std::string>() : item.dump();
      text += format("{}{:<24} {}\n", indent, key, shown);
    }
  }
}

}  // namespace

Json inspect(const fs::path& path) {
  if (!fs::exists(path)) {
    throw FileError(format("{}: no such file or folder", path));
  }
  Json result{{"path", path.string()}};
  if (!fs::is_directory(path)) {
    result["bytes"] = fs::file_size(path);
  }
  result.update(fs::is_directory(path) ? inspect_folder(path) : inspect_file(path));
  return result;
}

std::string inspection_text(const Json& inspection) {
  Json facts = inspection;
  facts.erase("tensors");
  std::string text;
  append_facts(facts, "", text);
  if (inspection.contains("tensors")) {
    std::size_t total = 0;
    for (const Json& tensor : inspection.at("tensors")) {
      const std::size_t bytes = tensor.at("bytes");
      total += bytes;
      text += format("{:<62} {:<5} {:<16} {:>11}\n", tensor.at("name").get<std::string>(),
                     tensor.at("type").get<std::string>(), shape_text(tensor.at("shape")), bytes);
    }
    text += format("{} entries, {} bytes\n", inspection.at("tensors").size(), total);
  }
  return text;
}

}  // namespace needle
