// AVX-512 (F, DQ, VL).
#include <cstddef>

#include "needle/model/kernels/kernels.h"

namespace needle {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0;
}

#include "needle/model/kernels/row_loops.inc"

}  // namespace

const RowKernels kAvx512RowKernels = {
    .name = "avx512",
    .supported = supported,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .heads_forward = heads_forward,
    .heads_backward = heads_backward,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .loss_rows = loss_rows,
    .fake_quantize = fake_quantize,
    .adam = adam,
    .muon = muon,
};

}  // namespace needle
