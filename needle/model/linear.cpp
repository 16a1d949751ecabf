#include "needle/model/linear.h"

namespace needle {

KernelLinearImpl::KernelLinearImpl(const KernelLinearOptions& options)
    : weight(add_parameter("weight", weight, torch::zeros({options.out, options.in}))) {
  if (options.bias) {
    bias = add_parameter("bias", bias, torch::zeros({options.out}));
  }
}

torch::Tensor KernelLinearImpl::forward(const torch::Tensor& x) {
  const auto dtype = x.scalar_type();
  return torch::linear(x, weight_path(weight, dtype), bias.defined() ? bias.to(dtype) : bias);
}

}  // namespace needle
