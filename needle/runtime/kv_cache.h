// Keys and values of one attention layer, laid out as the panels that the kernels multiply with.
#pragma once

#include <cstdint>

#include "needle/quant/model_config.h"
#include "needle/runtime/aligned_buffer.h"
#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {

// Scores are q K^T, so keys are a matrix [D] -> [positions]: 16 positions a panel. The weighted sum
// is p V, so values are a matrix [positions] -> [D]: 16 head dimensions a panel. Both grow by
// writing the next position's column or row; what lies beyond, which may be anything, has no
// effect. Not thread-safe while written.
class KvCache {
 public:
  KvCache(const ModelConfig& config, std::int64_t capacity);

  std::int64_t capacity() const { return capacity_; }
  // k, v: [K * D] of one position below the capacity.
  void store(std::int64_t position, const float* k, const float* v) noexcept;
  // k, v: [D] of one key/value head. Heads may be stored from several threads.
  void store_head(std::int64_t head, std::int64_t position, const float* k,
                  const float* v) noexcept;
  // Of one key/value head, positions 0 .. count - 1.
  Panels keys(std::int64_t head, std::int64_t count) const noexcept;
  Panels values(std::int64_t head, std::int64_t count) const noexcept;

 private:
  std::int64_t heads_;     // K
  std::int64_t head_dim_;  // D
  std::int64_t capacity_;
  std::int64_t key_panels_;      // ceil(capacity / 16)
  std::int64_t value_panels_;    // ceil(D / 16)
  AlignedBuffer<float> keys_;    // [K][key panels][D][16]
  AlignedBuffer<float> values_;  // [K][value panels][capacity][16]
};

}  // namespace needle::runtime
