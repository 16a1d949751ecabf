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

struct Kernels {
  const char* name;              // "scalar", "generic", "avx2", "avx512"; NEEDLE_ISA selects by it
  bool (*supported)() noexcept;  // asks the CPU, not the compiler

  // y[r, o] = sum over i of x[r, i] * w[i, o] for the outputs of panels begin .. end - 1. A value
  // of y depends on nothing but its own row, its own panel and x.count: neither on the panels asked
  // for nor on threads. Does not allocate.
  void (*multiply)(const Panels& w, ConstRows x, Rows y, std::int64_t begin,
                   std::int64_t end) noexcept;

  // row[i] = exp(row[i] - max) / sum, i < count. The row must have room up to the next multiple of
  // 16; what lies there is overwritten.
  void (*softmax)(float* row, std::int64_t count) noexcept;
};

// The best table that this CPU supports, or the one that the environment variable NEEDLE_ISA names.
// Throws ConfigError if it is unknown or unsupported.
const Kernels& select_kernels();
const Kernels& find_kernels(const char* name);  // throws ConfigError as above

extern const Kernels kScalarKernels;
extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;    // x86-64 only
extern const Kernels kAvx512Kernels;  // x86-64 only

}  // namespace needle::runtime
