#include "needle/model/norm.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tests/model/model_fixtures.h"

namespace needle {
namespace {

TEST(NormTest, FollowsItsEquation) {
  torch::manual_seed(1);
  ZCRMSNorm norm(7);
  const auto x = torch::randn({2, 3, 7}) * 5;
  const torch::NoGradGuard no_grad;
  norm->scale.copy_(torch::randn({7}));
  const auto y = norm(x);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < 3; ++t) {
      double squares = 0.0;
      for (std::int64_t i = 0; i < 7; ++i) {
        squares += std::pow(x[b][t][i].item<double>(), 2);
      }
      for (std::int64_t i = 0; i < 7; ++i) {
        const double expected = (1.0 + norm->scale[i].item<double>()) * x[b][t][i].item<double>() /
                                std::sqrt(squares / 7 + 1e-6);
        EXPECT_NEAR(y[b][t][i].item<double>(), expected, 2e-6);
      }
    }
  }
}

TEST(NormTest, KeepsTheTypeOfItsInputAndComputesInFloat32) {
  ZCRMSNorm norm(64);
  const auto x = (torch::ones({1, 64}) * 300).to(torch::kFloat16);  // 300^2 does not fit float16
  const auto y = norm(x);
  EXPECT_EQ(y.scalar_type(), torch::kFloat16);
  EXPECT_LT(test::largest_difference(y, torch::ones({1, 64})), 1e-3);
}

TEST(NormTest, SurvivesARowOfZeros) {
  ZCRMSNorm norm(4);
  auto x = torch::zeros({2, 4}).requires_grad_();
  const auto y = norm(x);
  EXPECT_TRUE(test::same_values(y.detach(), torch::zeros({2, 4})));
  y.sum().backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
}

}  // namespace
}  // namespace needle
