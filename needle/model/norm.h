// ZCRMSNorm: root-mean-square norm with a zero-centred scale (specification, section 1).
//
//   y = (1 + scale) * x / sqrt(mean(x^2) + 1e-6)
//
// Mean and product in float32, the result in the type of x.
#pragma once

#include <cstdint>

#include <torch/torch.h>

#include "needle/model/parameter_module.h"

namespace needle {

inline constexpr double kNormEpsilon = 1e-6;

class ZCRMSNormImpl : public ParameterModule {
 public:
  explicit ZCRMSNormImpl(std::int64_t size);

  torch::Tensor forward(const torch::Tensor& x);  // [..., size]

  torch::Tensor scale;  // [size], starts at 0
};
TORCH_MODULE(ZCRMSNorm);

}  // namespace needle
