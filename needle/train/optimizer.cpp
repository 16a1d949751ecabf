#include "needle/train/optimizer.h"

#include <algorithm>
#include <set>
#include <string_view>

#include "needle/core/error.h"
#include "needle/model/checkpoint.h"

namespace needle {
namespace {

void check(bool good, std::string_view field, double value, std::string_view rule) {
  if (!good) {
    throw ConfigError(format("optimizer.{} = {}: give {}", field, value, rule));
  }
}

void check_config(const OptimizerConfig& config) {
  const auto& [muon, adam, schedule, max_grad_norm, step_without_gradient] = config;
  constexpr std::string_view kFraction = "0 or more and less than 1";
  constexpr std::string_view kNotNegative = "0 or more";
  check(muon.peak_lr >= 0.0, "muon.peak_lr", muon.peak_lr, kNotNegative);
  check(muon.momentum >= 0.0 && muon.momentum < 1.0, "muon.momentum", muon.momentum, kFraction);
  check(muon.weight_decay >= 0.0, "muon.weight_decay", muon.weight_decay, kNotNegative);
  check(muon.newton_schulz_steps >= 1 && muon.newton_schulz_steps <= 100,
        "muon.newton_schulz_steps", static_cast<double>(muon.newton_schulz_steps), "1 to 100");
  check(adam.peak_lr >= 0.0, "adam.peak_lr", adam.peak_lr, kNotNegative);
  check(adam.beta1 >= 0.0 && adam.beta1 < 1.0, "adam.beta1", adam.beta1, kFraction);
  check(adam.beta2 >= 0.0 && adam.beta2 < 1.0, "adam.beta2", adam.beta2, kFraction);
  check(adam.eps > 0.0, "adam.eps", adam.eps, "more than 0");
  check(adam.weight_decay >= 0.0, "adam.weight_decay", adam.weight_decay, kNotNegative);
  check(max_grad_norm >= 0.0, "max_grad_norm", max_grad_norm, "0 (never clip) or more");
}

torch::Tensor count_tensor(std::int64_t count) {
  return torch::scalar_tensor(count, torch::TensorOptions().dtype(torch::kInt64));
}

}  // namespace

Optimizer::Optimizer(const Needle& model, const OptimizerConfig& config, std::int64_t total_steps)
    : Optimizer(named_parameters(model), model->kernel_names(), config, total_steps) {}

Optimizer::Optimizer(const NamedTensors& parameters, const std::vector<std::string>& muon_names,
                     const OptimizerConfig& config, std::int64_t total_steps)
    : config_(config), schedule_(config.schedule, total_steps) {
  check_config(config);
  const std::set<std::string_view> kernels(muon_names.begin(), muon_names.end());
  for (const auto& [name, parameter] : parameters) {
    const auto zeros = [&parameter = parameter] {
      return torch::zeros_like(parameter, torch::TensorOptions().requires_grad(false));
    };
    if (kernels.contains(name)) {
      NEEDLE_CHECK(parameter.dim() == 2, "{} has {} dimensions; Muon takes matrices", name,
                   parameter.dim());
      muon_.push_back({.name = name, .parameter = parameter, .momentum = zeros()});
    } else {
      adam_.push_back({.name = name,
                       .parameter = parameter,
                       .first_moment = zeros(),
                       .second_moment = zeros()});
    }
  }
  NEEDLE_CHECK(muon_.size() == kernels.size(), "{} of {} kernels are among the parameters",
               muon_.size(), kernels.size());
}

void Optimizer::zero_grad() {
  for (auto& leaf : muon_) {
    leaf.parameter.mutable_grad().reset();
  }
  for (auto& leaf : adam_) {
    leaf.parameter.mutable_grad().reset();
  }
}

std::vector<torch::Tensor> Optimizer::gradients() const {
  std::vector<torch::Tensor> defined;
  const auto collect = [&defined](const auto& leaves) {
    for (const auto& leaf : leaves) {
      if (leaf.parameter.grad().defined()) {
        defined.push_back(leaf.parameter.grad());
      }
    }
  };
  collect(muon_);
  collect(adam_);
  return defined;
}

torch::Tensor Optimizer::grad_norm() const {
  const torch::NoGradGuard no_grad;
  const auto defined = gradients();
  if (defined.empty()) {
    return torch::zeros({});
  }
  return torch::stack(at::_foreach_norm(defined)).norm();
}

double Optimizer::step() {
  const double norm = grad_norm().item<double>();
  step(norm);
  return norm;
}

void Optimizer::step(double grad_norm) {
  const torch::NoGradGuard no_grad;
  on_device_.reset();
  if (config_.max_grad_norm > 0.0 && grad_norm >= config_.max_grad_norm) {
    if (const auto defined = gradients(); !defined.empty()) {
      at::_foreach_mul_(defined, config_.max_grad_norm / grad_norm);
    }
  }
  step_muon();
  step_adam();
  ++updates_;
}

Optimizer::OnDevice& Optimizer::on_device(const torch::Device& device) {
  if (!on_device_) {
    std::vector<float> scales;
    for (std::int64_t i = 0; i <= schedule_.total_steps(); ++i) {
      scales.push_back(static_cast<float>(schedule_.scale(i)));
    }
    std::vector<std::int64_t> counts;
    for (const AdamLeaf& leaf : adam_) {
      counts.push_back(leaf.updates);
    }
    on_device_ = {.scales = torch::tensor(scales, torch::kFloat32).to(device),
                  .lr_scale = torch::full({}, lr_scale_, torch::TensorOptions().device(device)),
                  .updates = torch::tensor({updates_}, torch::kInt64).to(device),
                  .adam_updates = torch::tensor(counts, torch::kInt64).to(device),
                  .places = {}};
  }
  return *on_device_;
}

const torch::Tensor& Optimizer::OnDevice::places_of(const std::vector<std::size_t>& which) {
  torch::Tensor& known = places[which];
  if (!known.defined()) {
    const std::vector<std::int64_t> numbers(which.begin(), which.end());
    known = torch::tensor(numbers, torch::kInt64).to(adam_updates.device());
  }
  return known;
}

std::vector<std::size_t> Optimizer::update_ahead(const torch::Tensor& grad_norm,
                                                 const torch::Tensor& good) {
  const torch::NoGradGuard no_grad;
  OnDevice& now = on_device(grad_norm.device());
  const auto one = torch::ones({}, grad_norm.options());
  const auto zero = torch::zeros({}, grad_norm.options());
  const double limit = config_.max_grad_norm;
  const auto clip = limit > 0.0 ? torch::where(grad_norm >= limit, limit / grad_norm, one) : one;
  const auto scale =
      now.scales.index_select(0, now.updates.clamp_max(now.scales.size(0) - 1)).squeeze(0);
  const auto rate = torch::where(good, scale * now.lr_scale, zero);
  const auto or_one = [&](double value) { return torch::where(good, one * value, one); };
  // Zeros where the step does not count: infinity and NaN would not go away by any factor.
  const auto gradient_of = [&](const torch::Tensor& parameter) {
    return parameter.grad().defined() ? torch::where(good, parameter.grad() * clip, zero)
                                      : torch::zeros_like(parameter);
  };
  std::vector<torch::Tensor> parameters, gradients, first, second;
  for (const auto& leaf : muon_) {
    if (leaf.parameter.grad().defined() || config_.step_without_gradient) {
      parameters.push_back(leaf.parameter);
      gradients.push_back(gradient_of(leaf.parameter));
      first.push_back(leaf.momentum);
    }
  }
  muon_step(
      parameters, gradients, first,
      MuonOnDevice{.lr = rate * config_.muon.peak_lr, .momentum = or_one(config_.muon.momentum)},
      config_.muon);

  parameters.clear(), gradients.clear(), first.clear();
  std::vector<std::size_t> counted;
  for (std::size_t i = 0; i < adam_.size(); ++i) {
    AdamLeaf& leaf = adam_[i];
    if (leaf.parameter.grad().defined() || config_.step_without_gradient) {
      parameters.push_back(leaf.parameter);
      gradients.push_back(gradient_of(leaf.parameter));
      first.push_back(leaf.first_moment);
      second.push_back(leaf.second_moment);
      counted.push_back(i);
    }
  }
  if (!parameters.empty()) {
    const torch::Tensor& places = now.places_of(counted);
    const auto counts = now.adam_updates.index_select(0, places) + good;
    now.adam_updates.index_copy_(0, places, counts);
    adamw_step(parameters, gradients, first, second,
               AdamOnDevice{.lr = rate * config_.adam.peak_lr,
                            .beta1 = or_one(config_.adam.beta1),
                            .beta2 = or_one(config_.adam.beta2),
                            .updates = counts},
               config_.adam);
  }
  now.updates += good;
  return counted;
}

void Optimizer::count_ahead(const std::vector<std::size_t>& counted) {
  ++updates_;
  for (const std::size_t i : counted) {
    ++adam_[i].updates;
  }
  unconfirmed_.push_back({.counted = counted, .lr_scale = lr_scale_});
}

double Optimizer::confirm(bool skipped) {
  NEEDLE_CHECK(!unconfirmed_.empty(), "no step to confirm");
  const double scale = schedule_.scale(updates_ - static_cast<std::int64_t>(unconfirmed_.size())) *
                       unconfirmed_.front().lr_scale;
  if (skipped) {
    --updates_;
    for (const std::size_t i : unconfirmed_.front().counted) {
      --adam_[i].updates;
    }
  }
  unconfirmed_.pop_front();
  return scale;
}

void Optimizer::set_lr_scale(double scale) {
  if (on_device_ && scale != lr_scale_) {
    on_device_->lr_scale.fill_(scale);
  }
  lr_scale_ = scale;
}

void Optimizer::step_muon() {
  std::vector<torch::Tensor> parameters, gradients, momenta;
  for (const auto& leaf : muon_) {
    auto gradient = leaf.parameter.grad();
    if (!gradient.defined()) {
      if (!config_.step_without_gradient) {
        continue;
      }
      gradient = torch::zeros_like(leaf.parameter);
    }
    parameters.push_back(leaf.parameter);
    gradients.push_back(gradient);
    momenta.push_back(leaf.momentum);
  }
  muon_step(parameters, gradients, momenta, lr_muon(), config_.muon, orthogonalizer_);
}

void Optimizer::step_adam() {
  std::vector<torch::Tensor> parameters, gradients, first_moments, second_moments;
  std::vector<std::int64_t> updates;
  for (auto& leaf : adam_) {
    auto gradient = leaf.parameter.grad();
    if (!gradient.defined()) {
      if (!config_.step_without_gradient) {
        continue;
      }
      gradient = torch::zeros_like(leaf.parameter);
    }
    parameters.push_back(leaf.parameter);
    gradients.push_back(gradient);
    first_moments.push_back(leaf.first_moment);
    second_moments.push_back(leaf.second_moment);
    updates.push_back(++leaf.updates);
  }
  adamw_step(parameters, gradients, first_moments, second_moments, updates, lr_adam(),
             config_.adam);
}

double Optimizer::lr_adam() const {
  return config_.adam.peak_lr * schedule_.scale(updates_) * lr_scale_;
}
double Optimizer::lr_muon() const {
  return config_.muon.peak_lr * schedule_.scale(updates_) * lr_scale_;
}

NamedTensors Optimizer::state_dict() const {
  NamedTensors state{{"updates", count_tensor(updates_)}};
  for (const auto& leaf : muon_) {
    state["muon.momentum." + leaf.name] = leaf.momentum;
  }
  for (const auto& leaf : adam_) {
    state["adam.m." + leaf.name] = leaf.first_moment;
    state["adam.v." + leaf.name] = leaf.second_moment;
    state["adam.updates." + leaf.name] = count_tensor(leaf.updates);
  }
  return state;
}

void Optimizer::load_state_dict(const NamedTensors& state) {
  const NamedTensors expected = state_dict();
  for (const auto& [name, tensor] : expected) {
    const auto found = state.find(name);
    if (found == state.end()) {
      throw FormatError(
          format("optimiser state: {} is missing; the state is of another model or "
                 "another assignment of parameters to Muon and AdamW",
                 name));
    }
    if (found->second.sizes() != tensor.sizes() ||
        found->second.scalar_type() != tensor.scalar_type()) {
      throw FormatError(format("optimiser state: {} is {}{}, expected {}{}", name,
                               c10::toString(found->second.scalar_type()),
                               c10::str(found->second.sizes()), c10::toString(tensor.scalar_type()),
                               c10::str(tensor.sizes())));
    }
  }
  for (const auto& [name, tensor] : state) {
    if (!expected.contains(name)) {
      throw FormatError(format("optimiser state: {} is unknown to this model", name));
    }
    if (tensor.scalar_type() == torch::kInt64 && tensor.item<std::int64_t>() < 0) {
      throw FormatError(
          format("optimiser state: {} counts {} updates", name, tensor.item<std::int64_t>()));
    }
  }
  const torch::NoGradGuard no_grad;
  on_device_.reset();
  unconfirmed_.clear();
  updates_ = state.at("updates").item<std::int64_t>();
  for (auto& leaf : muon_) {
    leaf.momentum.copy_(state.at("muon.momentum." + leaf.name));
  }
  for (auto& leaf : adam_) {
    leaf.first_moment.copy_(state.at("adam.m." + leaf.name));
    leaf.second_moment.copy_(state.at("adam.v." + leaf.name));
    leaf.updates = state.at("adam.updates." + leaf.name).item<std::int64_t>();
  }
}

}  // namespace needle
