#include "needle/runtime/int_kv.h"

namespace needle::runtime {
bool IntKvCache::fits(const ModelConfig& config, std::int64_t positions) {
  return config.head_dim() % kPanelWidth == 0 && config.head_dim() <= kMaxIntHeadDim &&
         positions <= kMaxIntPositions;
}

IntKvCache::IntKvCache(const ModelConfig& config, std::int64_t positions)
    : heads_(config.num_kv_heads),
      head_dim_(config.head_dim()),
      count_(positions),
      padded_((positions + kIntBlock - 1) / kIntBlock * kIntBlock),
      keys_(static_cast<std::size_t>(heads_ * padded_ * head_dim_)),
      key_scales_(static_cast<std::size_t>(heads_ * padded_)),
      values_(static_cast<std::size_t>(heads_ * padded_ * head_dim_)),
      value_scales_(static_cast<std::size_t>(heads_ * head_dim_)) {}

IntKeyValuesRoom IntKvCache::room(std::int64_t head) {
  return {.head_dim = head_dim_,
          .keys = keys_.data() + head * padded_ * head_dim_,
          .key_scales = key_scales_.data() + head * padded_,
          .values = values_.data() + head * padded_ * head_dim_,
          .value_scales = value_scales_.data() + head * head_dim_};
}

void IntKvCache::store_keys(const Kernels& kernels, std::int64_t first, ConstRows k) {
  for (std::int64_t head = 0; head < heads_; ++head) {
    kernels.pack_keys({k.data + head * head_dim_, k.count, k.stride}, first, room(head));
  }
}

void IntKvCache::store_values(const Machine& machine, ConstRows v) {
  constexpr std::int64_t kWork = 4;  // of one number, for Machine::split
  machine.split(heads_, count_ * head_dim_ * kWork, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t head = begin; head < end; ++head) {
      machine.kernels->pack_values({v.data + head * head_dim_, count_, v.stride}, room(head));
    }
  });
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
  return model.numerics != Numerics::kFloat && kernels.attend != nullptr &&
         IntKvCache::fits(model.config, positions);
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
