// Norms and heads of many rows at once: the loops of kernels/kernels.h over tensors, on LibTorch's
// threads. float32 (what becomes a factor of products bfloat16, if wished) on the CPU, contiguous,
// without autograd; fused_layer puts gradients together of
// them.
#pragma once

#include <torch/torch.h>

#include "needle/model/kernels/kernels.h"

namespace needle {

struct Normed {
  torch::Tensor rows;         // [N, width]
  torch::Tensor inverse_rms;  // [N]
};

// x [..., width]; rows: kFloat32 or, rounded, kBFloat16.
Normed norm_rows(const torch::Tensor& x, const torch::Tensor& scale,
                 torch::ScalarType rows = torch::kFloat32);

struct NormGrad {
  torch::Tensor x;      // [N, width]
  torch::Tensor scale;  // [width]
};

// through: undefined, or what is added to the gradient of x.
NormGrad norm_rows_backward(const torch::Tensor& x, const torch::Tensor& scale,
                            const torch::Tensor& inverse_rms, const torch::Tensor& normed_grad,
                            const torch::Tensor& through);

// A projection's heads: which they are, and the tensors that making them takes.
struct HeadSource {
  HeadLayout layout;
  std::int64_t B = 0;
  torch::Tensor projected;         // [N, stride], or columns of it
  torch::Tensor q_scale, k_scale;  // [D]; undefined where the layout has no such heads
  torch::Tensor cos, sin;          // undefined: no rotation
};

struct Heads {
  torch::Tensor q, k, v;      // [B, heads, T, D], undefined where there are none
  torch::Tensor inverse_rms;  // [N, heads + kv_heads]
};

Heads make_heads(const HeadSource& source);
torch::Tensor empty_heads(const HeadSource& source, std::int64_t heads);

struct ScaleGrads {
  torch::Tensor q, k;  // [D]
};

// `grads`: of q, k and v, each undefined or contiguous. Writes `projected_grad`, laid out as
// source.projected, in float32 or, rounded, in bfloat16.
ScaleGrads make_heads_backward(const HeadSource& source, const Heads& grads,
                               const torch::Tensor& inverse_rms, torch::Tensor& projected_grad);

}  // namespace needle
