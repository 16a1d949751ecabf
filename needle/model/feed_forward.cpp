#include "needle/model/feed_forward.h"

namespace needle {

FeedForwardImpl::FeedForwardImpl(const ModelConfig& config)
    : gate_proj(register_module("gate_proj", KernelLinear(KernelLinearOptions{
                                                 .in = config.d_model, .out = config.d_ff}))),
      up_proj(register_module(
          "up_proj", KernelLinear(KernelLinearOptions{.in = config.d_model, .out = config.d_ff}))),
      down_proj(register_module("down_proj", KernelLinear(KernelLinearOptions{
                                                 .in = config.d_ff, .out = config.d_model}))),
      activation_(config.activation) {}

torch::Tensor FeedForwardImpl::forward(const torch::Tensor& x) {
  const auto gate = gate_proj(x);  // [B, T, d_ff]
  const auto up = up_proj(x);      // [B, T, d_ff]
  switch (activation_) {
    case Activation::kSwiglu:
      return down_proj(torch::silu(gate) * up);
    case Activation::kGeglu:
      return down_proj(torch::gelu(gate, "tanh") * up);
    case Activation::kDrelu:
      break;
  }
  return down_proj(torch::relu(gate) * torch::relu(up));
}

}  // namespace needle
