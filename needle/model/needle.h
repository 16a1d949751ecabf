// The whole model: a Simple Attention Network (encoder-decoder without feed-forward layers).
//
//   encode:  embedding * sqrt(d) -> encoder blocks -> final norm                    [B, T, d]
//   decode:  embedding * sqrt(d) -> decoder blocks (self, cross) -> final norm      [B, L, d]
//   logits:  float32(hidden) x embedding^T                                          [B, L, V]
//
// Start reading here, then attention.cpp. Specification, section 1.
#pragma once

#include <torch/torch.h>

#include "needle/quant/model_config.h"

namespace needle {

enum class FakeQuant { kNone, kInt4, kInt8 };

// Token ids are int64. Undefined segments mean unpacked rows: the masks then come from the padding.
struct ModelInput {
  torch::Tensor source;             // [B, T]
  torch::Tensor decoder_in;         // [B, L]
  torch::Tensor source_segments;    // [B, T], 0 = padding
  torch::Tensor decoder_segments;   // [B, L]
  bool mask_decoder_padding = true;  // false when generating: causal mask alone
};

class NeedleImpl : public torch::nn::Module {
 public:
  // Parameters start as `init_parameters` (model/init.h) leaves them only after that call; here zeros and empties.
  explicit NeedleImpl(const ModelConfig& config, double dropout_rate = 0.0);

  torch::Tensor forward(const ModelInput& input);  // float32 logits [B, L, V]

  // source_mask: bool [B, 1, T or 1, T], true = may attend.
  torch::Tensor encode(const torch::Tensor& source, const torch::Tensor& source_mask);  // [B, T, d]
  torch::Tensor decode(const torch::Tensor& decoder_in, const torch::Tensor& encoder_out,
                       const torch::Tensor& self_mask, const torch::Tensor& cross_mask);  // [B, L, d]
  torch::Tensor hidden(const ModelInput& input);             // decoder output before the tied projection [B, L, d]
  torch::Tensor logits(const torch::Tensor& hidden_states);  // float32 [B, L, V]
  torch::Tensor embed(const torch::Tensor& tokens);          // contrastive embeddings, float32 [B, contrastive_dim]

  // Every dense kernel passes through the quantiser on its way into the forward pass (straight-through gradient).
  void set_fake_quant(FakeQuant mode);
  FakeQuant fake_quant() const;
  // Activations and matrix products in this type; parameters stay what they are (float32 master weights).
  void set_compute_dtype(torch::ScalarType dtype);

  const ModelConfig& config() const { return config_; }

  torch::Tensor log_temp;  // [], temperature of the contrastive loss, log scale

 private:
  ModelConfig config_;
};
TORCH_MODULE(Needle);

}  // namespace needle
