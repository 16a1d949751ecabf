// Two tables: sixteen rows of four products an instruction (vpdpbusd), and the same with products
// in tiles. Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mamx-tile -mamx-int8; no
// compiler makes tile instructions of its own accord.
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {
namespace {

constexpr int kLanes = 16;
#include "needle/runtime/kernels/attention_avx512.inc"
#include "needle/runtime/kernels/rows.inc"
#include "needle/runtime/kernels/vector_loops.inc"

bool supported() noexcept {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512vnni") != 0;
}

// Of each half of a register, in all its lanes.
inline __m512i sum_of_halves(__m512i lanes) {
  lanes = _mm512_add_epi32(lanes, _mm512_shuffle_epi32(lanes, _MM_PERM_BADC));
  lanes = _mm512_add_epi32(lanes, _mm512_shuffle_epi32(lanes, _MM_PERM_CDAB));
  return _mm512_add_epi32(lanes, _mm512_shuffle_i64x2(lanes, lanes, _MM_PERM_CDAB));
}

// 64 floats, of which `count` exist, to codes; -8 times the sums of the two groups in the lowest
// lanes of the halves.
inline __m512i quantize_64(const float* from, std::int64_t count, __m512 factor,
                           std::int8_t* codes) {
  __m512i rounded_codes[4];
  for (int i = 0; i < 4; ++i) {
    const std::int64_t valid = count - 16 * i;
    const auto mask = static_cast<__mmask16>(valid >= 16  ? 0xFFFF
                                             : valid <= 0 ? 0
                                                          : (1 << valid) - 1);
    rounded_codes[i] =
        _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from + 16 * i), factor));
  }
  const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(rounded_codes[0], rounded_codes[1]),
                                            _mm512_packs_epi32(rounded_codes[2], rounded_codes[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i in_order = _mm512_permutexvar_epi32(order, packed);
  const auto groups = static_cast<__mmask16>(count > kPanelGroup ? 0xFFFF : 0xFF);
  _mm512_mask_storeu_epi32(codes, groups, in_order);
  const __m512i sums =
      sum_of_halves(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), in_order));
  return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 3));
}

// Returns the scale. Not inlined twice: for size.
[[gnu::noinline]] float quantize_row(const float* from, std::int64_t in, std::int8_t* codes,
                                     std::int32_t* offsets) {
  const std::int64_t groups = (in + kPanelGroup - 1) / kPanelGroup;
  const std::int32_t bits = largest_magnitude(from, in);
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  if (bits >= kInfinityBits || !(largest > 1e-30f)) {
    __builtin_memset(codes, 0, static_cast<std::size_t>(groups * kPanelGroup));
    __builtin_memset(offsets, 0, static_cast<std::size_t>(groups) * sizeof offsets[0]);
    return bits >= kInfinityBits ? __builtin_nanf("") : 0.0f;
  }
  const __m512 factor = _mm512_set1_ps(127 / largest);
  for (std::int64_t i = 0; i < in; i += 2 * kPanelGroup) {
    const __m512i sums = quantize_64(from + i, in - i, factor, codes + i);
    const std::int64_t group = i / kPanelGroup;
    offsets[group] = _mm_cvtsi128_si32(_mm512_castsi512_si128(sums));
    if (group + 1 < groups) {
      offsets[group + 1] = _mm_cvtsi128_si32(_mm512_extracti32x4_epi32(sums, 2));
    }
  }
  return largest / 127;
}
#include "needle/runtime/kernels/quantize_rows.inc"

inline __m512i four_codes(const std::int8_t* from) {
  std::int32_t four;
  __builtin_memcpy(&four, from, sizeof four);
  return _mm512_set1_epi32(four);
}

// sum += four products of bytes a lane; assembly for the reason of add_pairs.
inline void add_quads(__m512i& sum, __m512i weights, __m512i codes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(codes));
}

