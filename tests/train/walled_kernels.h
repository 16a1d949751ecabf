// The tests' device (walled_device.cpp): its kernels, which are LibTorch's for the CPU over memory
// behind the wall.
#pragma once

#include <torch/torch.h>

namespace walled {

bool is_walled(const at::Tensor& tensor);

// The same values as a tensor of the CPU, to be used while a passage is open.
at::Tensor as_host(const at::Tensor& tensor);

}  // namespace walled
