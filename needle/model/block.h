// The gated residual sub-layers that blocks are made of: x + sigmoid(gate) * dropout(f(norm(x))),
// one scalar gate each, starting at 0. Specification, section 1.
#pragma once

#include <torch/torch.h>

#include "needle/model/attention.h"
#include "needle/model/feed_forward.h"
#include "needle/model/norm.h"
#include "needle/model/parameter_module.h"
#include "needle/quant/model_config.h"

namespace needle {

class GatedSelfAttentionImpl : public ParameterModule {
 public:
  GatedSelfAttentionImpl(const ModelConfig& config, double dropout_rate);

  torch::Tensor forward(const torch::Tensor& x, const AttentionMask& mask,
                        const Rope& rope);  // [B, T, d]
  // The same for the next tokens of a causal stack: they attend to the cache and themselves; x [B,
  // 1, d].
  torch::Tensor step(const torch::Tensor& x, KvCache& cache, const Rope& rope);

  ZCRMSNorm norm{nullptr};
  Attention attention{nullptr};
  torch::nn::Dropout dropout{nullptr};
  torch::Tensor gate;  // []
};
TORCH_MODULE(GatedSelfAttention);

class GatedCrossAttentionImpl : public ParameterModule {
 public:
  GatedCrossAttentionImpl(const ModelConfig& config, double dropout_rate);

  // `context`: attention->keys_values(encoder output), which a token loop computes once.
  torch::Tensor forward(const torch::Tensor& x, const KeyValues& context,
                        const AttentionMask& mask);  // [B, T, d]

  ZCRMSNorm norm{nullptr};
  Attention attention{nullptr};
  torch::nn::Dropout dropout{nullptr};
  torch::Tensor gate;  // []
};
TORCH_MODULE(GatedCrossAttention);

class GatedFeedForwardImpl : public ParameterModule {
 public:
  GatedFeedForwardImpl(const ModelConfig& config, double dropout_rate);

  torch::Tensor forward(const torch::Tensor& x);  // [B, T, d]

  ZCRMSNorm norm{nullptr};
  FeedForward feed_forward{nullptr};
  torch::nn::Dropout dropout{nullptr};
  torch::Tensor gate;  // []
};
TORCH_MODULE(GatedFeedForward);

}  // namespace needle
