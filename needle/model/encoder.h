// The encoder: blocks of gated self-attention, then a final norm.
#pragma once

#include <cstdint>

#include <torch/torch.h>

#include "needle/model/block.h"
#include "needle/quant/model_config.h"

namespace needle {

class EncoderBlockImpl : public torch::nn::Module {
 public:
  EncoderBlockImpl(const ModelConfig& config, double dropout_rate);

  torch::Tensor forward(const torch::Tensor& x, const AttentionMask& mask,
                        const Rope& rope);  // [B, T, d]

  GatedSelfAttention self_attn{nullptr};
  GatedFeedForward ffn{nullptr};  // empty unless the config has feed-forward layers
};
TORCH_MODULE(EncoderBlock);

class EncoderImpl : public torch::nn::Module {
 public:
  EncoderImpl(const ModelConfig& config, double dropout_rate);

  torch::Tensor forward(const torch::Tensor& x, const AttentionMask& mask);  // [B, T, d]

  torch::nn::ModuleList layers;  // of EncoderBlock
  ZCRMSNorm final_norm{nullptr};

 private:
  RopeTable rope_;
};
TORCH_MODULE(Encoder);

}  // namespace needle
