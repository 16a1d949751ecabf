// AVX2 and FMA.
#include <cstddef>

#include "needle/model/kernels/kernels.h"

namespace needle {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
}

#include "needle/model/kernels/row_loops.inc"

}  // namespace

const RowKernels kAvx2RowKernels = {
    .name = "avx2",
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
