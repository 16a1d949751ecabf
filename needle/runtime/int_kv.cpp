#include "needle/runtime/int_kv.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace needle::runtime {
namespace {

constexpr std::int64_t kChunkRows = 8 * kAttendRows;  // queries of one head a unit of work

float factor_of(float largest, std::int32_t codes) {
  return largest > 1e-30f ? static_cast<float>(codes) / largest : 0.0f;
}

// To the nearest integer, ties to even, for magnitudes below 2^22. Unlike std::nearbyint no call,
// so that loops become vectors.
std::int32_t rounded(float value) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
  return static_cast<std::int32_t>((value + kRounder) - kRounder);
}

// Two 12-bit codes side by side, the first in the low half.
std::int32_t pair_of(std::int32_t first, std::int32_t second) {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(first) & 0xFFFF) |
                                   static_cast<std::uint32_t>(second) << 16);
}

}  // namespace

bool IntKvCache::fits(const ModelConfig& config, std::int64_t positions) {
  return config.head_dim() % kPanelWidth == 0 && config.head_dim() <= kMaxIntHeadDim &&
         positions <= kMaxIntPositions;
}

IntKvCache::IntKvCache(const ModelConfig& config, std::int64_t positions)
    : heads_(config.num_kv_heads),
      head_dim_(config.head_dim()),
      count_(positions),
      padded_(padded(positions)),
      keys_(static_cast<std::size_t>(heads_ * padded_ * head_dim_)),
      key_scales_(static_cast<std::size_t>(heads_ * padded_)),
      values_(static_cast<std::size_t>(heads_ * padded_ * head_dim_)),
      value_scales_(static_cast<std::size_t>(heads_ * head_dim_)) {}

void IntKvCache::store(const Machine& machine, ConstRows k, ConstRows v) {
  constexpr std::int64_t kWork = 16;  // of one number, for Machine::split
  machine.split(2 * heads_, count_ * head_dim_ * kWork, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      unit < heads_ ? store_keys(unit, k) : store_values(unit - heads_, v);
    }
  });
}

void IntKvCache::store_keys(std::int64_t head, ConstRows k) {
  for (std::int64_t t = 0; t < count_; ++t) {
    const float* const from = k.data + t * k.stride + head * head_dim_;
    float largest = 0;
    for (std::int64_t i = 0; i < head_dim_; ++i) {
      largest = std::max(largest, std::abs(from[i]));
    }
    key_scales_.data()[head * padded_ + t] = largest / kLargestCode;
    std::int16_t* const to = keys_.data() +
                             (head * padded_ + t / kPanelWidth * kPanelWidth) * head_dim_ +
                             t % kPanelWidth * 2;
    const float factor = factor_of(largest, kLargestCode);
    std::int32_t row[kMaxIntHeadDim];
    for (std::int64_t i = 0; i < head_dim_; ++i) {
      row[i] = rounded(from[i] * factor);
    }
    for (std::int64_t i = 0; i < head_dim_; i += 2) {
      const std::int32_t pair = pair_of(row[i], row[i + 1]);
      std::memcpy(to + i * kPanelWidth, &pair, sizeof pair);
    }
  }
}

void IntKvCache::store_values(std::int64_t head, ConstRows v) {
  const float* const first = v.data + head * head_dim_;
  float largest[kMaxIntHeadDim] = {};
  for (std::int64_t t = 0; t < count_; ++t) {
    for (std::int64_t i = 0; i < head_dim_; ++i) {
      largest[i] = std::max(largest[i], std::abs(first[t * v.stride + i]));
    }
  }
  float factors[kMaxIntHeadDim];
  for (std::int64_t i = 0; i < head_dim_; ++i) {
    value_scales_.data()[head * head_dim_ + i] = largest[i] / kLargestCode;
    factors[i] = factor_of(largest[i], kLargestCode);
  }
  for (std::int64_t t = 0; t < count_; t += 2) {
    const float* const even = first + t * v.stride;
    const bool paired = t + 1 < count_;
    const float* const odd = paired ? even + v.stride : even;
    std::int32_t pairs[kMaxIntHeadDim];
    for (std::int64_t i = 0; i < head_dim_; ++i) {
      const std::int32_t second = rounded(odd[i] * factors[i]);
      pairs[i] = pair_of(rounded(even[i] * factors[i]), paired ? second : 0);
    }
    std::memcpy(values_.data() + (head * padded_ + t) * head_dim_, pairs,
                static_cast<std::size_t>(head_dim_) * sizeof pairs[0]);
  }
}

IntKeyValues IntKvCache::head(std::int64_t kv_head) const noexcept {
  return {.count = count_,
          .head_dim = head_dim_,
          .keys = keys_.data() + kv_head * padded_ * head_dim_,
          .key_scales = key_scales_.data() + kv_head * padded_,
          .values = values_.data() + kv_head * padded_ * head_dim_,
          .value_scales = value_scales_.data() + kv_head * head_dim_};
}

bool uses_int_attention(const Kernels& kernels, const Model& model, std::int64_t positions) {
  return model.numerics == Numerics::kInt8 && kernels.attend != nullptr &&
         IntKvCache::fits(model.config, positions);
}

void attend_int(const Machine& machine, const ModelConfig& config, const IntKvCache& cache,
                KeyMask mask, ConstRows q, Rows out) {
  const std::int64_t head_dim = config.head_dim();
  const std::int64_t shared = config.num_heads / config.num_kv_heads;
  const std::int64_t count = cache.head(0).count;
  const std::int64_t chunks = (q.count + kChunkRows - 1) / kChunkRows;
  const std::uint8_t* const allowed = mask.empty() ? nullptr : mask.data();
  machine.split(config.num_heads * chunks, kChunkRows * count * head_dim / 2,
                [&](std::int64_t begin, std::int64_t end) {
                  AlignedBuffer<float> scratch(static_cast<std::size_t>(attention_scratch(count)));
                  for (std::int64_t unit = begin; unit < end; ++unit) {
                    const std::int64_t head = unit / chunks;
                    const std::int64_t first = unit % chunks * kChunkRows;
                    const std::int64_t rows = std::min(kChunkRows, q.count - first);
                    machine.kernels->attend(
                        cache.head(head / shared), allowed,
                        {q.data + first * q.stride + head * head_dim, rows, q.stride},
                        scratch.data(),
                        {out.data + first * out.stride + head * head_dim, rows, out.stride});
                  }
                });
}

void attend_kv_head_int(const Kernels& kernels, const ModelConfig& config, const IntKvCache& cache,
                        std::int64_t kv_head, KeyMask mask, const float* q, float* scratch,
                        float* out) noexcept {
  const std::int64_t head_dim = config.head_dim();
  const std::int64_t shared = config.num_heads / config.num_kv_heads;  // query heads a kv head
  const std::int64_t at = kv_head * shared * head_dim;
  kernels.attend(cache.head(kv_head), mask.empty() ? nullptr : mask.data(),
                 {q + at, shared, head_dim}, scratch, {out + at, shared, head_dim});
}

}  // namespace needle::runtime
