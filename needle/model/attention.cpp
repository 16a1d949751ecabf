#include "needle/model/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace needle {
namespace {

constexpr std::int64_t kFirstCacheLength = 64;

// [B, T, heads * D] -> [B, T, heads, D]
torch::Tensor split_heads(const torch::Tensor& x, std::int64_t heads) {
  return x.unflatten(-1, {heads, -1});
}

torch::Tensor maybe_rotate(const torch::Tensor& x, const Rope& rope) {
  return rope.cos.defined() ? rotate(x, rope) : x;
}

// The specification: scores in the type of q and k, softmax and weighted sum in float32.
// q [B, K, G, T, D] with G = H / K query heads a kv head -> [B, K, G, T, D] in the type of v.
torch::Tensor exact_attention(const torch::Tensor& q, const KeyValues& kv,
                              const AttentionMask& mask) {
  const auto groups = q.size(2);
  const auto length = q.size(3);
  // The query heads of a kv head are stacked as rows, so keys and values are never repeated.
  const auto rows = q.flatten(2, 3) / std::sqrt(static_cast<double>(q.size(4)));  // [B, K, G*T, D]
  auto scores = rows.matmul(kv.keys.transpose(-2, -1)).to(torch::kFloat32);       // [B, K, G*T, S]
  if (!mask.allows_everything()) {
    scores = scores
                 .unflatten(2, {groups, length})  // [B, K, G, T, S]
                 .masked_fill(mask.blocked().unsqueeze(1), std::numeric_limits<float>::lowest())
                 .flatten(2, 3);
  }
  const auto weights = torch::softmax(scores, -1);
  const auto attended = weights.matmul(kv.values.to(torch::kFloat32));  // [B, K, G*T, D]
  return attended.to(kv.values.scalar_type()).unflatten(2, {groups, length});
}

// q [B, H, T, D] -> [B, H, T, D], all in the type of v.
torch::Tensor fused_attention(const torch::Tensor& q, const KeyValues& kv,
                              const AttentionMask& mask) {
  const auto dtype = kv.values.scalar_type();
  // In a row without any key the exact kernel's scores are constants: weights are uniform and no
  // gradient reaches q or k. A zero query does the same.
  const auto queries = q.to(dtype).masked_fill(mask.no_key(), 0.0);
  return at::scaled_dot_product_attention(queries, kv.keys.to(dtype), kv.values,
                                          mask.bias().to(dtype), /*dropout_p=*/0.0,
                                          /*is_causal=*/false, /*scale=*/std::nullopt,
                                          /*enable_gqa=*/q.size(1) != kv.keys.size(1));
}

}  // namespace

KeyValues KvCache::append(const KeyValues& next) {
  const auto needed = length_ + next.keys.size(2);
  const auto capacity = buffers_.keys.defined() ? buffers_.keys.size(2) : 0;
  if (needed > capacity) {
    const auto grow = [&](const torch::Tensor& old, const torch::Tensor& added) {
      auto shape = added.sizes().vec();
      shape[2] = std::max({needed, 2 * capacity, kFirstCacheLength});
      auto larger = torch::empty(shape, added.options());
      if (length_ > 0) {
        larger.narrow(2, 0, length_).copy_(old.narrow(2, 0, length_));
      }
      return larger;
    };
    buffers_ = {.keys = grow(buffers_.keys, next.keys),
                .values = grow(buffers_.values, next.values)};
  }
  buffers_.keys.narrow(2, length_, needed - length_).copy_(next.keys);
  buffers_.values.narrow(2, length_, needed - length_).copy_(next.values);
  length_ = needed;
  return {.keys = buffers_.keys.narrow(2, 0, length_),
          .values = buffers_.values.narrow(2, 0, length_)};
}

void KvCache::keep_rows(const torch::Tensor& rows) {
  if (length_ > 0) {
    buffers_ = {.keys = buffers_.keys.index_select(0, rows),
                .values = buffers_.values.index_select(0, rows)};
  }
}

AttentionImpl::AttentionImpl(const ModelConfig& config)
    : q_proj(register_module("q_proj", KernelLinear(KernelLinearOptions{.in = config.d_model,
                                                                        .out = config.d_model}))),
      k_proj(register_module("k_proj", KernelLinear(KernelLinearOptions{.in = config.d_model,
                                                                        .out = config.kv_dim()}))),
      v_proj(register_module("v_proj", KernelLinear(KernelLinearOptions{.in = config.d_model,
                                                                        .out = config.kv_dim()}))),
      out_proj(register_module("out_proj", KernelLinear(KernelLinearOptions{
                                               .in = config.d_model, .out = config.d_model}))),
      q_norm(register_module("q_norm", ZCRMSNorm(config.head_dim()))),
      k_norm(register_module("k_norm", ZCRMSNorm(config.head_dim()))),
      num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads) {}

torch::Tensor AttentionImpl::forward(const torch::Tensor& x, const torch::Tensor& context,
                                     const AttentionMask& mask, const Rope& rope) {
  return attend(queries(x, rope), keys_values(context, rope), mask);
}

torch::Tensor AttentionImpl::queries(const torch::Tensor& x, const Rope& rope) {
  const auto q = q_norm(split_heads(q_proj(x), num_heads_)).transpose(1, 2);  // [B, H, T, D]
  return maybe_rotate(q, rope);
}

KeyValues AttentionImpl::keys_values(const torch::Tensor& context, const Rope& rope) {
  const auto k =
      k_norm(split_heads(k_proj(context), num_kv_heads_)).transpose(1, 2);     // [B, K, S, D]
  const auto v = split_heads(v_proj(context), num_kv_heads_).transpose(1, 2);  // [B, K, S, D]
  return {.keys = maybe_rotate(k, rope), .values = v};
}

torch::Tensor AttentionImpl::attend(const torch::Tensor& q, const KeyValues& kv,
                                    const AttentionMask& mask) {
  torch::Tensor attended;  // [B, H, T, D]
  switch (mask.kernel()) {
    case AttentionKernel::kExact:
      attended = exact_attention(q.unflatten(1, {num_kv_heads_, -1}), kv, mask).flatten(1, 2);
      break;
    case AttentionKernel::kFused:
      attended = fused_attention(q, kv, mask);
      break;
    case AttentionKernel::kRanges:
    case AttentionKernel::kLayers:
      attended = range_attention(q.to(kv.values.scalar_type()), kv.keys.to(kv.values.scalar_type()),
                                 kv.values, mask.ranges());
      break;
    case AttentionKernel::kSegments:
      attended = segment_attention(q.to(kv.values.scalar_type()),
                                   kv.keys.to(kv.values.scalar_type()), kv.values, mask.segments());
      break;
  }
  return out_proj(attended.transpose(1, 2).flatten(2));  // [B, H, T, D] -> [B, T, d]
}

}  // namespace needle
