#include "needle/model/encoder.h"

#include "needle/model/fused_layer.h"

namespace needle {

EncoderBlockImpl::EncoderBlockImpl(const ModelConfig& config, double dropout_rate)
    : self_attn(register_module("self_attn", GatedSelfAttention(config, dropout_rate))) {
  if (!config.no_feedforward) {
    ffn = register_module("ffn", GatedFeedForward(config, dropout_rate));
  }
}

torch::Tensor EncoderBlockImpl::forward(const torch::Tensor& x, const AttentionMask& mask,
                                        const Rope& rope) {
  const auto attended = self_attn(x, mask, rope);
  return ffn.is_empty() ? attended : ffn(attended);
}

EncoderImpl::EncoderImpl(const ModelConfig& config, double dropout_rate)
    : layers(register_module("layers", torch::nn::ModuleList())),
      final_norm(register_module("final_norm", ZCRMSNorm(config.d_model))),
      rope_(config.head_dim(), config.rope_theta) {
  for (std::int64_t i = 0; i < config.num_encoder_layers; ++i) {
    layers->push_back(EncoderBlock(config, dropout_rate));
  }
}

torch::Tensor EncoderImpl::forward(const torch::Tensor& x, const AttentionMask& mask) {
  const Rope rope = rope_.first(x.size(1), x.device());
  auto stream = x;  // [B, T, d]
  for (const auto& layer : *layers) {
    stream = layer->as<EncoderBlock>()->forward(stream, mask, rope);
  }
  return mask.kernel() == AttentionKernel::kLayers ? fused_norm(*final_norm, stream)
                                                   : final_norm(stream);
}

}  // namespace needle
