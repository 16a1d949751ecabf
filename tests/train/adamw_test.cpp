#include "needle/train/adamw.h"

#include <gtest/gtest.h>

#include "tests/train/golden_case.h"

namespace needle::test {
namespace {

TEST(AdamwStepTest, AgreesWithTheLibrarysOptimizer) {
  torch::manual_seed(1);
  const AdamConfig config{.beta1 = 0.8, .beta2 = 0.9, .eps = 1e-6, .weight_decay = 0.1};
  const double lr = 0.01;
  const std::vector<torch::Tensor> ours{torch::randn({4, 3}), torch::randn({5})};
  std::vector<torch::Tensor> theirs, m, v;
  for (const auto& parameter : ours) {
    theirs.push_back(parameter.clone().requires_grad_());
    m.push_back(torch::zeros_like(parameter));
    v.push_back(torch::zeros_like(parameter));
  }
  const auto start = ours[0].clone();
  torch::optim::AdamW reference(
      theirs, torch::optim::AdamWOptions(lr).betas({0.8, 0.9}).eps(1e-6).weight_decay(0.1));
  for (std::int64_t t = 1; t <= 12; ++t) {
    std::vector<torch::Tensor> gradients;
    for (auto& parameter : theirs) {
      gradients.push_back(torch::randn_like(parameter));
      parameter.mutable_grad() = gradients.back();
    }
    reference.step();
    adamw_step(ours, gradients, m, v, {t, t}, lr, config);
  }
  EXPECT_GT(largest(ours[0] - start), 0.01);
  for (std::size_t i = 0; i < ours.size(); ++i) {
    EXPECT_LE(largest(ours[i] - theirs[i]), 1e-6);
  }
}

TEST(AdamwStepTest, FirstUpdateOfEveryCountIsOneRateLong) {
  // Bias correction: whatever the size of the first gradient, the parameter moves by lr.
  const auto a = torch::zeros({3}), b = torch::zeros({3});
  const auto ma = torch::zeros({3}), mb = torch::zeros({3});
  const auto va = torch::zeros({3}), vb = torch::zeros({3});
  adamw_step({a, b}, {torch::full({3}, 5.0), torch::full({3}, -1e-3)}, {ma, mb}, {va, vb}, {1, 1},
             0.25, {});
  EXPECT_LE(largest(a + 0.25), 1e-6);
  EXPECT_LE(largest(b - 0.25), 1e-5);  // eps is 1e-5 of this gradient
}

}  // namespace
}  // namespace needle::test
