#include "needle/model/product.h"

#include <cmath>
#include <tuple>

#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/model/model_fixtures.h"

namespace needle::test {
namespace {

// Whether the CPU multiplies bfloat16 itself or not: the same sums, but for their order.
TEST(ProductTest, IsThatOfTheRoundedFactors) {
  torch::manual_seed(1);
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    for (const auto& [rows, inner, columns] :
         {std::tuple{1, 1, 1}, {3, 5, 7}, {70, 33, 41}, {64, 128, 96}}) {
      const auto a = as_factor(torch::randn({rows, inner}), dtype);
      const auto b = as_factor(torch::randn({inner, columns}), dtype);
      const auto exact = a.to(torch::kFloat64).mm(b.to(torch::kFloat64));
      const auto a_turned = a.t().contiguous().t(), b_turned = b.t().contiguous().t();
      const auto padded = torch::cat({b, b}, 1).narrow(1, columns, columns);  // longer strides
      for (const auto& left : {a, a_turned}) {
        for (const auto& right : {b, b_turned, padded}) {
          const auto result = product(left, right, dtype);
          EXPECT_EQ(result.scalar_type(), torch::kFloat32);
          // Sums of `inner` terms around 1: rounding errors of float32 alone.
          EXPECT_LT(largest_difference(result.to(torch::kFloat64), exact), 1e-6 * (inner + 4));
          auto sum = torch::ones({rows, columns});
          product_into(sum, left, right, dtype, 0.5, -2.0);
          EXPECT_LT(largest_difference(sum.to(torch::kFloat64), 0.5 * exact - 2.0),
                    1e-6 * (inner + 4));
        }
      }
    }
  }
}

TEST(ProductTest, FactorsOfBfloat16AreRounded) {
  const auto third = torch::full({1, 1}, 1.0 / 3.0);
  const auto one = torch::ones({1, 1});
  EXPECT_EQ(product(as_factor(third, torch::kBFloat16), as_factor(one, torch::kBFloat16),
                    torch::kBFloat16)
                .item<float>(),
            0.333984375F);
  EXPECT_EQ(as_factor(third, torch::kFloat32).data_ptr(), third.data_ptr());
}

TEST(ProductTest, Float32FactorsAreRoundedOnTheWay) {
  torch::manual_seed(2);
  const auto a = torch::randn({70, 100}), b = torch::randn({100, 41});
  const auto rounded_a = as_factor(a, torch::kBFloat16), rounded_b = as_factor(b, torch::kBFloat16);
  const auto wanted = product(rounded_a, rounded_b, torch::kBFloat16);
  for (const auto& left : {a, rounded_a, as_passing_factor(a, torch::kBFloat16)}) {
    for (const auto& right : {b, rounded_b}) {
      EXPECT_TRUE(torch::equal(product(left, right, torch::kBFloat16), wanted));
    }
  }
  EXPECT_GT(largest_difference(product(a, b, torch::kFloat32), wanted), 1e-3);
}

TEST(ProductTest, LongSumsAreTakenInParts) {
  torch::manual_seed(3);
  const auto a = as_factor(torch::randn({300, 1200}), torch::kBFloat16);
  const auto b = as_factor(torch::randn({1200, 96}), torch::kBFloat16);
  const auto exact = a.to(torch::kFloat64).mm(b.to(torch::kFloat64));
  auto sum = torch::ones({300, 96});
  product_into(sum, a, b, torch::kBFloat16, 1.0, 1.0);
  // Of 1200 terms around 1 the partial sums stay below 150: half a unit in the last place of each.
  EXPECT_LT(largest_difference(sum.to(torch::kFloat64), exact + 1.0), 1200 * 150 * 6e-8);
  EXPECT_LT(
      largest_difference(product(a, b, torch::kBFloat16, 0.25).to(torch::kFloat64), 0.25 * exact),
      1200 * 150 * 6e-8);
}

TEST(ProductTest, WithoutBetaTheResultIsNotRead) {
  auto result = torch::full({2, 2}, std::nan(""));
  const auto ones = as_factor(torch::ones({2, 2}), torch::kBFloat16);
  product_into(result, ones, ones, torch::kBFloat16, 1.0, 0.0);
  EXPECT_EQ(result.sum().item<float>(), 8.0F);
}

TEST(ProductTest, RefusesFactorsThatDoNotFit) {
  const auto a = torch::ones({2, 3}, torch::kBFloat16);
  EXPECT_THROW(product(a, a, torch::kBFloat16), Error);
  EXPECT_THROW(product(torch::ones({2, 3}, torch::kFloat64), a.t(), torch::kBFloat16), Error);
  EXPECT_THROW(product(a, torch::ones({3, 2}), torch::kFloat16), Error);
}

}  // namespace
}  // namespace needle::test
