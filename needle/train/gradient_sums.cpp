#include "needle/train/gradient_sums.h"

#include <algorithm>
#include <array>

namespace needle {
namespace {

// As many sums at a time as keep the adders busy; the compiler takes vectors for them.
constexpr std::size_t kLanes = 32;
// Squares of so many numbers are added in float32 (64 a lane), blocks in float64; a block stays in
// the first cache.
constexpr std::size_t kBlock = 2048;

template <typename Term>
float sum_lanes(std::size_t count, const Term& term) {
  std::array<float, kLanes> lanes{};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += term(i + lane);
    }
  }
  for (std::size_t lane = 0; i < count; ++i, ++lane) {
    lanes[lane] += term(i);
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0];
}

}  // namespace

float copy_and_sum(std::span<const float> from, float* __restrict to) {
  const float* __restrict source = from.data();
  return sum_lanes(from.size(), [source, to](std::size_t i) { return to[i] = source[i]; });
}

double add_up(std::span<const float* const> parts, std::span<float> target) {
  double squares = 0.0;
  std::array<float, kBlock> sum;
  for (std::size_t start = 0; start < target.size(); start += kBlock) {
    const std::size_t count = std::min(kBlock, target.size() - start);
    std::copy_n(parts[0] + start, count, sum.begin());
    for (const float* const part : parts.subspan(1)) {
      const float* __restrict more = part + start;
      for (std::size_t i = 0; i < count; ++i) {
        sum[i] += more[i];
      }
    }
    std::copy_n(sum.begin(), count, target.begin() + static_cast<std::ptrdiff_t>(start));
    squares += sum_lanes(count, [&sum](std::size_t i) { return sum[i] * sum[i]; });
  }
  return squares;
}

}  // namespace needle
