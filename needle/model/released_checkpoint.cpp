#include "needle/model/released_checkpoint.h"

#include <algorithm>
#include <utility>

#include "needle/core/error.h"
#include "needle/quant/released_params.h"

namespace needle {
namespace {

// The arrays of one stack of blocks: published name below the block, module name below the layer.
struct BlockEntry {
  std::string path;
  std::string name;
};

void add_attention(std::vector<BlockEntry>& entries, const std::string& sub_layer) {
  for (const char* projection : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
    entries.push_back({sub_layer + "/" + projection + "/kernel",
                       sub_layer + ".attention." + projection + ".weight"});
  }
  for (const char* norm : {"q_norm", "k_norm"}) {
    entries.push_back(
        {sub_layer + "/" + norm + "/scale", sub_layer + ".attention." + norm + ".scale"});
  }
}

void add_feed_forward(std::vector<BlockEntry>& entries, const std::string& norm) {
  entries.push_back({"ffn_gate", "ffn.gate"});
  entries.push_back({norm + "/scale", "ffn.norm.scale"});
  for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
    entries.push_back({std::string("FeedForward_0/") + projection + "/kernel",
                       std::string("ffn.feed_forward.") + projection + ".weight"});
  }
}

std::vector<BlockEntry> encoder_block_entries(const ModelConfig& config) {
  std::vector<BlockEntry> entries = {{"attn_gate", "self_attn.gate"},
                                     {"ZCRMSNorm_0/scale", "self_attn.norm.scale"}};
  add_attention(entries, "self_attn");
  if (!config.no_feedforward) {
    add_feed_forward(entries, "ZCRMSNorm_1");
  }
  return entries;
}

std::vector<BlockEntry> decoder_block_entries(const ModelConfig& config) {
  std::vector<BlockEntry> entries = {{"self_attn_gate", "self_attn.gate"},
                                     {"cross_attn_gate", "cross_attn.gate"},
                                     {"ZCRMSNorm_0/scale", "self_attn.norm.scale"},
                                     {"ZCRMSNorm_1/scale", "cross_attn.norm.scale"}};
  add_attention(entries, "self_attn");
  add_attention(entries, "cross_attn");
  if (!config.no_feedforward) {
    add_feed_forward(entries, "ZCRMSNorm_2");
  }
  return entries;
}

void add_stack(std::vector<ReleasedArray>& arrays, const std::string& prefix,
               const std::string& module, std::int64_t layers,
               const std::vector<BlockEntry>& entries) {
  for (const BlockEntry& entry : entries) {
    ReleasedArray array;
    array.path = prefix + entry.path;
    array.stacked = true;
    array.kernel = entry.path.ends_with("/kernel");
    for (std::int64_t i = 0; i < layers; ++i) {
      array.names.push_back(format("{}.layers.{}.{}", module, i, entry.name));
    }
    arrays.push_back(std::move(array));
  }
}

}  // namespace

std::vector<ReleasedArray> released_arrays(const ModelConfig& config) {
  std::vector<ReleasedArray> arrays = {
      {.path = "embedding/embedding", .names = {"embedding.weight"}},
      {.path = "encoder/final_norm/scale", .names = {"encoder.final_norm.scale"}},
      {.path = "decoder/ZCRMSNorm_0/scale", .names = {"decoder.final_norm.scale"}},
      {.path = "contrastive_hidden/kernel",
       .names = {"contrastive_head.hidden.weight"},
       .kernel = true},
      {.path = "contrastive_hidden/bias", .names = {"contrastive_head.hidden.bias"}},
      {.path = "contrastive_proj/kernel",
       .names = {"contrastive_head.proj.weight"},
       .kernel = true},
      {.path = "log_temp", .names = {"log_temp"}}};
  add_stack(arrays, "encoder/layers/EncoderBlock_0/", "encoder", config.num_encoder_layers,
            encoder_block_entries(config));
  add_stack(arrays, "decoder/layers/DecoderBlock_0/", "decoder", config.num_decoder_layers,
            decoder_block_entries(config));
  return arrays;
}

