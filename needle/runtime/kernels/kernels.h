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

// Rows of activations in 8 bits: x[r][i] = scale[r] * code[r][i]. With `paired` 1 in 16 bits: rows
// 2 r and 2 r + 1 of codes are both of row r, the second are of what the first leave over.
struct ConstInt8Rows {
  const std::int8_t* codes = nullptr;  // [count][32 * groups], zeros past the inputs
  const float* scales = nullptr;       // [count]
  // -8 times the sum of each group's codes, [count][groups]: what the offset of the stored
  // 4-bit codes adds to a sum of products, the other way round.
  const std::int32_t* offsets = nullptr;
  std::int64_t count = 0;  // of rows of codes
  int paired = 0;
};
struct Int8Rows {
  std::int8_t* codes = nullptr;
  float* scales = nullptr;
  std::int32_t* offsets = nullptr;
  int paired = 0;
};

// Keys and values of one key/value head in 12 bits, all positions visible to every query:
// key[t][i] = key_scale[t] * code, value[t][i] = value_scale[i] * code. With 8 bits, attention over
// the prompt was measured to change one answer in 33. Blocks of 32 positions, zeros past T; the
// values of positions t and t + 16 of a block lie side by side.
struct IntKeyValues {
  std::int64_t count = 0;                // T, 1 to kMaxIntPositions
  std::int64_t head_dim = 0;             // D, a multiple of 16, at most kMaxIntHeadDim
  const std::int16_t* keys = nullptr;    // [ceil(T / 32)][2][D / 2][16][2]
  const float* key_scales = nullptr;     // [32 * ceil(T / 32)]
  const std::int16_t* values = nullptr;  // [ceil(T / 32)][16][D][2]
  const float* value_scales = nullptr;   // [D]
};
// The same, to be written.
struct IntKeyValuesRoom {
  std::int64_t head_dim = 0;
  std::int16_t* keys = nullptr;
  float* key_scales = nullptr;
  std::int16_t* values = nullptr;
  float* value_scales = nullptr;
};
inline constexpr std::int64_t kIntBlock = 32;       // positions
inline constexpr std::int32_t kLargestCode = 2047;  // squared times kMaxIntHeadDim fits 32 bits
inline constexpr std::int64_t kMaxIntPositions = 1 << 16;
// A probability relative to the largest is at most min(kLargestShare, kShares / T): all of them
// together, times kLargestCode, fit 32 bits.
inline constexpr std::int64_t kLargestShare = 4095;
inline constexpr std::int64_t kShares = 1 << 20;
inline constexpr std::int64_t kMaxIntHeadDim = 256;
inline constexpr std::int64_t kAttendRows = 12;     // queries at a time
inline constexpr std::int64_t kAttendTile = 16;     // the same with AMX,
inline constexpr std::int64_t kMaxAttendTiles = 6;  // and at most so many times

// 2^f for |f| <= 1/2 within 7.5e-5, a third of what rounding to a share of 12 bits does. Minimax in
// the relative error.
inline constexpr float kPower0 = 0.99992805719f;
inline constexpr float kPower1 = 0.69326096773f;
inline constexpr float kPower2 = 0.24261112511f;
inline constexpr float kPower3 = 0.05517166853f;
inline constexpr float kLeastPower = -24.0f;  // below, a share of 12 bits is 0
inline constexpr float kLog2E = 1.44269504089f;
inline constexpr float kRounder =
    12582912.0f;  // 1.5 * 2^23: adding it leaves no room for fractions

inline constexpr float kNormEpsilon = 1e-6f;

// What becomes of every head of a projection's rows: norm, rotation, scale.
struct HeadTransform {
  std::int64_t head_dim = 0;       // D
  const float* factors = nullptr;  // [D], the norm's
  // Cosines and sines of the rows' positions, [rows][D / 2], or nullptr: no rotation.
  const float* cos = nullptr;
  const float* sin = nullptr;
  float scale = 1;
};

struct Kernels {
  // "scalar", "generic", "avx2", "avx512", "avx512vnni", "avx512amx", "neon"; NEEDLE_ISA selects
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

  // The next three are nullptr in generic, whose float loops are faster: a model then computes in
  // float.

  // The `in` floats of each row in 8 bits: scale = largest magnitude / 127, codes rounded to the
  // nearest, ties to even. A row of zeros, or with a value that is not finite, has scale 0 or NaN
  // and codes 0. With to.paired, the same of what these codes leave over. Every table gives the
  // same bits.
  void (*quantize)(ConstRows x, std::int64_t in, Int8Rows to) noexcept;

  // y[r, o] = (sum of the integer products) * (scale[r] * unit[o]) for the outputs of blocks
  // begin .. end - 1; of paired rows the two are added. The sum is exact, so every table, split and
  // batch gives the same bits.
  void (*multiply_int4)(const Int4Matrix& w, const ConstInt8Rows& x, Rows y, std::int64_t begin,
                        std::int64_t end) noexcept;

  // out = softmax(q K^T) V for rows of queries [D], already divided by sqrt(D). Queries in 12
  // bits with a scale each, probabilities as integer shares of the row's largest. mask: a byte a
  // key, 0 = masked, or nullptr; a query whose keys are all masked attends uniformly. scratch:
  // attention_scratch(T, queries) floats (int_kv.h), aligned to 64 bytes. A row's result does not
  // depend on the others, and every table gives the same bits.
  void (*attend)(const IntKeyValues& kv, const std::uint8_t* mask, ConstRows q, float* scratch,
                 Rows out) noexcept;

  // The rest of a layer, over rows. Every table gives the same bits: sums of squares are sixteen
  // sums (of the elements i, i + 16, ...), then eight, four, two, one; nothing is fused.

  // x[r] += gate * update[r], unless update.data is nullptr; then, unless y.data is nullptr,
  // y[r] = factors * (x[r] / sqrt(mean(x[r]^2) + 1e-6)). factors: [width].
  void (*add_norm)(float gate, ConstRows update, const float* factors, std::int64_t width, Rows x,
                   Rows y) noexcept;
  // For each of `heads` heads [D] of the rows, in place: normed with the factors, rotated as
  // (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), multiplied by the scale.
  void (*transform_heads)(const HeadTransform& transform, std::int64_t heads, Rows rows) noexcept;
  // The keys of one head, rows [D], as positions first .. first + count - 1.
  void (*pack_keys)(ConstRows keys, std::int64_t first, const IntKeyValuesRoom& to) noexcept;
  // The values of one head at all positions, rows [D]; a scale a channel needs all of them.
  void (*pack_values)(ConstRows values, const IntKeyValuesRoom& to) noexcept;

  // Runs nothing but independent 8-bit dot products, `rounds` times, and returns how many
  // multiplications that was: the measure of multiply_int4. nullptr where there is none.
  std::int64_t (*peak)(std::int64_t rounds) noexcept = nullptr;

  std::int64_t attend_rows = kAttendRows;  // queries that attend takes at a time
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
extern const Kernels kAvx512AmxKernels;   // x86-64 only
extern const Kernels kNeonKernels;        // 64-bit ARM only

}  // namespace needle::runtime
