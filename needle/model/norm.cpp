#include "needle/model/norm.h"

namespace needle {

ZCRMSNormImpl::ZCRMSNormImpl(std::int64_t size)
    : scale(add_parameter("scale", scale, torch::zeros({size}))) {}

torch::Tensor ZCRMSNormImpl::forward(const torch::Tensor& x) {
  const auto wide = x.to(torch::kFloat32);
  const auto inverse_rms = torch::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + kNormEpsilon);
  return (wide * inverse_rms * (1.0 + scale)).to(x.scalar_type());
}

}  // namespace needle
