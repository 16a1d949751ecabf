#include "needle/model/rope.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tests/model/model_fixtures.h"

namespace needle {
namespace {

constexpr double kTheta = 10000.0;

TEST(RopeTest, TurnsEachPairOfHalvesByItsAngle) {
  torch::manual_seed(2);
  const auto x = torch::randn({1, 1, 9, 8});
  const auto y = rotate(x, make_rope(9, 8, kTheta, torch::kCPU));
  for (std::int64_t t = 0; t < 9; ++t) {
    for (std::int64_t i = 0; i < 4; ++i) {
      const double angle =
          static_cast<double>(t) * std::pow(kTheta, -2.0 * static_cast<double>(i) / 8);
      const double first = x[0][0][t][i].item<double>();
      const double second = x[0][0][t][i + 4].item<double>();
      EXPECT_NEAR(y[0][0][t][i].item<double>(), first * std::cos(angle) - second * std::sin(angle),
                  2e-6);
      EXPECT_NEAR(y[0][0][t][i + 4].item<double>(),
                  second * std::cos(angle) + first * std::sin(angle), 2e-6);
    }
  }
}

TEST(RopeTest, ScoresDependOnRelativePositionsAlone) {
  torch::manual_seed(3);
  const auto rope = make_rope(40, 16, kTheta, torch::kCPU);
  const auto q = torch::randn({1, 1, 1, 16});
  const auto k = torch::randn({1, 1, 1, 16});
  const auto score = [&](std::int64_t at_q, std::int64_t at_k) {
    return (rotate(q, rope.at(at_q)) * rotate(k, rope.at(at_k))).sum().item<double>();
  };
  EXPECT_NEAR(score(7, 3), score(34, 30), 1e-4);
  EXPECT_GT(std::abs(score(7, 3) - score(8, 3)), 1e-3);
}

TEST(RopeTest, PromotesHalfPrecisionToFloat32) {
  const auto x = torch::ones({1, 2, 3, 4}, torch::kBFloat16);
  EXPECT_EQ(rotate(x, make_rope(3, 4, kTheta, torch::kCPU)).scalar_type(), torch::kFloat32);
}

}  // namespace
}  // namespace needle
