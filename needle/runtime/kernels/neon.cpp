// Vectors of four floats and four-wide byte dot products (sdot), which ARM CPUs have had since
// 2018. Compiled with -march=armv8.2-a+dotprod.
#include <arm_neon.h>
#include <sys/auxv.h>

#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {
namespace {

constexpr int kLanes = 4;
#include "needle/runtime/kernels/attention_neon.inc"
#include "needle/runtime/kernels/int8_quantize.inc"
#include "needle/runtime/kernels/rows.inc"
#include "needle/runtime/kernels/vector_loops.inc"

bool supported() noexcept {
  constexpr unsigned long kDotProduct = 1UL << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
}

// 4 outputs of the block from its output 4 * `quarter` on, for kRows rows. The codes are below 16:
// signed or unsigned is the same.
template <int kRows>
void tile(const Int4Matrix& w, const ConstInt8Rows& x, std::int64_t row, std::int64_t block,
          int quarter, int32x4_t (&sums)[kRows]) {
  const std::int64_t groups = (w.in + kPanelGroup - 1) / kPanelGroup;
  for (int r = 0; r < kRows; ++r) {
    sums[r] = vdupq_n_s32(0);
  }
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t at = block * groups + group;
    const std::uint8_t* const codes = w.codes + at * 256 + 16 * quarter;
    int8x16_t low[4];
    int8x16_t high[4];
    for (int quad = 0; quad < 4; ++quad) {
      const uint8x16_t both = vld1q_u8(codes + 64 * quad);
      low[quad] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
      high[quad] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    }
    std::int32_t step_bytes;
    __builtin_memcpy(&step_bytes, w.steps + at * kPanelWidth + 4 * quarter, sizeof step_bytes);
    const uint8x8_t bytes = vreinterpret_u8_s32(vdup_n_s32(step_bytes));
    const int32x4_t steps = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
    for (int r = 0; r < kRows; ++r) {
      const std::int8_t* const from = x.codes + ((row + r) * groups + group) * kPanelGroup;
      const int8x16_t first = vld1q_s8(from);
      const int8x16_t second = vld1q_s8(from + 16);
      int32x4_t dots = vdupq_n_s32(x.offsets[(row + r) * groups + group]);
      dots = vdotq_laneq_s32(dots, low[0], first, 0);
      dots = vdotq_laneq_s32(dots, low[1], first, 1);
      dots = vdotq_laneq_s32(dots, low[2], first, 2);
      dots = vdotq_laneq_s32(dots, low[3], first, 3);
      dots = vdotq_laneq_s32(dots, high[0], second, 0);
      dots = vdotq_laneq_s32(dots, high[1], second, 1);
      dots = vdotq_laneq_s32(dots, high[2], second, 2);
      dots = vdotq_laneq_s32(dots, high[3], second, 3);
      sums[r] = vmlaq_s32(sums[r], dots, steps);
    }
  }
}

template <int kRows>
void block_of_rows(const Int4Matrix& w, const ConstInt8Rows& x, std::int64_t row, Rows y,
                   std::int64_t block) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    int32x4_t sums[kRows];
    tile<kRows>(w, x, row, block, quarter, sums);
    for (int r = 0; r < kRows; ++r) {
      std::int32_t all[4];
      vst1q_s32(all, sums[r]);
      for (std::int64_t i = 0; i < 4; ++i) {
        const std::int64_t output = block * kPanelWidth + 4 * quarter + i;
        if (output < w.out) {
          const float product =
              static_cast<float>(all[i]) * (x.scales[row + r] * bfloat16_at(w.units, output));
          float& to = y.data[((row + r) >> x.paired) * y.stride + output];
          to = ((row + r) & x.paired) == 0 ? product : to + product;
        }
      }
    }
  }
}

void multiply_int4(const Int4Matrix& w, const ConstInt8Rows& x, Rows y, std::int64_t begin,
                   std::int64_t end) noexcept {
  constexpr int kTile = 8;
  for (std::int64_t block = begin; block < end; ++block) {
    std::int64_t row = 0;
    for (; row + kTile <= x.count; row += kTile) {
      block_of_rows<kTile>(w, x, row, y, block);
    }
    for (; row + 2 <= x.count; row += 2) {
      block_of_rows<2>(w, x, row, y, block);
    }
    if (row < x.count) {
      block_of_rows<1>(w, x, row, y, block);
    }
  }
}

}  // namespace

const Kernels kNeonKernels{.name = "neon",
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
