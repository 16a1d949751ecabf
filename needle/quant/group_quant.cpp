#include "needle/quant/group_quant.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "needle/core/error.h"

namespace needle {

QuantizedKernel quantize_groups(std::span<const float> weight, std::int64_t in, std::int64_t out,
                                QuantBits bits, std::int64_t group_size) {
  NEEDLE_CHECK(in > 0 && out > 0 && group_size > 0, "kernel [{}, {}] in groups of {}", in, out,
               group_size);
  const auto rows = static_cast<std::size_t>(in);
  const auto columns = static_cast<std::size_t>(out);
  NEEDLE_CHECK(weight.size() / columns == rows && weight.size() % columns == 0,
               "{} weights for a kernel [{}, {}]", weight.size(), in, out);

  QuantizedKernel kernel;
  kernel.in = in;
  kernel.out = out;
  kernel.group_size = std::min(group_size, in);
  const auto group = static_cast<std::size_t>(kernel.group_size);
  const std::size_t groups = (rows + group - 1) / group;
  const auto largest_code = static_cast<float>(max_code(bits));
  kernel.codes.resize(weight.size());
  kernel.scales.assign(groups * columns, 0.0f);

  for (std::size_t g = 0; g < groups; ++g) {
    const std::span<float> scales =
        std::span(kernel.scales).subspan(g * columns, columns);  // [out]
    const std::size_t end = std::min(rows, (g + 1) * group);
    for (std::size_t row = g * group; row < end; ++row) {
      for (std::size_t column = 0; column < columns; ++column) {
        const float magnitude = std::fabs(weight[row * columns + column]);
        NEEDLE_CHECK(std::isfinite(magnitude), "weight [{}, {}] is not finite", row, column);
        scales[column] = std::max(scales[column], magnitude);
      }
    }
    for (float& scale : scales) {
      scale = std::max(scale / largest_code, kMinScale);
    }
    for (std::size_t row = g * group; row < end; ++row) {
      for (std::size_t column = 0; column < columns; ++column) {
        const std::size_t i = row * columns + column;
        // nearbyint rounds half to even in the default mode; the quotient is at most about
        // largest_code.
        const float code = std::nearbyint(weight[i] / scales[column]);
        kernel.codes[i] =
            static_cast<std::int8_t>(std::clamp(code, -largest_code - 1.0f, largest_code));
      }
    }
  }
  return kernel;
}

std::vector<float> dequantize(const QuantizedKernel& kernel) {
  NEEDLE_CHECK(kernel.in > 0 && kernel.out > 0 && kernel.group_size > 0,
               "kernel [{}, {}] in groups of {}", kernel.in, kernel.out, kernel.group_size);
  const auto rows = static_cast<std::size_t>(kernel.in);
  const auto columns = static_cast<std::size_t>(kernel.out);
  const auto group = static_cast<std::size_t>(kernel.group_size);
  NEEDLE_CHECK(kernel.codes.size() == rows * columns, "{} codes for a kernel [{}, {}]",
               kernel.codes.size(), kernel.in, kernel.out);
  NEEDLE_CHECK(kernel.scales.size() == (rows + group - 1) / group * columns,
               "{} scales for a kernel [{}, {}] in groups of {}", kernel.scales.size(), kernel.in,
               kernel.out, kernel.group_size);
  std::vector<float> weight(kernel.codes.size());  // [in, out]
  for (std::size_t row = 0; row < rows; ++row) {
    const float* scales = kernel.scales.data() + row / group * columns;
    for (std::size_t column = 0; column < columns; ++column) {
      const std::size_t i = row * columns + column;
      weight[i] = static_cast<float>(kernel.codes[i]) * scales[column];
    }
  }
  return weight;
}

}  // namespace needle
