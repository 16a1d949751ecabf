// Whatever vectors the compiler assumes by default.
#include <cstddef>

#include "needle/model/kernels/kernels.h"

namespace needle {
namespace {

bool supported() { return true; }

#include "needle/model/kernels/row_loops.inc"

}  // namespace

const RowKernels kGenericRowKernels = {
    .name = "generic",
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
