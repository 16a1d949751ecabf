#include "needle/model/embedding.h"

#include <cmath>

namespace needle {

TiedEmbeddingImpl::TiedEmbeddingImpl(std::int64_t vocab_size, std::int64_t d_model)
    : weight(add_parameter("weight", weight, torch::zeros({vocab_size, d_model}))) {}

torch::Tensor TiedEmbeddingImpl::forward(const torch::Tensor& ids, torch::ScalarType dtype) {
  const double scale = std::sqrt(static_cast<double>(weight.size(1)));
  const auto rows = torch::embedding(weight_path(weight, weight.scalar_type()), ids);  // [B, T, d]
  return (rows * scale).to(dtype);
}

torch::Tensor TiedEmbeddingImpl::logits(const torch::Tensor& hidden) {
  return torch::linear(hidden.to(torch::kFloat32), weight_path(weight, torch::kFloat32));
}

}  // namespace needle
