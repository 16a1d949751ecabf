// The published checkpoint (`needle.pkl`): only this file knows its names and axes (specification,
// section 2).
//
// There, layers are stacked on the first axis and kernels are input-major:
// `encoder/layers/EncoderBlock_0/self_attn/ q_proj/kernel` (layers, in, out) holds what the modules
// call `encoder.layers.N.self_attn.attention.q_proj.weight` [out, in].
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <torch/torch.h>

#include "needle/model/checkpoint.h"
#include "needle/model/needle.h"
#include "needle/quant/model_config.h"

namespace needle {

// One published array and the parameters that are its slices, layer by layer (one entry if it is
// not stacked).
struct ReleasedArray {
  std::string path;                // encoder/layers/EncoderBlock_0/attn_gate
  std::vector<std::string> names;  // encoder.layers.0.self_attn.gate, ...
  bool stacked = false;            // the first axis counts layers
  bool kernel = false;             // transposed: (in, out) there, [out, in] here
};
std::vector<ReleasedArray> released_arrays(const ModelConfig& config);

// Tensors by module name (parameters, gradients, momenta) to tensors by published path, and back.
// Strict: throws FormatError on a name that is missing or unknown and on a stack of another height.
NamedTensors to_released(const NamedTensors& by_name, const ModelConfig& config);
NamedTensors from_released(const NamedTensors& by_path, const ModelConfig& config,
                           std::string_view where);

// The model of a pickle, float32 parameters holding its float16 values. Executes nothing in the
// file. Throws FormatError if it is not such a checkpoint.
Needle load_released_checkpoint(const std::filesystem::path& path);
// The same from a flat safetensors file of published paths; the config comes separately.
Needle load_released_safetensors(const std::filesystem::path& path, const ModelConfig& config);

// A pickle that the published program can load: float16 arrays. Throws FormatError if a value does
// not fit float16.
void save_released_checkpoint(const Needle& model, const std::filesystem::path& path);

}  // namespace needle
