// The gated attention sub-layers as one function each, with its own gradient: on a CPU the many
// small operations between the matrix products cost as much as these, and what autograd keeps of
// them is most of the memory. A float32 stream, without dropout; what block.h computes otherwise is
// the specification. The large products take factors of float32 or bfloat16 (product.h); norms,
// softmax, residuals and gradients are float32, rounded only where they are such a factor.
//
// One product makes queries, keys and values of a token; one makes the cross-attention's keys and
// values of all layers. Norms, rotation and the split into heads are one pass (kernels/kernels.h),
// attention goes head by head (head_attention.h), the gated residual is the last product's sum.
#pragma once

#include <vector>

#include <torch/torch.h>

#include "needle/model/block.h"
#include "needle/model/norm.h"
#include "needle/model/rope.h"

namespace needle {

// x [B, T, d] -> x + sigmoid(gate) * attention(norm(x)). `mask` holds ranges. Differentiable once.
torch::Tensor fused_self_attention(GatedSelfAttentionImpl& layer, const torch::Tensor& x,
                                   const AttentionMask& mask, const Rope& rope);

// `context`: this layer's of fused_cross_keys_values.
torch::Tensor fused_cross_attention(GatedCrossAttentionImpl& layer, const torch::Tensor& x,
                                    const KeyValues& context, const AttentionMask& mask);

// What each of `layers` keeps of the encoder's output [B, S, d].
std::vector<KeyValues> fused_cross_keys_values(std::vector<Attention> layers,
                                               const torch::Tensor& encoder_out,
                                               torch::ScalarType factors = torch::kFloat32);

torch::Tensor fused_norm(ZCRMSNormImpl& norm, const torch::Tensor& x);  // [..., size]

}  // namespace needle
