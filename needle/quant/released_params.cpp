#include "needle/quant/released_params.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <type_traits>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/file.h"

namespace needle {
namespace {

using Shape = std::vector<std::int64_t>;
using Shapes = std::map<std::string, Shape>;

constexpr std::array<std::string_view, 3> kDtypes = {"bfloat16", "float16", "float32"};

std::string shape_text(const Shape& shape) {
  std::string text;
  for (const std::int64_t size : shape) {
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  }
  return "[" + text + "]";
}

std::string_view type_name(const PickleValue& value) {
  constexpr std::array<std::string_view, 8> kNames = {"None",  "a bool", "an int", "a float",
                                                      "a str", "a list", "a dict", "an array"};
  return kNames[value.value.index()];
}

// Reads config fields by name; an absent one leaves the default.
class ConfigReader {
 public:
  ConfigReader(const PickleValue& config, std::string where)
      : config_(config), where_(std::move(where)) {}

  void read(std::string_view field, std::int64_t& value) const {
    if (const PickleValue* found = config_.find(field)) {
      value = get<std::int64_t>(*found, field, "an int");
    }
  }
  void read(std::string_view field, double& value) const {
    const PickleValue* const found = config_.find(field);
    if (found == nullptr) {
      return;
    }
    if (const auto* integer = std::get_if<std::int64_t>(&found->value)) {
      value = static_cast<double>(*integer);
    } else {
      value = get<double>(*found, field, "a float");
    }
  }
  void read(std::string_view field, bool& value) const {
    if (const PickleValue* found = config_.find(field)) {
      value = get<bool>(*found, field, "a bool");
    }
  }
  void read(std::string_view field, std::string& value) const {
    if (const PickleValue* found = config_.find(field)) {
      value = get<std::string>(*found, field, "a str");
    }
  }
  void read(std::string_view field, Activation& value) const {
    std::string name(kActivationNames.name(value));
    read(field, name);
    const auto parsed = kActivationNames.parse(name);
    if (!parsed) {
      fail(field, format("expected one of {}, got \"{}\"", kActivationNames.list(), name));
    }
    value = *parsed;
  }
  [[noreturn]] void fail(std::string_view field, std::string_view reason) const {
    throw FormatError(format("{}.{}: {}", where_, field, reason));
  }

 private:
  template <typename T>
  const T& get(const PickleValue& value, std::string_view field, std::string_view expected) const {
    const T* const wanted = std::get_if<T>(&value.value);
    if (wanted == nullptr) {
      fail(field, format("expected {}, got {}", expected, type_name(value)));
    }
    return *wanted;
  }

