// The rotations of positions, made once for a model and shared by its requests.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "needle/quant/model_config.h"

namespace needle::runtime {

// cos and sin of t * theta^(-2i/D), float32 [positions][D/2]. A position's values are the same in
// every table.
class RopeTable {
 public:
  RopeTable(const ModelConfig& config, std::int64_t positions);
  std::int64_t positions() const { return positions_; }
  const float* cos(std::int64_t position) const { return cos_.data() + position * half_; }
  const float* sin(std::int64_t position) const { return sin_.data() + position * half_; }

 private:
  std::int64_t positions_;
  std::int64_t half_;
  std::vector<float> cos_;
  std::vector<float> sin_;
};

// The last table is kept: a request's own were 2 % of its time (a small model, 1.6 ms). Safe from
// several threads.
class RopeTables {
 public:
  // Longer ones are the caller's alone: 1 MB in the released shape.
  static constexpr std::int64_t kMostKept = 4096;

  std::shared_ptr<const RopeTable> at_least(const ModelConfig& config,
                                            std::int64_t positions) const;

 private:
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const RopeTable> kept_;
};

}  // namespace needle::runtime