inline __m512i load_steps(const std::uint8_t* from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// What turns the sums of a block into outputs, loaded once for several rows.
struct BlockEnd {
  BlockEnd(const Int4Matrix& w, std::int64_t block) : column(block * kPanelWidth) {
    units = _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.units + 2 * column))),
        16));
    const std::int64_t valid = w.out - column;
    mask = static_cast<__mmask16>(valid >= kPanelWidth ? 0xFFFF : (1 << valid) - 1);
  }
  // Of a row of codes, after those of the rows before.
  void store(__m512i sums, const ConstInt8Rows& x, std::int64_t row, Rows y) const {
    float* const to = y.data + (row >> x.paired) * y.stride + column;
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums),
                                   _mm512_mul_ps(_mm512_set1_ps(x.scales[row]), units));
    if ((row & x.paired) != 0) {
      product = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), product);
    }
    _mm512_mask_storeu_ps(to, mask, product);
  }

  std::int64_t column;
  __m512 units;
  __mmask16 mask;
};

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
          add_quads(dots[b][r], low, four_codes(codes));
          add_quads(dots[b][r], high, four_codes(codes + 16));
        }
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      const __m512i steps = load_steps(w.steps + ((block + b) * groups + group) * kPanelWidth);
      for (int r = 0; r < kRows; ++r) {
        add_pairs(sums[b][r], dots[b][r], steps);
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    const BlockEnd end(w, block + b);
    for (int r = 0; r < kRows; ++r) {
      end.store(sums[b][r], x, row + r, y);
    }
  }
}

// Two blocks' codes as bytes and their steps widened, once for many rows: unpacking costs as much
// as three dot products, on the same ports.
constexpr std::int64_t kWideGroups = 64;  // 74 kB on the stack at most; 18 with 512 inputs
constexpr std::int64_t kWideRows = 12;    // fewer are not worth it
struct WideBlocks {
  alignas(64) std::uint8_t codes[kWideGroups][8][2][64];  // a group's 4 inputs x 8, block, 16 x 4
  alignas(64) std::int32_t steps[kWideGroups][2][16];
};

inline void widen(const Int4Matrix& w, std::int64_t block, std::int64_t groups, WideBlocks& to) {
  const __m512i low_mask = _mm512_set1_epi8(15);
  for (std::int64_t group = 0; group < groups; ++group) {
    for (int b = 0; b < 2; ++b) {
      const std::int64_t at = (block + b) * groups + group;
      for (int quad = 0; quad < 4; ++quad) {
        const __m512i both = _mm512_loadu_si512(w.codes + at * 256 + 64 * quad);
        _mm512_store_si512(to.codes[group][quad][b], _mm512_and_si512(both, low_mask));
        _mm512_store_si512(to.codes[group][quad + 4][b],
                           _mm512_and_si512(_mm512_srli_epi16(both, 4), low_mask));
      }
      _mm512_store_si512(to.steps[group][b], load_steps(w.steps + at * kPanelWidth));
    }
  }
}

template <int kRows>
void wide_tile(const Int4Matrix& w, const WideBlocks& wide, const ConstInt8Rows& x,
               std::int64_t row, Rows y, std::int64_t block) {
  const std::int64_t groups = (w.in + kPanelGroup - 1) / kPanelGroup;
  __m512i sums[2][kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sums[0][r] = _mm512_setzero_si512();
    sums[1][r] = _mm512_setzero_si512();
  }
  const std::int8_t* from = x.codes + row * groups * kPanelGroup;
  const std::int32_t* offsets = x.offsets + row * groups;
  for (std::int64_t group = 0; group < groups; ++group, from += kPanelGroup, ++offsets) {
    __m512i dots[2][kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      dots[0][r] = _mm512_set1_epi32(offsets[r * groups]);
      dots[1][r] = _mm512_set1_epi32(offsets[r * groups]);
    }
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
      const __m512i first = _mm512_load_si512(wide.codes[group][quad][0]);
      const __m512i second = _mm512_load_si512(wide.codes[group][quad][1]);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const __m512i codes = four_codes(from + r * groups * kPanelGroup + 4 * quad);
        add_quads(dots[0][r], first, codes);
        add_quads(dots[1][r], second, codes);
      }
    }
