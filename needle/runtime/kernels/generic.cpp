// Vectors of four floats: what every 64-bit CPU has (SSE2, NEON). No special compile flags.
#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {
namespace {

constexpr int kLanes = 4;
#include "needle/runtime/kernels/vector_loops.inc"

bool supported() noexcept { return true; }

}  // namespace

const Kernels kGenericKernels{.name = "generic",
                              .supported = supported,
                              .multiply = multiply,
                              .softmax = softmax,
                              .quantize = nullptr,
                              .multiply_int4 = nullptr,
                              .attend = nullptr};

}  // namespace needle::runtime
