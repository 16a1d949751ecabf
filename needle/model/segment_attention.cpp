#include "needle/model/segment_attention.h"

#include <tuple>

#include <ATen/core/dispatch/Dispatcher.h>

#include "needle/core/error.h"

namespace needle {
namespace {

// [B, T] -> int32 [B, most + 1]: tokens of segments 1 .. most, and of the padding.
torch::Tensor segment_lengths(const torch::Tensor& segments, std::int64_t most) {
  const auto numbers = torch::arange(1, most + 1, segments.options());  // [most]
  const auto lengths =
      segments.unsqueeze(-1).eq(numbers).sum(1, false, torch::kInt32);          // [B, most]
  const auto padding = segments.size(1) - lengths.sum(1, true, torch::kInt32);  // [B, 1]
  return torch::cat({lengths, padding}, 1);
}

torch::Tensor starts(const torch::Tensor& lengths) {
  return torch::constant_pad_nd(lengths.flatten().cumsum(0, torch::kInt32), {1, 0});
}

// [B, heads, T, D] -> [B * T, heads, D]
torch::Tensor tokens_first(const torch::Tensor& x) {
  return x.transpose(1, 2).flatten(0, 1).contiguous();
}

}  // namespace

SegmentOffsets segment_offsets(const torch::Tensor& query_segments,
                               const torch::Tensor& key_segments, std::int64_t most, bool causal) {
  NEEDLE_CHECK(most > 0, "no number of segments");
  const auto queries = segment_lengths(query_segments, most);
  const auto keys = segment_lengths(key_segments, most);
  const auto keys_of_query = keys.gather(1, (query_segments - 1).clamp_min(0).to(torch::kInt64));
  const auto no_key = query_segments.eq(0).logical_or(keys_of_query.eq(0));  // [B, T]
  return {.queries = starts(queries),
          .keys = starts(keys),
          .no_key = no_key.unsqueeze(1).unsqueeze(-1),
          .query_length = query_segments.size(1),
          .key_length = key_segments.size(1),
          .causal = causal};
}

bool has_segment_attention(const torch::Tensor& like) {
  static const auto op =
      c10::Dispatcher::singleton().findOp({"aten::_flash_attention_forward", ""});
  return op && op->hasKernelForDispatchKey(like.options().computeDispatchKey()) &&
         (like.scalar_type() == torch::kBFloat16 || like.scalar_type() == torch::kHalf);
}

torch::Tensor segment_attention(const torch::Tensor& q, const torch::Tensor& k,
                                const torch::Tensor& v, const SegmentOffsets& offsets) {
  const auto groups = q.size(1) / k.size(1);  // query heads a kv head
  const auto attended = std::get<0>(at::_flash_attention_forward(
      tokens_first(q), tokens_first(k), tokens_first(v), offsets.queries, offsets.keys,
      offsets.query_length, offsets.key_length, /*dropout_p=*/0.0, offsets.causal,
      /*return_debug_mask=*/false));                                                // [B * T, H, D]
  const auto rows = attended.unflatten(0, {q.size(0), q.size(2)}).transpose(1, 2);  // [B, H, T, D]
  const auto uniform = v.mean(2, /*keepdim=*/true).repeat_interleave(groups, 1);    // [B, H, 1, D]
  return torch::where(offsets.no_key, uniform, rows);
}

}  // namespace needle