  const PickleValue& config_;
  std::string where_;
};

void read_config(const PickleValue& dict, const std::filesystem::path& path,
                 ReleasedCheckpoint& checkpoint) {
  const std::string where = format("{}: config", path);
  const ConfigReader reader(dict, where);
  checkpoint.config = released_config_defaults();
  ModelConfig::visit_fields(checkpoint.config,
                            [&reader](std::string_view name, auto& field, std::string_view) {
                              reader.read(name, field);
                            });
  reader.read("dropout_rate", checkpoint.dropout_rate);
  reader.read("dtype", checkpoint.dtype);
  reader.read("num_memory_slots", checkpoint.num_memory_slots);
  checkpoint.config.validate(where);
  if (!(checkpoint.dropout_rate >= 0.0 && checkpoint.dropout_rate < 1.0)) {
    reader.fail("dropout_rate", format("expected 0 <= rate < 1, got {}", checkpoint.dropout_rate));
  }
  if (std::find(kDtypes.begin(), kDtypes.end(), checkpoint.dtype) == kDtypes.end()) {
    reader.fail("dtype",
                format("expected bfloat16, float16 or float32, got \"{}\"", checkpoint.dtype));
  }
}

// Moves the arrays of nested dicts into `params` under their joined keys. Depth is bounded by
// read_pickle.
void flatten(PickleValue& value, const std::string& prefix, const std::filesystem::path& path,
             ReleasedParams& params) {
  auto* const dict = std::get_if<PickleValue::Dict>(&value.value);
  if (dict == nullptr) {
    auto* const array = std::get_if<PickleArray>(&value.value);
    if (array == nullptr) {
      throw FormatError(
          format("{}: params/{}: expected an array, got {}", path, prefix, type_name(value)));
    }
    params.emplace(prefix, std::move(*array));
    return;
  }
  for (auto& [key, item] : *dict) {
    if (key.empty() || key.find('/') != std::string::npos) {
      throw FormatError(
          format("{}: params/{}: the key \"{}\" is empty or holds a slash", path, prefix, key));
    }
    flatten(item, prefix.empty() ? key : prefix + "/" + key, path, params);
  }
}

void add_attention(Shapes& shapes, const std::string& prefix, std::int64_t layers,
                   const ModelConfig& config) {
  const std::int64_t d = config.d_model;
  shapes[prefix + "/q_proj/kernel"] = {layers, d, d};
  shapes[prefix + "/k_proj/kernel"] = {layers, d, config.kv_dim()};
  shapes[prefix + "/v_proj/kernel"] = {layers, d, config.kv_dim()};
  shapes[prefix + "/out_proj/kernel"] = {layers, d, d};
  shapes[prefix + "/q_norm/scale"] = {layers, config.head_dim()};
  shapes[prefix + "/k_norm/scale"] = {layers, config.head_dim()};
}

void add_feed_forward(Shapes& shapes, const std::string& block, const std::string& norm,
                      std::int64_t layers, const ModelConfig& config) {
  shapes[block + "/ffn_gate"] = {layers};
  shapes[block + "/" + norm + "/scale"] = {layers, config.d_model};
  shapes[block + "/FeedForward_0/gate_proj/kernel"] = {layers, config.d_model, config.d_ff};
  shapes[block + "/FeedForward_0/up_proj/kernel"] = {layers, config.d_model, config.d_ff};
  shapes[block + "/FeedForward_0/down_proj/kernel"] = {layers, config.d_ff, config.d_model};
}

// The first difference between the arrays and what the config asks for, or nothing.
std::optional<std::string> difference(const ReleasedParams& params, const ModelConfig& config) {
  const Shapes shapes = released_shapes(config);
  for (const auto& [name, shape] : shapes) {
    const auto found = params.find(name);
    if (found == params.end()) {
      return format("params: {} is missing, expected shape {}", name, shape_text(shape));
    }
    if (found->second.shape != shape) {
      return format("params: {} has the shape {}, the config asks for {}", name,
                    shape_text(found->second.shape), shape_text(shape));
    }
  }
  for (const auto& [name, array] : params) {
    if (!shapes.contains(name)) {
      return format("params: {} is no array of this model", name);
    }
  }
  return std::nullopt;
}

// The entry for `name` in `dict`, a fresh dict if there is none.
PickleValue& child(PickleValue& dict, std::string_view name) {
  auto& entries = std::get<PickleValue::Dict>(dict.value);
  for (auto& [key, value] : entries) {
    if (key == name) {
      return value;
    }
  }
  entries.push_back({.key = std::string(name), .value = {PickleValue::Dict()}});
  return entries.back().value;
}

}  // namespace

ModelConfig released_config_defaults() {
  return {.vocab_size = 8192,
          .d_model = 128,
          .num_heads = 4,
          .num_kv_heads = 2,
          .num_encoder_layers = 2,
          .num_decoder_layers = 2,
          .d_ff = 512,
          .activation = Activation::kDrelu,
          .no_feedforward = true,
          .max_seq_len = 128,
          .rope_theta = 10000.0,
          .contrastive_dim = 128,
          .pad_token_id = 0};
}

std::map<std::string, std::vector<std::int64_t>> released_shapes(const ModelConfig& config) {
  const std::int64_t d = config.d_model;
  const std::int64_t hidden = d / 4;
  Shapes shapes;
  shapes["embedding/embedding"] = {config.vocab_size, d};
  shapes["contrastive_hidden/kernel"] = {d, hidden};
  shapes["contrastive_hidden/bias"] = {hidden};
  shapes["contrastive_proj/kernel"] = {hidden, config.contrastive_dim};
  shapes["log_temp"] = {};

  const std::string encoder = "encoder/layers/EncoderBlock_0";
  const std::int64_t encoder_layers = config.num_encoder_layers;
  shapes["encoder/final_norm/scale"] = {d};
  shapes[encoder + "/attn_gate"] = {encoder_layers};
  shapes[encoder + "/ZCRMSNorm_0/scale"] = {encoder_layers, d};
  add_attention(shapes, encoder + "/self_attn", encoder_layers, config);

  const std::string decoder = "decoder/layers/DecoderBlock_0";
  const std::int64_t decoder_layers = config.num_decoder_layers;
  shapes["decoder/ZCRMSNorm_0/scale"] = {d};
  shapes[decoder + "/self_attn_gate"] = {decoder_layers};
  shapes[decoder + "/cross_attn_gate"] = {decoder_layers};
  shapes[decoder + "/ZCRMSNorm_0/scale"] = {decoder_layers, d};
  shapes[decoder + "/ZCRMSNorm_1/scale"] = {decoder_layers, d};
  add_attention(shapes, decoder + "/self_attn", decoder_layers, config);
  add_attention(shapes, decoder + "/cross_attn", decoder_layers, config);

  if (!config.no_feedforward) {
    add_feed_forward(shapes, encoder, "ZCRMSNorm_1", encoder_layers, config);
    add_feed_forward(shapes, decoder, "ZCRMSNorm_2", decoder_layers, config);
  }
  return shapes;
}

ReleasedCheckpoint read_released_checkpoint(const std::filesystem::path& path) {
  PickleValue root = read_pickle_file(path);
  auto* const entries = std::get_if<PickleValue::Dict>(&root.value);
  if (entries == nullptr) {
    throw FormatError(
        format("{}: expected a dict with params and config, got {}", path, type_name(root)));
  }
  ReleasedCheckpoint checkpoint;
  PickleValue* params = nullptr;
  const PickleValue* config = nullptr;
  for (auto& [key, value] : *entries) {
    if (key == "params") {
      params = &value;
    } else if (key == "config") {
      config = &value;
    } else if (key == "pretrain_step") {
      const auto* const step = std::get_if<std::int64_t>(&value.value);
      if (step == nullptr || *step < 0) {
        throw FormatError(format("{}: pretrain_step: expected an int of at least 0", path));
      }
      checkpoint.pretrain_step = *step;
    }
  }
  if (params == nullptr || !params->is_dict() || config == nullptr || !config->is_dict()) {
    throw FormatError(format("{}: expected the dicts params and config: not a checkpoint", path));
  }
  read_config(*config, path, checkpoint);
  flatten(*params, "", path, checkpoint.params);
  if (const auto reason = difference(checkpoint.params, checkpoint.config)) {
    throw FormatError(format("{}: {}", path, *reason));
  }
  return checkpoint;
}

void write_released_checkpoint(const std::filesystem::path& path,
                               const ReleasedCheckpoint& checkpoint) {
  const auto reason = difference(checkpoint.params, checkpoint.config);
  NEEDLE_CHECK(!reason, "{}: {}", path, *reason);
  PickleValue root{PickleValue::Dict()};
  PickleValue& params = child(root, "params");
  for (const auto& [name, array] : checkpoint.params) {
    PickleValue* place = &params;
    for (std::size_t begin = 0; begin <= name.size();) {
      const std::size_t end = std::min(name.find('/', begin), name.size());
      place = &child(*place, std::string_view(name).substr(begin, end - begin));
      begin = end + 1;
    }
    place->value = array;
  }
  PickleValue::Dict config;
  ModelConfig::visit_fields(checkpoint.config, [&config](std::string_view name, const auto& field,
                                                         std::string_view) {
    if constexpr (std::is_same_v<std::decay_t<decltype(field)>, Activation>) {
      config.push_back({std::string(name), PickleValue{std::string(kActivationNames.name(field))}});
    } else {
      config.push_back({std::string(name), PickleValue{field}});
    }
  });
  config.push_back({"dtype", PickleValue{checkpoint.dtype}});
  config.push_back({"dropout_rate", PickleValue{checkpoint.dropout_rate}});
  config.push_back({"num_memory_slots", PickleValue{checkpoint.num_memory_slots}});
  child(root, "config").value = std::move(config);
  if (checkpoint.pretrain_step) {
    child(root, "pretrain_step").value = *checkpoint.pretrain_step;
  }
  write_file_atomic(path, write_pickle(root));
}

}  // namespace needle
