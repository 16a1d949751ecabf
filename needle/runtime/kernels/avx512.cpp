// Vectors of sixteen floats: a panel row is one register. Compiled with -mavx512f.
#include <immintrin.h>

#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {
namespace {

constexpr int kLanes = 16;
#include "needle/runtime/kernels/attention_avx2.inc"
#include "needle/runtime/kernels/int8_avx2.inc"
#include "needle/runtime/kernels/rows.inc"
#include "needle/runtime/kernels/vector_loops.inc"

bool supported() noexcept { return __builtin_cpu_supports("avx512f") != 0; }

}  // namespace

const Kernels kAvx512Kernels{.name = "avx512",
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
