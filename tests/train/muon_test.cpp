#include "needle/train/muon.h"

#include <set>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/model/blas.h"
#include "needle/model/kernels/half_product.h"
#include "needle/model/kernels/tile_product.h"

#include "tests/train/golden_case.h"

namespace needle::test {
namespace {

// The iteration as the specification has it: one matrix, no fused products.
torch::Tensor orthogonalize_by_hand(const torch::Tensor& gradient) {
  const bool tall = gradient.size(0) > gradient.size(1);
  auto x = tall ? gradient.t() : gradient;
  x = x / (x.norm() + 1e-7);
  for (int i = 0; i < 5; ++i) {
    const auto gram = x.matmul(x.t());
    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram.matmul(gram)).matmul(x);
  }
  return tall ? x.t() : x;
}

TEST(OrthogonalizeTest, BringsEverySingularValueNearOne) {
  torch::manual_seed(1);
  const auto values = torch::linalg_svdvals(orthogonalize(torch::randn({48, 96})));
  EXPECT_GT(values.min().item<double>(), 0.6);  // of random matrices far from square
  EXPECT_LT(values.max().item<double>(), 1.3);
}

TEST(OrthogonalizeTest, ShapesThatGoThroughTogetherComeOutAsOneByOne) {
  torch::manual_seed(2);
  std::vector<torch::Tensor> gradients;
  for (const auto& [rows, columns] :
       {std::pair{8, 20}, {20, 8}, {12, 12}, {8, 20}, {12, 12}, {1, 9}, {20, 8}}) {
    gradients.push_back(torch::randn({rows, columns}));
  }
  gradients.push_back(torch::zeros({8, 20}));
  const auto together = orthogonalize(gradients);
  ASSERT_EQ(together.size(), gradients.size());
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_EQ(together[i].sizes(), gradients[i].sizes());
    EXPECT_TRUE(together[i].is_contiguous());
    EXPECT_LE(largest(together[i] - orthogonalize_by_hand(gradients[i])), 2e-5);
  }
  EXPECT_EQ(largest(together.back()), 0.0);
}

TEST(OrthogonalizeTest, CommutesWithTransposition) {  // [out, in] here, (in, out) in the reference
  torch::manual_seed(3);
  for (const auto& [rows, columns] : {std::pair{16, 16}, {10, 24}, {24, 10}}) {
    const auto gradient = torch::randn({rows, columns});
    EXPECT_LE(largest(orthogonalize(gradient.t()).t() - orthogonalize(gradient)), 2e-5);
  }
}

TEST(OrthogonalizeTest, Bfloat16StaysNear) {
  torch::manual_seed(4);
  const auto gradient = torch::randn({32, 64});
  const auto coarse = orthogonalize({gradient}, {.dtype = NewtonSchulzDtype::kBfloat16}).front();
  EXPECT_EQ(coarse.scalar_type(), torch::kFloat32);
  const double difference = (coarse - orthogonalize(gradient)).norm().item<double>();
  EXPECT_GT(difference, 0.0);
  // Entries of 32 rows of unit length; bfloat16 keeps 8 bits, five steps of it stay within 5 %.
  EXPECT_LT(difference, 0.05 * std::sqrt(32.0));
}

TEST(OrthogonalizeTest, AutoIsTheFastestOfTheCpu) {
  torch::manual_seed(8);
  const auto gradient = torch::randn({40, 70});
  const auto of = [&](NewtonSchulzDtype dtype) {
    return orthogonalize({gradient}, {.dtype = dtype}).front();
  };
  const auto fastest = has_tile_products() || has_rounded_products() ? NewtonSchulzDtype::kBfloat16
                       : has_half_products()                         ? NewtonSchulzDtype::kFloat16
                                                                     : NewtonSchulzDtype::kFloat32;
  EXPECT_EQ(largest(of(NewtonSchulzDtype::kAuto) - of(fastest)), 0.0);
}

TEST(OrthogonalizeTest, Float16StaysNearerThanBfloat16WhereTheCpuHasIt) {
  torch::manual_seed(7);
  for (const auto& [rows, columns] : {std::pair{70, 90}, {130, 130}, {33, 17}}) {
    const auto gradient = torch::randn({rows, columns});
    const auto exact = orthogonalize(gradient);
    const auto error = [&](NewtonSchulzDtype dtype) {
      const auto result = orthogonalize({gradient}, {.dtype = dtype, .symmetric = true}).front();
      return (result - exact).norm().item<double>();
    };
    const double half = error(NewtonSchulzDtype::kFloat16);
    EXPECT_LT(half, error(NewtonSchulzDtype::kBfloat16));
    EXPECT_EQ(half > 1e-4, has_half_products());
  }
  // A matrix of one direction has the largest values that a normed one can have.
  const auto narrow = torch::outer(torch::eye(64)[0], torch::eye(64)[1]) * 5.0;
  const auto result = orthogonalize({narrow}, {.dtype = NewtonSchulzDtype::kFloat16}).front();
  EXPECT_LT(largest(result - orthogonalize(narrow)), 5e-3);
}

TEST(OrthogonalizeTest, HalfOfTheSymmetricProductsGivesTheSame) {
  torch::manual_seed(6);
  std::vector<torch::Tensor> gradients;
  for (const auto& [rows, columns] : {std::pair{70, 90}, {90, 70}, {130, 130}, {70, 90}, {1, 9}}) {
    gradients.push_back(torch::randn({rows, columns}));
  }
  gradients.push_back(torch::zeros({70, 90}));
  const auto whole = orthogonalize(gradients);
  const auto half = orthogonalize(gradients, {.symmetric = true});
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_LE(largest(half[i] - whole[i]), 2e-5);
  }
  EXPECT_GT(largest(half[0] - whole[3]), 0.1);
  EXPECT_EQ(largest(half.back()), 0.0);
}

TEST(OrthogonalizeTest, RefusesWhatIsNoMatrix) {
  EXPECT_THROW(orthogonalize(torch::ones({3})), Error);
}

TEST(MuonStepTest, FollowsTheEquations) {
  torch::manual_seed(5);
  const auto before = torch::randn({6, 10});
  const auto gradient = torch::randn({6, 10});
  const auto momentum = torch::randn({6, 10});
  const auto g = orthogonalize(gradient);
  const auto m = 0.95 * momentum + g;
  const auto expected = before - 0.1 * (g + 0.95 * m + 0.01 * before);
  const auto parameter = before.clone();
  const auto state = momentum.clone();
  muon_step({parameter}, {gradient}, {state}, 0.1, {});
  EXPECT_LE(largest(parameter - expected), 1e-6);
  EXPECT_LE(largest(state - m), 1e-6);
}

TEST(MuonGoldenTest, NewtonSchulzIsTheReferences) {
  const auto tensors = load_tensors(golden("optim/newton_schulz.safetensors"));
  int cases = 0;
  for (const auto& [name, input] : tensors) {
    if (!name.ends_with("/in")) {
      continue;
    }
    ++cases;
    const auto& wanted = tensors.at(name.substr(0, name.size() - 2) + "out");
    EXPECT_LE(largest(orthogonalize(input) - wanted), 1e-4) << name;
    EXPECT_LE(largest(orthogonalize(input.t()).t() - wanted), 1e-4) << name << ", transposed";
  }
  EXPECT_GT(cases, 0);
}

}  // namespace
}  // namespace needle::test
