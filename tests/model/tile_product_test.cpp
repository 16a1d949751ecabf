#include "needle/model/kernels/tile_product.h"

#include <cmath>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include <torch/torch.h>

#include "tests/model/model_fixtures.h"

namespace needle::test {
namespace {

class TileProductTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_tile_products()) {
      GTEST_SKIP() << "this CPU has no AMX for bfloat16, or NEEDLE_ISA hides it";
    }
    torch::manual_seed(1);
  }
};

torch::Tensor rounded(const torch::Tensor& matrix) { return matrix.to(torch::kBFloat16); }

TileSource wide(const torch::Tensor& matrix, bool transposed) {
  return {.wide = matrix.data_ptr<float>(), .stride = matrix.size(1), .transposed = transposed};
}

TEST_F(TileProductTest, IsTheProductOfTheRoundedFactorsHoweverTheyLie) {
  for (const auto& [rows, inner, columns] :
       {std::tuple{1, 1, 1}, {32, 32, 32}, {33, 31, 17}, {16, 64, 48}, {100, 513, 70}}) {
    const auto a = torch::randn({rows, inner}), b = torch::randn({inner, columns});
    const auto a_turned = a.t().contiguous(), b_turned = b.t().contiguous();
    const auto exact = rounded(a).to(torch::kFloat64).mm(rounded(b).to(torch::kFloat64));
    const auto a16 = rounded(a), b16_turned = rounded(b_turned);
    const auto bits = [](const torch::Tensor& matrix, bool transposed) {
      return TileSource{
          .rounded = reinterpret_cast<const std::uint16_t*>(matrix.data_ptr<at::BFloat16>()),
          .stride = matrix.size(1),
          .transposed = transposed};
    };
    for (const TileSource& left_source : {wide(a, false), wide(a_turned, true), bits(a16, false)}) {
      for (const TileSource& right_source :
           {wide(b, false), wide(b_turned, true), bits(b16_turned, true)}) {
        TileLeft left;
        TileRight right;
        left.pack(left_source, rows, inner);
        right.pack(right_source, inner, columns);
        // One value more a row, to see that nothing is written behind the columns.
        auto result = torch::full({rows, columns + 1}, 3.0);
        multiply_tiles({.rows = rows, .columns = columns, .alpha = 0.5F, .beta = -1.0F}, left,
                       right, result.data_ptr<float>(), columns + 1);
        const auto inside = result.narrow(1, 0, columns).to(torch::kFloat64);
        // Sums of `inner` terms around 1, rounded in float32.
        EXPECT_LT(largest_difference(inside, 0.5 * exact - 3.0), 1e-6 * (inner + 4));
        EXPECT_TRUE((result.select(1, columns) == 3.0).all().item<bool>());
      }
    }
  }
}

TEST_F(TileProductTest, ASmallerFactorAfterALargerOneHasNothingOfIt) {
  const auto large = torch::randn({64, 96}), small = torch::randn({10, 20});
  TileLeft left;
  TileRight right;
  left.pack(wide(large, false), 64, 96);
  right.pack(wide(large, true), 96, 64);
  left.pack(wide(small, false), 10, 20);
  right.pack(wide(small, true), 20, 10);
  auto result = torch::full({10, 10}, std::nan(""));
  multiply_tiles({.rows = 10, .columns = 10}, left, right, result.data_ptr<float>(), 10);
  const auto factor = rounded(small).to(torch::kFloat64);
  EXPECT_LT(largest_difference(result.to(torch::kFloat64), factor.mm(factor.t())), 1e-6 * 24);
}

TEST_F(TileProductTest, TheLowerHalfOfASymmetricProductMirroredIsTheWhole) {
  for (const std::int64_t size : {1, 16, 31, 64, 100}) {
    const auto x = torch::randn({size, 50});
    TileLeft left;
    TileRight right;
    left.pack(wide(x, false), size, 50);
    right.pack(wide(x, true), 50, size);
    auto whole = torch::empty({size, size}), half = torch::full({size, size}, 7.0);
    multiply_tiles({.rows = size, .columns = size}, left, right, whole.data_ptr<float>(), size);
    multiply_tiles({.rows = size, .columns = size, .lower = true}, left, right,
                   half.data_ptr<float>(), size);
    mirror_lower(half.data_ptr<float>(), size);
    EXPECT_TRUE(torch::equal(half, whole)) << size;
  }
}

TEST_F(TileProductTest, NumbersThatAreNotFiniteReachTheResult) {
  auto a = torch::ones({2, 40}), b = torch::ones({40, 3});
  a[0][0] = std::nan("");
  a[1][39] = INFINITY;
  TileLeft left;
  TileRight right;
  left.pack(wide(a, false), 2, 40);
  right.pack(wide(b, false), 40, 3);
  auto result = torch::zeros({2, 3});
  multiply_tiles({.rows = 2, .columns = 3}, left, right, result.data_ptr<float>(), 3);
  EXPECT_TRUE(result[0].isnan().all().item<bool>());
  EXPECT_TRUE(result[1].isinf().all().item<bool>());
}

}  // namespace
}  // namespace needle::test
