// Model parameters as a safetensors file; its keys are the module names, kernels lie as LibTorch
// has them, [out, in]:
//
//   embedding.weight [V, d]
//   encoder.layers.N.self_attn.{norm.scale [d], gate []}
//   encoder.layers.N.self_attn.attention.{q_proj,k_proj,v_proj,out_proj}.weight,
//   .{q_norm,k_norm}.scale [D] encoder.final_norm.scale [d]
//   decoder.layers.N.{self_attn,cross_attn}.…  as in the encoder
//   decoder.final_norm.scale [d]
//   contrastive_head.hidden.{weight [d/4, d], bias [d/4]}, contrastive_head.proj.weight
//   [contrastive_dim, d/4] log_temp [] with feed-forward layers:
//   {encoder,decoder}.layers.N.ffn.{norm.scale, gate}, .ffn.feed_forward.{gate_proj,up_proj [d_ff,
//   d],down_proj [d, d_ff]}.weight
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include <torch/torch.h>

#include "needle/model/needle.h"
#include "needle/model/tensor_view.h"

namespace needle {

enum class StoredFloats { kFloat32, kFloat16 };

NamedTensors copied_parameters(const Needle& model);  // by module name
NamedTensors named_parameters(const Needle& model);  // by module name; the live tensors, not copies
// Copies values into the model, on its device and in its dtype. Strict: throws FormatError naming
// `where` and the tensor if one is missing, unknown or of another shape (both shapes are told);
// then the model is unchanged.
void assign_parameters(Needle& model, const NamedTensors& values, std::string_view where);

// float16 is a conversion: a value that does not fit (beyond 65504) throws FormatError.
void save_model_parameters(const Needle& model, const std::filesystem::path& path,
                           const Metadata& metadata = {},
                           StoredFloats stored = StoredFloats::kFloat32);
void load_model_parameters(Needle& model,
                           const std::filesystem::path& path);  // F32, F16 or BF16 tensors

}  // namespace needle
