#include "needle/model/rope.h"

#include <algorithm>

namespace needle {

Rope Rope::at(std::int64_t position, std::int64_t count) const {
  return {.cos = cos.narrow(0, position, count), .sin = sin.narrow(0, position, count)};
}

Rope make_rope(std::int64_t length, std::int64_t head_dim, double theta, torch::Device device) {
  // Frequencies rounded to float32 once; angles are float32 products, as in the reference.
  const auto exponents =
      torch::arange(0, head_dim, 2, torch::kFloat64) / static_cast<double>(head_dim);
  const auto frequencies = torch::pow(theta, -exponents).to(torch::kFloat32);  // [D/2]
  const auto angles =
      torch::outer(torch::arange(length, torch::kFloat32), frequencies);  // [T, D/2]
  return {.cos = angles.cos().to(device), .sin = angles.sin().to(device)};
}

Rope RopeTable::first(std::int64_t length, torch::Device device) {
  constexpr std::int64_t kShortest = 64;
  const std::lock_guard lock(mutex_);
  const bool kept = kept_.cos.defined() && kept_.cos.device() == device;
  if (!kept || kept_.cos.size(0) < length) {
    const std::int64_t known = kept ? 2 * kept_.cos.size(0) : kShortest;
    kept_ = make_rope(std::max(length, known), head_dim_, theta_, device);
  }
  return kept_.at(0, length);
}

torch::Tensor rotate(const torch::Tensor& x, const Rope& rope) {
  const auto halves = x.chunk(2, -1);  // [B, heads, T, D/2]
  return torch::cat(
      {halves[0] * rope.cos - halves[1] * rope.sin, halves[1] * rope.cos + halves[0] * rope.sin},
      -1);
}

}  // namespace needle
