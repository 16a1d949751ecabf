#include "tests/runtime/golden_model.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "needle/core/fields.h"
#include "needle/core/safetensors.h"
#include "needle/quant/released_params.h"
#include "needle/text/tokenizer.h"

#include "tests/support/golden.h"

namespace needle::test {
namespace {

// "encoder.layers.3.self_attn.gate" -> "encoder/layers/EncoderBlock_0/attn_gate" and layer 3.
struct Place {
  std::string path;
  std::int64_t layer = -1;  // not stacked
};

std::string attention_leaf(const std::string& leaf) {
  const std::string inner = leaf.substr(std::string("attention.").size());  // q_proj.weight
  const std::string module = inner.substr(0, inner.find('.'));
  return module + (inner.ends_with(".weight") ? "/kernel" : "/scale");
}

Place place_of(const std::string& name) {
  static const std::map<std::string, std::string> kSingle{
      {"embedding.weight", "embedding/embedding"},
      {"encoder.final_norm.scale", "encoder/final_norm/scale"},
      {"decoder.final_norm.scale", "decoder/ZCRMSNorm_0/scale"},
      {"contrastive_head.hidden.weight", "contrastive_hidden/kernel"},
      {"contrastive_head.hidden.bias", "contrastive_hidden/bias"},
      {"contrastive_head.proj.weight", "contrastive_proj/kernel"},
      {"log_temp", "log_temp"}};
  if (const auto found = kSingle.find(name); found != kSingle.end()) {
    return {found->second};
  }
  const bool encoder = name.starts_with("encoder.");
  const std::string rest = name.substr(std::string("encoder.layers.").size());
  const std::int64_t layer = std::stoll(rest);
  const std::string inside = rest.substr(rest.find('.') + 1);  // self_attn.norm.scale
  const std::string sub = inside.substr(0, inside.find('.'));
  const std::string leaf = inside.substr(inside.find('.') + 1);
  const std::string block =
      encoder ? "encoder/layers/EncoderBlock_0/" : "decoder/layers/DecoderBlock_0/";
  if (leaf == "gate") {
    return {block + (sub == "ffn" ? "ffn_gate" : encoder ? "attn_gate" : sub + "_gate"), layer};
  }
  if (leaf == "norm.scale") {
    const int index = sub == "self_attn" ? 0 : sub == "cross_attn" || encoder ? 1 : 2;
    return {block + "ZCRMSNorm_" + std::to_string(index) + "/scale", layer};
  }
  if (leaf.starts_with("attention.")) {
    return {block + sub + "/" + attention_leaf(leaf), layer};
  }
  const std::string module = leaf.substr(std::string("feed_forward.").size());
  return {block + "FeedForward_0/" + module.substr(0, module.find('.')) + "/kernel", layer};
}

FloatArray widened(const TensorView& view) {
  return {.shape = view.shape, .values = to_floats(view)};
}

std::vector<float> transposed(const std::vector<float>& values, std::int64_t rows,
                              std::int64_t cols) {
  std::vector<float> result(values.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      result[static_cast<std::size_t>(col * rows + row)] =
          values[static_cast<std::size_t>(row * cols + col)];
    }
  }
  return result;
}

}  // namespace

ModelConfig golden_config(const std::filesystem::path& path) {
  const Json given = read_json_file(path);
  Json known = Json::object();
  const Json fields = to_json(ModelConfig{});
  for (const auto& [key, value] : fields.items()) {
    if (given.contains(key)) {
      known[key] = given.at(key);
    }
  }
  return from_json(known, path.string(), released_config_defaults());
}

GoldenParameters pickled_parameters(const std::filesystem::path& path) {
  const ReleasedCheckpoint checkpoint = read_released_checkpoint(path);
  GoldenParameters parameters{.config = checkpoint.config, .arrays = {}};
  for (const auto& [name, array] : checkpoint.params) {
    parameters.arrays.emplace(name, widened(array.view()));
  }
  return parameters;
}

FloatArrays stored_parameters(const std::filesystem::path& path, std::string_view prefix) {
  const SafetensorsFile file(path);
  FloatArrays arrays;
  for (const auto& [name, view] : file.tensors()) {
    if (name.starts_with(prefix)) {
      arrays.emplace(name.substr(prefix.size()), widened(view));
    }
  }
  return arrays;
}

std::map<std::string, std::vector<float>> module_parameters(const ModelConfig& config,
                                                            const FloatArrays& arrays,
                                                            std::optional<QuantBits> bits) {
  std::map<std::string, std::vector<float>> parameters;
  for (const TensorSpec& spec : expected_tensors(config)) {
    const Place place = place_of(spec.name);
    const auto found = arrays.find(place.path);
    if (found == arrays.end()) {
      throw std::runtime_error("the golden parameters lack " + place.path);
    }
    std::int64_t count = 1;
    for (const std::int64_t side : spec.shape) {
      count *= side;
    }
    const auto first =
        found->second.values.begin() + std::max<std::int64_t>(place.layer, 0) * count;
    std::vector<float> values(first, first + count);
    if (spec.is_matrix() && spec.name != "embedding.weight") {
      if (bits) {
        values = dequantize(quantize_groups(values, spec.shape[1], spec.shape[0], *bits));
      }
      values = transposed(values, spec.shape[1], spec.shape[0]);
    }
    parameters.emplace(spec.name, std::move(values));
  }
  return parameters;
}

void write_weights(const std::filesystem::path& path, const ModelConfig& config,
                   const std::map<std::string, std::vector<float>>& parameters,
                   WeightEncoding encoding, std::string_view tokenizer) {
  Json header;
  header["model"] = to_json(config);
  WeightsFileWriter writer(config, header);
  if (!tokenizer.empty()) {
    writer.add_tokenizer(tokenizer, Tokenizer::from_bytes(tokenizer).tables());
  }
  for (const auto& [name, values] : parameters) {
    writer.add_tensor(name, values, encoding);
  }
  writer.write(path);
}

std::shared_ptr<const runtime::Model> runtime_model(
    const ModelConfig& config, const std::map<std::string, std::vector<float>>& parameters,
    WeightEncoding encoding, runtime::Numerics numerics) {
  const TemporaryFolder folder;
  write_weights(folder / "model.needle", config, parameters, encoding);
  return runtime::Model::load(std::make_shared<const WeightsFile>(folder / "model.needle"),
                              numerics);
}

}  // namespace needle::test
