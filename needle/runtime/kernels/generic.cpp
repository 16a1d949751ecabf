// Vectors of four floats: what every 64-bit CPU has (SSE2, NEON). No special compile flags.
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {
namespace {

constexpr int kLanes = 4;
#include "needle/runtime/kernels/rows.inc"
#include "needle/runtime/kernels/vector_loops.inc"

bool supported() noexcept { return true; }

}  // namespace

const Kernels kGenericKernels{.name = "generic",
                              .supported = supported,
                              .multiply = multiply,
                              .softmax = softmax,
                              .quantize = nullptr,
                              .multiply_int4 = nullptr,
                              .attend = nullptr,
                              .add_norm = add_norm,
                              .transform_heads = transform_heads,
                              .pack_keys = pack_keys,
                              .pack_values = pack_values};

}  // namespace needle::runtime
