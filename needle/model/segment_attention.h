// Packed rows on a GPU by variable-length flash attention: each segment is a sequence of its own.
// No [T, S] mask, nothing computed for pairs that may not meet, and no value of the device that the
// host would wait for. Not tested on hardware (docs/devices.md).
#pragma once

#include <cstdint>

#include <torch/torch.h>

namespace needle {

// The segments of all rows, one sequence behind the other.
struct SegmentOffsets {
  // int32 [B * (most + 1) + 1]: where each begins among the B * T queries and the B * S keys. A row
  // has `most` segments, some of them empty, and then its padding.
  torch::Tensor queries;
  torch::Tensor keys;
  torch::Tensor no_key;           // bool [B, 1, T, 1]: queries whose segment has no key, padding
  std::int64_t query_length = 0;  // T, as good a bound as any
  std::int64_t key_length = 0;    // S
  bool causal = false;            // both sides are then the same
};

// [B, T], [B, S] on one device, not waited for. In every row the segments are numbered upwards from
// 1 to at most `most` in the order in which they lie, padding (0) behind them: the caller knows
// (ModelInput::most_segments). A number may be missing on either side.
SegmentOffsets segment_offsets(const torch::Tensor& query_segments,
                               const torch::Tensor& key_segments, std::int64_t most, bool causal);

// Whether the device of `like` has the kernel, in the type of `like` (bfloat16 or float16).
bool has_segment_attention(const torch::Tensor& like);

// q [B, H, T, D], k and v [B, K, S, D], one type -> [B, H, T, D]; K divides H, D is a multiple
// of 8. Differentiable. A query without any key gets the mean of all values of its row, as behind a
// mask that allows nothing (attention.h).
torch::Tensor segment_attention(const torch::Tensor& q, const torch::Tensor& k,
                                const torch::Tensor& v, const SegmentOffsets& offsets);

}  // namespace needle
