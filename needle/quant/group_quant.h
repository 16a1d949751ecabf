// The INT4/INT8 rule in plain C++ (specification, section 6): the one definition that fake
// quantisation, exporter and kernels are tested against.
//
// Symmetric, in groups along the input dimension of a kernel [in, out]: scale = max|w| / max_code,
// at least 1e-8; code = clip(round_half_even(w / scale), -(max_code + 1), max_code). The group is
// the whole input when that is shorter than the group size; a ragged last group counts as padded
// with zeros.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace needle {

inline constexpr std::int64_t kGroupSize = 32;
inline constexpr float kMinScale = 1e-8f;

enum class QuantBits { kInt4 = 4, kInt8 = 8 };
constexpr std::int32_t max_code(QuantBits bits) { return bits == QuantBits::kInt4 ? 7 : 127; }

struct QuantizedKernel {
  std::int64_t in = 0;
  std::int64_t out = 0;
  std::int64_t group_size = 0;     // min(kGroupSize, in)
  std::vector<std::int8_t> codes;  // [in, out]
  std::vector<float> scales;       // [ceil(in / group_size), out]
};

// `weight`: [in, out], row-major. Throws needle::Error if the sizes do not match.
QuantizedKernel quantize_groups(std::span<const float> weight, std::int64_t in, std::int64_t out,
                                QuantBits bits, std::int64_t group_size = kGroupSize);
std::vector<float> dequantize(const QuantizedKernel& kernel);  // [in, out]

}  // namespace needle
