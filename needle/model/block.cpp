#include "needle/model/block.h"

#include "needle/model/fused_layer.h"

namespace needle {

GatedSelfAttentionImpl::GatedSelfAttentionImpl(const ModelConfig& config, double dropout_rate)
    : norm(register_module("norm", ZCRMSNorm(config.d_model))),
      attention(register_module("attention", Attention(config))),
      dropout(register_module("dropout", torch::nn::Dropout(dropout_rate))),
      gate(add_parameter("gate", gate, torch::zeros({}))) {}

torch::Tensor GatedSelfAttentionImpl::forward(const torch::Tensor& x, const AttentionMask& mask,
                                              const Rope& rope) {
  if (mask.kernel() == AttentionKernel::kLayers) {
    return fused_self_attention(*this, x, mask, rope);
  }
  const auto normed = norm(x);                                           // [B, T, d]
  const auto attended = dropout(attention(normed, normed, mask, rope));  // [B, T, d]
  return x + torch::sigmoid(gate) * attended;
}

torch::Tensor GatedSelfAttentionImpl::step(const torch::Tensor& x, KvCache& cache,
                                           const Rope& rope) {
  const auto normed = norm(x);  // [B, 1, d]
  const auto past = cache.append(attention->keys_values(normed, rope));
  return x + torch::sigmoid(gate) * attention->attend(attention->queries(normed, rope), past, {});
}

GatedCrossAttentionImpl::GatedCrossAttentionImpl(const ModelConfig& config, double dropout_rate)
    : norm(register_module("norm", ZCRMSNorm(config.d_model))),
      attention(register_module("attention", Attention(config))),
      dropout(register_module("dropout", torch::nn::Dropout(dropout_rate))),
      gate(add_parameter("gate", gate, torch::zeros({}))) {}

torch::Tensor GatedCrossAttentionImpl::forward(const torch::Tensor& x, const KeyValues& context,
                                               const AttentionMask& mask) {
  if (mask.kernel() == AttentionKernel::kLayers) {
    return fused_cross_attention(*this, x, context, mask);
  }
  const auto q = attention->queries(norm(x));                          // [B, H, T, D]
  const auto attended = dropout(attention->attend(q, context, mask));  // [B, T, d]
  return x + torch::sigmoid(gate) * attended;
}

GatedFeedForwardImpl::GatedFeedForwardImpl(const ModelConfig& config, double dropout_rate)
    : norm(register_module("norm", ZCRMSNorm(config.d_model))),
      feed_forward(register_module("feed_forward", FeedForward(config))),
      dropout(register_module("dropout", torch::nn::Dropout(dropout_rate))),
      gate(add_parameter("gate", gate, torch::zeros({}))) {}

torch::Tensor GatedFeedForwardImpl::forward(const torch::Tensor& x) {
  return x + torch::sigmoid(gate) * dropout(feed_forward(norm(x)));
}

}  // namespace needle
