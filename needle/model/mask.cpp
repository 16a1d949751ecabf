#include "needle/model/mask.h"

namespace needle {

torch::Tensor padding_mask(const torch::Tensor& tokens, std::int64_t pad_id) {
  return tokens.ne(pad_id).unsqueeze(1).unsqueeze(1);
}

torch::Tensor causal_mask(std::int64_t length, torch::Device device) {
  return torch::ones({1, 1, length, length}, torch::dtype(torch::kBool).device(device)).tril();
}

torch::Tensor segment_mask(const torch::Tensor& query_segments, const torch::Tensor& key_segments) {
  const auto of_query = query_segments.unsqueeze(1).unsqueeze(-1);  // [B, 1, T, 1]
  const auto of_key = key_segments.unsqueeze(1).unsqueeze(1);       // [B, 1, 1, S]
  return of_query.eq(of_key).logical_and(of_query.gt(0));
}

AttentionMask::AttentionMask(const torch::Tensor& allowed, AttentionKernel kernel)
    : kernel_(kernel == AttentionKernel::kExact ? kernel : AttentionKernel::kFused) {
  if (kernel == AttentionKernel::kExact) {
    blocked_ = allowed.logical_not();
    return;
  }
  // Added to scores, -1e30 leaves nothing of them. (The lowest finite float32 would be infinite in
  // bfloat16.) A row without any key has no bias at all: with a zero query its scores are zeros and
  // it becomes uniform. Were they all -1e30, the library's backward pass would lose log(S) in their
  // log-sum and take every weight for 1 (measured).
  no_key_ = allowed.any(-1, /*keepdim=*/true).logical_not_();
  bias_ = torch::zeros(allowed.sizes(), allowed.options().dtype(torch::kFloat32))
              .masked_fill_(allowed.logical_or(no_key_).logical_not_(), -1e30);
}

}  // namespace needle