NamedTensors to_released(const NamedTensors& by_name, const ModelConfig& config) {
  NamedTensors by_path;
  std::size_t used = 0;
  for (const ReleasedArray& array : released_arrays(config)) {
    std::vector<torch::Tensor> layers;
    for (const std::string& name : array.names) {
      const auto found = by_name.find(name);
      if (found == by_name.end()) {
        throw FormatError(format("tensor '{}' is missing; the published layout needs it", name));
      }
      const auto tensor = found->second.detach();
      layers.push_back(array.kernel ? tensor.t() : tensor);
    }
    used += layers.size();
    by_path[array.path] = array.stacked ? torch::stack(layers) : layers.front().contiguous();
  }
  if (used != by_name.size()) {
    throw FormatError(
        format("{} tensors, but the published layout has places for {}", by_name.size(), used));
  }
  return by_path;
}

NamedTensors from_released(const NamedTensors& by_path, const ModelConfig& config,
                           std::string_view where) {
  NamedTensors by_name;
  const std::vector<ReleasedArray> arrays = released_arrays(config);
  for (const ReleasedArray& array : arrays) {
    const auto found = by_path.find(array.path);
    if (found == by_path.end()) {
      throw FormatError(format("{}: array '{}' is missing", where, array.path));
    }
    const torch::Tensor& tensor = found->second;
    const auto layers = static_cast<std::int64_t>(array.names.size());
    if (array.stacked && (tensor.dim() < 1 || tensor.size(0) != layers)) {
      throw FormatError(format("{}: array '{}' holds {} layers, the config says {}", where,
                               array.path, tensor.dim() < 1 ? 0 : tensor.size(0), layers));
    }
    for (std::int64_t i = 0; i < layers; ++i) {
      const auto layer = array.stacked ? tensor.select(0, i) : tensor;
      if (array.kernel && layer.dim() != 2) {
        throw FormatError(format("{}: array '{}' has {} axes, a kernel has two{}", where,
                                 array.path, tensor.dim(), array.stacked ? " for each layer" : ""));
      }
      by_name[array.names[static_cast<std::size_t>(i)]] = array.kernel ? layer.t() : layer;
    }
  }
  if (by_path.size() != arrays.size()) {
    for (const auto& [path, tensor] : by_path) {
      const bool known = std::any_of(arrays.begin(), arrays.end(), [&](const ReleasedArray& array) {
        return array.path == path;
      });
      if (!known) {
        throw FormatError(format("{}: array '{}' has no place in this model", where, path));
      }
    }
  }
  return by_name;
}

Needle load_released_checkpoint(const std::filesystem::path& path) {
  const ReleasedCheckpoint released = read_released_checkpoint(path);
  NamedTensors by_path;
  for (const auto& [name, array] : released.params) {
    by_path[name] = to_tensor(array.view());
  }
  Needle model(released.config);
  assign_parameters(model, from_released(by_path, released.config, path.string()), path.string());
  return model;
}

Needle load_released_safetensors(const std::filesystem::path& path, const ModelConfig& config) {
  Needle model(config);
  assign_parameters(model, from_released(load_tensors(path), config, path.string()), path.string());
  return model;
}

void save_released_checkpoint(const Needle& model, const std::filesystem::path& path) {
  ReleasedCheckpoint released;
  released.config = model->config();
  const NamedTensors by_path = to_released(named_parameters(model), model->config());
  for (const auto& [name, tensor] : by_path) {
    const auto half = to_host(to_float16(name, tensor, path.string()));
    const TensorView view = view_of(half);
    released.params[name] = {
        .dtype = view.dtype,
        .shape = view.shape,
        .bytes = std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size())};
  }
  write_released_checkpoint(path, released);
}

}  // namespace needle
