#include "needle/runtime/kv_cache.h"

namespace needle::runtime {
namespace {

std::int64_t panels_of(std::int64_t outputs) { return (outputs + kPanelWidth - 1) / kPanelWidth; }

}  // namespace

KvCache::KvCache(const ModelConfig& config, std::int64_t capacity)
    : heads_(config.num_kv_heads),
      head_dim_(config.head_dim()),
      capacity_(capacity),
      key_panels_(panels_of(capacity)),
      value_panels_(panels_of(head_dim_)),
      keys_(static_cast<std::size_t>(heads_ * key_panels_ * head_dim_ * kPanelWidth),
            Contents::kAnything),
      values_(static_cast<std::size_t>(heads_ * value_panels_ * capacity_ * kPanelWidth),
              Contents::kAnything) {}

void KvCache::store(std::int64_t position, const float* k, const float* v) noexcept {
  for (std::int64_t head = 0; head < heads_; ++head) {
    store_head(head, position, k + head * head_dim_, v + head * head_dim_);
  }
}

void KvCache::store_head(std::int64_t head, std::int64_t position, const float* k,
                         const float* v) noexcept {
  float* const keys = keys_.data() +
                      (head * key_panels_ + position / kPanelWidth) * head_dim_ * kPanelWidth +
                      position % kPanelWidth;
  float* const values = values_.data() + head * value_panels_ * capacity_ * kPanelWidth;
  for (std::int64_t i = 0; i < head_dim_; ++i) {
    keys[i * kPanelWidth] = k[i];
    values[(i / kPanelWidth * capacity_ + position) * kPanelWidth + i % kPanelWidth] = v[i];
  }
}

Panels KvCache::keys(std::int64_t head, std::int64_t count) const noexcept {
  return {.in = head_dim_,
          .out = count,
          .stride = head_dim_ * kPanelWidth,
          .values = keys_.data() + head * key_panels_ * head_dim_ * kPanelWidth};
}

Panels KvCache::values(std::int64_t head, std::int64_t count) const noexcept {
  return {.in = count,
          .out = head_dim_,
          .stride = capacity_ * kPanelWidth,
          .values = values_.data() + head * value_panels_ * capacity_ * kPanelWidth};
}

}  // namespace needle::runtime
