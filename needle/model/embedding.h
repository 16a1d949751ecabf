// The embedding that encoder, decoder and output projection share.
#pragma once

#include <cstdint>

#include <torch/torch.h>

#include "needle/model/fake_quant.h"
#include "needle/model/parameter_module.h"

namespace needle {

class TiedEmbeddingImpl : public ParameterModule {
 public:
  TiedEmbeddingImpl(std::int64_t vocab_size, std::int64_t d_model);

  // ids [B, T] -> sqrt(d) * weight[ids], [B, T, d] in `dtype`.
  torch::Tensor forward(const torch::Tensor& ids, torch::ScalarType dtype);
  // hidden [..., d] -> float32(hidden) x weight^T, float32 [..., V].
  torch::Tensor logits(const torch::Tensor& hidden);

  torch::Tensor weight;  // [V, d]
  WeightPath weight_path;
};
TORCH_MODULE(TiedEmbedding);

}  // namespace needle
