#include "needle/train/adamw.h"

#include <cmath>

namespace needle {

void adamw_step(const std::vector<torch::Tensor>& parameters,
                const std::vector<torch::Tensor>& gradients,
                const std::vector<torch::Tensor>& first_moments,
                const std::vector<torch::Tensor>& second_moments,
                const std::vector<std::int64_t>& updates, double lr, const AdamConfig& config) {
  if (parameters.empty()) {
    return;
  }
  const torch::NoGradGuard no_grad;
  at::_foreach_mul_(first_moments, config.beta1);
  at::_foreach_add_(first_moments, gradients, 1.0 - config.beta1);
  at::_foreach_mul_(second_moments, config.beta2);
  at::_foreach_addcmul_(second_moments, gradients, gradients, 1.0 - config.beta2);

  // The bias corrections are numbers of a parameter, so they join the two scalar factors.
  std::vector<at::Scalar> root_correction, step_size;
  for (const std::int64_t t : updates) {
    const auto power = static_cast<double>(t);
    root_correction.emplace_back(1.0 / std::sqrt(1.0 - std::pow(config.beta2, power)));
    step_size.emplace_back(-lr / (1.0 - std::pow(config.beta1, power)));
  }
  const auto denominator = at::_foreach_sqrt(second_moments);
  at::_foreach_mul_(denominator, root_correction);
  at::_foreach_add_(denominator, config.eps);
  if (config.weight_decay != 0.0) {
    at::_foreach_mul_(parameters, 1.0 - lr * config.weight_decay);
  }
  at::_foreach_addcdiv_(parameters, first_moments, denominator, step_size);
}

}  // namespace needle
