// AdamW, for everything that is not a dense kernel. Specification, section 7.
// Source: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/torch.h>

namespace needle {

struct AdamConfig {
  double peak_lr = 3e-4;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.0;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("peak_lr", self.peak_lr, "Learning rate after warmup");
    visit("beta1", self.beta1, "Decay of the mean gradient");
    visit("beta2", self.beta2, "Decay of the mean squared gradient");
    visit("eps", self.eps, "Added to the root of the mean squared gradient");
    visit("weight_decay", self.weight_decay, "Decoupled decay, times the learning rate");
  }
};

// One update of every parameter, in place; updates[i] counts those of parameter i, this one
// included (from 1).
//   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   parameter -= lr * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * parameter)
void adamw_step(const std::vector<torch::Tensor>& parameters,
                const std::vector<torch::Tensor>& gradients,
                const std::vector<torch::Tensor>& first_moments,
                const std::vector<torch::Tensor>& second_moments,
                const std::vector<std::int64_t>& updates, double lr, const AdamConfig& config);

// The same where the host does not know whether the update is to happen: float32 [] on the device.
// With `lr` 0, `beta1` and `beta2` 1 (and gradients of zeros) everything stays as it is.
struct AdamOnDevice {
  torch::Tensor lr;
  torch::Tensor beta1;
  torch::Tensor beta2;
  torch::Tensor updates;  // int64 [n]: of each parameter, this one included
};
void adamw_step(const std::vector<torch::Tensor>& parameters,
                const std::vector<torch::Tensor>& gradients,
                const std::vector<torch::Tensor>& first_moments,
                const std::vector<torch::Tensor>& second_moments, const AdamOnDevice& now,
                const AdamConfig& config);

}  // namespace needle
