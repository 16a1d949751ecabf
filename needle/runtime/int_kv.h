// Keys and values of a whole prompt in integers, made at once: of the encoder's self-attention and
// of the decoder's cross-attention.
#pragma once

#include <cstdint>

#include "needle/quant/model_config.h"
#include "needle/runtime/aligned_buffer.h"
#include "needle/runtime/kernels/kernels.h"
#include "needle/runtime/layers.h"

namespace needle::runtime {

// Keys have a scale a position and head, values a scale a channel.
class IntKvCache {
 public:
  // True if the kernels can hold such heads and so many positions.
  static bool fits(const ModelConfig& config, std::int64_t positions);

  IntKvCache() = default;
  IntKvCache(const ModelConfig& config, std::int64_t positions);
  // k: rows [K * D] of positions first, first + 1, ...; different rows from different threads.
  void store_keys(const Kernels& kernels, std::int64_t first, ConstRows k);
  // v: [positions][K * D], all at once: a channel's scale is that of its largest value.
  void store_values(const Machine& machine, ConstRows v);
  IntKeyValues head(std::int64_t kv_head) const noexcept;

 private:
  IntKeyValuesRoom room(std::int64_t head);

  std::int64_t heads_ = 0;              // K
  std::int64_t head_dim_ = 0;           // D
  std::int64_t count_ = 0;              // T
  std::int64_t padded_ = 0;             // T up to a multiple of kIntBlock
  AlignedBuffer<std::int16_t> keys_;    // [K][padded][D] as IntKeyValues has them
  AlignedBuffer<float> key_scales_;     // [K][padded]
  AlignedBuffer<std::int16_t> values_;  // [K][padded][D]
  AlignedBuffer<float> value_scales_;   // [K][D]
};

// Whether attention over so many positions is in integers.
bool uses_int_attention(const Kernels& kernels, const Model& model, std::int64_t positions);

// As attend_kv_head, in integers. scratch: [attention_scratch(count, H / K)].
void attend_kv_head_int(const Kernels& kernels, const ModelConfig& config, const IntKvCache& cache,
                        std::int64_t kv_head, KeyMask mask, const float* q, float* scratch,
                        float* out) noexcept;
// Floats that Kernels::attend needs for `queries` against `count` keys: a row of scores for those
// that it takes at a time; with AMX the rows are a cache line longer, and 16 channels of the values
// lie behind them as bytes.
constexpr std::int64_t attention_scratch(std::int64_t count, std::int64_t queries) {
  const std::int64_t padded = (count + 2 * kIntBlock - 1) / (2 * kIntBlock) * (2 * kIntBlock);
  return queries < kAttendTile
             ? kAttendRows * padded
             : kMaxAttendTiles * kAttendTile * (padded + kPanelWidth) + kPanelWidth / 2 * padded;
}

}  // namespace needle::runtime
