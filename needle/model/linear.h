// A dense kernel: y = x W^T (+ b), the weight quantised when fake quantisation is on and cast to
// the type of x.
#pragma once

#include <cstdint>

#include <torch/torch.h>

#include "needle/model/fake_quant.h"
#include "needle/model/parameter_module.h"

namespace needle {

struct KernelLinearOptions {
  std::int64_t in = 0;
  std::int64_t out = 0;
  bool bias = false;
};

class KernelLinearImpl : public ParameterModule {
 public:
  explicit KernelLinearImpl(const KernelLinearOptions& options);

  torch::Tensor forward(const torch::Tensor& x);  // [..., in] -> [..., out], dtype of x

  torch::Tensor weight;  // [out, in]
  torch::Tensor bias;    // [out], undefined without
  WeightPath weight_path;
};
TORCH_MODULE(KernelLinear);

}  // namespace needle
