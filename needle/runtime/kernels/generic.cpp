// Vectors of four floats: what every 64-bit CPU has (SSE2, NEON). No special compile flags.
#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {
namespace {

constexpr int kLanes = 4;
#include "needle/runtime/kernels/int8_portable.inc"
#include "needle/runtime/kernels/int_attention.inc"
#include "needle/runtime/kernels/vector_loops.inc"

bool supported() noexcept { return true; }

}  // namespace

const Kernels kGenericKernels{.name = "generic",
                              .supported = supported,
                              .multiply = multiply,
                              .softmax = softmax,
                              .quantize = quantize,
                              .multiply_int4 = multiply_int4,
                              .attend = attend};

}  // namespace needle::runtime
