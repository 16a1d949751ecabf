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

// kRows queries against all keys. The scores of a row lie in `scores`, its probabilities in
// `shares`, both [kRows][16 * ceil(T / 16)].
template <int kRows>
struct AttentionTile {
  const IntKeyValues& kv;
  const std::uint8_t* mask;
  std::int64_t padded;
  float* scores;
  std::int16_t* shares;

  std::int16_t codes[kRows][kMaxIntHeadDim];
  float scales[kRows];
  float highest[kRows];
  std::int32_t totals[kRows];

  void quantize_queries(const float* q, std::int64_t stride) {
    for (int r = 0; r < kRows; ++r) {
      const float* const from = q + r * stride;
      __m512 largest = _mm512_setzero_ps();
      for (std::int64_t i = 0; i < kv.head_dim; i += 16) {
        largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(from + i)));
      }
      const float magnitude = _mm512_reduce_max_ps(largest);
      const __m512 factor = _mm512_set1_ps(magnitude > 1e-30f ? kLargestCode / magnitude : 0.0f);
      for (std::int64_t i = 0; i < kv.head_dim; i += 16) {
        const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + i), factor));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes[r] + i), _mm512_cvtepi32_epi16(code));
      }
      scales[r] = magnitude / kLargestCode;
    }
  }

  void score() {
    const std::int64_t pairs = kv.head_dim / 2;
    const __m512 lowest = _mm512_set1_ps(-3.402823466e+38f);
    __m512 largest[kRows];
    for (int r = 0; r < kRows; ++r) {
      largest[r] = lowest;
    }
    for (std::int64_t t = 0; t < kv.count; t += 16) {
      __m512i dots[kRows];
      for (int r = 0; r < kRows; ++r) {
        dots[r] = _mm512_setzero_si512();
      }
      const std::int16_t* const block = kv.keys + t * kv.head_dim;
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        const __m512i keys = _mm512_loadu_si512(block + 32 * pair);
        for (int r = 0; r < kRows; ++r) {
          std::int32_t two;
          __builtin_memcpy(&two, codes[r] + 2 * pair, sizeof two);
          dots[r] = _mm512_dpwssd_epi32(dots[r], keys, _mm512_set1_epi32(two));
        }
      }
      const __m512 key_scales = _mm512_loadu_ps(kv.key_scales + t);
      const std::int64_t valid = kv.count - t;
      auto allowed = static_cast<__mmask16>(valid >= 16 ? 0xFFFF : (1 << valid) - 1);
      if (mask != nullptr) {
        allowed = static_cast<__mmask16>(
            allowed & _mm_mask_test_epi8_mask(allowed, _mm_maskz_loadu_epi8(allowed, mask + t),
                                              _mm_set1_epi8(-1)));
      }
      for (int r = 0; r < kRows; ++r) {
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[r]),
                                            _mm512_mul_ps(_mm512_set1_ps(scales[r]), key_scales));
        const __m512 value = _mm512_mask_mov_ps(lowest, allowed, scaled);
        _mm512_storeu_ps(scores + r * padded + t, value);
        largest[r] = _mm512_max_ps(largest[r], value);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      highest[r] = _mm512_reduce_max_ps(largest[r]);
    }
  }

  void share_out() {
    const std::int64_t limit = kShares / kv.count;
    const auto largest_share = static_cast<float>(limit < kLargestShare ? limit : kLargestShare);
    for (int r = 0; r < kRows; ++r) {
      __m512i total = _mm512_setzero_si512();
      for (std::int64_t t = 0; t < padded; t += 16) {
        const Vector weight =
            exponential(load(scores + r * padded + t) - highest[r]) * largest_share;
        const std::int64_t valid = kv.count - t;
        const auto inside = static_cast<__mmask16>(valid >= 16 ? 0xFFFF : (1 << valid) - 1);
        const __m512i share = _mm512_maskz_cvtps_epi32(inside, (__m512)weight);
        total = _mm512_add_epi32(total, share);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(shares + r * padded + t),
                            _mm512_cvtepi32_epi16(share));
      }
      totals[r] = _mm512_reduce_add_epi32(total);
    }
  }

  // Of 16 * kBlocks channels from `channel` on.
  template <int kBlocks>
  void weigh(std::int64_t channel, float* out, std::int64_t stride) {
    __m512i sums[kRows][kBlocks];
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) {
        sums[r][b] = _mm512_setzero_si512();
      }
    }
    for (std::int64_t t = 0; t < kv.count; t += 2) {
      const std::int16_t* const from = kv.values + t * kv.head_dim + 2 * channel;
      __m512i values[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        values[b] = _mm512_loadu_si512(from + 32 * b);
      }
      for (int r = 0; r < kRows; ++r) {
        std::int32_t two;
        __builtin_memcpy(&two, shares + r * padded + t, sizeof two);
        for (int b = 0; b < kBlocks; ++b) {
          sums[r][b] = _mm512_dpwssd_epi32(sums[r][b], values[b], _mm512_set1_epi32(two));
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512 total = _mm512_set1_ps(static_cast<float>(totals[r]));
      for (int b = 0; b < kBlocks; ++b) {
        const __m512 scale =
            _mm512_div_ps(_mm512_loadu_ps(kv.value_scales + channel + 16 * b), total);
        _mm512_storeu_ps(out + r * stride + channel + 16 * b,
                         _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][b]), scale));
      }
    }
  }
};

