// Rows with padding, segments and gaps, and a forward and backward pass over them with each
// attention.
#pragma once

#include <algorithm>
#include <vector>

#include <torch/torch.h>

#include "tests/model/model_fixtures.h"

namespace needle::test {

// Two packed rows: padding at the end of the first, a segment of the answer without source (3), and
// one of the source without answer (4).
inline ModelInput packed_input(const ModelConfig& config) {
  torch::manual_seed(3);
  ModelInput input;
  input.source = random_tokens(config, 2, 9);
  input.decoder_in = random_tokens(config, 2, 7);
  input.source_segments =
      torch::tensor({{1, 1, 1, 1, 2, 2, 2, 0, 0}, {1, 1, 2, 2, 2, 2, 4, 4, 4}}, torch::kInt64);
  input.decoder_segments =
      torch::tensor({{1, 1, 1, 2, 2, 0, 0}, {1, 2, 2, 2, 3, 3, 3}}, torch::kInt64);
  return input;
}

// Ragged rows; the last is padding alone on the source side.
inline ModelInput padded_input(const ModelConfig& config) {
  torch::manual_seed(4);
  ModelInput input;
  input.source = random_tokens(config, 3, 8);
  input.decoder_in = random_tokens(config, 3, 6);
  input.source[1].narrow(0, 5, 3).fill_(config.pad_token_id);
  input.source[2].fill_(config.pad_token_id);
  input.decoder_in[1].narrow(0, 2, 4).fill_(config.pad_token_id);
  return input;
}

struct Pass {
  torch::Tensor hidden;
  std::vector<torch::Tensor> gradients;
};

inline Pass run(Needle& model, const ModelInput& input, AttentionKernel kernel) {
  model->zero_grad();
  model->set_attention_kernel(kernel);
  const auto hidden = model->hidden(input);
  torch::manual_seed(5);
  (hidden.to(torch::kFloat32) * torch::randn(hidden.sizes())).sum().backward();
  Pass pass{.hidden = hidden.detach(), .gradients = {}};
  for (const auto& parameter : model->parameters()) {
    pass.gradients.push_back(parameter.grad().defined() ? parameter.grad().clone()
                                                        : torch::zeros_like(parameter));
  }
  return pass;
}

// The largest difference of a gradient, relative to its largest value (at least 1).
inline double gradient_difference(const Pass& actual, const Pass& expected) {
  double worst = 0.0;
  for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
    const auto size = expected.gradients[i].abs().max().item<double>();
    worst = std::max(worst, largest_difference(actual.gradients[i], expected.gradients[i]) /
                                std::max(1.0, size));
  }
  return worst;
}

// A pass whose gradients are all zero: what a comparison must not take for right.
inline Pass nothing_like(const Pass& pass) {
  Pass nothing = pass;
  for (auto& gradient : nothing.gradients) {
    gradient = torch::zeros_like(gradient);
  }
  return nothing;
}

}  // namespace needle::test
