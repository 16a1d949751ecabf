#include "needle/runtime/rope_table.h"

#include <bit>
#include <cmath>

namespace needle::runtime {

RopeTable::RopeTable(const ModelConfig& config, std::int64_t positions)
    : positions_(positions), half_(config.head_dim() / 2) {
  const auto size = static_cast<std::size_t>(positions * half_);
  cos_.resize(size);
  sin_.resize(size);
  for (std::int64_t i = 0; i < half_; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(2 * half_);
    const auto frequency = static_cast<float>(std::pow(config.rope_theta, exponent));
    for (std::int64_t position = 0; position < positions; ++position) {
      // The angle is rounded to float32 as in the reference; its cosine is then taken exactly.
      const float angle = static_cast<float>(position) * frequency;
      cos_[static_cast<std::size_t>(position * half_ + i)] = std::cos(angle);
      sin_[static_cast<std::size_t>(position * half_ + i)] = std::sin(angle);
    }
  }
}

std::shared_ptr<const RopeTable> RopeTables::at_least(const ModelConfig& config,
                                                      std::int64_t positions) const {
  if (positions > kMostKept) {
    return std::make_shared<const RopeTable>(config, positions);
  }
  const std::lock_guard lock(mutex_);
  if (kept_ == nullptr || kept_->positions() < positions) {
    // Doubled, so that prompts that become longer token by token do not each make one.
    const auto room = std::bit_ceil(static_cast<std::uint64_t>(positions));
    kept_ = std::make_shared<const RopeTable>(config, static_cast<std::int64_t>(room));
  }
  return kept_;
}

}  // namespace needle::runtime