template <int kRows>
void attend_tile(const IntKeyValues& kv, const std::uint8_t* mask, ConstRows q, std::int64_t row,
                 float* scratch, Rows out) {
  const std::int64_t padded = (kv.count + 15) / 16 * 16;
  AttentionTile<kRows> tile{.kv = kv,
                            .mask = mask,
                            .padded = padded,
                            .scores = scratch,
                            .shares = reinterpret_cast<std::int16_t*>(scratch + kRows * padded)};
  tile.quantize_queries(q.data + row * q.stride, q.stride);
  tile.score();
  tile.share_out();
  float* const to = out.data + row * out.stride;
  std::int64_t channel = 0;
  for (; channel + 64 <= kv.head_dim; channel += 64) {
    tile.template weigh<4>(channel, to, out.stride);
  }
  for (; channel < kv.head_dim; channel += 16) {
    tile.template weigh<1>(channel, to, out.stride);
  }
}

void attend(const IntKeyValues& kv, const std::uint8_t* mask, ConstRows q, float* scratch,
            Rows out) noexcept {
  std::int64_t row = 0;
  for (; row + kAttendRows <= q.count; row += kAttendRows) {
    attend_tile<kAttendRows>(kv, mask, q, row, scratch, out);
  }
  for (; row + 2 <= q.count; row += 2) {
    attend_tile<2>(kv, mask, q, row, scratch, out);
  }
  if (row < q.count) {
    attend_tile<1>(kv, mask, q, row, scratch, out);
  }
}

// 24 sums as in the largest tile; the operands pass through empty assembly so that no loop is
// foreseen.
std::int64_t peak(std::int64_t rounds) noexcept {
  constexpr int kSums = 24;
  constexpr int kRepeats = 16;
  __m512i sums[kSums];
  for (int i = 0; i < kSums; ++i) {
    sums[i] = _mm512_set1_epi32(i);
  }
  __m512i a = _mm512_set1_epi8(3);
  __m512i b = _mm512_set1_epi8(5);
  for (std::int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(a), "+v"(b));
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
#pragma GCC unroll 24
      for (int i = 0; i < kSums; ++i) {
        sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
      }
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) {
    asm volatile("" : : "v"(sums[i]));
  }
  return rounds * kRepeats * kSums * 64;
}

}  // namespace

const Kernels kAvx512VnniKernels{.name = "avx512vnni",
                                 .supported = supported,
                                 .multiply = multiply,
                                 .softmax = softmax,
                                 .quantize = quantize,
                                 .multiply_int4 = multiply_int4,
                                 .attend = attend,
                                 .peak = peak};

}  // namespace needle::runtime
