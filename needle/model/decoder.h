// The decoder: blocks of gated causal self-attention and gated cross-attention, then a final norm.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/torch.h>

#include "needle/model/block.h"
#include "needle/quant/model_config.h"

namespace needle {

class DecoderBlockImpl : public torch::nn::Module {
 public:
  DecoderBlockImpl(const ModelConfig& config, double dropout_rate);

  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& encoder_out,
                        const AttentionMask& self_mask, const AttentionMask& cross_mask,
                        const Rope& rope);  // [B, L, d]
  // `context`: what cross_attn->attention makes of the encoder's output.
  torch::Tensor forward(const torch::Tensor& x, const KeyValues& context,
                        const AttentionMask& self_mask, const AttentionMask& cross_mask,
                        const Rope& rope);  // [B, L, d]
  torch::Tensor step(const torch::Tensor& x, KvCache& self, const KeyValues& cross,
                     const AttentionMask& cross_mask,
                     const Rope& rope);  // [B, 1, d]

  GatedSelfAttention self_attn{nullptr};
  GatedCrossAttention cross_attn{nullptr};
  GatedFeedForward ffn{nullptr};  // empty unless the config has feed-forward layers
};
TORCH_MODULE(DecoderBlock);

// What a batch of requests carries from token to token. All rows stand at the same position.
struct DecoderState {
  std::vector<KvCache> self;     // one a layer
  std::vector<KeyValues> cross;  // one a layer, from the encoder's output
  torch::Tensor cross_allowed;  // bool [B, 1, 1, S]; undefined: the whole prompt may be attended to
  std::int64_t position = 0;    // tokens fed so far

  void keep_rows(
      const torch::Tensor& rows);  // int64 [B']: goes on with these rows of the batch alone
  void rewind(std::int64_t to);    // forgets the tokens from position `to` on
};

class DecoderImpl : public torch::nn::Module {
 public:
  DecoderImpl(const ModelConfig& config, double dropout_rate);

  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& encoder_out,
                        const AttentionMask& self_mask,
                        const AttentionMask& cross_mask);  // [B, L, d]

  // Token by token: computes the cross keys and values once; each step feeds one embedded token a
  // row.
  DecoderState start(const torch::Tensor& encoder_out, const torch::Tensor& cross_allowed = {});
  torch::Tensor step(const torch::Tensor& x, DecoderState& state);  // [B, 1, d] -> [B, 1, d]

  torch::nn::ModuleList layers;  // of DecoderBlock
  ZCRMSNorm final_norm{nullptr};

 private:
  std::vector<Attention> cross_attentions() const;

  RopeTable rope_;
};
TORCH_MODULE(Decoder);

}  // namespace needle
