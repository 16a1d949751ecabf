// Attention over ranges in float32, head by head on the threads of LibTorch: products, softmax and
// their gradients stay in the cache of one core. Values and gradients as range_attention's, of
// which this is the fast form; the autograd function around it is fused_layer's.
#pragma once

#include <torch/torch.h>

#include "needle/model/range_attention.h"

namespace needle {

struct HeadAttention {
  torch::Tensor attended;  // [B, T, H * D]: what the output projection reads
  torch::Tensor weights;   // the probabilities of all ranges, one after the other
};

// q [B, H, T, D]; k, v [B, K, S, D]: float32, contiguous, on the CPU.
HeadAttention head_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const AttentionRanges& ranges);

struct HeadAttentionGrad {
  torch::Tensor q, k, v;
};
// attended_grad: [B, T, H * D], contiguous.
HeadAttentionGrad head_attention_backward(const torch::Tensor& attended_grad,
                                          const torch::Tensor& weights, const torch::Tensor& q,
                                          const torch::Tensor& k, const torch::Tensor& v,
                                          const AttentionRanges& ranges);

}  // namespace needle
