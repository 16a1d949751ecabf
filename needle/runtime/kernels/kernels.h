// The inner loops, as a table of functions: one table an instruction set, one file a table, each
// with its own compile flags. scalar.cpp is the specification; the others must agree with it within
// float rounding. This header holds no inline functions, so that no file's flags leak into another.
#pragma once

#include <cstdint>

namespace needle::runtime {

inline constexpr std::int64_t kPanelWidth = 16;  // outputs a panel
inline constexpr std::int64_t kPanelGroup = 32;  // inputs that share a scale

// A matrix cut into panels of 16 outputs, so that every loop runs over contiguous outputs:
// y[o] = sum over i of x[i] * w[i][o]. Either `values`, or `codes` with their `scales`.
// Columns past `out` exist and hold anything finite. Does not own its memory.
struct Panels {
  std::int64_t in = 0;
  std::int64_t out = 0;
  std::int64_t stride = 0;             // elements from one panel to the next, at least 16 * in
  const float* values = nullptr;       // [panels][in][16]
  const std::int8_t* codes = nullptr;  // [panels][in][16]
  const float* scales = nullptr;       // [panels][ceil(in / 32)][16]
};

struct ConstRows {
  const float* data = nullptr;  // [count, ...]
  std::int64_t count = 0;
  std::int64_t stride = 0;  // floats from row to row
};
struct Rows {
  float* data = nullptr;
  std::int64_t count = 0;
  std::int64_t stride = 0;
};

// A 4-bit matrix as it lies in the weights file (quant/pack.h): nothing is repacked or copied.
// weight[o][i] = unit[o] * step[o][i / 32] * code[o][i]. Does not own its memory, which has
// any alignment.
struct Int4Matrix {
  std::int64_t in = 0;  // at most kMaxInt4Inputs
  std::int64_t out = 0;
  const std::uint8_t* codes = nullptr;  // [blocks of 16 outputs][groups of 32 inputs][256]
  const std::uint8_t* steps = nullptr;  // [blocks][groups][16]
  const std::uint8_t* units = nullptr;  // bfloat16 [blocks][16]
};
// A sum over a group is within 32 * 8 * 127, times a step within 255: so many groups fit 32 bits.
inline constexpr std::int64_t kMaxInt4Inputs = 256 * kPanelGroup;

// Rows of activations in 8 bits: x[r][i] = scale[r] * code[r][i].
struct ConstInt8Rows {
  const std::int8_t* codes = nullptr;  // [count][32 * groups], zeros past the inputs
  const float* scales = nullptr;       // [count]
  // -8 times the sum of each group's codes, [count][groups]: what the offset of the stored
  // 4-bit codes adds to a sum of products, the other way round.
  const std::int32_t* offsets = nullptr;
  std::int64_t count = 0;
};
struct Int8Rows {
  std::int8_t* codes = nullptr;
  float* scales = nullptr;
  std::int32_t* offsets = nullptr;
};

// Keys and values of one key/value head in 12 bits, all positions visible to every query:
// key[t][i] = key_scale[t] * code, value[t][i] = value_scale[i] * code. With 8 bits, attention over
// the prompt was measured to change one answer in 33.
struct IntKeyValues {
  std::int64_t count = 0;                // T, 1 to kMaxIntPositions
  std::int64_t head_dim = 0;             // D, a multiple of 16, at most kMaxIntHeadDim
  const std::int16_t* keys = nullptr;    // [ceil(T / 16)][D / 2][16][2]
  const float* key_scales = nullptr;     // [16 * ceil(T / 16)]
  const std::int16_t* values = nullptr;  // [ceil(T / 2)][D][2], zeros past T
  const float* value_scales = nullptr;   // [D]
};
inline constexpr std::int32_t kLargestCode = 2047;  // squared times kMaxIntHeadDim fits 32 bits
inline constexpr std::int64_t kMaxIntPositions = 1 << 16;
// A probability relative to the largest is at most min(kLargestShare, kShares / T): all of them
// together, times kLargestCode, fit 32 bits.
inline constexpr std::int64_t kLargestShare = 4095;
inline constexpr std::int64_t kShares = 1 << 20;
inline constexpr std::int64_t kMaxIntHeadDim = 256;
inline constexpr std::int64_t kAttendRows = 6;  // queries at a time

struct Kernels {
  // "scalar", "generic", "avx2", "avx512", "avx512vnni"; NEEDLE_ISA selects by it
  const char* name;
  bool (*supported)() noexcept;  // asks the CPU, not the compiler

  // y[r, o] = sum over i of x[r, i] * w[i, o] for the outputs of panels begin .. end - 1. A value
  // of y depends on nothing but its own row, its own panel and x.count: neither on the panels asked
  // for nor on threads. Does not allocate.
  void (*multiply)(const Panels& w, ConstRows x, Rows y, std::int64_t begin,
                   std::int64_t end) noexcept;

  // row[i] = exp(row[i] - max) / sum, i < count. The row must have room up to the next multiple of
  // 16; what lies there is overwritten.
  void (*softmax)(float* row, std::int64_t count) noexcept;

  // The integer kernels are nullptr in tables whose float loops are faster: a model then computes
  // in float (generic: all of it; avx2 and avx512: attention).

  // The `in` floats of each row in 8 bits: scale = largest magnitude / 127, codes rounded to the
  // nearest, ties to even. A row of zeros, or with a value that is not finite, has scale 0 or NaN
  // and codes 0. Every table gives the same bits.
  void (*quantize)(ConstRows x, std::int64_t in, Int8Rows to) noexcept;

  // y[r, o] = (sum of the integer products) * (scale[r] * unit[o]) for the outputs of blocks
  // begin .. end - 1. The sum is exact, so every table, split and batch gives the same bits.
  void (*multiply_int4)(const Int4Matrix& w, const ConstInt8Rows& x, Rows y, std::int64_t begin,
                        std::int64_t end) noexcept;

  // out = softmax(q K^T) V for rows of queries [D], already divided by sqrt(D). Queries in 12
  // bits with a scale each, probabilities as integer shares of the row's largest. mask: a byte a
  // key, 0 = masked, or nullptr; a query whose keys are all masked attends uniformly. scratch: room
  // for 2 * kAttendRows * 16 * ceil(T / 16) floats. A row's result does not depend on the others.
  void (*attend)(const IntKeyValues& kv, const std::uint8_t* mask, ConstRows q, float* scratch,
                 Rows out) noexcept;

  // Runs nothing but independent 8-bit dot products, `rounds` times, and returns how many
  // multiplications that was: the measure of multiply_int4. nullptr where there is none.
  std::int64_t (*peak)(std::int64_t rounds) noexcept = nullptr;
};

// The best table that this CPU supports, or the one that the environment variable NEEDLE_ISA names.
// Throws ConfigError if it is unknown or unsupported.
const Kernels& select_kernels();
const Kernels& find_kernels(const char* name);  // throws ConfigError as above

extern const Kernels kScalarKernels;
extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;        // x86-64 only
extern const Kernels kAvx512Kernels;      // x86-64 only
extern const Kernels kAvx512VnniKernels;  // x86-64 only

}  // namespace needle::runtime
