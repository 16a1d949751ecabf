#include "needle/train/adamw.h"

#include <algorithm>
#include <cmath>

#include <ATen/Parallel.h>

#include "needle/model/kernels/kernels.h"

namespace needle {
namespace {

bool fits_kernel(const torch::Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.scalar_type() == torch::kFloat32 &&
         tensor.is_contiguous();
}

// All of a parameter's tensors in one pass.
void update_on_host(const torch::Tensor& parameter, const torch::Tensor& gradient,
                    const torch::Tensor& first_moment, const torch::Tensor& second_moment,
                    const AdamUpdate& update) {
  constexpr std::int64_t kGrain = 1 << 15;
  const auto* g = gradient.const_data_ptr<float>();
  auto* p = parameter.data_ptr<float>();
  auto* m = first_moment.data_ptr<float>();
  auto* v = second_moment.data_ptr<float>();
  at::parallel_for(0, parameter.numel(), kGrain, [&](std::int64_t first, std::int64_t last) {
    row_kernels().adam(update, last - first, g + first, p + first, m + first, v + first);
  });
}

}  // namespace

void adamw_step(const std::vector<torch::Tensor>& parameters,
                const std::vector<torch::Tensor>& gradients,
                const std::vector<torch::Tensor>& first_moments,
                const std::vector<torch::Tensor>& second_moments,
                const std::vector<std::int64_t>& updates, double lr, const AdamConfig& config) {
  if (parameters.empty()) {
    return;
  }
  const torch::NoGradGuard no_grad;
  const bool on_host = std::all_of(parameters.begin(), parameters.end(), fits_kernel) &&
                       std::all_of(gradients.begin(), gradients.end(), fits_kernel);
  if (on_host) {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const auto power = static_cast<double>(updates[i]);
      update_on_host(parameters[i], gradients[i], first_moments[i], second_moments[i],
                     {.beta1 = static_cast<float>(config.beta1),
                      .beta2 = static_cast<float>(config.beta2),
                      .eps = static_cast<float>(config.eps),
                      .decay = static_cast<float>(1.0 - lr * config.weight_decay),
                      .root_correction =
                          static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(config.beta2, power))),
                      .step = static_cast<float>(-lr / (1.0 - std::pow(config.beta1, power)))});
      parameters[i].unsafeGetTensorImpl()->bump_version();
    }
    return;
  }
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

void adamw_step(const std::vector<torch::Tensor>& parameters,
                const std::vector<torch::Tensor>& gradients,
                const std::vector<torch::Tensor>& first_moments,
                const std::vector<torch::Tensor>& second_moments, const AdamOnDevice& now,
                const AdamConfig& config) {
  if (parameters.empty()) {
    return;
  }
  const torch::NoGradGuard no_grad;
  at::_foreach_mul_(first_moments, now.beta1);
  at::_foreach_add_(first_moments, gradients, 1.0 - config.beta1);
  at::_foreach_mul_(second_moments, now.beta2);
  at::_foreach_addcmul_(second_moments, gradients, gradients, 1.0 - config.beta2);

  // 1 - beta^t, exact in float32 where beta^t is near 1. (No update yet: anything but 0.)
  const auto count = now.updates.clamp_min(1).to(torch::kFloat32);
  const auto missing = [&count](double beta) {
    return -torch::expm1(count * std::log(std::max(beta, 1e-30)));
  };
  const auto root_correction = missing(config.beta2).rsqrt().unbind(0);
  const auto step_size = (now.lr / missing(config.beta1)).unbind(0);
  const auto denominator = at::_foreach_sqrt(second_moments);
  at::_foreach_mul_(denominator, root_correction);
  at::_foreach_add_(denominator, config.eps);
  const auto update = at::_foreach_div(first_moments, denominator);
  at::_foreach_mul_(update, step_size);
  if (config.weight_decay != 0.0) {
    at::_foreach_mul_(parameters, 1.0 - now.lr * config.weight_decay);
  }
  at::_foreach_sub_(parameters, update);
}

}  // namespace needle
