// Rotary positions in the half-split ("NeoX") convention.
// Source: J. Su et al., "RoFormer", 2021; specification, section 1.
#pragma once

#include <cstdint>
#include <mutex>

#include <torch/torch.h>

namespace needle {

// Tables of one stretch of positions. Undefined tables mean no
// rotation (cross-attention).
struct Rope {
  torch::Tensor cos;  // float32 [T, D/2]
  torch::Tensor sin;  // float32 [T, D/2]

  Rope at(std::int64_t position,
          std::int64_t count = 1) const;  // rows position .. position + count - 1
};

// Angles t * theta^(-2i/D) for t in 0 .. length - 1 and i in 0 .. D/2 - 1.
Rope make_rope(std::int64_t length, std::int64_t head_dim, double theta, torch::Device device);

// The tables that a stack of layers needs, kept where they were needed last, so that a forward pass
// copies nothing from the host. Thread-safe.
class RopeTable {
 public:
  RopeTable(std::int64_t head_dim, double theta) : head_dim_(head_dim), theta_(theta) {}
  Rope first(std::int64_t length, torch::Device device);  // positions 0 .. length - 1

 private:
  std::int64_t head_dim_;
  double theta_;
  std::mutex mutex_;
  Rope kept_;
};

// x [B, heads, T, D] with halves (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin). float32, whatever
// x was: the float32 tables promote it, as in the reference.
torch::Tensor rotate(const torch::Tensor& x, const Rope& rope);

}  // namespace needle
