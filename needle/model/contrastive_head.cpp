#include "needle/model/contrastive_head.h"

namespace needle {

ContrastiveHeadImpl::ContrastiveHeadImpl(const ModelConfig& config)
    : hidden(register_module("hidden",
                             KernelLinear(KernelLinearOptions{
                                 .in = config.d_model, .out = config.d_model / 4, .bias = true}))),
      proj(register_module("proj", KernelLinear(KernelLinearOptions{
                                       .in = config.d_model / 4, .out = config.contrastive_dim}))) {
}

torch::Tensor ContrastiveHeadImpl::forward(const torch::Tensor& encoder_out,
                                           const torch::Tensor& is_text) {
  const auto weights = is_text.to(torch::kFloat32).unsqueeze(-1);       // [B, T, 1]
  const auto sum = (encoder_out.to(torch::kFloat32) * weights).sum(1);  // [B, d]
  const auto pooled = sum / weights.sum(1).clamp_min(1.0);  // padding alone pools to zero
  const auto e = proj(torch::relu(hidden(pooled)));         // [B, contrastive_dim]
  return e / torch::sqrt(e.square().sum(-1, /*keepdim=*/true) + 1e-12);
}

}  // namespace needle
