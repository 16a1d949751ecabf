// The feed-forward ablation (no_feedforward = false): down(act(gate(x)) * up(x)), no biases.
// swiglu: SiLU; geglu: the tanh approximation of GELU; drelu: relu(gate) * relu(up). Specification,
// section 1.
#pragma once

#include <torch/torch.h>

#include "needle/model/linear.h"
#include "needle/quant/model_config.h"

namespace needle {

class FeedForwardImpl : public torch::nn::Module {
 public:
  explicit FeedForwardImpl(const ModelConfig& config);

  torch::Tensor forward(const torch::Tensor& x);  // [B, T, d] -> [B, T, d]

  KernelLinear gate_proj{nullptr}, up_proj{nullptr};  // d -> d_ff
  KernelLinear down_proj{nullptr};                    // d_ff -> d

 private:
  Activation activation_;
};
TORCH_MODULE(FeedForward);

}  // namespace needle
