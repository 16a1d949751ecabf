// Tool retrieval: one unit vector for a text (specification, section 1).
//
//   pooled = mean of the encoder's output over non-pad positions (count at least 1)
//   e = proj(relu(hidden(pooled))),  embedding = e / sqrt(sum(e^2) + 1e-12)
#pragma once

#include <torch/torch.h>

#include "needle/model/linear.h"
#include "needle/quant/model_config.h"

namespace needle {

class ContrastiveHeadImpl : public torch::nn::Module {
 public:
  explicit ContrastiveHeadImpl(const ModelConfig& config);

  // encoder_out [B, T, d]; is_text bool [B, T], true where the token is not padding. float32 [B,
  // contrastive_dim].
  torch::Tensor forward(const torch::Tensor& encoder_out, const torch::Tensor& is_text);

  KernelLinear hidden{nullptr};  // d -> d/4, with bias
  KernelLinear proj{nullptr};    // d/4 -> contrastive_dim
};
TORCH_MODULE(ContrastiveHead);

}  // namespace needle