#pragma GCC unroll 2
    for (int b = 0; b < 2; ++b) {
      const __m512i steps = _mm512_load_si512(wide.steps[group][b]);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        add_pairs(sums[b][r], dots[b][r], steps);
      }
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < 2; ++b) {
    const BlockEnd end(w, block + b);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      end.store(sums[b][r], x, row + r, y);
    }
  }
}

// One row: the high halves stay where they are in their bytes, sixteen times too large, and are
// shifted once a group. Two chains a block hide the latency of the dot products. Here
// intrinsics are a quarter faster than assembly.
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
    BlockEnd(w, block + b).store(sums[b], x, row, y);
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

constexpr int kTileRows8 = 6;

// All rows by the blocks `block` and `block` + 1, widened.
void multiply_wide(const Int4Matrix& w, const ConstInt8Rows& x, Rows y, std::int64_t begin,
                   std::int64_t end) {
  WideBlocks wide;
  const std::int64_t whole = x.count / kTileRows8 * kTileRows8;
  for (std::int64_t block = begin; block < end; block += 2) {
    widen(w, block, (w.in + kPanelGroup - 1) / kPanelGroup, wide);
    for (std::int64_t row = 0; row < whole; row += kTileRows8) {
      wide_tile<kTileRows8>(w, wide, x, row, y, block);
    }
    some_rows<2>(w, x, whole, y, block);
  }
}

void multiply_int4(const Int4Matrix& w, const ConstInt8Rows& x, Rows y, std::int64_t begin,
                   std::int64_t end) noexcept {
  std::int64_t block = begin;
  if (x.count == 1) {
    for (; block + 4 <= end; block += 4) {
      one_row<4>(w, x, 0, y, block);
    }
  }
  if (x.count >= kWideRows && w.in <= kWideGroups * kPanelGroup) {
    const std::int64_t pairs = (end - begin) / 2;
    multiply_wide(w, x, y, begin, begin + 2 * pairs);
    block = begin + 2 * pairs;
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

// 24 sums as in the largest tile; the operands pass through empty assembly so that no loop is
// foreseen.
std::int64_t peak(std::int64_t rounds) noexcept {
  constexpr int kChains = 24;
  constexpr int kRepeats = 16;
  __m512i sums[kChains];
  for (int i = 0; i < kChains; ++i) {
    sums[i] = _mm512_set1_epi32(i);
  }
  __m512i a = _mm512_set1_epi8(3);
  __m512i b = _mm512_set1_epi8(5);
  for (std::int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(a), "+v"(b));
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) {
        sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
      }
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) {
    asm volatile("" : : "v"(sums[i]));
  }
  return rounds * kRepeats * kChains * 64;
}

#include "needle/runtime/kernels/int4_amx.inc"
// Uses the one above.
#include "needle/runtime/kernels/attention_amx.inc"

}  // namespace

const Kernels kAvx512VnniKernels{.name = "avx512vnni",
                                 .supported = supported,
                                 .multiply = multiply,
                                 .softmax = softmax,
                                 .quantize = quantize,
                                 .multiply_int4 = multiply_int4,
                                 .attend = attend,
                                 .add_norm = add_norm,
                                 .transform_heads = transform_heads,
                                 .pack_keys = pack_keys,
                                 .pack_values = pack_values,
                                 .peak = peak};

const Kernels kAvx512AmxKernels{.name = "avx512amx",
                                .supported = supported_amx,
                                .multiply = multiply,
                                .softmax = softmax,
                                .quantize = quantize,
                                .multiply_int4 = multiply_int4_amx,
                                .attend = attend_amx,
                                .add_norm = add_norm,
                                .transform_heads = transform_heads,
                                .pack_keys = pack_keys,
                                .pack_values = pack_values,
                                .peak = peak,
                                .attend_rows = kAttendTile};

}  // namespace needle::runtime
