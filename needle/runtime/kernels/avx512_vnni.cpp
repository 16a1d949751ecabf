// Sixteen rows of four products an instruction (vpdpbusd). Compiled with -mavx512f -mavx512bw
// -mavx512vl -mavx512vnni.
#include <immintrin.h>

#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {
namespace {

constexpr int kLanes = 16;
#include "needle/runtime/kernels/int8_quantize.inc"
#include "needle/runtime/kernels/vector_loops.inc"

bool supported() noexcept {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512vnni") != 0;
}

inline __m512i four_codes(const std::int8_t* from) {
  std::int32_t four;
  __builtin_memcpy(&four, from, sizeof four);
  return _mm512_set1_epi32(four);
}

inline __m512i load_steps(const std::uint8_t* from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline void store_block(const Int4Matrix& w, std::int64_t block, __m512i sums, float scale,
                        float* to) {
  const __m512 units = _mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.units + 2 * block * kPanelWidth))),
      16));
  const std::int64_t valid = w.out - block * kPanelWidth;
  const auto mask = static_cast<__mmask16>(valid >= kPanelWidth ? 0xFFFF : (1 << valid) - 1);
  _mm512_mask_storeu_ps(
      to + block * kPanelWidth, mask,
      _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(_mm512_set1_ps(scale), units)));
}

// 16 * kBlocks outputs of kRows rows: 2 x 6 keep 24 sums in registers. A group's dot product fits
// 16 bits, so that times the step, it is one vpdpwssd: the upper halves of the steps are zero.
template <int kBlocks, int kRows>
void tile(const Int4Matrix& w, const ConstInt8Rows& x, std::int64_t row, Rows y,
          std::int64_t block) {
  const std::int64_t groups = (w.in + kPanelGroup - 1) / kPanelGroup;
  const __m512i low_mask = _mm512_set1_epi8(15);
  __m512i sums[kBlocks][kRows];
  for (int b = 0; b < kBlocks; ++b) {
    for (int r = 0; r < kRows; ++r) {
      sums[b][r] = _mm512_setzero_si512();
    }
  }
  for (std::int64_t group = 0; group < groups; ++group) {
    __m512i dots[kBlocks][kRows];
    for (int r = 0; r < kRows; ++r) {
      const __m512i offset = _mm512_set1_epi32(x.offsets[(row + r) * groups + group]);
      for (int b = 0; b < kBlocks; ++b) {
        dots[b][r] = offset;
      }
    }
    const std::int8_t* const from = x.codes + (row * groups + group) * kPanelGroup;
    for (int quad = 0; quad < 4; ++quad) {
      for (int b = 0; b < kBlocks; ++b) {
        const __m512i both =
            _mm512_loadu_si512(w.codes + ((block + b) * groups + group) * 256 + 64 * quad);
        const __m512i low = _mm512_and_si512(both, low_mask);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_mask);
        for (int r = 0; r < kRows; ++r) {
          const std::int8_t* const codes = from + r * groups * kPanelGroup + 4 * quad;
          dots[b][r] = _mm512_dpbusd_epi32(dots[b][r], low, four_codes(codes));
          dots[b][r] = _mm512_dpbusd_epi32(dots[b][r], high, four_codes(codes + 16));
        }
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      const __m512i steps = load_steps(w.steps + ((block + b) * groups + group) * kPanelWidth);
      for (int r = 0; r < kRows; ++r) {
        sums[b][r] = _mm512_dpwssd_epi32(sums[b][r], dots[b][r], steps);
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    for (int r = 0; r < kRows; ++r) {
      store_block(w, block + b, sums[b][r], x.scales[row + r], y.data + (row + r) * y.stride);
    }
  }
}

// One row: the high halves stay where they are in their bytes, sixteen times too large, and are
// shifted once a group. Two chains a block hide the latency of the dot products.
template <int kBlocks>
void one_row(const Int4Matrix& w, const ConstInt8Rows& x, std::int64_t row, Rows y,
             std::int64_t block) {
  const std::int64_t groups = (w.in + kPanelGroup - 1) / kPanelGroup;
  const __m512i low_mask = _mm512_set1_epi8(15);
  __m512i sums[kBlocks];
  for (int b = 0; b < kBlocks; ++b) {
    sums[b] = _mm512_setzero_si512();
  }
  const std::int8_t* from = x.codes + row * groups * kPanelGroup;
  for (std::int64_t group = 0; group < groups; ++group, from += kPanelGroup) {
    __m512i low[kBlocks];
    __m512i high[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
      low[b] = _mm512_set1_epi32(x.offsets[row * groups + group]);
      high[b] = _mm512_setzero_si512();
    }
    for (int quad = 0; quad < 4; ++quad) {
      const __m512i first = four_codes(from + 4 * quad);
      const __m512i second = four_codes(from + 16 + 4 * quad);
      for (int b = 0; b < kBlocks; ++b) {
        const __m512i both =
            _mm512_loadu_si512(w.codes + ((block + b) * groups + group) * 256 + 64 * quad);
        low[b] = _mm512_dpbusd_epi32(low[b], _mm512_and_si512(both, low_mask), first);
        high[b] = _mm512_dpbusd_epi32(high[b], _mm512_andnot_si512(low_mask, both), second);
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      const __m512i dots = _mm512_add_epi32(low[b], _mm512_srai_epi32(high[b], 4));
      sums[b] = _mm512_dpwssd_epi32(
          sums[b], dots, load_steps(w.steps + ((block + b) * groups + group) * kPanelWidth));
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    store_block(w, block + b, sums[b], x.scales[row], y.data + row * y.stride);
  }
}

template <int kBlocks>
void some_rows(const Int4Matrix& w, const ConstInt8Rows& x, std::int64_t row, Rows y,
               std::int64_t block) {
  switch (x.count - row) {
    case 0:
      return;
    case 1:
      return one_row<kBlocks>(w, x, row, y, block);
    case 2:
      return tile<kBlocks, 2>(w, x, row, y, block);
    case 3:
      return tile<kBlocks, 3>(w, x, row, y, block);
    case 4:
      return tile<kBlocks, 4>(w, x, row, y, block);
    default:
      return tile<kBlocks, 5>(w, x, row, y, block);
  }
}

void multiply_int4(const Int4Matrix& w, const ConstInt8Rows& x, Rows y, std::int64_t begin,
                   std::int64_t end) noexcept {
  constexpr int kTileRows8 = 6;
  std::int64_t block = begin;
  if (x.count == 1) {
    for (; block + 4 <= end; block += 4) {
      one_row<4>(w, x, 0, y, block);
    }
  }
  for (; block < end; block += 2) {
    const bool pair = block + 2 <= end;
    std::int64_t row = 0;
    for (; row + kTileRows8 <= x.count; row += kTileRows8) {
      pair ? tile<2, kTileRows8>(w, x, row, y, block) : tile<1, kTileRows8>(w, x, row, y, block);
    }
    pair ? some_rows<2>(w, x, row, y, block) : some_rows<1>(w, x, row, y, block);
  }
}

}  // namespace

const Kernels kAvx512VnniKernels{.name = "avx512vnni",
                                 .supported = supported,
                                 .multiply = multiply,
                                 .softmax = softmax,
                                 .quantize = quantize,
                                 .multiply_int4 = multiply_int4};

}  // namespace needle::runtime
