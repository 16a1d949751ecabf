// Grouped-query attention with QK-norm (specification, section 1).
//
//   q = rope(norm_q(Wq x)),  k = rope(norm_k(Wk c)),  v = Wv c
//   y = Wo softmax(q k^T / sqrt(D)) v                    no biases; query head h reads kv head h /
//   (H / K)
//
// Masked scores become the lowest finite float32, so a row with nothing allowed is uniform over all
// keys, never NaN.
#pragma once

#include <cstdint>

#include <torch/torch.h>

#include "needle/model/linear.h"
#include "needle/model/mask.h"
#include "needle/model/norm.h"
#include "needle/model/rope.h"
#include "needle/quant/model_config.h"

namespace needle {

struct KeyValues {
  torch::Tensor keys;    // [B, K, S, D], normed and rotated
  torch::Tensor values;  // [B, K, S, D]
};

// Keys and values of the tokens so far, in buffers that double as they fill.
class KvCache {
 public:
  KeyValues append(
      const KeyValues& next);  // [B, K, 1.., D] -> everything so far, a view into the buffers
  std::int64_t length() const { return length_; }
  void keep_rows(
      const torch::Tensor& rows);  // int64 [B']: goes on with these rows of the batch alone
  void truncate(std::int64_t length) { length_ = length; }  // at most length()

 private:
  KeyValues buffers_;
  std::int64_t length_ = 0;
};

class AttentionImpl : public torch::nn::Module {
 public:
  explicit AttentionImpl(const ModelConfig& config);

  // x [B, T, d] attends to context [B, S, d]; self-attention passes the same tensor twice.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& context,
                        const AttentionMask& mask, const Rope& rope = {});  // [B, T, d]

  // The three stages, apart, for decoding with cached keys and values.
  torch::Tensor queries(const torch::Tensor& x, const Rope& rope = {});  // [B, H, T, D]
  KeyValues keys_values(const torch::Tensor& context, const Rope& rope = {});
  torch::Tensor attend(const torch::Tensor& q, const KeyValues& kv,
                       const AttentionMask& mask);  // [B, T, d]

  KernelLinear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, out_proj{nullptr};
  ZCRMSNorm q_norm{nullptr}, k_norm{nullptr};

 private:
  std::int64_t num_heads_;     // H
  std::int64_t num_kv_heads_;  // K
};
TORCH_MODULE(Attention);

}  // namespace needle
