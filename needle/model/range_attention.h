// Attention over ranges instead of a mask: in a packed row each segment attends to itself, in a
// padded row everybody attends to the words. No [T, S] mask, no work on pairs that may not meet.
//
// Own gradient, with the probabilities kept: on a CPU batched matrix products are faster in
// bfloat16 than the library's scaled_dot_product_attention. The query heads of a kv head are
// stacked as rows.
#pragma once

#include <cstdint>
#include <optional>

#include <torch/torch.h>

namespace needle {

// What queries of one row attend to. Every query of every row is in exactly one range.
struct AttentionRanges {
  // int64 [N, 5] on the CPU: row, first query, queries, first key, keys. Without keys the weights
  // are uniform over the whole row, as behind a mask that allows nothing.
  torch::Tensor table;
  bool causal = false;  // the i-th query of a range sees its keys 0 .. i
};

// Padded rows: `queries` queries attend to the tokens [B, S] that are not `pad_id`. Nothing if
// padding stands before a word in some row.
std::optional<AttentionRanges> padding_ranges(std::int64_t queries, const torch::Tensor& tokens,
                                              std::int64_t pad_id, bool causal);

// Packed rows: equal segments, 0 (padding) with nobody; [B, T], [B, S]. Nothing if the positions of
// a segment are not side by side. `causal` is for self-attention: both sides are then the same.
std::optional<AttentionRanges> segment_ranges(const torch::Tensor& query_segments,
                                              const torch::Tensor& key_segments, bool causal);

// q [B, H, T, D], k and v [B, K, S, D], one type, on the CPU -> [B, H, T, D]. Differentiable once.
torch::Tensor range_attention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const AttentionRanges& ranges);

}  // namespace needle
