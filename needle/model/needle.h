// The whole model: a Simple Attention Network (encoder-decoder without feed-forward layers).
//
//   encode:  embedding * sqrt(d) -> encoder blocks -> final norm                    [B, T, d]
//   decode:  embedding * sqrt(d) -> decoder blocks (self, cross) -> final norm      [B, L, d]
//   logits:  float32(hidden) x embedding^T                                          [B, L, V]
//
// Start reading here, then attention.cpp. Specification, section 1.
#pragma once

#include <string>
#include <vector>

#include <torch/torch.h>

#include "needle/model/contrastive_head.h"
#include "needle/model/decoder.h"
#include "needle/model/embedding.h"
#include "needle/model/encoder.h"
#include "needle/model/fake_quant.h"
#include "needle/model/mask.h"
#include "needle/model/parameter_module.h"
#include "needle/quant/model_config.h"

namespace needle {

// Token ids are int64. Undefined segments mean unpacked rows: the masks then come from the padding.
struct ModelInput {
  torch::Tensor source;            // [B, T]
  torch::Tensor decoder_in;        // [B, L]
  torch::Tensor source_segments;   // [B, T], 0 = padding
  torch::Tensor decoder_segments;  // [B, L]
  // At least the number of segments of any row, where both sides number them as segment_attention.h
  // asks; 0: not known.
  std::int64_t most_segments = 0;
  bool mask_decoder_padding = true;  // false when generating: causal mask alone
};

// The masks of a forward pass: bool, broadcastable to [B, 1, rows, keys], true = may attend.
struct ModelMasks {
  torch::Tensor source;
  torch::Tensor decoder;
  torch::Tensor cross;
};
ModelMasks make_masks(const ModelInput& input, std::int64_t pad_id);

// Not thread-safe in training; forward passes without gradients are safe from several threads.
class NeedleImpl : public ParameterModule {
 public:
  // Every parameter starts at zero: call init_parameters (model/init.h) or load a checkpoint.
  // Throws ConfigError if the config is not valid.
  explicit NeedleImpl(const ModelConfig& config, double dropout_rate = 0.0);

  torch::Tensor forward(const ModelInput& input);  // float32 logits [B, L, V]

  // source_mask: bool [B, 1, T or 1, T], true = may attend.
  torch::Tensor encode(const torch::Tensor& source, const torch::Tensor& source_mask);  // [B, T, d]
  torch::Tensor decode(const torch::Tensor& decoder_in, const torch::Tensor& encoder_out,
                       const torch::Tensor& self_mask,
                       const torch::Tensor& cross_mask);  // [B, L, d]
  torch::Tensor hidden(
      const ModelInput& input);  // decoder output before the tied projection [B, L, d]
  torch::Tensor logits(const torch::Tensor& hidden_states);  // float32 [B, L, V]
  torch::Tensor embed(
      const torch::Tensor& tokens);  // contrastive embeddings, float32 [B, contrastive_dim]

  // Every dense kernel passes through the quantiser on its way into the forward pass
  // (straight-through gradient). The embedding may join, in groups along d, since the deployed file
  // quantises it too.
  void set_fake_quant(FakeQuant kernels, FakeQuant embedding = FakeQuant::kNone);
  FakeQuant fake_quant() const { return kernel_quant_; }
  FakeQuant embedding_fake_quant() const { return embedding->weight_path.mode(); }
  // Activations and matrix products in this type; parameters stay what they are (float32 master
  // weights). Softmax, norms, logits and the contrastive head compute in float32 whatever the type.
  // With AttentionKernel::kLayers only the factors of the layers' products are of this type.
  void set_compute_dtype(torch::ScalarType dtype) { compute_dtype_ = dtype; }
  torch::ScalarType compute_dtype() const { return compute_dtype_; }
  // For the products of the loss on a CPU (TokenLossOptions::factors).
  torch::ScalarType factor_dtype() const;
  void set_attention_kernel(AttentionKernel kernel) { attention_kernel_ = kernel; }
  AttentionKernel attention_kernel() const { return attention_kernel_; }
  // With AttentionKernel::kLayers: what a layer computes between its products is not kept for the
  // backward pass but computed again. Less memory, the same numbers.
  void set_activation_checkpointing(bool on) { activation_checkpointing_ = on; }
  double dropout_rate() const { return dropout_rate_; }
  void set_dropout_rate(double rate);  // in training mode only, on the output of each sub-layer

  // Names of the dense kernels among named_parameters(), in that order: what Muon updates and the
  // file quantises.
  std::vector<std::string> kernel_names() const;

  const ModelConfig& config() const { return config_; }

  TiedEmbedding embedding{nullptr};
  Encoder encoder{nullptr};
  Decoder decoder{nullptr};
  ContrastiveHead contrastive_head{nullptr};
  torch::Tensor log_temp;  // [], temperature of the contrastive loss, log scale

 private:
  AttentionKernel layer_kernel() const;    // over ranges, as settings and dropout allow
  torch::ScalarType stream_dtype() const;  // of the activations, with that kernel
  LayerOptions layer_options() const;

  ModelConfig config_;
  FakeQuant kernel_quant_ = FakeQuant::kNone;
  torch::ScalarType compute_dtype_ = torch::kFloat32;
  AttentionKernel attention_kernel_ = AttentionKernel::kExact;
  double dropout_rate_ = 0.0;
  bool activation_checkpointing_ = false;
};
TORCH_MODULE(Needle);

}  // namespace needle
