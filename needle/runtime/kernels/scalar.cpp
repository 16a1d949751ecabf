// The specification of the kernels: one value at a time, nothing clever.
#include <cmath>

#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {
namespace {

#include "needle/runtime/kernels/int8_portable.inc"
#include "needle/runtime/kernels/int_attention.inc"
#include "needle/runtime/kernels/rows_scalar.inc"

bool supported() noexcept { return true; }

void multiply(const Panels& w, ConstRows x, Rows y, std::int64_t begin, std::int64_t end) noexcept {
  const std::int64_t groups = (w.in + kPanelGroup - 1) / kPanelGroup;
  for (std::int64_t row = 0; row < x.count; ++row) {
    const float* const from = x.data + row * x.stride;
    for (std::int64_t panel = begin; panel < end; ++panel) {
      for (std::int64_t column = 0; column < kPanelWidth; ++column) {
        const std::int64_t output = panel * kPanelWidth + column;
        if (output >= w.out) {
          break;
        }
        float sum = 0;
        for (std::int64_t i = 0; i < w.in; ++i) {
          const std::int64_t at = panel * w.stride + i * kPanelWidth + column;
          if (w.values != nullptr) {
            sum += from[i] * w.values[at];
          } else {
            const std::int64_t group = panel * groups + i / kPanelGroup;
            sum += from[i] *
                   (w.scales[group * kPanelWidth + column] * static_cast<float>(w.codes[at]));
          }
        }
        y.data[row * y.stride + output] = sum;
      }
    }
  }
}

void softmax(float* row, std::int64_t count) noexcept {
  float largest = row[0];
  for (std::int64_t i = 1; i < count; ++i) {
    largest = row[i] > largest ? row[i] : largest;
  }
  float sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    row[i] = std::exp(row[i] - largest);
    sum += row[i];
  }
  for (std::int64_t i = 0; i < count; ++i) {
    row[i] /= sum;
  }
}

}  // namespace

const Kernels kScalarKernels{.name = "scalar",
                             .supported = supported,
                             .multiply = multiply,
                             .softmax = softmax,
                             .quantize = quantize,
                             .multiply_int4 = multiply_int4,
                             .attend = attend,
                             .add_norm = add_norm,
                             .transform_heads = transform_heads,
                             .pack_keys = pack_keys,
                             .pack_values = pack_values};

}  // namespace needle::runtime
