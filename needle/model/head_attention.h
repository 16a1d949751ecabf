// Attention over ranges, head by head on the threads of LibTorch: products, softmax and their
// gradients stay in the cache of one core. Values and gradients as range_attention's, of which this
// is the fast form; the autograd function around it is fused_layer's. With factors of bfloat16, on
// a CPU with AMX, products are those of rounded factors (tile_heads.h); elsewhere they are float32.
#pragma once

#include <torch/torch.h>

#include "needle/model/range_attention.h"

namespace needle {

struct HeadAttention {
  // [B, T, H * D]: what the output projection reads. A factor (product.h) of the type asked for.
  torch::Tensor attended;
  torch::Tensor weights;  // the probabilities of all ranges, one after the other
};

// q [B, H, T, D]; k, v [B, K, S, D]: float32, contiguous, on the CPU.
HeadAttention head_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const AttentionRanges& ranges,
                             torch::ScalarType factors = torch::kFloat32);

struct HeadAttentionGrad {
  torch::Tensor q, k, v;
};
// attended_grad: float32 [B, T, H * D], contiguous. weights: as they came.
HeadAttentionGrad head_attention_backward(const torch::Tensor& attended_grad,
                                          const torch::Tensor& weights, const torch::Tensor& q,
                                          const torch::Tensor& k, const torch::Tensor& v,
                                          const AttentionRanges& ranges);

}  // namespace needle
